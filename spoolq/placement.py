"""
The other nodes as scheduling sees them, and this node's part of the common plan.

`pack` and `reserve` decide; here the others' node.json files are read, the age of what waits is kept,
and a reservation is written. Of very many nodes the nearest on the ring of names are planned with: a
plan must cost milliseconds, and a file that all read every second would cost the server more than it
tells. A node that is alone, with nothing that could be overtaken, reads and plans nothing.
Invariant: what is read here never starts a job by itself and never stops one for ever: it may be old,
wrong or written by anybody, and costs then a lost rename or some seconds.
"""

import logging
from bisect import bisect
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from spoolq import elbow, host, pack, roster, schedule
from spoolq.entry import Entry
from spoolq.fsops import Answer
from spoolq.lease import LATE, Watch, observe
from spoolq.reserve import Node, Task, digest, holder, reserving, said
from spoolq.resources import Amounts, fits
from spoolq.schedule import Conditions, NodeView, Plan
from spoolq.spool import Placed

if TYPE_CHECKING:
    from spoolq.daemon import Daemon

log = logging.getLogger("spoolq")

LOOK_S = 1.0  # between looks at the others, and between writes of node.json when what runs here changed
CROWD = 100  # nodes; with more of them both are as much rarer
GONE_S = 10.0  # between looks at a node that takes no jobs
NEAR = 32  # others that are planned with
READS = 64  # files read in one look
FORGET_S = 60.0  # after which a job that was not seen again has no age


@dataclass(slots=True)
class Other:
    """Another node: what it said last, when that was read, when it was first seen to say so, and its heartbeat."""

    read_s: float
    seen_s: float
    facts: dict[str, Any]
    watch: Watch | None = None
    takes: bool = False


