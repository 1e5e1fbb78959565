"""
Arrays with a limit (`-a 1-99%3`): at most so many of their tasks run at once over all nodes, by listings alone.

Who looks at the queue lets in as many of the first chunks as may still start, so that nodes race for the same names and
a rename decides; who has claimed one looks again, and gives it back if there are too many now.
Invariant: of two that claim at the same moment at least the later one sees both.
"""

from typing import TYPE_CHECKING

from spoolq import array
from spoolq.entry import Entry
from spoolq.spool import Spool

if TYPE_CHECKING:
    from spoolq.daemon import Daemon


def crowded(daemon: "Daemon", entry: Entry) -> bool:
    """Whether more chunks of its array run now than may: looked at after the claim, so that never too many start."""
    limit = array.limit_of(entry)
    return bool(limit) and running(daemon.spool, entry.id) > limit


def running(spool: Spool, job_id: int) -> int:
    """How many chunks of an array are claimed by any node."""
    return sum(at.entry.id == job_id for node in spool.nodes() for at in spool.on_node(node))


class Throttle:
    """Which waiting chunks of arrays with a limit may start now, in one look at the queue, in order."""

    def __init__(self, daemon: "Daemon") -> None:
        """Nothing is listed yet."""
        self._daemon = daemon
        self._left: dict[int, int] = {}

    def lets(self, entry: Entry) -> bool:
        """
        Whether there is room for this one besides those let in before.

        What runs is listed after the queue was: one that another node claimed in between counts as running, and
        as many of the first as may start are let in, so nodes race for the same names and a rename decides.
        """
        limit = array.limit_of(entry)
        if not limit:
            return True
        if entry.id not in self._left:
            self._left[entry.id] = limit - running(self._daemon.spool, entry.id)
        self._left[entry.id] -= 1
        return self._left[entry.id] >= 0
