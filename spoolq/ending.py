"""
The line that says how a job ended: built once, sent to the daemon and written to the journal as it is.

Invariant: it is JSON; absent facts are null.
"""

from typing import NamedTuple

from spoolq import cgroup, spawn
from spoolq.channel import encode
from spoolq.runs import Run

Usage = tuple[float, float, int, int, int, int, int, int, int]
USAGE_KEYS = (
    "user_s",
    "system_s",
    "max_rss_kb",
    "minor_faults",
    "major_faults",
    "inblock",
    "oublock",
    "voluntary_switches",
    "involuntary_switches",
)


class End(NamedTuple):
    """
    How a process ended.

    Args:
        code, signal: one of them, or neither if nobody knows.
        usage: what wait4 gives, in the order of USAGE_KEYS, or None.
        comm: its last name, by which a trampoline that got stuck is told.
        at: wall clock, s.
        measured_by: `wait4`, `pidfd` (status without usage) or `nothing`.
    """

    code: int | None
    signal: int | None
    usage: Usage | None
    comm: str
    at: float
    measured_by: str = "wait4"


def ended_line(run: Run, end: End, now: float | None) -> str:
    """
    The message; also sets `run.cpu_s`.

    Args:
        now: CLOCK_MONOTONIC, s, where the end was seen as it happened; None takes the wall clock's word.
    """
    usage, measured_by = end.usage, end.measured_by
    reason, detail = run.reason, run.detail
    if run.trampoline:
        if problem := spawn.landing(end.comm, end.code):
            reason, detail = reason or "launch", detail or problem
        if run.cgroup:
            usage, measured_by = of_group(run.cgroup, usage, measured_by)
            if not reason and cgroup.oom_kills(run.cgroup):
                peak = cgroup.peak_kb(run.cgroup)
                used = f", peak {peak // 1024} MB" if peak else ""
                reason, detail = "oom", f"the kernel ended it at its limit of {run.mem_mb} MB{used}"
    used = ""
    if usage:
        run.cpu_s = usage[0] + usage[1]
        u = usage
        used = (
            f'"user_s":{u[0]:.6f},"system_s":{u[1]:.6f},"max_rss_kb":{u[2]},"minor_faults":{u[3]},"major_faults":{u[4]},'
            f'"inblock":{u[5]},"oublock":{u[6]},"voluntary_switches":{u[7]},"involuntary_switches":{u[8]}'
        )
    wall_s = max(0.0, (now - run.since) if now is not None else (end.at - run.started)) if run.pid else 0.0
    code = "null" if end.code is None else end.code
    number = "null" if end.signal is None else end.signal
    words = f'"reason":{encode(reason)},"detail":{encode(detail)}' if reason else '"reason":"","detail":""'
    started = f"{run.started:.6f}" if run.pid else "null"
    return (
        f'{{"op":"ended",{run.text},"ended":{{"exit_code":{code},"signal":{number},{words},"started":{started},'
        f'"ended":{end.at:.6f},"wall_s":{wall_s:.6f},"rusage":{{{used}}},"measured_by":"{measured_by}"}}}}'
    )


def of_group(group: str, usage: Usage | None, measured_by: str) -> tuple[Usage | None, str]:
    """The usage of a whole control group where it says more than wait4: CPU of orphans too, memory of all at once."""
    cpu = cgroup.cpu_s(group)
    if cpu is None or usage is None:
        return usage, measured_by
    return (*cpu, cgroup.peak_kb(group) or usage[2], *usage[3:]), "cgroup"
