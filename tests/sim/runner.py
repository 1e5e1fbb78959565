"""
The runner of a simulated machine: parent of its jobs, separate from the daemon, killed alone or with others.

It keeps the promises of the real one (`orders`, `takeover`): a start is written down before it is made,
refused when the lease or its own `until` is over; jobs of rule yes are killed when the fence is over; an
end is kept until it is forgotten, and is durable a second later; a new daemon replaces the old one and
is told everything. It writes the truth of each job into the trace: start, end, exit code.
"""

import itertools
from typing import Any

from spoolq import __version__
from spoolq.channel import Gone
from tests.sim.kernel import Actor
from tests.sim.seam import READABLE

Key = tuple[int | str, int]  # of a task `42_7`


class Connection:
    """The daemon's end of one connection, and what is on its way in both directions."""

    waiting = False

    def __init__(self, runner: "Runner", actor: Actor) -> None:
        self.runner, self.actor = runner, actor
        self.to_runner: list[dict[str, Any]] = []
        self.to_daemon: list[dict[str, Any]] = []
        self.open = True

    def fileno(self) -> int:
        return READABLE["family"]

    def send(self, message: dict[str, Any], fds: Any = ()) -> None:
        if not self.open:
            raise Gone("closed by the other end")
        self.to_runner.append(message)
        self.runner.soon()

    def hello(self, **said: Any) -> None:
        self.send({"op": "hello", "until": said.get("lease"), "fence": said.get("fence")})

    def lease(self, until: float, *, fence: float | None = None) -> None:
        self.send({"op": "lease", "until": until, "fence": fence})

    def flush(self) -> None:
        return None

    def receive(self) -> list[dict[str, Any]]:
        found, self.to_daemon = self.to_daemon, []
        if not (found or self.open):
            raise Gone("closed by the other end")
        return found

    def close(self) -> None:
        self.open = False


class Job:
    """What runs, ran, or may have."""

    def __init__(self, message: dict[str, Any], duration_s: float, code: int) -> None:
        self.key = (message["id"], message["attempt"])
        self.gen, self.rerun, self.scratch = message["gen"], message["rerun"], message["scratch"]
        self.limit_s = message["limit_s"]
        self.code, self.left_s, self.since = code, duration_s, 0.0
        self.state, self.stage = "running", "running"
        self.ended: dict[str, Any] | None = None
        self.ended_at = 0.0
        self.alarm = 0  # number of the timer that counts
        self.orphan = False  # its whole family was killed: nobody will know how it ends

    def known(self) -> dict[str, Any]:
        """As the daemon is told."""
        return {
            "id": self.key[0],
            "attempt": self.key[1],
            "gen": self.gen,
            "state": self.state,
            "stage": self.stage,
            "scratch": self.scratch,
            "ended": dict(self.ended) if self.ended else None,
        }


