"""
The program around a job's command on its node: prolog, staging, command, epilog. Only for jobs or nodes that have such.

It is the job's first process, so it is limited, suspended and killed with the job, and the runner need not know
it. What it does is in a directory on the node's own disk, `<state>/steps/<id>.<attempt>/`: `plan`, written by
the daemon, and `said`, how far it came. Killed before it said `over`, it leaves the rest to `finish`, the same
program started by the daemon; a lock keeps the two apart.
Invariants: its exit is the command's; the epilog begins after every prolog that began, and once more if its end was
not seen (at least once); a copy that failed is never taken for one that succeeded.
Imports little, since its start is part of every such job.
"""

import contextlib
import errno
import fcntl
import json
import os
import select
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

from spoolq import staging, stale

JOBS_FAULT = 100  # the exit code of a prolog that blames the job and not the node (SGE's sge_conf(5) has the same)
MOST_SAID = 1 << 20  # bytes that a prolog may print
TIMED_OUT = 1000  # instead of an exit code
_SHELL = "/bin/sh"
_LEFT_ALONE = {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ}
_LEFT_ALONE |= {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT}


class Outcome(NamedTuple):
    """How the command, or what stood in its place, ended; `reason` is for the daemon, `detail` for people."""

    code: int
    signal: int = 0
    reason: str = ""
    detail: str = ""


class StoppedError(Exception):
    """The job was asked to end before its command began."""


