"""
Turn the records of one run into Markdown: one table a measure, and the aims beside the figures.

Says what was measured; fails nobody. A figure is median (lowest-highest) of its repetitions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

from kit import Stats
from measures import Record

Column = tuple[str, str, float]  # heading, key of the record, factor to the heading's unit


@dataclass(frozen=True, slots=True)
class Table:
    """How the records of one measure are shown; `columns`: a line each, heading = key and factor."""

    title: str
    about: str
    columns: str

    def parsed(self) -> list[Column]:
        """Return the columns as values."""
        columns = []
        for line in self.columns.strip().splitlines():
            heading, _, tail = line.partition("=")
            key, factor = [*tail.split(), "1"][:2]
            columns.append((heading.strip(), key, float(factor)))
        return columns


@dataclass(frozen=True, slots=True)
class Aim:
    """A bound on one figure of spoolq's: `at_least` is a lower bound, else it is an upper one."""

    text: str
    measure: str
    key: str
    bound: float
    factor: float = 1
    at_least: bool = False
    condition: Mapping[str, str | int] = field(default_factory=dict)


TABLES: Mapping[str, Table] = {
    "submit": Table(
        "Submission, one at a time",
        "One command a job while nothing can start. CPU is that of client and daemons together; *spawns* divides it\n"
        "by a bare spawn.",
        """
        peer = peer
        version = version
        wall ms = wall_s 1e3
        CPU ms = cpu_s 1e3
        CPU in bare spawns = spawns
        """,
    ),
    "submit-pair": Table(
        "`spoolq sub` beside `python3 -c 'import argparse, json'`",
        "Turn by turn with the same interpreter; ratios are of neighbours.",
        """
        wall ms = wall_s 1e3
        CPU ms = cpu_s 1e3
        reference wall ms = reference_wall_s 1e3
        reference CPU ms = reference_cpu_s 1e3
        wall ratio = wall_ratio
        CPU ratio = cpu_ratio
        """,
    ),
    "submit-lines": Table(
        "Submission in bulk, `spoolq sub --each-line`",
        "Per job; the interpreter's start is in it.",
        """
        jobs = n
        wall ms a job = wall_s 1e3
        CPU ms a job = cpu_s 1e3
        CPU in bare spawns = spawns
        """,
    ),
    "throughput": Table(
        "Throughput of `/bin/true`",
        "*live*: the clock runs from the first submission to a running system until the last end is recorded.\n"
        "*drain*: all jobs are queued first, and the clock runs from letting the peer go (spoolq: from starting the\n"
        "node's program); nq and tsp have by then forked a process for every job, so that *with queueing*, which\n"
        "adds the time of submitting them, is the column to compare. *Share* divides by the rate of one process that\n"
        "does nothing but spawn and wait, taken just before and after. *Inner*: from the first job's start to the last\n"
        "one's end. CPU includes submission.",
        """
        file system = filesystem
        mode = mode
        slots = slots
        peer = peer
        jobs = n
        jobs/s = jobs_per_s
        share of floor = share
        share with queueing = whole_share
        inner share = inner_share
        CPU ms a job = cpu_s 1e3
        CPU in bare spawns = spawns
        floor/s = floor_per_s
        """,
    ),
    "latency": Table(
        "Latency on an idle system, ms",
        "From starting the submission command to the job's first instruction. *After commit*: from the `submitted`\n"
        "stamp of result.json to that instruction; *to started*: to the `started` stamp.",
        """
        peer = peer
        jobs = n
        first instruction = first_s 1e3
        submission returns = returns_s 1e3
        after commit = after_commit_s 1e3
        to started = to_start_s 1e3
        """,
    ),
    "idle": Table(
        "Idle",
        "The whole family, with an empty queue or with jobs that wait behind one that sleeps; the sleeper is not\n"
        "counted. nq with an empty queue has no process at all.",
        """
        peer = peer
        queued = queued
        seconds watched = seconds
        CPU s a minute = cpu_s_per_minute
        processes = processes
        PSS MiB = pss_mib
        RSS MiB = rss_mib
        """,
    ),
    "running": Table(
        "Running jobs",
        "Everything that is not a job, with that many jobs asleep, less the same with none, per job.",
        """
        peer = peer
        jobs = n
        processes a job = processes
        PSS KiB a job = pss_kib
        RSS KiB a job = rss_kib
        family PSS MiB = family_pss_mib
        CPU s a minute meanwhile = cpu_s_per_minute
        """,
    ),
    "calls": Table(
        "File-system calls per job",
        "Slope between two traced runs, so without start-up. *Asked*: calls on the peer's directory (spoolq: on the\n"
        "spool) that a file system has to answer, which leaves out close, dup, fcntl and lseek. *Beside*: in the\n"
        "peer's directory but outside its spool. *In all* includes loading /bin/true and its libraries. nq looks at\n"
        "every log file for every job, so its figures grow with the queue.",
        """
        peer = peer
        part = part
        asked = asked
        with close = spool_calls
        beside = own_calls
        in all = all_calls
        asked, by name = by_name
        """,
    ),
}

