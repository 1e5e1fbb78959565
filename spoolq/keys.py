"""
Keys of configuration files: how each value is read, checked and shown, with the place where it was said.

Each reader raises UsageError with what is wrong; `checked` adds file, line and key. Unknown keys are
errors: a misspelt limit is no limit.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from spoolq.errors import JobFileError, Misconfigured, UsageError
from spoolq.options import did_you_mean
from spoolq.resources import CPUS, MEM, NAME, UNIT, parse_amount, parse_seconds
from spoolq.toml import kind_of, line_of, quote, read_toml
from spoolq.values import MOST, MOST_SECONDS

NODE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


class Setting(NamedTuple):
    """A value in force, as TOML would say it, and where it was said: `file:line`, or `default`."""

    key: str
    value: str
    origin: str


class Key(NamedTuple):
    """One key of spool.toml: how its value is read, its default as written, and what it is for."""

    table: str
    name: str
    read: Callable[[Any], Any]
    default: Any
    help: str


def number(low: float, high: float = 1e9) -> Callable[[Any], float]:
    def read(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UsageError(f"{kind_of(value)}; must be a number")
        if low <= value <= high:
            return float(value)
        raise UsageError(f"{value} is not within {low:g}..{high:g}")

    return read


def amount(parse: Callable[[str, str], int], what: str) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise UsageError(f"{kind_of(value)}; must be a number or a string")
        if not 0 < (amount := parse(str(value), what)) <= MOST:
            raise UsageError(f"{value!r} must be more than 0 and at most {MOST // UNIT}")
        return amount

    return read


def most(parse: Callable[[str, str], int]) -> Callable[[Any], int | None]:
    def read(value: Any) -> int | None:
        if value == "unlimited":
            return None
        try:
            if not isinstance(value, bool) and (found := parse(str(value), "number")) > 0:
                return found
        except ValueError:
            pass
        raise UsageError(f"{value!r:.60} must be a number of 1 or more, or unlimited")

    return read


def duration(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise UsageError(f"{kind_of(value)}; must be a number of minutes or a string")
    seconds = parse_seconds(str(value))
    if seconds is not None and not 0 < seconds <= MOST_SECONDS:
        raise UsageError("must be more than 0 and at most 10000 days (for no limit: unlimited)")
    return seconds


def choice(*choices: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if value not in choices:
            raise UsageError(f"{value!r:.60} is none of {', '.join(choices)}")
        return str(value)

    return read


def boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise UsageError(f"{kind_of(value)}; must be true or false")
    return value


def text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or not value.isprintable() or len(value) > 200:
        raise UsageError("must be a string of 1 to 200 printable characters")
    return value


def path(value: Any) -> str:
    if not isinstance(value, str) or value[:1] not in ("/", "~") or not value.isprintable():
        raise UsageError("must be an absolute path, or one that starts with ~")
    return value


def words(value: Any) -> tuple[str, ...]:
    words = [value] if isinstance(value, str) else value
    if not isinstance(words, list) or not words or any(not isinstance(w, str) or "\0" in w for w in words):
        raise UsageError('must be a program, or an array of its words (example: ["nice", "-n", "5"])')
    if not words[0]:
        raise UsageError("names no program")
    return tuple(words)


def node_name(value: Any) -> str:
    if not isinstance(value, str) or not NODE_NAME.fullmatch(value):
        raise UsageError(f"{value!r:.60} is no name for a node (letters, digits, . _ -)")
    return value


def resources(value: Any) -> dict[str, int]:
    if isinstance(value, str):
        value = dict(part.replace("=", ":").partition(":")[::2] for part in value.split(","))
    if not isinstance(value, dict):
        raise UsageError(f'{kind_of(value)}; must be a table or a string (example: "gpu:2")')
    for name in value:
        if not NAME.fullmatch(name) or name in (CPUS, MEM):
            raise UsageError(
                f"{name[:60]!r} is no name for a resource (lower case; cpus and mem are keys of their own)"
            )
    return {name: amount(parse_amount, name)(said) for name, said in value.items()}


def device_files(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(NAME.fullmatch(name) for name in value):
        raise UsageError(f'{kind_of(value)}; must be a table (example: {{ gpu = "/dev/nvidia%d" }})')
    for name, path in value.items():
        if not isinstance(path, str) or path[:1] != "/" or path.count("%d") != 1 or path.count("%") != 1:
            raise UsageError(f"{name}: {path!r:.60} is no absolute path with one %d for the number of the device")
    return dict(value)


def path_map(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or any(not isinstance(to, str) or to[:1] != "/" for to in value.values()):
        raise UsageError('must be a table of absolute paths (example: { "/home" = "/nfs/home" })')
    if any(old[:1] != "/" for old in value):
        raise UsageError(f"{next(old for old in value if old[:1] != '/')[:60]!r} is no absolute path")
    return dict(value)


def load(data: bytes, file: str) -> tuple[dict[str, Any], str]:
    try:
        return read_toml(data, file)
    except JobFileError as error:
        raise Misconfigured(str(error)) from None


def located(file: str, line: int | None) -> str:
    return f"{file}:{line}" if line else file


def checked(
    table: Mapping[str, Any], text: str, file: str, keys: tuple[Key, ...], tops: tuple[str, ...]
) -> dict[str, tuple[Any, str, str]]:
    # name -> (value, as written, origin)
    known = {(key.table, key.name): key for key in keys}
    tables = {key.table for key in keys} - {""}
    flat: list[tuple[str, str, Any]] = []
    for name, value in table.items():
        if name in tables and isinstance(value, dict):
            flat += [(name, inner, inner_value) for inner, inner_value in value.items()]
        elif name not in tops or ("", name) in known:
            flat.append(("", name, value))
    found = {}
    for where, name, value in flat:
        place = located(file, line_of(text, name))
        if (where, name) not in known:
            hint = did_you_mean(name, {n for t, n in known if t == where} | (set() if where else {*tops, *tables}))
            inside = f" in [{where}]" if where else ""
            raise Misconfigured(f"{place}: unknown key {name[:60]!r}{inside}{hint}")
        try:
            found[name] = (known[where, name].read(value), written(value), place)
        except UsageError as error:
            raise Misconfigured(f"{place}: {name}: {str(error).removeprefix(name + ': ')}") from None
    return found


def in_force(keys: tuple[Key, ...], given: Mapping[str, tuple[Any, str, str]]) -> tuple[Setting, ...]:
    said = {key: given.get(key.name) or (None, written(key.default), "default") for key in keys}
    return tuple(Setting(f"{k.table}.{k.name}".lstrip("."), text, origin) for k, (_, text, origin) in said.items())


def written(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{name} = {written(inner)}" for name, inner in value.items()) + " }" if value else ""
    if isinstance(value, list):
        return f"[{', '.join(map(written, value))}]"
    return quote(value) if isinstance(value, str) else "" if value is None else str(value).lower()
