"""
What a service manager is told: ready, alive, stopping (sd_notify(3); ten lines beat a dependency).

The watchdog is fed by the daemon's loop, and by the thread that sees it wait for a spool that does not answer,
since a restart would not mend a mount; it is for a daemon that hangs for a reason of its own.
"""

import contextlib
import os
import socket
import time

from spoolq.patience import Care, say

_last = [0.0]


def notify(state: str) -> None:
    """Send `READY=1`, `STOPPING=1`, `STATUS=...`; nothing where no service manager listens."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)


def feed_watchdog() -> None:
    """Say that the loop turns, at most once a second."""
    now = time.monotonic()
    if now - _last[0] >= 1.0:
        _last[0] = now
        notify("WATCHDOG=1")


class Serving(Care):
    """What becomes of a hang while a node serves: jobs go on, and so does the daemon, when the spool answers."""

    def __init__(self) -> None:
        """Nothing hangs."""
        super().__init__()
        self.hanging = self.stopping = False

    def hung(self, waited_s: float) -> None:  # noqa: ARG002  # as declared
        """Say it; what runs goes on, and what ends waits on the local disk."""
        self.hanging = True
        say(f"{self.silent}: jobs go on, their results wait here")
        notify(f"STATUS={self.silent}; jobs go on")

    def back(self) -> None:
        """Say it."""
        self.hanging = False
        super().back()
        notify(f"STATUS=serving {self.spool}")

    def still(self, waited_s: float) -> None:  # noqa: ARG002  # as declared
        """Alive; or, when it was told to stop before, gone."""
        feed_watchdog()
        if self.stopping and self.hanging:
            self.told(0)

    def told(self, number: int) -> None:  # noqa: ARG002  # any is an order to stop
        """Stop: killing a daemon at any line loses nothing."""
        notify("STOPPING=1")
        self.leave(0, f"{self.silent}: stopped all the same; jobs that run go on, the next daemon takes them over")
