"""
The names of one mount: RPCs that go wrong, and the caches of directories; the half of `client` below files.

A request may be executed and its answer lost (with the server's reply cache the repetition gets the true
answer, without it ENOENT or EEXIST), executed later or twice, refused, or slow; its process may die in it.
"""

import errno
from collections.abc import Callable
from typing import Any, NamedTuple

from tests.sim.kernel import Died, Kernel
from tests.sim.server import Inode, Server, oserror

ACTTL = (3.0, 60.0)  # acregmin, acdirmax
RETRANS_S = (0.5, 61.0)  # after a lost answer (v4, v3)


class Dir:
    """What is cached of a directory: valid until, at which change, and its names (None: missing)."""

    __slots__ = ("change", "names", "until")

    def __init__(self, change: int, until: float) -> None:
        self.change, self.until = change, until
        self.names: dict[str, Inode | None] = {}


class Outage(NamedTuple):
    """As `faults.Fault`."""

    what: str
    delay: float
    code: int


class Mount:
    """
    RPCs and directories.

    Args:
        name: of the machine, as the server knows it.
        faults: asked before each RPC: (class of the operation) -> a fault or None.
        page: names in one READDIR: a longer listing is not of one moment.
    """

    def __init__(self, kernel: Kernel, server: Server, name: str, chance: Any, faults: Callable[[str], Any], page: int):
        self.kernel, self.server, self.name, self.chance, self.page = kernel, server, name, chance, page
        self.faults, self.local = faults, not server.durable
        self.dirs: dict[int, Dir] = {}
        self.attrs: dict[int, tuple[Any, float]] = {}
        self.blocked_until = 0.0  # no answers: partition, server down
        self.soft_until = 0.0  # a soft mount without a server: errors, and who knows what was done
        self.rang: Callable[[], None] = lambda: None

    def drop_caches(self) -> None:
        """A reboot."""
        self.dirs.clear()
        self.attrs.clear()

    # --- RPCs

    def rpc(self, kind: str, act: Callable[[], Any], path: str) -> Any:
        """
        One request.

        Args:
            kind: `read` or the name of the changing operation.
            act: what the server does; done at most twice.
        """
        kernel, chance = self.kernel, self.chance
        fault = self.faults(kind)
        if kernel.me is not None and kernel.me.dead:
            raise Died
        if kernel.now < self.soft_until:
            fault = self._outage(kind)
        if fault is None:
            kernel.sleep(0.0003 + 0.002 * chance.random())
            while self.blocked_until > kernel.now:
                kernel.sleep(self.blocked_until - kernel.now + chance.random())
            result = act()
            if kind != "read":
                kernel.sleep(0.0003 + 0.002 * chance.random())
            return result
        return self._faulty(fault, kind, act, path)

    def _outage(self, kind: str) -> Any:
        """One request of an outage: a mixture of what may have become of it."""
        self.kernel.sleep(self.chance.choice([0.01, 0.5, 3.0]))
        code = self.chance.choice([errno.EIO, errno.ETIMEDOUT])
        what = "error" if kind == "read" else self.chance.choice(["error", "late", "done_error"])
        return Outage(what, self.chance.choice([0.1, 2.0, 20.0]) * self.chance.random(), code)

    def _faulty(self, fault: Any, kind: str, act: Callable[[], Any], path: str) -> Any:
        kernel, what, delay = self.kernel, fault.what, fault.delay

        sent = kernel.now

        def later() -> None:
            self.server.sent = sent
            try:
                act()
            except OSError:
                pass
            finally:
                self.server.sent = None

        kernel.sleep(0.001)
        if what == "slow":
            kernel.sleep(delay)
            return act()
        if what in ("error", "late", "done_error"):
            if what == "late":
                kernel.at(kernel.now + delay, later)
            elif what == "done_error":
                later()
            raise oserror(fault.code, path)
        if what in ("die", "die_after", "die_late"):
            if what == "die_after":
                later()
            elif what == "die_late":
                kernel.at(kernel.now + delay, later)
            assert kernel.me is not None
            kernel.me.context.process_died(kernel.me)
            raise Died
        try:
            result, error = act(), None
        except OSError as problem:
            result, error = None, problem
        if what == "dup" and kind not in ("link", "create", "symlink"):  # a temporary name would come back
            kernel.at(kernel.now + delay, later)
        elif what in ("lost", "lost_nocache"):
            kernel.sleep(self.chance.choice(RETRANS_S) + (delay if what == "lost_nocache" else 0.0))
            # a create verifier tells its own; a name in drop/ comes back: known and accepted, see tests/model/README.md
            recurs = kind == "rename" and "drop/" in path
            if what == "lost_nocache" and kind not in ("create", "write") and not recurs:
                result, error = act(), None
        if error is not None:
            raise error
        return result

    # --- names

    def _dir(self, node: Inode) -> Dir:
        """The cache of a directory, asked about anew if it is old."""
        known = self.dirs.get(node.ino)
        if known is None:
            known = self.dirs[node.ino] = Dir(node.change, self.kernel.now + self._ttl())
        elif self.kernel.now >= known.until:
            self.rpc("read", lambda: None, "")
            self._renew(node, known)
        return known

    def _ttl(self) -> float:
        if self.local:
            return 0.0
        low, high = ACTTL
        return low + (high - low) * self.chance.random()

    def _renew(self, node: Inode, known: Dir) -> None:
        if known.change != node.change:
            known.names.clear()
            known.change = node.change
        known.until = self.kernel.now + self._ttl()

    def _lookup(self, directory: Inode, name: str, path: str) -> Inode | None:
        if directory.kind != "d":
            raise oserror(errno.ENOTDIR, path)
        known = self._dir(directory)
        if name in known.names:
            return known.names[name]
        found: Inode | None = self.rpc("read", lambda: directory.entries.get(name), path)
        known.names[name] = found
        return found

    def _parent(self, path: str) -> tuple[Inode, str, str]:
        """(directory, last name, path for the server); directories that were removed are looked for once more."""
        where = path[7:] if path.startswith("/spool/") else ""
        assert where or path == "/spool", path
        parts = where.split("/")
        for attempt in (0, 1):
            at = self.server.root
            for part in parts[:-1]:
                known = self.dirs.get(at.ino)
                found = known.names.get(part) if known and self.kernel.now < known.until else None
                if found is None or found.nlink == 0:
                    if known and found is not None:
                        known.names.pop(part, None)
                    found = self._lookup(at, part, path)
                if found is None:
                    raise oserror(errno.ENOENT, path)
                at = found
            if at.nlink or attempt:
                break
        if at.kind != "d":
            raise oserror(errno.ENOTDIR, path)
        return at, parts[-1], where

    def _changed(self, before: int, after: int, directory: Inode, names: dict[str, Inode | None]) -> None:
        """Our own change of a directory: it is known, and so is that nobody else changed it."""
        known = self.dirs.get(directory.ino)
        if known is None:
            return
        if known.change != before:
            known.names.clear()
        known.change = after
        known.names.update(names)

    def _forget(self, directory: Inode, name: str) -> None:
        known = self.dirs.get(directory.ino)
        if known:
            known.names.pop(name, None)

    def _make(self, what: str, kind: str, path: str, text: str = "") -> Inode:
        directory, name, where = self._parent(path)
        known = self._dir(directory)
        cached = known.names.get(name)
        if cached is not None and cached.nlink:
            raise oserror(errno.EEXIST, path)
        seen = [0, 0]

        def act() -> Inode:
            before = directory.change
            node = self.server.make(self.name, kind, directory, name, where, text)
            seen[:] = before, directory.change
            return node

        try:
            node: Inode = self.rpc(what, act, path)
        except OSError:
            self._forget(directory, name)
            raise
        self._changed(*seen, directory, {name: node})
        return node

    def _file(self, path: str) -> Inode:
        """What a name stands for, as open(2) finds it: a cached file that still lives is not looked for again."""
        if path == "/spool":
            return self.server.root
        directory, name, _ = self._parent(path)
        node = self._lookup(directory, name, path)
        if node is not None and node.nlink == 0:
            self._forget(directory, name)
            if self.chance.random() < 0.3:
                raise oserror(errno.ESTALE, path)
            node = self._lookup(directory, name, path)
        if node is None:
            raise oserror(errno.ENOENT, path)
        return node
