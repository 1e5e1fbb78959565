"""
What a user asks for, from a command line, a script, a job file or standard input, to a valid job.

Adds what only the submitting machine knows: directory, umask, user, host, time, environment. The
strength of options rises from the spool's policy over $SPOOLQ_SUB_OPTS and the file's own lines to
the command line.
Invariant: what cannot work is refused here, before anything is written to the spool; a script that
is submitted is taken along as it is now, an installed program is not.
"""

import os
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from spoolq import constraint, environment, jobfile, nodelist, options, profile, script, stale
from spoolq.errors import JobFileError, RequestError, UsageError
from spoolq.home import JOB_LIMIT
from spoolq.job import Job
from spoolq.options import Pair, Parsed
from spoolq.resources import Amounts, fits
from spoolq.spool import Spool
from spoolq.toml import MAX_FILE
from spoolq.where import Found

SUB_OPTS = "SPOOLQ_SUB_OPTS"
STDIN = "standard input"
_EXAMPLE = "spoolq sub -c 4 -m 500 make -j4"
_LOOK = 4096  # bytes at the start of a file that tell text from a binary


class Asked(NamedTuple):
    """A job that may be submitted, with its script or None, and its environment."""

    job: Job
    script: bytes | None
    env: dict[str, str]


class Source(NamedTuple):
    """Where the command comes from: words and perhaps a script, a name for it, and options said there."""

    words: tuple[str, ...]
    script: bytes | None
    name: str
    pairs: Sequence[Pair] = ()


def ask(parsed: Parsed, found: Found, cwd: str) -> Asked:
    """
    The job that a command line stands for.

    Raises:
        UsageError, JobFileError: it is wrong.
    """
    source = source_of(parsed)
    book = rulebook(found)
    pairs = [*weaker(), *source.pairs, *parsed.pairs]
    job, env = complete(job_of(pairs, source, found, cwd, book), cwd)
    if book:
        book.close()
        profile.say(job.policy, sys.stderr.write)
    check_words(job.command, script=job.script)
    if text := parsed.flags.get("unique"):
        from spoolq import unique

        job = job._replace(unique=unique.parse(text).key)
    return Asked(job, source.script, env)


def rulebook(found: Found) -> profile.Rulebook | None:
    """What rules submissions on this machine to a spool, or None."""
    return profile.load(found.policy, plugins=found.policy.plugins)


def job_of(pairs: Sequence[Pair], source: Source, found: Found, cwd: str, book: profile.Rulebook | None = None) -> Job:
    """The job of some options, as rules and profiles want it."""
    base = {**found.policy.job_fields(), "name": name_of(source.name), "umask": own_umask(), "chdir": cwd}
    if "SPOOLQ_JOB_ID" in os.environ:
        from spoolq import nested

        base |= nested.base(found.spool)
    base |= {"user": user_name(), "submitted": environment.timestamp(time.time()), "submit_host": os.uname().nodename}

    def make(pairs: Sequence[Pair]) -> Job:
        return stale.prepared(options.to_job(pairs, source.words, base, script=source.script is not None))

    if book is None:
        return checked(make(pairs), found)
    ruled = book.rule(pairs, make, source.words, source.script, source.name)
    return checked(make(ruled.pairs), found)._replace(policy=ruled.notes)


def up_to_date(job: Job, cwd: str) -> bool:
    """Whether a job need not run, since what it makes is newer than what it is made from."""
    return job.if_stale and stale.up_to_date(absolute(job.chdir, cwd), job.inputs, job.targets)


def checked(job: Job, found: Found) -> Job:
    """The same, if the spool's policy and the jobs that it waits for allow it; those by their ids."""
    if job.signal or job.time_factor or job.mem_factor:
        from spoolq import elbow

        elbow.check(job, found.policy)
    if job.depend:
        from spoolq import parents

        job = job._replace(depend=parents.resolve(found.spool, job.depend))
    if job.begin:
        from spoolq import begin

        job = job._replace(begin=begin.resolved(job.begin, time.time()))
    return job


def complete(job: Job, cwd: str) -> tuple[Job, dict[str, str]]:
    """The job with its directory as it is called from everywhere, and its environment."""
    chdir = absolute(job.chdir, cwd)
    if os.path.exists(chdir) and not os.path.isdir(chdir):
        raise UsageError(f"chdir: {chdir}: is no directory")
    if not os.path.isdir(chdir):
        warn(f"{chdir}: no such directory here; the job waits for a node that has it")
    return job._replace(chdir=chdir), environment_of(job, cwd)


def absolute(path: str, cwd: str) -> str:
    """A directory's path from the root."""
    whole = os.path.join(cwd, path)
    if ".." in whole.split("/"):  # after a symbolic link `..` is somewhere else than it looks
        return whole
    return os.path.normpath(whole)


def environment_of(job: Job, cwd: str) -> dict[str, str]:
    """What of this process's environment goes with a job."""
    return environment.exported(os.environ, job.export) | {environment.SUBMIT_DIR: cwd}


