"""
The command `sub`: bring jobs into the spool, one or one for each line of a file.

An id is printed after its job is committed (one rename) and durable, never before, since whoever
reads it may already wait for it. Bulk submission formats what jobs have in common once and links
their environment, so that ten thousand lines cost a few system calls each.
Invariant: a refused or failed submission leaves nothing that any node or listing can see.
"""

import errno
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from spoolq import environment, home, mount, options, patience, request, stored, where
from spoolq.entry import Entry, label_of
from spoolq.errors import RequestError, SpoolqError, TryAgain, UsageError
from spoolq.job import Job
from spoolq.options import Parsed
from spoolq.request import Asked
from spoolq.resources import CPUS, MEM
from spoolq.spool import Placed, Spool

BATCH = 500  # jobs of a bulk submission that are made durable together and then printed
FULL = (errno.ENOSPC, errno.EDQUOT)

_HELP = """\
usage: spoolq sub [options] COMMAND [ARGUMENT...]
       spoolq sub [options] SCRIPT [ARGUMENT...]
       spoolq sub [options] < SCRIPT       (or: spoolq sub [options] - [ARGUMENT...] < SCRIPT)
       spoolq sub [options] -f JOB.TOML
       spoolq sub [options] --each-line FILE

Submit a job and print its id. Options end at the first word that is none, so `make -j4` needs no `--`.
A script (a path, or a file here that PATH does not find) is copied as it is now; its #SPOOLQ lines are
options. The command line wins over them, they win over $SPOOLQ_SUB_OPTS, and that over the spool's policy.

"""
_NOTES = """
Examples:
  spoolq sub -c 4 -m 3G -t 2h make -j4      4 cpus, 3 GB, at most 2 hours
  spoolq sub -J align -o align.%j.log step.sh sample7
  spoolq sub --wrap 'sort big | uniq -c > out'
  find . -name '*.raw' | sed 's/^/gzip /' | spoolq sub --each-line -
  spoolq sub -W make test && echo passed    wait for the job and exit with its code

Exit: 0; with --wait the job's own code (128+n signal, 124 time limit, 137 memory, 130 cancelled);
      2 refused; 75 the spool is full, try again later; 78 no spool.
Plain files: cp job.toml SPOOL/drop/ submits too.
"""


def sub(argv: Sequence[str]) -> int:
    """Submit; with --wait the code of the job."""
    parsed = options.parse(argv)
    if "help" in parsed.flags:
        sys.stdout.write(_HELP + options.help_text() + _NOTES)
        return 0
    patience.so_far(lambda: "nothing was submitted")
    check = "check" in parsed.flags
    found = where.find(parsed.flags.get("spool", ""), make=not check)
    cwd = request.current_directory()
    if "each-line" in parsed.flags:
        from spoolq.lines import each_line

        ids = each_line(parsed, found, cwd, only_check=check)
    else:
        asked = request.ask(parsed, found, cwd)
        if check:
            return show_check(asked.job, found.spool, as_json="json" in parsed.flags)
        if request.up_to_date(asked.job, cwd):
            say_fresh(", ".join(asked.job.targets))
            return 0
        ids, cwd = [submit_or_join(found, asked, parsed)[0].entry.id], asked.job.chdir
        announce(ids, parsed)
        tell(found, ids, asked.job)
    if ids and "wait" in parsed.flags:
        from spoolq import awaiting

        patience.so_far(lambda: f"job {ranges(ids)} goes on")
        try:
            ended = awaiting.until_ended(found.spool, ids)
        except KeyboardInterrupt:
            sys.stderr.write(f"spoolq: no longer waiting; job {ranges(ids)} goes on (spoolq kill ends it)\n")
            raise
        for job_id in ids:
            awaiting.tell(found.spool, ended[job_id])
            mount.bring_back(found, job_id, cwd)
        return awaiting.worst(ended)
    return 0


# --- one job


