"""
Texts that are jobs: the TOML file a user writes, a script with `#SPOOLQ` lines, the stored job file.

Invariants: any bytes give a job or a JobFileError (Misconfigured for a newer format) that names the
line, nothing else; read_job(format_job(job)) == job, but for values in `export`, which are left out
because others may read the file. What a stored file does not say has the default of format 1 for
ever; cpus, memory, directory and umask are always said. Never reads a file from disk.
"""

import datetime as dt
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import repeat
from typing import Any, NamedTuple

from spoolq import options
from spoolq.config import array, kind_of, line_at, line_of, quote, read_toml
from spoolq.entry import HELD, RERUNS
from spoolq.environment import shown
from spoolq.errors import JobFileError, Misconfigured, UsageError
from spoolq.job import Job
from spoolq.options import BY_NAME, BY_SHORT, Fields, Option, Pair
from spoolq.resources import CPUS, MEM, UNIT, parse_seconds, show_amount

FORMAT = 1
MAX_STORED = 1 << 20  # bytes of a stored one, which holds a whole command line
MAX_SCRIPT = 1 << 20
SHELL = ("/bin/sh", "-c")

# key of a stored file -> field of Job, where the value is one text
_TEXTS = {"name": "name", "chdir": "chdir", "output": "output", "error": "error", "open-mode": "open_mode"}
_TEXTS |= {"held": "held", "export": "export", "rerun": "rerun", "user": "user", "submitted": "submitted"}
_TEXTS |= {"submit_host": "submit_host", "output-mode": "output_mode"}
_CHOICES = {"open-mode": ("append", "truncate"), "held": ("", *HELD), "rerun": tuple(RERUNS)}
_CHOICES |= {"output-mode": ("spool", "local")}

_BOM = b"\xef\xbb\xbf"
_DIRECTIVE = re.compile(rb"\s*(#SPOOLQ|#SBATCH|#\s+SPOOLQ\s+-)", re.IGNORECASE)
_SHEBANG = re.compile(rb"#![ \t]*([^ \t\r]+)[ \t]*(.*?)[ \t\r]*", re.DOTALL)
_BLANKS = re.compile(r"\s*")
_WORD = re.compile(r"""(?:[^\s"'\\]+|\\.|"[^"\\]*(?:\\.[^"\\]*)*"|'[^']*')+""", re.DOTALL)
_QUOTED = re.compile(r"""\\.|"[^"\\]*(?:\\.[^"\\]*)*"|'[^']*'""", re.DOTALL)
# Slurm's options that mean the same here -> ours; `one` is good with the value 1 alone
_SAME = "cpus-per-task mem time output error chdir hold gres gpus nodelist exclude export open-mode requeue no-requeue"
_SBATCH = {"job-name": "name", "nodes": "one", "ntasks": "one", "N": "one", "n": "one"}
_SBATCH |= {name: name for name in _SAME.split()} | {letter: BY_SHORT[letter].name for letter in "JctoeDHGwx"}

# what the shell would change in a line, and words that only the shell can run
_PLAIN = re.compile(r"[\w@+,./: \t-]*")
_SHELL_WORDS = """
    . : alias bg bind break builtin caller case cd command compgen complete continue coproc declare dirs disown do done
    elif else enable esac eval exec exit export fc fg fi for function getopts hash help history if in jobs kill let
    local logout mapfile popd pushd pwd read readarray readonly return select set shift shopt source suspend then time
    times trap type typeset ulimit umask unalias unset until wait while
"""
_SHELL_ONLY = frozenset(_SHELL_WORDS.split())


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
                script = _plain("script", value).encode()
            else:
                option = _option(key)
                if option.name in pairs:
                    raise UsageError(f"{key}: is another name of {option.name}, which is given too")
                pairs[option.name] = Pair(option.name, _value(key, option, value))
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
        return (*SHELL, _plain("command", value))
    if not isinstance(value, list) or any(not isinstance(word, str) for word in value):
        raise UsageError('command: must be an array of strings (example: ["sleep", "5"]) or one line for the shell')
    if value and not value[0]:
        raise UsageError("command: the first word is empty")
    return tuple(_plain("command", word) for word in value)


def _plain(key: str, value: object) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{key}: {kind_of(value)}; must be a string")
    if "\0" in value:
        raise UsageError(f"{key}: holds a NUL character")
    return value