class Runner:
    """Of one machine; `die` and `power_off` are the faults."""

    def __init__(self, machine: Any) -> None:
        self.machine, self.kernel, self.log = machine, machine.kernel, machine.log
        self.jobs: dict[Key, Job] = {}
        self.connection: Connection | None = None
        self.greeted, self.alive = False, False
        self.lease, self.fence = 0.0, float("inf")
        self.frozen_until = 0.0
        self._busy = False
        self._fence_alarm = 0
        self._noted: tuple[int, float] | None = None  # the fence on the local disk: boot, until
        self._numbers = itertools.count(1)
        self.life = 0  # number of this runner process
        self.dies_at_start: list[str] = []  # what happens at the next starts: `before` or `after` the spawn

    # --- the channel

    def connect(self, actor: Actor) -> Connection:
        """A daemon comes; the old one's unread words are dropped."""
        if not self.alive:
            self._begin()
        if self.connection:
            self.connection.open = False
        self.connection, self.greeted = Connection(self, actor), False
        return self.connection

    def _begin(self) -> None:
        self.alive, self.lease, self.fence = True, 0.0, float("inf")
        self.life += 1
        if self._noted and self._noted[0] == self.machine.boots:
            self.fence = self._noted[1]
        elif any(job.state == "running" for job in self.jobs.values()):
            self.fence = 0.0  # unknown, with jobs that live: they may run elsewhere already
        for job in self.jobs.values():
            if job.orphan and job.state == "running" and job.stage == "gone":
                self._note_end(job, None, "lost")
        if self.fence < float("inf"):
            self._watch_fence()

    def soon(self) -> None:
        """Something was sent: read it in a moment."""
        if not self._busy:
            self._busy = True
            self.kernel.at(max(self.kernel.now + 0.002, self.frozen_until), self._converse)

    def _converse(self) -> None:
        self._busy = False
        connection, life = self.connection, self.life
        if not (self.alive and connection):
            return
        if self.frozen_until > self.kernel.now:
            self.soon()
            return
        messages, connection.to_runner = connection.to_runner, []
        for message in messages:
            if self.life != life or not self.alive:
                return  # died over the last one: the rest is lost with its socket
            self._obey(message)

    def _tell(self, message: dict[str, Any]) -> None:
        connection = self.connection
        if connection and self.greeted and connection.open:
            connection.to_daemon.append(message)
            self.kernel.wake(connection.actor)

    # --- orders

    def _obey(self, message: dict[str, Any]) -> None:
        op = message["op"]
        job = self.jobs.get((message.get("id", 0), message.get("attempt", 0)))
        live = job if job and job.state == "running" else None
        if op in ("hello", "lease"):
            if message["until"] is not None:
                self.lease = message["until"]
            if message["fence"] is not None:
                self.fence = message["fence"]
                self._noted = self.machine.boots, self.fence
                self._watch_fence()
        if op == "hello":
            self.greeted = True
            known = [job.known() for job in self.jobs.values()]
            self._tell({"op": "known", "version": __version__, "jobs": known})
        elif op == "start":
            self._start(message)
        elif op == "kill" and live:
            self._end(live, 143, "cancelled", signal=15)
        elif op in ("suspend", "resume") and live:
            self._pause(live, op == "suspend")
        elif op == "forget":
            for key in message["jobs"]:
                found = self.jobs.get(tuple(key))
                if found and found.state != "running":
                    del self.jobs[found.key]
        elif op == "stop" and not self.jobs:
            self.die(whole=True)

    def _refusal(self, message: dict[str, Any]) -> str:
        now = self.machine.clock()
        if (message["id"], message["attempt"]) in self.jobs:
            return "this attempt is known already"
        if now > self.lease:
            return "the lease is over"
        return ""

    def _start(self, message: dict[str, Any]) -> None:
        why = self._refusal(message)
        if why:
            said = {"id": message["id"], "attempt": message["attempt"], "gen": message["gen"], "why": why}
            self._tell({"op": "refused", **said})
            return
        dies = self.dies_at_start.pop(0) if self.dies_at_start else ""
        if dies.startswith("before"):
            # `go` is in the journal; with one of the family alive it is known that nothing was started
            if dies == "before whole":
                job = Job(message, 0.0, 0)
                job.state, job.stage = "doubtful", "doubtful"
                self.jobs[job.key] = job
            self.die(whole=dies == "before whole")
            return
        duration_s, code = self.machine.work(message["id"], message["attempt"])
        job = self.jobs[message["id"], message["attempt"]] = Job(message, duration_s, code)
        rate, until = self.machine.rate, message.get("until")
        facts = {
            "rerun": job.rerun,
            "clock": self.machine.clock(),
            "until": until,
            "rate": rate,
            "boot": self.machine.boots,
        }
        self.log((self.kernel.now, "start", self.machine.name, *job.key, facts))
        self._go_on(job)
        if dies:
            self.die(whole=dies == "after whole")

    def _go_on(self, job: Job) -> None:
        job.since, job.alarm = self.kernel.now, next(self._numbers)
        alarm, boots = job.alarm, self.machine.boots
        limited = job.limit_s is not None and job.limit_s < job.left_s
        left_s = job.limit_s if limited else job.left_s

        def over() -> None:
            if job.alarm != alarm or job.state != "running" or self.machine.boots != boots or job.stage == "gone":
                return
            if self.frozen_until > self.kernel.now:
                self.kernel.at(self.frozen_until, over)
            elif limited:
                self._end(job, 143, "timeout", signal=15)
            else:
                self._end(job, job.code, "")

        self.kernel.at(self.kernel.now + left_s, over)

    def _pause(self, job: Job, pause: bool) -> None:
        if pause and job.stage == "running":
            spent_s = self.kernel.now - job.since
            job.stage, job.left_s, job.alarm = "paused", max(0.0, job.left_s - spent_s), -1
        elif not pause and job.stage == "paused":
            job.stage = "running"
            self._go_on(job)

    # --- ends

    def _end(self, job: Job, code: int, reason: str, signal: int | None = None) -> None:
        self.log((self.kernel.now, "end", self.machine.name, *job.key, {"reason": reason, "code": code}))
        job.alarm = -1
        if not self.alive:
            job.stage = "gone"  # seen by nobody, or by a watcher: then the next runner reads it there
            if not job.orphan:
                self._note_end(job, None if signal else code, reason, signal)
            return
        lost = job.orphan
        self._note_end(job, None if signal or lost else code, "lost" if lost else reason, None if lost else signal)

    def _note_end(self, job: Job, code: int | None, reason: str, signal: int | None = None) -> None:
        wall = self.machine.wall()
        job.state, job.stage, job.ended_at = "ended", "over", self.kernel.now
        job.ended = {"exit_code": code, "signal": signal, "reason": reason, "detail": reason, "started": wall - 1.0}
        job.ended |= {"ended": wall, "wall_s": 1.0, "rusage": {"user_s": 0.5}, "measured_by": "wait4"}
        self._tell({"op": "ended", "id": job.key[0], "attempt": job.key[1], "ended": dict(job.ended)})

    def _watch_fence(self) -> None:
        self._fence_alarm += 1
        number = self._fence_alarm

        def over() -> None:
            if number != self._fence_alarm or not self.alive:
                return
            clock = self.machine.clock()
            if self.frozen_until > self.kernel.now:
                self.kernel.at(self.frozen_until, over)
            elif clock <= self.fence:
                self.kernel.at(self.kernel.now + (self.fence - clock) / self.machine.rate + 0.01, over)
            else:
                for job in list(self.jobs.values()):
                    if job.rerun == "Y" and job.state == "running" and job.stage != "gone":
                        self._end(job, 137, "lost", signal=9)

        self.kernel.at(self.kernel.now + max(0.0, self.fence - self.machine.clock()) / self.machine.rate + 0.01, over)

    # --- faults

    def die(self, *, whole: bool) -> None:
        """SIGKILL of the runner, or with `whole` of all its family; jobs go on."""
        if not self.alive:
            return
        self.alive, self.greeted = False, False
        connection, self.connection = self.connection, None
        if connection:
            connection.open, connection.to_runner = False, []
            self.kernel.wake(connection.actor)
        if whole:
            for job in self.jobs.values():
                job.orphan = job.orphan or job.state == "running"
        else:
            self.kernel.at(self.kernel.now + 0.05, self._succeed)

    def _succeed(self) -> None:
        if not self.alive and self.machine.up:
            self._begin()

    def power_off(self) -> None:
        """Everything dies; an end is still known after it if it was synced."""
        self.alive, self.greeted, self.connection = False, False, None
        for key, job in list(self.jobs.items()):
            if job.state == "running" and job.stage != "gone":
                self.log((self.kernel.now, "end", self.machine.name, *key, {"reason": "power", "code": None}))
            job.alarm = -1
            if job.state != "ended" or self.kernel.now - job.ended_at < 1.0:
                del self.jobs[key]
        self.dies_at_start.clear()
