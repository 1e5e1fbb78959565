"""
Bring the end of jobs into the spool: outputs synced, history, one rename into done/, then result.json.

The rename is the commit point; what comes before it may be done again. Each line of history holds the
whole result and the gen of the done/ name it is about, so jobs that ended together share one fsync, and
a line whose rename was lost to another decision is told apart. result.json is written by whoever won
the rename, after it: written before, a late node could overwrite the result of the attempt that counts
(model: "one result.json before the commit"). A result.json that is missing or torn is made from history.
Invariant: an entry reaches done/ only after its result is durable; a failed step leaves the item to
be tried again, for ever, with the result safe in the node's journal.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spoolq import fsops, history, home, host, paths, result, stored, tasks
from spoolq.entry import Entry
from spoolq.errors import NotFound, SpoolqError
from spoolq.fsops import Answer
from spoolq.job import Job
from spoolq.spool import Placed, Spool
from spoolq.state import State

OUTPUT_LOST = "output"  # the reason of an end whose output could not be written

log = logging.getLogger("spoolq")


@dataclass(slots=True)
class Finished:
    """
    One attempt that ended and is on its way into the spool.

    `ended` is what the runner says (see `ending`); `outputs` are descriptors to sync and close; `late` says that
    somebody else decided about the job meanwhile. `requeue`: it is to run again, `retry`: since it failed.
    `followed`: its children have ended with it, if they must.
    """

    at: Placed
    ended: dict[str, Any]
    job: Job | None
    outputs: tuple[int, ...] = ()
    target: Placed | None = None
    recorded: bool = False
    late: bool = False
    through: bool = False
    record: dict[str, Any] | None = None
    result: bytes = b""
    line: bytes = b""
    requeue: bool = False
    retry: bool = False
    requeued: bool = False
    followed: bool = False
    peak_mb: int = 0

    @property
    def ending(self) -> str:
        """For the entry's name."""
        return result.ending_word(self.ended)


def read_job(spool: Spool, job_id: int) -> Job | None:
    """The job file, or None if it is gone or unreadable: a job that ran still gets its result."""
    try:
        job = stored.read_job(home.read_job(spool.root, job_id), f"{home.path_of(spool.root, job_id)}/job")
        return paths.job_here(job, {}, spool.root)
    except (OSError, SpoolqError):
        return None


def prepare(item: Finished, node: str) -> None:
    """Build the result and the history line, once for each name that the entry has."""
    if item.result:
        return
    if item.record is None:
        item.result, item.line = _texts(item.at.entry, item.ended, item.job, node)
    else:
        item.result = result.rebuild(item.record)
        item.line = result.build({**item.record, "gen": item.at.entry.gen + 1})


def _texts(entry: Entry, ended: dict[str, Any], job: Job | None, node: str | None) -> tuple[bytes, bytes]:
    """result.json, and the line of history about its rename into done/."""
    ending = result.ending_word(ended)
    found = result.facts(entry, ended, ending=ending, node=node, submitted=job.submitted if job else None)
    return result.build(found), result.history_line({**found, "limit_s": entry.limit_s, "gen": entry.gen + 1}, job)


def deliver(
    spool: Spool,
    node: str,
    items: Sequence[Finished],
    requeue: Callable[[Finished], bool] = lambda _: False,
    lost: Callable[[], None] = lambda: None,
) -> list[Finished]:
    """
    Deliver what ended; the batch shares one fsync.

    Args:
        requeue: for those that are to run again instead; whether one is through.
        lost: called at once when an output was lost, since that is told only once.

    Returns:
        The items that are `through` (done, or late); the others stay and are tried again.

    Raises:
        OSError: the spool refused or does not answer in at least one case; nothing is lost, call again later.
    """
    for item in items:
        if not item.requeue:
            sync_outputs(item, lost)
            prepare(item, node)
    new = [item for item in items if not (item.recorded or item.requeue)]
    if new:
        spool.record(today(), node, [item.line for item in new])
        for item in new:
            item.recorded = True
    failed: OSError | None = None
    for item in items:
        try:
            item.through = item.through or (requeue(item) if item.requeue else _commit(spool, item))
        except OSError as error:  # perhaps this job alone: the others need not wait
            failed = failed or error
    if failed:
        raise failed
    return [item for item in items if item.through]


def sync_outputs(item: Finished, lost: Callable[[], None]) -> None:
    """What the job wrote is durable before the job is done; the place where a full spool shows."""
    while item.outputs:
        fd, item.outputs = item.outputs[-1], item.outputs[:-1]  # closed once, also if close itself fails
        try:
            try:
                if may_hold(fd):
                    fsops.sync_file(fd)
            finally:
                fsops.close(fd)
        except OSError as error:
            mark_lost(item.ended, f"output lost: {error.strerror}")
            item.result, item.line = b"", b""
    if item.ended.get("reason") == OUTPUT_LOST:
        lost()  # before anything that a full spool can delay, the next output too


def may_hold(fd: int) -> bool:
    """
    Whether an output may hold something that is not durable yet.

    A network file system drops what it could not write back, and then says the size without it: 0 perhaps, while
    the error waits for whoever syncs. There, syncing what is empty costs no request.
    """
    found = fsops.facts_of(fd)
    return found.st_size > 0 or host.is_remote_device(found.st_dev)


def mark_lost(ended: dict[str, Any], detail: str) -> None:
    """The job is over and its output is not whole: say so, rather than report success."""
    ended |= {"reason": OUTPUT_LOST, "detail": detail, "exit_code": ended.get("exit_code") or 1}