def _value(key: str, option: Option, value: object) -> str:
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
        parts = [_plain(key, part) for part in value]
        return ",".join(part.replace(",", "\\,") if option.name == "export" else part for part in parts)
    if option.name == "umask" and not isinstance(value, str):
        raise UsageError('umask: must be a string, to be read as octal (example: "0022")')
    return _plain(key, value)


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
    parts = ["script = true\n"] if job.script else []
    parts.append(f'chdir = {quote(job.chdir)}\numask = "{job.umask:04o}"\n')
    parts.append(f"cpus = {show_amount(wants[CPUS])}\nmem = {show_amount(wants[MEM])}\n")
    if len(wants) > 2:
        others = [f"{name}:{show_amount(wants[name])}" for name in sorted(wants) if name not in (CPUS, MEM)]
        parts.append(f"gres = {quote(','.join(others))}\n")
    if (limit_s := job.limit_s) is not None:
        parts.append(f'time = "{limit_s}s"\n' if limit_s % 60 else f"time = {limit_s // 60}\n")
    parts += [f"{key} = {number}\n" for key, number in (("priority", job.priority), ("retries", job.retries)) if number]
    for key, text, default in (
        ("held", job.held, ""),
        ("rerun", job.rerun, "certain"),
        ("output", job.output, None),
        ("error", job.error, None),
        ("open-mode", job.open_mode, "truncate"),
        ("output-mode", job.output_mode, "spool"),
        ("export", job.export if "=" not in job.export else shown(job.export), "all"),
        ("user", job.user, ""),
        ("submitted", job.submitted, ""),
        ("submit_host", job.submit_host, ""),
    ):
        if text != default and text is not None:
            parts.append(f"{key} = {quote(text)}\n")
    for key, words in (("nodelist", job.nodelist), ("exclude", job.exclude), ("declared", job.declared)):
        if words:
            parts.append(f"{key} = {array(sorted(words) if key == 'declared' else words)}\n")
    return "".join(parts)


def _percent(text: str) -> str:
    return re.sub("[\udc80-\udcff]", lambda m: f"%{ord(m[0]) & 0xFF:02X}", text.replace("%", "%25"))


def _unpercent(text: str) -> str:
    return re.sub("%(25|[89A-F][0-9A-F])", lambda m: "%" if m[1] == "25" else chr(0xDC00 + int(m[1], 16)), text)


def _each_text(job: Job, change: Callable[[str], str]) -> Job:
    changed: Fields = {field: change(text) for field in _TEXTS.values() if (text := getattr(job, field)) is not None}
    changed |= {field: tuple(map(change, getattr(job, field))) for field in ("command", "nodelist", "exclude")}
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
            if (field := _TEXTS.get(key)) is not None:
                if type(value) is not str or "\0" in value or (key in _CHOICES and value not in _CHOICES[key]):
                    raise UsageError(f"{key}: {value!r:.60} is not valid")
                fields[field] = value
            else:
                _read_other(key, value, fields, wants)
    except UsageError as error:
        raise JobFileError(f"damaged: {error}", file=file) from None
    if not fields.get("command") and not fields.get("script"):
        raise JobFileError("damaged: no command", file=file)
    job = Job(command=fields.pop("command", ()), wants=wants, **fields)
    return _each_text(job, _unpercent) if table.get("escaped") == "percent" else job


def _read_other(key: str, value: Any, fields: Fields, wants: dict[str, int]) -> None:
    kind = type(value)
    if key in ("command", "nodelist", "exclude", "declared"):
        if kind is not list or any(type(word) is not str or "\0" in word for word in value):
            raise UsageError(f"{key}: {value!r:.60} is not valid")
        fields[key] = frozenset(value) if key == "declared" else tuple(value)
    elif key in (CPUS, MEM):
        if kind not in (int, float) or not 0 <= value < 1e12:
            raise UsageError(f"{key}: {value!r:.60} is not valid")
        wants[key] = round(value * UNIT)
    elif key == "time":
        fields["limit_s"] = value * 60 if kind is int and 0 <= value < 1e12 else parse_seconds(_plain(key, value))
    elif key == "gres":
        wants |= BY_NAME[key].parse(_plain(key, value))["wants"]
    elif key == "umask":
        fields |= BY_NAME[key].parse(_plain(key, value))
    elif key in ("priority", "retries"):
        fields |= BY_NAME[key].parse(str(value))
    elif key == "script":
        fields[key] = value is True


