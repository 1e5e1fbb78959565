"""
Wait until jobs have ended, and the command `wait`.

Looks at fresh listings, more rarely the longer it takes: of a few jobs at their own homes, where the
result appears, of many at the directories of done/, a thousand jobs a listing.
Invariant: a job counts as ended only when its entry is in done/ (the commit point of its end), or,
long after, when history says so; a job that is nowhere is reported, and never waited for.
"""

import contextlib
import os
import sys
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from spoolq import arguments, home, patience
from spoolq.arguments import Command, Flag
from spoolq.entry import HOMES
from spoolq.errors import NotFound, UsageError
from spoolq.spool import Placed, Spool
from spoolq.state import of_ending, shell_code

if TYPE_CHECKING:
    from spoolq.tally import Tally

FEW = 8  # jobs whose homes are looked at one by one
SHORTEST_S, LONGEST_S = 0.005, 0.1
COST = 10  # times as long as the last look took, at least: thousands of jobs are looked at less often
MOST_S = 5.0  # but not more: a look that hung for an hour is no measure of the next
LAG = 0.05  # of the time waited: the share by which an end may be noticed late
SURE_S = 1.0  # between looks at done/ itself, for ends without a result
LOST_S = 30.0  # between checks that a job still exists
BACK = 64  # jobs that are looked for once more, one by one
TIMED_OUT = 124  # as timeout(1)

WAIT = Command(
    "wait",
    "JOB..",
    "Wait until jobs have ended; exit with the worst of their codes (128+n signal, 124 time limit, 137 memory).",
    (
        Flag("timeout", "t", "TIME", "give up after so long, exit 124: 90s, 10m, 2h; a bare number is minutes"),
        Flag("any", "", "", "return as soon as one of them has ended"),
        Flag("no-fail", "", "", "exit 0 whatever became of the jobs"),
    ),
    "job",
    "JOB: 42, 40-45, 42,44, 42_7 of an array, last (your newest), @name, all (yours that have not ended)\n\n"
    "Examples:\n  spoolq wait 42 || echo failed\n  spoolq wait 40-45 --timeout 2h\n  spoolq wait --json last\n\n"
    "Plain files: jobs/N/ID/result.json appears when a job has ended.",
)


Unit = int | str  # a job or a whole array by its id, a task of an array as `42_7`


class Outcome(NamedTuple):
    """How a job ended: the exit code a shell would see, and its state; no state if it was never found."""

    id: Unit
    code: int
    state: str


def wait(argv: Sequence[str]) -> int:
    """`wait JOB..`."""
    from spoolq import where

    given = arguments.parse(WAIT, argv)
    if given.has("help"):
        return arguments.show_help(WAIT)
    if not given.words:
        raise UsageError("wait: for which jobs? (examples: 42, 40-45, last, @name, all)")
    timeout_s: float | None = None
    if text := given.last("timeout"):
        from spoolq.resources import parse_seconds

        timeout_s = parse_seconds(text, "--timeout")
    spool = where.find(given.last("spool")).spool
    ids = ids_of(spool, given.words)
    found = until_ended(spool, ids, timeout_s=timeout_s, any_of=given.has("any"))
    if given.has("json"):
        arguments.print_json("results", [result_of(spool, found[job_id]) for job_id in ids if job_id in found])
    if len(found) < len(ids) and not (given.has("any") and found):
        sys.stderr.write(f"spoolq: {len(ids) - len(found)} of {len(ids)} jobs have not ended after {timeout_s} s\n")
        return TIMED_OUT
    return 0 if given.has("no-fail") else worst(found)


def ids_of(spool: Spool, words: Sequence[str]) -> list[Unit]:
    """The ids that words mean; plain numbers need no look at the spool."""
    parts = [part for word in words for part in word.split(",") if part or not word.strip(",")]
    if all(part.isascii() and part.isdigit() for part in parts):
        from spoolq.job import parse_id

        return list(dict.fromkeys(parse_id(part) for part in parts))
    from spoolq.selector import resolve

    return resolve(spool, words)


def worst(found: dict[Unit, Outcome]) -> int:
    """The worst code of jobs."""
    return max((outcome.code for outcome in found.values()), default=0)


