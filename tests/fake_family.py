"""A runner in memory with the daemon's end of the channel: survives the death of daemons, ends jobs at once."""

import copy
import os
import time
from typing import Any

from spoolq import __version__
from spoolq.channel import Gone

_READY = os.open("/dev/zero", os.O_RDONLY | os.O_CLOEXEC)  # always readable


class FakeRunner:
    """
    What the real runner knows: every start, and every end until it is forgotten.

    Attributes:
        ends: jobs end as soon as they are started.
        refuses: starts are refused.
        deaf: messages lie in the socket unread, and are lost when either end dies.
        writes: what jobs write to stdout; `%d` is the attempt.
        gone: the next word to it finds nobody.
        said: every message that was read, but for those about leases.
    """

    def __init__(self, *, ends: bool = True) -> None:
        self.jobs: dict[tuple[int, int], dict[str, Any]] = {}
        self.starts: list[tuple[int, int]] = []
        self.ends = ends
        self.refuses = self.deaf = self.gone = False
        self.writes = b""
        self.said: list[dict[str, Any]] = []
        self.out: list[dict[str, Any]] = []

    def connect(self, state_dir: str, **_: object) -> "FakeFamily":
        """A new daemon: what the old one had not read is gone, what it was told is in `known`."""
        self.out, self.deaf, self.gone = [], False, False
        os.makedirs(state_dir, exist_ok=True)
        return FakeFamily(self)

    def end(self, key: tuple[int, int], exit_code: int | None = 0, reason: str = "") -> None:
        """Let a job end."""
        now = time.time()
        ended = {"exit_code": exit_code, "signal": None, "reason": reason, "started": now, "ended": now, "wall_s": 0.0}
        ended |= {"rusage": {"user_s": 0.0}, "measured_by": "wait4"}
        self.jobs[key] |= {"state": "ended", "stage": "over", "ended": ended}
        self.out.append({"op": "ended", "id": key[0], "attempt": key[1], "ended": dict(ended)})

    def end_running(self) -> None:
        """Let all jobs that run end, and those that are started from now on."""
        self.ends = True
        for key, job in self.jobs.items():
            if job["state"] == "running":
                self.end(key)

    def handle(self, message: dict[str, Any]) -> None:
        """One message of the daemon."""
        if self.gone:
            raise Gone("closed by the other end")
        if self.deaf:
            return
        self.said.append(message)
        key = (message.get("id", 0), message.get("attempt", 0))
        job = self.jobs.get(key, {})
        running = job.get("state") == "running"
        match message["op"]:
            case "hello":
                jobs = copy.deepcopy([*self.jobs.values()])  # a daemon that changes them changes its own
                self.out = [{"op": "known", "version": __version__, "jobs": jobs}]
            case "start" if self.refuses:
                self.out.append({"op": "refused", "id": key[0], "attempt": key[1], "why": "the lease is over"})
            case "start":
                assert key not in self.jobs, f"started twice: {key}"
                self.starts.append(key)
                facts = {"state": "running", "stage": "running", "ended": None}
                facts |= {name: message[name] for name in ("scratch", "limit_s", "mem_mb")}
                self.jobs[key] = {"id": key[0], "attempt": key[1], "gen": message["gen"], **facts}
                if self.ends:
                    self.end(key)
            case "kill" if running:
                self.end(key, 143, "cancelled")
            case "suspend" | "resume" if running:
                job["stage"] = "paused" if message["op"] == "suspend" else "running"
            case "limits" if running:
                job.update((name, message[name]) for name in ("limit_s", "mem_mb") if name in message)
            case "forget":
                for gone in message["jobs"]:
                    self.jobs.pop(tuple(gone), None)
            case _:
                pass

    def heard(self, op: str) -> list[dict[str, Any]]:
        """The messages of one kind that were read."""
        return [message for message in self.said if message["op"] == op]


class FakeFamily:
    """As `channel.Family`."""

    waiting = False

    def __init__(self, runner: FakeRunner) -> None:
        self.runner = runner

    def fileno(self) -> int:
        return _READY

    def send(self, message: dict[str, Any], fds: Any = ()) -> None:
        if fds and self.runner.writes and not (self.runner.refuses or self.runner.deaf):
            os.write(fds[0], self.runner.writes % message["attempt"])
        self.runner.handle(message)

    def hello(self, **_: object) -> None:
        self.runner.handle({"op": "hello"})

    def lease(self, until: float, **_: object) -> None:
        pass

    def flush(self) -> None:
        pass

    def receive(self) -> list[dict[str, Any]]:
        if self.runner.gone:
            raise Gone("closed by the other end")
        out, self.runner.out = self.runner.out, []
        return out

    def close(self) -> None:
        pass
