"""
Run the tasks of an array's chunk one after another: a claimed entry holds the resources of one task until all are done.

For the runner each task is a job of its own, `42_7`, with the attempt of its chunk; the family of processes knows no
arrays. A task's result is durable in its chunk's file (`tasks`) before the runner forgets it, and the next may start
before that, so a chunk costs no waiting for the spool; with the rerun rule `never` it waits, so that at most one task
of a lost node is in doubt.
Invariant: a chunk leaves this node only when what its tasks came to is durable; who claims it next runs what has no
result. A daemon starts tasks only of chunks that it claimed itself, and only as long as its lease was never over since.
"""

import contextlib
import json
import logging
import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from spoolq import array, deliver, failures, host, rerun, result, ship, tasks, throttle
from spoolq.channel import Gone
from spoolq.deliver import Finished
from spoolq.devices import Held
from spoolq.entry import Entry
from spoolq.fsops import Answer
from spoolq.launch import NOT_THE_JOBS_FAULT, Prepared
from spoolq.lease import may_start
from spoolq.live import Live
from spoolq.rerun import Key
from spoolq.spool import Placed

if TYPE_CHECKING:
    from spoolq.daemon import Daemon

log = logging.getLogger("spoolq")

AHEAD = 64  # results of one chunk that may wait for the spool before it stops to start more
KILLED, REQUEUED = "kill", "requeue"


@dataclass(slots=True)
class Chunk:
    """
    A chunk that this node has claimed.

    Args:
        due: what is left to start, in order. `current` runs; `unsent` have ended and are not recorded yet.
        lease: the last good beat before which there was no gap, s of CLOCK_BOOTTIME.
        known: the line that counts for each task.
        stale: nothing more is started here: after what runs, the rest is given back.
        doubt: a task may have run of which nobody knows the end: then the rule of its user decides.
        stop: KILLED or REQUEUED, with `why`, if nothing more is to be started for that.
    """

    live: Live
    lease: float = 0.0
    due: deque[int] = field(default_factory=deque)
    known: dict[int, Any] = field(default_factory=dict)
    current: int | None = None
    unsent: int = 0
    stale: bool = False
    doubt: bool = False
    stop: str = ""
    why: str = ""
    clean: bool = False

    @property
    def entry(self) -> Entry:
        """Its entry, as it is named now."""
        return self.live.at.entry

    @property
    def key(self) -> Key:
        """What the runner calls the task that runs; of none, what it never calls any."""
        return run_key(self.entry, self.current) if self.current is not None else ("", 0)


def run_key(entry: Entry, number: int) -> Key:
    """What the runner calls a task."""
    return array.task_entry(entry, number).unit, entry.attempt


# --- claimed


def begin(daemon: "Daemon", at: Placed, ready: Prepared, began: float, held: Held) -> None:
    """A chunk was claimed: look what is left to do, and start the first task."""
    live = daemon.live[at.entry.unit] = Live(
        at, ready.job if not ready.problem else None, since=host.boottime(), devices=held
    )
    chunk = daemon.chunks[at.entry.unit] = Chunk(live, lease=began)
    if ready.problem:
        cancel(daemon, chunk, "exit126", ready.problem)
        return
    try:
        if throttle.crowded(daemon, at.entry):
            chunk.stale = True
        elif at.entry.rerun == "N":
            daemon.spool.make_durable([at])
        load(daemon, chunk)
    except OSError as error:
        log.warning("gave back job=%s why=results of its tasks: %s", at.entry.unit, error.strerror)
        drop(daemon, chunk)
        rerun.give_back(daemon, at)
        raise
    advance_one(daemon, chunk)


def load(daemon: "Daemon", chunk: Chunk) -> None:
    """What of it is left to do, by the results that are there."""
    job, entry = chunk.live.job, chunk.entry
    assert job is not None
    lines = tasks.read(daemon.spool.root, entry.id, entry.chunk, sure=True)
    chunk.known = dict(array.latest(tasks.of_tasks(lines)))
    chunk.due = deque(array.due(entry, array.parse(job.array), chunk.known, job.retries))
    heed_failures(daemon, chunk)


