"""
What of a user's environment goes with a job, and what the job finds in its own.

By default everything goes except secrets, which nobody wants copied to a shared disk by accident,
and what describes the terminal or session of submission, which is wrong on another machine.
Both lists are the tables below. A variable that the user names is exported whatever it is.
Invariant: unpack(pack(e)) == e; a name appears once in a job's environment, and what spoolq says
about the job (SPOOLQ_JOB_ID, ...) cannot be forged by what was exported.
Never reads the environment of this process: mappings come in as arguments.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

from spoolq import array
from spoolq.entry import MIDDLE_RANK, Entry
from spoolq.errors import UsageError
from spoolq.job import Job, home_of
from spoolq.resources import CPUS, MEM, UNIT, show_amount

# Secrets: a name, in upper case, with one of these words in it, at its end, or at its start.
SECRET_WORDS = ("TOKEN", "SECRET", "PASSWORD", "PASSWD", "PASSPHRASE", "CREDENTIAL")
SECRET_ENDS = ("_KEY", "APIKEY", "_PAT", "_AUTH")
SECRET_STARTS = ("AWS_",)
NO_SECRETS = frozenset(("TOKENIZERS_PARALLELISM",))  # looks like one and is none
# KRB5CCNAME stays: it is a path, and home directories on Kerberos need it

# The terminal, the session and the service in which `sub` ran: not true where the job runs.
_SESSION = """
    _ COLUMNS LINES OLDPWD PWD PS1 PS2 PS4 PROMPT_COMMAND SHLVL HOSTNAME HOST
    TERM COLORTERM TERMINFO TERM_PROGRAM TERM_PROGRAM_VERSION VTE_VERSION LS_COLORS
    WINDOWID WINDOW STY TMUX TMUX_PANE
    DISPLAY WAYLAND_DISPLAY XAUTHORITY DESKTOP_SESSION SESSION_MANAGER DBUS_SESSION_BUS_ADDRESS
    SSH_CLIENT SSH_CONNECTION SSH_TTY SSH_AUTH_SOCK SSH_AGENT_PID GPG_AGENT_INFO GPG_TTY
    XDG_RUNTIME_DIR XDG_SEAT XDG_VTNR XDG_CURRENT_DESKTOP MAIL
    INVOCATION_ID JOURNAL_STREAM NOTIFY_SOCKET LISTEN_FDS LISTEN_PID LISTEN_FDNAMES MANAGERPID SYSTEMD_EXEC_PID
"""
SESSION = frozenset(_SESSION.split())
SESSION_STARTS = ("SPOOLQ_", "XDG_SESSION_", "VSCODE_")  # SPOOLQ_: those of an outer job

THREADS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "JULIA_NUM_THREADS",
)

_OWN_NAMES = """
    SPOOLQ_JOB_ID SPOOLQ_JOB_NAME SPOOLQ_JOB_DIR SPOOLQ_SUBMIT_HOST SPOOLQ_SUBMIT_USER SPOOLQ_NODE SPOOLQ_CPUS
    SPOOLQ_ARRAY_JOB_ID SPOOLQ_ARRAY_TASK_ID SPOOLQ_ARRAY_TASK_COUNT SPOOLQ_ARRAY_TASK_MIN SPOOLQ_ARRAY_TASK_MAX
    SPOOLQ_ARRAY_TASK_STEP SPOOLQ_MEM_MB SPOOLQ_TIME_LIMIT SPOOLQ_ATTEMPT SPOOLQ_SPOOL SPOOLQ_DIR SPOOLQ_SCRATCH
    SPOOLQ_PRIORITY SPOOLQ_PARENT SPOOLQ_DEPENDENCY TMPDIR PWD
