"""
Why waiting jobs wait, as anybody can see it from outside: from names and node.json alone.

A command has no part in scheduling; it asks `schedule` the same questions as the nodes do, about nodes
as they described themselves. Equal requests have equal answers, so a hundred thousand waiting jobs
cost some questions only.
Invariant: reads no job file but those of jobs whose entry says that it has more to say, and of those
at most MOST_FILES.
"""

import contextlib
import re
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from spoolq import array, begin, constraint, devices, pools, roster, schedule
from spoolq.entry import Entry
from spoolq.errors import SpoolqError
from spoolq.reason import Reason, overall, parse_reason
from spoolq.resources import Amounts, add, free_of
from spoolq.roster import Seen
from spoolq.schedule import ANYWHERE, Conditions, NodeView
from spoolq.spool import Placed, Spool

if TYPE_CHECKING:
    from spoolq.parents import Parents
    from spoolq.precedence import Precedence

MOST_FILES = 100
_LIMITED = re.compile(r"^\s*max_(?:running|cpus)\s*=", re.MULTILINE)
_GONE = ("stopped", "dead", "silent", "new")


def view_of(node: Seen, running: Sequence[Placed], everywhere: Iterable[Placed] = ()) -> NodeView:
    """
    A node as `schedule` sees it.

    What is free is counted anew from the entries that lie on the node, since node.json is as old as its
    last beat; what it said that others use beside its jobs still counts.
    """
    capacity = node.amounts("capacity")
    held = {placed.entry.unit: holds(node, placed.entry) for placed in running}
    shared = node.facts.get("pools")
    size = {name: capacity[name] for name in shared if name in capacity} if isinstance(shared, list) else {}
    using = pools.holders((placed.entry for placed in everywhere), size)
    said_free, said_held = node.amounts("free"), node.amounts("allocated")
    foreign = {
        name: max(0, amount - said_held.get(name, 0) - said_free.get(name, amount)) for name, amount in capacity.items()
    }
    for name in size:
        foreign[name] = max(0, pools.taken(using.values(), size)[name] - add(*held.values()).get(name, 0))
    others: dict[int | str, Amounts] = {
        e.unit: {name: e.wants[name] for name in size if name in e.wants} for e in using.values()
    }
    return NodeView(
        name=node.name,
        capacity=capacity,
        free=free_of(capacity, [add(*held.values()), foreign]),
        held={**others, **held},
        pools=frozenset(size),
        labels=constraint.sound(node.facts.get("labels")),
        devices=devices.stock_said(node.facts, held),
        full=node.state == "full",
        draining=node.drain is not None,
        note=node.drain or "",
        busy=node.busy,
        idle_load=node.idle_load,
        usable=node.amounts("usable") or None,
    )


def pools_of(spool: Spool, nodes: Iterable[Seen]) -> tuple[Amounts, Amounts] | None:
    """(taken, size) of what all nodes share, by the largest size that one says; None if there is nothing."""
    size: dict[str, int] = {}
    for node in nodes:
        said, capacity = node.facts.get("pools"), node.amounts("capacity")
        for name in said if isinstance(said, list) else ():
            size[name] = max(size.get(name, 0), capacity.get(name, 0))
    if not size:
        return None
    everywhere = [at for name in spool.nodes() for top in ("running", "reaping") for at in spool.on_node(name, top)]
    using = pools.holders((at.entry for at in everywhere), size)
    return pools.taken(using.values(), size), size


def lends(node: Seen, entry: Entry) -> Amounts:
    """What a running job lends while it waits for jobs of its own, as its node says."""
    said = node.facts.get("lent")
    found = said.get(str(entry.unit)) if isinstance(said, dict) else None
    return {k: v for k, v in found.items() if type(v) is int} if isinstance(found, dict) else {}


def holds(node: Seen, entry: Entry) -> Amounts:
    """What a running job holds: what it asked for without what it lends."""
    lent = lends(node, entry)
    return {name: max(0, amount - lent.get(name, 0)) for name, amount in entry.wants.items()}


