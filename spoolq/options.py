"""
The options of a submission, in one table for all who speak of them.

The command line, `#SPOOLQ` lines in scripts, the keys of TOML job files and the table in the README
come from OPTIONS, so that an option has one name, one meaning and one message everywhere.
The command line is read by hand, since argparse costs more than the rest of the start of `sub`.
Invariant: what `apply` returns are valid fields of a `Job`; of one option given twice the last wins.
Never looks at the machine: a relative path stays one, and the program makes it absolute.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from spoolq.entry import MAX_NAME, MAX_PRIORITY, MIN_PRIORITY, RERUNS, format_facts
from spoolq.environment import parse_export
from spoolq.errors import UsageError
from spoolq.job import DEFAULT_WANTS, Job
from spoolq.resources import CPUS, MEM, NAME, UNIT, parse_amount, parse_mb, parse_seconds

Fields = dict[str, Any]  # arguments of Job
Pairs = Iterable[tuple[Any, ...]]  # (name, value, ...): what Pair is

MOST = 1_000_000_000 * UNIT  # of anything; keeps entry names short
MOST_SECONDS = 10_000 * 86_400  # nine digits: what `parse_seconds` reads back
_RANGE = (MIN_PRIORITY, MAX_PRIORITY)
MOST_NODES = 10_000  # in one pattern
GPU = "gpu"
_NAME_REST = 65  # bytes of an entry name beside facts and label: rank, id, gen, attempt, what is added later
_DECLARED = {"limit_s": {"time"}, "rerun": {"rerun"}}  # what a policy must not replace
JOB, REQUEST, COMMAND_LINE = "job", "request", "command line"


class Pair(NamedTuple):
    """One option as given. `value` is `yes` or `no` for a flag; `line` is known in files only."""

    name: str
    value: str
    line: int | None = None


class Parsed(NamedTuple):
    """A command line taken apart: options of the job, options of the program, and the command."""

    pairs: list[Pair]
    flags: dict[str, str]  # command-line options by long name; `yes` for a flag
    words: list[str]


class Option(NamedTuple):
    """
    One row. `kind` is what TOML may say: number (or text), text, list (or text) or flag. `scope`: JOB is
    good everywhere, REQUEST not in scripts, COMMAND_LINE on the command line alone.
    """

    name: str
    short: str
    metavar: str
    parse: Callable[[str], Fields]
    help: str
    default: str = ""
    aliases: tuple[str, ...] = ()
    kind: str = "text"
    scope: str = JOB


def _amount(name: str, amount: int) -> Fields:
    if not 0 < amount <= MOST:
        raise UsageError(f"{name}: must be more than 0 and at most {MOST // UNIT}")
    return {"wants": {name: amount}}


def _wants(name: str, read: Callable[[str, str], int]) -> Callable[[str], Fields]:
    return lambda text: _amount(name, read(text, name))


def _gres(text: str) -> Fields:
    wants: dict[str, int] = {}
    for part in text.split(","):
        name, _, number = part.strip().replace("=", ":", 1).partition(":")
        if not NAME.fullmatch(name):
            raise UsageError(f"gres: {part[:40]!r} is no resource (examples: gpu:2, license=1; names are lower case)")
        if name in (CPUS, MEM):
            raise UsageError(f"gres: {name} has an option of its own, --{name}")
        wants |= _amount(name, parse_amount(number or "1", f"gres {name}"))["wants"]
    return {"wants": wants}


def _time(text: str) -> Fields:
    limit_s = parse_seconds(text)
    if limit_s is not None and not 0 < limit_s <= MOST_SECONDS:
        raise UsageError("time: must be more than 0 and at most 10000 days (for no limit: unlimited)")
    return {"limit_s": limit_s}


def _whole(option: str, low: int, high: int, sign: int = 1) -> Callable[[str], Fields]:
    field = "priority" if option == "nice" else option

    def parse(text: str) -> Fields:
        if not re.fullmatch(r"\s*[+-]?[0-9]{1,9}\s*", text):
            raise UsageError(f"{option}: {text[:40]!r} is no whole number")
        if not low <= (number := sign * int(text)) <= high:
            raise UsageError(f"{option}: {field} {number} is not within {low}..{high}")
        return {field: number}

    return parse


def _name(text: str) -> Fields:
    if not text.strip() or not text.isprintable() or len(text) > 200:
        raise UsageError(f"name: {text[:60]!r} must be 1 to 200 printable characters")
    return {"name": text}


def _path(field: str) -> Callable[[str], Fields]:
    def parse(text: str) -> Fields:
        if not text or "\0" in text:
            raise UsageError(f"{field}: must be a path, not {text[:60]!r}")
        return {field: text}

    return parse


def _choice(field: str, choices: Sequence[str]) -> Callable[[str], Fields]:
    def parse(text: str) -> Fields:
        if text not in choices:
            raise UsageError(f"{field.replace('_', '-')}: {text[:40]!r} is none of {', '.join(choices)}")
        return {field: text}

    return parse


def _flag(fields: Fields) -> Callable[[str], Fields]:
    return lambda text: fields if text == "yes" else {}


def _export(text: str) -> Fields:
    parse_export(text)
    return {"export": text}


def _umask(text: str) -> Fields:
    if not re.fullmatch(r"0?[0-7]{1,3}", text):
        raise UsageError(f"umask: {text[:40]!r} is no octal mask (example: 0022)")
    return {"umask": int(text, 8)}


def _nodes(field: str) -> Callable[[str], Fields]:
    def parse(text: str) -> Fields:
        patterns = tuple(re.findall(r"(?:[^,\s\[]|\[[^\]]*\]?)+", text))  # commas in brackets do not part
        if not patterns or not all(map(_node_regex, patterns)):
            raise UsageError(f"{field}: names no node (examples: n1,n2 or n[1-4] or gpu*)")
        return {field: patterns}

    return parse


def _wrap(text: str) -> Fields:
    if not text.strip() or "\0" in text:
        raise UsageError("wrap: names no command")
    return {"command": ("/bin/sh", "-c", text)}


# fmt: off
OPTIONS: tuple[Option, ...] = (
    Option("cpus", "c", "N", _wants(CPUS, parse_amount), "cpus; 0.5 is allowed", "1", ("cpus-per-task",), "number"),
    Option("mem", "m", "SIZE", _wants(MEM, parse_mb), "memory of the whole job in MB; 3G works", "1000", kind="number"),
    Option("time", "t", "TIME", _time, "30 = minutes; 2:30:00, 90s, 2h30m", "unlimited", ("time-limit",), "number"),
    Option("gpus", "G", "N", _wants(GPU, parse_amount), "GPUs; short for --gres gpu:N", "0", kind="number"),
    Option("gres", "g", "NAME:N,..", _gres, "other resources that nodes offer", kind="list"),
    Option("name", "J", "TEXT", _name, "name in tables", "the command's", ("job-name",)),
    Option("priority", "p", "N", _whole("priority", *_RANGE), "-499 to 500, higher is sooner", "0", kind="number"),
    Option("nice", "", "N", _whole("nice", *_RANGE, -1), "the same negated, as elsewhere", "0", kind="number"),
    Option("hold", "H", "", _flag({"held": "HU"}), "do not start before `spoolq release`", kind="flag"),
    Option("nodelist", "w", "NODES", _nodes("nodelist"), "only on these: n1,n2 or n[1-3,5] or gpu*", kind="list"),
    Option("exclude", "x", "NODES", _nodes("exclude"), "not on these", kind="list"),
    Option("chdir", "D", "DIR", _path("chdir"), "directory to run in", "the current"),
    Option("output", "o", "FILE", _path("output"), "where stdout goes (%j = id), also stderr without -e", "its home"),
    Option("error", "e", "FILE", _path("error"), "where stderr goes", "as stdout"),
    Option("open-mode", "", "HOW", _choice("open_mode", ("append", "truncate")), "append or truncate", "truncate"),
    Option("output-mode", "", "WHERE", _choice("output_mode", ("spool", "local")), "local: ship at the end", "spool"),
    Option("export", "", "WHAT", _export, "variables to take: all, none, NAME, NAME=VALUE,..", "all", kind="list"),
    Option("umask", "", "MASK", _umask, "mode bits to take off new files", "the current"),
    Option("rerun", "", "WHEN", _choice("rerun", tuple(RERUNS)), "if its node dies: never, certain, yes", "certain"),
    Option("requeue", "", "", _flag({"rerun": "yes"}), "the same as --rerun yes", kind="flag"),
    Option("no-requeue", "", "", _flag({"rerun": "never"}), "the same as --rerun never", kind="flag"),
    Option("retries", "r", "N", _whole("retries", 0, 1000), "if it fails: again, up to N times", "0", kind="number"),
    Option("wrap", "", "LINE", _wrap, "run this line by /bin/sh instead of a command", scope=REQUEST),
    Option("file", "f", "JOB.TOML", _flag({}), "read the job from a file", scope=COMMAND_LINE),
    Option("each-line", "", "FILE", _flag({}), "one job per line; - is standard input", scope=COMMAND_LINE),
    Option("wait", "W", "", _flag({}), "wait for the end, exit with the job's code", kind="flag", scope=COMMAND_LINE),
    Option("check", "", "", _flag({}), "only say which nodes could run it", kind="flag", scope=COMMAND_LINE),
    Option("parsable", "", "", _flag({}), "print the id alone, as off a terminal", kind="flag", scope=COMMAND_LINE),
    Option("json", "", "", _flag({}), "print JSON", kind="flag", scope=COMMAND_LINE),
    Option("spool", "", "DIR", _flag({}), "which spool", "$SPOOLQ_DIR, then the configuration", scope=COMMAND_LINE),
    Option("help", "h", "", _flag({}), "show this", kind="flag", scope=COMMAND_LINE),
)
# fmt: on
BY_NAME: dict[str, Option] = {name: option for option in OPTIONS for name in (option.name, *option.aliases)}
BY_SHORT: dict[str, Option] = {option.short: option for option in OPTIONS if option.short}

# what people of other systems type -> what it is called here
_HINTS = {
    "n": "-c/--cpus", "ntasks": "-c/--cpus", "N": "-w/--nodelist (a job runs on one node)",
    "memory": "-m/--mem", "walltime": "-t/--time", "cwd": "-D/--chdir", "nodes": "-w/--nodelist",
}  # fmt: skip


def apply(pairs: Pairs, base: Mapping[str, Any] | None = None) -> Fields:
    """
    Fields of a Job from options, the weakest first; always with `wants` and `declared`.

    Args:
        pairs: (name, value, ...) as `Pair`: long names or aliases.
        base: fields that hold where nothing is said (a site's policy), or None.

    Raises:
        UsageError: a value is wrong.
    """
    last: dict[str, str] = {}
    for pair in pairs:
        name = BY_NAME[pair[0]].name
        last.pop(name, None)  # the last wins, also over other options for the same field
        last[name] = pair[1]
    fields: Fields = dict(base or {})
    wants = {**DEFAULT_WANTS, **fields.get("wants", {})}
    declared: set[str] = set(fields.get("declared", ()))
    for name, value in last.items():
        for field, found in BY_NAME[name].parse(value).items():
            declared |= found.keys() if field == "wants" else _DECLARED.get(field, set())
            if field == "wants":
                wants |= found
            else:
                fields[field] = found
    return {**fields, "wants": wants, "declared": frozenset(declared)}


def to_job(pairs: Pairs, command: Sequence[str] = (), base: Mapping[str, Any] | None = None, **fields: Any) -> Job:
    """
    A valid job from options, the command's words, a base as in `apply`, and other fields (user, ...).

    Raises:
        UsageError: a value is wrong, two commands or none, or an entry name that could be too long.
    """
    found = apply(pairs, base)
    if command and "command" in found:
        raise UsageError("wrap: stands instead of a command, not beside one")
    job = Job(**{"command": tuple(command), **found, **fields})
    if not job.command and not job.script:
        raise UsageError("no command")
    entry = job.entry(1)
    size = len(format_facts(entry)) + len(entry.label)
    if size > MAX_NAME - _NAME_REST:
        raise UsageError(f"gres: {size - MAX_NAME + _NAME_REST} bytes too many (fewer kinds, or a shorter --name)")
    return job


def parse(words: Sequence[str], scopes: Sequence[str] = (JOB, REQUEST, COMMAND_LINE)) -> Parsed:
    """
    Take a command line apart; options end at the first word that is none, or after `--`.

    Values are not looked at yet: `apply` does. After --help nothing else matters.
    """
    pairs: list[Pair] = []
    flags: dict[str, str] = {}
    at = 0
    while at < len(words):
        word = words[at]
        if word == "--":
            return Parsed(pairs, flags, list(words[at + 1 :]))
        if len(word) < 2 or word[0] != "-":
            break
        at += 1
        found, missing = _long(word, scopes) if word.startswith("--") else _bundle(word, scopes)
        if missing is not None:
            if at == len(words):
                raise UsageError(f"{show(missing)}: needs a value ({missing.metavar})")
            found.append((missing, words[at]))
            at += 1
        for option, value in found:
            if option.scope == COMMAND_LINE:
                flags[option.name] = value
            else:
                pairs.append(Pair(option.name, value))
        if "help" in flags:
            return Parsed(pairs, flags, [])
    return Parsed(pairs, flags, list(words[at:]))


def _long(word: str, scopes: Sequence[str]) -> tuple[list[tuple[Option, str]], Option | None]:
    name, equals, value = word[2:].partition("=")
    option = find(name, scopes)
    if option.metavar:
        return ([(option, value)], None) if equals else ([], option)
    if equals:
        raise UsageError(f"{show(option)}: takes no value")
    return [(option, "yes")], None


def _bundle(word: str, scopes: Sequence[str]) -> tuple[list[tuple[Option, str]], Option | None]:
    found: list[tuple[Option, str]] = []
    for place, letter in enumerate(word[1:], 2):
        if letter not in BY_SHORT:
            raise UsageError(f"unknown option {'-' + letter!r}{_suggest(letter)}")
        option = _allowed(BY_SHORT[letter], scopes)
        if option.metavar:
            value = word[place:]
            return (found, option) if not value else ([*found, (option, value.removeprefix("="))], None)
        found.append((option, "yes"))
    return found, None


def find(name: str, scopes: Sequence[str]) -> Option:
    """The option of a long name or of an unambiguous beginning of one."""
    options = {o.name: o for n, o in BY_NAME.items() if name and n.startswith(name)}
    option = BY_NAME.get(name) or (options.popitem()[1] if len(options) == 1 else None)
    if option is not None:
        return _allowed(option, scopes)
    if options:
        raise UsageError(f"option {'--' + name!r} is ambiguous: {', '.join('--' + n for n in options)}")
    raise UsageError(f"unknown option {'--' + name[:60]!r}{_suggest(name)}")


def _allowed(option: Option, scopes: Sequence[str]) -> Option:
    if option.scope not in scopes:
        raise UsageError(f"{show(option)}: has no meaning here, only on the command line")
    return option


def _suggest(name: str) -> str:
    if name in _HINTS:
        return f" (did you mean {_HINTS[name]}?)"
    return did_you_mean("--" + name, ["--" + known for known in BY_NAME]) or " (see spoolq sub --help)"


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """` (did you mean x?)` with the most similar of some words, or an empty text."""
    from difflib import get_close_matches

    near = get_close_matches(word[:60], list(words), 1)
    return f" (did you mean {near[0]}?)" if near else ""


def show(option: Option) -> str:
    """`-c/--cpus`."""
    return f"-{option.short}/--{option.name}".removeprefix("-/")


def help_text(scopes: Sequence[str] = (JOB, REQUEST, COMMAND_LINE)) -> str:
    """The list of options for `--help`."""
    lines = []
    for option in OPTIONS:
        short = f"-{option.short}, " if option.short else "    "
        default = f" [{option.default}]" if option.default else ""
        if option.scope in scopes:
            lines.append(f"  {short}{f'--{option.name} {option.metavar}':<22}  {option.help}{default}")
    return "\n".join(lines) + "\n"


def readme_table() -> str:
    """The same as a Markdown table."""
    lines = ["| Option | Value | Meaning | Default | In scripts | In job files |", "|---|---|---|---|---|---|"]
    for o in OPTIONS:
        names = ", ".join(f"`{n}`" for n in ("-" + o.short, "--" + o.name, *("--" + a for a in o.aliases)) if n != "-")
        script, toml = ("yes" if o.scope == JOB else ""), ("" if o.scope == COMMAND_LINE else f"`{o.name}`")
        lines.append(f"| {names} | {o.metavar} | {o.help} | {o.default} | {script} | {toml} |")
    return "\n".join(lines) + "\n"


def node_matches(patterns: Iterable[str], node: str) -> bool:
    """Whether a node's whole name fits one of the patterns; never a part of it."""
    return any(_node_regex(pattern).fullmatch(node) for pattern in patterns)


@lru_cache(maxsize=256)
def _node_regex(pattern: str) -> re.Pattern[str]:
    regex = ""
    for part in re.findall(r"\[[^\]]*\]|.", pattern, re.DOTALL):
        if part in ("*", "?"):
            regex += ".*" if part == "*" else "."
        elif re.fullmatch(r"[A-Za-z0-9._-]", part):
            regex += re.escape(part)
        elif re.fullmatch(r"\[\d{1,6}(-\d{1,6})?(,\d{1,6}(-\d{1,6})?)*\]", part, re.ASCII):
            regex += f"(?:{'|'.join(_numbers(part[1:-1], pattern))})"
        else:
            raise UsageError(f"nodes: {pattern[:60]!r} is no node (examples: n1, n[1-3,5], gpu*)")
    return re.compile(regex)


def _numbers(ranges: str, pattern: str) -> list[str]:
    numbers: list[str] = []
    for choice in ranges.split(","):
        low, _, high = choice.partition("-")
        if not 0 <= int(high or low) - int(low) < MOST_NODES - len(numbers):
            raise UsageError(f"nodes: {pattern[:60]!r} has a range that is empty or longer than {MOST_NODES}")
        # n[01-10] has two digits each, n[1-10] no zeros in front
        numbers += [f"{number:0{len(low)}d}" for number in range(int(low), int(high or low) + 1)]
    return numbers