class Placement:
    """What one daemon knows of the others, and remembers between its looks at the queue."""

    def __init__(self, daemon: "Daemon") -> None:
        """Nothing is known yet."""
        self.daemon = daemon
        self.known: dict[str, Other] = {}
        self.others: tuple[Node, ...] = ()
        self.every_s = LOOK_S
        self.since: dict[pack.Key, tuple[float, float]] = {}  # key of `Share.watch` -> first and last seen
        self._looked = self._reserved = -FORGET_S
        self._told: object = None
        self._reads = 0  # of node.json, since the last look
        self._somewhere: dict[int | str, str] = {}  # what may be run by a node that is not planned with, and by which
        self._nowhere: dict[int | str, float] = {}  # what may not, and when that was found

    # --- what others say

    def look(self, now: float) -> None:
        """Read what is due of the nearest nodes; at most once in `every_s`."""
        if now - self._looked < self.every_s:
            return
        self._looked = now
        names = self.daemon.spool.nodes()
        self.every_s = LOOK_S * max(1.0, len(names) / CROWD)
        self._reads, near = 0, []
        for name in around(self.daemon.node, names):
            other = self.known.get(name)
            if self._reads < READS and (other is None or now - other.read_s >= (0.0 if other.takes else GONE_S)):
                self._reads += 1
                other = self.known[name] = self._read(name, other, now)
            if other and other.takes:
                near.append(said(name, other.facts, now - other.seen_s))
            if len(near) == NEAR:
                break
        for name in self.known.keys() - set(names):
            del self.known[name]
        self.others = tuple(near)

    def _read(self, name: str, before: Other | None, now: float) -> Other:
        facts = self.daemon.spool.read_node(name)
        same = before is not None and before.facts == facts
        beats, beat_s = facts.get("beats"), self.daemon.policy.beat_s
        counter = beats if isinstance(beats, int) else 0
        known = before.watch if before and before.facts.get("instance") == facts.get("instance") else None
        watch = observe(known, now=now, counter=counter, interval_s=max(beat_s, 2 * self.every_s))
        beats_on = watch is not None and watch.still_s <= LATE * beat_s
        takes = facts.get("state") == "up" and beats_on and roster.alive_here(facts) is not False
        return Other(now, before.seen_s if same and before else now, facts, watch, takes)

    def _with_holders(self, waiting: Sequence[Entry], now: float) -> tuple[Node, ...]:
        """The others, and who keeps a place for one of these and is far away on the ring."""
        if len(self.others) < NEAR:
            return self.others
        near, far = {node.name for node in self.others} | {self.daemon.node}, []
        for name in sorted({holder(entry) for entry in waiting if entry.other} - near - {""}):
            other = self.known.get(name)
            if other is None or now - other.read_s >= self.every_s:
                other = self.known[name] = self._read(name, other, now)
            far += [said(name, other.facts, now - other.seen_s)] if other.takes else []
        return (*self.others, *far)

    def _abroad(self, entry: Entry, terms: Conditions) -> bool:
        """
        Whether a live node that is not planned with may run a job, or nobody knows yet.

        Asked of few: who wants of a pool, and fits none of the nodes that are planned with. At most READS
        files are read in one look; who was not read yet may be the one.
        """
        now, unit = host.boottime(), entry.unit
        if now - self._nowhere.get(unit, -FORGET_S) < self.every_s:
            return False
        known = {name: dict[str, int]() for name in around(self.daemon.node, self.daemon.spool.nodes())}
        last = self._somewhere.get(unit, "")
        for name in sorted(schedule.could_take({}, known, terms), key=lambda name: name != last):
            if self._may_run(name, entry, terms, now):
                self._somewhere = {**(self._somewhere if len(self._somewhere) < READS else {}), unit: name}
                return True
        self._nowhere = {**(self._nowhere if len(self._nowhere) < READS else {}), unit: now}
        return False

    def _may_run(self, name: str, entry: Entry, terms: Conditions, now: float) -> bool:
        other = self.known.get(name)
        # a heartbeat must be read more often than it is late
        fresh_s = GONE_S if other and not other.takes else max(self.every_s, min(GONE_S, self.daemon.policy.beat_s))
        if other is None or now - other.read_s >= fresh_s:
            if self._reads >= READS:
                return other is None
            self._reads += 1
            other = self.known[name] = self._read(name, other, now)
        node = said(name, other.facts)
        able = schedule.could_take(entry.wants, {name: node.capacity}, terms, {name: node.labels})
        return other.takes and bool(able) and not schedule.outside(entry.wants, node.usable)

    # --- what this node says

    def facts(self, now: float) -> dict[str, Any]:
        """For node.json: what others plan with, beside capacity and free."""
        self._told = self._state()
        tasks = digest(self.tasks(now, 0.0))
        return {"tasks": [[dict(task.wants), None if task.left_s is None else int(task.left_s)] for task in tasks]}

    def news(self) -> bool:
        """Whether something changed that should be known before the next beat."""
        return self.matters and self._state() != self._told

    @property
    def matters(self) -> bool:
        """Whether what runs here matters to anybody: others that plan, or a user whose job has its place kept here."""
        return bool(self.others or self.since)

    def _state(self) -> object:
        live = self.daemon.live.values()
        return self.daemon.presence.state, {(item.at.entry.id, item.at.entry.gen, item.lends) for item in live}

    def tasks(self, now: float, kept_since: float) -> list[Task]:
        """What runs here; `young` is what began since then (0: nothing)."""
        found = []
        for live in self.daemon.live.values():
            entry = live.at.entry
            known = entry.limit_s is not None and not entry.suspended
            limit_s = (entry.limit_s or 0) * elbow.time_factor(live.job, self.daemon.policy)
            left_s = max(0.0, live.since + limit_s - now) if known else None
            found.append(Task(live.holds, left_s, bool(kept_since) and live.since >= kept_since))
        return found

    # --- the plan

    def admit(
        self,
        candidates: Sequence[Placed],
        node: NodeView,
        conditions: Callable[[Entry], Conditions | None],
        *,
        whole: bool,
        reasons: int,
    ) -> Plan:
        """
        What of some candidates, best first, starts here now, and why the others do not.

        Args:
            whole: whether these are all that were listed, or only the first of them.
            reasons: so many are put into words.
        """
        waiting = [at.entry for at in candidates]
        if not self.others or self.daemon.limits.once:
            found = schedule.admit(waiting, node.free, node, conditions, reasons)
            if not overtakes(waiting, found, node.capacity, node.pools):
                return found
        elif not pack.worth_a_plan(waiting, node.free):
            return schedule.admit(waiting, node.free, node, conditions, reasons)
        now = host.boottime()
        kept = min((first for key, (first, _) in self.since.items() if key[0] == "keep"), default=0.0)
        plan, part = pack.plan(
            waiting,
            node,
            () if self.daemon.limits.once else self._with_holders(waiting, now),
            self.tasks(now, kept),
            conditions,
            self._waited(now),
            spread=self.daemon.policy.placement == "spread",
            elbow=self.daemon.policy.time_factor,
            reasons=reasons,
            abroad=self._abroad,
        )
        self._remember(part, now, whole=whole)
        if part.reserve:
            self._reserve(candidates, *part.reserve, now)
        return plan

    def _waited(self, now: float) -> dict[pack.Key, float]:
        """For how long what the plan watches has been so, without a long break."""
        for key in [key for key, (_, last) in self.since.items() if key[0] == "outside" and now - last > FORGET_S]:
            del self.since[key]  # planned is only where something would overtake
        return {key: now - first for key, (first, _) in self.since.items()}

    def _remember(self, part: pack.Share, now: float, *, whole: bool) -> None:
        for key in part.watch:
            self.since[key] = (self.since.get(key, (now, now))[0], now)
        for key, (_, last) in list(self.since.items()):
            # a look at the first of the queue says nothing about the rest of it
            if last < now and (whole or (key[0] == "claim" and now - last > FORGET_S)):
                del self.since[key]
        if part.again_s is not None:
            self.daemon.set_due("queue", min(self.daemon.due_at("queue"), now + part.again_s))

    def _reserve(self, candidates: Sequence[Placed], entry: Entry, node: str, now: float) -> None:
        """One rename; whatever comes of it is seen in the next listing."""
        kept = reserving(entry, node)
        if kept is None or now - self._reserved < self.every_s:
            return
        self._reserved = now
        at = next(at for at in candidates if at.entry is entry)
        answer, _ = self.daemon.spool.transfer(at, "queue", kept)
        if answer is Answer.WON:
            log.info("reserved job=%d on=%s", entry.id, node)


def around(node: str, names: Sequence[str]) -> Iterator[str]:
    """All other names, the nearest on the ring first, from both sides in turn."""
    ring = sorted(set(names) - {node})
    place = bisect(ring, node)
    ring = ring[place:] + ring[:place]
    for number in range((len(ring) + 1) // 2):
        yield ring[number]
        if number < len(ring) - 1 - number:
            yield ring[-1 - number]


def overtakes(waiting: Sequence[Entry], found: Plan, capacity: Amounts, pools: Collection[str] = ()) -> bool:
    """Whether something would start before an earlier one that could start here some time, or takes from a pool."""
    if not found.start or len(found.start) == len(waiting):
        return False
    last = found.start[-1]
    starts = {(entry.id, entry.chunk) for entry in found.start}
    for entry in waiting:
        if entry is last:
            return False
        stays = (entry.id, entry.chunk) not in starts and not entry.held
        if stays and (fits(entry.wants, capacity) or any(name in entry.wants for name in pools)):
            return True
    return False
