"""
The NFS client of one machine: caches, RPCs that go wrong, and the descriptors of its processes.

As measured on real mounts: opening a directory by path is fresh; stat and open of a name are as old as
the cache (up to 60 s), also for a name that was missing; a file that was renamed away can still be
opened by its old name; ENOSPC shows at fsync or close; a request whose answer was lost is repeated, and
without the server's reply cache the repetition says ENOENT or EEXIST for an own success.
Each method named like one of `os` is that; `seam` puts them in its place. The faults come from `plan`.
"""

import contextlib
import errno
import os
import stat
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

from tests.sim.mount import Dir, Mount
from tests.sim.server import Inode, oserror

ACTTL = (3.0, 60.0)  # acregmin, acdirmax
RETRANS_S = (0.5, 61.0)  # after a lost answer (v4, v3)


FIRST_FD = 10**6  # smaller ones are of the machine's own disk


class Open:
    """An open file; `dirty` is what was written and not sent, at `offset`."""

    __slots__ = ("dirty", "node", "offset", "path", "writable")

    def __init__(self, node: Inode, path: str, writable: bool, offset: int) -> None:
        self.node, self.path, self.writable, self.offset = node, path, writable, offset
        self.dirty = b""


class Stat(NamedTuple):
    """What the code asks of a stat result."""

    st_mode: int
    st_ino: int
    st_size: int
    st_mtime: float
    st_mtime_ns: int
    st_ctime_ns: int
    st_uid: int
    st_nlink: int
    st_dev: int = 0  # `seam` says whether it is remote


class Space(NamedTuple):
    """As statvfs."""

    f_bavail: int
    f_frsize: int


