"""
How the value of each option of a job is read: from a text to fields of a Job.

Each reader raises UsageError with the option, the text and an example of a good one.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from spoolq import array as tasks
from spoolq import depend as dependency
from spoolq.constraint import parse as parse_constraint
from spoolq.environment import parse_export
from spoolq.errors import UsageError
from spoolq.nodelist import node_names
from spoolq.resources import CPUS, MEM, NAME, UNIT, parse_amount, parse_mb, parse_seconds

Fields = dict[str, Any]  # arguments of Job

_TYPE = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,39}")
MOST = 1_000_000_000 * UNIT  # of anything; keeps entry names short
MOST_SECONDS = 10_000 * 86_400  # nine digits: what `parse_seconds` reads back
MOST_FACTOR = 100
WARNING_S = 60  # Slurm's
SIGNALS = ("HUP", "INT", "QUIT", "USR1", "USR2", "TERM", "CONT", "WINCH", "URG")
_WARNING = re.compile(r"([Bb]:)?([A-Za-z0-9]{1,10})(?:@([0-9]{1,9}))?")


def amount_of(name: str, amount: int) -> Fields:
    if not 0 < amount <= MOST:
        raise UsageError(f"{name}: must be more than 0 and at most {MOST // UNIT}")
    return {"wants": {name: amount}}


def wants(name: str, read: Callable[[str, str], int]) -> Callable[[str], Fields]:
    return lambda text: amount_of(name, read(text, name))


def begin(text: str) -> Fields:
    from spoolq import begin as room

    room.moment(text, 0.0)
    return {"begin": text}


def gres(text: str) -> Fields:
    wants: dict[str, int] = {}
    typed: list[str] = []  # `gpu:a100:2`: of this type, which is a label
    for part in text.split(","):
        name, _, rest = part.strip().replace("=", ":", 1).partition(":")
        kind, _, number = (rest, "", "") if rest[:1].isalpha() and ":" not in rest else rest.rpartition(":")
        if not NAME.fullmatch(name):
            raise UsageError(f"gres: {part[:40]!r} is no resource (examples: gpu:2, license=1; names are lower case)")
        if name in (CPUS, MEM):
            raise UsageError(f"gres: {name} has an option of its own, --{name}")
        if kind and not _TYPE.fullmatch(kind):
            raise UsageError(f"gres: {part[:60]!r}: {kind[:40]!r} is no type (gpu:a100:2; or --constraint)")
        wants |= amount_of(name, parse_amount(number or "1", f"gres {name}"))["wants"]
        typed += [f"{name}_type=='*{kind}*'"] if kind else []
    return {"wants": wants, "typed": tuple(typed)} if typed else {"wants": wants}


def constraint(text: str) -> Fields:
    parse_constraint(text)
    return {"constraint": text.strip()}


def time(text: str) -> Fields:
    limit_s = parse_seconds(text)
    if limit_s is not None and not 0 < limit_s <= MOST_SECONDS:
        raise UsageError("time: must be more than 0 and at most 10000 days (for no limit: unlimited)")
    return {"limit_s": limit_s}


def whole(option: str, low: int, high: int, sign: int = 1) -> Callable[[str], Fields]:
    field = "priority" if option == "nice" else option.replace("-", "_")

    def parse(text: str) -> Fields:
        if not re.fullmatch(r"\s*[+-]?[0-9]{1,9}\s*", text):
            raise UsageError(f"{option}: {text[:40]!r} is no whole number")
        if not low <= (number := sign * int(text)) <= high:
            raise UsageError(f"{option}: {field} {number} is not within {low}..{high}")
        return {field: number}

    return parse


def factor(option: str) -> Callable[[str], Fields]:
    def parse(text: str) -> Fields:
        try:
            number = float(text.strip().lower().removesuffix("x"))
        except ValueError:
            number = 0.0
        if not 1 <= number <= MOST_FACTOR:
            raise UsageError(f"{option}: {text[:40]!r} is no number from 1 to {MOST_FACTOR} (example: 1.5)")
        return {option.replace("-", "_"): number}

    return parse


def grown(amount: int, by: str) -> int:
    """
    More of an amount: `2x` times it, `+500M` beside it, as `--retry-mem` says.

    Raises:
        UsageError: neither, or no more than before.
    """
    text = by.strip().lower()
    more = 0
    if text.startswith("+"):
        more = amount + parse_mb(text[1:], "retry-mem")
    elif re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,3})?x", text):
        more = -int(-amount * float(text[:-1]) // UNIT) * UNIT  # whole MB, rounded up
    more = min(more, MOST)
    if more <= amount < MOST:
        raise UsageError(f"retry-mem: {by[:40]!r} is no growth (examples: 2x, 1.5x, +500, +2G)")
    return more


def retry_mem(text: str) -> Fields:
    grown(1000 * UNIT, text)
    return {"retry_mem": text.strip().lower()}


class Warned(NamedTuple):
    """The signal before the end: its name or number, seconds before, and whether only the first process gets it."""

    signal: str
    before_s: int
    first: bool


def parse_warning(text: str) -> Warned:
    """
    `[B:]SIG[@SECONDS]`, as Slurm writes it; without seconds 60, as there.

    Raises:
        UsageError: no signal, or one that could not warn.
    """
    match = _WARNING.fullmatch(text.strip())
    word = (match[2].upper().removeprefix("SIG") if match else "") or "?"
    if not match or not (word in SIGNALS or (word.isdigit() and 1 <= int(word) <= 64)):
        some = ", ".join(SIGNALS)
        raise UsageError(f"signal: {text[:40]!r} is not [B:]SIG[@SECONDS] (example: USR1@60; SIG: {some} or a number)")
    before_s = int(match[3]) if match[3] else WARNING_S
    if not 0 < before_s <= MOST_SECONDS:
        raise UsageError(f"signal: {before_s} s before the end is not within 1..{MOST_SECONDS}")
    return Warned(word, before_s, bool(match[1]))


def warning(text: str) -> Fields:
    word, before_s, first = parse_warning(text)
    return {"signal": f"{'B:' * first}{word}@{before_s}"}


def name(text: str) -> Fields:
    if not text.strip() or not text.isprintable() or len(text) > 200:
        raise UsageError(f"name: {text[:60]!r} must be 1 to 200 printable characters")
    return {"name": text}


def path(field: str) -> Callable[[str], Fields]:
    def parse(text: str) -> Fields:
        if not text or "\0" in text:
            raise UsageError(f"{field}: must be a path, not {text[:60]!r}")
        return {field: text}

    return parse


def files(option: str, field: str) -> Callable[[str], Fields]:
    def parse(text: str) -> Fields:
        names = tuple(part.replace("\0", ",") for part in text.replace("\\,", "\0").split(",") if part)
        if not names or any("\n" in name for name in names):
            raise UsageError(f"{option}: must name files, not {text[:60]!r} (a comma in a name is written \\,)")
        return {field: names}

    return parse


def stage(option: str, field: str) -> Callable[[str], Fields]:
    read = files(option, field)

    def parse(text: str) -> Fields:
        fields = read(text)
        for item in fields[field]:
            source, _, target = item.replace("\\:", "").partition(":")
            inside = target if field == "stage_in" else source  # what is below the scratch directory
            if not source or inside.startswith("/") or ".." in inside.split("/"):
                below = "relative to the scratch directory, without `..`"
                which = "DST" if field == "stage_in" else "SRC"
                raise UsageError(
                    f"{option}: {item[:60]!r}: {which} must be {below} (example: {option} data/a.bam:a.bam)"
                )
        return fields

    return parse


def choice(field: str, choices: Sequence[str]) -> Callable[[str], Fields]:
    def parse(text: str) -> Fields:
        if text not in choices:
            raise UsageError(f"{field.replace('_', '-')}: {text[:40]!r} is none of {', '.join(choices)}")
        return {field: text}

    return parse


def flag(fields: Fields) -> Callable[[str], Fields]:
    return lambda text: fields if text == "yes" else {}


def export(text: str) -> Fields:
    parse_export(text)
    return {"export": text}


def array(text: str) -> Fields:
    return {"array": tasks.show(tasks.parse(text))}


def umask(text: str) -> Fields:
    if not re.fullmatch(r"0?[0-7]{1,3}", text):
        raise UsageError(f"umask: {text[:40]!r} is no octal mask (example: 0022)")
    return {"umask": int(text, 8)}


def nodes(field: str) -> Callable[[str], Fields]:
    def parse(text: str) -> Fields:
        patterns = tuple(re.findall(r"(?:[^,\s\[]|\[[^\]]*\]?)+", text))  # commas in brackets do not part
        if not patterns or not node_names(",".join(patterns)):
            raise UsageError(f"{field}: names no node (examples: n1,n2 or n[1-4] or gpu*)")
        return {field: patterns}

    return parse


def depend(text: str) -> Fields:
    return {"depend": tuple(map(str, dependency.parse(text)))}


def wrap(text: str) -> Fields:
    if not text.strip() or "\0" in text:
        raise UsageError("wrap: names no command")
    return {"command": ("/bin/sh", "-c", text)}
