"""
The command `hist`: jobs that have ended, from the history files, which outlive the jobs themselves.

Invariant: changes nothing, and needs no node. Times of several machines' clocks are shown and compared
with what the user asks for, never used to decide anything.
"""

import sys
from collections.abc import Collection, Iterator
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import Any

from spoolq import arguments, array, awaiting, history, report, resources, selector
from spoolq.arguments import Command, Flag, Given
from spoolq.errors import NotFound, UsageError
from spoolq.history import Record, Summary
from spoolq.report import Column
from spoolq.spool import Spool
from spoolq.state import State

NEWEST = 50
_KEYS = ("user", "name", "node", "state", "day")

WHEN_FLAGS = (
    Flag("since", "", "TIME", "that ended since: 2025-03-01, 2025-03-01T16:00, today, 2h, 3d (ago)"),
    Flag("until", "", "TIME", "that ended before"),
)

HIST = Command(
    "hist",
    "[JOB..]",
    "Jobs that have ended: how, where, what they used. Every attempt is a line.",
    (
        Flag("newest", "n", "N", f"at most so many, the newest; default {NEWEST}; or all"),
        *WHEN_FLAGS,
        Flag("failed", "", "", "only those that failed, ran out of time or memory, or lost their node"),
        Flag("by", "", "KEY", f"sums for each {', '.join(_KEYS)}", " ".join(_KEYS)),
        *selector.FILTER_FLAGS,
    ),
    "job",
    "Jobs are numbers and ranges here, also of jobs long removed.\nPlain files: cat SPOOL/history/*.jsonl",
)
COMMANDS = {"hist": HIST}
_FAILED = (State.FAILED, State.TIMEOUT, State.OUT_OF_MEMORY, State.NODE_FAIL)


def hist(argv: list[str]) -> int:
    """`hist [JOB..]`."""
    given = arguments.parse(HIST, argv)
    if given.has("help"):
        return arguments.show_help(HIST)
    by = given.last("by")
    if by and by not in _KEYS:
        raise UsageError(f"--by: {by[:40]!r} is none of {', '.join(_KEYS)}")
    spool = arguments.open_spool(given)
    wanted = conditions(given, spool, datetime.now(UTC))
    most = sys.maxsize if by and not given.has("newest") else given.count("newest", NEWEST)
    records = collect(spool, wanted, most)
    if by:
        groups = history.grouped(records, (lambda r: str(r.get("ended") or "")[:10]) if by == "day" else by)
        return _show_groups(given, by, groups)
    if given.has("json"):
        arguments.print_json("history", records)
        return 0
    if records:
        width, colour = arguments.style()
        print("\n".join(report.history_lines(reversed(records), width, colour=colour)))
    arguments.talk(total(history.summarise(records)) if records else "no job has ended that fits")
    return 1 if given.words and not records else 0


def conditions(given: Given, spool: Spool, now: datetime, words: list[str] | None = None) -> dict[str, Any]:
    """
    Arguments of `history.select` from a command line.

    Args:
        now: an aware datetime.
        words: which jobs, if not those of the command line.
    """
    filters = selector.filter_of(given)
    states: set[State] = set(filters.states) | (set(_FAILED) if given.has("failed") else set())
    return {
        "ids": ids_of(spool, given.words if words is None else words),
        "users": filters.users,
        "names": given.every("name"),
        "states": [state.name for state in states],
        "nodes": filters.nodes,
        "since": parse_when(given.last("since"), now) if given.has("since") else None,
        "until": parse_when(given.last("until"), now) if given.has("until") else None,
    }


class Ranges(Collection[int]):
    """Ids as ranges, so that `1-10000000` costs nothing."""

    def __init__(self) -> None:
        """No id."""
        self.ranges: list[range] = []
        self.tasks: list[tuple[int, array.Spec]] = []  # of arrays, only these

    def __contains__(self, job_id: object) -> bool:
        return any(job_id in one for one in self.ranges) or any(job_id == one for one, _ in self.tasks)

    def means(self, record: Record) -> bool:
        """Whether a record is meant, of an array perhaps by its task alone."""
        if not self.tasks or any(record["id"] in one for one in self.ranges):
            return True
        return any(record["id"] == one and record.get("task") in spec for one, spec in self.tasks)

    def __iter__(self) -> Iterator[int]:
        return chain(chain.from_iterable(self.ranges), (job_id for job_id, _ in self.tasks))

    def __len__(self) -> int:
        return sum(map(len, self.ranges)) + len(self.tasks)


