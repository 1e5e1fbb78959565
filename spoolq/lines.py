"""
Many jobs at once, one a line: `sub --each-line`.
"""

import sys
from collections.abc import Sequence

from spoolq import mount, options, patience, profile, request, script, where
from spoolq.errors import JobFileError, RequestError, SpoolqError, TryAgain, UsageError
from spoolq.job import Job
from spoolq.options import Pair, Parsed
from spoolq.request import Source
from spoolq.resources import CPUS, MEM
from spoolq.submit import BATCH, FULL, Alike, announce, estimated, ranges, say_fresh, show_check, submit_many, tell

KINDS = 100  # commands in one file that are estimated: each costs a read or two


def each_line(parsed: Parsed, found: where.Found, cwd: str, *, only_check: bool) -> list[int]:
    """
    Submit one job for each line of a file; returns the ids in the order of the lines.

    All lines are checked before the first is submitted.
    """
    file = parsed.flags["each-line"]
    if "unique" in parsed.flags:
        raise UsageError("--each-line makes many jobs, and --unique allows one")
    if parsed.words or "file" in parsed.flags or any(pair.name == "wrap" for pair in parsed.pairs):
        raise UsageError("--each-line takes the commands from its file: leave out any other")
    shown = request.STDIN if file == "-" else file
    commands, names = _read_lines(file, shown)
    if not commands:
        raise JobFileError("has no line with a command", file=shown)
    named = any(pair.name == "name" for pair in parsed.pairs)
    pairs = [*request.weaker(), *parsed.pairs]
    job, env = request.complete(request.job_of(pairs, Source(commands[0], None, names[0]), found, cwd), cwd)
    if named:
        names = [job.name] * len(names)
    options.to_job(pairs, commands[0], {"name": max(set(names), key=len)})  # refused if its entry could not be named
    runs = _ruled(pairs, job, commands, names, found, cwd)
    if only_check:
        if runs and show_check(runs[0].job, found.spool, as_json="json" in parsed.flags):
            raise RequestError("no known node could ever run any of these")
        return []
    mount.heed(found, job, many=True)
    parted = [_estimated(some, found, warn=some is runs[0]) for some in runs]
    quiet = "json" in parsed.flags or (sys.stdout.isatty() and "parsable" not in parsed.flags)
    ids: list[int] = []

    def outcome() -> str:
        told, left = f" ({ranges(ids)})" if ids else "", min(BATCH, len(commands) - len(ids))
        return f"{len(ids)} of {len(commands)} jobs were submitted{told}, perhaps up to {left} more"

    patience.so_far(outcome)
    try:
        for parts in parted:
            own = env if parts[0].job.export == job.export else request.environment_of(parts[0].job, cwd)
            for batch in submit_many(found, parts, own):
                ids += batch
                if not quiet:
                    announce(batch, parsed)
    except (SpoolqError, OSError) as error:
        full = isinstance(error, TryAgain) or getattr(error, "errno", None) in FULL
        said = f"{len(ids)} of {len(commands)} jobs were submitted{f' ({ranges(ids)})' if ids else ''}, then: {error}"
        raise (TryAgain if full else SpoolqError)(said) from error
    finally:
        if quiet and ids:
            announce(ids, parsed)
    if ids:
        tell(found, ids, job)
    return ids


def _estimated(some: Alike, found: where.Found, *, warn: bool) -> list[Alike]:
    """The same with estimates, parted where these differ; of more than KINDS commands the rest gets the defaults."""
    job, known, parts = some.job, dict[str, Job](), list[Alike]()
    if not found.policy.learn or job.declared >= {CPUS, MEM}:
        return [some._replace(job=estimated(job, found, warn=warn))]
    from spoolq import learn

    for command, name in zip(some.commands, some.names, strict=True):
        kind = learn.signature(command)
        if kind not in known and len(known) < KINDS:
            known[kind] = estimated(job._replace(command=command), found, warn=warn and not known)
        best = known.get(kind, job)
        if not parts or (parts[-1].job.wants, parts[-1].job.estimate) != (best.wants, best.estimate):
            parts.append(Alike(best._replace(command=job.command), [], []))
        parts[-1].commands.append(command)
        parts[-1].names.append(name)
    return parts


def _ruled(
    pairs: Sequence[Pair], job: Job, commands: list[tuple[str, ...]], names: list[str], found: where.Found, cwd: str
) -> list[Alike]:
    """All lines as rules and profiles want them, in order."""
    book = request.rulebook(found)
    if book is None and not job.if_stale:
        return [Alike(job, commands, names)]
    runs: list[Alike] = []
    fresh = 0
    notes: dict[str, int] = {}
    for command, name in zip(commands, names, strict=True):
        one = request.job_of(pairs, Source(command, None, name), found, cwd, book)
        if request.up_to_date(one, cwd):
            fresh += 1
            continue
        for note in one.policy:
            notes[note] = notes.get(note, 0) + 1
        like = one._replace(command=(), name=job.name, chdir=request.absolute(one.chdir, cwd), submitted=job.submitted)
        if not runs or like != runs[-1].job:
            runs.append(Alike(like, [], []))
        runs[-1].commands.append(one.command)
        runs[-1].names.append(name)
    if book:
        book.close()
    if fresh:
        say_fresh(f"{fresh} of {len(commands)} lines")
    profile.say([f"{note}: {n} of {len(commands)} jobs" for note, n in notes.items()], sys.stderr.write)
    return runs


def _read_lines(file: str, shown: str) -> tuple[list[tuple[str, ...]], list[str]]:
    """Commands and names of the lines that are neither blank nor comments."""
    try:
        data = request.read_stdin() if file == "-" else _whole(file)
    except OSError as error:
        raise JobFileError(f"cannot be read: {error.strerror}", file=shown) from error
    commands: list[tuple[str, ...]] = []
    names: list[str] = []
    known: dict[str, str] = {}
    for number, raw in enumerate(data.split(b"\n"), 1):
        line = raw.strip()
        if not line or line.startswith(b"#"):
            continue
        try:
            command = command_of(line.decode())
            request.check_words(command)
        except UnicodeDecodeError:
            raise JobFileError("is not UTF-8", file=shown, line=number) from None
        except UsageError as error:
            raise JobFileError(str(error), file=shown, line=number) from None
        first = command[2].split(None, 1)[0] if command[0] == "/bin/sh" and len(command) == 3 else command[0]
        if first not in known:
            known[first] = request.name_of(first)
        commands.append(command)
        names.append(known[first])
    return commands, names


def _whole(file: str) -> bytes:
    with open(file, "rb") as stream:
        return stream.read()


def command_of(line: str) -> tuple[str, ...]:
    """The words of a line that means the same with and without a shell; any other is run by one."""
    if words := script.words(line):
        return tuple(words)
    request.refuse_background(line)
    return (*script.SHELL, line)
