"""
A node for one's own spool when none is alive: the embedded default of `spoolq run`.

The node is an ordinary `spoolq node` in a session of its own that leaves when it has been idle for a
moment, so several `run` share it and none of them owns it.
Invariant: never on a spool of somebody else, and never while a node is alive or may be.
"""

import contextlib
import os
import sys
import time

from spoolq.errors import SpoolqError
from spoolq.spool import Spool
from spoolq.where import Found, show

IDLE_S = 2
TRIES = 3  # nodes in a row that fail to start before giving up
START_S = 5.0  # a node that is not seen after so long has failed to start
_CODE = (
    "import os, sys; os.chdir('/'); sys.path[:0] = [{package!r}]; from spoolq.__main__ import main; sys.exit(main())"
)


def anybody_alive(spool: Spool) -> bool:
    """Whether a node is alive or may be: one of another machine counts unless it said that it stopped."""
    from spoolq.roster import alive_here

    for node in spool.nodes():
        facts = spool.read_node(node)
        if facts and facts.get("state") != "stopped" and alive_here(facts) is not False:
            return True
    return False


class Embedded:
    """Keeps a node alive for one waiting command, if nobody else does."""

    def __init__(self, found: Found) -> None:
        """Nothing is started yet."""
        self.found = found
        self._pid = 0
        self._log = os.devnull
        self._started = 0.0
        self._failures = 0
        self._said = False

    @property
    def started(self) -> bool:
        """Whether this command had to start a node."""
        return self._said

    def ensure(self) -> None:
        """
        Start a node unless one lives or is just starting.

        Raises:
            SpoolqError: it failed to start again and again.
        """
        code = self._reap()
        if anybody_alive(self.found.spool):
            self._failures = 0
            return
        if self._pid and time.monotonic() - self._started < START_S:
            return
        if code not in (None, 0, 75):  # 75: another command's node has the lock
            self._failures += 1
        if self._failures >= TRIES:
            raise SpoolqError(f"a node cannot be started here (exit {code}): see {self._log}, or try `spoolq node`")
        if os.stat(self.found.spool.root).st_uid != os.getuid():
            return
        self._start()

    def _reap(self) -> int | None:
        """The exit code of the node that was started last, if it is gone."""
        if not self._pid:
            return None
        with contextlib.suppress(ChildProcessError):
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid == 0:
                return None
            self._pid = 0
            return os.waitstatus_to_exitcode(status)
        self._pid = 0
        return None

    def _start(self) -> None:
        root = self.found.spool.root
        if not self._said:
            sys.stderr.write(f"spoolq: no node is running on {show(root)}, so the job runs here\n")
            self._said = True
        self._log = self._log_file()
        package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        words = ["node", "--spool", root, "--idle-exit", str(IDLE_S), "--quiet"]
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, self._log, flags, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
            *((os.POSIX_SPAWN_CLOSE, fd) for fd in _inherited()),
        ]
        self._pid = os.posix_spawn(
            sys.executable,
            [sys.executable, "-I", "-c", _CODE.format(package=package), *words],
            os.environ,
            file_actions=actions,
            setsid=True,
        )
        self._started = time.monotonic()

    def _log_file(self) -> str:
        from spoolq import host, local

        try:
            name = self.found.setting("node.name") or host.node_name()
            return os.path.join(local.state_directory(self.found.policy.uuid, name), "embedded.log")
        except (SpoolqError, OSError):
            return os.devnull


def _inherited() -> list[int]:
    # a pipe of our caller that the node kept open would let a shell wait for the node
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if int(name) > 2 and os.get_inheritable(int(name)):
                found.append(int(name))
    return found