def weaker() -> list[Pair]:
    """Options in $SPOOLQ_SUB_OPTS, which hold where nothing stronger is said."""
    text = os.environ.get(SUB_OPTS, "")
    if not text.strip():
        return []
    import shlex

    try:
        parsed = options.parse(shlex.split(text), (options.JOB,))
    except ValueError as error:
        raise UsageError(f"${SUB_OPTS}: {error} in {text[:60]!r}") from None
    except UsageError as error:
        raise UsageError(f"${SUB_OPTS}: {error}") from None
    if parsed.words:
        raise UsageError(f"${SUB_OPTS}: {parsed.words[0][:60]!r} is no option, and it holds nothing else")
    return parsed.pairs


# --- the command


def source_of(parsed: Parsed) -> Source:
    """What is to run: words, a script, a job file or standard input; exactly one of them."""
    words, file = parsed.words, parsed.flags.get("file")
    wrapped = any(pair.name == "wrap" for pair in parsed.pairs)
    if wrapped and (words or file):
        raise UsageError("--wrap gives the command: leave out the words after it")
    if wrapped:
        line = next(pair.value for pair in parsed.pairs if pair.name == "wrap")
        refuse_background(line)
        return Source((), None, (line.split() or [""])[0])
    if file:
        if words:
            raise UsageError(f"the command is in {file}: leave out {words[0][:60]!r}")
        return _job_file(file)
    if not words and not sys.stdin.isatty():
        return _script(read_stdin(), STDIN, ())
    if not words:
        raise UsageError(f"no command (example: {_EXAMPLE})")
    if words[0] == "-":
        return _script(read_stdin(), STDIN, words[1:])
    if not words[0]:
        raise UsageError(f"the command is empty: the first word is '' (example: {_EXAMPLE})")
    data = script_in(words[0])
    return _script(data, words[0], words[1:]) if data is not None else Source(tuple(words), None, words[0])


def _job_file(file: str) -> Source:
    shown = STDIN if file == "-" else file
    data = read_stdin() if file == "-" else _read(file, MAX_FILE + 1)
    asked = jobfile.parse_request(data, shown)
    for warning in asked.warnings:
        warn(f"{shown}: {warning}")
    first = asked.command[0] if asked.command and asked.script is None else os.path.basename(shown).partition(".")[0]
    if asked.command[:2] == script.SHELL:
        first = (asked.command[2].split() or [""])[0]
        refuse_background(asked.command[2])
    return Source(asked.command, asked.script, first, asked.pairs)


def _script(data: bytes, name: str, words: Sequence[str]) -> Source:
    if not data.strip() and name == STDIN and not words:
        raise UsageError(f"no command, and standard input is empty (example: {_EXAMPLE})")
    if not data.strip():
        raise JobFileError(f"is empty: there is no script to submit (example: {_EXAMPLE})", file=name)
    pairs, warnings = script.parse_script(data, name)
    for warning in warnings:
        warn(f"{name}: {warning}")
    return Source(tuple(words), data, "stdin" if name == STDIN else name, pairs)


def script_in(word: str) -> bytes | None:
    """
    The text of the script that a command's first word names; None for a program.

    A script is a file named by a path, or one of this directory that PATH does not find, that starts
    with `#!` or is a text that is not executable. What PATH finds is installed, on the nodes too.
    """
    if "/" not in word:
        if _in_path(word) or not os.path.isfile(word):
            if not _in_path(word):
                _refuse_line(word)
                warn(f"{word}: no such program in PATH here; the nodes may have it")
            return None
    elif os.path.isdir(word):
        raise UsageError(f"{word}: is a directory, no program")
    elif not os.path.isfile(word):
        _refuse_line(word)
        warn(f"{word}: no such file here; the nodes may have it")
        return None
    elif os.path.dirname(os.path.abspath(word)) in os.get_exec_path():
        return None
    executable = os.access(word, os.X_OK)
    head = _read(word, _LOOK)
    if executable and not head.startswith(b"#!"):
        return None
    if b"\0" in head:
        raise UsageError(f"{word}: is neither a script nor executable (remedy: chmod +x, or name a program)")
    return _read(word, script.MAX_SCRIPT + 1)


def _in_path(word: str) -> bool:
    return any(os.access(f"{directory}/{word}", os.X_OK) for directory in os.get_exec_path() if directory)


def _refuse_line(word: str) -> None:
    if any(letter in word for letter in " \t\n|;<>"):
        raise UsageError(f"{word[:60]!r} is one word and names no program (a line for the shell: --wrap 'LINE')")


def _read(file: str, most: int) -> bytes:
    try:
        with open(file, "rb") as stream:
            return stream.read(most)
    except OSError as error:
        raise JobFileError(f"cannot be read: {error.strerror}", file=file) from error


