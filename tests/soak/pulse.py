"""
Beats that came too late although nobody did anything to the node: a machine under much load is as good as cut off.

They go into the book as faults of kind `late`, so a job that its node gives up without one is seen as what it is.
"""

import contextlib
import os
import threading
import time
from collections.abc import Sequence

from tests.soak.book import Book
from tests.soak.check import Fault

LOOK_S = 0.2
LATE = 0.5  # of what a node may be silent for: that counts from the beginning of a beat until its runner has heard of
# the next, and a file shows some moment in between; where that matters, all of it takes long


class Pulse:
    """All nodes of a run; times are those of the heartbeat files."""

    def __init__(self, book: Book, root: str, nodes: Sequence[str], fence_s: float) -> None:
        self.book, self.late_s = book, LATE * fence_s
        self.paths = {node: f"{root}/nodes/{node}/heartbeat" for node in nodes}
        self.last: dict[str, float] = {}
        self.stopping = threading.Event()

    def look(self) -> None:
        """Once at each."""
        for node, path in self.paths.items():
            with contextlib.suppress(OSError):
                self.beat(node, os.stat(path).st_mtime)

    def beat(self, node: str, at: float) -> None:
        """The last beat of a node was then."""
        last = self.last.get(node, at)
        if at - last >= self.late_s:
            self.book.fault(Fault("late", node, last, at))
        self.last[node] = at

    def watch(self) -> None:
        """Until told to stop; who is silent then is late too."""
        while not self.stopping.wait(LOOK_S):
            self.look()
        for node in self.last:
            self.beat(node, time.time())
