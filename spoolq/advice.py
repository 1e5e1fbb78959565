"""
What a job asked for against what it used, and what to ask for next time.

Invariant: nobody is told to ask for less than was used and a margin (see `learn`), and of what was not
measured nothing is said.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from spoolq import learn
from spoolq.history import Record, efficiency
from spoolq.resources import UNIT, show_mb, show_seconds

WASTE = 2.0  # asked for more than so many times what would do: said
LEAST_WALL_S = 10.0  # of shorter attempts nobody needs advice about cpus


class Row(NamedTuple):
    """A command of a user: runs that succeeded, runs that did not, and what to ask for, or None if nobody knows yet."""

    command: str
    runs: int
    failed: int
    asked_mb: float | None
    asked_cpus: float | None
    estimate: learn.Estimate | None


def number(record: Record, key: str) -> float | None:
    """A figure of a record, or None."""
    value = record.get(key)
    return value if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e15 else None


def shares(record: Record) -> dict[str, float | None]:
    """Used / asked for of `cpus`, `mem` and `time`, None where unknown."""
    cpus, mem = efficiency(record)
    wall, limit = number(record, "wall_s"), number(record, "limit_s")
    return {"cpus": cpus, "mem": mem, "time": wall / limit if limit and wall is not None else None}


def hints(record: Record) -> list[str]:
    """What this attempt says for the next, as options with the reason: `-m 120: used 95M of 4G`."""
    found = []
    asked_mb, rss_kb = number(record, "mem_mb"), number(record, "max_rss_kb")
    if record.get("state") == "OUT_OF_MEMORY" and asked_mb:
        found.append(f"-m {2 * asked_mb:g} (or -r 3 --retry-mem 2x): {show_mb(round(asked_mb * UNIT))} were too little")
    elif asked_mb and rss_kb is not None:
        enough = max(learn.LEAST_MB, math.ceil(rss_kb / 1024 * learn.MARGIN / 10) * 10)
        if asked_mb > WASTE * enough:
            used = f"{show_mb(round(rss_kb / 1024 * UNIT))} of {show_mb(round(asked_mb * UNIT))}"
            found.append(f"-m {enough}: it used {used}")
    cpus, wall = number(record, "cpus"), number(record, "wall_s")
    user, system = number(record, "user_s"), number(record, "system_s")
    if cpus and wall and wall >= LEAST_WALL_S and user is not None and system is not None:
        busy = (user + system) / wall
        enough = max(1, math.ceil(busy))
        if enough < cpus or busy > cpus + 0.5:
            found.append(f"-c {enough}: it kept {busy:.1f} of {cpus:g} cpus busy")
    limit = number(record, "limit_s")
    if record.get("state") == "TIMEOUT" and limit:
        found.append(f"-t {math.ceil(2 * limit / 60)}: {show_seconds(limit)} was too little")
    elif limit and wall is not None and record.get("state") == "COMPLETED":
        minutes = max(1, math.ceil(wall * learn.MARGIN / 60))
        if limit / 60 > WASTE * minutes:
            found.append(f"-t {minutes}: it took {wall / 60:.1f} of {limit / 60:g} minutes")
    return found


def options(estimate: learn.Estimate) -> str:
    """`-c 1 -m 120 -t 6`: for a command line."""
    cpus = [f"-c {estimate.cpus}"] if estimate.cpus is not None else []
    return " ".join([*cpus, f"-m {estimate.mem_mb}", f"-t {estimate.time_s // 60}"])


def rows(records: Sequence[Record]) -> list[Row]:
    """What some records, newest first, say of each command, the one that ran most first."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        if name := learn.of_record(record):
            groups.setdefault(name, []).append(record)
    found = [_row(name, group) for name, group in groups.items()]
    return sorted(found, key=lambda row: (-row.runs - row.failed, row.command))


def _row(name: str, records: list[Record]) -> Row:
    runs = [run for record in records if (run := _run(record))]
    failed = sum(record.get("state") not in ("COMPLETED", "CANCELLED") for record in records)
    asked = [number(records[0], key) for key in ("mem_mb", "cpus")]
    return Row(name, len(runs), failed, asked[0], asked[1], learn.estimate(runs[: learn.NEWEST]))


def _run(record: Mapping[str, Any]) -> learn.Run | None:
    return learn.run_of(record, day=learn.day_of(record.get("ended")))
