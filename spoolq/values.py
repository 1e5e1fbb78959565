"""
How the value of each option of a job is read: from a text to fields of a Job.

Each reader raises UsageError with the option, the text and an example of a good one.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

from spoolq import array as tasks
from spoolq.environment import parse_export
from spoolq.errors import UsageError
from spoolq.nodelist import node_names
from spoolq.resources import CPUS, MEM, NAME, UNIT, parse_amount, parse_seconds

Fields = dict[str, Any]  # arguments of Job

MOST = 1_000_000_000 * UNIT  # of anything; keeps entry names short
MOST_SECONDS = 10_000 * 86_400  # nine digits: what `parse_seconds` reads back


def amount_of(name: str, amount: int) -> Fields:
    if not 0 < amount <= MOST:
        raise UsageError(f"{name}: must be more than 0 and at most {MOST // UNIT}")
    return {"wants": {name: amount}}


def wants(name: str, read: Callable[[str, str], int]) -> Callable[[str], Fields]:
    return lambda text: amount_of(name, read(text, name))


def gres(text: str) -> Fields:
    wants: dict[str, int] = {}
    for part in text.split(","):
        name, _, number = part.strip().replace("=", ":", 1).partition(":")
        if not NAME.fullmatch(name):
            raise UsageError(f"gres: {part[:40]!r} is no resource (examples: gpu:2, license=1; names are lower case)")
        if name in (CPUS, MEM):
            raise UsageError(f"gres: {name} has an option of its own, --{name}")
        wants |= amount_of(name, parse_amount(number or "1", f"gres {name}"))["wants"]
    return {"wants": wants}


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


def wrap(text: str) -> Fields:
    if not text.strip() or "\0" in text:
        raise UsageError("wrap: names no command")
    return {"command": ("/bin/sh", "-c", text)}