def heed_failures(daemon: "Daemon", chunk: Chunk) -> None:
    """Start no more when as many tasks failed as the user allows."""
    job = chunk.live.job
    if job and not chunk.stop and (why := failures.too_many(daemon.spool.root, chunk.entry.id, job.max_fails)):
        chunk.stop, chunk.why = KILLED, why


# --- turns


def advance(daemon: "Daemon") -> None:
    """Each chunk one step on, where it can; what one meets stops no other."""
    failed: OSError | None = None
    for chunk in list(daemon.chunks.values()):
        try:
            advance_one(daemon, chunk)
        except OSError as error:
            failed = failed or error
    if failed:
        raise failed


def advance_one(daemon: "Daemon", chunk: Chunk) -> None:
    """The next task, or the end of the chunk; nothing while one runs."""
    renew(daemon, chunk)
    if chunk.current is not None:
        return
    if chunk.due and not (chunk.stop or chunk.stale or chunk.entry.suspended):
        most = 1 if chunk.entry.rerun == "N" else AHEAD
        if chunk.unsent < most:
            start(daemon, chunk)
    elif not chunk.unsent and (chunk.stop or not (chunk.entry.suspended and (chunk.due or chunk.stale or chunk.doubt))):
        close(daemon, chunk)


def renew(daemon: "Daemon", chunk: Chunk) -> None:
    """A new beat keeps the right to start more, unless others may have thought this node silent before it."""
    began = daemon.presence.began
    if began > chunk.lease:
        chunk.stale = chunk.stale or began - chunk.lease > daemon.policy.fence_s
        chunk.lease = began
    if daemon.presence.draining:
        chunk.stale = True


def start(daemon: "Daemon", chunk: Chunk) -> None:
    """Start the next task."""
    live, number = chunk.live, chunk.due[0]
    if not may_start(host.boottime(), chunk.lease, daemon.policy.fence_s):
        chunk.stale = True
        return
    heed_failures(daemon, chunk)
    entry = array.task_entry(chunk.entry, number)
    ready = daemon.launcher.prepare(entry)
    if chunk.stop or ready.problem:
        chunk.stop, chunk.why = chunk.stop or KILLED, chunk.why or ready.problem
        return
    chunk.due.popleft()
    chunk.current = number
    try:
        live.outputs = tuple(daemon.launcher.open_outputs(entry, ready.job))
    except OSError as error:
        if error.errno in NOT_THE_JOBS_FAULT or rerun.is_away(daemon):
            unstarted(daemon, chunk)
            raise
        why = f"cannot open output {error.filename}: {error.strerror}"
        ended = {"exit_code": 126, "signal": None, "reason": "launch", "detail": why, "ended": time.time()}
        take_end(daemon, *run_key(entry, number), ended)
        return
    try:
        live.scratch = daemon.scratch.take()
        message = daemon.launcher.message(entry, ready, live.scratch, daemon.policy, live.devices)
        message["until"] = chunk.lease + daemon.policy.fence_s
        daemon.around.wrap(entry, ready.job, message)
        daemon.family.send(message, live.outputs)
    except Gone:
        raise  # the next runner will say that it does not know it
    except OSError:
        unstarted(daemon, chunk)
        raise
    live.asked = False
    daemon.last_work = host.boottime()


def unstarted(daemon: "Daemon", chunk: Chunk) -> None:
    """The task that was to run certainly does not; the rest is for others, or for later."""
    chunk.current, chunk.stale = None, True
    clear(daemon, chunk.live)


def clear(daemon: "Daemon", live: Live) -> None:
    """Let go of what one task held."""
    for fd in live.outputs:
        with contextlib.suppress(OSError):
            os.close(fd)
    live.outputs = ()
    if live.scratch:
        daemon.scratch.give_back(live.scratch)
        live.scratch = ""


# --- what the runner says


def of_run(daemon: "Daemon", unit: int | str, attempt: int) -> Chunk | None:
    """The chunk of which a task runs."""
    return next((chunk for chunk in daemon.chunks.values() if chunk.key == (unit, attempt)), None)


