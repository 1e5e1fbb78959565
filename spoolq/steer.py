"""
The commands that change jobs: kill, hold, release, suspend, resume, requeue.

A waiting job is changed by one rename, by whoever may write there; a running one by a request file
that its node carries out. Whoever loses a rename looks again where the job is now and does what is
right there, so a job that starts in the middle of a `kill` is killed all the same.
Invariant: each job of a selection is handled for itself; what fails for one stops no other. `edit`
lives in `amend`, and both share `act_on`.
"""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from spoolq import arguments, selector
from spoolq.arguments import Command, Flag, Given
from spoolq.entry import HELD, Entry
from spoolq.errors import NotFound, SpoolqError, TryAgain, UsageError
from spoolq.fsops import Answer
from spoolq.spool import Placed, Spool
from spoolq.state import State

TRIES = 8  # renames lost to somebody else before giving up; each means that the job has moved on
_RELEASABLE = ("HU", "HA", "HB", "HR", "")


class Outcome(NamedTuple):
    """
    What became of one job: `done` the word for it (`cancelled`, `held`, ...) or empty, `text` for people.

    Without `done`, `text` says why there was nothing to do; with `failed` it is an error. `note` is
    what must be known also off a terminal: that a request has to wait.
    """

    id: int | str
    done: str
    text: str
    failed: bool = False
    note: str = ""


Step = Callable[[Spool, Placed], Outcome | None]
"""Does it to a job where it is; None if the job moved meanwhile and must be looked for again."""

_FLAGS = (Flag("all", "a", "", "all your jobs that have not ended"), *selector.FILTER_FLAGS)
_JOBS = "[JOB..]"


def _command(name: str, summary: str, *more: Flag, notes: str = "") -> Command:
    text = f"{selector.HELP_WORDS}; filters alone mean all your jobs that pass." + (f"\n{notes}" if notes else "")
    return Command(name, _JOBS, summary, (*more, *_FLAGS), "job", text)


KILL = _command(
    "kill",
    "Cancel jobs, or send running ones a signal.",
    Flag(
        "signal",
        "s",
        "SIG",
        "send only this signal (USR1, TERM, 9, ...) to running jobs",
        "HUP INT TERM KILL USR1 USR2 STOP CONT",
    ),
    notes="Plain files: none for a waiting job; a running one's node reads nodes/NODE/control/.",
)
HOLD = _command("hold", "Keep waiting jobs from starting; suspend running ones.")
RELEASE = _command("release", "Let held jobs start; let suspended ones go on.")
SUSPEND = _command("suspend", "Freeze running jobs (they keep their memory); hold waiting ones.")
RESUME = _command("resume", "Let suspended jobs go on; let held ones start.")
REQUEUE = _command(
    "requeue",
    "Run jobs again, as a new attempt: ended ones, or running ones, which are killed first.",
    Flag("failed", "", "", "all your jobs that failed, ran out of time or memory, or lost their node"),
    notes="The result of the earlier attempt stays as result.ATTEMPT.json in the job's home.",
)
COMMANDS = {c.name: c for c in (KILL, HOLD, RELEASE, SUSPEND, RESUME, REQUEUE)}


# --- the commands


def kill(argv: list[str]) -> int:
    """`kill [-s SIG] JOB..`."""
    given = arguments.parse(KILL, argv)
    number = signal_number(given.last("signal")) if given.has("signal") else None
    return act_on(KILL, given, kill_step(number), ended=False)


def hold(argv: list[str]) -> int:
    """`hold JOB..`."""
    return act_on(HOLD, arguments.parse(HOLD, argv), hold_step, ended=False)


def release(argv: list[str]) -> int:
    """`release JOB..`."""
    return act_on(RELEASE, arguments.parse(RELEASE, argv), release_step, ended=False)


def suspend(argv: list[str]) -> int:
    """`suspend JOB..`."""
    return act_on(SUSPEND, arguments.parse(SUSPEND, argv), hold_step, ended=False)


def resume(argv: list[str]) -> int:
    """`resume JOB..`."""
    return act_on(RESUME, arguments.parse(RESUME, argv), release_step, ended=False)


def requeue(argv: list[str]) -> int:
    """`requeue JOB..`."""
    given = arguments.parse(REQUEUE, argv)
    if given.has("failed"):
        # a chunk is cancelled also if some of its tasks failed, see --max-fails
        states = "failed,timeout,out_of_memory,node_fail" + (",cancelled" if given.words else "")
        given.values.setdefault("state", []).append(states)
    return act_on(REQUEUE, given, requeue_step(failed=given.has("failed")), ended=True)


# --- one job at a time


