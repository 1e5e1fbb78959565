"""
What a submission is tied to: its key (`unique`), the job it is made in (`nested`), those it waits for (`parents`).

The steps around its commit, for the few jobs that need them; others never load this.
"""

from collections.abc import Sequence

from spoolq import home, nested, notice, parents, request, steer, unique
from spoolq.errors import SpoolqError
from spoolq.job import Job
from spoolq.spool import Placed, Spool


def before(spool: Spool, job: Job, job_id: int) -> None:
    """
    Between the filled home and the commit: its parent will find it, and it has its key.

    Raises:
        Taken: another job has the key; nothing of this one is left.
    """
    if job.parent_id:
        nested.record(spool, job, job_id)
    if job.unique:
        try:
            unique.take(spool, job, job_id)
        except SpoolqError:
            home.discard(spool.root, job_id)
            raise


def after(spool: Spool, placed: Sequence[Placed], job: Job) -> None:
    """After the commit: a parent may have ended before anybody could see the child."""
    if not job.depend:
        return

    def end(at: Placed, why: str) -> None:
        notice.end(spool, at, why, steer.writer())

    try:
        for note in parents.after_commit(spool, placed, job, end):
            request.warn(note)
    except OSError as error:  # it is submitted all the same, and nodes look again
        request.warn(f"its parents could not be looked at: {error.strerror}")
