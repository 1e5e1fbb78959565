"""
Run a job again, or end it: the rule of its user, after its node went down or after it failed.

The rule for a node that went down (`never`, `certain`, `yes`) is in the entry's name; how often a
failure is tried again (`--retries`) is in the job file. Both go through reaping/<me>, so that an
attempt that is over cannot be taken for one that runs. A retry waits in held/ (HR), longer each time;
how long is measured by whoever saw it begin to wait, since no two clocks are compared.
Invariant: what history says has ended is never run again here, and what may run elsewhere neither.
"""

import contextlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from spoolq import array, deliver, descent, fsops, home, host, result, tasks, values
from spoolq.deliver import Finished
from spoolq.entry import Entry
from spoolq.errors import SpoolqError
from spoolq.fsops import Answer
from spoolq.job import Job
from spoolq.resources import MEM
from spoolq.spool import Placed

if TYPE_CHECKING:
    from spoolq.daemon import Daemon

log = logging.getLogger("spoolq")

Key = tuple[int | str, int]  # of an attempt: what its entry is called (`entry.unit`), and its number
MOST_WAIT_S = 3600.0  # before a retry
LOOK_BEATS = 30  # beats between looks for retries that nobody waits for any more
_NOT_RETRIED = ("exit0", "cancelled", "nodefail")


@dataclass
class Known:
    """What is known beside the entries: by the runner, by users who asked for something, by history."""

    daemon: "Daemon"
    jobs: Mapping[Key, dict[str, Any]]
    wishes: Mapping[Key, str]
    node: str  # whose entries they are, or empty for anybody's

    @cached_property
    def recorded(self) -> dict[tuple[int, int], dict[str, Any]]:
        """Read only if it is needed: a busy node writes much in a day."""
        return deliver.recorded_lines(self.daemon.spool, self.node)

    def wish(self, key: Key) -> str:
        """What a user asked for this attempt, or for whichever is there."""
        array = int(str(key[0]).partition("_")[0])
        asked = (key, (key[0], 0), (array, key[1]), (array, 0))
        return next((self.wishes[one] for one in asked if one in self.wishes), "")

    def state(self, key: Key) -> str:
        """What the runner says of an attempt: `running`, `ended`, `doubtful`, or empty."""
        return str(self.jobs[key]["state"]) if key in self.jobs else ""


def decide(daemon: "Daemon", at: Placed, known: Known) -> Answer:
    """
    An entry in reaping/<me> of an attempt that may have started and will never end by itself.

    Returns:
        What became of the rename; UNKNOWN also for one that is on its way (`daemon.ended`).
    """
    entry = at.entry
    key = (entry.unit, entry.attempt)
    if not entry.chunk and (record := deliver.proof(known.recorded, entry)):
        finish_recorded(daemon, at, record)
        return Answer.UNKNOWN
    if entry.chunk:
        heed_kills(daemon, entry, known)
        descent.end_of_chunk(daemon, entry)
    else:
        descent.end_children(daemon, entry.id)
    went_down = f"node {known.node} went down while it ran or was about to" if known.node else "its node went down"
    if known.wish(key) == "kill":
        detail = f"cancelled by its user; {went_down}"
        return daemon.around.end(daemon, at, "cancelled", detail)
    if known.state(key) == "ended":  # an end that was seen: a requeue, interrupted; it gets its line of history too
        item = Finished(at, known.jobs[key]["ended"], deliver.read_job(daemon.spool, entry.id), requeue=True)
        item.retry = known.wish(key) != "requeue" and wanted(item)
        daemon.ended.append(item)
        return Answer.UNKNOWN
    detail = ""
    if entry.rerun == "N" and entry.chunk and lose_task(daemon, at, went_down):
        return run_again(daemon, at)
    if entry.rerun == "N":
        detail = f"{went_down}; its user said never to run it again"
    elif entry.attempt >= daemon.policy.max_attempts:
        detail = f"{went_down}; that was attempt {entry.attempt}, and max_attempts is {daemon.policy.max_attempts}"
    if not detail:
        more = more_for_tasks(daemon, entry, deliver.read_job(daemon.spool, entry.id)) if entry.chunk else {}
        return run_again(daemon, at, **more)
    log.warning("node fail job=%s attempt=%d", *key)
    return daemon.around.end(daemon, at, "nodefail", detail)