def submit(found: where.Found, asked: Asked, *, warn: bool = True) -> Placed:
    """
    Commit one job and make it durable.

    Raises:
        RequestError: no known node could ever run it.
        TryAgain: the spool is full, or does not say.
    """
    spool = found.spool
    job = estimated(asked.job, found, warn=warn)
    asked = asked._replace(job=job)
    home.check_space(spool.root, int(found.policy.min_free_mb))
    data = _fitting(stored.format_job(asked.job))
    staged = mount.heed(found, asked.job)
    if asked.job.unique:
        from spoolq import unique

        unique.look(spool, asked.job)
    job_id = home.allocate(spool.root)
    if staged:
        asked = asked._replace(job=mount.carry(found, job_id, asked.job))
        data = _fitting(stored.format_job(asked.job))
    placed = _commit(spool, job_id, asked, data)
    _make_durable(spool, [placed])
    if _tied(asked.job):
        from spoolq import ties

        ties.after(spool, [placed], asked.job)
    return placed


def estimated(job: Job, found: where.Found, *, warn: bool) -> Job:
    """The job that is submitted: with estimates, unless no known node could run what they come to."""
    best = job
    if found.policy.learn and not job.declared >= {CPUS, MEM}:
        from spoolq import lessons

        best = lessons.estimated(job, found.spool.root, found.policy)
    try:
        request.check_nodes(best, found.spool, warn_none=warn)
    except RequestError:
        if best is job:
            raise
        request.check_nodes(job, found.spool, warn_none=warn)
        return job
    return best


def submit_or_join(found: where.Found, asked: Asked, parsed: Parsed, *, warn: bool = True) -> tuple[Placed, bool]:
    """`submit`, or with `--unique KEY:join` the job that has the key; and whether it is that one."""
    if "unique" not in parsed.flags:
        return submit(found, asked, warn=warn), False
    from spoolq import unique

    try:
        return submit(found, asked, warn=warn), False
    except unique.Taken as taken:
        if not unique.parse(parsed.flags["unique"]).join:
            raise
        if sys.stderr.isatty():
            sys.stderr.write(f"spoolq: joined job {taken.at.entry.id} ({taken.at.state.name})\n")
        return taken.at, True


def say_fresh(what: str) -> None:
    """Nothing was submitted, and that is as it should be."""
    sys.stderr.write(f"spoolq: up to date, nothing submitted: {what}\n")


def tell(found: where.Found, ids: Sequence[int], job: Job) -> None:
    """Let the hook know, which is one for all jobs of a submission; what goes wrong in it is no matter of theirs."""
    try:
        settings = found.settings
        if settings.on_submit or found.policy.plugins:
            from spoolq import hook

            hooks = hook.Hooks(settings, found.spool.root, where.log_file("hooks.log"), plugins=found.policy.plugins)
            hooks.tell(hook.SUBMIT, {**hook.of_job(job.entry(ids[0]), job), "JOB_IDS": ranges(ids)})
    except (SpoolqError, OSError) as error:
        request.warn(f"the hook for submissions was not run: {error}")


def _fitting(data: bytes) -> bytes:
    if len(data) > home.JOB_LIMIT:
        raise UsageError(f"the job has {len(data)} bytes; at most {home.JOB_LIMIT} can be kept: put it into a script")
    return data


def _commit(spool: Spool, job_id: int, asked: Asked, data: bytes) -> Placed:
    try:
        packed, entry, array = environment.pack(asked.env), asked.job.entry(job_id), bool(asked.job.array)
        home.fill(spool.root, job_id, data, env=packed, script=asked.script, entry=not array)
        if array:
            entry = fill_array(spool, asked.job, entry)
        if _tied(asked.job):
            from spoolq import ties

            ties.before(spool, asked.job, job_id)
        patience.so_far(lambda: f"perhaps submitted; ask `spoolq show {job_id}`")
        placed = spool.submit(job_id, entry)
        if asked.job.unique:
            from spoolq import unique

            unique.committed(spool, asked.job, job_id)
        patience.so_far(lambda: f"submitted as {job_id}, but the spool cannot say that it is durable")
        return placed
    except OSError as error:
        # only a refusal is certain: after a doubtful rename or Ctrl-C it may exist, and nothing is taken away
        home.discard(spool.root, job_id)
        if error.errno in FULL:
            raise TryAgain(f"{spool.root}: {error.strerror}: nothing was submitted; make room and try again") from error
        raise


