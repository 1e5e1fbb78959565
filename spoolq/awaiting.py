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
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

from spoolq import arguments, home, patience
from spoolq.arguments import Command, Flag
from spoolq.entry import HOMES
from spoolq.errors import NotFound, UsageError
from spoolq.spool import Spool
from spoolq.state import of_ending, shell_code

FEW = 8  # jobs whose homes are looked at one by one
SHORTEST_S, LONGEST_S = 0.005, 0.1
COST = 10  # times as long as the last look took, at least: thousands of jobs are looked at less often
LAG = 0.05  # of the time waited: the share by which an end may be noticed late
SURE_S = 1.0  # between looks at done/ itself, for ends without a result
LOST_S = 30.0  # between checks that a job still exists
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
    "JOB: 42, 40-45, 42,44, last (your newest), @name, all (yours that have not ended)\n\n"
    "Examples:\n  spoolq wait 42 || echo failed\n  spoolq wait 40-45 --timeout 2h\n  spoolq wait --json last\n\n"
    "Plain files: jobs/N/ID/result.json appears when a job has ended.",
)


class Outcome(NamedTuple):
    """How a job ended: the exit code a shell would see, and its state; no state if it was never found."""

    id: int
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


def ids_of(spool: Spool, words: Sequence[str]) -> list[int]:
    """The ids that words mean; plain numbers need no look at the spool."""
    parts = [part for word in words for part in word.split(",") if part or not word.strip(",")]
    if all(part.isascii() and part.isdigit() for part in parts):
        from spoolq.job import parse_id

        return list(dict.fromkeys(parse_id(part) for part in parts))
    from spoolq.selector import resolve

    return resolve(spool, words)


def worst(found: dict[int, Outcome]) -> int:
    """The worst code of jobs."""
    return max((outcome.code for outcome in found.values()), default=0)


def until_ended(
    spool: Spool, ids: Iterable[int], *, timeout_s: float | None = None, any_of: bool = False
) -> dict[int, Outcome]:
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
            nap(now - began, None if timeout_s is None else began + timeout_s - now, least_s=COST * look_s)
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


def _lending(spool: Spool, pending: Collection[int]) -> contextlib.AbstractContextManager[None]:
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


def ended_now(spool: Spool, pending: Collection[int], *, sure: bool) -> dict[int, Outcome]:
    """
    Those of some jobs that have ended.

    Args:
        sure: look into done/ in any case; else, of a few jobs, only where a result has appeared.
    """
    likely: Iterable[int] = pending
    if not sure and len(pending) <= FEW:
        likely = [job_id for job_id in pending if home.read_result(spool.root, job_id) is not None]
    found: dict[int, Outcome] = {}
    for group in {job_id // HOMES for job_id in likely}:
        for placed in spool.done(group):
            job_id, ending = placed.entry.id, placed.entry.ending
            if job_id in pending:
                found[job_id] = Outcome(job_id, shell_code(ending), of_ending(ending or "").name)
    return found


def lost(spool: Spool, pending: Collection[int]) -> dict[int, Outcome]:
    """Those that are neither live nor in done/: swept long ago, as history says, or never submitted."""
    if not pending:
        return {}
    if len(pending) <= FEW:
        nowhere = {job_id for job_id in pending if not _exists(spool, job_id)}
    else:
        nowhere = set(pending) - {placed.entry.id for placed in spool.live()}
    found = ended_now(spool, nowhere, sure=True) if nowhere else {}  # it may have ended in between
    nowhere -= found.keys()
    if not nowhere:
        return found
    records = from_history(spool, nowhere)
    for job_id in sorted(nowhere):
        if job_id in records:
            found[job_id] = Outcome(job_id, code_of(records[job_id]), str(records[job_id].get("state")))
        else:
            sys.stderr.write(f"spoolq: job {job_id}: no such job in {spool.root}\n")
            found[job_id] = Outcome(job_id, 1, "")
    return found


def _exists(spool: Spool, job_id: int) -> bool:
    try:
        spool.find(job_id)
    except NotFound:
        return False
    return True


def from_history(spool: Spool, ids: Collection[int]) -> dict[int, dict[str, Any]]:
    """The records of the last attempts of some jobs."""
    from spoolq import history

    records: dict[int, dict[str, Any]] = {}
    for name in spool.history_files():
        for record in history.parse(spool.read_history(name)):
            job_id = record["id"]
            if job_id in ids and record["attempt"] >= records.get(job_id, record)["attempt"]:
                records[job_id] = record
    return records


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
    from spoolq import result

    data = home.read_result(spool.root, outcome.id)
    known = (result.parse(data) if data else None) or {}
    reason = str(known.get("reason") or "")
    if reason or outcome.state != "FAILED":
        text = f"{outcome.state}{f': {reason}' if reason and reason != outcome.state.lower() else ''}"
        shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
        sys.stderr.write(f"spoolq: job {outcome.id}: {shown}\n")


def result_of(spool: Spool, outcome: Outcome) -> dict[str, Any]:
    """The whole result where there is one; else what is known."""
    from spoolq import result

    data = home.read_result(spool.root, outcome.id)
    whole = result.parse(data) if data is not None else None
    if whole is None and outcome.state:
        whole = from_history(spool, {outcome.id}).get(outcome.id)
    return {**(whole or {"id": outcome.id, "state": outcome.state or None}), "code": outcome.code}
