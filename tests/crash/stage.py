"""
One case: a fresh copy of a prepared spool, real processes, perhaps one of them traced, a user who acts, and the end.

Runs in a process of its own that takes in all orphans, so that nothing can be left behind unseen.
"""

import contextlib
import ctypes
import io
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from spoolq import __main__, channel, daemon, host, intake, local, recover
from spoolq.entry import parse_name
from spoolq.errors import SpoolqError
from spoolq.kin import WATCHERS
from spoolq.resources import UNIT
from tests.crash import tracer
from tests.crash.tracer import Plan, Stub, Trace

PATIENCE_S = 120.0  # for one case, also on a machine that is busy; a case that hangs is a violation
NODE = "n1"
UUID = "11111111-2222-3333-4444-555555555555"
_libc = ctypes.CDLL(None)


class HangsError(AssertionError):
    """Something that must happen does not."""


class Stage:
    """
    Processes, directories and the passing of time of one case.

    Args:
        base: an empty directory of this case alone.
        template: a directory to copy from, or empty.
        execute: start each program from nothing.
    """

    def __init__(self, base: str, template: str = "", *, execute: bool = False) -> None:
        self.execute = execute
        self.base, self.root, self.state = base, f"{base}/spool", f"{base}/state"
        self.truth, self.began = f"{base}/truth", time.monotonic()
        keep = ("PATH", "LANG", "LC_ALL", "USER", "LOGNAME")
        self.env = {k: v for k, v in os.environ.items() if k in keep}
        self.env |= {"SPOOLQ_DIR": self.root, "SPOOLQ_STATE_DIR": self.state, "TMPDIR": f"{base}/tmp", "HOME": base}
        self.env |= {"PYTHONUNBUFFERED": "1", "PYTHONPATH": os.path.dirname(os.path.dirname(__main__.__file__))}
        if template:
            shutil.copytree(template, base, symlinks=True, dirs_exist_ok=True)
        for name in ("tmp", "state"):
            os.makedirs(f"{base}/{name}", mode=0o700, exist_ok=True)
        _libc.prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
        self.statuses: dict[int, int] = {}
        self.tracer = (0, -1)
        self.daemons: list[int] = []

    @property
    def node_state(self) -> str:
        """The directory of journal, claims and socket."""
        os.environ[local.VARIABLE] = self.state
        return local.state_directory(UUID, NODE)

    # --- processes

    def reap(self) -> None:
        """What init would do."""
        with contextlib.suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                self.statuses[found[0]] = found[1]

    def dead(self, pid: int) -> bool:
        """Whether a child of ours has ended."""
        self.reap()
        return pid in self.statuses

    def code(self, pid: int) -> int:
        """Of a child that ended; negative: the signal."""
        return os.waitstatus_to_exitcode(self.statuses[pid])

    def until(self, done: Callable[[], Any], what: str) -> Any:
        """Wait; the time of all waits of a case together is limited."""
        while not (found := done()):
            if time.monotonic() - self.began > PATIENCE_S:
                raise HangsError(f"waited in vain: {what}")
            self.reap()
            time.sleep(0.005)
        return found

    def stub(self, words: Sequence[str], log: str) -> Stub:
        """A program that waits to be let go; its words go to the log."""
        with open(os.devnull, "rb") as null, open(f"{self.base}/{log}", "ab") as out:
            return self.start(words, (null.fileno(), out.fileno(), out.fileno()))

    def start(self, words: Sequence[str], files: Sequence[int]) -> Stub:
        """The same with other descriptors for 0, 1 and 2."""
        return tracer.start(words, self.env, files, self.base, program if words[0] == "spoolq" else None)

    def python(self, *words: str) -> list[str]:
        """The words of a command of spoolq: to be executed, or to be called in a fork of this process."""
        return [sys.executable, "-m", "spoolq", *words] if self.execute else ["spoolq", *words]

    def trace(self, stub: Stub, plan: Plan) -> None:
        """Let it go under the eyes of a tracer."""
        self.tracer = tracer.trace_apart(stub, plan)

    def traced(self) -> Trace:
        """What the tracer found; it has ended or soon will, since nothing is left to trace."""
        pid, out = self.tracer
        self.until(lambda: self.dead(pid), "the tracer ends")
        with open(out, "rb") as file:
            data = file.read()
        if not data:
            raise HangsError("the tracer failed")
        self.tracer = (0, -1)
        return Trace.load(data)

    def daemon(self, *words: str, plan: Plan | None = None) -> int:
        """Start one; its pid."""
        node = ("node", "--name", NODE, "--cpus", "16", "--mem", "64T", *words)
        stub = self.stub(self.python(*node), "node.log")
        if plan:
            self.trace(stub, plan)
        else:
            stub.go()
        self.daemons.append(stub.pid)
        return stub.pid

    def family(self, plan: Plan) -> None:
        """Found the family of processes, traced from its first call; daemons will find it."""
        state = self.node_state
        stub = self.stub(channel.command(state, "--idle=60"), "family.log")
        self.trace(stub, plan)
        self.until(
            lambda: (
                (self.member("spoolq-runner") and os.path.exists(f"{state}/{channel.SOCKET}")) or not self.children()
            ),
            "a family",
        )

    def command(self, *words: str) -> int:
        """A command of a user, in a process of its own; its exit code."""
        pid = os.fork()
        if pid == 0:
            code = 1
            with contextlib.suppress(BaseException):
                os.environ.clear()
                os.environ.update(self.env)
                with open(f"{self.base}/commands.log", "a", encoding="utf-8") as log:
                    log.write(f"$ {' '.join(words)}\n")
                    log.flush()
                    sys.stdout = sys.stderr = log
                    sys.stdin = io.StringIO()
                    os.chdir(self.base)
                    code = __main__.main(words)
            os._exit(code)
        self.until(lambda: self.dead(pid), f"spoolq {' '.join(words)} ends")
        return self.code(pid)

    def children(self) -> list[int]:
        """Everything that lives below this process, tracer aside."""
        found, todo = [], [os.getpid()]
        while todo:
            with (
                contextlib.suppress(OSError),
                open(f"/proc/{todo[0]}/task/{todo[0]}/children", encoding="ascii") as file,
            ):
                todo += [int(word) for word in file.read().split()]
            found.append(todo.pop(0))
        return [pid for pid in found[1:] if pid != self.tracer[0]]

    def members(self, name: str) -> list[int]:
        """Processes of ours of this name."""
        return [pid for pid in self.children() if tracer.name_of(pid) == name]

    def member(self, name: str) -> int:
        """The one that is a job's parent, or 0."""
        return next(iter(self.members(name)), 0)

    def whole(self) -> bool:
        """Whether the family is what it wants to be; a watcher keeps the runner's name for its first moments."""
        return (len(self.members("spoolq-watch")), len(self.members("spoolq-runner"))) == (WATCHERS, 1)

    def close(self) -> list[str]:
        """Kill whatever is left; what that was."""
        left = []
        for _ in range(100):
            pids = [*self.children(), *([self.tracer[0]] if self.tracer[0] else [])]
            if not pids:
                break
            for pid in pids:
                name = tracer.name_of(pid)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    left.append(f"{name}({pid})")
            time.sleep(0.01)
            self.reap()
            if self.tracer[0] in self.statuses:
                self.tracer = (0, -1)
        return sorted(set(left))

    # --- looking

    def log(self, name: str) -> str:
        """What was said."""
        with contextlib.suppress(OSError), open(f"{self.base}/{name}", encoding="utf-8", errors="replace") as file:
            return file.read()
        return ""

    def marks(self) -> list[tuple[int, int, str]]:
        """The truth: (id, attempt, `start` or `end`) in the order in which jobs wrote it."""
        lines = [line.split() for line in self.log("truth").splitlines()]
        return [(int(words[0]), int(words[1]), words[3]) for words in lines]

    def started(self, job_id: int) -> bool:
        """Whether it runs, or did."""
        return any(mark[0] == job_id for mark in self.marks())

    def entries(self) -> dict[str, list[Any]]:
        """Directory -> entries, by listing."""
        found: dict[str, list[Any]] = {}
        for top in ("queue", "held", "running", "reaping", "done"):
            found[top] = []
            for _, _, names in os.walk(f"{self.root}/{top}"):
                for name in names:
                    with contextlib.suppress(SpoolqError):
                        entry = parse_name(name)
                        found[top] += [entry] if entry else []
            for directory, names, _ in os.walk(f"{self.root}/{top}"):
                for name in names:  # a link to a directory
                    if os.path.islink(f"{directory}/{name}"):
                        raise AssertionError(f"{directory}/{name}: a link to a directory")
        return found

    def family_log(self) -> str:
        """What the runner and its watchers said, whoever founded them."""
        return self.log("family.log") + self.log(f"state/{os.path.basename(self.node_state)}/family.log")

    def tell(self) -> str:
        """Where everything is, for the message of a case that went wrong."""
        places = {top: [f"{e.id}.{e.gen}.{e.attempt}" for e in entries] for top, entries in self.entries().items()}
        alive = []
        for pid in self.children():
            with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", encoding="utf-8") as file:
                alive.append(" ".join(file.read().split()[:4]))
        files = sorted(os.listdir(self.base)) + [
            f"{top}/{name}"
            for top in ("drop", "rejected", f"nodes/{NODE}/admit", f"nodes/{NODE}/control")
            if os.path.isdir(f"{self.root}/{top}")
            for name in sorted(os.listdir(f"{self.root}/{top}"))
        ]
        return f"{places}\n{alive}\n{files}\n{self.log('node.log')[-1500:]}{self.family_log()[-1500:]}"

    def entry(self, job_id: int) -> tuple[str, Any]:
        """Where a job is, and its entry; empty and None if it is nowhere (or just between two places)."""
        for top, entries in self.entries().items():
            for entry in entries:
                if entry.id == job_id:
                    return top, entry
        return "", None


