"""
Why waiting jobs wait, as anybody can see it from outside: from names and node.json alone.

A command has no part in scheduling; it asks `schedule` the same questions as the nodes do, about nodes
as they described themselves. Equal requests have equal answers, so a hundred thousand waiting jobs
cost some questions only.
Invariant: reads no job file but those of jobs whose entry says that it has more to say, and of those
at most MOST_FILES.
"""

import contextlib
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property

from spoolq import array, roster, schedule
from spoolq.entry import Entry
from spoolq.reason import Reason, overall, parse_reason
from spoolq.resources import Amounts, add, free_of
from spoolq.roster import Seen
from spoolq.schedule import ANYWHERE, Conditions, NodeView
from spoolq.spool import Placed, Spool

MOST_FILES = 100
_GONE = ("stopped", "dead", "silent", "new")


def view_of(node: Seen, running: Sequence[Placed]) -> NodeView:
    """
    A node as `schedule` sees it.

    What is free is counted anew from the entries that lie on the node, since node.json is as old as its
    last beat; what it said that others use beside its jobs still counts.
    """
    capacity = node.amounts("capacity")
    held = {placed.entry.unit: placed.entry.wants for placed in running}
    said_free, said_held = node.amounts("free"), node.amounts("allocated")
    foreign = {
        name: max(0, amount - said_held.get(name, 0) - said_free.get(name, amount)) for name, amount in capacity.items()
    }
    return NodeView(
        name=node.name,
        capacity=capacity,
        free=free_of(capacity, [add(*held.values()), foreign]),
        held=held,
        full=node.state == "full",
        draining=node.drain is not None,
        note=node.drain or "",
    )


def views(nodes: Iterable[Seen], live: Iterable[Placed]) -> list[NodeView]:
    """The nodes that may be expected to take jobs some time."""
    on: dict[str, list[Placed]] = {}
    for placed in live:
        if placed.top == "running":
            on.setdefault(placed.node, []).append(placed)
    return [view_of(node, on.get(node.name, [])) for node in nodes if node.state not in _GONE]


def conditions_of(spool: Spool, job_id: int) -> Conditions | None:
    """What a job's file says about where it may run; None if it cannot be read."""
    from spoolq import deliver

    job = deliver.read_job(spool, job_id)
    return None if job is None else Conditions(nodelist=job.nodelist, exclude=job.exclude)


class Outlook:
    """Answers for one listing of a spool; remembers equal questions."""

    def __init__(self, spool: Spool, nodes: Sequence[Seen], live: Sequence[Placed]) -> None:
        """Nothing is asked yet."""
        self.spool, self.nodes = spool, nodes
        self.views = views(nodes, live)
        self._running = Counter(placed.entry.id for placed in live if placed.top == "running" and placed.entry.chunk)
        self._known: dict[tuple[tuple[tuple[str, int], ...], str], Reason] = {}
        self._files = 0

    def reason(self, placed: Placed) -> Reason:
        """
        The one reason to show for a waiting job; of one that could start at once, that it waits for its turn.

        If all nodes wrote why they do not start it, they know more: their directories, and their load now.
        """
        found = self._by_names(placed)
        if found.word != "Priority" or self._files >= MOST_FILES:
            return found
        self._files += 1
        said = {node: parse_reason(line) for node, line in quiet_whys(self.spool, placed.entry.id).items()}
        known = {view.name: pair[1] for view in self.views if (pair := said.get(view.name))}
        return overall(known) if len(known) == len(self.views) else found

    def _by_names(self, placed: Placed) -> Reason:
        entry = placed.entry
        terms: Conditions | None = ANYWHERE
        if entry.chunk and (full := self._full(entry)):
            return full
        if entry.more and self._files < MOST_FILES:
            self._files += 1
            terms = conditions_of(self.spool, entry.id)
        if terms is not ANYWHERE:
            return self._ask(entry, terms)
        key = (tuple(entry.wants.items()), entry.held)
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = self._ask(entry, terms)
        return known

    def _full(self, entry: Entry) -> Reason | None:
        """That as many tasks of its array run as may."""
        limit = array.limit_of(entry)
        runs = self._running[entry.id] if limit and not entry.held else 0
        if not limit or runs < limit:
            return None
        return Reason("ArrayTaskLimit", f"{runs} tasks of job {entry.id} run, and no more than {limit} may (%{limit})")

    def _ask(self, entry: Entry, terms: Conditions | None) -> Reason:
        if entry.held:
            return schedule.explain(entry, _NOWHERE) or Reason("JobHeldUser", "held")
        reasons: dict[str, Reason] = {}
        for view in self.views:
            reason = schedule.explain(entry, view, terms)
            if reason is None:
                return Reason("Priority", f"{view.name} has room: waits for its turn")
            reasons[view.name] = reason
        if not reasons:
            return Reason("NoNodeAlive", no_node(self.nodes))
        return overall(reasons)

    def each(self, entry: Entry) -> dict[str, Reason | None]:
        """What each node would say now; None where nothing but its turn keeps the job waiting."""
        terms = conditions_of(self.spool, entry.id) if entry.more else ANYWHERE
        return {view.name: schedule.explain(entry, view, terms) for view in self.views}

    def impossible(self, wants: Amounts, terms: Conditions = ANYWHERE) -> str | None:
        """Why no node ever seen could run it, even empty."""
        capacities = {node.name: node.amounts("capacity") for node in self.nodes if node.amounts("capacity")}
        return schedule.impossible(wants, capacities, terms)


_NOWHERE = NodeView(name="", capacity={}, free={})


class Scene:
    """What `show` and `why` look at, each part read once and only if needed."""

    def __init__(self, spool: Spool) -> None:
        """Nothing is read yet."""
        self.spool = spool

    @cached_property
    def live(self) -> list[Placed]:
        """Everything that has not ended."""
        return self.spool.live()

    @cached_property
    def nodes(self) -> list[Seen]:
        """The nodes."""
        return roster.look(self.spool)

    @cached_property
    def outlook(self) -> Outlook:
        """What they would say."""
        return Outlook(self.spool, self.nodes, self.live)

    @cached_property
    def _order(self) -> list[tuple[int, int]]:
        return sorted((at.entry.rank, at.entry.id) for at in self.live if at.top == "queue")

    def ahead(self, entry: Entry) -> int:
        """How many waiting jobs of higher or equal rank come before one."""
        return bisect_left(self._order, (entry.rank, entry.id))

    def node(self, name: str) -> Seen:
        """One node, which may never have said anything."""
        return next((node for node in self.nodes if node.name == name), Seen(name=name, state="new"))


def no_node(nodes: Sequence[Seen]) -> str:
    """Why nobody takes jobs, in words."""
    if not nodes:
        return "no node has ever served this spool; start one with `spoolq node`"
    words = []
    for node in nodes[:5]:
        text = f"{node.name} is {node.state}"
        if node.state == "silent":
            text += f" for {node.beat_age_s or 0:.0f} s"
        words.append(text)
    more = f", {len(nodes) - 5} more" if len(nodes) > 5 else ""
    return f"no node is alive ({', '.join(words)}{more}); start one with `spoolq node`"


def quiet_whys(spool: Spool, job_id: int) -> dict[str, str]:
    """What nodes wrote about a job, node -> line; nothing if that cannot be read."""
    from spoolq import home

    with contextlib.suppress(OSError):
        return home.read_whys(spool.root, job_id)
    return {}
