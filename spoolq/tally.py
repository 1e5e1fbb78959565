"""
What a command can know of an array: which of its tasks wait, run, have ended, and how.

From its entries, its job file and the results of its tasks. Which task of a running chunk runs now only its node knows;
shown as running is the first that has no result.
Invariant: changes nothing; a task has one state.
"""

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

from spoolq import array, tasks
from spoolq.errors import SpoolqError
from spoolq.job import Job
from spoolq.spool import Placed, Spool
from spoolq.state import State, of_ending, shell_code


def job_of(spool: Spool, job_id: int) -> Job | None:
    """The job file, or None if it is gone or unreadable."""
    from spoolq import home, stored

    try:
        return stored.read_job(home.read_job(spool.root, job_id), "job")
    except (OSError, SpoolqError):
        return None


def spec_of(spool: Spool, job_id: int) -> array.Spec | None:
    """The tasks of an array; None if it is none."""
    job = job_of(spool, job_id)
    return array.parse(job.array) if job and job.array else None


class Tally:
    """One array, as it was when each part was looked at first."""

    def __init__(self, spool: Spool, job_id: int, chunks: Iterable[Placed]) -> None:
        """
        The job file is read.

        Args:
            chunks: its entries, or those that matter.
        """
        self.spool, self.id, self.chunks = spool, job_id, list(chunks)
        self.job = job_of(spool, job_id)
        self.spec = array.parse(self.job.array) if self.job and self.job.array else array.Spec(())

    @cached_property
    def lines(self) -> list[tasks.Line]:
        """All that is written about its tasks."""
        return tasks.read(self.spool.root, self.id)

    @cached_property
    def known(self) -> Mapping[int, Mapping[str, Any]]:
        """The line that counts for each task, whatever its chunk does now."""
        return array.latest(tasks.of_tasks(self.lines))

    @cached_property
    def _states(self) -> dict[int, tuple[State, str, Placed]]:
        found = {}
        for at in self.chunks:
            due = set(array.due(at.entry, self.spec, self.known, self.job.retries if self.job else 0))
            runs = at.top == "running"
            for number in array.tasks_of(self.spec, at.entry.chunk):
                line = self.known.get(number)
                if line is not None and (number not in due or at.top == "done") and line["state"] != "PENDING":
                    found[number] = (State[line["state"]], array.word_of(line), at)
                elif at.top == "done":
                    word = at.entry.ending or "nodefail"
                    found[number] = (of_ending(word), word, at)
                else:
                    found[number] = (at.state if not runs or number == min(due) else State.PENDING, "", at)
        return found

    def state(self, number: int) -> State:
        """Of one task."""
        return self._states[number][0]

    def ended(self, number: int) -> str:
        """How a task ended, or empty."""
        return self._states[number][1] if number in self._states else ""

    def chunk_of(self, number: int) -> Placed | None:
        """The chunk that holds a task."""
        return self._states[number][2] if number in self._states else None

    def code(self, number: int) -> int:
        """The exit code that a shell would see."""
        return shell_code(self.ended(number))

    def by_state(self) -> dict[State, list[int]]:
        """The tasks in each state."""
        found: dict[State, list[int]] = {}
        for number in sorted(self._states):
            found.setdefault(self._states[number][0], []).append(number)
        return found

    @property
    def complete(self) -> bool:
        """Whether the chunks that are known hold all of its tasks."""
        return len(self._states) == self.spec.size

    def why_cancelled(self) -> str:
        """Why tasks were not started, as far as somebody wrote it; the last word counts."""
        return next((str(line["reason"]) for line in reversed(self.lines) if line.get("reason")), "")


def is_whole(spool: Spool, at: Placed, numbers: list[int]) -> bool:
    """Whether some tasks of a chunk are all that it has."""
    low, high = array.bounds(at.entry.chunk)
    if not {low, high} <= set(numbers):
        return False
    spec = spec_of(spool, at.entry.id)
    return spec is not None and len(array.tasks_of(spec, at.entry.chunk)) == len(numbers)


def covered(spec: array.Spec, chunks: Iterable[str]) -> bool:
    """Whether some chunks are all that an array has."""
    return sum(len(array.tasks_of(spec, chunk)) for chunk in set(chunks)) == spec.size
