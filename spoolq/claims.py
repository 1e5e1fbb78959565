"""
What this node set out to claim since the machine booted: a line before each claiming rename.

An entry found in running/<me> that the runner does not know certainly never started only if its claim
is on record here, in this boot; without a record it may have (a listing may have missed it before, the
machine may have lost power). Told apart by name, gen included. Model: "no record after reboot".
Not synced: the page cache survives the death of processes, and after a reboot the record is void.
"""

import os

MOST_BYTES = 1 << 20  # then only what is still here is kept


class Claims:
    """The record of one daemon; one writer, under the node's lock."""

    def __init__(self, state_dir: str, boot: str) -> None:
        """Read what earlier daemons of this boot wrote; what is of another boot is void."""
        self._path = os.path.join(state_dir, "claims")
        self._boot = boot
        self.names: set[str] = set()
        try:
            with open(self._path, encoding="ascii", errors="replace") as file:
                first, *lines = file.read().split("\n")
                self.names = set(lines[:-1]) if first == boot else set()
        except FileNotFoundError:
            pass
        self._fd = -1
        self.keep(self.names)

    def add(self, name: str) -> None:
        """Record a claim before its rename; OSError means that it must not be tried."""
        self._size += os.write(self._fd, name.encode() + b"\n")
        self.names.add(name)

    def __contains__(self, name: str) -> bool:
        """Whether this node set out to claim exactly this in this boot."""
        return name in self.names

    @property
    def long(self) -> bool:
        """Whether it is time to `keep` only what is needed."""
        return self._size > MOST_BYTES

    def keep(self, names: set[str]) -> None:
        """Write the record anew with what is still needed."""
        self.names = self.names & names
        data = "".join(f"{line}\n" for line in (self._boot, *sorted(self.names))).encode()
        fd = os.open(self._path + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        os.write(fd, data)
        os.rename(self._path + ".new", self._path)
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._size = fd, len(data)
