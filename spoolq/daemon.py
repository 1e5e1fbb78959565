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
import os
import random
import select
import time
from collections.abc import Callable
from typing import Any

from spoolq import __version__, chunk, claim, control, deliver, host, recover, rerun, resources, schedule, service, ship
from spoolq.channel import Family, Gone, say_program
from spoolq.chunk import Chunk
from spoolq.claims import Claims
from spoolq.config import Policy
from spoolq.deliver import Finished
from spoolq.errors import TryAgain
from spoolq.intake import Intake
from spoolq.job import Job
from spoolq.launch import Launcher
from spoolq.live import Limits, Live
from spoolq.local import Scratch
from spoolq.peers import Peers
from spoolq.presence import Presence
from spoolq.resources import Amounts
from spoolq.spool import Placed, Spool
from spoolq.wake import Wake

log = logging.getLogger("spoolq")

MEASURE_S = 5.0
RETRY_S = (1.0, 60.0)  # between tries to deliver to a spool that refuses


class Daemon:
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
    ) -> None:
        """
        Set up; `run` does the rest.

        Args:
            capacity: what the node has to lend, thousandths.
            measured: whether measured load counts; not if the capacity is more than the machine has.
            state_dir: node-local directory of the journal.
            groups: a delegated cgroup v2 directory for the jobs, or None.
        """
        self.spool, self.policy, self.node = spool, policy, node
        self.capacity, self.measured, self.state_dir, self.limits = dict(capacity), measured, state_dir, limits
        self.wake, self.stopping, self.renewed = wake, False, False
        # sure: what is live here is what the runner knows; incomplete: a result.json is missing
        self.sure = self.troubled = self.incomplete = self.freed = False
        self.family, self.connected = Family.connect(state_dir), True
        self.launcher = Launcher(spool, node, state_dir=state_dir, groups=groups)
        self.scratch, self.meter = Scratch(state_dir), host.Meter()
        self.live: dict[int | str, Live] = {}  # by what their entries are called: `entry.unit`
        self.chunks: dict[int | str, Chunk] = {}  # those of them that are of arrays
        self.task_ends: list[tuple[Chunk, Finished]] = []  # results of their tasks that are not recorded yet
        self.unsettled: list[tuple[Placed, Placed]] = []  # claims whose outcome nobody knows yet
        self.ended: list[Finished] = []
        self.candidates: list[Placed] = []
        self.claims = Claims(state_dir, host.boot_id())
        self.presence = Presence(spool, node, policy, state_dir)
        self.last_work = host.boottime()
        self._due: dict[str, float] = {}
        self.retries: dict[tuple[int | str, int], float] = {}  # (unit, gen) of what waits in held/ -> when it may go on
        self.peers = Peers(self)
        self.whys: dict[int, tuple[float, str]] = {}
        self.carried_out: set[str] = set()  # requests that only have to be removed
        self._retry_s, self.poll_s = RETRY_S[0], claim.BUSY_POLL_S
        self.looked = False  # since the last work, the queue had nothing that could start here
        self.intake = Intake(
            spool,
            node,
            settle_s=policy.settle_s,
            any_owner=policy.drop_any_owner,
            base=policy.job_fields(),
            check=self.refusal,
        )

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
        recover.compare_notes(self)
        if self.sure:
            self.scratch.adopt({live.scratch for live in self.live.values() if live.scratch})

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
        self.part("start", claim.start_jobs, self, now)
        if self.chunks:
            self.part("chunks", chunk.advance, self)
        if (
            (self.ended or self.task_ends)
            and now >= self._due.get("deliver", 0.0)
            and not self.part("deliver", self.deliver_ended)
        ):
            self._due["deliver"] = now + self._retry_s
            self._retry_s = min(self._retry_s * 2, RETRY_S[1])
        if self.freed:  # a chunk is through, and what it held is free
            self.freed = False
            self.part("start", claim.start_jobs, self, now)
        if self.due("control", now, 1.0):
            self.part("drain", self.presence.heed)
            self.part("control", control.obey, self)
        if self.due("followed", now, 1.0):
            self.part("follow", control.sync_followed, self, now)
        if self.due("drop", now, 1.0) and not self.presence.draining:
            self.part("drop", self.admit, now)
        if self.due("measure", now, MEASURE_S):
            self.measure()
        if self.unsettled:
            self.part("claims", claim.settle_claims, self)
        self.part("retries", rerun.release_due, self, now)
        if self.due("beat", now, self.policy.beat_s * random.uniform(0.8, 1.0)):  # noqa: S311  # jitter
            self.part("beat", self.beat)
            if self.presence.twin:
                log.error("another machine serves as node %s (%s): nothing is claimed", self.node, self.presence.twin)
            else:
                self.part("ghosts", recover.look_for_ghosts, self)
                if self.sure:
                    self.part("peers", self.peers.look)
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

    def admit(self, now: float) -> None:
        """Make jobs of what was dropped."""
        if self.intake.step(time.monotonic()):
            self.last_work, self.looked, self.candidates = now, False, []
            self._due["queue"] = 0.0

    def beat(self) -> None:
        """Beat, if this still is the spool that we serve, and renew the right to start jobs."""
        self.presence.beat()
        until = self.presence.began + self.policy.fence_s
        self.family.lease(until, fence=until)

    def due(self, what: str, now: float, every_s: float) -> bool:
        """Whether it is time for something periodic; sets the next time."""
        if now < self._due.get(what, 0.0):
            return False
        self._due[what] = now + every_s
        return True

    def due_at(self, what: str) -> float:
        """When something periodic is due next, s of CLOCK_BOOTTIME."""
        return self._due.get(what, 0.0)

    def set_due(self, what: str, at: float) -> None:
        """Make it due then."""
        self._due[what] = at

    def _timeout(self) -> float:
        now = host.boottime()
        if self.unsettled:
            return 0.2
        queue = self._due.get("queue", 0.0) if claim.has_room(self) else now + claim.IDLE_POLL_S
        queue = min(queue, now + 30.0)  # the watchdog wants to be fed
        nearest = min([queue, *(self._due.get(what, 0.0) for what in ("control", "drop", "beat"))])
        if self.ended or self.task_ends:
            nearest = min(nearest, self._due.get("deliver", 0.0))
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
        if self.live or self.ended or self.task_ends or self.unsettled or self.retries or self.intake.unfinished:
            return False
        idle = 0.0 if self.limits.once else self.limits.idle_exit_s
        return idle is not None and self.looked and host.boottime() - self.last_work >= idle

    def close(self) -> int:
        """Leave; what runs goes on, and its results wait in the journal for the next daemon."""
        if self.live:
            log.warning("stopping jobs=%d still run; the next daemon of this node takes them over", len(self.live))
        else:
            self.family.send({"op": "stop"})
        try:
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
            case "ended":
                self.take_end(message["id"], message["attempt"], message["ended"])
            case "refused":
                self.take_refusal(message["id"], message["attempt"], message["why"])
            case "usage":
                self.take_usage(message)
            case _:
                pass

    def renew(self, version: str) -> None:
        """After an upgrade: the family executes the new program in place; its jobs stay its children."""
        if version != __version__ and not self.renewed:
            log.info("renewing the runner from=%s to=%s", version, __version__)
            self.renewed = True
            say_program(self.state_dir)
            self.family.send({"op": "reexec"})

    def take_end(self, job_id: int | str, attempt: int, ended: dict[str, Any]) -> None:
        """A job ended: what it held is free at once, its result is delivered soon."""
        if isinstance(job_id, str):
            chunk.take_end(self, job_id, attempt, ended)
            return
        live = self.live.get(job_id)
        if live is None or live.at.entry.attempt != attempt:
            return
        del self.live[job_id]
        if live.scratch:
            self.scratch.give_back(live.scratch)
        lost = ended.get("reason") == "lost" and live.at.entry.rerun == "Y"  # fenced, and may run more than once
        item = Finished(live.at, ended, live.job, live.outputs, requeue=live.requeue or lost)
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
        for fd in live.outputs:
            with contextlib.suppress(OSError):
                os.close(fd)
        live.outputs = ()
        if live.scratch:
            self.scratch.give_back(live.scratch)

    # --- delivering

    def deliver_ended(self) -> None:
        """Deliver what ended; what fails stays for a later turn, what is through is not done again."""
        if self.task_ends:
            chunk.record_ends(self)
            chunk.advance(self)
        ready, failed = ship.ship_all(self.spool, self.state_dir, self.ended)
        try:
            deliver.deliver(self.spool, self.node, ready, lambda item: rerun.requeue_ended(self, item))
            if failed:
                raise failed
            self._retry_s = RETRY_S[0]
        finally:
            through = [item for item in self.ended if item.through]
            self.ended = [item for item in self.ended if not item.through]
            for item in through:
                entry = item.at.entry
                word = "late" if item.late else "requeued" if item.requeue else item.ending
                log.info("ended job=%d attempt=%d %s", entry.id, entry.attempt, word)
                ship.forget(self.state_dir, (entry.id, entry.attempt))
            recover.note_lost(self)
            self.family.send({"op": "forget", "jobs": [[i.at.entry.id, i.at.entry.attempt] for i in through]})

    # --- measuring

    def measure(self) -> None:
        """Ask the runner what the jobs use; the answer comes as a message."""
        if self.measured and (self.live or self.due("measure idle", host.boottime(), 2 * MEASURE_S)):
            self.family.send({"op": "usage"})

    def take_usage(self, message: dict[str, Any]) -> None:
        """What the family and its jobs have used; the rest of the machine's load is foreign."""
        times = os.times()
        self.meter.sample(message["cpu_s"] + times.user + times.system)
        for key, used in message["jobs"].items():
            unit, _, attempt = key.rpartition(".")
            of_array = chunk.of_run(self, unit, int(attempt))
            if live := of_array.live if of_array else self.live.get(int(unit) if unit.isdigit() else unit):
                live.rss_mb = int(used["rss_mb"])

    def publish(self, state: str) -> None:
        """node.json: what commands and people see of this node."""
        changing = {
            "capacity": self.capacity,
            "allocated": resources.add(*(live.at.entry.wants for live in self.live.values())),
            "free": claim.free(self),
            "measured": self.meter.facts() if self.measured else None,
            "jobs": len(self.live),
        }
        self.presence.publish(state, changing)

    def refusal(self, job: Job) -> str | None:
        """Why no known node could ever run a job, or None."""
        return schedule.impossible(job.wants, {self.node: self.capacity, **recover.capacities(self)})