def until_ended(
    spool: Spool, ids: Iterable[Unit], *, timeout_s: float | None = None, any_of: bool = False
) -> dict[Unit, Outcome]:
    """
    Wait for jobs; those that are nowhere are reported on stderr and count as code 1.

    Args:
        timeout_s: give up after so long, or None.
        any_of: return when one has ended.

    Returns:
        What has ended, by id; all of them unless `timeout_s` or `any_of` says otherwise.
    """
    began = checked = sure = time.monotonic()
    patience.endure(float("inf") if timeout_s is None else began + timeout_s, TIMED_OUT)
    look_s = 0.0
    pending = set(ids)
    found = ended_now(spool, pending, sure=True)
    pending -= found.keys()
    found |= lost(spool, pending)
    pending -= found.keys()
    with _lending(spool, pending):
        while pending and not (any_of and found):
            now = time.monotonic()
            if timeout_s is not None and now - began >= timeout_s:
                break
            nap(now - began, None if timeout_s is None else began + timeout_s - now, least_s=min(MOST_S, COST * look_s))
            now = time.monotonic()
            certainly = now - sure >= SURE_S
            found |= ended_now(spool, pending, sure=certainly)
            look_s = time.monotonic() - now
            if certainly:
                sure = now
            pending -= found.keys()
            if pending and now - checked >= LOST_S:
                found |= lost(spool, pending)
                checked = time.monotonic()
                pending -= found.keys()
    return found


def _lending(spool: Spool, pending: Collection[Unit]) -> contextlib.AbstractContextManager[None]:
    """In a job that waits for others: what `nested` does meanwhile."""
    if not pending or "SPOOLQ_JOB_ID" not in os.environ:
        return contextlib.nullcontext()
    from spoolq import nested

    nested.refuse_own(spool, pending)
    return nested.waiting(spool)


def nap(waited_s: float, most_s: float | None = None, *, least_s: float = SHORTEST_S) -> None:
    """Sleep for a share of the time waited so far, so that short waits are short and long ones cheap."""
    pause = max(SHORTEST_S, least_s, min(LONGEST_S, LAG * waited_s))
    time.sleep(pause if most_s is None else max(0.0, min(pause, most_s)))


