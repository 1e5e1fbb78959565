"""
`run -a`: the tasks of an array as if they ran here, one after another.

What a task wrote is shown when it has ended, whole and in one piece, in the order in which tasks end (as GNU parallel
does), so that no two mix and a pipe gets what a loop would have written. Which have ended is read off their results.
Invariant: each task is shown once, by the result that counts, and all of them before the outcome of the array is told.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from spoolq import array, awaiting, home, tasks
from spoolq.awaiting import Outcome
from spoolq.entry import Entry
from spoolq.job import Job
from spoolq.spool import Spool
from spoolq.tail import Following, Stream

MOST_NAP_S = 1.0  # Ctrl-C is heard after it


class Gathering(Following):
    """As `tail.Following`, of an array."""

    def __init__(
        self, spool: Spool, job_id: int, job: Job, streams: Sequence[Stream], *, verbose: bool = False
    ) -> None:
        """
        Nothing is looked at yet.

        Args:
            streams: which outputs of each task to show, and where.
            verbose: tell of each task that it ended, not only of those that failed.
        """
        super().__init__(spool, job_id, streams)
        self.job, self.verbose = job, verbose
        self.left = {number for some in array.parse(job.array).ranges for number in some}
        self.size = len(self.left)
        self.sure = float("-inf")
        self._look_s = 0.0

    def look(self) -> Outcome | None:
        """Show what has ended since; the outcome once all of the array has, and everything is out."""
        now = time.monotonic()
        names = self.names()
        self._show_ended(whole=False)
        self._look_s = time.monotonic() - now
        if self.left and now - self.sure < awaiting.SURE_S:
            return None
        self.sure = now
        self.started = self.started or "out" in names or self._runs()
        outcome = awaiting.ended_now(self.spool, {self.job_id}, sure=True).get(self.job_id)
        if outcome is not None:
            self._show_ended(whole=True)
        return outcome

    def nap(self) -> None:
        """Sleep until the next look, longer if results are many."""
        now = time.monotonic()
        least_s = min(awaiting.COST * self._look_s, MOST_NAP_S)
        awaiting.nap(max(now - self.active, min(now - self.began, 0.4)), least_s=least_s)

    def _runs(self) -> bool:
        """Whether some node has a part of it; asked until it is so."""
        return any(at.entry.id == self.job_id for node in self.spool.nodes() for at in self.spool.on_node(node))

    def _show_ended(self, *, whole: bool) -> None:
        """What is new; `whole`: the array has ended, so what each task came to is the last word."""
        found = tasks.of_tasks(tasks.read(self.spool.root, self.job_id))
        known = array.latest(line for line in found if line["task"] in self.left)
        ended = [line for line in known.values() if whole or array.settled(line, self.job.retries)]
        for line in sorted(ended, key=lambda line: (str(line.get("ended")), line["task"])):
            self.started, self.active = True, time.monotonic()
            self.left.discard(line["task"])
            if line.get("started") or line.get("exit_code") is not None:
                self._show(line)

    def _show(self, line: Mapping[str, Any]) -> None:
        """What one task wrote, and how it ended if that matters."""
        entry = Entry(rank=0, id=self.job_id, gen=0, attempt=line["attempt"], chunk=f"a{line['task']}")
        for stream in self.streams:
            one = Stream(self.spool, self.job_id, stream.name, stream.target)
            one.path = home.output_path(self.spool.root, entry, None, stream.name, {}, "/")
            one.listed = False
            one.pump([])
        if self.verbose or array.failed(line):
            done = f"; {self.size - len(self.left)} of {self.size} have ended" if self.verbose else ""
            sys.stderr.write(f"spoolq: job {entry.unit}: {line['state']} ({array.word_of(line)}){done}\n")