class Shepherd:
    """One attempt."""

    def __init__(self, directory: str) -> None:
        """Read the plan; wait for another that is at it."""
        self.directory = directory
        self._lock = os.open(f"{directory}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        with open(f"{directory}/plan", encoding="utf-8", errors="surrogateescape") as file:
            self.plan: dict[str, Any] = json.load(file)
        self.env = dict(line.partition("=")[::2] for line in self.plan["env"])
        self.asked = 0  # a signal that asks to end
        self.pid = 0  # of the command
        self.before: list[stale.Seen | None] | None = None  # outputs before the command began

    def said(self) -> dict[str, Any]:
        """How far it came."""
        with contextlib.suppress(FileNotFoundError), open(f"{self.directory}/said", encoding="utf-8") as file:
            return dict(json.load(file))
        return {}

    def say(self, phase: str, **facts: Any) -> None:
        """Write down how far it came."""
        new = f"{self.directory}/said.new"
        with open(new, "w", encoding="utf-8") as file:
            json.dump({"phase": phase, **facts}, file)
        os.replace(new, f"{self.directory}/said")

    # --- in the job

    def run(self) -> Outcome:
        """Everything from prolog to epilog."""
        for number in signal.valid_signals() - _LEFT_ALONE:
            with contextlib.suppress(OSError, ValueError):
                signal.signal(number, self._heed)
        plan = self.plan
        if plan["if_stale"] and stale.up_to_date(".", plan["inputs"], plan["targets"]):
            fresh = Outcome(0, detail=f"up to date, not run: {', '.join(plan['targets'])}")
            sys.stderr.write(f"spoolq: {fresh.detail}\n")
            self.say("over", **fresh._asdict())
            return fresh
        self.say("begin")
        try:
            outcome = self._begin() or self._command()
        except StoppedError:
            outcome = Outcome(128 + self.asked, self.asked)
        return self._end(outcome)

    def _heed(self, number: int, _: object) -> None:
        # the command has got it too; before it began, this is the one to end
        if number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGXCPU):
            self.asked = number
        if number == self.plan["first"] and self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def _begin(self) -> Outcome | None:
        """What comes before the command; an outcome if that does not come."""
        if self.plan["own_scratch"]:
            try:
                os.mkdir(self.plan["scratch"], 0o700)
            except OSError as error:
                return Outcome(1, reason="stage-in", detail=f"{self.plan['scratch']}: {error.strerror}")
        if words := self.plan["prolog"]:
            code, said = step(words, self.env, self.plan["prolog_s"])
            self._go_on()
            if code:
                reason = "prolog-job" if code == JOBS_FAULT else "prolog"
                return Outcome(1, reason=reason, detail=f"the prolog {failed(code, self.plan['prolog_s'])}")
            self._take(said)
        if items := self.plan["stage_in"]:
            try:
                cache = staging.Cache(*self.plan["cache"]) if self.plan["cache"] else None
                staging.stage_in(items, self.plan["chdir"], self.plan["scratch"], self._go_on, cache)
            except staging.StageError as error:
                return Outcome(1, reason="stage-in", detail=str(error))
        return None

    def _go_on(self) -> None:
        if self.asked:
            raise StoppedError

    def _take(self, said: bytes) -> None:
        """`export NAME=value` and `unset NAME` change the job's environment, as those of Slurm's TaskProlog do."""
        for line in said.decode("utf-8", "surrogateescape").splitlines():
            verb, _, rest = line.strip().partition(" ")
            name, equals, value = rest.strip().partition("=")
            if verb == "export" and equals and name.isidentifier():
                self.env[name] = value
            elif verb == "unset" and name.isidentifier():
                self.env.pop(name, None)
            elif line.strip():
                sys.stderr.write(f"{line}\n")
        sys.stderr.flush()

    def _command(self) -> Outcome:
        self.before = stale.look(".", self.plan["targets"])
        self.say("run", before=self.before)
        self._go_on()
        argv, program = self.plan["argv"], self.plan["program"]
        try:
            self.pid = start(program or find(argv[0], self.env.get("PATH", os.defpath)), argv, self.env)
        except OSError as error:
            code = 127 if error.errno in (errno.ENOENT, errno.ENOTDIR) else 126
            return Outcome(code, reason="launch", detail=f"cannot execute {program or argv[0]}: {error.strerror}")
        return ended(self.pid)

    def _end(self, outcome: Outcome) -> Outcome:
        """What comes after the command, however it ended."""
        if self.before is not None:
            outcome = self._bring_out(outcome)
        if self.plan["own_scratch"]:
            staging.discard(self.plan["scratch"])  # what was kept has another name
        if self.before is not None and (outcome.code or outcome.signal):
            for fault in stale.set_aside(".", self.plan["targets"], self.before):
                sys.stderr.write(f"spoolq: not renamed to *{stale.FAILED}: {fault}\n")
        faults = []
        if words := self.plan["epilog"]:
            self.say("epilog", **outcome._asdict())
            code, said = step(words, {**self.env, **_ending(outcome)}, self.plan["epilog_s"])
            sys.stderr.write(said.decode("utf-8", "replace"))
            if code:
                faults.append(f"the epilog {failed(code, self.plan['epilog_s'])}")
        self.say("over", **outcome._asdict(), epilog="; ".join(faults))
        return outcome

    def _bring_out(self, outcome: Outcome) -> Outcome:
        """Also what a command left that failed; what cannot be brought out is kept here, and said where."""
        well = not (outcome.code or outcome.signal)
        plan = self.plan
        try:
            staging.stage_out(plan["stage_out"], plan["scratch"], plan["chdir"], lambda: None, needed=well)
        except staging.StageError as error:
            kept = staging.keep(plan["scratch"], plan["kept"])
            detail = f"{error}; what was made is kept on {plan['node']} in {kept}"
            sys.stderr.write(f"spoolq: stage-out: {detail}\n")
            return Outcome(1, reason="stage-out", detail=detail) if well else outcome._replace(detail=detail)
        return outcome

    # --- after a kill

    def finish(self, *, here: bool) -> None:
        """
        What a killed shepherd left to do.

        Args:
            here: only what concerns this node, since the job may run elsewhere.
        """
        said = self.said()
        if said.get("phase") in (None, "over"):
            return
        with contextlib.suppress(OSError):
            os.chdir(self.plan["chdir"])
        detail = str(said.get("detail") or "")
        code, number = int(said.get("code", 1)), int(said.get("signal", 0))
        # of an epilog that had begun the outcome is known
        outcome = Outcome(code, number, str(said.get("reason") or ""), detail)
        if said["phase"] != "epilog":
            outcome = Outcome(1, signal.SIGKILL)
        if said["phase"] == "run" and not here:
            self.before = [seen and stale.Seen(*seen) for seen in said["before"]]
        self._end(outcome)


