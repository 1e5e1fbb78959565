"""
What is known of a finished attempt: `result.json` in the job's home and its line of history.

One line of JSON with the stable keys of RESULT_KEYS; a fact that nobody measured is null, never 0.
Invariant: parse(build(facts(...))) has exactly those keys; a torn or foreign file is None, never half a
result; the state in a result agrees with the ending in the entry's name, since both come from here.
Never reads a clock: times come in as seconds since the epoch and are only ever printed.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from spoolq import elbow
from spoolq.entry import Entry
from spoolq.environment import timestamp
from spoolq.errors import Misconfigured
from spoolq.job import RESULT_KEYS, Job
from spoolq.resources import CPUS, MEM, UNIT
from spoolq.state import State, ending_of, of_ending

FORMAT = 1
MOST_COMMAND = 4096  # characters of a command that history keeps

RUSAGE_KEYS = (
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
_ENDED_BY_US = ("timeout", "oom", "cancelled")
_LIMITS = {"timeout": "time", "oom": "mem"}
_NUMBERS = frozenset((*RUSAGE_KEYS, "wall_s", "cpus", "mem_mb", "exit_code", "signal"))
_TEXTS = frozenset(("reason", "node", "submitted", "started", "ended", "limit_hit", "measured_by"))
_STATES = frozenset(state.name for state in State)
_encode = json.JSONEncoder(allow_nan=False, check_circular=False).encode


def _iso(seconds: Any) -> str | None:
    # a record of history has the text already
    if seconds is None or isinstance(seconds, str):
        return seconds
    try:
        return timestamp(seconds)
    except (ValueError, OverflowError, OSError):
        return None


def ending_word(ended: Mapping[str, Any]) -> str:
    """
    The ending for the entry's name, as in `entry.Entry.ending`.

    Without code and signal nothing is known of the end: `lost` is `nodefail`, and what could not be
    launched is `exit127` as in a shell; it is never `exit0`.
    """
    exit_code, signal = ended.get("exit_code"), ended.get("signal")
    reason = (ended.get("reason") or "").partition(":")[0]
    if reason in ("lost", "nodefail") or (exit_code is None and signal is None and reason not in _ENDED_BY_US):
        return "exit127" if reason.startswith("launch") else "nodefail"
    return ending_of(exit_code=exit_code, signal=signal, reason=reason)


def facts(
    entry: Entry, ended: Mapping[str, Any], *, ending: str, node: str | None, submitted: str | None
) -> dict[str, Any]:
    """
    What is known of an attempt that ended: a value for each of RESULT_KEYS.

    Args:
        entry: of the attempt: its id, attempt and amounts.
        ended: what the runner says of the end (see `ending`); `rusage` has the names in RUSAGE_KEYS.
        ending: the word in the entry's name, see `ending_word`.
        node: where it ran, or None if it never did.
    """
    get, rusage, wants = ended.get, ended.get("rusage") or {}, entry.wants
    reason = get("reason") or None
    detail = elbow.words(reason or "", get("detail") or "", entry) or None
    found: dict[str, Any] = {
        "format": FORMAT,
        "id": entry.id,
        "attempt": entry.attempt,
        "state": of_ending(ending).name,
        "exit_code": get("exit_code"),
        "signal": get("signal"),
        "reason": f"{reason}: {detail}" if reason and detail else reason or detail,
        "node": node,
        "submitted": submitted or None,
        "started": _iso(get("started")),
        "ended": _iso(get("ended")),
        "wall_s": _rounded(get("wall_s")),
    }
    for key in RUSAGE_KEYS:
        found[key] = _rounded(rusage.get(key))
    found["cpus"] = _whole(wants.get(CPUS))
    found["mem_mb"] = _whole(wants.get(MEM))
    found["limit_hit"] = _LIMITS.get(reason or "")
    found["measured_by"] = get("measured_by") or None
    if entry.chunk:
        number = entry.chunk[1:]
        found["task"] = int(number) if number.isdigit() else None
        found |= {} if number.isdigit() else {"chunk": number}
    return found


def build(found: Mapping[str, Any]) -> bytes:
    """The bytes of result.json: one line."""
    return (_encode(found) + "\n").encode()


def rebuild(record: Mapping[str, Any]) -> bytes:
    """The bytes of result.json from a record of history."""
    return build({key: record.get(key) for key in RESULT_KEYS})


def _rounded(value: float | None) -> float | None:
    return round(value, 6) if type(value) is float else value


def _whole(amount: int | None) -> float | None:
    if amount is None:
        return None
    return amount / UNIT if amount % UNIT else amount // UNIT


def parse(data: bytes) -> dict[str, Any] | None:
    """
    The result in a file, or None if it is torn or no result. Keys of newer versions are kept.

    Raises:
        Misconfigured: of a newer format.
    """
    if not data.endswith(b"\n"):
        return None
    try:
        result = json.loads(data, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    if type(result) is not dict or type(result.get("format")) is not int:
        return None
    if result["format"] > FORMAT:
        raise Misconfigured(f"a result of format {result['format']}; this version of spoolq knows {FORMAT}")
    return result if result["format"] == FORMAT and _sound(result) else None


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def _sound(result: Mapping[str, Any]) -> bool:
    return (
        all(key in result for key in RESULT_KEYS)
        and type(result["id"]) is int
        and type(result["attempt"]) is int
        and type(result["state"]) is str
        and result["state"] in _STATES
        and all(result[key] is None or type(result[key]) in (int, float) for key in _NUMBERS)
        and all(result[key] is None or type(result[key]) is str for key in _TEXTS)
    )


def history_line(found: Mapping[str, Any], job: Job | None) -> bytes:
    """
    A line of history: the facts, with the job's name, user and command words (null if unknown).

    `script`, true, says that the job ran a script and the words are its arguments.
    Of a long command only the first words are kept, then `...`, so that a line stays a line.
    """
    if job is None:
        return build({**found, "name": None, "user": None, "command": None})
    said = {**found, "name": job.name, "user": job.user, "command": _short(job.command)}
    return build({**said, "script": True} if job.script else said)


def _short(command: Iterable[str]) -> list[str]:
    words: list[str] = []
    left = MOST_COMMAND
    for word in command:
        words.append(word if len(word) <= left else word[:left] + "...")
        left -= len(word) + 1
        if left < 0:
            break
    return words
