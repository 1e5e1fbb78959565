"""
Jobs end with the job that submitted them, if that is ended: by its user, at a limit, with its node.

Their names lie in the parent's home (`children/<id>`), written before each child's commit. When a parent was
ended from outside, its node ends all of them, waiting or running, wherever, before the parent's own end is
committed: so a node that dies in between does it again, and each child's node does the same for its children.
Invariant: a job that ends by itself ends no other; nor does one whose children were submitted with --detach.
"""

import errno
import logging
from typing import TYPE_CHECKING

from spoolq import array, deliver, fsops, home, tasks
from spoolq.entry import Entry
from spoolq.errors import NotFound, SpoolqError
from spoolq.fsops import Answer
from spoolq.nested import children_of
from spoolq.spool import Placed

if TYPE_CHECKING:
    from spoolq.daemon import Daemon
    from spoolq.deliver import Finished

log = logging.getLogger("spoolq")

FROM_OUTSIDE = ("cancelled", "timeout", "oom", "lost", "nodefail")
TRIES = 8  # of one child that somebody else moves
_SPOOL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.ETIMEDOUT)


def end_with_parents(daemon: "Daemon") -> None:
    """
    Of what has ended here and is not delivered yet: end the children of those that were ended.

    Raises:
        OSError: the spool refuses; nothing is delivered until it does not.
    """
    for item in (*daemon.ended, *(item for _, item in daemon.task_ends)):
        if not item.followed:
            if was_ended(item):
                end_children(daemon, item.at.entry.unit)
            item.followed = True


def was_ended(item: "Finished") -> bool:
    """Whether an attempt did not end by itself."""
    reason = str(item.ended.get("reason") or "").partition(":")[0]
    return reason in FROM_OUTSIDE or (item.requeue and not item.retry)


def end_of_chunk(daemon: "Daemon", entry: Entry) -> None:
    """The same for a chunk that is taken over: of tasks that have no result, and may have been running."""
    spool = daemon.spool
    names = fsops.names(children_of(spool.root, entry.id))
    numbers = {int(name) for name in names if home.is_number(name) and array.holds(entry.chunk, int(name))}
    if not numbers:
        return
    job = deliver.read_job(spool, entry.id)
    known = array.latest(tasks.of_tasks(tasks.read(spool.root, entry.id, entry.chunk)))
    left = array.due(entry, array.parse(job.array), known, job.retries) if job else numbers
    for number in sorted(numbers & set(left)):
        end_children(daemon, f"{entry.id}_{number}")


def end_children(daemon: "Daemon", parent: int | str) -> None:
    """End all jobs that a job, or a task, has submitted; each for itself, again if it is moved meanwhile."""
    for name in fsops.names(children_of(daemon.spool.root, parent)):
        if not home.is_number(name):
            continue
        try:
            _end(daemon, int(name), parent)
        except NotFound:
            continue  # never committed, or swept
        except (OSError, SpoolqError) as error:
            log.warning("not ended job=%s of parent=%s error=%s", name, parent, error)
            if isinstance(error, OSError) and error.errno in _SPOOL:
                raise


def _end(daemon: "Daemon", child: int, parent: int | str) -> None:
    spool = daemon.spool
    asked: set[int | str] = set()
    for _ in range(TRIES):
        at, left = spool.find(child), 0
        chunks = [one for one in spool.live() if one.entry.id == child] if at.entry.chunk else [at]
        for one in chunks:
            if one.top != "done" and one.entry.unit not in asked:
                log.info("ending job=%s with its parent=%s", one.entry.unit, parent)
                left += not _end_entry(daemon, one, parent, asked)
        if not left:
            return


def _end_entry(daemon: "Daemon", at: Placed, parent: int | str, asked: set[int | str]) -> bool:
    entry = at.entry
    if at.node:
        facts = {"attempt": entry.attempt, **({"chunk": entry.chunk[1:]} if entry.chunk else {})}
        daemon.spool.request(at.node, "kill", entry.id, facts, f"parent{parent}{entry.chunk and '-'}{entry.chunk[1:]}")
        asked.add(entry.unit)
        return True
    detail = f"with its parent, job {parent}"
    return daemon.around.end(daemon, at, "cancelled", detail) is Answer.WON
