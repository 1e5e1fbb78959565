"""
The command `spoolq`: find the command's room, run it, and turn what goes wrong into one line and an exit code.

A room is imported when its command is called, since the start of the interpreter is most of what a
`sub` costs. Every command is a function of its words that returns an exit code.
Invariant: an error that a user can meet is one line `spoolq: what: why (remedy)` on stderr, without
a traceback; a traceback means a defect of spoolq.
"""

import contextlib
import errno
import gc
import os
import sys
from collections.abc import Callable, Sequence

from spoolq import patience
from spoolq.errors import SpoolqError, UsageError

# command -> (room, function, what it does)
COMMANDS: dict[str, tuple[str, str, str]] = {
    "sub": ("submit", "sub", "submit a job; prints its id"),
    "run": ("follow", "run", "run a command as a job in the foreground"),
    "stat": ("look", "stat", "jobs that wait and run"),
    "show": ("look", "show", "one job in full"),
    "why": ("look", "why", "why a job does not start"),
    "out": ("output", "out", "a job's output; -f follows it"),
    "wait": ("awaiting", "wait", "wait for jobs; exits with the worst code"),
    "hist": ("look", "hist", "jobs that have ended"),
    "eff": ("eff", "eff", "what jobs used of what they asked for"),
    "suggest": ("eff", "suggest", "what to ask for, from earlier runs"),
    "kill": ("steer", "kill", "cancel jobs, or send them a signal"),
    "hold": ("steer", "hold", "keep waiting jobs from starting"),
    "release": ("steer", "release", "let held jobs start"),
    "suspend": ("steer", "suspend", "freeze running jobs"),
    "resume": ("steer", "resume", "let suspended jobs go on"),
    "requeue": ("steer", "requeue", "run jobs again"),
    "edit": ("steer", "edit", "change a job"),
    "nodes": ("look", "nodes", "nodes and what is free on them"),
    "drain": ("mark", "drain", "let a node start no more jobs"),
    "undrain": ("mark", "undrain", "let it start jobs again"),
    "node-dead": ("mark", "node_dead", "say that a node is off for certain"),
    "node": ("node", "node", "serve: run jobs on this machine"),
    "init": ("doctor", "init", "make a spool"),
    "doctor": ("doctor", "doctor", "test whether a spool and a node are in order"),
    "config": ("doctor", "config", "show or check the configuration"),
    "completion": ("doctor", "completion", "completion for a shell"),
}
ALIASES: dict[str, tuple[str, ...]] = {
    "cancel": ("kill",),
    "ls": ("stat",),
    "cat": ("out",),
    "tail": ("out", "-f"),
    "follow": ("out", "-f"),
}
_GROUPS = (
    ("Submit", ("sub", "run")),
    ("Look", ("stat", "show", "why", "out", "wait", "hist", "eff", "suggest")),
    ("Steer", ("kill", "hold", "release", "suspend", "resume", "requeue", "edit")),
    ("Nodes", ("nodes", "drain", "undrain", "node-dead", "node")),
    ("Spool", ("init", "doctor", "config", "completion")),
)
_EXAMPLES = """\
Examples:
  spoolq sub -c 4 -m 500 make -j4      4 cpus and 500 MB; prints the id of the job
  spoolq run make test                 as if it ran here: output, exit code, Ctrl-C
  spoolq sub -t 2h step.sh             a script is copied; its #SPOOLQ lines are options
  spoolq out -f last                   follow the output of your newest job
  spoolq wait 40-45 && echo done       exit with the worst code of six jobs
  spoolq node                          serve: start this on every machine that shares the spool
"""
_LOOK = frozenset(
    ("stat", "show", "why", "out", "wait", "hist", "eff", "suggest", "nodes", "doctor", "config", "completion", "node")
)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_SILENT = (errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENOTCONN, errno.ECONNREFUSED)  # of a soft mount
_INTERRUPTED, _NOBODY_READS = 130, 141  # 128 + SIGINT, 128 + SIGPIPE, as a shell would see it


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run one command.

    Args:
        argv: the words after `spoolq`, or None for those of this process, which then ends here: taking
            the interpreter down in order costs 4 ms, an eighth of a `sub`, and frees only memory.

    Returns:
        The exit code: the command's own, 1 error, 2 usage, 75 try again later, 78 misconfigured,
        130 interrupted, 141 nobody reads our output.
    """
    if argv is not None:
        return _guarded(list(argv))
    words = sys.argv[1:]
    _have_streams()
    patience.watch.begin()
    gc.disable()  # while rooms are imported there is nothing to free; `_command` enables it again
    code = _guarded(words)
    if "node" not in words:  # a node closes its threads and files in order
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()
        os._exit(code)
    return code


def _have_streams() -> None:
    # started with one of them closed (`spoolq sub true >&-`) the next file opened would take its place
    for number, stream in enumerate((sys.stdin, sys.stdout, sys.stderr)):
        if stream is None:
            while os.open(os.devnull, os.O_RDWR) < number:
                pass
    sys.stdin = sys.stdin or open(os.devnull)  # noqa: SIM115  # for the life of the process
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115


def _guarded(words: list[str]) -> int:
    try:
        code = _dispatch(words)
        sys.stdout.flush()
    except SpoolqError as error:
        return _say(str(error), error.exit_code)
    except BrokenPipeError:
        _forget_stdout()
        return _NOBODY_READS
    except OSError as error:
        return _say(_explain(error), 75 if error.errno in (*_FULL, *_SILENT) else 1)
    except KeyboardInterrupt:
        return _INTERRUPTED
    return code


def _dispatch(words: list[str]) -> int:
    spool: list[str] = []
    while words and words[0].startswith("-"):
        word, equals, value = words.pop(0).partition("=")
        if word in ("-h", "--help"):
            sys.stdout.write(help_text())
            return 0
        if word in ("-V", "--version"):
            from spoolq import __version__

            print(f"spoolq {__version__}")
            return 0
        if word not in ("-S", "--spool"):
            raise UsageError(f"unknown option {word[:60]!r} before the command (see spoolq --help)")
        if not equals and not words:
            raise UsageError("-S/--spool: needs a value (DIR)")
        spool = ["--spool", value if equals else words.pop(0)]
    if not words:
        sys.stdout.write(help_text())
        return 2
    name, *rest = words
    if name == "help":
        return _dispatch([*rest[:1], "--help"])
    name, *extra = ALIASES.get(name, (name,))
    return _command(name)([*spool, *extra, *rest])


def _command(name: str) -> Callable[[list[str]], int]:
    if name not in COMMANDS:
        from difflib import get_close_matches

        near = get_close_matches(name[:60], [*COMMANDS, *ALIASES], 1)
        hint = f"did you mean {near[0]}?" if near else "see spoolq --help"
        raise UsageError(f"unknown command {name[:60]!r} ({hint})")
    room, function, _ = COMMANDS[name]
    if name not in _LOOK:
        patience.so_far(lambda: "perhaps not done, or in part; give the command again when it answers")
    from importlib import import_module

    found: Callable[[list[str]], int] = getattr(import_module(f"spoolq.{room}"), function)
    if not gc.isenabled():
        gc.freeze()
        gc.enable()
    return found


def help_text() -> str:
    """What `spoolq --help` prints."""
    lines = ["usage: spoolq [-S DIR] COMMAND [options] ...", "", "A job scheduler made of nothing but a directory.", ""]
    for title, names in _GROUPS:
        lines.append(f"{title}:")
        lines += [f"  {name:<12}{COMMANDS[name][2]}{_also(name)}" for name in names]
        lines.append("")
    lines += [
        "Options before the command:",
        "  -S, --spool DIR   which spool: else $SPOOLQ_DIR, the configuration, ~/.spoolq",
        "  -V, --version     show the version",
        "  -h, --help        show this; `spoolq COMMAND --help` shows a command's options",
        "",
    ]
    return "\n".join(lines) + "\n" + _EXAMPLES


def _also(name: str) -> str:
    aliases = [alias + (" for -f" if len(words) > 1 else "") for alias, words in ALIASES.items() if words[0] == name]
    return f" (also: {', '.join(aliases)})" if aliases else ""


def _say(message: str, code: int) -> int:
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    with contextlib.suppress(OSError):
        # a message may quote a file name; it must not be able to steer a terminal
        text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in message)
        sys.stderr.write(f"spoolq: {text.encode(errors='backslashreplace').decode()}\n")
    return code


def _explain(error: OSError) -> str:
    what = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
    text = f"{what}{error.strerror or error}"
    if error.errno == errno.EROFS:
        return f"{text} (the spool is mounted read-only here)"
    if error.errno in _FULL:
        return f"{text} (the spool takes nothing more; make room and try again)"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"{text} (you may not write there: is it a spool of somebody else?)"
    if error.errno in _SILENT:
        return f"{text} (the file server does not answer; try again)"
    if error.errno == errno.ESTALE:
        return f"{text} (the file server lost it: mount the spool again)"
    return text


def _forget_stdout() -> None:
    # so that the interpreter does not complain when it flushes at exit
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


if __name__ == "__main__":
    sys.exit(main())
