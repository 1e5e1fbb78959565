"""
Learn from what commands used what the next run of the same command will need.

The same command is told by its signature: the program and what makes a different program of it (a
subcommand, the script of an interpreter), without arguments, numbers as `#`. Of each the newest runs
are kept; an older run counts for less (half after HALF_LIFE_DAYS). The estimate is the weighted
quantile of what they used, and a margin. Source: Tovar et al., "A job sizing strategy for
high-throughput scientific workflows", TPDS 29 (2), 2018: a high quantile with retries wastes least.
Invariant: an estimate comes from at least LEAST runs; it never replaces what a user asked for, and it
never asks for fewer cpus than the default.
"""

import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from spoolq.job import Job
from spoolq.resources import CPUS, MEM, UNIT, show_mb, show_seconds

LEAST = 3  # runs without which nothing is estimated
NEWEST = 20  # runs of a command that are kept
COMMANDS = 64  # commands that one file holds: those that ran last
BUCKETS = 64  # files; a submission reads one of them
HALF_LIFE_DAYS = 14.0
QUANTILE, MARGIN = 0.95, 1.2
LEAST_MB = 32
LEAST_WALL_S = 1.0  # of shorter runs the use of cpus means nothing

# told by methods of str: to compile patterns costs a `sub` more than the rest of this room
_SHELLS = frozenset(["sh", "bash", "dash", "zsh", "ksh"])
_INTERPRETERS = frozenset(["python", "pypy", "perl", "ruby", "node", "julia", "lua", "Rscript", "java", "php"])
_WRAPPERS = frozenset(["env", "nice", "time", "nohup", "exec", "ionice", "stdbuf", "taskset", "timeout", "numactl"])
_LETTERS = str.maketrans("0123456789", "ghijklmnop")  # a checksum without digits, which would become `#`
_MOST = 120  # letters of a signature


class Run(NamedTuple):
    """What one run that succeeded used: the day (as `date.toordinal`), MB, cpus on average, seconds."""

    day: int
    mem_mb: int
    cpus: float
    wall_s: float


class Estimate(NamedTuple):
    """What the next run will need; `cpus` is None where no run was long enough to tell."""

    mem_mb: int
    cpus: int | None
    time_s: int
    runs: int


Known = dict[str, list[Run]]
"""Runs by `key`, the newest first."""


def signature(command: Sequence[str], *, script: str = "") -> str:
    """
    What tells a command from others: `bwa mem`, `python train.py`, `sim_#`.

    Args:
        script: the name of the job if it runs a copy of a script, else empty.
    """
    words = [f"script {script}"] if script else _program(list(command), 3)
    letters: list[str] = []
    for letter in " ".join(words):
        if not letter.isdigit():
            letters.append(letter)
        elif letters[-1:] != ["#"]:
            letters.append("#")
    return "".join(letters[:_MOST])


def _program(words: list[str], depth: int) -> list[str]:
    while words and (_is_assignment(words[0]) or _base(words[0]) in _WRAPPERS):
        wrapped = _base(words.pop(0)) in _WRAPPERS
        while wrapped and words and (words[0].startswith("-") or _is_number(words[0])):
            words.pop(0)
    if not words:
        return []
    program, rest = _base(words[0]), words[1:]
    if program in _SHELLS and len(rest) > 1 and rest[0].startswith("-") and rest[0].endswith("c") and depth:
        return _program(rest[1].split(), depth - 1) or [program]
    plain = [word for word in rest if not word.startswith("-")]
    plain_name = program.rstrip("0123456789.")  # python3.11 is python
    if program in _SHELLS or plain_name in _INTERPRETERS:
        program = plain_name
        if rest[:1] == ["-m"] and len(rest) > 1:
            return [program, rest[1]]
        if rest[:1] in (["-c"], ["-e"]) and plain:  # other text, other program
            return [program, rest[0], f"{zlib.crc32(plain[0].encode('utf-8', 'replace')):08x}".translate(_LETTERS)]
        return [program, _base(plain[0])] if plain else [program]
    if rest and _is_subcommand(rest[0]):
        return [program, rest[0]]
    return [program]


def _is_assignment(word: str) -> bool:
    name, equals, _ = word.partition("=")
    return bool(equals) and name.isidentifier()


def _is_number(word: str) -> bool:
    return word.rstrip("smhd").replace(".", "").replace(",", "").isdigit()


def _is_subcommand(word: str) -> bool:
    plain = word.replace("-", "").replace("_", "")
    return word[0:1].islower() and word.islower() and plain.isalnum() and plain.isascii() and 1 < len(word) < 32


def _base(word: str) -> str:
    return word.rstrip("/").rpartition("/")[2]


def of_job(job: Job) -> str:
    """The signature of a job."""
    return signature(job.command, script=job.name if job.script else "")


def of_record(record: Mapping[str, Any]) -> str:
    """The signature of a line of history; empty if it has no command."""
    command = record.get("command")
    words = [word for word in command if isinstance(word, str)] if isinstance(command, list) else []
    name = record.get("name")
    return signature(words, script=name if record.get("script") and isinstance(name, str) else "")


def key(user: str, command: str) -> str:
    """The name of a command of a user, in letters that a line of a file takes."""
    return "".join(c if c.isprintable() else "_" for c in f"{user} {command}")


def bucket(name: str) -> str:
    """Which file a key is in."""
    return f"{zlib.crc32(name.encode()) % BUCKETS:02d}"


def day_of(ended: object) -> int | None:
    """The day of an end, ISO 8601 or seconds since the epoch, as `date.toordinal` counts; None if it says none."""
    from datetime import UTC, date, datetime

    try:
        if isinstance(ended, int | float):
            return datetime.fromtimestamp(ended, UTC).date().toordinal()
        return date.fromisoformat(ended[:10]).toordinal() if isinstance(ended, str) else None
    except (ValueError, OverflowError, OSError):
        return None


