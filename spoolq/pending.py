"""
Claims that take from a pool of the whole cluster, from the claiming rename until it is certain that they may start.

`pools` decides; here all that is held is listed. A job that takes from no pool never comes here, and costs
no listing. What dies in here leaves a claim that the runner does not know, which the next daemon gives back.
Invariant: a job is started only after two listings, the first GAP_S after its claim was won and the second
as long after the first: one may be older than it looks (on NFS 0.2 s were measured), and miss an entry that
is renamed while it is made; what was so when the one ended is what the next shows.
"""

import logging
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spoolq import claim, host, rerun
from spoolq.devices import Held
from spoolq.entry import Entry
from spoolq.launch import Prepared
from spoolq.pools import Key, Verdict, concerns, holders, judge, key_of, taken
from spoolq.resources import Amounts
from spoolq.spool import Placed, Spool

if TYPE_CHECKING:
    from spoolq.daemon import Daemon

log = logging.getLogger("spoolq")

GAP_S = 0.5  # on a network file system
LOOK_S = 1.0  # between listings of what is held, while jobs wait for it
AGAIN_S = 0.2  # between looks of one that others may make room for
PATIENCE_S = 5.0  # then it is given back
REST_S = (0.5, 1.5)  # after that no claim for so long, so that nodes do not meet again


@dataclass(slots=True)
class Waiting:
    """A claim: what it takes to launch it, who was seen before it, and when to look."""

    at: Placed
    ready: Prepared
    began: float
    devices: Held
    before: frozenset[Key]
    due: float
    until: float
    last: dict[Key, Entry] | None = None  # the listing before


class Pending:
    """The claims of one daemon that are not certain yet, and what it knows of the pools."""

    def __init__(self, daemon: "Daemon") -> None:
        """Nothing is known yet."""
        self.daemon, self.pools = daemon, daemon.policy.pools
        self.items: list[Waiting] = []
        self.seen: dict[Key, Entry] = {}  # who holds something, by the last listing
        self._looked = self._rested = float("-inf")
        self.gap_s = GAP_S if daemon.launcher.remote_spool else 0.0

    def ids(self) -> set[int | str]:
        """The jobs."""
        return {item.at.entry.unit for item in self.items}

    def concerns(self, wants: Amounts) -> bool:
        """Whether a job takes anything of a pool."""
        return concerns(wants, self.pools)

    def look(self, candidates: list[Placed], now: float) -> None:
        """See what is held, if one of these wants anything of it; at most once in LOOK_S."""
        if self.pools and now - self._looked >= LOOK_S and any(self.concerns(at.entry.wants) for at in candidates):
            self._looked = now
            self.seen = holders(held(self.daemon.spool), self.pools)

    def left(self) -> dict[str, int]:
        """What is left of each pool as far as known; nothing for a moment after a claim was given back."""
        if not self.pools or host.boottime() < self._rested:
            return dict.fromkeys(self.pools, 0)
        mine = [live.at.entry for live in self.daemon.live.values()] + [item.at.entry for item in self.items]
        known = self.seen | {key_of(entry): entry for entry in mine}
        used = taken(known.values(), self.pools)
        return {name: max(0, size - used[name]) for name, size in self.pools.items()}

    def others(self) -> dict[int | str, Amounts]:
        """Who else holds what of the pools, by id: for reasons."""
        return {
            entry.unit: {name: entry.wants[name] for name in self.pools.keys() & entry.wants.keys()}
            for entry in self.seen.values()
        }

    def add(self, at: Placed, ready: Prepared, began: float, devices: Held) -> None:
        """A claim was won: start it when that is certain to be right."""
        now = host.boottime()
        before = frozenset(self.seen.keys() - {key_of(at.entry)})
        self.items.append(Waiting(at, ready, began, devices, before, now + self.gap_s, now + PATIENCE_S))
        if not self.gap_s:
            self.settle(now)
            self.settle(now)

    def settle(self, now: float) -> None:
        """Decide about those that are due; OSError: the spool does not answer, they are looked at again."""
        if not any(item.due <= now for item in self.items):
            return
        self.seen = holders(held(self.daemon.spool), self.pools)
        for item in [item for item in self.items if item.due <= now]:
            first, item.last = item.last, self.seen
            if first is None:
                item.due = now + self.gap_s
                continue
            known = holders([*first.values(), *self.seen.values()], self.pools)
            verdict = judge(self.pools, item.at.entry, item.before, known)
            if verdict is Verdict.START:
                self.items.remove(item)
                claim.launch(self.daemon, item.at, item.ready, item.began, item.devices)
            elif verdict is Verdict.BACK or now >= item.until:
                self.items.remove(item)
                self.give_back(item)
            else:
                item.due = now + max(self.gap_s, AGAIN_S)

    def give_back(self, item: Waiting) -> None:
        """There is not enough for it."""
        log.info("gave back job=%s: others were first to take from the pool", item.at.entry.unit)
        self._rested = host.boottime() + random.uniform(*REST_S)  # noqa: S311  # jitter
        self.daemon.launcher.forget(item.at.entry.id)
        self.seen.pop(key_of(item.at.entry), None)
        rerun.give_back(self.daemon, item.at)

    def close(self) -> None:
        """This daemon stops: nobody would decide."""
        while self.items:
            self.give_back(self.items.pop())


def held(spool: Spool) -> Iterator[Entry]:
    """
    All entries of all nodes that run, or whose end is being decided.

    First all of running/, then all of reaping/: in the direction in which they move.
    """
    nodes = spool.nodes()
    for top in ("running", "reaping"):
        for node in nodes:
            yield from (at.entry for at in spool.on_node(node, top))
