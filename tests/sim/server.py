"""
The file server: one tree of inodes, and every applied change in one total order in the trace.

It executes requests; whether a request or its answer arrives is the client's affair (`client`).
With `durable=False` it is a local disk, or an export with `async`: what was not synced is lost with
the power, names in the order in which they were made (a journalling file system), contents at random.
"""

import errno
import os
import random
from collections.abc import Callable
from typing import Any


def oserror(code: int, path: str = "", path2: str | None = None) -> OSError:
    """As the kernel raises it."""
    return OSError(code, os.strerror(code), path, None, path2) if path2 else OSError(code, os.strerror(code), path)


JOURNAL_S, WRITEBACK_S = 5.0, 30.0  # after which a local disk has names and contents anyway


class Inode:
    """A file, directory or link."""

    __slots__ = ("change", "data", "entries", "ino", "kind", "mtime", "nlink", "synced", "text")

    def __init__(self, ino: int, kind: str, mtime: float) -> None:
        self.ino, self.kind, self.mtime, self.change, self.nlink = ino, kind, mtime, 0, 1
        self.data = b""
        self.synced: bytes | None = b""
        self.text = ""
        self.entries: dict[str, Inode] = {}


class Server:
    """
    The tree. Paths are relative to the spool, without a leading slash.

    Args:
        clock: the time, s.
        log: takes every applied change: (t, "op", client, name of the operation, path, path2, ino, text, sent);
            of results of tasks (t, "lines", path, all that is in the file, whether that survives a power loss).
    """

    def __init__(self, clock: Callable[[], float], log: Callable[[tuple[Any, ...]], None], *, durable: bool) -> None:
        self.clock, self.log, self.durable = clock, log, durable
        self._inos = 0
        self.root = self._new("d")
        self.full = False
        self.sent: float | None = None  # when the request that is executed was sent, if that is long ago
        self.undo: list[tuple[float, Callable[[], None]]] = []
        self.dirty: dict[int, tuple[float, Inode]] = {}

    def _new(self, kind: str) -> Inode:
        self._inos += 1
        return Inode(self._inos, kind, self.clock())

    def walk(self, path: str) -> Inode | None:
        """The truth, for the end of a run and for nobody else."""
        at = self.root
        for part in path.split("/") if path else ():
            found = at.entries.get(part) if at.kind == "d" else None
            if found is None:
                return None
            at = found
        return at

    # --- changes; each is atomic

    def _touch(self, directory: Inode) -> None:
        directory.change += 1
        directory.mtime = self.clock()

    def _check(self, directory: Inode, path: str) -> None:
        if directory.kind != "d":
            raise oserror(errno.ENOTDIR, path)
        if directory.nlink == 0:
            raise oserror(errno.ESTALE, path)

    def _did(
        self, client: str, what: str, path: str, path2: str, node: Inode, text: str, undo: Callable[[], None]
    ) -> None:
        now = self.clock()
        self.log((now, "op", client, what, path, path2, node.ino, text, now if self.sent is None else self.sent))
        if not self.durable:
            self.undo.append((now, undo))

    def make(self, client: str, kind: str, directory: Inode, name: str, path: str, text: str = "") -> Inode:
        """mkdir, exclusive create, symlink."""
        self._check(directory, path)
        if name in directory.entries:
            raise oserror(errno.EEXIST, path)
        if self.full and kind == "d":
            raise oserror(errno.ENOSPC, path)
        node = self._new(kind)
        node.text = text
        directory.entries[name] = node
        self._touch(directory)
        what = {"d": "mkdir", "f": "create", "l": "symlink"}[kind]
        self._did(client, what, path, "", node, "", lambda: directory.entries.pop(name, None))
        return node

    def link(self, client: str, node: Inode, directory: Inode, name: str, path: str) -> None:
        """A second name."""
        self._check(directory, path)
        if name in directory.entries:
            raise oserror(errno.EEXIST, path)
        directory.entries[name] = node
        node.nlink += 1
        self._touch(directory)

        def undo() -> None:
            directory.entries.pop(name, None)
            node.nlink -= 1

        self._did(client, "link", path, "", node, "", undo)

    def rename(self, client: str, src: Inode, name: str, dst: Inode, name2: str, path: str, path2: str) -> None:
        """Rename, replacing a file."""
        self._check(src, path)
        self._check(dst, path2)
        node = src.entries.get(name)
        if node is None:
            raise oserror(errno.ENOENT, path, path2)
        old = dst.entries.get(name2)
        if old is node:
            return
        if old is not None and old.kind == "d":
            raise oserror(errno.EISDIR, path, path2)
        del src.entries[name]
        dst.entries[name2] = node
        if old is not None:
            old.nlink -= 1
        self._touch(src)
        self._touch(dst)

        def undo() -> None:
            src.entries[name] = node
            if old is not None:
                dst.entries[name2] = old
                old.nlink += 1
            else:
                del dst.entries[name2]

        text = node.data.decode("latin-1") if len(node.data) < 4096 else "?"
        self._did(client, "rename", path, path2, node, text, undo)

    def unlink(self, client: str, directory: Inode, name: str, path: str) -> None:
        """Remove a name of a file or link."""
        self._check(directory, path)
        node = directory.entries.get(name)
        if node is None:
            raise oserror(errno.ENOENT, path)
        if node.kind == "d":
            raise oserror(errno.EISDIR, path)
        del directory.entries[name]
        node.nlink -= 1
        self._touch(directory)

        def undo() -> None:
            directory.entries[name] = node
            node.nlink += 1

        self._did(client, "unlink", path, "", node, "", undo)

    def rmdir(self, client: str, directory: Inode, name: str, path: str) -> None:
        """Remove an empty directory."""
        self._check(directory, path)
        node = directory.entries.get(name)
        if node is None:
            raise oserror(errno.ENOENT, path)
        if node.kind != "d":
            raise oserror(errno.ENOTDIR, path)
        if node.entries:
            raise oserror(errno.ENOTEMPTY, path)
        del directory.entries[name]
        node.nlink = 0
        self._touch(directory)

        def undo() -> None:
            directory.entries[name] = node
            node.nlink = 1

        self._did(client, "rmdir", path, "", node, "", undo)

    def write(self, node: Inode, offset: int, data: bytes, path: str) -> None:
        """Write; a full disk refuses what makes a file longer."""
        if not data:
            return
        if self.full and offset + len(data) > len(node.data):
            raise oserror(errno.ENOSPC, path)
        held = node.data.ljust(offset, b"\0")
        node.data = held[:offset] + data + held[offset + len(data) :]
        node.change += 1
        node.mtime = self.clock()
        if "/tasks/" in path:
            self.log((self.clock(), "lines", path, node.data.decode("latin-1"), self.durable))
        if not self.durable:
            self.dirty.setdefault(node.ino, (self.clock(), node))

    def truncate(self, node: Inode) -> None:
        """To nothing."""
        node.data = b""
        node.change += 1
        if not self.durable:
            self.dirty.setdefault(node.ino, (self.clock(), node))

    def commit(self, node: Inode, path: str = "") -> None:
        """fsync: this file's content, and all names so far (one journal)."""
        if "/tasks/" in path and not self.durable:
            self.log((self.clock(), "lines", path, node.data.decode("latin-1"), True))
        node.synced = node.data
        self.dirty.pop(node.ino, None)
        self.undo.clear()

    def power_loss(self, chance: random.Random) -> None:
        """Lose what was not synced."""
        if self.durable:
            return
        now = self.clock()
        lost = chance.randint(0, sum(t > now - JOURNAL_S for t, _ in self.undo))
        for _ in range(lost):
            self.undo.pop()[1]()
        self.undo.clear()
        self.log((self.clock(), "rollback", lost))
        for ino in sorted(self.dirty):
            since, node = self.dirty[ino]
            if since < now - WRITEBACK_S:
                continue
            node.data = chance.choice([node.data, node.synced or b"", b""]) if node.synced != node.data else node.data
            node.synced = node.data
        self.dirty.clear()
