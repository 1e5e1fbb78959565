"""
Share the waiting jobs out among the nodes: each node works out the whole plan, and acts on its own part.

In order, each job goes to the node that it fills best (*pack*: machines fill up one at a time, in case a
big job comes along) or least (*spread*), among those with room as far as this node knows. What falls to
another node this one leaves alone for a while, longer the emptier it is: so the fullest that fits wins, a
node that died or declines costs some seconds, and nodes seldom race for one job. The first job that fits
nowhere now gets a reservation (`reserve`).
Invariants: nodes that know the same make the same plan, and no job is in the part of two; what a node
starts fits into what it has free; old news cost a lost rename or a second, never a job.

The turn of a daemon, at each poll while it has room and something waits:
1. read the queue's names, and node.json of the live nodes that take jobs (at most once a second). Nothing is written.
2. `plan`, if it is `worth_a_plan`. The caller remembers, on its own clock, since when each key of `Share.watch` has
   been there (others it forgets), and passes that as `waited` the next time. Its own tasks that started since a key
   `keep` has been there are `young`. What a crash forgets begins anew: the delay is waited once more.
3. `Share.reserve`: one rename within the queue (`reserve`, with what a crash leaves).
4. `Plan.start`: claim each as ever. A claim that is LOST was somebody else's: nothing to repair.
5. node.json is written again when what runs here changed (at most once a second) and with the beat: capacity,
   free, and for each job what it holds and the seconds until its limit. A crash before: others plan with old
   news until the next beat of this node's next daemon; then, as after every doubt, the second in line takes over.
6. look again at `Share.again_s` if that is before the next poll.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from spoolq import schedule
from spoolq.entry import Entry
from spoolq.reason import Reason
from spoolq.reserve import Node, Task, Window, holder, opening, sooner, worth_moving
from spoolq.resources import Amounts, fits, show, show_seconds
from spoolq.schedule import ANYWHERE, POOL_KEPT, Conditions, NodeView, Plan

STEP_S = 1.0  # an idle node's poll: so long a preferred node may not have looked
DEPTH = 200  # jobs shared out in one look; more than the nodes can claim until the next
OUTSIDE_S = 30.0  # a place is still kept while others use what it needs: three times `smooth.SMOOTH_S`
STEPS = 3  # more of them an empty node waits than a full one

Key = tuple[str, int, str]
Ask = Callable[[Entry], Conditions | None]
Abroad = Callable[[Entry, Conditions], bool]  # whether a live node that is not planned with may run a job


def nowhere(_entry: Entry, _terms: Conditions) -> bool:
    """All live nodes are planned with."""
    return False


class Share(NamedTuple):
    """
    One node's part of the plan.

    `start`: to be claimed now. `withheld`: fits here and does not start, with the reason. `reserve`: an
    entry to reserve for, and the node. `watch`: keys whose age the caller keeps. `again_s`: when a
    withheld job may start here after all, if nothing else happens. `looked`: so many entries were shared
    out; those after them have their turn in a later look.
    """

    start: tuple[Entry, ...]
    withheld: tuple[tuple[Entry, Reason], ...] = ()
    reserve: tuple[Entry, str] | None = None
    watch: frozenset[Key] = frozenset()
    again_s: float | None = None
    looked: int = 0


def worth_a_plan(waiting: Sequence[Entry], free: Amounts) -> bool:
    """Whether anything that waits would fit here: if not, nothing can start here that a reservation should prevent."""
    known: set[tuple[tuple[str, int], ...]] = set()
    for entry in waiting:
        wants = tuple(entry.wants.items())
        if wants not in known:
            if fits(entry.wants, free):
                return True
            known.add(wants)
    return False


def emptiness(wants: Amounts, capacity: Amounts, free: Amounts) -> float:
    """0 to 1: how empty a node would be with a job on it, in what the job wants."""
    parts = [
        (free.get(name, 0) - amount) / capacity[name] for name, amount in wants.items() if amount and capacity.get(name)
    ]
    return min(1.0, max(0.0, sum(parts) / len(parts))) if parts else 0.0


def delay_s(empty: float, *, spread: bool = False) -> float:
    """How long a node leaves a job to the one that should take it."""
    return STEP_S * (1 + STEPS * (1 - empty if spread else empty))


def plan(
    waiting: Sequence[Entry],
    view: NodeView,
    others: Sequence[Node],
    tasks: Sequence[Task],
    conditions: Ask = lambda _entry: ANYWHERE,
    waited: Mapping[Key, float] | None = None,
    *,
    spread: bool = False,
    elbow: float = 1.0,
    reasons: int = 20,
    abroad: Abroad = nowhere,
) -> tuple[Plan, Share]:
    """
    What starts here now, why the rest does not, and what else is to be done: `share` and `schedule.admit`.

    Args:
        waiting: n entries, best first.
        view: this node; `tasks` are what it runs.
        others: the live nodes that take jobs, as they said last.
        abroad: asked of jobs that want of a pool and fit no node now.
    """
    if view.draining or view.full:
        return schedule.admit(waiting, view.free, view, conditions, reasons), Share(())
    me = Node(view.name, view.capacity, view.free, tuple(tasks), view.labels, view.usable)
    left = {name: view.free.get(name, 0) for name in view.pools}  # of a pool all have what this node sees
    others = [node._replace(free={**node.free, **left}) for node in others] if left else others
    walk = _Walk(me, others, waited or {}, spread=spread, elbow=elbow, pools=view.pools, abroad=abroad)
    part = _share(waiting, walk, conditions)
    kept = {(entry.id, entry.chunk): (entry, reason) for entry, reason in part.withheld}
    offered = [entry for entry in waiting[: part.looked] if (entry.id, entry.chunk) not in kept]
    found = schedule.admit(offered, view.free, view, conditions, reasons)
    said = {(entry.id, entry.chunk): (entry, reason) for entry, reason in found.blocked} | kept
    starts = {(entry.id, entry.chunk) for entry in found.start}
    stay = [entry for entry in waiting if (entry.id, entry.chunk) not in starts]
    blocked = tuple(said[entry.id, entry.chunk] for entry in stay[:reasons] if (entry.id, entry.chunk) in said)
    told = {(entry.id, entry.chunk) for entry, _ in blocked}
    rest = tuple(entry for entry in stay if (entry.id, entry.chunk) not in told)
    return Plan(start=found.start, blocked=blocked, rest=rest), part


def _share(waiting: Sequence[Entry], walk: "_Walk", conditions: Ask) -> Share:
    me = walk.me
    start: list[Entry] = []
    withheld: list[tuple[Entry, Reason]] = []
    watch = walk.watch
    again: float | None = None
    hopeless: set[tuple[tuple[str, int], ...]] = set()  # what fits no node any more: the walk only takes
    looked = shared = 0
    for looked, entry in enumerate(waiting, 1):  # noqa: B007  # counted
        wants = tuple(entry.wants.items())
        if entry.held or (wants in hopeless and walk.is_settled(entry)):
            continue
        if walk.is_kept(entry):
            withheld.append((entry, Reason("Priority", POOL_KEPT)))
            continue
        roomy = walk.roomy(entry.wants)
        if not roomy:
            hopeless.add(wants)
        here = me.name in roomy
        terms = conditions(entry) if entry.more or here else ANYWHERE
        able = walk.able(entry, roomy, terms)
        if here and (kept := walk.bars(entry, me.name, terms)):
            withheld.append((entry, kept_for(me.name, kept)))
        if not able:
            if terms is not None:
                walk.keep_place(entry, terms)
            continue
        first = able[0][1]
        if first != me.name and (mine := next((empty for empty, name in able if name == me.name), None)) is not None:
            key = ("claim", entry.id, entry.chunk)
            watch.add(key)
            wait = delay_s(mine, spread=walk.sign < 0)
            if (left := wait - walk.waited.get(key, 0.0)) > 0:
                again = left if again is None else min(again, left)
                withheld.append((entry, _left(first, wait)))
            else:
                first = me.name
        if first == me.name:
            start.append(entry)
        walk.give(entry, first, terms)
        shared += 1
        if shared == DEPTH:
            break
    if kept := walk.windows.get(me.name):
        watch.add(("keep", kept.entry.id, kept.entry.chunk))
    return Share(tuple(start), tuple(withheld), walk.reserve, frozenset(watch), again, looked)


class _Walk:
    """The nodes while jobs are shared out among them, in order."""

    def __init__(
        self,
        me: Node,
        others: Sequence[Node],
        waited: Mapping[Key, float],
        *,
        spread: bool,
        elbow: float,
        pools: frozenset[str],
        abroad: Abroad,
    ) -> None:
        self.abroad = abroad
        self.waited, self.watch = waited, set[Key]()
        self.barren: set[tuple[tuple[str, int], ...]] = set()  # no place can be kept for what wants this
        self.me, self.sign, self.elbow = me, -1 if spread else 1, elbow
        self.nodes = {node.name: node for node in (me, *others)}
        self.labels = {name: node.labels for name, node in self.nodes.items()}
        self.capacities = {name: node.capacity for name, node in self.nodes.items()}
        self.free = {name: dict(node.free) for name, node in self.nodes.items()}
        self.given: dict[str, list[Task]] = {name: [] for name in self.nodes}
        self.pools, self.kept = pools, dict[str, int]()  # of pools: so much is kept for jobs that come first
        self.first: dict[str, int | str] = {}  # of pools: for whom first
        self.windows: dict[str, Window] = {}
        self.head: Entry | None = None
        self.reserve: tuple[Entry, str] | None = None

    def roomy(self, wants: Amounts) -> list[str]:
        """The nodes that have room for it, reservations aside."""
        return [name for name, free in self.free.items() if fits(wants, free)]

    def is_kept(self, entry: Entry) -> bool:
        """Whether what it wants of a pool is there, and for jobs that come before it, here or elsewhere."""
        free = self.free[self.me.name]
        return any(
            free.get(name, 0) - self.kept.get(name, 0) < entry.wants[name] <= self.me.free.get(name, 0)
            for name in self.pools & entry.wants.keys()
        )

    def is_settled(self, entry: Entry) -> bool:
        """Whether no place, and nothing of a pool, is to be kept for a job that fits nowhere."""
        if entry.more or entry.other or not self.pools.isdisjoint(entry.wants.keys() - self.kept.keys()):
            return False
        return self.head is not None or tuple(entry.wants.items()) in self.barren

    def elbow_of(self, terms: Conditions | None) -> float:
        """By what factor a job may outlast its time limit."""
        return (terms.time_factor if terms else 0.0) or self.elbow

    def bars(self, entry: Entry, name: str, terms: Conditions | None) -> Window | None:
        """The reservation, of a job that comes before it, that keeps it from starting on a node."""
        kept = self.windows.get(name) if not entry.parent else None  # somebody may wait for it with his part of a node
        return kept if kept and not kept.lets(entry, self.elbow_of(terms)) else None

    def able(self, entry: Entry, roomy: list[str], terms: Conditions | None) -> list[tuple[float, str]]:
        """(emptiness, name) of those that may take it, the preferred first."""
        if terms is None:
            return []
        if terms.nodelist or terms.exclude or terms.constraint:
            roomy = schedule.could_take({}, {name: {} for name in roomy}, terms, self.labels)
        found = [
            (emptiness(entry.wants, self.capacities[name], self.free[name]), name)
            for name in roomy
            if not (terms.missing and name == self.me.name) and not self.bars(entry, name, terms)
        ]
        found.sort(key=lambda pair: (self.sign * pair[0], pair[1]))
        return found

    def give(self, entry: Entry, name: str, terms: Conditions | None) -> None:
        """It goes there."""
        free = self.free[name]
        for what, amount in entry.wants.items():
            free[what] = free.get(what, 0) - amount
        for what in self.pools & entry.wants.keys():  # what one node takes of a pool all have less of
            for other in self.free.values():
                other[what] = free[what]
        if kept := self.windows.get(name):
            kept.take(entry, self.elbow_of(terms))
        left_s = None if entry.limit_s is None else entry.limit_s * self.elbow_of(terms)
        self.given[name].append(Task(entry.wants, left_s, young=True))

    def keep_place(self, entry: Entry, terms: Conditions) -> None:
        """
        Keep a place for a job that fits nowhere now: for the first that could ever start, and where one was promised.

        The place of the first counts at once, on every node that knows the same, and is written if it is not yet.
        """
        if self.keep_of_pools(entry, terms):
            # nobody knows when the pool has room, and until then a node would stand idle: only the pool is kept
            return
        now = holder(entry)
        if self.head and (now not in self.nodes or now in self.windows):
            return
        names = schedule.could_take(entry.wants, self.capacities, terms, self.labels)
        if terms.missing and self.me.name in names:
            names.remove(self.me.name)
        if self.head:
            names = [now] if now in names else []
        names = [name for name in names if self.may_keep(entry, name)]
        if not names:
            self.barren |= {tuple(entry.wants.items())} if not (entry.more or entry.other) else set()
            return
        seen = {name: opening(entry.wants, self.nodes[name], self.given[name], self.free[name]) for name in names}
        best = min(names, key=lambda name: sooner(entry.wants, self.nodes[name], seen[name], self.free[name]))
        if now in seen and not worth_moving(seen[best], seen[now]):
            best = now
        elif not self.head:
            self.reserve = (entry, best)
        self.head = self.head or entry
        for name in self.pools & entry.wants.keys():
            if self.first.get(name) != entry.unit:  # not counted yet
                self.kept[name] = self.kept.get(name, 0) + entry.wants[name]
        self.windows[best] = Window(entry, seen[best])

    def keep_of_pools(self, entry: Entry, terms: Conditions) -> bool:
        """
        Keep of each pool what the first in order wants of it that some live node may run, also one that is not seen.

        Others, which want less or another node, would keep it waiting for ever. True if there is too little.
        """
        mine, wants = self.free[self.me.name], entry.wants
        names = [name for name in self.pools & wants.keys() if wants[name]]
        if any(name not in self.kept for name in names):
            able = schedule.could_take(wants, self.capacities, terms, self.labels)
            if any(self.may_keep(entry, name) for name in able) or self.abroad(entry, terms):
                for name in (name for name in names if name not in self.kept):
                    self.first[name], self.kept[name] = entry.unit, min(wants[name], mine.get(name, 0)) or 1
        return any(wants[name] > mine.get(name, 0) for name in names)

    def may_keep(self, entry: Entry, name: str) -> bool:
        """
        Whether a place for a job on a node can be hoped for: not while others use what it lacks.

        A place that is promised outlasts what they do for a moment.
        """
        if not schedule.outside(entry.wants, self.nodes[name].usable):
            return True
        if name != holder(entry):
            return False
        key = ("outside", entry.id, entry.chunk)
        self.watch.add(key)
        return self.waited.get(key, 0.0) < OUTSIDE_S


def kept_for(node: str, kept: Window) -> Reason:
    """Why a job does not start on a node that keeps a place for another."""
    when = "when enough jobs have ended" if kept.in_s is None else f"in {show_seconds(kept.in_s)} at the latest"
    text = f"{node} keeps {show(kept.entry.wants)} for job {kept.entry.id}, which starts {when}; this would delay it"
    return Reason("Priority", text)


def _left(first: str, delay: float) -> Reason:
    return Reason("Priority", f"{first} should take it; this node does if it still waits in {delay:.1f} s")
