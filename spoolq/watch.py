"""
The watcher: waits for the runner and, when that is killed, for the jobs it leaves.

It knows nothing of jobs: it writes down how a process ended, tells the runner, and only then lets the
process go; the runner knows whose pid that was. So it is small, idle, and hardly ever the one at fault.
Invariant: an ended process is in this watcher's file (or, while the disk is full, in its memory) and
on its way to the runner before it is reaped; killed in between, the next watcher up does it again.
"""

import contextlib
import os
import select
import time

from spoolq import process
from spoolq.channel import encode
from spoolq.journal import Journal, head
from spoolq.kin import RENEW, Kin

RETRY_S = 0.2  # the runner's bell is full, or the disk
_BACK_OFF_S = (0.1, 10.0)  # between runners that die at once
_YOUNG_S = 1.0
_SETTLE_S = 0.02  # a child between vfork and setsid is still in our session; on a busy machine for longer


class Watcher:
    """One watcher, from its fork to its end."""

    def __init__(self, kin: Kin) -> None:
        self.kin = kin
        pid = os.getpid()
        self._journal = Journal(kin.state_dir, "watcher", head(boot=kin.boot, pid=pid, born=process.born(pid)))
        self._told_above = True
        self._seen = (0, 0)  # who was written down last and could not be told yet
        self._dead: process.Exit | None = None
        self._begun, self._wait_s = time.monotonic(), 0.0
        self._fork_at = 0.0

    def serve(self) -> str:
        """Watch; returns `runner` in a forked child that is to be one, else `end` when the family ends."""
        kin = self.kin
        poll = select.poll()
        poll.register(kin.wake_fd(), select.POLLIN)
        poll.register(kin.chores_in, select.POLLIN)
        while True:
            busy = self.turn()
            if self._dead is not None and self._dead.code == 0:
                return "end"
            if self._dead is not None and self.succeed():
                return "runner"
            poll.poll(RETRY_S * 1000 if busy or self._dead is not None else None)
            if RENEW in kin.woken() and not self._journal.unsaved:
                kin.execute_anew()
            self.do_chores()

    def turn(self) -> bool:
        """Look at what happened; whether something must be tried again soon."""
        if self.kin.orphaned():
            self._told_above = False
        if not self._told_above:
            self._told_above = self.kin.call(b'{"op":"orphaned"}')
        all_seen = self.wait()
        written = not self._journal.unsaved or self._journal.flush()
        return not (all_seen and written and self._told_above)

    def wait(self) -> bool:
        """Take every ended child; False if one had to be left for later."""
        while (end := process.peek()) is not None:
            if end.pid == self.kin.child:
                self._dead = end
            else:
                stat = process.read_stat(end.pid)
                if stat is None or stat.session != self.kin.session:
                    line = exit_line(end, stat)
                    who = (end.pid, stat.born if stat else -1)
                    if who != self._seen:
                        self._seen = who
                        self._journal.keep(line)
                        self._journal.flush()
                    if not self.kin.call(line.encode()):
                        return False
            process.reap(end.pid)
        return True

    def succeed(self) -> bool:
        """The next in the chain has died: watch over the one after it, or fork a new runner; True in the child."""
        heir = self.kin.heir()
        if heir < 0:
            time.sleep(_SETTLE_S)
            heir = self.kin.heir()
        if heir:
            if heir > 0:
                self.kin.child, self._dead = heir, None
            return False
        now = time.monotonic()
        if not self._fork_at:
            young = now - self._begun < _YOUNG_S
            self._wait_s = min(max(self._wait_s * 2, _BACK_OFF_S[0]), _BACK_OFF_S[1]) if young else 0.0
            self._fork_at = now + self._wait_s
        if now < self._fork_at:
            return False
        try:
            forked = self.kin.fork()
        except OSError:
            return False
        if forked:
            self._dead, self._begun, self._fork_at = None, now, 0.0
        else:
            self._journal.close()
        return forked == 0

    def do_chores(self) -> None:
        """Make files durable, which may take long, so that the runner need not wait for it."""
        try:
            path = self.kin.chores_in.recv(4096)
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return
        with contextlib.suppress(OSError):
            os.fdatasync(fd)
        with contextlib.suppress(OSError):
            os.close(fd)


def exit_line(end: process.Exit, stat: process.Stat | None) -> str:
    """How a process ended, for the journal and the runner alike; `leader`: of its session, as jobs are."""
    return encode(
        {
            "op": "exit",
            "pid": end.pid,
            "born": stat.born if stat else -1,
            "comm": stat.comm if stat else "",
            "leader": bool(stat and stat.session == end.pid),
            "code": end.code,
            "signal": end.signal,
            "usage": end.usage,
            "at": time.time(),
        }
    )
