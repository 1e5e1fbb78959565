"""
Stop an array when as many of its tasks failed as its user allows (`--max-fails`).

A file for each task that failed, in the home, is the count; whoever is about to start a task looks at it.
Invariant: what runs goes on; what is stopped is what has not started.
"""

from typing import TYPE_CHECKING

from spoolq import array, tasks

if TYPE_CHECKING:
    from spoolq.daemon import Daemon


def too_many(root: str, job_id: int, most: int) -> str:
    """Why no more are to be started, or empty; `most`: as many failures as are allowed, 0 for any number."""
    found = tasks.failures(root, job_id) if most else []
    if not most or len(found) < most:
        return ""
    return f"{len(found)} tasks failed ({array.ranges(found, 5)}), and --max-fails is {most}"


def end_waiting(daemon: "Daemon", job_id: int, why: str) -> None:
    """End the chunks that wait; one that is missed here ends when it is claimed."""
    for top in ("queue", "held"):
        for at in daemon.spool.waiting(top):
            if at.entry.id == job_id:
                daemon.around.end(daemon, at, "cancelled", why)
