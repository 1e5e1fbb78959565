"""A machine's own disk: small files that outlive processes; what was not synced may be lost with the power."""

import errno
import io
import os
import random
from typing import Any

from tests.sim.server import oserror


class _Writer(io.StringIO):
    """An open text file that is there when it is closed."""

    def __init__(self, disk: "Disk", path: str) -> None:
        super().__init__()
        self.disk, self.path = disk, path
        disk.files[path] = b""

    def close(self) -> None:
        if not self.closed:
            self.disk.files[self.path] = self.getvalue().encode()
        super().close()


class Disk:
    """Paths to contents; methods named like those of `os` are those."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.synced: dict[str, bytes] = {}
        self._open: dict[int, str] = {}
        self._number = 10

    def open_text(self, path: str, mode: str = "r", **_: Any) -> io.StringIO:
        """`open`."""
        if "w" in mode:
            return _Writer(self, path)
        if path not in self.files:
            raise oserror(errno.ENOENT, path)
        return io.StringIO(self.files[path].decode("utf-8", "replace"))

    def open(self, path: str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_EXCL and path in self.files:
            raise oserror(errno.EEXIST, path)
        if not flags & (os.O_CREAT | os.O_DIRECTORY) and path not in self.files:
            raise oserror(errno.ENOENT, path)
        if not flags & os.O_DIRECTORY and (flags & os.O_TRUNC or path not in self.files):
            self.files[path] = b""
        self._number += 1
        self._open[self._number] = path
        return self._number

    def write(self, fd: int, data: bytes) -> int:
        self.files[self._open[fd]] += bytes(data)
        return len(data)

    def fsync(self, fd: int) -> None:
        if self._open[fd] in self.files:  # else it is the directory
            self.synced[self._open[fd]] = self.files[self._open[fd]]

    def listdir(self, path: str) -> list[str]:
        return [name[len(path) + 1 :] for name in self.files if name.startswith(path + "/")]

    def unlink(self, path: str) -> None:
        if self.files.pop(path, None) is None:
            raise oserror(errno.ENOENT, path)

    def close(self, fd: int) -> None:
        self._open.pop(fd, None)

    def rename(self, path: str, path2: str) -> None:
        for fd, name in self._open.items():
            if name == path:
                self._open[fd] = path2
        self.files[path2] = self.files.pop(path)
        if path in self.synced:
            self.synced[path2] = self.synced.pop(path)

    def replace(self, path: str, path2: str) -> None:
        self.rename(path, path2)

    def lstat(self, path: str) -> os.stat_result:
        if path not in self.files:
            raise oserror(errno.ENOENT, path)
        return os.stat_result((0o100600, 1, 1, 1, os.getuid(), 0, len(self.files[path]), 0, 0, 0))

    def mkdir(self, path: str, mode: int = 0o777) -> None:
        return None  # directories are there when a file is

    def makedirs(self, path: str, mode: int = 0o777, exist_ok: bool = False) -> None:
        return None

    def statvfs(self, path: str) -> Any:
        class Space:
            f_bavail, f_frsize = 1 << 20, 1 << 20

        return Space

    def power_loss(self, chance: random.Random) -> None:
        """What was not synced is there, or is as it was, or is empty."""
        self._open.clear()
        for path in sorted(self.files):
            if self.synced.get(path) == self.files[path]:
                continue
            kept = chance.choice([self.files[path], self.synced.get(path), b""])
            if kept is None:
                del self.files[path]
            else:
                self.files[path] = kept
        self.synced = dict(self.files)
