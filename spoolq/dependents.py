"""
The node's part in dependencies: jobs in held/ that wait for their parents (HD), released when these have ended.

Whoever ends a parent releases its children at once, as far as it knows them; and every node looks at all that
wait again and again. The second alone is enough (it asks what is, not what has happened), so no wake-up is
lost when a parent ends while its child is submitted, when the finisher dies between the parent's end and the
release, when the parent is run again or swept away. A job without children costs no call: a dictionary is asked.
Model: tests/model/dependency.
"""

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from spoolq import home, host, parents, recover, stored
from spoolq.depend import Answer, id_of
from spoolq.errors import JobFileError, SpoolqError
from spoolq.job import Job
from spoolq.parents import Parents
from spoolq.spool import Placed

if TYPE_CHECKING:
    from spoolq.daemon import Daemon

log = logging.getLogger("spoolq")

LOOK_S, SOON_S = 2.0, 0.2  # between looks at held/; after a change on this machine
COST, MOST_S = 20, 60.0  # times as long as the last look took, at least; one that hung for an hour is no measure
SURE_S = 30.0  # between looks for parents that are nowhere any more
READ_S = 0.5  # of one look for reading the job files of new ones; the rest next time


class Child(NamedTuple):
    """A job that waits for others."""

    at: Placed
    job: Job


class Dependents:
    """What one node knows of the jobs that wait for others."""

    def __init__(self, daemon: "Daemon") -> None:
        """Nothing is known yet."""
        self.daemon = daemon
        self.over: list[int] = []  # ids of jobs that this node has ended since the last step
        self.looked_at = 0.0
        self._known: dict[tuple[int, str], Child] = {}
        self._of: dict[int, set[tuple[int, str]]] = {}  # parent -> children

    def caught_up(self) -> bool:
        """Whether there was a look since the last job ended, whose children may not have been known; else look soon."""
        if self.looked_at < self.daemon.last_work:
            self.daemon.set_due("held", 0.0)
            return False
        return True

    def soon(self, now: float) -> None:
        """Something changed on this machine: do not wait for the usual time."""
        self.daemon.set_due("held", min(self.daemon.due_at("held"), now + SOON_S))

    def step(self, now: float) -> None:
        """Children of what ended here, and everything when it is time."""
        over, self.over = self.over, []
        self._follow(over)
        if now >= self.daemon.due_at("held"):
            self.look(now)

    def look(self, now: float) -> None:
        """All jobs that wait for others: read what is new, and judge each anew."""
        began = host.boottime()
        self.daemon.set_due("held", now + LOOK_S)
        held = [at for at in self.daemon.spool.waiting("held") if at.entry.held == "HD"]
        known = {}
        for at in held:
            key = (at.entry.id, at.entry.chunk)
            if child := self._known.get(key):
                known[key] = child._replace(at=at)
            elif host.boottime() - began < READ_S and (job := self._read(at)):
                known[key] = Child(at, job)
        self._remember(known)
        sure = bool(known) and self.daemon.due("parents", now, SURE_S)
        self._follow(self._settle(list(known), Parents(self.daemon.spool, sure=sure)))
        self.looked_at = now
        took = host.boottime() - began
        self.daemon.set_due("held", now + max(LOOK_S, took + min(MOST_S, COST * took)))

    def _remember(self, known: dict[tuple[int, str], Child]) -> None:
        if known.keys() != self._known.keys():
            self._of = {}
            for key, child in known.items():
                for condition in parents.of_job(child.job):
                    self._of.setdefault(id_of(condition.parent), set()).add(key)
        self._known = known

    def _read(self, at: Placed) -> Job | None:
        """Its job file; None if that cannot be read now."""
        root, job_id = self.daemon.spool.root, at.entry.id
        try:
            job = stored.read_job(home.read_job(root, job_id), f"{home.path_of(root, job_id)}/job")
            parents.of_job(job)
        except JobFileError as error:  # it can never run: whoever claims it ends it and says why
            log.warning("job=%d is let go error=%s", job_id, error)
            return Job(command=("?",))
        except (OSError, SpoolqError) as error:
            log.warning("not read job=%d error=%s", job_id, error)
            return None
        return job

    def _follow(self, over: Iterable[int]) -> None:
        """Those who wait for jobs that have just ended; a child that ends by that may have children of its own."""
        ids = list(over)
        while keys := sorted({key for job_id in ids for key in self._of.get(job_id, ()) if key in self._known}):
            ids = self._settle(keys, Parents(self.daemon.spool, sure=False))

    def _end(self, at: Placed, why: str) -> None:
        self.daemon.around.end(self.daemon, at, "cancelled", why)

    def _settle(self, keys: Iterable[tuple[int, str]], look: Parents) -> list[int]:
        """Judge and act; the ids of those that ended."""
        daemon, released, ended = self.daemon, [], []
        for key in keys:
            at, job = self._known[key]
            with recover.spared(at):
                verdict, target = parents.settle(daemon.spool, at, job, look, self._end)
                stays = verdict.answer is Answer.NEVER and job.kill_on_invalid_dep != "yes"
                if verdict.answer is Answer.WAITS or stays:
                    continue
                del self._known[key]  # whatever became of the rename, the next listing tells
                if target:
                    log.info("released job=%d: what it waited for is fulfilled", at.entry.id)
                    released.append(target)
                elif verdict.answer is Answer.NEVER:
                    log.info("ended job=%d: %s", at.entry.id, verdict.text)
                    ended.append(at.entry.id)
        if released:
            daemon.spool.committed(released)
            daemon.last_work, daemon.looked = host.boottime(), False
            daemon.set_due("queue", 0.0)
        return ended
