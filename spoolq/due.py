"""
Let jobs into the queue whose begin time has come: any node does that sees it.

Held entries are listed every few seconds, more rarely where there are very many; what begins before
the next look is remembered and released on time. All nodes see the same, so each waits a little for
those that come before it in an order that differs from job to job, and mostly one rename is made.
A crash leaves the entry in held/ or in queue/; the next look, of any node, goes on from there.
"""

import logging
import time
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from spoolq import begin, host
from spoolq.fsops import Answer
from spoolq.spool import Placed

if TYPE_CHECKING:
    from spoolq.daemon import Daemon

log = logging.getLogger("spoolq")

LOOK_S = 5.0  # between looks into held/
COST, MOST_S = 100, 60.0  # times what a look took, at least, until the next; one that hung for an hour is no measure
PLACES, PLACE_S = 10, 0.5  # who comes later in the order of a job waits so long for each before it


class Due:
    """What one daemon knows of jobs that wait for their time."""

    def __init__(self, daemon: "Daemon") -> None:
        """Nothing is known yet."""
        self.daemon = daemon
        self.times: dict[tuple[int | str, int], float] = {}  # (unit, gen) -> when to release it, s of CLOCK_BOOTTIME

    def step(self, now: float) -> None:
        """List what waits, if that is due, and release what may begin."""
        if now < self.daemon.due_at("begins"):
            return
        if self.daemon.due("begin times", now, LOOK_S):
            self.list(now)
            took = host.boottime() - now
            self.daemon.set_due("begin times", now + max(LOOK_S, took + min(MOST_S, COST * took)))
        released: list[Placed] = []
        for key in [key for key, when in self.times.items() if when <= now]:
            del self.times[key]
            released += self.release(*key)
        if released:
            self.daemon.spool.committed(released)
            self.daemon.last_work, self.daemon.looked = now, False
            self.daemon.set_due("queue", 0.0)
        self.daemon.set_due("begins", min([self.daemon.due_at("begin times"), *self.times.values()]))

    def list(self, now: float) -> None:
        """All that waits for its time, by the clock of this machine as it is now."""
        wall = time.time()
        self.times = {}
        for at in self.daemon.spool.waiting("held"):
            if at.entry.held == begin.HELD:
                wait_s = (begin.begins(at.entry) or 0) - wall
                self.times[at.entry.unit, at.entry.gen] = now + wait_s + PLACE_S * self.place(at.entry.id)

    def place(self, job_id: int) -> int:
        """How many live nodes come before this one where a job is concerned."""
        mine = _key(job_id, self.daemon.node)
        return min(PLACES, sum(_key(job_id, other.name) < mine for other in self.daemon.placement.others))

    def release(self, unit: int | str, gen: int) -> Iterator[Placed]:
        """One of them, if it is still as it was; where it is then."""
        at = self.daemon.spool.lookup("held", unit)
        if at is None or at.entry.gen != gen:
            return
        answer, target = self.daemon.spool.release(at)
        if answer is Answer.WON:
            log.info("begins job=%s", unit)
            yield target


def _key(job_id: int, node: str) -> int:
    return zlib.crc32(f"{job_id}.{node}".encode())