DRAIN: Mapping[str, str | int] = {"medium": "tmpfs", "mode": "drain", "slots": 2}
LIVE: Mapping[str, str | int] = {"medium": "tmpfs", "mode": "live", "slots": 2}
AIMS: Sequence[Aim] = (
    Aim("no-op throughput, share of floor (tmpfs, live, 2)", "throughput", "share", 0.7, at_least=True, condition=LIVE),
    Aim("the same of a full queue, node's start included", "throughput", "share", 0.7, at_least=True, condition=DRAIN),
    Aim("the same from first start to last end", "throughput", "inner_share", 0.7, at_least=True, condition=DRAIN),
    Aim("`sub`: CPU in `python3 -c 'import argparse, json'`", "submit-pair", "cpu_ratio", 2),
    Aim("`--each-line`: CPU ms a job", "submit-lines", "cpu_s", 0.2, 1e3),
    Aim("commit to first instruction, ms", "latency", "after_commit_s", 10, 1e3),
    Aim("idle, CPU s a minute", "idle", "cpu_s_per_minute", 0.3, condition={"queued": 0}),
    Aim("idle, PSS of the family in MiB", "idle", "pss_mib", 45, condition={"queued": 0}),
)


def markdown(records: Sequence[Record], facts: Mapping[str, str], commands: Mapping[str, str]) -> str:
    """
    Lay out one run.

    Args:
        records: everything measured, in order.
        facts: the machine and the conditions, label to text.
        commands: measure to the command that repeats its table.
    """
    parts = [
        "# Results",
        "Written by `bench/run.py`; README.md beside it says what each measure means. Median (lowest–highest).",
    ]
    parts.append("\n".join(f"- {label}: {text}" for label, text in facts.items()))
    if aims := _aims(records):
        parts += ["## Aims", aims]
    for measure, table in TABLES.items():
        rows = [record for record in records if record["measure"] == measure]
        if rows:
            command = commands[measure.partition("-")[0]]
            parts += [f"## {table.title}", table.about, f"    {command}", _table(table.parsed(), rows)]
    return "\n\n".join(parts) + "\n"


def _table(columns: Sequence[Column], rows: Sequence[Record]) -> str:
    used = [column for column in columns if any(column[1] in row for row in rows)]
    lines = ["| " + " | ".join(heading for heading, _, _ in used) + " |", "|" + "---|" * len(used)]
    lines += ["| " + " | ".join(_cell(row.get(key), factor) for _, key, factor in used) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: str | float | Stats | None, factor: float) -> str:
    match value:
        case None:
            return "-"
        case str():
            return value
        case int():
            return f"{value:,}"
        case float():
            return number(value * factor)
        case Stats():
            median, low, high = (number(figure * factor) for figure in (value.median, value.low, value.high))
            return median if value.n == 1 else f"{median} ({low}–{high})"


def number(value: float) -> str:
    """Print three digits, more where they stand before the point."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 0.001 else f"{value:.4f}" if value else "0"


def _aims(records: Sequence[Record]) -> str:
    """Set the aims beside what was measured, and the best peer beside spoolq."""
    lines = []
    for aim in AIMS:
        rows = [row for row in _matching(records, aim.measure, aim.condition) if row["peer"] == "spoolq"]
        value = rows[0].get(aim.key) if rows else None
        if isinstance(value, Stats):
            figure = value.median * aim.factor
            met = figure >= aim.bound if aim.at_least else figure <= aim.bound
            bound = f"{'at least' if aim.at_least else 'at most'} {aim.bound:g}"
            lines.append(f"| {aim.text} | {bound} | {_cell(value, aim.factor)} | {_yes(met)} |")
    for medium, mode, slots in product(("tmpfs", "disk"), ("live", "drain"), (2, 8)):
        rows = _matching(records, "throughput", {"medium": medium, "mode": mode, "slots": slots})
        shares = {str(row["peer"]): row["whole_share"] for row in rows}
        medians = {name: share.median for name, share in shares.items() if isinstance(share, Stats)}
        own = medians.pop("spoolq", None)
        if own is not None and medians:
            best = max(medians, key=medians.__getitem__)
            what = f"share with queueing, {medium}, {mode}, {slots} slots: ahead of the best peer"
            lines.append(f"| {what} | {best} {medians[best]:.2f} | {own:.2f} | {_yes(own >= medians[best])} |")
    return "\n".join(["| aim | bound | figure | met |", "|---|---|---|---|", *lines]) if lines else ""


def _yes(met: bool) -> str:
    return "yes" if met else "**no**"


def _matching(records: Sequence[Record], measure: str, condition: Mapping[str, str | int]) -> list[Record]:
    return [
        row
        for row in records
        if row["measure"] == measure and all(row.get(key) == value for key, value in condition.items())
    ]