def _commit(spool: Spool, item: Finished) -> bool:
    answer = spool.settle(item.at, item.target) if item.target is not None else None
    if answer is None:
        answer, item.target = spool.finish(item.at, item.ending)
    if answer is Answer.UNKNOWN or (answer is Answer.LOST and found_again(spool, item)):
        return False
    root, entry = spool.root, item.at.entry
    if answer is Answer.LOST:
        item.late = True
        home.keep_late(root, entry.id, entry.attempt, item.result)
    else:
        home.publish_result(root, entry.id, item.result, sync=False)
    return True


def found_again(spool: Spool, item: Finished) -> bool:
    """Whether the entry of a lost rename still lies where it was; then the item is about its present name."""
    newer = renamed(spool, item.at)
    if newer is not None:
        item.at, item.target = newer, None
        item.result, item.line, item.recorded = b"", b"", False
    return newer is not None


def renamed(spool: Spool, at: Placed) -> Placed | None:
    """
    An entry in its place under a later name: an edit whose outcome was unknown was carried out.

    Where a node's entries lie only the node renames, so a rename that it lost is first of all one of its own.
    """
    entry = at.entry
    same = [e for e in spool.entries(at.place) if (e.id, e.attempt) == (entry.id, entry.attempt) and e.gen > entry.gen]
    return Placed(at.place, same[-1]) if same else None


def write_attempt(spool: Spool, item: Finished, node: str) -> None:
    """What an attempt came to whose job runs again: its line of history, and `result.<attempt>.json`."""
    prepare(item, node)
    spool.record(today(), node, [item.line])
    home.keep_attempt(spool.root, item.at.entry.id, item.at.entry.attempt, item.result)


def finish_unstarted(spool: Spool, at: Placed, ending: str, detail: str, writer: str) -> Answer:
    """
    End a job that does not run: cancel a waiting one, or fail one whose parent failed.

    The rename comes first, since others may want the entry too, and its name says how it ended; the
    result and the line of history only repeat it, so nothing but words is lost if we die in between.

    Args:
        writer: names the history file, one writing host each.
    """
    answer, _ = spool.finish(at, ending)
    if answer is Answer.WON:
        with contextlib.suppress(OSError):  # it has ended all the same
            write_unstarted(spool, at.entry, ending, detail, writer)
    return answer


def write_unstarted(spool: Spool, entry: Entry, ending: str, detail: str, writer: str) -> None:
    """The result and history line of a job that did not run or whose end nobody saw."""
    job = read_job(spool, entry.id)
    ended = {"reason": ending, "detail": detail, "ended": time.time()}
    data, line = _texts(entry, ended, job, None)
    if entry.chunk:
        tasks.record(spool.root, entry, writer, [data])
        spool.record(today(), writer, [line])
        return
    spool.record(today(), writer, [line])
    home.publish_result(spool.root, entry.id, data, sync=True)  # no node would repair it after a power loss


def recorded_lines(spool: Spool, node: str, newest: int = 3) -> dict[tuple[int, int], dict[str, Any]]:
    """
    (id, attempt) -> record in a node's newest history files: what a crash may have left half delivered.

    Args:
        node: or empty, for what anybody wrote on the newest days.
        newest: so many days.
    """
    files = [name for name in spool.history_files() if not node or name.partition(".")[2] == f"{node}.jsonl"]
    days = sorted({name.partition(".")[0] for name in files})[-newest:]
    found: dict[tuple[int, int], dict[str, Any]] = {}
    for name in files:
        if name.partition(".")[0] not in days:
            continue
        try:
            records = history.parse(spool.read_history(name))
        except OSError as error:  # what cannot be read proves nothing
            log.warning("history file=%s error=%s", name, error.strerror)
            continue
        for record in records:
            key = (record["id"], record["attempt"])
            if "task" in record:
                continue
            if _gen(record) >= _gen(found.get(key, {})):
                found[key] = record
    return found


def proof(recorded: Mapping[tuple[int, int], dict[str, Any]], entry: Entry) -> dict[str, Any] | None:
    """
    The record that says that this attempt has ended, though its entry is not in done/ yet.

    It is about a rename of the entry as it is, or as it was one rename ago: taken into reaping/ since,
    or edited by a rename that was given up on. Any other is about another attempt of the same number.
    """
    record = recorded.get((entry.id, entry.attempt))
    if record is None or _gen(record) - entry.gen not in (0, 1):
        return None
    with contextlib.suppress(SpoolqError, ValueError):  # of a newer format, or no number
        code = record.get("exit_code")
        if result.parse(result.rebuild(record)) and (code is None or (type(code) is int and 0 <= code <= 255)):
            return record
    return None


def _gen(record: Mapping[str, Any]) -> int:
    gen = record.get("gen")
    return gen if type(gen) is int else -1


def today() -> str:
    """The UTC date that names history files."""
    return time.strftime("%Y-%m-%d", time.gmtime())


def read_ending(spool: Spool, job_id: int) -> dict[str, Any] | None:
    """
    The result of a job: result.json, or what history says if that is gone or torn, or the entry's name.

    None if the job has not ended.

    Raises:
        Misconfigured: a result of a newer format.
    """
    data = home.read_result(spool.root, job_id)
    found = result.parse(data) if data else None
    if found:
        return found
    try:
        at = spool.find(job_id)
    except NotFound:
        at = None
    if at is not None and at.top != "done":
        return None
    lines = (history.parse(spool.read_history(name)) for name in spool.history_files())
    records = [record for some in lines for record in some if record["id"] == job_id and "task" not in record]
    if at is not None:
        records = [record for record in records if record.get("gen") == at.entry.gen]
    if records:
        return records[-1]
    if at is None:
        return None
    ended = {"reason": at.entry.ending if at.state is not State.FAILED else "", "detail": "its result is missing"}
    return result.facts(at.entry, ended, ending=at.entry.ending or "nodefail", node=None, submitted=None)
