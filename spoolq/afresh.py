"""
Run jobs again because their users say so: the step of the command `requeue`.

Invariant: one `requeue` makes one more run, also if its rename had no answer.
"""

from typing import Any

from spoolq import steer
from spoolq.errors import SpoolqError
from spoolq.fsops import Answer
from spoolq.spool import Placed, Spool
from spoolq.state import State
from spoolq.steer import Outcome, Step


def step_of(*, failed: bool = False) -> Step:
    """
    The step of `requeue`: run again what ended; kill and run again what runs; of a chunk only what `failed`.

    One that was run again since it was first seen is left alone: that was this command, whose rename had
    no answer, or somebody else with the same wish (simulation: one `requeue` made two runs).
    """
    first: dict[int | str, int] = {}

    def step(spool: Spool, placed: Placed) -> Outcome | None:
        entry = placed.entry
        if entry.attempt > first.setdefault(entry.unit, entry.attempt):
            return Outcome(entry.unit, "requeued", f"job {entry.unit}: queued again as attempt {entry.attempt}")
        if failed and placed.state is State.CANCELLED and not entry.chunk:
            return steer.nothing(placed, "did not fail: it was cancelled")
        return _requeue(spool, placed, failed)

    return step


def _requeue(spool: Spool, placed: Placed, failed: bool) -> Outcome | None:
    from spoolq import home, part

    entry = placed.entry
    if placed.top == "running":
        return steer.request(
            spool, placed, "requeue", "requested", f"{placed.node} is asked to kill it and queue it again"
        )
    if placed.top == "reaping":
        return steer.taken_over(placed)
    if placed.top != "done":
        return steer.nothing(placed, f"has not started yet ({placed.state.name})")
    # the old result goes first: the next attempt may end before we return
    home.set_aside(spool.root, entry.id, entry.attempt)
    try:
        changes = part.again(spool, entry, failed=failed) if entry.chunk else {}
        answer, target = queue_again(spool, placed, **changes)
    except (OSError, SpoolqError):
        home.bring_back(spool.root, entry.id, entry.attempt)
        raise
    if steer.settled(spool, answer, placed, target) is Answer.LOST:
        return None
    spool.committed([target])
    return Outcome(entry.unit, "requeued", f"job {entry.unit}: queued again as attempt {target.entry.attempt}")


def queue_again(spool: Spool, placed: Placed, **changes: Any) -> tuple[Answer, Placed]:
    """An ended entry as its next attempt: into the queue, or to wait for its parents, if nobody else has its key."""
    held = steer.next_hold(spool, placed.entry)
    if placed.entry.more:
        from spoolq import deliver, unique

        job = deliver.read_job(spool, placed.entry.id)
        if job and job.unique:
            return unique.requeue(spool, placed, job, held, **changes)
    return spool.requeue(placed, held=held, **changes)