"""
_OWN = frozenset(_OWN_NAMES.split())
_OWN_STARTS = ("SPOOLQ_GRES_", "SPOOLQ_DEVICES_")
SUBMIT_DIR = "SPOOLQ_SUBMIT_DIR"  # the submitter packs it with the rest, since --chdir may differ


def timestamp(seconds: float) -> str:
    """UTC in ISO 8601 with microseconds and a Z, from seconds since the epoch."""
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds")[:26] + "Z"


class Export(NamedTuple):
    """What an `--export` text asks for."""

    all: bool
    names: tuple[str, ...]
    values: Mapping[str, str]


class Shared(NamedTuple):
    """The part of an environment that all jobs of one submission have in common."""

    lines: tuple[str, ...]
    threads: tuple[str, ...]  # names in THREADS that the user left to us
    submit_dir: bool  # whether the submitter said where it was


def is_secret(name: str) -> bool:
    """Whether a variable looks like a secret by its name."""
    upper = name.upper()
    if upper in NO_SECRETS:
        return False
    return upper.endswith(SECRET_ENDS) or upper.startswith(SECRET_STARTS) or any(word in upper for word in SECRET_WORDS)


def is_session(name: str) -> bool:
    """Whether a variable describes the session of submission and not the work."""
    return name in SESSION or name.startswith(SESSION_STARTS)


def parse_export(text: str) -> Export:
    """
    Read `all`, `none`, NAME and NAME=VALUE, separated by commas; `\\,` is a comma in a value.

    Raises:
        UsageError: a part is none of these.
    """
    parts = [part.replace("\0", ",") for part in text.replace("\\,", "\0").split(",")]
    everything, names, values = False, [], {}
    for part in parts:
        name, equals, value = part.partition("=")
        name = name.strip()
        if equals and _is_name(name):
            values[name] = value
        elif name.lower() in ("all", "none"):
            everything = everything or name.lower() == "all"
        elif not equals and _is_name(name):
            names.append(name)
        elif name or equals or len(parts) == 1:
            hint = "all, none, NAME or NAME=VALUE; a comma in a value is written \\,"
            raise UsageError(f"export: {part[:40]!r} is no variable ({hint})")
    return Export(everything, tuple(names), values)


def _is_name(text: str) -> bool:
    return text.isascii() and text.isidentifier()


def shown(text: str) -> str:
    """An `--export` text without the values, for a file that others may read: `all,DEBUG`."""
    if "=" not in text:
        return text
    export = parse_export(text)
    names = dict.fromkeys((*export.names, *export.values))
    return ",".join((("all" if export.all else "none"), *names))


def exported(environ: Mapping[str, str], spec: str) -> dict[str, str]:
    """
    What of `environ` goes with a job submitted with `--export SPEC`.

    Names that are not set are left out, as Slurm does.
    """
    export = parse_export(spec)
    chosen: dict[str, str] = {}
    if export.all:
        chosen = {name: value for name, value in environ.items() if not is_session(name) and not is_secret(name)}
    chosen.update((name, environ[name]) for name in export.names if name in environ)
    chosen.update(export.values)
    return chosen


def pack(env: Mapping[str, str]) -> bytes:
    """The env file: `NAME=VALUE` ended by NUL, as in /proc/PID/environ."""
    return "".join([f"{name}={value}\0" for name, value in env.items()]).encode("utf-8", "surrogateescape")


def unpack(data: bytes) -> dict[str, str]:
    """The variables in an env file; a part without a name is left out, the last of equal names wins."""
    lines = data.decode("utf-8", "surrogateescape").split("\0")
    return {name: value for name, equals, value in (line.partition("=") for line in lines) if name and equals}


@lru_cache(maxsize=64)
def shared(data: bytes, base: tuple[tuple[str, str], ...] = ()) -> Shared:
    """
    The common part, from an env file's bytes; remembered, since one submission makes many jobs.

    Args:
        data: the env file, or b"" for a job that was dropped without one.
        base: what the node gives to every job (PATH, HOME, USER, ...); the job's own values win.
    """
    env = {**dict(base), **unpack(data)}
    lines = [f"{k}={v}" for k, v in env.items() if k not in _OWN and not k.startswith(_OWN_STARTS)]
    return Shared(tuple(lines), tuple(name for name in THREADS if name not in env), SUBMIT_DIR in env)


def for_job(common: Shared, entry: Entry, job: Job, *, node: str, spool: str, tmpdir: str) -> list[str]:
    """
    The whole environment of one attempt as `NAME=VALUE` texts.

    Amounts and the limit are the entry's, which may have been edited since submission.

    Args:
        spool, tmpdir: absolute paths as this node sees them; tmpdir is private to the attempt.
    """
    wants = entry.wants
    cpus, mem = wants.get(CPUS, UNIT), wants.get(MEM, 0)
    env = [
        *common.lines,
        f"SPOOLQ_JOB_ID={entry.unit}",
        f"SPOOLQ_JOB_NAME={job.name}",
        f"SPOOLQ_JOB_DIR={spool}/{home_of(entry.id)}",
        f"SPOOLQ_SUBMIT_HOST={job.submit_host}",
        f"SPOOLQ_SUBMIT_USER={job.user}",
        f"SPOOLQ_NODE={node}",
        f"SPOOLQ_CPUS={show_amount(cpus)}",
        f"SPOOLQ_MEM_MB={-(-mem // UNIT)}",
        f"SPOOLQ_ATTEMPT={entry.attempt}",
        f"SPOOLQ_SPOOL={spool}",
        f"SPOOLQ_DIR={spool}",  # a job that submits, submits here
        f"TMPDIR={tmpdir}",
        f"SPOOLQ_SCRATCH={tmpdir}",
        f"PWD={job.chdir}",
    ]
    if entry.chunk and job.array:
        spec = array.parse(job.array)
        env += [f"SPOOLQ_ARRAY_JOB_ID={entry.id}", f"SPOOLQ_ARRAY_TASK_ID={array.bounds(entry.chunk)[0]}"]
        env += [f"SPOOLQ_ARRAY_TASK_COUNT={spec.size}", f"SPOOLQ_ARRAY_TASK_STEP={spec.step}"]
        env += [f"SPOOLQ_ARRAY_TASK_MIN={spec.low}", f"SPOOLQ_ARRAY_TASK_MAX={spec.high}"]
    if not common.submit_dir:
        env.append(f"{SUBMIT_DIR}={job.chdir}")
    if entry.limit_s is not None:
        env.append(f"SPOOLQ_TIME_LIMIT={entry.limit_s}")
    if len(wants) > 2:
        rest = (name for name in wants if name not in (CPUS, MEM))
        env += [f"SPOOLQ_GRES_{name.upper()}={show_amount(wants[name])}" for name in rest]
    if entry.rank != MIDDLE_RANK:
        env.append(f"SPOOLQ_PRIORITY={entry.priority}")
    if entry.parent:
        env.append(f"SPOOLQ_PARENT={job.parent if job.parent_id else entry.parent}")
    if job.depend:
        env.append(f"SPOOLQ_DEPENDENCY={','.join(job.depend)}")
    threads = max(1, -(-cpus // UNIT))
    env += [f"{name}={threads}" for name in common.threads]
    return env
