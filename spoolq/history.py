"""
Finished attempts: read, select, summarise.

A history file has one JSON object a line, one line per finished attempt: the keys of a result plus
`name`, `user`, `command`. Files are written by different nodes, perhaps twice after a crash, perhaps
torn at the end, so reading forgives and counting does not count twice.
Invariants: a line that is no record is skipped, never fatal; the order of lines and files changes no
answer.
"""

import fnmatch
import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from spoolq.state import State

Record = dict[str, Any]

BRIEF_S = 0.1  # of a shorter run the start itself, which is counted too, is so much that a share of cpus says nothing
_STATES = {state.name for state in State}
_CODES = {state.value: state.name for state in State}


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """
    What a set of attempts came to.

    `cpu_s` was used, `held_cpu_s` was reserved (cpus times wall), in cpu seconds. Efficiencies are
    used / reserved, weighted by time, or None where nothing was both reserved and measured.
    """

    jobs: int = 0
    attempts: int = 0
    states: Mapping[str, int] = field(default_factory=dict)
    wall_s: float = 0.0
    cpu_s: float = 0.0
    held_cpu_s: float = 0.0
    cpu_efficiency: float | None = None
    mem_efficiency: float | None = None
    max_rss_kb: int | None = None

    @property
    def cpu_hours(self) -> float:
        """Used, in hours of one cpu."""
        return self.cpu_s / 3600


def parse(data: bytes) -> list[Record]:
    """The records of one history file, in its order; what is torn or no record is left out."""
    found = []
    for line in data.split(b"\n"):
        if not line.startswith(b"{"):
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
            continue
        if type(record.get("id")) is int and type(record.get("attempt")) is int:
            found.append(record)
    return found


def unique(records: Iterable[Record]) -> list[Record]:
    """
    One record for each id, task and attempt, in this order.

    Of two that differ the one that ended later stays: a node given up for lost may report after
    all, and then the later word is that of the node that decided.
    """
    best: dict[tuple[int, int, int], Record] = {}
    for record in records:
        key = (record["id"], task_of(record), record["attempt"])
        known = best.get(key)
        if known is None or _rank(record) > _rank(known):
            best[key] = record
    return [best[key] for key in sorted(best)]


def task_of(record: Record) -> int:
    """The number of the task in its array; -1 for what is no task."""
    number = record.get("task")
    return number if type(number) is int else -1


def _rank(record: Record) -> tuple[str, str]:
    return _text(record, "ended"), json.dumps(record, sort_keys=True)


def newest_first(records: Iterable[Record]) -> list[Record]:
    """By the end of the attempt, then id and attempt; without an end they come last."""
    return sorted(records, key=lambda r: (_text(r, "ended"), r["id"], r["attempt"]), reverse=True)


def select(
    records: Iterable[Record],
    *,
    users: Collection[str] = (),
    names: Collection[str] = (),
    states: Collection[str] = (),
    nodes: Collection[str] = (),
    ids: Collection[int] = (),
    since: datetime | None = None,
    until: datetime | None = None,
) -> list[Record]:
    """
    Those that meet every condition given; empty means any.

    Args:
        names, nodes: globs are understood.
        states: `FAILED` or `F`, any case.
        since, until: of the end of the attempt, since included, until not; aware datetimes.
            Clocks of several machines wrote these times: good for looking, not for deciding.
    """
    wanted = {_CODES.get(state.upper(), state.upper()) for state in states}

    def fits(record: Record) -> bool:
        if (ids and record["id"] not in ids) or (users and _text(record, "user") not in users):
            return False
        if (wanted and _text(record, "state") not in wanted) or not _like(record, "name", names):
            return False
        if not _like(record, "node", nodes):
            return False
        if since is None and until is None:
            return True
        ended = parse_time(record.get("ended"))
        return ended is not None and (since is None or ended >= since) and (until is None or ended < until)

    return [record for record in records if fits(record)]


def _like(record: Record, key: str, patterns: Collection[str]) -> bool:
    return not patterns or any(fnmatch.fnmatchcase(_text(record, key), pattern) for pattern in patterns)


def efficiency(record: Record) -> tuple[float | None, float | None]:
    """(cpu, memory) used / reserved of one attempt, or None where unknown; above 1 if not enforced."""
    held, used = _held_cpu_s(record), _cpu_s(record)
    held = None if _brief(record) else held
    rss, mb = _number(record, "max_rss_kb"), _number(record, "mem_mb")
    return (
        used / held if held and used is not None else None,
        rss / 1024 / mb if mb and rss is not None else None,
    )


def summarise(records: Iterable[Record]) -> Summary:
    """Counts, hours and efficiencies of records that are `unique`."""
    jobs: set[tuple[int, int]] = set()
    states: dict[str, int] = {}
    attempts, wall, cpu, held, peak = 0, 0.0, 0.0, 0.0, None
    both, held_both, mem, mem_held = 0.0, 0.0, 0.0, 0.0
    for record in records:
        attempts += 1
        jobs.add((record["id"], task_of(record)))
        state = _text(record, "state") or "?"
        states[state] = states.get(state, 0) + 1
        seconds, used, reserved = _number(record, "wall_s") or 0.0, _cpu_s(record), _held_cpu_s(record) or 0.0
        wall, cpu, held = wall + seconds, cpu + (used or 0.0), held + reserved
        if used is not None and not _brief(record):
            both, held_both = both + used * bool(reserved), held_both + reserved
        rss, mb = _number(record, "max_rss_kb"), _number(record, "mem_mb")
        if rss is not None:
            peak = max(peak or 0, int(rss))
            mem, mem_held = mem + rss / 1024 * seconds * bool(mb), mem_held + (mb or 0.0) * seconds
    return Summary(
        jobs=len(jobs),
        attempts=attempts,
        states=dict(sorted(states.items())),
        wall_s=wall,
        cpu_s=cpu,
        held_cpu_s=held,
        cpu_efficiency=both / held_both if held_both else None,
        mem_efficiency=mem / mem_held if mem_held else None,
        max_rss_kb=peak,
    )


def grouped(records: Iterable[Record], key: str | Callable[[Record], str]) -> dict[str, Summary]:
    """A summary for each value of a key (`user`, `node`, `name`, ...), sorted by it."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(_text(record, key) if isinstance(key, str) else key(record), []).append(record)
    return {name: summarise(groups[name]) for name in sorted(groups)}


def parse_time(text: object) -> datetime | None:
    """An aware datetime from the ISO 8601 text of a record; None if it is none."""
    if not isinstance(text, str):
        return None
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        return None
    return when if when.tzinfo else when.replace(tzinfo=UTC)


def _text(record: Record, key: str) -> str:
    value = record.get(key)
    return value if isinstance(value, str) else ""


def _number(record: Record, key: str) -> float | None:
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value < 1e15 else None


def _cpu_s(record: Record) -> float | None:
    user, system = _number(record, "user_s"), _number(record, "system_s")
    return None if user is None or system is None else user + system


def _brief(record: Record) -> bool:
    """Whether it ran too short to say how busy it kept its cpus."""
    return (_number(record, "wall_s") or 0.0) < BRIEF_S


def _held_cpu_s(record: Record) -> float | None:
    cpus, wall = _number(record, "cpus"), _number(record, "wall_s")
    return None if cpus is None or wall is None else cpus * wall
