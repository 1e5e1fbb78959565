"""
What a service manager is told: ready, alive, stopping (sd_notify(3); ten lines beat a dependency).

The watchdog is fed by the daemon's loop also while the spool does not answer, since a restart would
not mend a mount; it is for a daemon that hangs for a reason of its own.
"""

import contextlib
import os
import socket
import time

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