def ended_now(spool: Spool, pending: Collection[Unit], *, sure: bool) -> dict[Unit, Outcome]:
    """
    Those of some jobs that have ended.

    Args:
        sure: look into done/ in any case; else, of a few jobs, only where a result has appeared.
    """
    likely: Iterable[Unit] = pending
    if not sure and len(pending) <= FEW:
        likely = [unit for unit in pending if type(unit) is int and home.read_result(spool.root, unit) is not None]
    found: dict[Unit, Outcome] = {}
    arrays: dict[int, list[Placed]] = {}
    for group in {id_of(unit) // HOMES for unit in likely}:
        for placed in spool.done(group):
            job_id, ending = placed.entry.id, placed.entry.ending
            if placed.entry.chunk:
                arrays.setdefault(job_id, []).append(placed)
            elif job_id in pending:
                found[job_id] = Outcome(job_id, shell_code(ending), of_ending(ending or "").name)
    wanted = {unit for unit in likely if type(unit) is str or unit in arrays}
    if wanted:
        found |= of_arrays(spool, wanted, arrays)
    return found


def id_of(unit: Unit) -> int:
    """The id of the job or array."""
    return unit if isinstance(unit, int) else int(unit.partition("_")[0])


def of_arrays(spool: Spool, wanted: Collection[Unit], done: Mapping[int, list[Placed]]) -> dict[Unit, Outcome]:
    """The arrays and tasks that have ended: a task also while its chunk goes on, if it is not tried again."""
    from spoolq import array, tally

    found: dict[Unit, Outcome] = {}
    for job_id in {id_of(unit) for unit in wanted}:
        chunks, spec = done.get(job_id, []), tally.spec_of(spool, job_id)
        whole = spec is not None and tally.covered(spec, [at.entry.chunk for at in chunks])
        if job_id in wanted and (whole or (spec is None and chunks)):
            word = array.worst(at.entry.ending or "" for at in chunks)
            found[job_id] = Outcome(job_id, shell_code(word), of_ending(word).name)
        tasks = [unit for unit in wanted if isinstance(unit, str) and id_of(unit) == job_id]
        if not tasks:
            continue
        known = tally.Tally(spool, job_id, chunks)
        numbers = {unit: int(unit.partition("_")[2]) for unit in tasks}
        words = {unit: known.ended(number) for unit, number in numbers.items()}
        if any(not words[unit] and _final(known, number) for unit, number in numbers.items()):
            # their chunks are not through; perhaps they are to run again
            now = tally.Tally(spool, job_id, (at for at in spool.live() if at.entry.id == job_id))
            words |= {unit: now.ended(n) for unit, n in numbers.items() if not words[unit] and _final(now, n)}
        found |= {unit: Outcome(unit, shell_code(word), of_ending(word).name) for unit, word in words.items() if word}
    return found


def _final(known: "Tally", number: int) -> str:
    """How a task ended whose chunk has not, if that is the last word of this attempt."""
    from spoolq import array

    line = known.known.get(number)
    tried = known.job.retries if known.job else 0
    return array.word_of(line) if line is not None and array.settled(line, tried) else ""


def lost(spool: Spool, pending: Collection[Unit]) -> dict[Unit, Outcome]:
    """Those that are neither live nor in done/: swept long ago, as history says, or never submitted."""
    if not pending:
        return {}
    if len(pending) <= FEW:
        nowhere = {unit for unit in pending if not _exists(spool, id_of(unit))}
    else:
        live = {placed.entry.id for placed in spool.live()}
        nowhere = {unit for unit in pending if id_of(unit) not in live}
    found = ended_now(spool, nowhere, sure=True) if nowhere else {}  # it may have ended in between
    # of an array that has ended in part the rest was seen as live, or comes with the next look
    nowhere = {unit for unit in nowhere - found.keys() if len(nowhere) > BACK or not _exists(spool, id_of(unit))}
    if not nowhere:
        return found
    records = from_history(spool, {unit for unit in nowhere if isinstance(unit, int)})
    for unit in sorted(nowhere, key=id_of):
        record = records.get(unit) if isinstance(unit, int) else None
        if of_one_task(record):
            continue
        if record is not None:
            found[unit] = Outcome(unit, code_of(record), str(record.get("state")))
        else:
            sys.stderr.write(f"spoolq: job {unit}: no such job in {spool.root}\n")
            found[unit] = Outcome(unit, 1, "")
    return found


def _exists(spool: Spool, job_id: int) -> bool:
    try:
        spool.find(job_id)
    except NotFound:
        return False
    return True


def from_history(spool: Spool, ids: Collection[int]) -> dict[int, dict[str, Any]]:
    """The records of the last attempts of some jobs; of an array that of any of its tasks, see `of_one_task`."""
    from spoolq import history

    records: dict[int, dict[str, Any]] = {}
    for name in spool.history_files():
        for record in history.parse(spool.read_history(name)):
            job_id = record["id"]
            if job_id in ids and record["attempt"] >= records.get(job_id, record)["attempt"]:
                records[job_id] = record
    return records


def of_one_task(record: Mapping[str, Any] | None) -> bool:
    """
    Whether a record is about one task of an array, and says nothing of the array.

    Where entries are not seen, as by an NFS client that remembers for a minute that `done/0` is missing, nobody
    knows how the array ended, or whether it has (simulation, seed 700809).
    """
    return record is not None and record.get("task") is not None


def code_of(record: dict[str, Any]) -> int:
    """The exit code a shell would see, from a result or a record of history."""
    by_state = {"COMPLETED": "exit0", "TIMEOUT": "timeout", "OUT_OF_MEMORY": "oom", "CANCELLED": "cancelled"}
    word = by_state.get(str(record.get("state")), "")
    if not word and record.get("signal") is not None:
        word = f"signal{record['signal']}"
    elif not word and record.get("exit_code") is not None:
        word = f"exit{record['exit_code']}"
    return shell_code(word)


def tell(spool: Spool, outcome: Outcome) -> None:
    """Say on stderr why a job did not end by itself, or could not be started; what it did itself it said itself."""
    if outcome.code == 0:
        return
    known = _result(spool, outcome)
    reason = str(known.get("reason") or "")
    if reason or outcome.state != "FAILED" or "tasks" in known:
        text = f"{outcome.state}{f': {reason}' if reason and reason != outcome.state.lower() else ''}"
        shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
        sys.stderr.write(f"spoolq: job {outcome.id}: {shown}\n")


def result_of(spool: Spool, outcome: Outcome) -> dict[str, Any]:
    """The whole result where there is one; else what is known."""
    whole = _result(spool, outcome)
    if not whole and outcome.state and isinstance(outcome.id, int):
        whole = from_history(spool, {outcome.id}).get(outcome.id, {})
    return {**(whole or {"id": outcome.id, "state": outcome.state or None}), "code": outcome.code}


def _result(spool: Spool, outcome: Outcome) -> dict[str, Any]:
    """What the home says: result.json, the line of a task, or how many tasks of an array ended how."""
    from spoolq import result

    if isinstance(outcome.id, str):
        from spoolq import tasks

        return tasks.result(spool.root, id_of(outcome.id), int(outcome.id.partition("_")[2])) or {}
    data = home.read_result(spool.root, outcome.id)
    if data is not None:
        return result.parse(data) or {}
    from spoolq import array, tally

    if not outcome.state or tally.spec_of(spool, outcome.id) is None:
        return {}
    done = [at for at in spool.done(outcome.id // HOMES) if at.entry.id == outcome.id]
    known = tally.Tally(spool, outcome.id, done)
    states = known.by_state()
    words = [f"{len(some)} {state.name.lower()}" for state, some in states.items()]
    bad = array.ranges((n for state, some in states.items() if state.name != "COMPLETED" for n in some), 5)
    facts = {"id": outcome.id, "state": outcome.state, "reason": f"{', '.join(words)}; not well: {bad}" if bad else ""}
    return {**facts, "tasks": {state.name: len(some) for state, some in states.items()}}