def live_of(daemon: "Daemon", unit: int | str, attempt: int) -> Live | None:
    """The job, or the chunk of the task, that the runner calls so."""
    chunk = of_run(daemon, unit, attempt)
    return chunk.live if chunk else daemon.live.get(unit)


def take_end(daemon: "Daemon", unit: int | str, attempt: int, ended: dict[str, Any]) -> None:
    """A task ended: its result is recorded soon, and the next starts."""
    chunk = of_run(daemon, unit, attempt)
    if chunk is None or chunk.current is None or daemon.around.unfinished((unit, attempt), ended):
        return
    again = daemon.around.judge((unit, attempt), ended)
    live = chunk.live
    at = live.at._replace(entry=array.task_entry(chunk.entry, chunk.current))
    outputs, live.outputs = live.outputs, ()
    clear(daemon, live)
    chunk.current, live.rss_mb = None, 0
    if live.lends:  # whoever waited does not any more
        live.lends = False
        daemon.set_due("news", 0.0)
    if again or (ended.get("reason") == "lost" and chunk.entry.rerun == "Y"):  # fenced: as if it had not run
        chunk.stop, chunk.why = REQUEUED, "its node could not run it, or not reach the spool"
    chunk.unsent += 1
    item = Finished(at, ended, live.job, outputs, requeue=chunk.stop == REQUEUED)
    item.peak_mb, live.peak_mb = live.peak_mb, 0
    daemon.task_ends.append((chunk, item))
    daemon.last_work = host.boottime()


def take_refusal(daemon: "Daemon", unit: int | str, attempt: int, why: str) -> None:
    """The runner did not start it."""
    if chunk := of_run(daemon, unit, attempt):
        log.warning("refused job=%s why=%s", unit, why)
        unstarted(daemon, chunk)
        daemon.sure = False


def record_ends(daemon: "Daemon", lost: Callable[[], None]) -> None:
    """Bring the results of tasks into the spool, a chunk's with one fsync; `lost` is called if an output was."""
    ready, failed = ship.ship_all(daemon.spool, daemon.state_dir, [item for _, item in daemon.task_ends])
    through = []
    for chunk in list(dict.fromkeys(map(id, (chunk for chunk, _ in daemon.task_ends)))):
        pairs = [(c, item) for c, item in daemon.task_ends if id(c) == chunk and any(item is r for r in ready)]
        try:
            if pairs:
                _record(daemon, pairs[0][0], [item for _, item in pairs], lost)
                through += [item for _, item in pairs]
        except OSError as error:
            failed = failed or error
    gone = {id(item) for item in through}
    daemon.task_ends = [(chunk, item) for chunk, item in daemon.task_ends if id(item) not in gone]
    for item in through:
        ship.forget(daemon.state_dir, (item.at.entry.unit, item.at.entry.attempt))
        daemon.around.through(item)
        if daemon.policy.learn:
            daemon.notes.take(item)
    daemon.family.send({"op": "forget", "jobs": [[i.at.entry.unit, i.at.entry.attempt] for i in through]})
    if failed:
        raise failed


def _record(daemon: "Daemon", chunk: Chunk, items: list[Finished], lost: Callable[[], None]) -> None:
    root, entry, job = daemon.spool.root, chunk.entry, chunk.live.job
    kept = [item for item in items if not item.requeue]
    for item in kept:
        deliver.sync_outputs(item, lost)
        deliver.prepare(item, daemon.node)
        if job and job.max_fails and result.ending_word(item.ended) != "exit0":
            tasks.note_failure(root, entry.id, array.bounds(item.at.entry.chunk)[0])
    if kept:
        chunk.clean, anew = False, not chunk.clean
        tasks.record(root, entry, daemon.node, [item.result for item in kept], anew=anew)
        chunk.clean = True
        with contextlib.suppress(OSError):  # for statistics; what counts is recorded
            daemon.spool.record(deliver.today(), daemon.node, [item.line for item in kept], sync=False)
    for item in kept:
        line = json.loads(item.result)
        chunk.known[line["task"]] = line
        log.info("ended job=%s attempt=%d %s", item.at.entry.unit, line["attempt"], item.ending)
    for item in items:
        while item.outputs:
            fd, item.outputs = item.outputs[-1], item.outputs[:-1]
            with contextlib.suppress(OSError):
                os.close(fd)
    chunk.unsent -= len(items)
    if any(array.failed(json.loads(item.result)) for item in kept):
        heed_failures(daemon, chunk)
        if chunk.stop == KILLED and job and job.max_fails:
            failures.end_waiting(daemon, entry.id, chunk.why)


