"""
What has ended on this node goes into the spool: results of tasks, and the ends of jobs, each tried for ever.

Invariant: the runner is told to forget last.
"""

import logging
from typing import TYPE_CHECKING

from spoolq import chunk, deliver, recover, rerun, ship
from spoolq.descent import end_with_parents

if TYPE_CHECKING:
    from spoolq.daemon import Daemon

log = logging.getLogger("spoolq")


def deliver_ended(daemon: "Daemon") -> None:
    """Deliver what ended; what fails stays for a later turn, what is through is not done again."""
    end_with_parents(daemon)
    again, lost = (lambda item: rerun.requeue_ended(daemon, item)), (lambda: recover.note_lost(daemon))
    if daemon.task_ends:
        try:
            chunk.record_ends(daemon, lost)
        finally:
            recover.note_lost(daemon)
        chunk.advance(daemon)
    ready, failed = ship.ship_all(daemon.spool, daemon.state_dir, daemon.ended)
    try:
        deliver.deliver(daemon.spool, daemon.node, ready, again, lost)
        if failed:
            raise failed
    finally:
        through = [item for item in daemon.ended if item.through]
        daemon.ended = [item for item in daemon.ended if not item.through]
        for item in through:
            if daemon.policy.learn:
                daemon.notes.take(item)
            entry = item.at.entry
            word = "late" if item.late else "requeued" if item.requeue else item.ending
            log.info("ended job=%d attempt=%d %s", entry.id, entry.attempt, word)
            ship.forget(daemon.state_dir, (entry.id, entry.attempt))
            daemon.around.through(item)
            daemon.dependents.over.append(entry.id)
        recover.note_lost(daemon)
        daemon.family.send({"op": "forget", "jobs": [[i.at.entry.id, i.at.entry.attempt] for i in through]})
