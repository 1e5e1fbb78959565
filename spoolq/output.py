"""
The command `out`: show what a job wrote, or writes.

Invariant: looks only; whatever happens to it happens to no job.
"""

import contextlib
import os
import sys
import time
from collections.abc import Sequence

from spoolq import arguments, array, awaiting, home, patience, selector, stored, tally, where
from spoolq.arguments import Command, Flag
from spoolq.errors import NotFound, SpoolqError, UsageError
from spoolq.spool import Placed, Spool
from spoolq.tail import ASK_S, STDOUT, Following, Stream, ask, ships

OUT = Command(
    "out",
    "JOB",
    "Print what a job wrote to stdout.",
    (
        Flag("follow", "f", "", "go on until the job ends, also before it starts; exit with the job's code"),
        Flag("stderr", "e", "", "what it wrote to stderr"),
        Flag("lines", "n", "N", "begin with the last N lines"),
    ),
    "job",
    "JOB: 42, 42_7 of an array, last (your newest), @name\n\n"
    "Examples:\n  spoolq out 42\n  spoolq out -f last\n  spoolq out -e -n 20 @align\n\n"
    "Plain files: cat SPOOL/jobs/0/42/stdout; of task 7 of an array cat SPOOL/jobs/0/42/out/0/7.stdout",
)


def out(argv: Sequence[str]) -> int:
    """`out JOB`: what it wrote."""
    given = arguments.parse(OUT, argv)
    if given.has("help"):
        return arguments.show_help(OUT)
    if not given.words:
        raise UsageError("out: of which job? (examples: 42, last, @name)")
    spool = where.find(given.last("spool")).spool
    ids = awaiting.ids_of(spool, given.words)
    ids = tasks_of(spool, ids)
    if len(ids) != 1 and given.has("follow"):
        raise UsageError("out: -f follows one job, or one task of an array (42_7), at a time")
    name = "stderr" if given.has("stderr") else "stdout"
    lines = given.count("lines", -1)
    sys.stdout.flush()
    if given.has("follow"):
        return (_follow if isinstance(ids[0], int) else _follow_task)(spool, ids[0], name, lines)
    arrays: dict[int, tally.Tally] = {}  # each is read once: an array may have 100,000 tasks
    for unit in ids:
        if isinstance(unit, int):
            _print(spool, unit, name, lines)
        else:
            job_id = awaiting.id_of(unit)
            known = arrays[job_id] = arrays.get(job_id) or _read(spool, job_id)
            _print_task(known, unit, name, lines)
    return 0


def tasks_of(spool: Spool, ids: Sequence[awaiting.Unit]) -> list[awaiting.Unit]:
    """The same, with the tasks of each array in its place."""
    found: list[awaiting.Unit] = []
    for unit in ids:
        spec = tally.spec_of(spool, unit) if isinstance(unit, int) else None
        found += [f"{unit}_{number}" for some in spec.ranges for number in some] if spec else [unit]
    return found


def _read(spool: Spool, job_id: int) -> tally.Tally:
    return tally.Tally(spool, job_id, selector.Finder(spool).by_id(job_id))


def _stream_of(known: tally.Tally, unit: str, name: str) -> Stream | None:
    """The output of a task; None while nobody can say where it is."""
    spool, number = known.spool, int(unit.partition("_")[2])
    placed, line = known.chunk_of(number), known.known.get(number)
    if placed is None or (line is None and placed.top in ("queue", "held")):
        return None
    entry = array.task_entry(placed.entry, number)
    if line is not None:
        entry = entry._replace(attempt=line["attempt"])
    pattern = known.job.output if known.job and (name == "stdout" or known.job.error is None) else None
    pattern = known.job.error if known.job and name == "stderr" and known.job.error is not None else pattern
    names = home.fill_in(entry, known.job.name, known.job.user) if known.job else {}
    names["N"] = str(line.get("node") or "") if line else placed.node
    stream = Stream(spool, known.id, name, STDOUT)
    chdir = known.job.chdir if known.job else "/"
    stream.path, stream.listed = home.output_path(spool.root, entry, pattern, name, names, chdir), False
    return stream


def _print_task(known: tally.Tally, unit: str, name: str, lines: int) -> None:
    stream = _stream_of(known, unit, name)
    if stream is None:
        sys.stderr.write(f"spoolq: job {unit} has not started; -f waits for it\n")
        return
    if lines >= 0:
        stream.skip_to_last(lines)
    stream.pump([])