def ids_of(spool: Spool, words: list[str]) -> Ranges:
    """Ids from words; ranges need not exist any more, since history outlives jobs."""
    ids = Ranges()
    for part in selector.parse_words(words):
        if part[0].isdigit() and (named := array.parse_unit(part)):
            ids.tasks.append(named)
        elif part[0].isdigit():
            low, high = selector.parse_range(part)
            ids.ranges.append(range(low, high + 1))
        else:
            try:
                found = {awaiting.id_of(unit) for unit in selector.resolve(spool, [part])}
                ids.ranges += [range(job_id, job_id + 1) for job_id in found]
            except NotFound as error:
                arguments.complain(str(error))
                ids.ranges.append(range(1))  # 0 is no job's id: so that nothing, and not everything, is meant
    return ids


def parse_when(text: str, now: datetime) -> datetime:
    """A time: ISO 8601 (of this machine's zone if it names none), `today`, `yesterday`, or `3d`, `2h` ago."""
    local = now.astimezone()
    midnight = local.replace(hour=0, minute=0, second=0, microsecond=0)
    if text in ("today", "yesterday"):
        return midnight - timedelta(days=text == "yesterday")
    try:
        when = datetime.fromisoformat(text)
        return when if when.tzinfo else when.astimezone()
    except ValueError:
        pass
    try:
        seconds = resources.parse_seconds(text)
    except UsageError:
        seconds = None
    if seconds is None:
        raise UsageError(f"{text[:40]!r} is no time (examples: 2025-03-01, 2025-03-01T16:00, today, 2h, 3d)")
    return now - timedelta(seconds=seconds)


def collect(spool: Spool, wanted: dict[str, Any], most: int) -> list[Record]:
    """The newest records that fit, newest first; older files are read only as far as needed."""
    found: list[Record] = []
    for names in _days(spool):
        records = [record for name in names for record in history.parse(spool.read_history(name))]
        found += filter(wanted["ids"].means, history.select(records, **wanted))
        if len(found) > most and len(history.unique(found)) >= most:
            break
    return history.newest_first(history.unique(found))[:most]


def _days(spool: Spool) -> Iterator[list[str]]:
    """The history files of each day, the newest day first."""
    days: dict[str, list[str]] = {}
    for name in spool.history_files():
        days.setdefault(name[:10], []).append(name)
    for day in sorted(days, reverse=True):
        yield days[day]


def total(summary: Summary) -> str:
    """One line about many attempts."""
    states = ", ".join(f"{number} {state.lower()}" for state, number in summary.states.items())
    jobs = f"{summary.jobs} job{'s' * (summary.jobs != 1)}"
    return f"{jobs}: {states}; {summary.cpu_hours:.2f} cpu hours{_efficiency(summary)}"


def _efficiency(summary: Summary) -> str:
    parts = [
        f"{100 * share:.0f} % of {what} used"
        for what, share in (("cpus", summary.cpu_efficiency), ("memory", summary.mem_efficiency))
        if share is not None
    ]
    return f" ({', '.join(parts)})" if parts else ""


def _show_groups(given: Given, by: str, groups: dict[str, Summary]) -> int:
    if given.has("json"):
        arguments.print_json(
            "summary",
            [
                {
                    by: name,
                    "jobs": s.jobs,
                    "attempts": s.attempts,
                    "states": dict(s.states),
                    "cpu_s": s.cpu_s,
                    "held_cpu_s": s.held_cpu_s,
                    "cpu_efficiency": s.cpu_efficiency,
                    "mem_efficiency": s.mem_efficiency,
                }
                for name, s in groups.items()
            ],
        )
        return 0

    rows = [
        [
            name or "-",
            str(s.jobs),
            str(s.attempts - s.states.get("COMPLETED", 0)),
            f"{s.cpu_hours:.2f}",
            report.share(s.cpu_efficiency),
            report.share(s.mem_efficiency),
        ]
        for name, s in groups.items()
    ]
    if rows:
        figures = [Column(title, right=True) for title in ("JOBS", "NOT OK", "CPU HOURS", "CPU%", "MEM%")]
        width, colour = arguments.style()
        print("\n".join(report.table([Column(by.upper(), least=8), *figures], rows, width, colour=colour)))
    return 0
