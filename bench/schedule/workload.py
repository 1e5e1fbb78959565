"""A workload in the Standard Workload Format, as jobs for nodes without MPI."""

import math
import random
from collections.abc import Iterator
from typing import NamedTuple


class Job(NamedTuple):
    """One job; times in s from the first submission. `limit` None: its user said nothing."""

    id: int
    submit: float
    run: float
    cpus: int
    limit: int | None


def read(path: str, nodes: int, cpus: int, most: int) -> list[Job]:
    """
    The first jobs of a file, in order of submission, without limits.

    A job of p processors asks for ceil(p / nodes) cpus of one node, at most a whole one.
    Format: https://www.cs.huji.ac.il/labs/parallel/workload/swf.html
    """
    found = []
    for number, submit, run, processors in _rows(path):
        if run > 0 and processors > 0 and len(found) < most:
            found.append(Job(number, submit, run, min(cpus, math.ceil(processors / nodes)), None))
    found.sort(key=lambda job: (job.submit, job.id))
    begin = found[0].submit if found else 0.0
    return [job._replace(id=place, submit=job.submit - begin) for place, job in enumerate(found, 1)]


def _rows(path: str) -> Iterator[tuple[int, float, float, int]]:
    with open(path, encoding="ascii", errors="replace") as file:
        for line in file:
            part = line.split()
            if part and not part[0].startswith(";"):
                # 1 number, 2 submitted, 3 waited, 4 ran, 5 processors, 8 processors asked for
                processors = int(part[4]) if int(part[4]) > 0 else int(part[7])
                yield int(part[0]), float(part[1]), float(part[3]), processors


def load(jobs: list[Job], cpus: int) -> float:
    """The work offered from first to last submission, as a share of all cpus."""
    return sum(job.run * job.cpus for job in jobs) / (cpus * (jobs[-1].submit - jobs[0].submit))


def at_load(jobs: list[Job], cpus: int, wanted: float) -> list[Job]:
    """The same jobs, submitted faster or slower, so that they offer so much."""
    factor = load(jobs, cpus) / wanted
    return [job._replace(submit=job.submit * factor) for job in jobs]


def limited(jobs: list[Job], factor: float | None) -> list[Job]:
    """The same jobs with time limits of so many times what they run, or without."""
    return [job._replace(limit=None if factor is None else math.ceil(job.run * factor)) for job in jobs]


def shaken(jobs: list[Job], seed: int, by_s: float = 60.0) -> list[Job]:
    """
    The same jobs, each submitted up to so much later; seed 0 leaves them as they are.

    A schedule is chaotic: one job a second later, and another big job has to wait, so that one run of one
    workload says little about means (so Tsafrir and others shake workloads).
    """
    if not seed:
        return jobs
    chance = random.Random(seed)
    moved = [job._replace(submit=job.submit + chance.random() * by_s) for job in jobs]
    moved.sort(key=lambda job: (job.submit, job.id))
    return [job._replace(id=place) for place, job in enumerate(moved, 1)]
