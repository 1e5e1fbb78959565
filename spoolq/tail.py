"""
Copy what a job writes, as it grows, until the job ends.

Outputs are opened by path at each look, since on NFS a kept descriptor may show an old size for a
minute; a file is looked for by listing, since a missing name is remembered as long.
Invariant: whatever the job wrote before its end has been copied when its outcome is told.
"""

import contextlib
import errno
import os
import select
import socket
import stat
import time
from collections.abc import Sequence

from spoolq import awaiting, home, stored
from spoolq.awaiting import Outcome
from spoolq.errors import NotFound, SpoolqError
from spoolq.spool import Placed, Spool

CHUNK = 1 << 18  # bytes read at once
STDOUT, STDERR = 1, 2
ASK_S, SOON_S = 10.0, 0.5  # between requests to the job's node to sync its outputs; before the first one


class Stream:
    """One output of a job and how far it has been shown."""

    def __init__(self, spool: Spool, job_id: int, name: str, target: int) -> None:
        """
        Nothing is opened yet.

        Args:
            name: `stdout` or `stderr`.
            target: descriptor to copy to.
        """
        self.name, self.target, self.offset = name, target, 0
        self.path = f"{home.path_of(spool.root, job_id)}/{name}"
        self.listed = True  # look for it in the home's listing first

    def pump(self, names: Sequence[str]) -> bool:
        """
        Copy what is new; whether there was any.

        Args:
            names: what lies in the home now.
        """
        if self.listed and self.name not in names:
            return False
        fd = self._open()
        if fd is None:
            return False
        before = self.offset
        try:
            facts = os.fstat(fd)
            if not stat.S_ISREG(facts.st_mode):
                return False  # -o /dev/null and the like
            if facts.st_size < self.offset:
                self.offset = 0  # written anew by another attempt
            while data := os.pread(fd, CHUNK, self.offset):
                write_all(self.target, data)
                self.offset += len(data)
        finally:
            os.close(fd)
        return self.offset != before

    def skip_to_last(self, lines: int) -> None:
        """Begin with the last n lines of what is there now."""
        fd = self._open()
        if fd is None:
            return
        try:
            facts = os.fstat(fd)
            end = at = facts.st_size if stat.S_ISREG(facts.st_mode) else 0
            left = lines + 1
            while at > 0 and left > 0:
                size = min(CHUNK, at)
                block = os.pread(fd, size, at - size)
                at -= size
                if at + size == end and not block.endswith(b"\n"):
                    left -= 1  # a last line without its end
                place = len(block)
                while left > 0 and (place := block.rfind(b"\n", 0, place)) >= 0:
                    left -= 1
                if left == 0:
                    at += place + 1
            self.offset = end if lines == 0 else at
        finally:
            os.close(fd)

    def _open(self) -> int | None:
        try:
            return os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if error.errno in (errno.ESTALE, errno.ENXIO):
                return None  # replaced meanwhile: the next look opens it anew; a FIFO or socket is not shown
            raise


def write_all(fd: int, data: bytes) -> None:
    """Write everything, also to a descriptor that somebody made non-blocking."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            select.select([], [fd], [], 1)


class Following:
    """Copies the streams of one job until it ends."""

    def __init__(self, spool: Spool, job_id: int, streams: Sequence[Stream]) -> None:
        """Nothing is looked at yet."""
        self.spool, self.job_id, self.streams = spool, job_id, list(streams)
        self.began = self.active = self.sure = time.monotonic()
        self.started, self._ask_at = False, 0.0
        self._ships: bool | None = None

    def look(self) -> Outcome | None:
        """Copy what is new; the outcome once the job has ended and everything is out."""
        names = self.names()
        if not self.started and "stdout" in names:
            self.started, self._ask_at = True, time.monotonic() + SOON_S
        if self.pump(names):
            self.active = time.monotonic()
        if self.started and time.monotonic() >= self._ask_at:
            self.ask_to_sync()
        sure = time.monotonic() - self.sure >= awaiting.SURE_S
        if not sure and "result.json" not in names:
            return None
        self.sure = time.monotonic()
        outcome = awaiting.ended_now(self.spool, {self.job_id}, sure=True).get(self.job_id)
        if outcome is not None:
            self.pump(self.names())  # what came between the last look and the end
        return outcome

    def names(self) -> list[str]:
        """What lies in the job's home, read anew."""
        try:
            return os.listdir(home.path_of(self.spool.root, self.job_id))
        except FileNotFoundError:
            raise NotFound(f"job {self.job_id}: its home is gone: somebody removed it") from None

    def pump(self, names: Sequence[str]) -> bool:
        """Copy what is new of all streams."""
        shown = [stream.pump(names) for stream in self.streams]  # all of them, not up to the first
        return any(shown)

    def ask_to_sync(self) -> None:
        """Ask the job's node to sync its outputs for a while, or to ship what there is: else they come late."""
        self._ask_at = time.monotonic() + ASK_S
        with contextlib.suppress(NotFound, OSError):  # who may only read is content with late output
            at = self.spool.find(self.job_id)
            if at.top != "running" or not self.streams:
                return
            if self._ships is None:
                self._ships = ships(self.spool, self.job_id)
            ask(self.spool, at, ships=self._ships)

    def nap(self) -> None:
        """Sleep until the next look: the longer nothing happened, the longer."""
        now = time.monotonic()
        awaiting.nap(max(now - self.active, min(now - self.began, 0.4)))


def ask(spool: Spool, at: Placed, *, ships: bool) -> None:
    """Ask a node to sync or ship what a job or the task of a chunk has written, unless that shows here anyway."""
    from spoolq import roster

    if ships or roster.alive_here(spool.read_node(at.node)) is None:
        # one name per follower: where no node looks, no more than one request of each lies
        tag = f"{socket.gethostname()[:60]}.{os.getpid()}"
        chunk = {"chunk": at.entry.chunk[1:]} if at.entry.chunk else {}
        spool.request(at.node, "follow", at.entry.id, {"attempt": at.entry.attempt, **chunk}, tag)


def ships(spool: Spool, job_id: int) -> bool:
    """Whether a job's output is on its node's own disk until it ends."""

    try:
        job = stored.read_job(home.read_job(spool.root, job_id), "job")
    except (OSError, SpoolqError):
        return False
    return job.output_mode == "local"
