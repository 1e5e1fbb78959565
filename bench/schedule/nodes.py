"""
Nodes that decide alone, by the real rules: `spoolq.schedule.admit`, `spoolq.pack`, `spoolq.reserve`.

Discrete events. Each node polls with its own phase, from 0.05 s after it had work, growing, to 1 s; at once
when a job of its own ends; not at all while it has no room. What it lists and reads is up to 0.2 s old. What
it knows of other nodes is what they wrote when something changed (at most once a second) or at their last
beat (20 s). A claim of a name that is there no more is lost. A poll that could find nothing new is left out.
"""

import heapq
import random
from collections import deque
from typing import NamedTuple

from bench.schedule.outcome import Ran
from bench.schedule.workload import Job
from spoolq import pack
from spoolq.claim import BUSY_POLL_S, IDLE_POLL_S, SCAN_LIMIT
from spoolq.entry import Entry
from spoolq.reserve import Node, Task, released, reserving
from spoolq.resources import CPUS, UNIT
from spoolq.schedule import NodeView, admit

STALE_S = 0.2  # a listing or file may be so old
PUBLISH_S = 1.0  # node.json is written again after a change, at most so often
BEAT_S = 20.0

_SUBMIT, _END, _PUBLISH, _POLL = range(4)


class News(NamedTuple):
    """What a node wrote of itself, and when; ends by its own clock."""

    at: float
    free: int
    tasks: tuple[tuple[float, Job], ...]