def _follow_task(spool: Spool, unit: awaiting.Unit, name: str, lines: int) -> int:
    """Until the task has ended; of one that has not started also until it has."""
    stream, looked = None, -1.0
    began = active = ask_at = time.monotonic()
    shipped = ships(spool, awaiting.id_of(unit))
    patience.endure()
    while True:
        now = time.monotonic()
        outcome = None
        if stream is not None and now >= ask_at:
            ask_at = now + ASK_S
            _ask(spool, str(unit), shipped=shipped)
        if now - looked >= awaiting.SURE_S:
            looked = now
            outcome = awaiting.ended_now(spool, {unit}, sure=True).get(unit)
            known = None if stream is not None else _read(spool, awaiting.id_of(unit))
            if known and (stream := _stream_of(known, str(unit), name)) and lines >= 0:
                stream.skip_to_last(lines)
        if stream is not None and stream.pump([]):
            active = now
        if outcome is not None:
            awaiting.tell(spool, outcome)
            return outcome.code
        awaiting.nap(max(now - active, min(now - began, 0.4)))


def _ask(spool: Spool, unit: str, *, shipped: bool) -> None:
    with contextlib.suppress(NotFound, OSError):  # who may only read is content with late output
        for at, _ in selector.Finder(spool).holding(*(array.parse_unit(unit) or (0, array.Spec(())))):
            if at.top == "running":
                ask(spool, at, ships=shipped)


def _print(spool: Spool, job_id: int, name: str, lines: int) -> None:
    stream = Stream(spool, job_id, name, STDOUT)
    names = _settle(spool, job_id, stream)
    if lines >= 0 and (not stream.listed or name in names):
        stream.skip_to_last(lines)
    stream.pump(names)
    if "result.json" not in names and ships(spool, job_id) and (placed := spool.find(job_id)).top == "running":
        sys.stdout.flush()
        sys.stderr.write(f"spoolq: job {job_id} keeps its output on {placed.node} until it ends; -f asks for it\n")


def _settle(spool: Spool, job_id: int, stream: Stream) -> list[str]:
    """Find where a stream is; says so if there is none yet. Returns what lies in the home."""
    try:
        names = os.listdir(home.path_of(spool.root, job_id))
    except FileNotFoundError:
        names = []
    if stream.name in names:
        return names
    placed = spool.find(job_id)  # NotFound if it never was
    if placed.top in ("queue", "held"):
        sys.stderr.write(f"spoolq: job {job_id} has not started ({placed.state.name}); -f waits for it\n")
        return names
    path = elsewhere(spool, placed, stream.name)
    if path is not None:
        stream.path, stream.listed = path, False
    return names


def elsewhere(spool: Spool, placed: Placed, name: str) -> str | None:
    """Where a stream goes by the job's -o and -e, or None for its home."""
    from spoolq import result

    entry = placed.entry
    file = f"{home.path_of(spool.root, entry.id)}/job"
    try:
        job = stored.read_job(home.read_job(spool.root, entry.id), file)
    except SpoolqError:
        return None
    pattern = job.output if name == "stdout" or job.error is None else job.error
    if pattern is None:
        return None
    node = placed.node
    if not node and (data := home.read_result(spool.root, entry.id)):
        node = (result.parse(data) or {}).get("node") or ""
    names = home.fill_in(entry, job.name, job.user) | {"N": node}
    return home.output_path(spool.root, entry, pattern, name, names, job.chdir)


def _follow(spool: Spool, unit: awaiting.Unit, name: str, lines: int) -> int:
    job_id = awaiting.id_of(unit)
    spool.find(job_id)  # NotFound now rather than waiting for ever
    stream = Stream(spool, job_id, name, STDOUT)
    following = Following(spool, job_id, [])
    patience.endure()
    while True:
        if not following.streams:
            names = following.names()
            if name in names or "stdout" in names:  # it has started
                if name not in names and (path := elsewhere(spool, spool.find(job_id), name)):
                    stream.path, stream.listed = path, False
                if lines >= 0:
                    stream.skip_to_last(lines)
                following.streams = [stream]
        outcome = following.look()
        if outcome is not None:
            awaiting.tell(spool, outcome)
            return outcome.code
        following.nap()