def _ending(outcome: Outcome) -> dict[str, str]:
    return {"SPOOLQ_EXIT_CODE": str(outcome.code), "SPOOLQ_SIGNAL": str(outcome.signal or "")}


def failed(code: int, limit_s: float) -> str:
    """What became of a prolog or epilog, in words."""
    if code == TIMED_OUT:
        return f"took longer than {limit_s:g} s"
    return f"was ended by signal {-code}" if code < 0 else f"failed with exit code {code}"


def step(words: Sequence[str], env: Mapping[str, str], limit_s: float) -> tuple[int, bytes]:
    """Run a prolog or epilog: its exit code (negative: a signal), or TIMED_OUT, and what it printed."""
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    os.set_blocking(writing, True)
    try:
        pid = start(words[0], words, env, stdout=writing, group=True)
    except OSError as error:
        os.close(reading)
        sys.stderr.write(f"spoolq: {words[0]}: {error.strerror}\n")
        return 127, b""
    finally:
        os.close(writing)
    until, said, handle = time.monotonic() + limit_s, b"", os.pidfd_open(pid)
    try:
        while (left := until - time.monotonic()) > 0:
            ready = select.select([handle, reading] if reading >= 0 else [handle], [], [], left)[0]
            if reading in ready:
                part = _drain(reading)
                said += part[: max(0, MOST_SAID - len(said))]  # what is too much is read all the same
                if not part:  # it closed its output and goes on
                    os.close(reading)
                    reading = -1
            elif handle in ready:
                return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), said
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return TIMED_OUT, said
    finally:
        os.close(handle)
        if reading >= 0:
            os.close(reading)


def _drain(fd: int) -> bytes:
    try:
        return os.read(fd, 1 << 16)
    except BlockingIOError:
        return b""


def start(
    program: str, argv: Sequence[str], env: Mapping[str, str], *, stdout: int | None = None, group: bool = False
) -> int:
    """A child with our descriptors and default signals; a text without #! is for the shell."""
    more: dict[str, Any] = {"setsigmask": (), "setsigdef": (signal.SIGPIPE, signal.SIGXFSZ)}
    if group:
        more["setpgroup"] = 0
    if stdout is not None:
        more["file_actions"] = [(os.POSIX_SPAWN_DUP2, stdout, 1)]
    try:
        return os.posix_spawn(program, list(argv), dict(env), **more)
    except OSError as error:
        if error.errno != errno.ENOEXEC:
            raise
    return os.posix_spawn(_SHELL, [_SHELL, program, *argv[1:]], dict(env), **more)


def find(word: str, search: str) -> str:
    """The path of a program, as a shell would find it."""
    if "/" in word:
        return word
    candidates = [os.path.join(directory or ".", word) for directory in search.split(":")]
    return next((path for path in candidates if os.path.isfile(path) and os.access(path, os.X_OK)), word)


def ended(pid: int) -> Outcome:
    """Wait for a child, whatever signals come."""
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return Outcome(128 - code, -code) if code < 0 else Outcome(code)


def leave(outcome: Outcome) -> NoReturn:
    """End as the command ended."""
    sys.stderr.flush()
    if outcome.signal:
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
        if outcome.signal not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(outcome.signal, signal.SIG_DFL)
        os.kill(os.getpid(), outcome.signal)
    os._exit(outcome.code & 0xFF)


def main() -> None:
    """`shepherd DIRECTORY [finish]`."""
    shepherd = Shepherd(sys.argv[1])
    if sys.argv[2:3] == ["finish"]:
        shepherd.finish(here=sys.argv[3:] == ["here"])
        return
    with contextlib.suppress(OSError):
        if shepherd.said().get("phase") == "over":  # never twice
            os._exit(126)
    leave(shepherd.run())
