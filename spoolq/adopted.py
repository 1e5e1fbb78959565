"""
Jobs that run and are not the runner's own children: begun by a runner that was killed.

A watcher is the parent of such a job, waits for it, and tells how it ended before it lets it go. Only
if the whole family died is nobody of ours the parent: then the kernel may still tell the status
(since 6.15, once pid 1 has reaped it), or the end is lost.
Invariant: a job is called lost only after it is gone and everything that watchers said was heard.
"""

import contextlib
import select
import time
from typing import TYPE_CHECKING

from spoolq import process
from spoolq.ending import End
from spoolq.journal import Key
from spoolq.runs import Act, Event, Run

if TYPE_CHECKING:
    from spoolq.runner import Runner

NEVER = float("inf")
UNSURE_S, RETRY_S = 0.05, 1.0
FOREIGN_S = 2.0  # an ended process of a dead family is waited for by pid 1; only then may its status be asked for


class Adopted:
    """Keeps an eye on the adopted jobs of one runner; `due`: when `settle` is, on CLOCK_MONOTONIC."""

    def __init__(self, runner: "Runner") -> None:
        self.runner, self.due = runner, NEVER
        self._unsure: dict[Key, float] = {}  # ended or lost, unless a watcher still tells; since when

    def take(self, run: Run) -> None:
        """A job as it was found; one that turned out to be our own child needs no eye."""
        self.runner.retime(run)
        if not run.own:
            if run.handle is not None and run.handle.fd >= 0:
                self.runner.poll.register(run.handle.fd, select.POLLIN)
            else:
                self._doubt(run)

    def drop(self, run: Run) -> None:
        """It is over."""
        self._unsure.pop(run.key, None)
        if run.handle is not None:
            if run.handle.fd >= 0:
                self._unpoll(run.handle.fd)
            run.handle.close()
            run.handle = None

    def _unpoll(self, fd: int) -> None:
        with contextlib.suppress(KeyError):  # it may have shown its end already
            self.runner.poll.unregister(fd)

    def ended(self, fd: int) -> None:
        """A pidfd is readable: its process has ended, and a watcher says how."""
        # in the same turn a watcher may have told of it already; then its descriptor is closed
        for run in self.runner.by_pid.values():
            if run.handle is not None and run.handle.fd == fd:
                self._unpoll(fd)
                self._doubt(run)

    def _doubt(self, run: Run) -> None:
        now = time.monotonic()
        self._unsure[run.key] = now
        self.due = min(self.due, now + UNSURE_S)

    def settle(self, now: float) -> None:
        """Decide about what is unsure, after what watchers have said since it was looked at."""
        family = self.runner.kin.ancestors()
        runs = [(self.runner.runs[key], since) for key, since in self._unsure.items()]
        stats = [(run, since, run.handle.stat() if run.handle else None) for run, since in runs]
        self.runner.hear_watchers()
        self.due = NEVER
        for run, since, stat in stats:
            if not run.live:
                continue
            if stat and (stat.state not in "ZX" or stat.parent in family or now - since < FOREIGN_S):
                self.due = min(self.due, now + (UNSURE_S if stat.state in "ZX" else RETRY_S))
                continue
            status = run.handle.status() if run.handle and not run.unsure else None
            at = time.time() - (now - since)
            if status is not None:
                self.runner.finish(run, End(*process.split(status), None, "", at, "pidfd"))
            else:
                run.reason = run.reason or Event.FENCE.value
                run.detail = run.detail or "the runner and all watchers were killed: how it ended is not known"
                self.runner.finish(run, End(None, None, None, "", at, "nothing"))
            self.runner.enforcer.act(run, Act.KILL)  # its orphans did not come to us
