"""What became of a workload, and what to say of it."""

import statistics
from typing import NamedTuple

from bench.schedule.workload import Job

SHORT_S = 10.0  # the usual threshold of the bounded slowdown


class Ran(NamedTuple):
    """One job, where it ran and since when."""

    job: Job
    node: int
    start: float


class Outcome(NamedTuple):
    """
    Figures of one run.

    `slowdown`: mean bounded slowdown, (wait + run) / max(run, 10 s), at least 1. `wait`, `longest`: s.
    `wide_wait`: mean wait, s, of jobs of half a node and more. `used`: cpu time of jobs over all cpu time
    until the last end. `packing`: cpu time of jobs over the cpu time of nodes that ran anything meanwhile.
    `lost`: claims that another node had won, per job.
    """

    slowdown: float
    wait: float
    longest: float
    wide_wait: float
    used: float
    packing: float
    lost: float = 0.0


def outcome(ran: list[Ran], nodes: int, cpus: int, lost: int = 0) -> Outcome:
    """The figures; checks that no node ever had more than it has and that no job started early."""
    waits = [item.start - item.job.submit for item in ran]
    assert min(waits) >= 0
    assert len({item.job.id for item in ran}) == len(ran)
    wide = [wait for wait, item in zip(waits, ran, strict=True) if item.job.cpus * 2 >= cpus]
    work = sum(item.job.run * item.job.cpus for item in ran)
    end = max(item.start + item.job.run for item in ran)
    begin = min(item.job.submit for item in ran)
    busy = sum(_busy([item for item in ran if item.node == node], cpus) for node in range(nodes))
    return Outcome(
        slowdown=statistics.fmean(
            max(1.0, (wait + item.job.run) / max(item.job.run, SHORT_S)) for wait, item in zip(waits, ran, strict=True)
        ),
        wait=statistics.fmean(waits),
        longest=max(waits),
        wide_wait=statistics.fmean(wide) if wide else 0.0,
        used=work / (nodes * cpus * (end - begin)),
        packing=work / (cpus * busy),
        lost=lost / len(ran),
    )


def _busy(ran: list[Ran], cpus: int) -> float:
    """For how long a node ran anything, s."""
    # an end counts before a start at the same time
    changes = sorted(
        [(item.start, 1, item.job.cpus) for item in ran]
        + [(item.start + item.job.run, 0, -item.job.cpus) for item in ran]
    )
    held = since = busy = 0.0
    for when, _, change in changes:
        if held:
            busy += when - since
        held, since = held + change, when
        assert 0 <= held <= cpus, "more than a node has"
    return busy