class Client(Mount):
    """One mount: what `os` offers."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.files: dict[int, Open] = {}
        self.next_fd = FIRST_FD

    def drop_caches(self) -> None:
        """A reboot."""
        super().drop_caches()
        self.files.clear()

    # --- names

    def mkdir(self, path: str, mode: int = 0o777) -> None:
        self._make("mkdir", "d", path)

    def makedirs(self, path: str, mode: int = 0o777, exist_ok: bool = False) -> None:
        if path == "/spool":
            return
        head = os.path.dirname(path)
        if head != "/spool" and not self.exists(head):
            with contextlib.suppress(FileExistsError):
                self.makedirs(head, exist_ok=exist_ok)
        try:
            self.mkdir(path)
        except OSError:
            if not exist_ok or not self.exists(path):
                raise

    def exists(self, path: str) -> bool:
        try:
            self.lstat(path)
        except OSError:
            return False
        return True

    def symlink(self, text: str, path: str) -> None:
        self._make("symlink", "l", path, text)

    def readlink(self, path: str) -> str:
        node = self._file(path)
        if node.kind != "l":
            raise oserror(errno.EINVAL, path)
        return node.text

    def rename(self, path: str, path2: str) -> None:
        src, name, where = self._parent(path)
        dst, name2, where2 = self._parent(path2)
        if self._dir(src).names.get(name, self) is None:
            raise oserror(errno.ENOENT, path, path2)  # known to be missing: the server is not asked
        seen = [0, 0, 0, 0]

        def act() -> Inode | None:
            before = src.change, dst.change
            self.server.rename(self.name, src, name, dst, name2, where, where2)
            seen[:] = before[0], src.change, before[1], dst.change
            return dst.entries.get(name2)

        try:
            node = self.rpc("rename", act, path)
        except OSError as error:
            self._forget(src, name)
            raise oserror(error.errno or 0, path, path2) from None
        self._changed(seen[0], seen[1], src, {name: None})
        self._changed(seen[2] if src is not dst else seen[3], seen[3], dst, {name2: node})

    def link(self, path: str, path2: str) -> None:
        node = self._file(path)
        directory, name, where = self._parent(path2)
        self.rpc("link", lambda: self.server.link(self.name, node, directory, name, where), path)
        self._forget(directory, name)

    def unlink(self, path: str) -> None:
        self._remove("unlink", path, self.server.unlink)

    def rmdir(self, path: str) -> None:
        self._remove("rmdir", path, self.server.rmdir)

    def _remove(self, what: str, path: str, remove: Callable[..., None]) -> None:
        directory, name, where = self._parent(path)
        if self._dir(directory).names.get(name, self) is None:
            raise oserror(errno.ENOENT, path)
        seen = [0, 0]

        def act() -> None:
            before = directory.change
            remove(self.name, directory, name, where)
            seen[:] = before, directory.change

        try:
            self.rpc(what, act, path)
        except OSError:
            self._forget(directory, name)
            raise
        self._changed(*seen, directory, {name: None})

    def listdir(self, path: str) -> list[str]:
        node = self._file(path)
        if node.kind != "d":
            raise oserror(errno.ENOTDIR, path)
        known = self.dirs.get(node.ino)
        names: list[str] = self.rpc("read", lambda: list(node.entries), path)
        if node.nlink == 0:
            raise oserror(errno.ENOENT if self.chance.random() < 0.5 else errno.ESTALE, path)
        if known is None:
            self.dirs[node.ino] = Dir(node.change, self.kernel.now + self._ttl())
        else:
            self._renew(node, known)
        if len(names) > self.page:
            early = [name for name in names if zlib.crc32(name.encode()) & 1]
            names = early + [
                n for n in self.rpc("read", lambda: list(node.entries), path) if not zlib.crc32(n.encode()) & 1
            ]
        return sorted(names, key=lambda name: zlib.crc32(name.encode()))

    # --- files

    def open(self, path: str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_CREAT:
            try:
                node = self._make("create", "f", path)
            except FileExistsError:
                if flags & os.O_EXCL:
                    raise
                node = self._file(path)
        else:
            node = self._file(path)
            self.rpc("read", lambda: None, path)
        if node.kind == "l":
            raise oserror(errno.ELOOP, path)
        if node.kind == "d" and not flags & os.O_DIRECTORY:
            raise oserror(errno.EISDIR, path) if flags & os.O_WRONLY else oserror(errno.EINVAL, path)
        writable = bool(flags & os.O_WRONLY)
        if flags & os.O_TRUNC and node.data:
            self.server.truncate(node)
        self.next_fd += 1
        offset = len(node.data) if flags & os.O_APPEND else 0
        self.files[self.next_fd] = Open(node, path, writable, offset)
        me = self.kernel.me
        if me is not None and me.context is not None:
            me.context.fds.add(self.next_fd)
        return self.next_fd

    def write(self, fd: int, data: Any) -> int:
        self.files[fd].dirty += bytes(data)
        return len(data)

    def read(self, fd: int, size: int) -> bytes:
        file = self.files[fd]
        data: bytes = self.rpc("read", lambda: file.node.data, file.path)
        part = data[file.offset : file.offset + size]
        file.offset += len(part)
        return part

    def flush(self, file: Open) -> None:
        """Send what was written; after an error it is gone, as the kernel tells an error once."""
        if file.dirty:
            data, offset = file.dirty, file.offset
            file.dirty = b""
            file.offset += len(data)
            self.rpc("write", lambda: self.server.write(file.node, offset, data, file.path), file.path)

    def fsync(self, fd: int) -> None:
        file = self.files[fd]
        if not (self.local or file.dirty or file.node.data or file.node.kind == "d"):
            return  # nothing was written, so nothing is asked of the server
        self.flush(file)
        self.rpc("read", lambda: self.server.commit(file.node, file.path), file.path)

    def close(self, fd: int) -> None:
        file = self.files.pop(fd, None)
        if file is None:
            raise oserror(errno.EBADF)
        me = self.kernel.me
        if me is not None and me.context is not None:
            me.context.fds.discard(fd)
        if not self.local:
            self.flush(file)
        elif file.dirty:  # a local disk keeps it in its page cache
            self.server.write(file.node, file.offset, file.dirty, file.path)

    def dup(self, fd: int) -> int:
        old = self.files[fd]
        self.next_fd += 1
        self.files[self.next_fd] = Open(old.node, old.path, old.writable, old.offset)
        return self.next_fd

    def left_open(self, fds: set[int]) -> None:
        """A process died: its kernel sends what it had written, if it can."""
        for fd in sorted(fds):
            file = self.files.pop(fd, None)
            if file is not None and file.dirty:
                try:
                    self.server.write(file.node, file.offset, file.dirty, file.path)
                except OSError:
                    continue

    def _attr(self, node: Inode) -> Stat:
        kind = {"d": stat.S_IFDIR, "f": stat.S_IFREG, "l": stat.S_IFLNK}[node.kind]
        ns = int(node.mtime * 1e9)
        return Stat(kind | 0o644, node.ino, len(node.data), node.mtime, ns, ns, os.getuid(), node.nlink)

    def fstat(self, fd: int) -> Stat:
        file = self.files[fd]
        if file.node.nlink == 0 and not file.dirty and not file.writable:
            return self._attr(file.node)
        found = self._attr(file.node)
        return found._replace(st_size=max(found.st_size, file.offset + len(file.dirty))) if file.dirty else found

    def lstat(self, path: str) -> Stat:
        if path == "/spool":
            return self._attr(self.server.root)
        directory, name, _ = self._parent(path)
        node = self._lookup(directory, name, path)
        if node is None:
            raise oserror(errno.ENOENT, path)
        known = self.attrs.get(node.ino)
        if known is None or self.kernel.now >= known[1]:
            if node.nlink == 0:
                self._forget(directory, name)
                raise oserror(errno.ESTALE if self.chance.random() < 0.5 else errno.ENOENT, path)
            found = self.rpc("read", lambda: self._attr(node), path)
            known = self.attrs[node.ino] = (found, self.kernel.now + self._ttl())
        return known[0]

    def utime(self, path: str, times: Any = None) -> None:
        node = self._file(path)
        self.rpc("utime", lambda: self.server._touch(node) if node.kind == "d" else None, path)
        if path == "/spool/queue":
            self.rang()

    def statvfs(self, path: str) -> Space:
        return Space(0 if self.server.full else 1 << 20, 1 << 20)

    def chmod(self, path: str, mode: int) -> None:
        return None

    def set_blocking(self, fd: int, blocking: bool) -> None:
        return None