def act_on(command: Command, given: Given, step: Step, *, ended: bool) -> int:
    """
    Do a step to every selected job.

    Returns:
        0; 1 if a word stands for no job, something failed, or nothing could be done at all.
    """
    if given.has("help"):
        return arguments.show_help(command)
    filters = selector.filter_of(given)
    words = [*given.words, "all"] if given.has("all") else given.words
    if not words and not filters:
        raise UsageError(f"{command.name}: which jobs? ({selector.HELP_WORDS})")
    spool = arguments.open_spool(given)
    chosen = selector.select(spool, words, filters, ended=ended or bool(filters.states))
    for message in chosen.missing:
        arguments.complain(message)
    jobs = chosen.jobs
    if not ended:  # of an array what has ended is not meant, unless all of it has
        live = {placed.entry.id for placed in jobs if placed.top != "done"}
        jobs = [placed for placed in jobs if placed.top != "done" or placed.entry.id not in live]
    outcomes = []
    for placed in jobs:
        numbers, one = chosen.tasks.get(placed.entry.unit), step
        if numbers is not None:
            from spoolq import part

            one = part.step_of(command.name, given, spool, placed, numbers) or step
        outcomes.append(do(spool, placed, one))
    if len(outcomes) > 1 and not given.has("json"):
        from spoolq import part

        outcomes = part.together(outcomes)
    show(given, outcomes)
    if not outcomes and not chosen.missing:
        arguments.complain("no job passes the filter")
    failed = bool(chosen.missing) or any(outcome.failed for outcome in outcomes)
    return 1 if failed or not any(outcome.done for outcome in outcomes) else 0


def do(spool: Spool, placed: Placed, step: Step) -> Outcome:
    """Do it, looking again where the job is as often as somebody else moves it."""
    job_id = placed.entry.unit
    try:
        for _ in range(TRIES):
            outcome = step(spool, placed)
            if outcome is not None:
                return outcome
            placed = spool.find(job_id)
    except (UsageError, TryAgain, NotFound) as error:
        return Outcome(job_id, "", str(error), failed=True)
    except SpoolqError as error:
        return Outcome(job_id, "", f"job {job_id}: {error}", failed=True)
    except OSError as error:
        hint = " (whose job is it?)" if isinstance(error, PermissionError) else ""
        return Outcome(job_id, "", f"job {job_id}: {error.strerror}{hint}", failed=True)
    return Outcome(job_id, "", f"job {job_id}: is being moved all the time, try again", failed=True)


def show(given: Given, outcomes: Sequence[Outcome]) -> None:
    """What was done: JSON, lines on a terminal, else only what could not be done, on stderr."""
    if given.has("json"):
        rows = [
            {"id": o.id, "done": o.done or None, "message": o.text, "error": o.failed, "note": o.note or None}
            for o in outcomes
        ]
        arguments.print_json("outcomes", rows)
        return
    from spoolq import report

    for outcome in outcomes:
        if not outcome.done:
            arguments.complain(outcome.text)
        elif sys.stdout.isatty():
            print(report.show(outcome.text))
        if outcome.note:
            arguments.complain(f"job {outcome.id}: {outcome.note}")


def signal_number(text: str) -> int:
    """A signal from `USR1`, `SIGUSR1`, `10`; UsageError otherwise."""
    import signal

    if text.isascii() and text.isdigit() and 0 < int(text) < signal.NSIG:
        return int(text)
    name = text.upper()
    with contextlib.suppress(KeyError):
        return signal.Signals[name if name.startswith("SIG") else "SIG" + name].value
    raise UsageError(f"kill: {text[:40]!r} is no signal (examples: TERM, USR1, 9)")


def settled(spool: Spool, answer: Answer, at: Placed, target: Placed) -> Answer:
    """The truth about a rename of ours, asked again while the spool does not say."""
    for _ in range(TRIES):
        if answer is not Answer.UNKNOWN:
            return answer
        time.sleep(0.2)  # only after an answer of the server was lost
        answer = spool.settle(at, target) or Answer.LOST  # not done: look where it is and try again
    raise TryAgain(f"job {at.entry.id}: the spool does not say what became of it; ask `spoolq show {at.entry.id}`")


def request(spool: Spool, placed: Placed, verb: str, done: str, text: str, **args: Any) -> Outcome:
    """Ask the job's node; says so if that node cannot hear now."""
    from spoolq import roster

    entry = placed.entry
    tag = f"{time.time_ns():x}.{os.getpid():x}"
    args |= {"chunk": entry.chunk[1:]} if entry.chunk else {}
    spool.request(placed.node, verb, entry.id, {"attempt": entry.attempt, **args}, tag)
    note = roster.waits_note(roster.look_at(spool, placed.node, None))
    return Outcome(entry.unit, done, f"job {entry.unit}: {text}", note=note)


