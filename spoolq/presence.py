"""
What a node says of itself: its heartbeat, and node.json with what it has, lends and measures.

The heartbeat is a counter, never a time: others judge it by their own clocks. `began` is when the last
successful beat began, on CLOCK_BOOTTIME; the right to start jobs counts from there (`lease`).
Two machines of one name would take each other's jobs for their own leftovers. So a node waits if the
last heartbeat is not of this boot (whose lock says that its own last daemon is dead; a machine cloned
from its disk has the same identity, but another boot), refuses to begin if it is of another machine
whose jobs lie here, and claims nothing while it finds a heartbeat that it did not write.
"""

import contextlib
import logging
import os
import secrets
from typing import Any

from spoolq import __version__, fsops, host
from spoolq.config import Policy
from spoolq.errors import TryAgain
from spoolq.lease import LATE
from spoolq.spool import Spool

log = logging.getLogger("spoolq")

INSTANCES = 20  # of earlier daemons on this machine that are remembered
LOCAL_FREE_MB = 64  # less on the local disk and results could not be kept: nothing is claimed


class Presence:
    """One node's presence in one spool."""

    def __init__(self, spool: Spool, node: str, policy: Policy, state_dir: str) -> None:
        """Nothing is written yet."""
        self.spool, self.node, self.policy, self.state_dir = spool, node, policy, state_dir
        self.instance = f"{host.boot_id()[:8]}-{os.getpid()}-{secrets.token_hex(4)}"
        self.began = 0.0
        self.full = self.draining = False
        self.mark = ""  # what spool.toml said at the last beat
        self.twin = ""  # the instance of another machine that serves under this name
        self.patience_s = LATE * policy.beat_s  # so long a heartbeat of another machine must stand still
        self._first: tuple[tuple[int, str], float] | None = None
        self._beats = self._alone = 0
        self._written: dict[str, Any] = {}

    @property
    def state(self) -> str:
        """`up`, `draining` or `full`."""
        return "draining" if self.draining else "full" if self.full else "up"

    def arrive(self) -> bool:
        """
        Whether it is certain that no other machine serves under this name; to be asked again until it is.

        Raises:
            TryAgain: one does, or what lies here may run on another machine.
        """
        path, found = os.path.join(self.state_dir, "instance"), self.spool.read_beat(self.node)
        ours: list[str] = []  # of the latest daemons on this machine; one may have died before its first beat
        with contextlib.suppress(OSError), open(path, encoding="ascii", errors="replace") as file:
            ours = file.read().split()
        if found and not self._stands_still(found, self._needed_s(found[1], ours)):
            return False
        # durable: after a power loss that took node.json too, nothing else would say that those were ours
        last = [found[1]] if found and found[1] in ours else []  # stays, however many daemons never come to beat
        names = dict.fromkeys([*last, *ours[-INSTANCES:], self.instance])
        fsops.publish(path, " ".join(names).encode(), mode=0o600)
        with contextlib.suppress(OSError):  # said of an earlier life, it is void anyway
            self.spool.mark_node(self.node, "dead", on=False)
        return True

    def _needed_s(self, instance: str, ours: list[str]) -> float:
        """For how long the heartbeat of an earlier daemon must stand still before its place can be taken."""
        facts, this_boot = self.spool.read_node(self.node), instance.startswith(host.boot_id()[:8])
        stopped = facts.get("state") == "stopped"
        same = instance in ours or (facts.get("machine") == host.machine_id() != "" and not this_boot)
        if same:  # this boot: its lock was ours to take; an earlier one: dead for certain, unless this is a clone
            return 0.0 if stopped or this_boot else self.patience_s
        if self.spool.node_marks(self.node).get("dead") == instance:
            return self.patience_s
        jobs = len(self.spool.on_node(self.node)) + len(self.spool.on_node(self.node, "reaping"))
        if jobs:
            where = facts.get("host") or "another machine"
            hint = f"choose another --name, or if it is gone for good: spoolq node-dead {self.node} --certain"
            raise TryAgain(f"{jobs} jobs of node {self.node} may still run on {where}: {hint}")
        return 0.0 if stopped else self.policy.dead_s

    def _stands_still(self, found: tuple[int, str], needed_s: float) -> bool:
        """
        Whether a heartbeat has stood still for so long.

        Raises:
            TryAgain: it moves.
        """
        if not self._first:
            self._first = (found, host.boottime())
            if needed_s:
                log.warning("node %s was not shut down: does another machine serve as it? (%g s)", self.node, needed_s)
        if found != self._first[0]:
            raise TryAgain(f"another machine serves as node {self.node} now: choose another --name")
        return host.boottime() - self._first[1] >= needed_s

    def beat(self) -> None:
        """
        One heartbeat, and a look at what keeps this node from claiming.

        Raises:
            OSError: the spool does not answer or is not mounted any more.
            Misconfigured: another spool is mounted there now.
        """
        found = self.spool.read_beat(self.node) if self._beats else None
        if found and found[1] != self.instance:
            self.twin, self._alone = found[1], 0
        else:
            self._alone += 1
            self.twin = self.twin if self._alone < LATE else ""
        began = host.boottime()
        self.mark = self.spool.check_same()
        self.spool.beat(self.node, self._beats + 1, self.instance)
        self._beats += 1
        self.began = began
        self.heed()
        self.full = (
            fsops.free_mb(self.spool.root) < self.policy.min_free_mb or fsops.free_mb(self.state_dir) < LOCAL_FREE_MB
        )

    def heed(self) -> None:
        """Whether somebody wants this node to start no more; asked more often than beats, since people wait for it."""
        self.draining = "drain" in self.spool.node_marks(self.node)

    def publish(self, state: str, changing: dict[str, Any]) -> None:
        """
        Write node.json if it says something new.

        Args:
            state: `up`, `draining`, `full` or `stopped`.
            changing: capacity, allocated, free (thousandths), measured, jobs, labels.
        """
        facts = {
            "format": 1,
            "node": self.node,
            "host": host.host_name(),
            "machine": host.machine_id(),
            "boot": host.boot_id(),
            "pid": os.getpid(),
            "starttime": host.process_identity(os.getpid()),
            "instance": self.instance,
            "beats": self._beats,
            "version": __version__,
            "state": state,
            **changing,
            "load": [round(x, 2) for x in os.getloadavg()],
            "beat_s": self.policy.beat_s,
        }
        if facts != self._written:
            self.spool.write_node(self.node, facts)
            self._written = facts