class Sim:
    """One node."""

    def __init__(self, name: str, cpus: int, chance: random.Random) -> None:
        """Idle, at some point of its rhythm."""
        self.name, self.cpus, self.free = name, cpus, cpus
        self.tasks: dict[int, tuple[float, Job]] = {}
        self.tick, self.every = -chance.random() * IDLE_POLL_S, IDLE_POLL_S
        self.beat = chance.random() * BEAT_S
        self.poll_at: float | None = None
        self.news = [News(-1.0, cpus, ()), News(-1.0, cpus, ())]
        self.publish_at: float | None = None
        self.said, self.shown = (0.0, 0.0), Node("", {}, {})
        self.since: dict[pack.Key, float] = {}

    def next_tick(self, now: float) -> float:
        """When its rhythm lets it look again; it has looked in vain until then."""
        while self.tick < now and self.every < IDLE_POLL_S:
            self.tick += self.every
            self.every = min(self.every * 1.5, IDLE_POLL_S)
        if self.tick < now:
            self.tick += -(-(now - self.tick) // self.every) * self.every
        return self.tick

    def seen_at(self, when: float) -> Node:
        """It, as another node reads it."""
        news = self.news[1] if self.news[1].at <= when else self.news[0]
        # rewritten with each beat, so its durations are at most a beat old
        wrote = max(news.at, when - (when - self.beat) % BEAT_S)
        if self.said != (news.at, wrote):
            tasks = tuple(_task(since, job, wrote) for since, job in news.tasks)
            self.shown = Node(self.name, {CPUS: self.cpus * UNIT}, {CPUS: news.free * UNIT}, tasks)
            self.said = (news.at, wrote)
        return self.shown


def _task(since: float, job: Job, now: float, kept: float = float("inf")) -> Task:
    left = None if job.limit is None else max(0.0, since + job.limit - now)
    return Task({CPUS: job.cpus * UNIT}, left, young=since >= kept)


class Cluster:
    """Some nodes and a queue."""

    def __init__(
        self, jobs: list[Job], nodes: int, cpus: int, seed: int, *, reserve: bool, spread: bool = False
    ) -> None:
        """
        Nothing has run yet.

        Args:
            reserve: by `pack.plan`; without, each node admits what fits, in order.
        """
        self.chance = random.Random(seed)
        self.jobs = {job.id: job for job in jobs}
        self.reserve, self.spread = reserve, spread
        self.nodes = [Sim(f"n{number}", cpus, self.chance) for number in range(nodes)]
        self.by_name = {node.name: node for node in self.nodes}
        self.queue: dict[int, tuple[Entry, float]] = {}  # with the time since when it has this name
        self.gone: deque[tuple[float, Entry, float]] = deque()  # names that old listings still show
        self.events: list[tuple[float, int, int, int]] = [(job.submit, _SUBMIT, job.id, 0) for job in jobs]
        heapq.heapify(self.events)
        self.ran: list[Ran] = []
        self.changed = 0.0  # when anything last changed that a node may read
        self.lost = self.reserved = self.polls = 0

    def run(self) -> list[Ran]:
        """The whole workload."""
        while self.events:
            now, what, key, number = heapq.heappop(self.events)
            if what == _SUBMIT:
                job = self.jobs[key]
                wants = {CPUS: job.cpus * UNIT}
                self.queue[job.id] = (Entry(rank=500, id=job.id, wants=wants, limit_s=job.limit), now)
                self.stir(now)
            elif what == _END:
                node = self.nodes[number]
                node.free += node.tasks.pop(key)[1].cpus
                self.change(node, now)
                self.poll(node, now)
            elif what == _PUBLISH:
                self.publish(self.nodes[number], now)
            elif self.nodes[number].poll_at == now:
                self.poll(self.nodes[number], now)
        assert not self.queue, "jobs that never started"
        return self.ran

    def stir(self, now: float) -> None:
        """Something changed that nodes with room will see when they look next."""
        self.changed = now
        if self.queue:
            for node in self.nodes:
                if node.free and node.poll_at is None:
                    self.look_again(node, node.next_tick(now))

    def look_again(self, node: Sim, when: float) -> None:
        """The next look of a node."""
        node.poll_at = when
        heapq.heappush(self.events, (when, _POLL, 0, self.nodes.index(node)))

    def change(self, node: Sim, now: float) -> None:
        """What runs there changed: it will say so."""
        if node.publish_at is None:
            node.publish_at = max(now, node.news[1].at + PUBLISH_S)
            heapq.heappush(self.events, (node.publish_at, _PUBLISH, 0, self.nodes.index(node)))

    def publish(self, node: Sim, now: float) -> None:
        """It says so."""
        node.publish_at = None
        node.news = [node.news[1], News(now, node.free, tuple(node.tasks.values()))]
        if self.reserve:
            self.stir(now)

    def listing(self, when: float, now: float) -> list[Entry]:
        """The queue as it was then."""
        while self.gone and self.gone[0][0] < now - STALE_S:
            self.gone.popleft()
        found = [entry for entry, since in self.queue.values() if since <= when]
        past = [entry for until, entry, since in self.gone if since <= when < until]
        if past:
            found = sorted([*found, *past], key=lambda entry: (entry.rank, entry.id))
        return found[:SCAN_LIMIT]

    def poll(self, node: Sim, now: float) -> None:
        """One look at the queue."""
        node.poll_at = None
        if not node.free or not self.queue:
            return
        self.polls += 1
        when = now - self.chance.random() * STALE_S
        waiting = self.listing(when, now)
        again = None
        started = False
        if pack.worth_a_plan(waiting, {CPUS: node.free * UNIT}):
            start, again = self.decide(node, waiting, when, now)
            for entry in start:
                started |= self.claim(node, entry, now)
        node.tick, node.every = now, IDLE_POLL_S if waiting else min(node.every * 1.5, IDLE_POLL_S)
        if started:
            node.every = BUSY_POLL_S
            self.change(node, now)
        if self.queue and node.free:
            if started or self.changed > when:
                self.look_again(node, node.tick + node.every)
            elif again is not None:
                self.look_again(node, node.next_tick(now + again))

    def decide(
        self, node: Sim, waiting: list[Entry], when: float, now: float
    ) -> tuple[tuple[Entry, ...], float | None]:
        """What the real rules say."""
        view = NodeView(name=node.name, capacity={CPUS: node.cpus * UNIT}, free={CPUS: node.free * UNIT})
        if not self.reserve:
            return admit(waiting, view.free, view, reasons=0).start, None
        others = [other.seen_at(when) for other in self.nodes if other is not node]
        kept = max([since for key, since in node.since.items() if key[0] == "keep"], default=float("inf"))
        tasks = [_task(since, job, now, kept) for since, job in node.tasks.values()]
        waited = {key: now - since for key, since in node.since.items()}
        plan, part = pack.plan(waiting, view, others, tasks, waited=waited, spread=self.spread, reasons=0)
        node.since = {key: node.since.get(key, now) for key in part.watch}
        if part.reserve:
            entry, name = part.reserve
            self.rename(entry, reserving(entry, name), now)
        return plan.start, part.again_s

    def rename(self, old: Entry, new: Entry | None, now: float) -> bool:
        """A rename in the queue, or out of it."""
        entry, since = self.queue.get(old.id, (None, 0.0))
        if entry != old:
            self.lost += 1
            return False
        self.gone.append((now, old, since))
        if new is None:
            del self.queue[old.id]
        else:
            self.reserved += 1
            self.queue[old.id] = (new, now)
            self.changed = now
        return True

    def claim(self, node: Sim, entry: Entry, now: float) -> bool:
        """Start it, if it is still there."""
        current = self.queue.get(entry.id)
        if current and released(current[0])._replace(gen=0) == released(entry)._replace(gen=0) and current[0] != entry:
            entry = current[0]  # renamed by this node in the same look
        if not self.rename(entry, None, now):
            return False
        job = self.jobs[entry.id]
        assert job.cpus <= node.free
        node.free -= job.cpus
        node.tasks[job.id] = (now, job)
        self.ran.append(Ran(job, self.nodes.index(node), now))
        heapq.heappush(self.events, (now + job.run, _END, job.id, self.nodes.index(node)))
        self.changed = now
        return True
