"""
Why a job waits though a node has room for it, as anybody can see it from outside: a place that is kept for
another, what its user may run, whose turn it is. From names and node.json alone.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cached_property

from spoolq import fair, pack
from spoolq.entry import Entry, order
from spoolq.fair import Most, Use
from spoolq.reason import Reason
from spoolq.reserve import Opening, Window, holder, opening, said
from spoolq.resources import show_seconds
from spoolq.roster import Seen
from spoolq.schedule import NodeView, outside
from spoolq.spool import Placed, Spool

_SAYS = re.compile(r"^\s*(?:max_running|max_cpus|fair_share)\s*=", re.MULTILINE)


class Precedence:
    """Who comes before whom, in one listing of a spool."""

    def __init__(self, spool: Spool, nodes: Sequence[Seen], views: Sequence[NodeView], live: Sequence[Placed]) -> None:
        """Nothing is worked out yet, but for the places that are kept."""
        self.spool, self.live = spool, live
        seen = {node.name: node for node in nodes}
        self.kept: dict[str, tuple[Entry, Opening]] = {}  # node -> the job for which it keeps a place
        known = {view.name: view for view in views if not (view.draining or view.full)}
        for at in sorted((at for at in live if at.top == "queue" and at.entry.other), key=lambda at: order(at.entry)):
            view = known.get(holder(at.entry))
            if view and view.name not in self.kept and not outside(at.entry.wants, view.usable):
                node = said(view.name, seen[view.name].facts)._replace(capacity=view.capacity, free=view.free)
                self.kept[view.name] = at.entry, opening(at.entry.wants, node)

    def keeps(self, node: str, entry: Entry) -> Reason | None:
        """Why a node that has room for a job keeps it for another; None if it does not."""
        first, seen = self.kept.get(node, (None, None))
        if first is None or seen is None or not self._after(entry, first):
            return None
        window = Window(first, seen)
        return None if window.lets(entry, self._factor) else pack.kept_for(node, window)

    def place(self, entry: Entry) -> str:
        """Where a place is kept for a job, and until when; or empty."""
        node = holder(entry)
        first, seen = self.kept.get(node, (None, None))
        if first is None or seen is None or first.id != entry.id:
            return ""
        when = (
            "when enough jobs there have ended" if seen.in_s is None else f"in {show_seconds(seen.in_s)} at the latest"
        )
        return f"A place is kept for it on {node}: it starts there {when}, or earlier wherever it fits."

    def limit(self, entry: Entry) -> Reason | None:
        """Whether its user runs as much as one may."""
        if self._most == Most():
            return None
        return fair.over(entry, self.use.get(entry.owner, fair.NOTHING), self._most)

    def turns(self, entry: Entry) -> str:
        """How the users stand that wait with one of equal priority; or empty."""
        if not self._shared:
            return ""
        return fair.turn_text(entry, self.use, (at.entry for at in self.live if at.top == "queue"))

    def key(self, entry: Entry) -> tuple[object, ...]:
        """What of a job, beside what it wants, the answers hang on: equal questions have equal answers."""
        after = tuple(node for node, (first, _) in self.kept.items() if self._after(entry, first))
        return (after, entry.limit_s if after else None, entry.owner if self._most != Most() else "")

    def _after(self, entry: Entry, first: Entry) -> bool:
        """Whether a job comes after one for which a place is kept, which among users that take turns comes first."""
        if entry.rank == first.rank and self._shared and len(self._owners.get(entry.rank, ())) > 1:
            return entry.id != first.id
        return order(entry) > order(first)

    @cached_property
    def _owners(self) -> Mapping[int, set[str]]:
        """Who waits, by rank."""
        found: dict[int, set[str]] = {}
        for at in self.live:
            if at.top == "queue":
                found.setdefault(at.entry.rank, set()).add(at.entry.owner)
        return found

    @cached_property
    def use(self) -> Mapping[str, Use]:
        """What each user runs."""
        return fair.used(at.entry for at in self.live if at.top == "running")

    @cached_property
    def _policy(self) -> tuple[Most, bool, float]:
        """What spool.toml says of it; reading it whole costs each command some milliseconds."""
        if not (_SAYS.search(self.spool.text) or (self.kept and "time_factor" in self.spool.text)):
            return Most(), True, 1.0
        from spoolq.config import parse_policy

        policy = parse_policy(self.spool.text.encode(), f"{self.spool.root}/spool.toml")
        return Most(policy.max_running, policy.max_cpus), policy.fair_share, policy.time_factor

    @property
    def _most(self) -> Most:
        return self._policy[0]

    @property
    def _shared(self) -> bool:
        return self._policy[1]

    @property
    def _factor(self) -> float:
        return self._policy[2]
