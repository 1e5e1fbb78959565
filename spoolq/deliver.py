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

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from spoolq import fsops, history, home, jobfile, result
from spoolq.entry import Entry
from spoolq.errors import NotFound, SpoolqError
from spoolq.fsops import Answer
from spoolq.job import Job
from spoolq.spool import Placed, Spool
from spoolq.state import State

OUTPUT_LOST = "output"  # the reason of an end whose output could not be written


@dataclass(slots=True)
class Finished:
    """
    One attempt that ended and is on its way into the spool.

    `ended` is what the runner says (see `ending`); `outputs` are descriptors to sync and close; `late` says that
    somebody else decided about the job meanwhile.
    """

    at: Placed
    ended: dict[str, Any]
    job: Job | None
    outputs: tuple[int, ...] = ()
    target: Placed | None = None
    recorded: bool = False
    late: bool = False
    result: bytes = b""
    line: bytes = b""
    requeue: bool = False

    @property
    def ending(self) -> str:
        """For the entry's name."""
        return result.ending_word(self.ended)


def read_job(spool: Spool, job_id: int) -> Job | None:
    """The job file, or None if it is gone or unreadable: a job that ran still gets its result."""
    try:
        return jobfile.read_job(home.read_job(spool.root, job_id), f"{home.path_of(spool.root, job_id)}/job")
    except (OSError, SpoolqError):
        return None


def prepare(item: Finished, node: str) -> None:
    """Build the result and the history line, once."""
    if item.result:
        return
    item.result, item.line = _texts(item.at.entry, item.ended, item.job, node)


def _texts(entry: Entry, ended: dict[str, Any], job: Job | None, node: str | None) -> tuple[bytes, bytes]:
    """result.json, and the line of history about its rename into done/."""
    ending = result.ending_word(ended)
    found = result.facts(entry, ended, ending=ending, node=node, submitted=job.submitted if job else None)
    return result.build(found), result.history_line({**found, "gen": entry.gen + 1}, job)


def deliver(spool: Spool, node: str, items: Sequence[Finished]) -> list[Finished]:
    """
    Deliver what ended; the batch shares one fsync.

    Returns:
        The items that are through (done, or late); the others stay and are tried again.

    Raises:
        OSError: the spool refused or does not answer; nothing is lost, call again later. What refuses
            one item only does not keep back the others.
    """
    for item in items:
        _sync_outputs(item)
        prepare(item, node)
    new = [item for item in items if not item.recorded]
    if new:
        spool.record(today(), node, [item.line for item in new])
        for item in new:
            item.recorded = True
    through: list[Finished] = []
    refused: OSError | None = None
    for item in items:
        try:
            if _commit(spool, item):
                through.append(item)
        except OSError as error:
            refused = error
    if refused and not through:
        raise refused
    return through


def _sync_outputs(item: Finished) -> None:
    """What the job wrote is durable before the job is done; the place where a full spool shows."""
    while item.outputs:
        fd, item.outputs = item.outputs[-1], item.outputs[:-1]  # closed once, also if close itself fails
        try:
            try:
                if fsops.size_of(fd):
                    fsops.sync_file(fd)
            finally:
                fsops.close(fd)
        except OSError as error:
            mark_lost(item.ended, f"output lost: {error.strerror}")
            item.result, item.line = b"", b""


def mark_lost(ended: dict[str, Any], detail: str) -> None:
    """The job is over and its output is not whole: say so, rather than report success."""
    ended |= {"reason": OUTPUT_LOST, "detail": detail, "exit_code": ended.get("exit_code") or 1}


def _commit(spool: Spool, item: Finished) -> bool:
    answer = spool.settle(item.at, item.target) if item.target is not None else None
    if answer is None:
        answer, item.target = spool.finish(item.at, item.ending)
    if answer is Answer.UNKNOWN:
        return False
    if answer is Answer.LOST:
        item.late = True
        home.keep_late(spool.root, item.at.entry.id, item.at.entry.attempt, item.result)
    else:
        home.publish_result(spool.root, item.at.entry.id, item.result, sync=False)
    return True


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
        write_unstarted(spool, at.entry, ending, detail, writer)
    return answer


def write_unstarted(spool: Spool, entry: Entry, ending: str, detail: str, writer: str) -> None:
    """The result and history line of a job that did not run or whose end nobody saw."""
    job = read_job(spool, entry.id)
    ended = {"reason": ending, "detail": detail, "ended": time.time()}
    data, line = _texts(entry, ended, job, None)
    spool.record(today(), writer, [line])
    home.publish_result(spool.root, entry.id, data, sync=False)


def recorded_lines(spool: Spool, node: str, newest: int = 3) -> dict[tuple[int, int], dict[str, Any]]:
    """(id, attempt) -> record in this node's newest history files: what a crash may have left half delivered."""
    own = [name for name in spool.history_files() if name.partition(".")[2] == f"{node}.jsonl"]
    records: Iterable[dict[str, Any]] = ()
    found: dict[tuple[int, int], dict[str, Any]] = {}
    for name in own[-newest:]:
        records = history.parse(spool.read_history(name))
        found.update({(record["id"], record["attempt"]): record for record in records})
    return found


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
    records = [record for some in lines for record in some if record["id"] == job_id]
    if at is not None:
        records = [record for record in records if record.get("gen") == at.entry.gen]
    if records:
        return records[-1]
    if at is None:
        return None
    ended = {"reason": at.entry.ending if at.state is not State.FAILED else "", "detail": "its result is missing"}
    return result.facts(at.entry, ended, ending=at.entry.ending or "nodefail", node=None, submitted=None)