# --- the end of a chunk


def close(daemon: "Daemon", chunk: Chunk) -> None:
    """Nothing of it runs, and all that ended is recorded: it ends, or goes on elsewhere or later."""
    at, entry, job = chunk.live.at, chunk.entry, chunk.live.job
    if chunk.stop == KILLED:
        cancel(daemon, chunk, "cancelled", chunk.why)
    elif chunk.stop == REQUEUED:
        through_reaping(daemon, chunk, array.again(entry, failed=False) if chunk.live.requeue else entry.other)
    elif chunk.doubt:
        drop(daemon, chunk)
        daemon.sure = False  # all that ended is recorded now: `regain` decides about the rest
    elif chunk.stale:
        drop(daemon, chunk)
        rerun.give_back(daemon, at)
    elif job and array.retriable(entry, array.parse(job.array), chunk.known, job.retries):
        more = rerun.more_for_tasks(daemon, entry, job)
        through_reaping(daemon, chunk, entry.other, held="HR" if daemon.policy.retry_s else "", **more)
    else:
        spec = array.parse(job.array) if job else None
        mine = array.tasks_of(spec, entry.chunk) if spec else []
        words = [array.word_of(chunk.known[number]) for number in mine if number in chunk.known]
        finish(daemon, chunk, array.worst(words))


def finish(daemon: "Daemon", chunk: Chunk, word: str) -> bool:
    """Into done/; False if somebody else decided, or nobody knows, and then it is looked at again."""
    at = chunk.live.at
    answer, _ = daemon.spool.finish(at, word)
    if answer is Answer.LOST and (newer := deliver.renamed(daemon.spool, at)):
        chunk.live.at = newer
        return False
    drop(daemon, chunk)
    daemon.dependents.over.append(at.entry.id)
    daemon.sure = daemon.sure and answer is not Answer.UNKNOWN
    daemon.looked = daemon.limits.once and daemon.looked
    log.info("ended job=%s attempt=%d %s %s", at.entry.unit, at.entry.attempt, word, answer.value)
    return answer is Answer.WON


def cancel(daemon: "Daemon", chunk: Chunk, word: str, why: str) -> None:
    """End it before all of its tasks ran."""
    entry = chunk.entry
    if finish(daemon, chunk, word):
        with contextlib.suppress(OSError):  # its name says it too
            deliver.write_unstarted(daemon.spool, entry, word, why, daemon.node)
        if word != "cancelled":  # else its tasks that ran were told of, each for itself
            daemon.around.announce(entry, chunk.live.job, word, {"detail": why})


def through_reaping(daemon: "Daemon", chunk: Chunk, other: tuple[str, ...], *, held: str = "", **changes: Any) -> None:
    """Run (the rest of) it again as the next attempt."""
    at = chunk.live.at
    rerun.forget_nameless(daemon, at)
    drop(daemon, chunk)
    answer, taken = daemon.spool.reap(at, daemon.node)
    if answer is Answer.WON:
        rerun.run_again(daemon, taken, held=held, other=other, **changes)
    daemon.sure = daemon.sure and answer is not Answer.UNKNOWN


def drop(daemon: "Daemon", chunk: Chunk) -> None:
    """Forget it; what it held is free."""
    daemon.drop_live(chunk.live)
    daemon.freed = True
    if not daemon.candidates:
        daemon.set_due("queue", 0.0)
