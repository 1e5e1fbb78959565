"""
The TOML file in which a user describes a job: keys named as the long options, `command`, `script`.

Invariant: any bytes give a job or a JobFileError that names the line, nothing else. Never reads a file
from disk.
"""

import datetime as dt
from collections.abc import Mapping
from typing import Any, NamedTuple

from spoolq import options
from spoolq.errors import JobFileError, UsageError
from spoolq.job import Job
from spoolq.options import BY_NAME, Option, Pair
from spoolq.script import SHELL, parse_script
from spoolq.toml import kind_of, line_of, plain, read_toml


class Request(NamedTuple):
    """What a user's job file asks for; `command` with a script are the words after the script's path."""

    pairs: list[Pair]
    command: tuple[str, ...]
    script: bytes | None
    warnings: list[str]


def parse_job(data: bytes, file: str, base: Mapping[str, Any] | None = None) -> tuple[Job, bytes | None]:
    """The job and the script in a job file that a user wrote; `base` has fields of a job that does not say."""
    request = parse_request(data, file)
    try:
        return options.to_job(request.pairs, request.command, base, script=request.script is not None), request.script
    except UsageError as error:
        raise JobFileError(str(error), file=file) from None


def parse_request(data: bytes, file: str) -> Request:
    """
    Read a job file that a user wrote: keys named as the long options, `command` and `script`.

    Raises:
        JobFileError: what is wrong, with the line where one is to blame.
    """
    table, text = read_toml(data, file)
    pairs: dict[str, Pair] = {}
    command: tuple[str, ...] | None = None
    script: bytes | None = None
    for key, value in table.items():
        try:
            if key == "command":
                command = _command(value)
            elif key == "script":
                script = plain("script", value).encode()
            else:
                option = _option(key)
                if option.name in pairs:
                    raise UsageError(f"{key}: is another name of {option.name}, which is given too")
                pairs[option.name] = Pair(option.name, text_of(key, option, value))
                option.parse(pairs[option.name].value)
        except UsageError as error:
            raise JobFileError(str(error), file=file, line=line_of(text, key)) from None
    if not (command or script or "wrap" in pairs):
        raise JobFileError('no command (example: command = ["make", "-j4"], or wrap = "make | tee log")', file=file)
    if ("wrap" in pairs and (command or script)) or (script and command and command[:2] == SHELL):
        raise JobFileError("more than one command: give command, script or wrap", file=file)
    directives, warnings = parse_script(script, f"{file} (script)") if script else ([], [])
    return Request([*directives, *pairs.values()], command or (), script, warnings)


def _option(key: str) -> Option:
    option = BY_NAME.get(key)
    if option is None:
        known = ["command", "script", *(name for name, o in BY_NAME.items() if o.scope != options.COMMAND_LINE)]
        raise UsageError(f"unknown key {key[:60]!r}{options.did_you_mean(key, known)}")
    if option.scope == options.COMMAND_LINE:
        raise UsageError(f"{key}: has no meaning in a job file, only on the command line")
    return option


def _command(value: object) -> tuple[str, ...]:
    if isinstance(value, str) and value.strip():
        return (*SHELL, plain("command", value))
    if not isinstance(value, list) or any(not isinstance(word, str) for word in value):
        raise UsageError('command: must be an array of strings (example: ["sleep", "5"]) or one line for the shell')
    if value and not value[0]:
        raise UsageError("command: the first word is empty")
    return tuple(plain("command", word) for word in value)


def text_of(key: str, option: Option, value: object) -> str:
    """What a value in TOML says, as the command line would say it; UsageError names the key."""
    if option.kind == "flag":
        if not isinstance(value, bool):
            raise UsageError(f"{key}: {kind_of(value)}; must be true or false")
        return "yes" if value else "no"
    if option.kind == "number" and not isinstance(value, str):
        if isinstance(value, dt.time) and option.name == "time":
            return value.isoformat("seconds")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UsageError(f"{key}: {kind_of(value)}; must be a number or a string")
        return str(value)
    if option.kind == "list" and isinstance(value, list):
        parts = [plain(key, part) for part in value]
        return ",".join(
            part.replace(",", "\\,") if option.gathers or option.name == "export" else part for part in parts
        )
    if option.name == "umask" and not isinstance(value, str):
        raise UsageError('umask: must be a string, to be read as octal (example: "0022")')
    return plain(key, value)
