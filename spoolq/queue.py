"""
Which waiting jobs a node looks at, in which order, and which of them their users may start.

The rules are in `fair`; here names are listed. What users run is counted from running/*, which no node
but the owner of each directory writes: at most once a second, only where it matters (more than one user
waits, or the site limits what one may run), and of very many nodes a part at a time.
Invariant: no state of its own; what is forgotten is listed again.
"""

import time
from collections.abc import Iterable
from itertools import groupby
from typing import TYPE_CHECKING

from spoolq import array, fair, host
from spoolq.entry import Entry
from spoolq.fair import Most, Use
from spoolq.reason import Reason
from spoolq.schedule import Plan
from spoolq.spool import Placed
from spoolq.throttle import Throttle

if TYPE_CHECKING:
    from spoolq.daemon import Daemon

SCAN_LIMIT = 1000  # waiting entries looked at in one pass
EACH = 100  # of each user, or of each rank, that comes later than these
OTHERS = 16  # such users or ranks
FAR_S, COST, MOST_S = 10.0, 100, 60.0  # between looks at the rest of a long queue: at least, times what one takes, most
LISTINGS = 64  # directories of running/ listed in one count; with more nodes than that a count is of several seconds


class Queue:
    """What one daemon knows of who waits and who runs."""

    def __init__(self, daemon: "Daemon") -> None:
        """Nothing is known yet."""
        self.daemon = daemon
        self.most = Most(daemon.policy.max_running, daemon.policy.max_cpus)
        self.use: dict[str, Use] = {}  # of the other nodes
        self._nodes: dict[str, tuple[float, dict[str, Use]]] = {}  # node -> when it was listed, and what runs there
        self._counted = -1e9
        self._far: tuple[float, list[str]] = (0.0, [])  # until when it is good, and segments

    # --- looking

    def look(self, most: int = SCAN_LIMIT) -> list[Placed]:
        """A fresh listing of those that are to be looked at first, in order."""
        daemon = self.daemon
        ours = {item.at.entry.unit for item in daemon.ended} | {at.entry.unit for at, _ in daemon.unsettled}
        ours |= daemon.live.keys() | daemon.pending.ids()  # an earlier attempt or claim of these may still be
        found = []
        throttle = Throttle(daemon)
        for at in daemon.spool.waiting():
            if at.entry.unit not in ours and (not at.entry.chunk or throttle.lets(at.entry)):
                found.append(at)
            if len(found) >= most:
                break
        if len(found) >= SCAN_LIMIT:
            found += [at for at in self._later(found) if at.entry.unit not in ours and not array.limit_of(at.entry)]
        return self.ordered(found)

    def ordered(self, found: list[Placed]) -> list[Placed]:
        """In the order in which they have their turn."""
        policy = self.daemon.policy
        entries = [at.entry for at in found]
        shared = policy.fair_share and len(fair.owners(entries)) > 1
        if shared or (found and self.limited):
            self.count()
        if not shared and not policy.ageing_s:
            return found
        use = self.used() if shared else None
        return [found[i] for i in fair.order(entries, use, now=time.time(), ageing_s=policy.ageing_s)]

    def _later(self, found: list[Placed]) -> Iterable[Placed]:
        """Of a queue too long to be listed each time: the first of users and ranks that come after its beginning."""
        policy = self.daemon.policy
        if not (policy.fair_share or policy.ageing_s):
            return
        now = host.boottime()
        if now >= self._far[0]:
            places = self._find_far(found[-1])
            took = host.boottime() - now
            self._far = now + max(FAR_S, took + min(MOST_S, COST * took)), places
        known = {at.entry.unit for at in found}
        told: dict[tuple[int, str], int] = {}
        for place in self._far[1]:
            for entry in self.daemon.spool.entries(place):
                key = (entry.rank, entry.owner)
                told[key] = told.get(key, 0) + 1
                if entry.unit not in known and told[key] <= EACH:
                    yield Placed(place, entry)

    def _find_far(self, last: Placed) -> list[str]:
        """Segments in which a rank, or another user of the rank that was listed last, begins."""
        policy, places = self.daemon.policy, []
        segments = [f"queue/{name}" for name in self.daemon.spool.segments("queue")]
        for rank, group in groupby((place for place in segments if place > last.place), key=lambda place: place[6:9]):
            if int(rank) != last.entry.rank:
                places += [next(group)] if policy.ageing_s else []
                continue
            seen = {last.entry.owner}
            for place in group if policy.fair_share else ():
                new = fair.owners(self.daemon.spool.entries(place)) - seen
                places += [place] if new else []
                seen |= new
        return places[:OTHERS]

    # --- counting

    @property
    def limited(self) -> bool:
        """Whether the site limits what one user may run."""
        return self.most != Most()

    def count(self, *, fresh: bool = False) -> None:
        """List what the other nodes run, if that is due."""
        now = host.boottime()
        if now - self._counted < self.daemon.placement.every_s and not fresh:
            return
        self._counted = now
        names = set(self.daemon.spool.nodes()) - {self.daemon.node}
        self._nodes = {name: known for name, known in self._nodes.items() if name in names}
        for name in sorted(names, key=lambda name: (self._nodes.get(name, (0.0,))[0], name))[:LISTINGS]:
            here = self.daemon.spool.on_node(name)
            self._nodes[name] = now, fair.used(at.entry for at in here)
        self.use = fair.together(use for _, use in self._nodes.values())

    def used(self) -> dict[str, Use]:
        """What each user runs on all nodes."""
        return fair.together([self.use, fair.used(live.at.entry for live in self.daemon.live.values())])

    # --- limits of users

    def allowed(self, found: list[Placed]) -> tuple[list[Placed], list[tuple[Entry, Reason]]]:
        """Those that their users may start, each looked at alone, and why not the others."""
        if not self.limited:
            return found, []
        use = self.used()
        said = [(at, fair.over(at.entry, use.get(at.entry.owner, fair.NOTHING), self.most)) for at in found]
        return [at for at, reason in said if not reason], [(at.entry, reason) for at, reason in said if reason]

    def trimmed(self, plan: Plan, barred: list[tuple[Entry, Reason]], reasons: int) -> Plan:
        """The plan without what a user may not start beside the rest of it, and with those that were barred before."""
        if not self.limited:
            return plan
        may, not_now = fair.within(plan.start, self.used(), self.most)
        blocked = sorted([*barred, *not_now, *plan.blocked], key=lambda pair: (pair[0].rank, pair[0].id))
        rest = (*(entry for entry, _ in blocked[reasons:]), *plan.rest)
        return Plan(start=tuple(may), blocked=tuple(blocked[:reasons]), rest=rest)

    def too_many(self, entry: Entry) -> bool:
        """
        Whether a claim that was just won is more than its user may run, since another node was as quick.

        Of two that claim at once at least one sees both; who sees too many gives its own back.
        """
        if not self.limited or not 1 < len(self.daemon.spool.nodes()) <= LISTINGS:
            return False  # alone, or so many that all of them cannot be listed for each claim
        self.count(fresh=True)
        return fair.over(entry, self.used().get(entry.owner, fair.NOTHING), self.most) is not None