def parse_script(data: bytes, file: str) -> tuple[list[Pair], list[str]]:
    """
    The options in a script's `#SPOOLQ` lines, each with its line, and warnings.

    They stand before the first line that is neither blank nor a comment. Without any, `#SBATCH`
    lines are read as far as they mean the same here; each that does not is a warning.

    Raises:
        JobFileError: larger than MAX_SCRIPT, a NUL byte, or a wrong directive.
    """
    if len(data) > MAX_SCRIPT:
        raise JobFileError(f"{len(data)} bytes; a script has at most {MAX_SCRIPT >> 10} KiB", file=file)
    if b"\0" in data:
        raise JobFileError("holds a NUL byte: no script", file=file, line=line_at(data, data.index(b"\0")))
    found: dict[bytes, list[tuple[int, bytes]]] = {b"SPOOLQ": [], b"SBATCH": []}
    warnings = ["has Windows line ends (remedy: dos2unix)"] if b"\r\n" in data else []
    header = True
    for number, raw in enumerate(data.removeprefix(_BOM).split(b"\n"), 1):
        header = header and raw.strip()[:1] in (b"", b"#")
        if not _DIRECTIVE.match(raw) or raw.split() == [b"#SPOOLQ", b"end"]:
            continue
        if raw[1:7] not in found or raw[7:8].strip():
            warnings.append(f"line {number}: looks like a directive and is none; write #SPOOLQ, then a blank")
        elif not header:
            warnings.append(f"line {number}: not read, since it comes after the first command")
        else:
            found[raw[1:7]].append((number, raw[7:]))
    if found[b"SPOOLQ"] and found[b"SBATCH"]:
        warnings.append("#SBATCH lines are not read, since there are #SPOOLQ lines")
    pairs: list[Pair] = []
    for number, raw in found[b"SPOOLQ"] or found[b"SBATCH"]:
        try:
            words = _shell_words(raw.decode())
            if found[b"SPOOLQ"]:
                got, _, rest = options.parse(words, (options.JOB,))
                if rest:
                    raise UsageError(f"{rest[0][:60]!r} is no option, and a directive holds nothing else")
            else:
                got = _foreign(words, f"line {number}: #SBATCH ", warnings)
            for name, value, _ in got:
                BY_NAME[name].parse(value)
                pairs.append(Pair(name, value, number))
        except UnicodeDecodeError:
            raise JobFileError("is not UTF-8", file=file, line=number) from None
        except UsageError as error:
            raise JobFileError(str(error), file=file, line=number) from None
    return pairs, warnings


def _shell_words(line: str) -> list[str]:
    words, at = [], 0
    while (match := _BLANKS.match(line, at)) and match.end() < len(line) and line[match.end()] != "#":
        word = _WORD.match(line, match.end())
        if not word or (word.end() < len(line) and not line[word.end()].isspace()):
            raise UsageError(f"a quote is not closed: {line.strip()[:60]!r}")
        words.append(_QUOTED.sub(lambda m: _unquote(m[0]), word[0]))
        at = word.end()
    return words


def _unquote(text: str) -> str:
    if text[0] == '"':
        return re.sub(r'\\(["\\$`])', r"\1", text[1:-1])
    return text[1:-1] if text[0] == "'" else text[1:]


def _foreign(words: list[str], place: str, warnings: list[str]) -> list[Pair]:
    # Slurm's words for what is the same here; -p, -m and others mean something else there
    pairs: list[Pair] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        key, equals, value = word.lstrip("-").partition("=") if word[:2] == "--" else (word[1:2], word[2:], word[2:])
        name = _SBATCH.get(key, "") if word[:1] == "-" else ""
        flag = name in BY_NAME and not BY_NAME[name].metavar
        if not equals and not flag and rest and rest[0][:1] != "-":
            value = rest.pop(0)
        if not name or (name == "one" and value != "1") or (name == "mem" and value == "0") or _typed(name, value):
            warnings.append(f"{place}{word}{'' if not value or equals else ' ' + value} is not read")
        elif name != "one":
            zero = name == "time" and value in ("0", "00:00:00")
            pairs.append(Pair(name, "yes" if flag else "unlimited" if zero else value))
    return pairs


def _typed(name: str, value: str) -> bool:
    # gpu:a100:2 names a type, which cannot be asked for here
    return (name == "gpus" and not value.isdigit()) or (name == "gres" and ":" in value.replace(":", "", 1))


def interpreter(data: bytes) -> list[str]:
    """The words that run a script: what its `#!` line says, as the kernel reads it, else /bin/sh."""
    match = _SHEBANG.fullmatch(data[:1024].removeprefix(_BOM).partition(b"\n")[0])
    return [word.decode("utf-8", "surrogateescape") for word in match.groups() if word] if match else [SHELL[0]]


def has_trailer(data: bytes) -> bool:
    """Whether the last line is `#SPOOLQ end`, which says that a dropped file is whole."""
    return data.endswith(b"\n") and data[-200:].rstrip().rpartition(b"\n")[2].split() == [b"#SPOOLQ", b"end"]


def words(line: str) -> list[str] | None:
    """
    The words of a line that needs no shell to run, or None for one that does.

    Saves a process for each job. Conservative: whatever a shell might treat specially needs one.
    """
    plain = line.split() if line.isascii() and _PLAIN.fullmatch(line.rstrip("\r\n")) else []
    if not plain or plain[0] in _SHELL_ONLY or (plain[0] == "echo" and plain[1:2] and plain[1][0] == "-"):
        return None
    return plain
