"""
Elbow room: what is enforced of what was asked for, and the signal that comes before the end.

A job reserves what it asked for, and is ended at that times a factor: the job's own, else the site's,
never more than the site's largest. The signal (`--signal`, Slurm's form) comes before the end that is
enforced, so that a job loses none of the time it may have.
Invariant: enforced >= asked for; without a request nothing is enforced.
"""

import re
from typing import NamedTuple

from spoolq.config import Policy
from spoolq.entry import Entry
from spoolq.errors import UsageError
from spoolq.job import Job
from spoolq.resources import MEM, UNIT
from spoolq.values import parse_warning


class Enforced(NamedTuple):
    """The limits of one attempt: seconds and MB, None for no limit."""

    limit_s: float | None
    mem_mb: int | None


def time_factor(job: Job | None, policy: Policy) -> float:
    """By how much a job may outlast its time limit before it is ended."""
    own = job.time_factor if job else None
    return policy.time_factor if own is None else min(own, policy.max_time_factor)


def mem_factor(job: Job | None, policy: Policy) -> float:
    """By how much it may outgrow its memory."""
    own = job.mem_factor if job else None
    return policy.mem_factor if own is None else min(own, policy.max_mem_factor)


def enforced(entry: Entry, job: Job, policy: Policy) -> Enforced:
    """
    What the runner is told.

    Memory that nobody asked for (at submission, or by an edit) is a guess, and enforced only if the
    site says so (`enforce_default_mem`).
    """
    wants = entry.wants
    said = MEM in job.declared or wants.get(MEM) != job.wants.get(MEM)
    limit_s = None if entry.limit_s is None else entry.limit_s * time_factor(job, policy)
    if MEM not in wants or not (said or policy.enforce_default_mem):
        return Enforced(limit_s, None)
    return Enforced(limit_s, int(wants[MEM] * mem_factor(job, policy)) // UNIT)


def check(job: Job, policy: Policy) -> None:
    """
    Refuse what the site does not allow and what could not work.

    Raises:
        UsageError: naming the option and the remedy.
    """
    for name, factor, most in (
        ("mem-factor", job.mem_factor, policy.max_mem_factor),
        ("time-factor", job.time_factor, policy.max_time_factor),
    ):
        if factor is not None and factor > most:
            raise UsageError(f"{name}: {factor:g} is more than this spool allows ({most:g}, set in its spool.toml)")
    if job.signal and job.limit_s is not None:
        before_s, end_s = parse_warning(job.signal).before_s, job.limit_s * time_factor(job, policy)
        if before_s >= end_s:
            raise UsageError(
                f"signal: {before_s} s before the end at {end_s:g} s is before the start "
                f"(a shorter time: --signal {job.signal.partition('@')[0]}@{max(1, int(end_s) // 10)})"
            )


def words(reason: str, detail: str, entry: Entry) -> str:
    """The detail of a limit that was hit, with what was asked for where more than that was allowed."""
    if reason == "timeout" and entry.limit_s is not None and detail != f"time limit of {entry.limit_s:g} s":
        return f"{detail} (asked for {entry.limit_s} s)"
    mb = re.search(r"limit(?: of)? (\d+) MB", detail)
    asked = entry.wants.get(MEM, 0) // UNIT
    if reason == "oom" and mb and int(mb[1]) != asked:
        return f"{detail} (asked for {asked} MB)"
    return detail