def read_stdin() -> bytes:
    """All of standard input."""
    if sys.stdin.isatty():
        sys.stderr.write("spoolq: reading a script from the terminal; end it with Ctrl-D\n")
    return sys.stdin.buffer.read()


def check_words(words: Sequence[str], *, script: bool = False) -> None:
    """Refuse a command that cannot be run or written down."""
    if not words and not script:
        raise UsageError(f"no command (example: {_EXAMPLE})")
    if words and words[-1] == "&":
        raise UsageError("the command ends in a lone '&': leave it out, `spoolq sub` does not wait anyway")
    size = 0
    for number, word in enumerate(words, 1):
        if "\0" in word:
            raise UsageError(f"word {number} of the command holds a NUL character")
        try:
            size += len(word.encode()) + 4
        except UnicodeEncodeError:
            raise UsageError(
                f"word {number} of the command, {word[:60]!a}, is not UTF-8: rename it or use a script"
            ) from None
    if size > JOB_LIMIT - 4096:
        raise UsageError(f"the command has {size} bytes; at most {JOB_LIMIT - 4096} can be kept: put it into a script")


def refuse_background(line: str) -> None:
    """Refuse a shell line that ends in a lone `&`: its job would end at once and leave a stray behind."""
    text = line.rstrip()
    if text.endswith("&") and not text.endswith(("&&", "\\&")):
        raise UsageError(f"{text[-60:]!r} ends in a lone '&': leave it out, `spoolq sub` does not wait anyway")


# --- what this machine knows


def current_directory() -> str:
    """The working directory; refused if a job could not enter it."""
    try:
        path = os.getcwd()
    except OSError as error:
        raise UsageError(f"the current directory is gone ({error.strerror}): cd to one that exists") from error
    if not os.access(path, os.R_OK | os.X_OK):
        raise UsageError(f"{path}: the current directory cannot be entered or read: cd to another, or give -D DIR")
    return path


def own_umask() -> int:
    """This process's umask."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def user_name() -> str:
    """The name of this user, or the number of one without a name."""
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def name_of(text: str) -> str:
    """A job's name from its program's."""
    name = os.path.basename(text.rstrip("/")) or text
    return "".join(c if c.isprintable() and not "\ud800" <= c <= "\udfff" else "_" for c in name)[:200].strip() or "job"


def warn(message: str) -> None:
    """One line on stderr that cannot steer a terminal."""
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in message)
    sys.stderr.write(f"spoolq: warning: {text.encode(errors='backslashreplace').decode()}\n")


# --- whether any node could run it


def check_nodes(job: Job, spool: Spool, *, warn_none: bool = True) -> None:
    """
    Refuse what no known node could ever run; warn if none is known.

    Reads node.json files only until one fits.
    """
    known: dict[str, Amounts] = {}
    labels: dict[str, constraint.Labels] = {}
    for node in spool.nodes():
        facts = spool.read_node(node)
        if not isinstance(capacity := facts.get("capacity"), dict):
            continue
        known[node], labels[node] = capacity, constraint.sound(facts.get("labels"))
        if fits(job.wants, capacity) and allowed(job, node) and not differs(job, labels[node]):
            return
    if not known and warn_none:
        warn("no node has been seen on this spool yet: the job waits for `spoolq node` on some machine")
        return
    why = impossible(job, known, labels)
    if why:
        raise RequestError(f"no node could ever run this: {why}")


def allowed(job: Job, node: str) -> bool:
    """Whether --nodelist and --exclude let the job run on a node."""
    if not job.nodelist and not job.exclude:
        return True
    matches = nodelist.matches
    return (not job.nodelist or matches(job.nodelist, node)) and not matches(job.exclude, node)


def differs(job: Job, labels: constraint.Labels) -> str:
    """Why the labels of a node do not satisfy --constraint, or an empty text."""
    return constraint.mismatch(job.constraint, labels) if job.constraint else ""


def impossible(job: Job, known: dict[str, Amounts], labels: dict[str, constraint.Labels]) -> str | None:
    """In words, or None."""
    from spoolq import schedule

    terms = schedule.Conditions(nodelist=job.nodelist, exclude=job.exclude, constraint=job.constraint)
    return schedule.impossible(job.wants, known, terms, labels)


def could_run(job: Job, spool: Spool) -> dict[str, Any]:
    """For --check: the nodes that could ever run it, and those that could not with what they lack."""
    from spoolq.resources import lacking

    yes, no = [], {}
    for node in spool.nodes():
        facts = spool.read_node(node)
        if not isinstance(capacity := facts.get("capacity"), dict):
            continue
        if not allowed(job, node):
            no[node] = "not among the nodes asked for"
        elif why := differs(job, constraint.sound(facts.get("labels"))):
            no[node] = f"asks for {job.constraint}, and {why}"
        elif short := lacking(job.wants, capacity):
            no[node] = f"too little {', '.join(short)}"
        else:
            yes.append(node)
    return {"could_run": yes, "could_not": no}