def fill_array(spool: Spool, job: Job, base: Entry) -> Entry:
    """The entries of an array, made ready to be committed together; returns the first."""
    from spoolq import array, tasks

    wants = base.wants.items()
    nodes = [facts["capacity"] for name in spool.nodes() if (facts := spool.read_node(name)) and "capacity" in facts]
    room = [min(has.get(name, 0) // amount for name, amount in wants if amount) for has in nodes]
    found = array.entries(base, array.parse(job.array), max(sum(room), array.WORKERS))
    tasks.fill(spool.root, base.id, [entry.name for entry in found], bounded=bool(job.max_fails))
    return found[0]


def _make_durable(spool: Spool, placed: Sequence[Placed]) -> None:
    try:
        spool.committed(placed)
    except OSError as error:
        ids = ranges([at.entry.id for at in placed])
        raise TryAgain(f"submitted as {ids}, but the spool cannot say that it is durable: {error.strerror}") from error


def _tied(job: Job) -> bool:
    """Whether there is more to do about it than one commit, see `ties`."""
    return bool(job.depend or job.unique or job.parent_id)


def announce(ids: Sequence[int], parsed: Parsed) -> None:
    try:
        if "json" in parsed.flags:
            from spoolq.arguments import print_json

            print_json("submitted", list(ids))
        elif sys.stdout.isatty() and "parsable" not in parsed.flags:
            print(f"submitted job{'s' * (len(ids) != 1)} {ranges(ids)}")
        else:
            sys.stdout.write("".join([f"{job_id}\n" for job_id in ids]))
        sys.stdout.flush()
    except OSError as error:
        raise SpoolqError(f"submitted as {ranges(ids)}, but that could not be printed: {error.strerror}") from error


def ranges(ids: Sequence[int]) -> str:
    """`40-45, 47` from ids in order."""
    parts: list[list[int]] = []
    for job_id in ids:
        if parts and parts[-1][1] == job_id - 1:
            parts[-1][1] = job_id
        else:
            parts.append([job_id, job_id])
    return ", ".join(f"{low}-{high}" if high > low else str(low) for low, high in parts)


def show_check(job: Job, spool: Spool, *, as_json: bool) -> int:
    could = request.could_run(job, spool)
    if as_json:
        from spoolq.arguments import print_json

        print_json("check", could)
    else:
        print(f"valid; could run on: {', '.join(could['could_run']) or 'no node seen so far'}")
        for node, why in could["could_not"].items():
            print(f"not on {node}: {why}")
    return 0 if could["could_run"] or not could["could_not"] else 2


class Alike(NamedTuple):
    """Jobs that follow each other and differ in nothing but command and name."""

    job: Job
    commands: list[tuple[str, ...]]
    names: list[str]


def submit_many(found: where.Found, parts: Sequence[Alike], env: dict[str, str]) -> Iterator[list[int]]:
    """
    Commit n jobs that differ in command and name, and from part to part in what they ask for.

    Yields ids, a batch at a time, once they are durable.

    Raises:
        TryAgain, OSError: as `submit`; what was committed before has been yielded.
    """
    spool, root = found.spool, found.spool.root
    job = parts[0].job
    labels = {name: label_of(name) for part in parts for name in set(part.names)}
    packed: bytes | str = environment.pack(env)
    last: int | None = None
    batch: list[Placed] = []
    failed: BaseException | None = None
    for base, data, name in _each(parts):
        job_id, fitting = 0, _fitting(data)
        try:
            if not batch:
                home.check_space(root, int(found.policy.min_free_mb))
            last = job_id = home.allocate(root, last)
            home.fill(root, job_id, fitting, env=packed)
            if _tied(job):
                from spoolq import ties

                ties.before(spool, job, job_id)
            batch.append(spool.submit(job_id, base._replace(id=job_id, label=labels[name])))
        except (TryAgain, OSError, KeyboardInterrupt) as error:
            if job_id and isinstance(error, OSError):
                home.discard(root, job_id)
            failed = error
            break
        if isinstance(packed, bytes):
            packed = f"{home.path_of(root, job_id)}/env"
        if len(batch) == BATCH:
            yield _through(spool, batch, job)
            batch = []
    if batch:
        yield _through(spool, batch, job)
    if failed is not None:
        raise failed


def _each(parts: Sequence[Alike]) -> Iterator[tuple[Entry, bytes, str]]:
    for job, commands, names in parts:
        base = job.entry(1)
        for data, name in zip(stored.format_many(job, commands, names), names, strict=True):
            yield base, data, name


def _through(spool: Spool, batch: Sequence[Placed], job: Job) -> list[int]:
    _make_durable(spool, batch)
    if _tied(job):
        from spoolq import ties

        ties.after(spool, batch, job)
    return [placed.entry.id for placed in batch]
