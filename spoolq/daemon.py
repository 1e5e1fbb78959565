"""
The node: scan, decide, act, deliver, recover. One per machine and spool; run by `spoolq node`.

All spool I/O of a node happens here, in one thread that may hang with the mount; the runner, which
watches the jobs, is another process. One turn is `Daemon.step`: hear what the runner says, start what
fits, deliver what ended, carry out requests, admit what was dropped, beat.
Invariant: killing this at any line loses nothing: the entry's place, the runner and its journal say
all that a new daemon needs (see `recover`). Nothing is claimed while unable to beat.
"""

import contextlib
import logging
import random
import select
from collections.abc import Callable, Mapping
from typing import Any

from spoolq import (
    admission,
    chunk,
    claim,
    control,
    host,
    lessons,
    measure,
    outbox,
    recover,
    rerun,
    resources,
    service,
)
from spoolq.agenda import Agenda
from spoolq.around import Around
from spoolq.channel import Family, Gone
from spoolq.chunk import Chunk
from spoolq.claims import Claims
from spoolq.config import NO_SETTINGS, Policy, Settings
from spoolq.constraint import Labels, labels_of
from spoolq.deliver import Finished
from spoolq.dependents import Dependents
from spoolq.devices import Bench
from spoolq.due import Due
from spoolq.errors import TryAgain
from spoolq.launch import Launcher
from spoolq.live import Limits, Live
from spoolq.local import Scratch
from spoolq.measure import Gauge
from spoolq.peers import Peers
from spoolq.pending import Pending
from spoolq.placement import Placement
from spoolq.presence import Presence
from spoolq.queue import Queue
from spoolq.reload import Reload
from spoolq.resources import Amounts
from spoolq.spool import Placed, Spool
from spoolq.wake import Wake

log = logging.getLogger("spoolq")

RETRY_S = (1.0, 60.0)  # between tries to deliver to a spool that refuses