def views(nodes: Iterable[Seen], live: Iterable[Placed]) -> list[NodeView]:
    """The nodes that may be expected to take jobs some time."""
    on: dict[str, list[Placed]] = {}
    live = [placed for placed in live if placed.top in ("running", "reaping")]
    for placed in live:
        if placed.top == "running":
            on.setdefault(placed.node, []).append(placed)
    return [view_of(node, on.get(node.name, []), live) for node in nodes if node.state not in _GONE]


def conditions_of(spool: Spool, job_id: int) -> Conditions | None:
    """What a job's file says about where it may run; None if it cannot be read."""
    from spoolq import deliver

    job = deliver.read_job(spool, job_id)
    if job is None:
        return None
    return Conditions(nodelist=job.nodelist, exclude=job.exclude, constraint=job.constraint)


class Outlook:
    """Answers for one listing of a spool; remembers equal questions."""

    def __init__(self, spool: Spool, nodes: Sequence[Seen], live: Sequence[Placed]) -> None:
        """Nothing is asked yet."""
        self.spool, self.nodes = spool, nodes
        self.views = views(nodes, live)
        self._running = Counter(placed.entry.id for placed in live if placed.top == "running" and placed.entry.chunk)
        self._live = live
        self._known: dict[tuple[object, ...], Reason] = {}
        self._files = 0
        self._parents: Parents | None = None

    @cached_property
    def precedence(self) -> "Precedence":
        """Who comes before whom; its rooms cost a command some milliseconds, and are rarely needed."""
        from spoolq.precedence import Precedence

        return Precedence(self.spool, self.nodes, self.views, self._live)

    @cached_property
    def _asked(self) -> "Precedence | None":
        """The same, if a place is kept for somebody or users are limited."""
        kept = any(at.top == "queue" and at.entry.other for at in self._live)
        return self.precedence if kept or _LIMITED.search(self.spool.text) else None

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
        if entry.held == "HD" and (found := self.waits_for(entry.id)):
            return found
        if terms is not ANYWHERE:
            return self._ask(entry, terms)
        key = (
            tuple(entry.wants.items()),
            entry.held,
            begin.begins(entry),
            *(self._asked.key(entry) if self._asked else ()),
        )
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
        if entry.held == begin.HELD and (when := begin.begins(entry)) is not None:
            return Reason("BeginTime", f"begins {begin.words(when, time.time())}")
        if entry.held:
            return schedule.explain(entry, _NOWHERE) or Reason("JobHeldUser", "held")
        if self._asked and (reason := self._asked.limit(entry)):
            return reason
        reasons: dict[str, Reason] = {}
        for view in self.views:
            reason = self._on(view, entry, terms)
            if reason is None:
                return Reason("Priority", f"{view.name} has room: waits for its turn")
            reasons[view.name] = reason
        if not reasons:
            return Reason("NoNodeAlive", no_node(self.nodes))
        return overall(reasons)

    def waits_for(self, job_id: int) -> Reason | None:
        """Which parent a job waits for and where that is; None if its file cannot be read."""
        from spoolq import deliver, parents

        with contextlib.suppress(OSError, SpoolqError):
            if job := deliver.read_job(self.spool, job_id):
                self._parents = self._parents or parents.Parents(self.spool)
                return parents.reason(self._parents, job)
        return None

    def each(self, entry: Entry) -> dict[str, Reason | None]:
        """What each node would say now; None where nothing but its turn keeps the job waiting."""
        terms = conditions_of(self.spool, entry.id) if entry.more else ANYWHERE
        return {view.name: self._on(view, entry, terms) for view in self.views}

    def _on(self, view: NodeView, entry: Entry, terms: Conditions | None) -> Reason | None:
        found = schedule.explain(entry, view, terms)
        return found if found or not self._asked else self._asked.keeps(view.name, entry)

    def impossible(self, wants: Amounts, terms: Conditions = ANYWHERE) -> str | None:
        """Why no node ever seen could run it, even empty."""
        capacities = {node.name: node.amounts("capacity") for node in self.nodes if node.amounts("capacity")}
        labels = {node.name: constraint.sound(node.facts.get("labels")) for node in self.nodes}
        return schedule.impossible(wants, capacities, terms, labels)


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
