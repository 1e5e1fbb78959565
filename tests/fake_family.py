"""A runner in memory with the daemon's end of the channel: survives the death of daemons, ends jobs at once."""

import os
import time
from typing import Any

from spoolq import __version__


class FakeRunner:
    """What the real runner knows: every start, and every end until it is forgotten."""

    def __init__(self, *, ends: bool = True) -> None:
        self.jobs: dict[tuple[int, int], dict[str, Any]] = {}
        self.starts: list[tuple[int, int]] = []
        self.ends = ends
        self.out: list[dict[str, Any]] = []

    def connect(self, state_dir: str, **_: object) -> "FakeFamily":
        """A new daemon: what the old one had not read is gone, what it was told is in `known`."""
        self.out = []
        os.makedirs(state_dir, exist_ok=True)
        return FakeFamily(self)

    def end(self, key: tuple[int, int], exit_code: int = 0) -> None:
        """Let a job end."""
        now = time.time()
        ended = {"exit_code": exit_code, "signal": None, "reason": "", "started": now, "ended": now, "wall_s": 0.0}
        ended |= {"rusage": {"user_s": 0.0}, "measured_by": "wait4"}
        self.jobs[key] |= {"state": "ended", "ended": ended}
        self.out.append({"op": "ended", "id": key[0], "attempt": key[1], "ended": ended})

    def handle(self, message: dict[str, Any]) -> None:
        """One message of the daemon."""
        match message["op"]:
            case "hello":
                self.out.append(
                    {"op": "known", "version": __version__, "jobs": [dict(job) for job in self.jobs.values()]}
                )
            case "start":
                key = (message["id"], message["attempt"])
                assert key not in self.jobs, f"started twice: {key}"
                self.starts.append(key)
                self.jobs[key] = {"id": key[0], "attempt": key[1], "state": "running", "ended": None}
                if self.ends:
                    self.end(key)
            case "kill":
                self.end((message["id"], message["attempt"]), 143)
            case "forget":
                for key in message["jobs"]:
                    self.jobs.pop(tuple(key), None)
            case _:
                pass


class FakeFamily:
    """As `channel.Family`."""

    waiting = False

    def __init__(self, runner: FakeRunner) -> None:
        self.runner = runner
        self._ready = os.open("/dev/zero", os.O_RDONLY)

    def fileno(self) -> int:
        return self._ready

    def send(self, message: dict[str, Any], fds: Any = ()) -> None:
        self.runner.handle(message)

    def hello(self, **_: object) -> None:
        self.runner.handle({"op": "hello"})

    def lease(self, until: float, **_: object) -> None:
        pass

    def flush(self) -> None:
        pass

    def receive(self) -> list[dict[str, Any]]:
        out, self.runner.out = self.runner.out, []
        return out

    def close(self) -> None:
        pass
