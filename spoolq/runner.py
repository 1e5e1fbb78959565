"""
The runner: the parent of the jobs of one node. Spawns, enforces limits, waits, and tells the daemon.

Invariants: `go` is in the journal before the spawn, the end before the child is reaped; a start that is
not in `known` did not happen. It never touches the spool and never waits for the daemon.
"""

import contextlib
import json
import os
import select
import signal
import socket
import struct
import sys
import time
from typing import Any

from spoolq import orders, process, runs, spawn, takeover
from spoolq.adopted import NEVER, Adopted
from spoolq.channel import Channel, Gone
from spoolq.ending import End, ended_line
from spoolq.enforce import Enforcer
from spoolq.journal import Journal, Key, head, read_fence
from spoolq.kin import WATCHERS, Kin
from spoolq.runs import Event, Run, Stage

COMPACT_BYTES = 4 << 20
JOB_OOM_SCORE = 300  # of 1000: the kernel prefers jobs to their parents
SOON_S = 0.05  # what only matters to jobs that last longer is done after this time
SYNC_S = 1.0  # ends are durable about this much later
SAMPLE_S, SWEEP_S, RETRY_S = 0.5, 1.0, 1.0


class Runner:
    """One runner, from its fork to its end."""

    def __init__(self, kin: Kin) -> None:
        self.kin, self.enforcer, self.spawner = kin, Enforcer(kin), spawn.Spawner(kin.state_dir)
        self.channel: Channel | None = None
        self.greeted = False
        self.out: list[str] = []
        self.news: list[str] = []  # may wait for SOON_S, so that short jobs wake the daemon once
        self.fresh: list[Run] = []
        self.lease = 0.0
        self.timed: dict[Key, Run] = {}
        self.sampled: dict[Key, Run] = {}
        self.alarm = self.sample_at = self.sweep_at = self.sync_at = self.retry_at = self.soon_at = NEVER
        self.idle_since, self.spent_s, self.most_s = time.monotonic(), 0.0, 0.0
        self.over = self.leaving = False
        self._die = os.environ.get("SPOOLQ_TEST_DIE", "")
        self.poll = select.poll()
        self.adopted = Adopted(self)
        self.listen()
        taken = takeover.Takeover(kin)
        self.runs = taken.runs
        self.by_pid = {run.pid: run for run in self.runs.values() if run.live}
        self.obsolete = [path for path in taken.book.paths if path not in _written_by_the_living(taken)]
        # unknown, with jobs that live: they may run elsewhere already
        self.fence = read_fence(kin.state_dir, kin.boot, 0.0 if self.by_pid else NEVER)
        self.spent_s = taken.book.spent_s
        self.journal = self.new_journal()
        self.journal.flush()
        for run in list(self.by_pid.values()):
            self.adopted.take(run)
            for record in taken.exits.get(run.pid, ()):
                self.take_exit(record)
        for run in list(self.by_pid.values()):
            if not run.own and (act := runs.unfinished(run)):
                self.enforcer.act(run, act)
        for run in taken.never:
            self.refuse(run.text, "the runner was killed before it could start it")

    # --- the loop

    def serve(self) -> str:
        """Run; returns `watch` when a child has taken over and this process is to watch it, or `end`."""
        self.wait()  # signals before this were not for us
        while True:
            if self.kin.orphaned():
                self.kin.owed = WATCHERS
            if self.kin.owed and self.lengthen():
                return "watch"
            if self.over:
                return "end"
            for fd, _ in self.poll.poll(self.rest()):
                if fd == self.kin.wake_fd():
                    self.kin.woken()
                    self.wait()
                elif fd == self.kin.bell_in.fileno():
                    self.hear_watchers()
                elif fd == self.kin.listener.fileno():
                    self.accept()
                elif self.channel and fd == self.channel.fileno():
                    self.converse()
                else:
                    self.adopted.ended(fd)
            self.tick(time.monotonic())

    def rest(self) -> float | None:
        """Bring to an end what was begun in this turn; milliseconds until something is due, None for never."""
        self.journal.flush()
        self.spawner.leave()
        if self.out:
            self.tell()
        elif self.fresh and self.soon_at == NEVER:
            self.soon_at = time.monotonic() + SOON_S
        if self.journal.unsaved or not self.journal.begun or self.obsolete:
            self.retry_at = min(self.retry_at, time.monotonic() + (RETRY_S if self.journal.unsaved else 0))
        due = min(
            self.alarm, self.sample_at, self.sweep_at, self.sync_at, self.soon_at, self.adopted.due, self.retry_at
        )
        if self.fence != NEVER and self.fenced():
            due = min(due, time.monotonic() + self.fence - process.boottime())
        if self.channel is None and not self.by_pid:
            due = min(due, self.idle_since + self.kin.idle_s)
        return None if due == NEVER else max(0.0, due - time.monotonic()) * 1000 + 1

    def tick(self, now: float) -> None:
        """What is due by time."""
        if now >= self.soon_at:
            self.soon_at = NEVER
            self.tell()
            for run in self.fresh:
                if run.live:
                    process.expose(run.pid, JOB_OOM_SCORE)
            self.fresh.clear()
        if now >= self.alarm:
            for run in list(self.timed.values()):
                at = runs.due_at(run)
                if at is not None and at <= now:
                    self.happen(run, runs.due(run), f"time limit of {run.limit_s:g} s" if run.limit_s else "")
            self.set_alarm()
        if now >= self.sample_at:
            self.sample(now)
        if now >= self.adopted.due:
            self.adopted.settle(now)
        if now >= self.sweep_at:
            again = self.enforcer.sweep(now, self.by_pid.values())
            self.sweep_at = now + SWEEP_S if again else NEVER
            if self.leaving and not (again or self.runs):
                self.end()
        if self.fence != NEVER and process.boottime() > self.fence:
            for run in self.fenced():
                self.happen(run, Event.FENCE, "this node could not reach the spool; the job may run elsewhere")
        if now >= self.sync_at:
            self.sync_at = NEVER
            self.kin.leave(self.journal.path.encode())
        if now >= self.retry_at:
            self.retry_at = NEVER
            self.save()
        if self.journal.size > max(COMPACT_BYTES, 2 * self.journal.initial_size) and self.journal.flush():
            self.obsolete.append(self.journal.path)
            self.journal.close()
            self.journal = self.new_journal()
        if self.channel is None and not self.by_pid and now - self.idle_since >= self.kin.idle_s:
            self.end()

    def save(self) -> None:
        """Try again what the disk refused; drop the files that the present one replaces."""
        if self.journal.flush() and self.journal.begun:
            while self.obsolete:
                with contextlib.suppress(OSError):
                    os.unlink(self.obsolete.pop())

    def new_journal(self) -> Journal:
        """A file that holds all that is known, made with the next flush."""
        pid = os.getpid()
        first = head(boot=self.kin.boot, pid=pid, born=process.born(pid), spent_s=self.spent_s)
        return Journal(self.kin.state_dir, "runner", first, takeover.snapshot(self.runs), sync=True)

    def lengthen(self) -> bool:
        """See that there are WATCHERS above; True if this process is one from now on."""
        if len(self.kin.ancestors()) >= WATCHERS:
            self.kin.owed = 0
            return False
        self.journal.flush()
        self.kin.owed -= 1
        try:
            forked = self.kin.fork()
        except OSError as error:
            print(f"spoolq-runner: fork: {error.strerror}", file=sys.stderr, flush=True)
            return False
        if forked:
            if self.channel:
                self.channel.sock.close()
            self.journal.close()
            self.spawner.close()
            for run in self.by_pid.values():
                if run.handle is not None:
                    run.handle.close()
            return True
        self.poll = select.poll()
        self.listen()
        for run in list(self.by_pid.values()):
            if run.own:
                run.own, run.handle = False, process.Handle.open(run.pid, run.earliest, run.latest)
            self.adopted.take(run)
        return False

    def listen(self) -> None:
        """Poll what every runner polls."""
        for fd in (self.kin.wake_fd(), self.kin.listener.fileno(), self.kin.bell_in.fileno()):
            self.poll.register(fd, select.POLLIN)
        if self.channel:
            self.poll.register(self.channel, select.POLLIN)

    def end(self) -> None:
        """Exit after this turn; whatever is unforgotten lies in the journal."""
        if self.journal.flush():
            self.journal.sync()
            self.over = True

    # --- ends

    def wait(self) -> None:
        """Take the ended children: write down, then reap, so that a crash in between loses none."""
        while (end := process.peek()) is not None:
            run = self.by_pid.get(end.pid)
            if run is not None:
                comm = ""
                if run.trampoline and end.code in (126, 127):
                    stat = process.read_stat(end.pid)
                    comm = stat.comm if stat else ""
                self.finish(run, End(end.code, end.signal, end.usage, comm, time.time()))
                self.journal.flush()
                self.die("before-reap", run)
            process.reap(end.pid)

    def hear_watchers(self) -> None:
        """Ends of processes that a watcher waited for, and deaths in the chain above."""
        with contextlib.suppress(BlockingIOError):
            while True:
                record = json.loads(self.kin.bell_in.recv(1 << 16))
                if record["op"] == "exit":
                    self.take_exit(record)
                else:
                    self.kin.owed = WATCHERS

    def take_exit(self, record: dict[str, Any]) -> None:
        """What a watcher saw; of use if it is about a job that is not over."""
        run = self.by_pid.get(record["pid"])
        if run is not None and run.earliest <= record["born"] <= run.latest:
            usage = tuple(record["usage"])
            if not run.unsure:  # else `adopted` sees its end, and knows no more
                self.finish(run, End(record["code"], record["signal"], usage, record["comm"], record["at"]))

    def finish(self, run: Run, end: End) -> None:
        """A job's first process has ended; if it never started its pid is 0."""
        now = time.monotonic()
        self.by_pid.pop(run.pid, None)
        self.timed.pop(run.key, None)
        self.sampled.pop(run.key, None)
        self.adopted.drop(run)
        run.line = ended_line(run, end, now if run.own else None)
        run.stage, run.deadline = Stage.OVER, None
        self.enforcer.ended(run, now)
        self.sweep_at = min(self.sweep_at, now + SWEEP_S)
        self.sync_at = min(self.sync_at, now + SYNC_S)
        self.journal.keep(run.line)
        self.out.append(run.line)
        self.idle_since = now

    # --- limits

    def happen(
        self, run: Run, event: Event, detail: str = "", *, grace_s: float | None = None, reason: str = ""
    ) -> None:
        """Let something happen to a job, write it down, and do it."""
        fresh = not run.reason
        act = runs.happen(run, event, time.monotonic(), detail, grace_s)
        if act is None:
            return
        if fresh and reason:
            run.reason = reason
        self.journal.keep(takeover.change_line(run))
        self.journal.flush()
        self.die(f"before-{act.value}", run)
        self.enforcer.act(run, act)
        self.retime(run)

    def retime(self, run: Run) -> None:
        """See that the next event by time is not missed."""
        at = runs.due_at(run)
        if at is None:
            self.timed.pop(run.key, None)
        else:
            self.timed[run.key] = run
            self.alarm = min(self.alarm, at)
        if run.sampled and run.live:
            self.sampled[run.key] = run
            self.sample_at = min(self.sample_at, time.monotonic() + SAMPLE_S)
        else:
            self.sampled.pop(run.key, None)

    def set_alarm(self) -> None:
        """The nearest event by time."""
        due = [at for run in self.timed.values() if (at := runs.due_at(run)) is not None]
        self.alarm = min(due, default=NEVER)

    def sample(self, now: float) -> None:
        """End jobs that hold too much memory."""
        for run, detail in self.enforcer.over_memory([run for run in self.sampled.values() if run.live]):
            self.happen(run, Event.MEMORY, detail)
        self.sample_at = now + SAMPLE_S if self.sampled else NEVER

    def fenced(self) -> list[Run]:
        """Jobs that another node may run once this one is silent, and that are not being killed."""
        return [run for run in self.by_pid.values() if run.rerun == "Y" and run.stage is not Stage.KILLING]

    # --- the daemon

    def accept(self) -> None:
        """A new daemon replaces the old one, whose unread words are dropped."""
        with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
            sock, _ = self.kin.listener.accept()
            peer = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            if peer[1] not in (0, os.geteuid()):
                sock.close()
                return
            self.hang_up()
            self.channel = Channel(sock)
            self.poll.register(self.channel, select.POLLIN)

    def hang_up(self) -> None:
        """The daemon is gone; its jobs go on."""
        if self.channel:
            self.poll.unregister(self.channel)
            self.channel.close()
        self.channel, self.greeted, self.idle_since = None, False, time.monotonic()
        self.out.clear()
        self.news.clear()

    def converse(self) -> None:
        """Obey what the daemon says."""
        if self.channel is None:
            return
        try:
            for message, fds in self.channel.receive():
                try:
                    orders.obey(self, message, fds)
                finally:
                    for fd in fds:
                        with contextlib.suppress(OSError):  # NFS says here what the daemon hears at its fsync
                            os.close(fd)
            if self.channel and self.channel.waiting:
                self.tell()
        except Gone:
            self.hang_up()

    def tell(self) -> None:
        """Send what there is to say; what a daemon does not hear, it finds in `known`."""
        texts = [*self.news, *self.out]
        self.out.clear()
        self.news.clear()
        if self.channel is None or not self.greeted:
            return
        waited = self.channel.waiting
        try:
            if texts:
                self.channel.post_all(texts)
            elif waited:
                self.channel.flush()
            if waited or self.channel.waiting:
                self.poll.modify(self.channel, select.POLLIN | (select.POLLOUT if self.channel.waiting else 0))
        except Gone:
            self.hang_up()

    def refuse(self, text: str, why: str) -> None:
        """A start certainly did not happen."""
        line = f'{{"op":"refused",{text},"why":{json.dumps(why)}}}'
        self.journal.keep(line)
        self.out.append(line)

    def die(self, where: str, run: Run) -> None:
        """Be killed at this place, if a test asked for it: `place:id`."""
        if self._die and self._die == f"{where}:{run.id}":
            os.kill(os.getpid(), signal.SIGKILL)


def _written_by_the_living(taken: takeover.Takeover) -> set[str]:
    return {path for path, pid, birth in taken.book.watching if process.born(pid) == birth}
