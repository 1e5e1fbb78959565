"""
What the processes of a node family share, and how they beget each other.

The family is a chain: watcher, watcher, runner; each is the parent of the next, and each takes orphans
in. So when one is killed, its children, jobs among them, fall to the next one up, and when the runner
is, its parent forks another. A chain can only grow at its lower end (nobody can be given a new
parent): there the runner forks, its child is the runner from then on, and it watches.
Invariant: the lock is held while any of the family lives, so two families never serve one directory;
the sockets are older than every process and outlive each.
"""

import contextlib
import fcntl
import gc
import os
import signal
import socket
import sys

from spoolq import channel, process

WATCHERS = 2  # above the runner: that many kills in the life of one job cost nothing, not even its rusage
_WAKING = (signal.SIGCHLD, signal.SIGUSR1, signal.SIGUSR2)
_DEAF = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP)
RENEW = signal.SIGUSR1  # to a watcher: execute the program anew
NAMES = {"runner": "spoolq-runner", "watch": "spoolq-watch"}


def _noted(_number: int, _frame: object) -> None:
    """Signals only wake the loop; a handler, unlike SIG_IGN, is not inherited by jobs."""


class Kin:
    """
    One process's view of its family.

    Attributes:
        listener: where daemons connect.
        bell_in, bell_out: what watchers tell the runner, in packets; all hold both ends, so it never closes.
        chores_in, chores_out: what the runner leaves to any watcher.
        alone: whether this process found no family: nobody waited for what was left.
        child: the next in the chain, 0 for the runner.
        owed: how often the chain may still be lengthened before somebody dies.
    """

    def __init__(self, state_dir: str, idle_s: float, lock: int, sockets: list[socket.socket], *, alone: bool) -> None:
        self.state_dir, self.idle_s, self.lock, self.alone = state_dir, idle_s, lock, alone
        self.listener, self.bell_in, self.bell_out, self.chores_in, self.chores_out = sockets
        self.boot = process.boot_id()
        self.child, self.owed, self.parent = 0, WATCHERS, os.getppid()
        self._wake = (-1, -1)
        self.session = os.getsid(0)
        self.role = "runner"
        self.arrive("runner")

    @classmethod
    def begin(cls, state_dir: str, idle_s: float) -> "Kin | None":
        """Found a family; None if one lives in this directory."""
        lock = os.open(os.path.join(state_dir, "family.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with channel.Place(state_dir) as place:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(state_dir, channel.SOCKET))
            mask = os.umask(0o177)
            listener.bind(place.path(channel.SOCKET))
            os.umask(mask)
        listener.listen(8)
        bell = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        chores = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(state_dir, idle_s, lock, [listener, *bell, *chores], alone=True)

    @classmethod
    def resume(cls, state_dir: str, idle_s: float, fds: list[int]) -> "Kin":
        """Go on after executing anew."""
        for fd in fds:
            os.set_inheritable(fd, False)
        return cls(state_dir, idle_s, fds[0], [socket.socket(fileno=fd) for fd in fds[1:]], alone=False)

    def arrive(self, role: str) -> None:
        """Take up a role; also after every fork, which keeps neither the wake-up pipe nor what `become` asked for."""
        self.role = role
        old, self._wake = self._wake, os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._wake[1], warn_on_full_buffer=False)
        for fd in old:
            if fd >= 0:
                os.close(fd)
        for number in (*_WAKING, *_DEAF):
            signal.signal(number, _noted)
        for sock in self._sockets():
            sock.setblocking(False)
        process.become(NAMES[role], wake=signal.SIGUSR2)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    def _sockets(self) -> tuple[socket.socket, ...]:
        return (self.listener, self.bell_in, self.bell_out, self.chores_in, self.chores_out)

    def wake_fd(self) -> int:
        """Readable after a signal: a child ended, the parent died, or RENEW."""
        return self._wake[0]

    def woken(self) -> bytes:
        """The numbers of the signals that came."""
        with contextlib.suppress(BlockingIOError):
            return os.read(self._wake[0], 4096)
        return b""

    def orphaned(self) -> bool:
        """Whether the parent has died since this was last asked, or a fork."""
        parent, self.parent = self.parent, os.getppid()
        return self.parent != parent

    def ancestors(self) -> list[int]:
        """The watchers above, nearest first: jobs are in other sessions, and so is whoever started the family."""
        found: list[int] = []
        pid = os.getppid()
        while pid > 1:
            stat = process.read_stat(pid)
            if stat is None or stat.session != self.session:
                break
            found.append(pid)
            pid = stat.parent
        return found

    def heir(self) -> int:
        """
        A living member of the family among the children, or 0; -1 while one may be a job on its way to its own session.

        All processes are looked at: in `process.children` one may be missing while others end, and then there would
        be two runners.
        """
        found, me = 0, os.getpid()
        for pid in [stat.pid for stat in process.scan().values() if stat.parent == me]:
            unborn = process.unborn(pid)  # before its session: whoever blocks nothing has joined its own
            stat = process.read_stat(pid)
            if stat and stat.session == self.session and stat.state != "Z":
                if not unborn:
                    return pid
                found = -1
        return found

    def fork(self) -> int:
        """Fork; the child is the runner. Returns 0 in the child, raises OSError if there can be none."""
        parent = os.getpid()
        gc.freeze()  # pages that a collection would touch stay shared
        pid = os.fork()
        if pid == 0:
            self.parent, self.child, self.alone = parent, 0, False
            self.arrive("runner")
        else:
            self.child = pid
        return pid

    def call(self, text: bytes) -> bool:
        """Tell the runner something; False if it must be tried again."""
        with contextlib.suppress(BlockingIOError, InterruptedError):
            self.bell_out.send(text)
            return True
        return False

    def leave(self, chore: bytes) -> None:
        """Leave something to any watcher; if none can take it, it is left undone."""
        with contextlib.suppress(OSError):
            self.chores_out.send(chore)

    def execute_anew(self) -> None:
        """Become the program as it is on disk now, with the same children; returns if it cannot be executed."""
        fds = [self.lock, *(sock.fileno() for sock in self._sockets())]
        numbers = ",".join(str(fd) for fd in fds)
        options = (f"--idle={self.idle_s}", f"--role={self.role}", f"--fds={numbers}", f"--child={self.child}")
        signal.pthread_sigmask(signal.SIG_BLOCK, (*_WAKING, *_DEAF))
        words = channel.command(self.state_dir, *options)
        try:
            for fd in fds:
                os.set_inheritable(fd, True)
            os.execv(words[0], words)  # noqa: S606  # our own program
        except OSError as error:
            print(f"spoolq: {words[0]}: {error.strerror}", file=sys.stderr, flush=True)
        finally:
            for fd in fds:
                os.set_inheritable(fd, False)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())

    def pass_on_renewal(self) -> None:
        """This one executes the new program and lives: the next one up may follow."""
        above = self.ancestors()
        if above:
            process.send(above[0], process.born(above[0]), RENEW)