class Daemon(Agenda):
    """One node on one spool."""

    def __init__(
        self,
        spool: Spool,
        policy: Policy,
        node: str,
        *,
        capacity: Amounts,
        measured: bool,
        state_dir: str,
        limits: Limits,
        wake: Wake,
        groups: str | None = None,
        device_files: Mapping[str, str] | None = None,
        labels: Labels | None = None,
        bench: Bench | None = None,
        settings: Settings = NO_SETTINGS,
    ) -> None:
        """
        Set up; `run` does the rest.

        Args:
            capacity: what the node has to lend, thousandths.
            measured: whether measured load counts; not if the capacity is more than the machine has.
            state_dir: node-local directory of the journal.
            groups: a delegated cgroup v2 directory for the jobs, or None.
            device_files: see `busy`.
            settings: what site and user say of this node.
            labels: of the machine and the site.
            bench: the devices that are told apart; `capacity` counts them too.
        """
        super().__init__()
        self.spool, self.policy, self.node = spool, policy, node
        self.own, self.measured, self.state_dir, self.limits = capacity, measured, state_dir, limits
        self.capacity, self.reload = {**capacity, **policy.pools}, Reload(spool.text)
        self.labels, self.wake = labels_of(node, capacity, labels or {}), wake
        # sure: what is live here is what the runner knows; incomplete: a result.json is missing
        self.stopping = self.renewed = self.sure = self.troubled = self.incomplete = self.freed = False
        self.family, self.connected = Family.connect(state_dir), True
        self.bench = bench or Bench({})
        self.launcher = Launcher(spool, node, state_dir=state_dir, groups=groups, kinds=self.bench.kinds)
        self.launcher.path_map = settings.path_map
        self.scratch, self.gauge, self.notes = Scratch(state_dir), Gauge(policy.overload_s), lessons.Notes()
        self.device_files = dict(device_files or {})
        self.around = Around(spool.root, node, state_dir, settings)
        self.live: dict[int | str, Live] = {}  # by what their entries are called: `entry.unit`
        self.chunks: dict[int | str, Chunk] = {}  # those of them that are of arrays
        self.task_ends: list[tuple[Chunk, Finished]] = []  # results of their tasks that are not recorded yet
        self.unsettled: list[tuple[Placed, Placed]] = []  # claims whose outcome nobody knows yet
        self.ended, self.candidates = list[Finished](), list[Placed]()
        self.claims = Claims(state_dir, host.boot_id())
        self.presence = Presence(spool, node, policy, state_dir)
        self.last_work = host.boottime()
        self.retries: dict[tuple[int | str, int], float] = {}  # (unit, gen) of what waits in held/ -> when it may go on
        self.peers, self.placement, self.dependents = Peers(self), Placement(self), Dependents(self)
        self.queue, self.begins, self.pending = Queue(self), Due(self), Pending(self)
        self.whys: dict[int, tuple[float, str]] = {}
        self.carried_out: set[str] = set()  # requests that only have to be removed
        self._retry_s, self.poll_s, self._beats = RETRY_S[0], claim.BUSY_POLL_S, True
        self.looked = False  # since the last work, the queue had nothing that could start here
        self.intake = admission.intake(self)

    # --- the loop

    def run(self) -> int:
        """Until told to stop, or nothing is left to do if so asked; jobs that run go on running."""
        self.begin()
        if not self.sure:
            return 0  # told to stop before it had begun
        self.publish(self.presence.state)
        service.notify("READY=1\nSTATUS=serving " + self.spool.root)
        log.info("up node=%s spool=%s lends %s", self.node, self.spool.root, resources.show(self.capacity))
        while not self.stopping:
            self.turn()
            if self.finished():
                break
            claim.prepare_ahead(self)
            self.pause(self._timeout())
        return self.close()

    def begin(self) -> None:
        """Arrive on the node, and find out what an earlier daemon has left."""
        recover.come_up(self)
        while True:
            try:
                recover.compare_notes(self)
                break
            except Gone:  # the daemon before this one let it go, and it left just when we had connected
                self.family = Family.connect(self.state_dir)
        measure.devices(self, host.boottime())
        if self.sure:
            self.scratch.adopt({live.scratch for live in self.live.values() if live.scratch})
            self.around.tidy(self)

    def turn(self) -> None:
        """One step, whatever happens in it."""
        try:
            if not self.connected:
                self.family, self.connected = Family.connect(self.state_dir), True
            if not self.sure:
                recover.compare_notes(self)
            if self.sure:
                self.step()
        except Gone:
            log.warning("runner gone, connecting to its successor")
            self.connected = self.sure = False
        except (OSError, TryAgain) as error:
            self.trouble("recovery", error)
        if self.troubled:
            self.troubled = False
            self.pause(1.0)

    def step(self) -> None:
        """One turn; a part that the spool refuses is done again in a later turn and keeps back no other."""
        now = host.boottime()
        self.hear()
        if self.wake.clear():
            self.candidates, self.poll_s = [], claim.BUSY_POLL_S
            self._due.update(queue=0.0, control=0.0, drop=0.0)
        if self.around.busy or self.around.drain:
            self.part("steps", self.around.step, self)
            self.dependents.soon(now)
        self.part("start", claim.start_jobs, self, now)
        if self.chunks:
            self.part("chunks", chunk.advance, self)
        if (
            (self.ended or self.task_ends)
            and now >= self._due.get("deliver", 0.0)
            and not self.part("deliver", self.deliver_ended)
        ):
            self._due["deliver"] = now + self._retry_s
            self._retry_s = min(max(self._retry_s * 2, RETRY_S[0]), RETRY_S[1])
        if self.freed:  # a chunk is through, and what it held is free
            self.freed = False
            self.part("start", claim.start_jobs, self, now)
        if self.due("control", now, 1.0):
            self.part("drain", self.presence.heed)
            self.part("control", control.obey, self)
        if self.due("followed", now, 1.0):
            self.part("follow", control.sync_followed, self, now)
        if self.due("drop", now, 1.0) and not self.presence.draining:
            self.part("drop", admission.admit, self, now)
        measure.step(self, now)
        if self.pending.items:
            self.part("pools", self.pending.settle, now)
        if self.unsettled:
            self.part("claims", claim.settle_claims, self)
        self.part("retries", rerun.release_due, self, now)
        if self.notes.fresh and self.due("learn", now, lessons.LEARN_S):
            self.part("learn", self.notes.write, self.spool.root)
        self.part("held", self.dependents.step, now)
        self.part("begins", self.begins.step, now)
        if self.due("beat", now, self.policy.beat_s * random.uniform(0.8, 1.0)):  # noqa: S311  # jitter
            beats, self._beats = self._beats, self.part("beat", self.beat)
            if self._beats and not beats:  # the spool is back: results need not wait any longer
                self._retry_s = self._due["deliver"] = 0.0
            if self.presence.twin:
                log.error("another machine serves as node %s (%s): nothing is claimed", self.node, self.presence.twin)
            else:
                self.part("ghosts", recover.look_for_ghosts, self)
                if self.sure:
                    self.part("peers", self.peers.look)
            self.part("reload", self.reload.step, self, now)
            self.part("others", self.placement.look, now)
            self.set_due("news", 0.0)
        if now >= self.due_at("news") and (self.placement.news() or not self.due_at("news")):
            self.set_due("news", now + self.placement.every_s)
            self.part("node.json", self.publish, self.presence.state)
        if self.due("sweep", now, 600.0):
            self.part("sweep", recover.sweep, self)

    def part(self, what: str, action: Callable[..., None], *arguments: Any) -> bool:
        """One part of a turn; False if the spool refused it or does not answer: jobs go on, it is tried again."""
        try:
            action(*arguments)
        except Gone:
            raise
        except OSError as error:
            self.trouble(what, error)
            return False
        return True

    def trouble(self, what: str, error: Exception) -> None:
        """Say it, and do not hurry."""
        log.warning("spool %s error=%s file=%s", what, error, getattr(error, "filename", None) or "-")
        self.troubled = True

    def beat(self) -> None:
        """Beat, if this still is the spool that we serve, and renew the right to start jobs."""
        self.presence.beat()
        until = self.presence.began + self.policy.fence_s
        self.family.lease(until, fence=until)

    def _timeout(self) -> float:
        now = host.boottime()
        if self.unsettled or self.around.busy or self.pending.items:
            return 0.2
        queue = self._due.get("queue", 0.0) if claim.has_room(self) else now + claim.IDLE_POLL_S
        queue = min(queue, now + 30.0)  # the watchdog wants to be fed
        nearest = min(queue, *map(self.due_at, ("control", "drop", "beat", "held", "begins")))
        if self.ended or self.task_ends:
            nearest = min(nearest, self._due.get("deliver", 0.0))
        if self.placement.matters and self._due.get("news", 0.0) > now:
            nearest = min(nearest, self._due["news"])
        return max(0.0, nearest - now)

    def pause(self, seconds: float) -> None:
        """Wait for the runner, a local change, a signal, or the time."""
        service.feed_watchdog()
        poller = select.poll()
        poller.register(self.wake.fileno(), select.POLLIN)
        poller.register(self.family.fileno(), select.POLLIN | (select.POLLOUT if self.family.waiting else 0))
        poller.poll(int(seconds * 1000) + (1 if seconds > 0 else 0))

    def finished(self) -> bool:
        """Whether --once or --idle-exit says that it is over."""
        if (
            self.live
            or self.ended
            or self.task_ends
            or self.unsettled
            or self.pending.items
            or self.retries
            or self.intake.unfinished
        ):
            return False
        idle = 0.0 if self.limits.once else self.limits.idle_exit_s
        over = idle is not None and self.looked and host.boottime() - self.last_work >= idle
        return over and self.dependents.caught_up() and not self.around.busy

    def close(self) -> int:
        """Leave; what runs goes on, and its results wait in the journal for the next daemon."""
        if self.live:
            log.warning("stopping jobs=%d still run; the next daemon of this node takes them over", len(self.live))
        else:
            with contextlib.suppress(Gone):  # it has left already
                self.family.send({"op": "stop"})
        try:
            self.pending.close()
            self.notes.write(self.spool.root)
            self.publish("stopped")
        except OSError as error:
            log.warning("spool error=%s", error.strerror)
        self.wake.close()
        return 0

    # --- what the runner says

    def hear(self) -> None:
        """Take in all messages of the runner."""
        self.family.flush()
        for message in self.family.receive():
            self.take(message)

    def take(self, message: dict[str, Any]) -> None:
        """One message of the runner; what only confirms is passed over."""
        match message["op"]:
            case "started":
                self.around.told(message, chunk.live_of(self, message["id"], message["attempt"]))
            case "ended":
                self.take_end(message["id"], message["attempt"], message["ended"])
            case "refused":
                self.take_refusal(message["id"], message["attempt"], message["why"])
            case "usage":
                measure.take(self, message)
            case _:
                pass

    def take_end(self, job_id: int | str, attempt: int, ended: dict[str, Any]) -> None:
        """A job ended: what it held is free at once, its result is delivered soon."""
        self.bench.strays.pop((job_id, attempt), None)
        if isinstance(job_id, str):
            chunk.take_end(self, job_id, attempt, ended)
            return
        live = self.live.get(job_id)
        if live is None or live.at.entry.attempt != attempt or self.around.unfinished((job_id, attempt), ended):
            return
        again = self.around.judge((job_id, attempt), ended)
        del self.live[job_id]
        if live.scratch:
            self.scratch.give_back(live.scratch)
        lost = ended.get("reason") == "lost" and live.at.entry.rerun == "Y"  # fenced, and may run more than once
        item = Finished(live.at, ended, live.job, live.outputs, requeue=live.requeue or lost or again)
        item.peak_mb = live.peak_mb
        if not item.requeue and rerun.wanted(item):
            item.requeue = item.retry = True
        self.ended.append(item)
        self.last_work = host.boottime()
        self.looked = self.limits.once and self.looked
        if not self.candidates:
            self._due["queue"] = 0.0

    def take_refusal(self, job_id: int | str, attempt: int, why: str) -> None:
        """The runner did not start it (lease over, local disk full): the entry is given back, if it agrees."""
        if isinstance(job_id, str):
            chunk.take_refusal(self, job_id, attempt, why)
            return
        live = self.live.get(job_id)
        if live is None or live.at.entry.attempt != attempt:
            return
        log.warning("refused job=%d why=%s", job_id, why)
        self.drop_live(live)
        self.sure = False
        self._due["queue"] = host.boottime() + claim.IDLE_POLL_S

    def drop_live(self, live: Live) -> None:
        """Forget a claim that did not start."""
        self.live.pop(live.at.entry.unit, None)
        self.chunks.pop(live.at.entry.unit, None)
        self.around.forget((live.at.entry.unit, live.at.entry.attempt))
        chunk.clear(self, live)

    # --- delivering

    def deliver_ended(self) -> None:
        """Deliver what ended; what fails stays for a later turn, what is through is not done again."""
        outbox.deliver_ended(self)
        self._retry_s = RETRY_S[0]

    def publish(self, state: str) -> None:
        """node.json: what commands and people see of this node."""
        changing = {
            "capacity": self.capacity,
            **claim.facts(self),
            "measured": measure.facts(self),
            "busy": {name: sorted(numbers) for name, numbers in self.gauge.busy.items()},
            "jobs": len(self.live),
            **self.placement.facts(host.boottime()),
            "labels": self.labels,
            **({"pools": sorted(self.policy.pools)} if self.policy.pools else {}),
            **({"trouble": self.reload.trouble} if self.reload.trouble else {}),
            **self.bench.facts({job_id: live.devices for job_id, live in self.live.items()}),
        }
        self.presence.publish(state, changing)
