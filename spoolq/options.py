"""
The options of a submission, in one table for all who speak of them.

The command line, `#SPOOLQ` lines in scripts, the keys of TOML job files and the table in the README
come from OPTIONS, so that an option has one name, one meaning and one message everywhere.
The command line is read by hand, since argparse costs more than the rest of the start of `sub`.
Invariant: what `apply` returns are valid fields of a `Job`; of one option given twice the last wins.
Never looks at the machine: a relative path stays one, and the program makes it absolute.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from spoolq import values as v
from spoolq.entry import MAX_NAME, MAX_PRIORITY, MIN_PRIORITY, RERUNS, format_facts
from spoolq.errors import UsageError
from spoolq.job import DEFAULT_WANTS, Job
from spoolq.resources import CPUS, MEM, parse_amount, parse_mb
from spoolq.values import Fields

Pairs = Iterable[tuple[Any, ...]]  # (name, value, ...): what Pair is

_RANGE = (MIN_PRIORITY, MAX_PRIORITY)
GPU = "gpu"
_NAME_REST = 65  # bytes of an entry name beside facts and label: rank, id, gen, attempt, what is added later
_ARRAY_FACTS = 45  # bytes: the chunk, the limit, since which attempt what runs again (see `array`)
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
    good everywhere, REQUEST not in scripts, COMMAND_LINE on the command line alone. `gathers`: given twice, both count.
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
    gathers: bool = False


# fmt: off
OPTIONS: tuple[Option, ...] = (
    Option("cpus", "c", "N", v.wants(CPUS, parse_amount), "cpus; 0.5 is allowed", "1", ("cpus-per-task",), "number"),
    Option("mem", "m", "SIZE", v.wants(MEM, parse_mb), "memory of the whole job, MB; 3G works", "1000", kind="number"),
    Option("time", "t", "TIME", v.time, "30 = minutes; 2:30:00, 90s, 2h30m", "unlimited", ("time-limit",), "number"),
    Option("mem-factor", "", "F", v.factor("mem-factor"), "end it at F times its memory", "the spool's", kind="number"),
    Option("time-factor", "", "F", v.factor("time-factor"), "end it at F times its time", "the spool's", kind="number"),
    Option("signal", "", "[B:]SIG[@S]", v.warning, "send SIG S seconds before the end; B: to its first process", "60"),
    Option("gpus", "G", "N", v.wants(GPU, parse_amount), "GPUs; short for --gres gpu:N", "0", kind="number"),
    Option("gres", "g", "NAME:N,..", v.gres, "other resources that nodes offer", kind="list"),
    Option("name", "J", "TEXT", v.name, "name in tables", "the command's", ("job-name",)),
    Option("priority", "p", "N", v.whole("priority", *_RANGE), "-499 to 500, higher is sooner", "0", kind="number"),
    Option("nice", "", "N", v.whole("nice", *_RANGE, -1), "the same negated, as elsewhere", "0", kind="number"),
    Option("hold", "H", "", v.flag({"held": "HU"}), "do not start before `spoolq release`", kind="flag"),
    Option("begin", "b", "WHEN", v.begin, "not before: 16:00, tomorrow, 2026-12-24T18:30, now+2h", "at once"),
    Option("depend", "d", "JOBS", v.depend, "wait for other jobs: afterok:1:2,afterany:3; 42 = afterok:42",
           aliases=("dependency",), kind="list"),
    Option("kill-on-invalid-dep", "", "WORD", v.choice("kill_on_invalid_dep", ("yes", "no")),
           "if that can never be: yes cancels, no waits", "yes"),
    Option("nodelist", "w", "NODES", v.nodes("nodelist"), "only on these: n1,n2 or n[1-3,5] or gpu*", kind="list"),
    Option("exclude", "x", "NODES", v.nodes("exclude"), "not on these", kind="list"),
    Option("constraint", "C", "EXPR", v.constraint, "only nodes whose labels satisfy it: 'arch==x86_64 and ssd'"),
    Option("chdir", "D", "DIR", v.path("chdir"), "directory to run in", "the current"),
    Option("output", "o", "FILE", v.path("output"), "where stdout goes (%j = id), also stderr without -e", "its home"),
    Option("error", "e", "FILE", v.path("error"), "where stderr goes", "as stdout"),
    Option("open-mode", "", "HOW", v.choice("open_mode", ("append", "truncate")), "append or truncate", "truncate"),
    Option("output-mode", "", "WHERE", v.choice("output_mode", ("spool", "local")), "local: ship at the end", "spool"),
    Option("export", "", "WHAT", v.export, "variables to take: all, none, NAME, NAME=VALUE,..", "all", kind="list"),
    Option("umask", "", "MASK", v.umask, "mode bits to take off new files", "the current"),
    Option("rerun", "", "WHEN", v.choice("rerun", tuple(RERUNS)), "if its node dies: never, certain, yes", "certain"),
    Option("requeue", "", "", v.flag({"rerun": "yes"}), "the same as --rerun yes", kind="flag"),
    Option("no-requeue", "", "", v.flag({"rerun": "never"}), "the same as --rerun never", kind="flag"),
    Option("retries", "r", "N", v.whole("retries", 0, 1000), "if it fails: again, up to N times", "0", kind="number"),
    Option("array", "a", "TASKS", v.array, "tasks 1-9:2 or 1,3,7-20 of one job; %3: at most 3 of them at once"),
    Option("max-fails", "", "N", v.whole("max-fails", 0, 10**6), "start no more when N failed", "0", kind="number"),
    Option("detach", "", "", v.flag({"parent": "none"}), "submitted in a job: do not end with it", kind="flag"),
    Option("in", "", "FILE,..", v.files("in", "inputs"), "what it is made from", kind="list", gathers=True),
    Option("out", "", "FILE,..", v.files("out", "targets"), "what it makes; if it fails, FILE.failed", kind="list",
           gathers=True),
    Option("if-stale", "", "", v.flag({"if_stale": True}), "only if an --out is missing or older than an --in",
           kind="flag"),
    Option("retry-mem", "", "MORE", v.retry_mem, "after OUT_OF_MEMORY a retry asks for: 2x, or +500 (MB)"),
    Option("stage-in", "", "SRC[:DST],..", v.stage("stage-in", "stage_in"), "copy to $SPOOLQ_SCRATCH before",
           kind="list", gathers=True),
    Option("stage-out", "", "SRC[:DST],..", v.stage("stage-out", "stage_out"), "copy from $SPOOLQ_SCRATCH after",
           kind="list", gathers=True),
    Option("wrap", "", "LINE", v.wrap, "run this line by /bin/sh instead of a command", scope=REQUEST),
    Option("file", "f", "JOB.TOML", v.flag({}), "read the job from a file", scope=COMMAND_LINE),
    Option("each-line", "", "FILE", v.flag({}), "one job per line; - is standard input", scope=COMMAND_LINE),
    Option("wait", "W", "", v.flag({}), "wait for the end, exit with the job's code", kind="flag", scope=COMMAND_LINE),
    Option("unique", "", "KEY", v.flag({}), "one such job at a time: fail, or KEY:join it", scope=COMMAND_LINE),
    Option("check", "", "", v.flag({}), "only say which nodes could run it", kind="flag", scope=COMMAND_LINE),
    Option("parsable", "", "", v.flag({}), "print the id alone, as off a terminal", kind="flag", scope=COMMAND_LINE),
    Option("json", "", "", v.flag({}), "print JSON", kind="flag", scope=COMMAND_LINE),
    Option("spool", "", "DIR", v.flag({}), "which spool", "$SPOOLQ_DIR, then the configuration", scope=COMMAND_LINE),
    Option("help", "h", "", v.flag({}), "show this", kind="flag", scope=COMMAND_LINE),
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
        option = BY_NAME[pair[0]]
        earlier = last.pop(option.name, None)  # the last wins, also over other options for the same field
        last[option.name] = f"{earlier},{pair[1]}" if option.gathers and earlier is not None else pair[1]
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
    if typed := found.pop("typed", ()):  # `gpu:a100:2`
        said = [f"({found['constraint']})"] if found.get("constraint") else []
        found["constraint"] = " and ".join([*said, *typed])
    if command and "command" in found:
        raise UsageError("wrap: stands instead of a command, not beside one")
    job = Job(**{"command": tuple(command), **found, **fields})
    if not job.command and not job.script:
        raise UsageError("no command")
    if job.retry_mem and not job.retries:
        raise UsageError(f"retry-mem: no retry could ask for more (remedy: -r 3 --retry-mem {job.retry_mem})")
    entry = job.entry(1)
    size = len(format_facts(entry)) + len(entry.label) + (_ARRAY_FACTS if job.array else 0)
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