def side_by_side() -> int:
    """How many cases at a time: one where they would see each other's jobs, which have the same ids."""
    cpus = host.capacity()["cpus"] // UNIT or 1  # of a container: perhaps few of the machine's
    return 2 * cpus if os.geteuid() == 0 else 1


def alone() -> None:
    """
    Go on in a process that sees no others but its own, where that is allowed (root).

    The runner looks at every process of the machine when it stops a job; under a tracer each look is slow.
    """
    if _libc.unshare(0x20020000) != 0:  # CLONE_NEWPID | CLONE_NEWNS
        return
    pid = os.fork()
    if pid:
        with contextlib.suppress(HangsError):
            os.waitpid(pid, 0)
        os._exit(0)
    end_with_parent()
    _libc.mount(b"none", b"/", None, 0x44000, None)  # MS_REC | MS_PRIVATE
    _libc.mount(b"proc", b"/proc", b"proc", 0, None)


def end_with_parent() -> None:
    """If the rig is interrupted, so is this case, which then kills what it started."""

    def stop(*_: object) -> None:
        raise HangsError("interrupted")

    signal.signal(signal.SIGTERM, stop)
    _libc.prctl(1, int(signal.SIGTERM), 0, 0, 0)  # PR_SET_PDEATHSIG


def program(words: Sequence[str]) -> int:
    """
    The program `spoolq`, in a fork of a process that has imported it: a start from nothing is half of what a case costs.

    As it is, but for how long it waits before it tries again what was refused.
    """
    daemon.RETRY_S, intake.REFUSED_S, recover.FULL_S = (1.0, 2.0), 1.0, 0.5
    sys.argv = list(words)
    logging.getLogger().handlers.clear()  # those of a test run write to descriptors that mean something else here
    return __main__.main()


def mark_script(body: str) -> str:
    """
    A job that writes down that it starts and, if it gets there, that it ends: one write each, at the end of a file.

    Not synced: here processes die, not the machine, and the page cache outlives every process.
    """
    tell = 'printf "%s %s %s %s\\n" "$SPOOLQ_JOB_ID" "$SPOOLQ_ATTEMPT" $$'
    return (
        f'#!/bin/sh\nbase="$SPOOLQ_DIR/.."\n{tell} start >>"$base/truth"\n'
        f'finish() {{ {tell} end >>"$base/truth"; exit "$1"; }}\n{body}\n'
    )
