"""
The stored job file: a valid job as the spool keeps it, read by nodes and by `cat`.

Invariants: read_job(format_job(job)) == job, but for values in `export`, which are left out because
others may read the file. What a stored file does not say has the default of format 1 for ever; cpus,
memory, directory and umask are always said.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import repeat
from typing import Any

from spoolq.entry import HELD, RERUNS
from spoolq.environment import shown
from spoolq.errors import JobFileError, Misconfigured, UsageError
from spoolq.job import Job
from spoolq.options import BY_NAME
from spoolq.resources import CPUS, MEM, UNIT, parse_seconds, show_amount
from spoolq.toml import array, plain, quote, read_toml
from spoolq.values import Fields

FORMAT = 1
MAX_STORED = 1 << 20  # bytes of a stored one, which holds a whole command line

# Fields of Job by the kind of their values; the key in the file is the name of the option. What has its default is
# left out. A new field needs its name here, and nothing else in this room.
_TEXTS = [
    "name",
    "chdir",
    "begin",
    "held",
    "rerun",
    "output",
    "error",
    "constraint",
    "open_mode",
    "output_mode",
    "export",
    "signal",
    "retry_mem",
    "user",
    "submitted",
    "submit_host",
    "kill_on_invalid_dep",
    "unique",
    "parent",
    "array",
]
_NUMBERS = [
    "priority",
    "retries",
    "max_fails",
    "mem_factor",
    "time_factor",
]
_FLAGS = [
    "if_stale",
    "script",
    "ages",
]
_LISTS = [
    "stage_in",
    "stage_out",
    "inputs",
    "targets",
    "command",
    "nodelist",
    "exclude",
    "declared",
    "depend",
    "policy",
    "estimate",
]
_KEYS = {
    field: field if field == "submit_host" else field.replace("_", "-")
    for field in (*_TEXTS, *_NUMBERS, *_FLAGS, *_LISTS)
}
_KEYS |= {"inputs": "in", "targets": "out"}
_FIELDS = {key: field for field, key in _KEYS.items()}
_CHOICES = {"open_mode": ("append", "truncate"), "held": ("", *HELD), "rerun": tuple(RERUNS)}
_CHOICES |= {"output_mode": ("spool", "local"), "kill_on_invalid_dep": ("yes", "no")}
_FIRST = ("command", "name", "chdir")  # said always, and before the rest
_DEFAULTS = Job._field_defaults


def format_job(job: Job) -> bytes:
    """
    The stored job file.

    Bytes that are no UTF-8 (file names may be anything) are written as %XX, and `escaped` says so.

    Raises:
        UsageError: longer than MAX_STORED.
    """
    return next(format_many(job, (job.command,)))


def format_many(job: Job, commands: Iterable[tuple[str, ...]], names: Iterable[str] | None = None) -> Iterator[bytes]:
    """
    Stored job files of jobs that differ in their commands, and in their names if names are given.

    The rest is formatted once.
    """
    rest = _rest(job)
    for command, name in zip(commands, repeat(job.name) if names is None else names, strict=False):
        try:
            data = (_head(command, name) + rest).encode()
        except UnicodeEncodeError:
            one = _each_text(job._replace(command=command, name=name), _percent)
            data = (_head(one.command, one.name) + 'escaped = "percent"\n' + _rest(one)).encode()
        if len(data) > MAX_STORED:
            raise UsageError(f"command: {len(data)} bytes; at most {MAX_STORED >> 10} KiB (put it into a script)")
        yield data


def _head(command: Iterable[str], name: str) -> str:
    return f"format = {FORMAT}\ncommand = {array(command)}\n" + (f"name = {quote(name)}\n" if name else "")


def _rest(job: Job) -> str:
    wants = job.wants
    parts = [f"{_KEYS[field]} = true\n" for field in _FLAGS if getattr(job, field)]
    parts.append(f'chdir = {quote(job.chdir)}\numask = "{job.umask:04o}"\n')
    parts.append(f"cpus = {show_amount(wants[CPUS])}\nmem = {show_amount(wants[MEM])}\n")
    if len(wants) > 2:
        others = [f"{name}:{show_amount(wants[name])}" for name in sorted(wants) if name not in (CPUS, MEM)]
        parts.append(f"gres = {quote(','.join(others))}\n")
    if (limit_s := job.limit_s) is not None:
        parts.append(f'time = "{limit_s}s"\n' if limit_s % 60 else f"time = {limit_s // 60}\n")
    numbers = ((field, getattr(job, field)) for field in _NUMBERS)
    parts += [f"{_KEYS[field]} = {number}\n" for field, number in numbers if number != _DEFAULTS[field]]
    for field in _TEXTS:
        text = getattr(job, field)
        if text != _DEFAULTS[field] and field not in _FIRST:
            parts.append(f"{_KEYS[field]} = {quote(shown(text) if field == 'export' and '=' in text else text)}\n")
    for field in _LISTS:
        words = getattr(job, field)
        if words and field not in _FIRST:
            parts.append(f"{_KEYS[field]} = {array(sorted(words) if isinstance(words, frozenset) else words)}\n")
    return "".join(parts)


def _percent(text: str) -> str:
    return re.sub("[\udc80-\udcff]", lambda m: f"%{ord(m[0]) & 0xFF:02X}", text.replace("%", "%25"))


def _unpercent(text: str) -> str:
    return re.sub("%(25|[89A-F][0-9A-F])", lambda m: "%" if m[1] == "25" else chr(0xDC00 + int(m[1], 16)), text)


def _each_text(job: Job, change: Callable[[str], str]) -> Job:
    changed: Fields = {field: change(text) for field in _TEXTS if (text := getattr(job, field)) is not None}
    lists = {field: getattr(job, field) for field in _LISTS}
    changed |= {field: tuple(map(change, words)) for field, words in lists.items() if isinstance(words, tuple)}
    return job._replace(**changed)


def read_job(data: bytes, file: str) -> Job:
    """
    The job in a stored file; keys that are not known are of a newer version and are passed over.

    Raises:
        JobFileError: damaged, or no stored job file.
        Misconfigured: of a newer format.
    """
    table, _ = read_toml(data, file, MAX_STORED)
    version = table.get("format")
    if type(version) is not int:
        raise JobFileError("no stored job file: does not start with format = 1", file=file)
    if version != FORMAT:
        raise Misconfigured(f"{file}: format {version} is not known to this version of spoolq (it knows {FORMAT})")
    fields: dict[str, Any] = {}
    wants: dict[str, int] = {CPUS: UNIT, MEM: 1000 * UNIT}
    try:
        for key, value in table.items():
            if (field := _FIELDS.get(key)) is None:
                _read_other(key, value, fields, wants)
            elif not _valid(field, value):
                raise UsageError(f"{key}: {value!r:.60} is not valid")
            elif field in _NUMBERS or field in ("signal", "retry_mem"):
                fields |= BY_NAME[key].parse(str(value))
            elif field in _LISTS:
                fields[field] = frozenset(value) if isinstance(_DEFAULTS.get(field), frozenset) else tuple(value)
            else:
                fields[field] = value
    except UsageError as error:
        raise JobFileError(f"damaged: {error}", file=file) from None
    if not fields.get("command") and not fields.get("script"):
        raise JobFileError("damaged: no command", file=file)
    job = Job(command=fields.pop("command", ()), wants=wants, **fields)
    return _each_text(job, _unpercent) if table.get("escaped") == "percent" else job


def _valid(field: str, value: Any) -> bool:
    if field in _TEXTS:
        return type(value) is str and "\0" not in value and value in _CHOICES.get(field, (value,))
    if field in _LISTS:
        return type(value) is list and all(type(word) is str and "\0" not in word for word in value)
    return field in _NUMBERS or type(value) is bool


def _read_other(key: str, value: Any, fields: Fields, wants: dict[str, int]) -> None:
    kind = type(value)
    if key in (CPUS, MEM):
        if kind not in (int, float) or not 0 <= value < 1e12:
            raise UsageError(f"{key}: {value!r:.60} is not valid")
        wants[key] = round(value * UNIT)
    elif key == "time":
        fields["limit_s"] = value * 60 if kind is int and 0 <= value < 1e12 else parse_seconds(plain(key, value))
    elif key == "gres":
        wants |= BY_NAME[key].parse(plain(key, value))["wants"]
    elif key == "umask":
        fields |= BY_NAME[key].parse(plain(key, value))
