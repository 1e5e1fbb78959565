"""
The faults: each one is a generator that breaks something, yields for how many seconds, and puts it right.

Several may be under way at once; a run that ends lets all of them finish, so afterwards everything is whole.
"""

import contextlib
import heapq
import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence

from tests.soak.book import Book
from tests.soak.check import Fault
from tests.soak.node import HERE, Node, read

Play = Generator[float, None, None]


class Faults:
    """What may go wrong in a run."""

    def __init__(
        self, book: Book, nodes: Sequence[Node], *, seed: str, root: str, disk: str, policy: Mapping[str, float]
    ) -> None:
        """
        Args:
            disk: a small file system of ours on which the spool is, or empty.
            policy: the limits in spool.toml.
        """
        self.book, self.nodes, self.random = book, list(nodes), random.Random(seed)
        self.root, self.disk, self.fence_s, self.dead_s = root, disk, policy["fence_s"], policy["dead_s"]
        self.stopping, self.counts = threading.Event(), dict.fromkeys(self.possible(), 0)
        self._upgrades = itertools.count(1)
        self._busy: set[str] = set()

    def all(self) -> dict[str, Callable[[Node], Play]]:
        """Every fault by its name."""
        return {
            "kill-daemon": lambda node: self.kill(node, "kill-daemon", "daemon"),
            "kill-runner": lambda node: self.kill(node, "kill-runner", "runner"),
            "kill-watcher": lambda node: self.kill(node, "kill-watcher", "watch"),
            "kill-several": self.kill_several,
            "stop-daemon": lambda node: self.stop(node, "stop-daemon", "daemon", 2.5 * self.fence_s),
            "stop-runner": lambda node: self.stop(node, "stop-runner", "runner", 4.0),
            "restart": self.restart,
            "upgrade": self.upgrade,
            "second": self.second,
            "power": self.power,
            "blackout": self.blackout,
            "death": self.death,
            "partition": self.partition,
            "full": self.full,
            "disk": self.disk_full,
            "readonly": self.readonly,
            "away": self.away,
        }

    def possible(self) -> list[str]:
        """The names of those that can be played here."""
        contained = all(node.contained for node in self.nodes)
        needs = {
            "power": contained,
            "blackout": contained,
            "death": contained,
            "full": bool(self.disk),
            "disk": bool(self.disk),
        }
        needs |= dict.fromkeys(("readonly", "away", "partition"), contained and all(node.view for node in self.nodes))
        return [name for name in self.all() if needs.get(name, True)]

    def run(self, names: Sequence[str], gap_s: float) -> None:
        """Play until told to stop, then end what is under way."""
        plays: list[tuple[float, int, Play]] = []
        order, makers = itertools.count(), self.all()
        next_s = time.monotonic() + self.random.expovariate(1 / gap_s)
        while plays or not self.stopping.is_set():
            now = time.monotonic()
            if now >= next_s and not self.stopping.is_set():
                next_s = now + self.random.expovariate(1 / gap_s)
                name = self.random.choice(list(names))
                self.counts[name] = self.counts.get(name, 0) + 1
                heapq.heappush(plays, (now, next(order), makers[name](self.random.choice(self.nodes))))
            while plays and (plays[0][0] <= now or self.stopping.is_set()):
                _, _, play = heapq.heappop(plays)
                with contextlib.suppress(StopIteration):
                    heapq.heappush(plays, (time.monotonic() + next(play), next(order), play))
            time.sleep(0.05)

    def _note(self, kind: str, node: str, since: float, killed: int = 0) -> None:
        self.book.fault(Fault(kind, node, since, time.time(), killed))

    # --- processes

    def signal(self, pids: Sequence[int], number: int) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self, node: Node, name: str, kind: str) -> Play:
        """One process of the family."""
        yield 0.0
        since, found = time.time(), node.family(kind)
        pids = [self.random.choice(found).pid] if found else []
        self.signal(pids, signal.SIGKILL)
        self.book.kill(len(pids) if kind == "daemon" else 0)
        self._note(name, node.name, since, len(pids) if kind != "daemon" else 0)

    def kill_several(self, node: Node) -> Play:
        """Two or more of the family at once, perhaps all."""
        yield 0.0
        since, found = time.time(), node.family("daemon", "runner", "watch")
        chosen = self.random.sample(found, self.random.randint(min(2, len(found)), len(found)))
        self.signal([process.pid for process in chosen], signal.SIGKILL)
        self.book.kill(sum(process.kind == "daemon" for process in chosen))
        self._note("kill-several", node.name, since, sum(process.kind != "daemon" for process in chosen))

    def stop(self, node: Node, name: str, kind: str, most_s: float) -> Play:
        """It stands still for a while."""
        since, pids = time.time(), [process.pid for process in node.family(kind)]
        self.signal(pids, signal.SIGSTOP)
        yield self.random.uniform(0.1, most_s)
        here = {process.pid for process in node.family(kind)}
        self.signal([pid for pid in pids if pid in here], signal.SIGCONT)
        self._note(name, node.name, since)

    def restart(self, node: Node) -> Play:
        """An operator restarts the service."""
        yield 0.0
        since = time.time()
        self.signal([process.pid for process in node.family("daemon")], signal.SIGTERM)
        self._note("restart", node.name, since)

    def upgrade(self, node: Node) -> Play:
        """Another version is installed, and the service restarted."""
        yield 0.0
        since = time.time()
        node.upgrade(f"99.{next(self._upgrades)}")
        self.signal([process.pid for process in node.family("daemon")], signal.SIGTERM)
        self._note("upgrade", node.name, since)

    def second(self, node: Node) -> Play:
        """A second daemon of the same node is tried; it must refuse, or be the only one."""
        since = time.time()
        words = node.enter(sys.executable, "-m", "spoolq", "node", *node.words)
        with open(f"{node.directory}/second.log", "ab") as log:
            child = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=node.directory, env=node.env
            )
        yield self.random.uniform(0.5, 4.0)
        if child.poll() is None:  # the first one is dead at this moment, and this one serves
            inside = read(f"/proc/{child.pid}/task/{child.pid}/children").split()
            self.signal([int(pid) for pid in inside] or [child.pid], signal.SIGKILL)
            self.book.kill(1)
        child.wait()
        self._note("second", node.name, since)

    # --- power

    def _power_off(self, node: Node) -> None:
        """Its daemon dies with all else."""
        self.book.kill(1)
        node.power_off()

    def power(self, node: Node) -> Play:
        """A node loses its power, and gets it back."""
        if node.name in self._busy:
            return
        self._busy.add(node.name)
        since = time.time()
        if node.on:
            self._power_off(node)
        self._note("power", node.name, since)
        yield self.random.choice([0.1, 1.0, self.random.uniform(1.0, 2.5 * self.fence_s)])
        node.boot()
        self._busy.discard(node.name)

    def blackout(self, _node: Node) -> Play:
        """All nodes lose their power at the same moment."""
        if self._busy:
            return
        since = time.time()
        self._busy |= {node.name for node in self.nodes}
        for node in self.nodes:
            self._power_off(node)
        self._note("blackout", "", since)
        yield self.random.uniform(0.1, 4.0)
        for node in self.nodes:
            node.boot()
            self._busy.discard(node.name)

    def death(self, node: Node) -> Play:
        """A node is dead for long: the others take over by the rule, or all of it if the operator says so; it comes late."""
        if node.name in self._busy or "death" in self._busy:
            return
        self._busy |= {node.name, "death"}
        since = time.time()
        if node.on:
            self._power_off(node)
        self._note("death", node.name, since)
        if self.random.random() < 0.5:
            yield self.random.uniform(3.5, 8.0)
            if not self.stopping.is_set():
                done = subprocess.run(
                    [sys.executable, "-m", "spoolq", "node-dead", node.name, "--certain"],
                    env=node.env | {"SPOOLQ_DIR": self.root}, cwd=HERE, capture_output=True, timeout=60, check=False,
                )  # fmt: skip
                self._note("certain" if done.returncode == 0 else "refused", node.name, since)
            yield self.random.uniform(0.0, 15.0)
        else:
            yield self.dead_s + self.random.uniform(-4.0, 15.0)
        node.boot()
        self._busy -= {node.name, "death"}

    # --- the spool

    def full(self, _node: Node) -> Play:
        """The spool's disk is full for a while, to the last byte or nearly."""
        return self.fill("full", "", self.disk)

    def disk_full(self, node: Node) -> Play:
        """A node's own disk is full for a while."""
        return self.fill("disk", node.name, f"{node.directory}/state")

    def fill(self, name: str, node: str, disk: str) -> Play:
        """A file system is full for a while."""
        if f"{name} {node}" in self._busy:
            return
        self._busy.add(f"{name} {node}")
        since, path = time.time(), f"{disk}/ballast"
        room = os.statvfs(disk)
        size = max(4096, room.f_bavail * room.f_frsize - self.random.choice([0, 0, 40_000, 400_000, 3_000_000]))
        with contextlib.suppress(OSError), open(path, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
        yield self.random.uniform(0.5, 8.0)
        os.unlink(path)
        self._note(name, node, since)
        self._busy.discard(f"{name} {node}")

    def inside(self, node: Node, script: str) -> bool:
        """Run a line of shell inside a node."""
        done = subprocess.run(
            node.enter("sh", "-ec", script), stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False
        )
        return done.returncode == 0

    def mounted(self, node: Node, name: str, broken: str, whole: str, most_s: float, least_s: float = 0.2) -> Play:
        """Something is wrong with a node's mount for a while."""
        if f"mount {node.name}" in self._busy or node.name in self._busy:
            return
        self._busy.add(f"mount {node.name}")
        since, boots = time.time(), node.boots
        done = self.inside(node, broken)
        yield self.random.uniform(least_s, most_s)
        if done and node.boots == boots and node.on:
            self.inside(node, whole)
        self._note(name, node.name, since)
        self._busy.discard(f"mount {node.name}")

    def readonly(self, node: Node) -> Play:
        """A node's mount becomes read-only for a while; files that are open stay writable."""
        at = os.path.dirname(node.view)
        return self.mounted(
            node, "readonly", f"mount --bind {at} {at} && mount -o remount,bind,ro {at}", f"umount -l {at}", 10.0
        )

    def partition(self, node: Node) -> Play:
        """Away for so long that others take what may be taken; the node lives on, and comes back late."""
        if "partition" in self._busy:
            return
        self._busy.add("partition")
        at = os.path.dirname(node.view)
        yield from self.mounted(
            node, "partition", f"mount -t tmpfs none {at}", f"umount -l {at}", self.dead_s + 15.0, self.dead_s - 4.0
        )
        self._busy.discard("partition")

    def away(self, node: Node) -> Play:
        """A node's mount is gone for a while: an empty directory is there."""
        at = os.path.dirname(node.view)
        return self.mounted(node, "away", f"mount -t tmpfs none {at}", f"umount -l {at}", 10.0)
