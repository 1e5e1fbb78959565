"""
What this node set out to claim since the machine booted: a line before each claiming rename.

An entry found in running/<me> that the runner does not know certainly never started only if its claim
is on record here, in this boot; without a record it may have (a listing may have missed it before, the
machine may have lost power). Told apart by name, gen included. Model: "no record after reboot".
Not synced: the page cache survives the death of processes, and after a reboot the record is void.
"""

import errno
import os

MOST_BYTES = 1 << 20  # then only what is needed is kept
RECENT = 1000  # of the latest names, since the server may still carry out a claim that was given up on


class Claims:
    """The record of one daemon; one writer, under the node's lock."""

    def __init__(self, state_dir: str, boot: str) -> None:
        """Read what earlier daemons of this boot wrote; what is of another boot is void."""
        self._path = os.path.join(state_dir, "claims")
        self._boot = boot
        self.names: dict[str, None] = {}  # in the order in which they were recorded
        try:
            with open(self._path, encoding="ascii", errors="replace") as file:
                first, *lines = file.read().split("\n")
                self.names = dict.fromkeys(lines[:-1]) if first == boot else {}
        except FileNotFoundError:
            pass
        self._fd, self._torn = -1, False
        self._write_anew(self.names)

    def add(self, name: str) -> None:
        """Record a claim before its rename; OSError means that it must not be tried."""
        data = b"\n" * self._torn + name.encode() + b"\n"
        written = os.write(self._fd, data)
        self._size += written
        self._torn = written < len(data)
        if self._torn:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._path)
        self.names[name] = None

    def __contains__(self, name: str) -> bool:
        """Whether this node set out to claim exactly this in this boot."""
        return name in self.names

    @property
    def long(self) -> bool:
        """Whether it is time to `keep` only what is needed."""
        return self._size > MOST_BYTES

    def keep(self, needed: set[str]) -> None:
        """Write the record anew with what is needed and what is recent."""
        recent = list(self.names)[-RECENT:]
        self._write_anew(dict.fromkeys([*(name for name in self.names if name in needed), *recent]))

    def _write_anew(self, names: dict[str, None]) -> None:
        data = "".join(f"{line}\n" for line in (self._boot, *names)).encode()
        fd = os.open(self._path + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        if os.write(fd, data) < len(data):
            os.close(fd)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._path)
        os.rename(self._path + ".new", self._path)
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._size, self._torn, self.names = fd, len(data), False, names
