"""
What a job is: the request of a user, complete and valid.

Invariant: values are frozen and a constructed `Job` is valid; an id can never act as a path.
"""

import re
from typing import NamedTuple

from spoolq.entry import HOMES, Entry, label_of, rank_of
from spoolq.errors import UsageError
from spoolq.resources import CPUS, MEM, UNIT, Amounts

DEFAULT_WANTS: Amounts = {CPUS: UNIT, MEM: 1000 * UNIT}  # asking for nothing: 1 cpu, 1000 MB
_ID = re.compile(r"[1-9]\d{0,11}")

RESULT_KEYS = (  # noqa: SIM905
    "format id attempt state exit_code signal reason node submitted started ended wall_s user_s system_s max_rss_kb "
    "minor_faults major_faults inblock oublock voluntary_switches involuntary_switches cpus mem_mb limit_hit "
    "measured_by"
).split()


class Job(NamedTuple):
    """
    One job as it was submitted.

    Args:
        command: the words to execute, at least one; with `script` the arguments of the script, maybe none.
        script: whether the job runs the copy of a script that lies in its home (by the interpreter
            that its first line names).
        wants: thousandths by resource (see `resources`).
        declared: names in `wants` that the user asked for; the rest are defaults and not enforced.
        limit_s: time limit in seconds, or None.
        retries: how often a failure is tried again.
        output, error: file patterns, or None for the job's home.
        output_mode: `spool`, or `local`: on the node's disk until the job ends (see `ship`).
        held: a key of `entry.HELD`, or empty.
        array: which tasks it has (see `array`), or empty.
        max_fails: when so many of them have failed no more are started; 0: whatever happens.
        export: what was exported, as the user wrote it (for people; the values are in the env file).
    """

    command: tuple[str, ...]
    name: str = ""
    script: bool = False
    chdir: str = "/"
    umask: int = 0o022
    wants: Amounts = DEFAULT_WANTS
    declared: frozenset[str] = frozenset()
    limit_s: int | None = None
    priority: int = 0
    rerun: str = "certain"
    retries: int = 0
    output: str | None = None
    error: str | None = None
    open_mode: str = "truncate"
    output_mode: str = "spool"
    nodelist: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    held: str = ""
    array: str = ""
    max_fails: int = 0
    export: str = "all"
    user: str = ""
    submitted: str = ""
    submit_host: str = ""

    def entry(self, job_id: int) -> Entry:
        """The entry of this job before its first rename."""
        return Entry(
            rank=rank_of(self.priority),
            id=job_id,
            wants=dict(self.wants),
            limit_s=self.limit_s,
            rerun=self.rerun[0].upper(),
            owner=label_of(self.user)[:32],
            held=self.held,
            more=bool(self.nodelist or self.exclude),
            label=label_of(self.name),
        )


def parse_id(text: str) -> int:
    """The id in `42`; UsageError for anything else, so that no path can be smuggled in."""
    if not _ID.fullmatch(text):
        raise UsageError(f"{text[:60]!r} is no job id (examples: 42, 40-45, last, @name)")
    return int(text)


def home_of(job_id: int) -> str:
    """The job's home relative to the spool: `jobs/0/42`."""
    return f"jobs/{job_id // HOMES}/{job_id}"
