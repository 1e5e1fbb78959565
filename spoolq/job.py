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
_PARENT = re.compile(r"[1-9]\d{0,11}(?:_\d{1,9})?", re.ASCII)

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
        mem_factor, time_factor: what is enforced is so many times what was asked for; None for the site's.
        retry_mem: how much more a retry asks for after OUT_OF_MEMORY, as `values.grown` reads it, or empty.
        estimate: what was not asked for and comes from earlier runs, as `learn.fill` writes it.
        signal: to send before the end, as `values.parse_warning` reads it, or empty.
        output, error: file patterns, or None for the job's home.
        output_mode: `spool`, or `local`: on the node's disk until the job ends (see `ship`).
        ages: whether its entry says since when it is in line (a site's policy, see `fair`).
        begin: not before this, as `begin.resolved` makes it, or empty.
        constraint: what the labels of its node must satisfy (see `constraint`), or empty.
        held: a key of `entry.HELD`, or empty.
        depend: conditions as `depend` reads them; stored ones name ids, as `afterok:42`.
        unique: a key that of its user's jobs only one has at a time, or empty; see `unique`.
        parent: the job that submitted it (`42`, or a task `42_7`), if it is to end with that one; see `nested`.
        kill_on_invalid_dep: `yes` or `no`: whether it is cancelled when they can never hold.
        inputs, targets: files that it is made from and that it makes; if_stale: run only if those are not up to date.
        stage_in, stage_out: `SRC[:DST]`, copied to and from the node's own disk (see `staging`).
        policy: what rules and profiles changed, a note each, for people.
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
    mem_factor: float | None = None
    time_factor: float | None = None
    signal: str = ""
    retry_mem: str = ""
    estimate: tuple[str, ...] = ()
    output: str | None = None
    error: str | None = None
    open_mode: str = "truncate"
    output_mode: str = "spool"
    nodelist: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    begin: str = ""
    ages: bool = False
    constraint: str = ""
    held: str = ""
    depend: tuple[str, ...] = ()
    kill_on_invalid_dep: str = "yes"
    unique: str = ""
    parent: str = ""
    array: str = ""
    max_fails: int = 0
    export: str = "all"
    inputs: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    if_stale: bool = False
    stage_in: tuple[str, ...] = ()
    stage_out: tuple[str, ...] = ()
    policy: tuple[str, ...] = ()
    user: str = ""
    submitted: str = ""
    submit_host: str = ""

    @property
    def parent_id(self) -> int:
        """The id in `parent`, which may be that of an array; 0 if it ends with nobody."""
        return int(self.parent.partition("_")[0]) if _PARENT.fullmatch(self.parent) else 0

    def entry(self, job_id: int) -> Entry:
        """The entry of this job before its first rename."""
        other: tuple[str, ...] = ()
        if self.begin or (self.ages and self.submitted):  # few have them
            from spoolq import begin

            other = begin.fact(begin.moment(self.begin, 0)) if self.begin else ()
            other += begin.since(begin.moment(self.submitted, 0)) if self.ages and self.submitted else ()
        return Entry(
            rank=rank_of(self.priority),
            id=job_id,
            wants=dict(self.wants),
            limit_s=self.limit_s,
            rerun=self.rerun[0].upper(),
            owner=label_of(self.user)[:32],
            held=self.held or ("HD" if self.depend else "HB" if self.begin else ""),
            more=bool(self.nodelist or self.exclude or self.constraint or self.depend or self.unique),
            other=other + ((f"P{self.parent_id}",) if self.parent_id else ()),
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
