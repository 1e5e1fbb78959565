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

from spoolq import fsops, home
from spoolq.errors import NotFound, SpoolqError
from spoolq.fsops import Answer
from spoolq.nested import CHILDREN

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
    for item in daemon.ended:
        if not item.followed:
            if was_ended(item):
                end_children(daemon, item.at.entry.id)
            item.followed = True


def was_ended(item: "Finished") -> bool:
    """Whether an attempt did not end by itself."""
    reason = str(item.ended.get("reason") or "").partition(":")[0]
    return reason in FROM_OUTSIDE or (item.requeue and not item.retry)


def end_children(daemon: "Daemon", parent: int) -> None:
    """End all jobs that a job has submitted; each for itself, again if it is moved meanwhile."""
    for name in fsops.names(f"{home.path_of(daemon.spool.root, parent)}/{CHILDREN}"):
        if not home.is_number(name):
            continue
        try:
            _end(daemon, int(name), parent)
        except NotFound:
            continue  # never committed, or swept
        except (OSError, SpoolqError) as error:
            log.warning("not ended job=%s of parent=%d error=%s", name, parent, error)
            if isinstance(error, OSError) and error.errno in _SPOOL:
                raise


def _end(daemon: "Daemon", child: int, parent: int) -> None:
    spool = daemon.spool
    for _ in range(TRIES):
        at = spool.find(child)
        if at.top == "done":
            return
        log.info("ending job=%d with its parent=%d", child, parent)
        if at.node:
            spool.request(at.node, "kill", child, {"attempt": at.entry.attempt}, f"parent{parent}")
            return
        detail = f"with its parent, job {parent}"
        if daemon.around.end(daemon, at, "cancelled", detail) is Answer.WON:
            return