def run_of(record: Mapping[str, Any], *, day: int | None, peak_mb: int = 0) -> Run | None:
    """
    What a run used, from its result; None unless it succeeded and was measured.

    Args:
        peak_mb: the most that all its processes were seen to hold together, where that was sampled.
    """
    if record.get("state") != "COMPLETED" or day is None:
        return None
    rss_kb, user_s, system_s, wall_s = (_number(record, n) for n in ("max_rss_kb", "user_s", "system_s", "wall_s"))
    if rss_kb is None or wall_s is None or user_s is None or system_s is None:
        return None
    cpus = (user_s + system_s) / wall_s if wall_s >= LEAST_WALL_S else 0.0
    return Run(day, max(math.ceil(rss_kb / 1024), peak_mb), round(cpus, 2), round(wall_s, 1))


def _number(record: Mapping[str, Any], name: str) -> float | None:
    value = record.get(name)
    return value if isinstance(value, int | float) and 0 <= value < 1e15 else None


def quantile(weighted: Iterable[tuple[float, float]], share: float = QUANTILE) -> float:
    """The smallest of some (value, weight) below or at which lies at least a share of all weight."""
    ordered = sorted(weighted)
    left = share * sum(weight for _, weight in ordered)
    for value, weight in ordered:
        left -= weight
        if left <= 1e-9:
            return value
    return ordered[-1][0] if ordered else 0.0


def estimate(runs: Sequence[Run]) -> Estimate | None:
    """What the next run will need, or None if too few are known."""
    if len(runs) < LEAST:
        return None
    newest = max(run.day for run in runs)  # their own time: no clock is asked
    weights = [0.5 ** ((newest - run.day) / HALF_LIFE_DAYS) for run in runs]

    def most(values: Iterable[float]) -> float:
        return quantile(zip(values, weights, strict=True))

    mb = max(LEAST_MB, math.ceil(most(run.mem_mb for run in runs) * MARGIN / 10) * 10)
    minutes = max(1, math.ceil(most(run.wall_s for run in runs) * MARGIN / 60))
    used = most(run.cpus for run in runs)
    long_enough = any(run.wall_s >= LEAST_WALL_S for run in runs)
    # a quarter of a cpu more than a whole number is its start and end, no other thread
    return Estimate(mb, max(1, math.ceil(used - 0.25)) if long_enough else None, minutes * 60, len(runs))


def merged(known: Known, fresh: Mapping[str, Sequence[Run]]) -> Known:
    """What is known with what was seen since, within bounds: the newest runs of the commands that ran last."""
    both = {name: [*fresh.get(name, ()), *known.get(name, ())][:NEWEST] for name in (*fresh, *known)}
    last = sorted(both, key=lambda name: (-max(run.day for run in both[name]), name not in fresh, name))
    return {name: both[name] for name in last[:COMMANDS]}


def fill(job: Job, found: Estimate | None, least_mb: int = 0) -> Job:
    """
    The job with estimates where its user asked for nothing, and `estimate` that says so.

    Args:
        least_mb: no less memory than that, where a default is enforced.
    """
    if found is None:
        return job
    wants, words = dict(job.wants), []
    if MEM not in job.declared:
        mb = max(found.mem_mb, least_mb)
        wants[MEM] = mb * UNIT
        words.append(f"mem={mb}")
    if CPUS not in job.declared and found.cpus is not None and found.cpus * UNIT > wants[CPUS]:
        wants[CPUS] = found.cpus * UNIT
        words.append(f"cpus={found.cpus}")
    if job.limit_s is None:  # for people: a limit that nobody asked for would end jobs
        words.append(f"time={found.time_s // 60}")
    return job._replace(wants=wants, estimate=(*words, f"runs={found.runs}")) if words else job


def told(words: Sequence[str]) -> str:
    """`memory 120M, time 6:00, as 23 runs of this command needed`, from the `estimate` of a job."""
    said = dict(word.partition("=")[::2] for word in words)
    numbers = {name: int(text) for name, text in said.items() if text.isdigit()}
    parts = [f"memory {show_mb(numbers['mem'] * UNIT)}"] if "mem" in numbers else []
    parts += [f"{numbers['cpus']} cpus"] if "cpus" in numbers else []
    parts += [f"time {show_seconds(numbers['time'] * 60)} (not enforced)"] if "time" in numbers else []
    return f"{', '.join(parts)}: from {numbers.get('runs', 0)} runs of this command"


def parse(data: bytes, only: str = "") -> Known:
    """
    What a file says: a line for each key, `anna bwa mem<TAB>739321 1200 3.9 61.5<TAB>...`; what is none says nothing.

    Args:
        only: the one key that is wanted, or empty for all.
    """
    found: Known = {}
    for line in data.decode("utf-8", "replace").split("\n"):
        name, *parts = line.split("\t")
        if parts and (not only or name == only):
            runs = [run for part in parts[:NEWEST] if (run := _run(part))]
            if runs:
                found[name] = runs
    return found


def _run(text: str) -> Run | None:
    day, _, rest = text.partition(" ")
    try:
        mb, cpus, wall_s = rest.split(" ")
        return Run(int(day), int(mb), float(cpus), float(wall_s)) if day.isdigit() and mb.isdigit() else None
    except ValueError:
        return None


def form(known: Known) -> bytes:
    """The file's bytes."""
    rows = (
        (name, [f"{day} {mb} {cpus:g} {wall:.10g}" for day, mb, cpus, wall in runs]) for name, runs in known.items()
    )
    lines = ["\t".join([name, *texts]) for name, texts in rows]
    return "".join(f"{line}\n" for line in lines).encode()