def heed_kills(daemon: "Daemon", entry: Entry, known: Known) -> None:
    """What users asked for tasks of a chunk that its node did not live to end: they do not run again either."""
    asked: set[int] = set()
    for node in [known.node] if known.node else daemon.spool.nodes():
        for _, request in daemon.spool.requests(node):
            about = (request.get("verb"), request.get("id"), request.get("attempt"), request.get("chunk"))
            if about == ("kill", entry.id, entry.attempt, entry.chunk[1:]) and type(request.get("task")) is int:
                asked.add(request["task"])
    job = deliver.read_job(daemon.spool, entry.id) if asked else None
    if job is not None:
        lines = array.latest(tasks.of_tasks(tasks.read(daemon.spool.root, entry.id, entry.chunk)))
        for number in asked.intersection(array.due(entry, array.parse(job.array), lines, job.retries)):
            of_task = array.task_entry(entry, number)
            deliver.write_unstarted(daemon.spool, of_task, "cancelled", "cancelled by its user", daemon.node)


def lose_task(daemon: "Daemon", at: Placed, why: str) -> bool:
    """
    End the one task of a chunk that may have been running and must not run again; the others certainly never started.

    It is the first that has no result, since with this rule each waits until that of the one before is recorded.
    """
    entry, root, job = at.entry, daemon.spool.root, deliver.read_job(daemon.spool, at.entry.id)
    if job is None:
        return False
    lines = tasks.of_tasks(tasks.read(root, entry.id, entry.chunk, sure=True))
    done_before = any(line["attempt"] == entry.attempt and line.get("state") == "NODE_FAIL" for line in lines)
    left = array.due(entry, array.parse(job.array), array.latest(lines), job.retries)
    if left and not done_before:
        detail = f"{why}; its user said never to run it again"
        deliver.write_unstarted(daemon.spool, array.task_entry(entry, left[0]), "nodefail", detail, daemon.node)
    return True


def run_again(daemon: "Daemon", at: Placed, *, held: str = "", **changes: Any) -> Answer:
    """Into the queue as the next attempt, at its old place in line; or into held/ first; with changes of its name."""
    with contextlib.suppress(OSError):  # kept for its user; history has it too
        home.set_aside(daemon.spool.root, at.entry.id, at.entry.attempt)
    answer, target = daemon.spool.requeue(at, held=held, **changes)
    if held and answer is not Answer.LOST:
        daemon.retries[(target.entry.unit, target.entry.gen)] = host.boottime() + wait_s(daemon, target.entry.attempt)
    daemon.spool.committed([])
    daemon.looked = daemon.limits.once and daemon.looked
    daemon.set_due("queue", 0.0)
    log.info("requeued job=%s attempt=%d %s %s", at.entry.unit, at.entry.attempt + 1, held, answer.value)
    return answer


def finish_recorded(daemon: "Daemon", at: Placed, record: dict[str, Any]) -> None:
    """Its end is in the history already: only the last rename is missing, and a line with its gen."""
    reason = str(record.get("reason") or "").partition(":")[0]
    item = Finished(at, {**record, "reason": reason}, None, record=record)
    item.recorded = record["gen"] == at.entry.gen + 1
    daemon.ended.append(item)


def requeue_ended(daemon: "Daemon", item: Finished) -> bool:
    """An attempt that ended and is to run again: through reaping/<me>, as after a node failure."""
    if item.requeued:
        deliver.write_attempt(daemon.spool, item, daemon.node)
        return True
    while item.outputs:
        fd, item.outputs = item.outputs[-1], item.outputs[:-1]
        with contextlib.suppress(OSError):
            fsops.close(fd)
    if item.at.top == "running":
        answer, taken = daemon.spool.reap(item.at, daemon.node)
        if answer is Answer.UNKNOWN:
            return False
        if answer is Answer.LOST:
            return not deliver.found_again(daemon.spool, item) and keep_late(daemon, item)
        item.at = taken
    forget_nameless(daemon, item.at)
    changes = more_memory(daemon, item.at.entry, item.job, item.ended)
    answer = run_again(daemon, item.at, held="HR" if item.retry and daemon.policy.retry_s else "", **changes)
    if answer is Answer.WON:
        item.requeued = True  # before its line: if that is refused, only the line is written later
        deliver.write_attempt(daemon.spool, item, daemon.node)
    return answer is not Answer.UNKNOWN


