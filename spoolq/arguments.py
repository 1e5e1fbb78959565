"""
The command lines of the small commands, read by a table, and the ways in which they all answer.

`stat`, `kill`, `hold` and the like must start fast, and argparse costs more than the rest of their
start; so one table per command gives the parsing, `--help` and the completion of shells. Options may
stand before or after the words (`kill 42 -s USR1`); after `--` everything is a word.
Invariant: what is not in the table is a UsageError that names the nearest option. `sub` and `run`
have a table of their own in `options`, since their options end at the command to run.
"""

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from spoolq.errors import UsageError

if TYPE_CHECKING:
    from spoolq.spool import Spool


class Flag(NamedTuple):
    """
    One option of a command.

    `metavar` empty means that it takes no value. `complete` says what a shell offers for the value:
    `state`, `node`, `job`, `file`, `directory`, a text of choices (`a b c`), or nothing.
    """

    name: str
    short: str
    metavar: str
    help: str
    complete: str = ""


class Command(NamedTuple):
    """One command: `usage` is what stands after its name, `words` what a shell offers for words."""

    name: str
    usage: str
    summary: str
    flags: tuple[Flag, ...] = ()
    words: str = ""
    notes: str = ""


JSON = Flag("json", "", "", "print JSON")
SPOOL = Flag("spool", "S", "DIR", "which spool", "directory")
HELP = Flag("help", "h", "", "show this")
COMMON = (JSON, SPOOL, HELP)


class Given:
    """A command line taken apart: `values` by long name (every value of one given repeatedly), and the words."""

    __slots__ = ("values", "words")

    def __init__(self) -> None:
        """Nothing was given yet."""
        self.values: dict[str, list[str]] = {}
        self.words: list[str] = []

    def has(self, name: str) -> bool:
        """Whether an option was given."""
        return name in self.values

    def last(self, name: str, default: str = "") -> str:
        """The value given last."""
        return self.values[name][-1] if name in self.values else default

    def every(self, name: str) -> list[str]:
        """All values, also those joined by commas, without empty ones."""
        return [part for text in self.values.get(name, ()) for part in text.split(",") if part]

    def count(self, name: str, default: int) -> int:
        """A value that is a whole number; `all` is a very large one."""
        text = self.last(name)
        if not text:
            return default
        if text == "all":
            return sys.maxsize
        if not (text.isascii() and text.isdigit() and len(text) < 12):
            raise UsageError(f"--{name}: {text[:40]!r} is no number (examples: 20, all)")
        return int(text)


def flags_of(command: Command) -> tuple[Flag, ...]:
    """All options of a command, the common ones too."""
    return (*command.flags, *COMMON)


def parse(command: Command, argv: Sequence[str]) -> Given:
    """
    Take a command line apart.

    Raises:
        UsageError: an unknown or ambiguous option, or a value is missing or too much.
    """
    given = Given()
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if word == "--":
            given.words.extend(rest)
            break
        if len(word) < 2 or word[0] != "-":
            given.words.append(word)
            continue
        waiting = _long(command, word, given) if word.startswith("--") else _bundle(command, word, given)
        if waiting is not None:
            if not rest:
                raise UsageError(f"{command.name}: --{waiting.name} needs a value ({waiting.metavar})")
            given.values.setdefault(waiting.name, []).append(rest.pop(0))
    return given


def _long(command: Command, word: str, given: Given) -> Flag | None:
    name, equals, value = word[2:].partition("=")
    flag = _find(command, name)
    if flag.metavar and not equals:
        return flag
    if equals and not flag.metavar:
        raise UsageError(f"{command.name}: --{flag.name} takes no value")
    given.values.setdefault(flag.name, []).append(value)
    return None


def _bundle(command: Command, word: str, given: Given) -> Flag | None:
    for place, letter in enumerate(word[1:], 2):
        flag = next((flag for flag in flags_of(command) if flag.short == letter), None)
        if flag is None:
            raise UsageError(f"{command.name}: unknown option {'-' + letter!r} (see spoolq {command.name} --help)")
        if not flag.metavar:
            given.values.setdefault(flag.name, []).append("")
        elif value := word[place:].removeprefix("="):
            given.values.setdefault(flag.name, []).append(value)
            return None
        else:
            return flag
    return None


def _find(command: Command, name: str) -> Flag:
    flags = flags_of(command)
    found = [flag for flag in flags if flag.name == name] or [
        flag for flag in flags if name and flag.name.startswith(name)
    ]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"{command.name}: --{name} is ambiguous: {', '.join('--' + flag.name for flag in found)}")
    near = nearest(name, [flag.name for flag in flags])
    hint = f"did you mean --{near}?" if near else f"see spoolq {command.name} --help"
    raise UsageError(f"{command.name}: unknown option {'--' + name[:40]!r} ({hint})")


def nearest(word: str, words: Sequence[str]) -> str:
    """The most similar of some words, or an empty text."""
    from difflib import get_close_matches

    return next(iter(get_close_matches(word[:60], words, 1)), "")


def help_text(command: Command) -> str:
    """What `--help` prints."""
    lines = [f"usage: spoolq {command.name} [options] {command.usage}".rstrip(), "", command.summary, ""]
    for flag in flags_of(command):
        short = f"-{flag.short}, " if flag.short else "    "
        lines.append(f"  {short}{f'--{flag.name} {flag.metavar}':<20}  {flag.help}")
    return "\n".join(lines) + "\n" + (f"\n{command.notes}\n" if command.notes else "")


def show_help(command: Command) -> int:
    """Print it; the exit code."""
    sys.stdout.write(help_text(command))
    return 0


def open_spool(given: Given) -> "Spool":
    """The spool that a command line, the environment or the configuration names; it must exist."""
    from spoolq import where

    return where.find(given.last("spool")).spool


def print_json(kind: str, value: object) -> None:
    """One JSON document on stdout, in the envelope of all commands."""
    from spoolq import report

    print(report.to_json(kind, value))


def complain(message: str) -> None:
    """One line on stderr, after what stdout has to say."""
    from spoolq import report

    sys.stdout.flush()
    sys.stderr.write(f"spoolq: {report.show(message)}\n")


def style() -> tuple[int | None, bool]:
    """How wide stdout is, None for a pipe, and whether it may be coloured."""
    if not sys.stdout.isatty():
        return None, False
    from shutil import get_terminal_size

    return max(40, get_terminal_size().columns), not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def talk(text: str) -> None:
    """For people: on the terminal below the answer, else on stderr, so that a pipe gets the answer only."""
    print(text, file=sys.stdout if sys.stdout.isatty() else sys.stderr)