def nothing(placed: Placed, text: str, *, failed: bool = False) -> Outcome:
    """Nothing to do, and why."""
    return Outcome(placed.entry.unit, "", f"job {placed.entry.unit}: {text}", failed)


def over(placed: Placed) -> Outcome:
    """It has ended."""
    return nothing(placed, f"has already ended ({placed.state.name}, {placed.entry.ending})")


def taken_over(placed: Placed) -> Outcome:
    """Somebody else decides about it at this moment."""
    return nothing(placed, f"node {placed.node} is just deciding about it, try again", failed=True)


def writer() -> str:
    """The name of the history files that commands of this user on this machine write."""
    from spoolq import host

    return f"cli-{selector.me()}-{host.host_name()}"


def kill_step(number: int | None) -> Step:
    """
    The step of `kill`.

    Args:
        number: of a signal to send only, or None to cancel.
    """

    def step(spool: Spool, placed: Placed) -> Outcome | None:
        if placed.top == "done":
            return over(placed)
        if placed.top == "reaping":
            return taken_over(placed)
        if placed.top == "running":
            if number is None:
                return request(spool, placed, "kill", "requested", f"{placed.node} is asked to kill it")
            return request(spool, placed, "signal", "requested", f"{placed.node} is asked to signal it", signal=number)
        if number is not None:
            return nothing(placed, f"is not running ({placed.state.name}): no signal was sent")
        return _cancel(spool, placed)

    return step


def _cancel(spool: Spool, placed: Placed) -> Outcome | None:
    from spoolq import deliver, notice

    detail = f"cancelled by {selector.me()} before it started"
    answer = notice.end(spool, placed, detail, writer())
    if answer is Answer.UNKNOWN:
        now = spool.find(placed.entry.unit)
        if now.top != "done" or now.entry.gen != placed.entry.gen + 1 or now.entry.ending != "cancelled":
            return None
        deliver.write_unstarted(spool, placed.entry, "cancelled", detail, writer())
        notice.tell(spool, placed.entry, detail)
    elif answer is Answer.LOST:
        return None
    return Outcome(placed.entry.unit, "cancelled", f"job {placed.entry.unit}: cancelled")


def hold_step(spool: Spool, placed: Placed) -> Outcome | None:
    """Hold what waits, suspend what runs."""
    entry = placed.entry
    if placed.top == "done":
        return over(placed)
    if placed.top == "reaping":
        return taken_over(placed)
    if placed.top == "running":
        if entry.suspended and not entry.aside:
            return nothing(placed, "is suspended already")
        return request(spool, placed, "suspend", "requested", f"{placed.node} is asked to suspend it")
    if placed.top == "held":
        if entry.held not in ("HR", "HD", "HB"):
            return nothing(placed, f"is held already ({HELD.get(entry.held, 'held')})")
        answer, target = spool.edit(placed, held="HU")
    else:
        answer, target = spool.hold(placed)
    if settled(spool, answer, placed, target) is Answer.LOST:
        return None
    return Outcome(entry.unit, "held", f"job {entry.unit}: held")


def release_step(spool: Spool, placed: Placed) -> Outcome | None:
    """Release what is held, resume what is suspended."""
    entry = placed.entry
    if placed.top == "done":
        return over(placed)
    if placed.top == "reaping":
        return taken_over(placed)
    if placed.state is State.SUSPENDED:
        return request(spool, placed, "resume", "requested", f"{placed.node} is asked to resume it")
    if placed.top != "held":
        return nothing(placed, f"is not held ({placed.state.name})")
    if entry.held not in _RELEASABLE:
        how = f"; spoolq edit {entry.id} depend=none lets it go without" if entry.held == "HD" else ""
        return nothing(placed, f"is not held by a user: it waits for {HELD[entry.held]}{how}", failed=True)
    held = "" if entry.held in ("HR", "HB") else next_hold(spool, entry)
    answer, target = spool.edit(placed, held=held) if held else spool.release(placed)
    if settled(spool, answer, placed, target) is Answer.LOST:
        return None
    spool.committed([target])
    then = "; it waits for other jobs" if held else "; it waits for its time" if target.entry.held else ""
    return Outcome(entry.id, "released", f"job {entry.unit}: released{then}")


def next_hold(spool: Spool, entry: Entry) -> str:
    """What else holds a job that nobody holds any more, or that is to run again, see `parents`."""
    if not entry.more:
        return ""
    from spoolq import parents

    return parents.next_hold(spool, entry)


def requeue_step(*, failed: bool = False) -> Step:
    """The step of `requeue`: see `afresh`."""
    from spoolq import afresh

    return afresh.step_of(failed=failed)


def edit(argv: list[str]) -> int:
    """`edit JOB.. [KEY=VALUE..]`: see `amend`."""
    from spoolq import amend

    return amend.edit(argv)