def is_away(daemon: "Daemon") -> bool:
    """Whether the spool is not there now: then what a path answers says nothing about a job."""
    try:
        daemon.spool.check_same()
    except (OSError, SpoolqError):
        return True
    return False


def forget(daemon: "Daemon", key: Key) -> None:
    """The runner need not keep it any longer."""
    daemon.family.send({"op": "forget", "jobs": [list(key)]})


def give_back(daemon: "Daemon", at: Placed) -> None:
    """
    A claim that did not start; what cannot be given back now is a ghost for the next look.

    The listing that it was claimed from is not used again: the give-back may still be on its way, and
    the same claim, made once more, would then seem to be won.
    """
    daemon.candidates = [other for other in daemon.candidates if other.entry.unit != at.entry.unit]
    daemon.spool.give_back(at)


def more_memory(daemon: "Daemon", entry: Entry, job: Job | None, ended: Mapping[str, Any]) -> dict[str, Any]:
    """What the next attempt asks for if this one took too much (`--retry-mem`); at most what a node has."""
    if not job or not job.retry_mem or result.ending_word(ended) != "oom" or MEM not in entry.wants:
        return {}
    said = [daemon.spool.read_node(node).get("capacity") for node in daemon.spool.nodes()]
    sizes = [size for size in (one.get(MEM) for one in said if isinstance(one, dict)) if type(size) is int]
    most = max([daemon.capacity.get(MEM, 0), *sizes])
    asked = entry.wants[MEM]
    return {"wants": {**entry.wants, MEM: max(asked, min(values.grown(asked, job.retry_mem), most))}}


def more_for_tasks(daemon: "Daemon", entry: Entry, job: Job | None) -> dict[str, Any]:
    """The same for a chunk, if a task of it took too much in this attempt."""
    if not job or not job.retry_mem or entry.attempt > job.retries:
        return {}
    found = array.latest(tasks.of_tasks(tasks.read(daemon.spool.root, entry.id, entry.chunk)))
    oom = any((line["attempt"], line.get("state")) == (entry.attempt, "OUT_OF_MEMORY") for line in found.values())
    return more_memory(daemon, entry, job, {"reason": "oom"}) if oom else {}


def forget_nameless(daemon: "Daemon", at: Placed) -> None:
    """Remove requests that say no attempt before there is a next one, which they would end too, and so for ever."""
    for name, request in daemon.spool.requests(daemon.node):
        if request.get("id") == at.entry.id and request.get("verb") == "requeue" and not request.get("attempt"):
            daemon.spool.answered(daemon.node, name)


def keep_late(daemon: "Daemon", item: Finished) -> bool:
    """Somebody else runs it again already: what came of this attempt is kept for its user."""
    item.late = True
    deliver.prepare(item, daemon.node)
    home.keep_late(daemon.spool.root, item.at.entry.id, item.at.entry.attempt, item.result)
    return True


def wanted(item: Finished) -> bool:
    """Whether an attempt failed and its user wants it tried again."""
    retries = item.job.retries if item.job else 0
    return item.at.entry.attempt <= retries and result.ending_word(item.ended) not in _NOT_RETRIED


def wait_s(daemon: "Daemon", attempt: int) -> float:
    """How long an attempt waits after the one before it failed: twice as long each time."""
    return min(daemon.policy.retry_s * 2.0 ** min(attempt - 2, 30), MOST_WAIT_S)


def release_due(daemon: "Daemon", now: float) -> None:
    """Let retries into the queue that have waited; and see those whose node is not there to wait for them."""
    if daemon.due("retries", now, LOOK_BEATS * daemon.policy.beat_s):
        for at in daemon.spool.waiting("held"):
            if at.entry.held == "HR":
                daemon.retries.setdefault((at.entry.unit, at.entry.gen), now + wait_s(daemon, at.entry.attempt))
    due = [key for key, when in daemon.retries.items() if when <= now]
    if not due:
        return
    released = []
    for unit, gen in due:
        found = daemon.spool.lookup("held", unit)
        if found and found.entry.gen == gen:
            answer, target = daemon.spool.release(found)
            if answer is Answer.UNKNOWN:
                continue
            released += [target] if answer is Answer.WON else []
        del daemon.retries[(unit, gen)]
    if released:
        daemon.spool.committed(released)
        daemon.last_work, daemon.looked = now, False
        daemon.set_due("queue", 0.0)
