"""
Kill or requeue some tasks of an array's chunk, of which the entry stands for others too.

What is said of a task is a line among the results (`tasks`): CANCELLED of one that is not to run, PENDING of one
that is to run again. For a chunk that waits the line is written first, and whoever claims the chunk later reads it.
Invariant: a word about one task moves no other.
"""

import time
from collections.abc import Sequence
from typing import Any

from spoolq import afresh, array, deliver, home, notice, result, steer, tally, tasks
from spoolq.arguments import Given
from spoolq.entry import Entry
from spoolq.fsops import Answer
from spoolq.spool import Placed, Spool
from spoolq.state import State
from spoolq.steer import Outcome, Step


def step_of(name: str, given: Given, spool: Spool, placed: Placed, numbers: list[int]) -> Step | None:
    """The step of a command for some tasks of a chunk; None if these are all of it, and it is meant whole."""
    if tally.is_whole(spool, placed, numbers):
        return None
    if name == "kill" and given.has("signal"):
        return signal(numbers, steer.signal_number(given.last("signal")))
    if name in ("kill", "requeue"):
        return kill(numbers) if name == "kill" else requeue(numbers)

    def refuse(_spool: Spool, at: Placed) -> Outcome | None:
        unit = at.entry.unit
        return steer.nothing(at, f"is one entry for all of its tasks: spoolq {name} {unit}", failed=True)

    return refuse


def kill(numbers: list[int]) -> Step:
    """The step of `kill` for some tasks."""
    written: list[int] = []

    def step(spool: Spool, placed: Placed) -> Outcome | None:
        entry = placed.entry
        known = tally.Tally(spool, entry.id, [placed])
        left = [number for number in numbers if not known.state(number).ended]
        name = f"{entry.id}_{array.ranges(numbers, 5)}"
        if not left and written:
            return Outcome(name, "cancelled", f"job {name}: cancelled")
        if not left:
            return Outcome(name, "", f"job {name}: has already ended ({known.state(numbers[0]).name})")
        if placed.top == "reaping":
            return steer.nothing(placed, f"node {placed.node} is just deciding about it, try again", failed=True)
        if placed.top == "running":
            for number in left:
                outcome = steer.request(spool, placed, "kill", "requested", "", task=number)
            return outcome._replace(id=name, text=f"job {name}: {placed.node} is asked to kill it")
        detail = "cancelled by its user before it started"
        for number in left:
            deliver.write_unstarted(spool, array.task_entry(entry, number), "cancelled", detail, steer.writer())
            notice.tell(spool, array.task_entry(entry, number), detail)
            written.append(number)
        now = spool.find(entry.unit)
        if now.entry.gen != entry.gen:
            return None  # claimed meanwhile, perhaps before that was written: its node must hear of it
        return Outcome(name, "cancelled", f"job {name}: cancelled")

    return step


def signal(numbers: list[int], number: int) -> Step:
    """The step of `kill -s` for some tasks: only one of a chunk can be running."""

    def step(spool: Spool, placed: Placed) -> Outcome | None:
        known = tally.Tally(spool, placed.entry.id, [placed])
        states = {task: known.state(task) for task in numbers}
        name = f"{placed.entry.id}_{array.ranges(numbers, 5)}"
        live = [task for task, state in states.items() if state in (State.RUNNING, State.SUSPENDED)]
        if not live:
            return Outcome(name, "", f"job {name}: is not running ({states[numbers[0]].name}): no signal was sent")
        asked = f"{placed.node} is asked to signal it"
        outcome = steer.request(spool, placed, "signal", "requested", "", signal=number, task=live[0])
        return outcome._replace(id=name, text=f"job {name}: {asked}")

    return step


def requeue(numbers: list[int]) -> Step:
    """The step of `requeue` for some tasks of a chunk that has ended."""

    def step(spool: Spool, placed: Placed) -> Outcome | None:
        entry = placed.entry
        name = f"{entry.id}_{array.ranges(numbers, 5)}"
        if placed.top != "done":
            why = f"others of {entry.unit} wait or run ({placed.state.name}): again when they have ended, or kill them"
            return Outcome(name, "", f"job {name}: {why}", failed=True)
        ended = {"ended": time.time(), "detail": "to be run again"}
        for number in numbers:
            of_task = array.task_entry(entry._replace(attempt=entry.attempt + 1), number)
            facts = result.facts(of_task, ended, ending="cancelled", node=None, submitted=None)
            line = result.build({**facts, "state": "PENDING"})
            tasks.record(spool.root, of_task, steer.writer(), [line])
            tasks.pardon(spool.root, entry.id, [number])
        home.set_aside(spool.root, entry.id, entry.attempt)
        answer, target = afresh.queue_again(spool, placed)
        if steer.settled(spool, answer, placed, target) is Answer.LOST:
            return None
        spool.committed([target])
        return Outcome(name, "requeued", f"job {name}: queued again as attempt {target.entry.attempt}")

    return step


def again(spool: Spool, entry: Entry, *, failed: bool) -> dict[str, Any]:
    """What changes in the name of a chunk of which all tasks, or those that did not end well, run again."""
    tasks.pardon(spool.root, entry.id, tasks.failures(spool.root, entry.id))
    return {"other": array.again(entry, failed=failed)}


def together(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """What became of all chunks of an array alike, said once."""
    found: dict[tuple[str, ...], list[Outcome]] = {}
    for outcome in outcomes:
        job_id, part, _ = str(outcome.id).partition("_")
        said = outcome.text.partition(": ")[2]
        key = (job_id, outcome.done, said, outcome.note) if part else (job_id, outcome.text)
        found.setdefault(key, []).append(outcome)
    whole = {o.id: len(some) for some in found.values() for o in some[:1]}
    firsts = [some[0] for some in found.values()]
    return [o if whole[o.id] == 1 else _of_many(o, whole[o.id]) for o in firsts]


def _of_many(outcome: Outcome, count: int) -> Outcome:
    job_id = str(outcome.id).partition("_")[0]
    said = outcome.text.partition(": ")[2]
    return outcome._replace(id=int(job_id), text=f"job {job_id}: {count} parts of the array: {said}")
