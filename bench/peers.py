"""
The other job queues, each behind the same few verbs, so that one measure fits all.

A peer is a class that satisfies `Peer`; README.md says how to add one. Each gets a fresh directory
per repetition and a `Family` of its own, and is asked only for what its manual promises.
"""

import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from typing import Protocol

from kit import TRUE, Running, until
from place import Home, Scratch

ATJOBS = "/var/spool/cron/atjobs"
UNBOUNDED = 10**9


@dataclass(frozen=True, slots=True)
class Drained:
    """
    How long a full queue took to empty.

    `wall_s` counts from the moment the peer was let go (spoolq: from starting the node's program);
    `inner_s` from the first job's start to the last job's end, where the peer records that.
    """

    wall_s: float
    inner_s: float | None


class Peer(Protocol):
    """What a measure may ask of a job queue. Slots: how many jobs it runs at a time."""

    name: str
    records: str  # what it keeps of a finished job, for the reader of the tables
    most_queued: int  # more waiting jobs than this are not tried
    can_hold: bool  # `up(held=True)` is possible: jobs queue and none starts
    home: Home

    def missing(self) -> str:
        """Say why this peer cannot be measured here, or nothing."""

    def version(self) -> str:
        """Return the peer's own word for its version."""

    def up(self, slots: int, *, held: bool) -> None:
        """Begin afresh with that many slots; held: nothing can start until `drain`."""

    def submit(self, job: str) -> str:
        """Return shell text that submits one job."""

    def queue(self, n: int, job: str) -> None:
        """Submit n jobs in the way that the peer's user would choose for many."""

    def wait(self, n: int) -> float:
        """Wait until all n queued jobs ended: the instant (s since the epoch) at which the last was recorded."""

    def drain(self, n: int) -> Drained:
        """Let a held peer go and wait for its n jobs."""

    def traced(self, n: int) -> dict[str, str]:
        """Begin afresh and return, by label, shell texts that between them submit and run n jobs and end."""

    def down(self) -> None:
        """End everything that `up` began."""


class Nq:
    """`nq`: every queued job is a process that waits for a lock on its predecessor's log file."""

    name = "nq"
    records = "a log file a job: output, exit status if not 0"
    most_queued = 900
    can_hold = True

    def __init__(self, scratch: Scratch) -> None:
        """One directory is one slot, so n slots are n directories."""
        self.home, self.slots = Home(self.name, scratch), 1

    def missing(self) -> str:
        return _absent("nq")

    def version(self) -> str:
        return _package_version("nq")

    def up(self, slots: int, *, held: bool) -> None:
        self.home.fresh()
        self.slots = slots
        for slot in range(slots):
            os.makedirs(f"{self.home.dir}/q{slot}")
        if held:
            gate = self.home.gated()
            self.home.sh("; ".join(f"NQDIR=q{slot} nq -q {gate}" for slot in range(slots)))

    def submit(self, job: str) -> str:
        return f"NQDIR=q$((${{i:-0}}%{self.slots})) nq -q {job}"

    def queue(self, n: int, job: str) -> None:
        self.home.sh(_loop(n, self.submit(job)))

    def wait(self, n: int) -> float:
        self.home.sh(f": {n}; " + "; ".join(f"NQDIR=q{slot} nq -q -w" for slot in range(self.slots)))
        return time.time()

    def drain(self, n: int) -> Drained:
        start = time.time()
        self.home.open_gate()
        return Drained(self.wait(n) - start, None)

    def traced(self, n: int) -> dict[str, str]:
        self.up(1, held=False)
        return {"submit and run": f"{_loop(n, self.submit(TRUE))}; NQDIR=q0 nq -q -w"}

    def down(self) -> None:
        self.home.clear()


class Tsp:
    """`task-spooler`: a server behind a socket; every waiting job is a client process connected to it."""

    name = "tsp"
    records = "an output file a job; exit status and times in the server's memory"
    most_queued = 900
    can_hold = True

    def __init__(self, scratch: Scratch) -> None:
        """The first client forks the server."""
        self.home = Home(self.name, scratch)

    def missing(self) -> str:
        return _absent("tsp")

    def version(self) -> str:
        return _package_version("task-spooler")

    def up(self, slots: int, *, held: bool) -> None:
        self._settings(slots)
        gate = self.home.gated()
        self.home.sh("; ".join([f"tsp {gate}"] * slots if held else ["tsp"]))

    def submit(self, job: str) -> str:
        return f"tsp {job} >/dev/null"

    def queue(self, n: int, job: str) -> None:
        self.home.sh(_loop(n, self.submit(job)))

    def wait(self, n: int) -> float:
        self.home.sh(f": {n}; {self._waiting()}")
        return time.time()

    def drain(self, n: int) -> Drained:
        start = time.time()
        self.home.open_gate()
        return Drained(self.wait(n) - start, None)

    def traced(self, n: int) -> dict[str, str]:
        self._settings(1)
        return {"submit and run": f"{_loop(n, self.submit(TRUE))}; {self._waiting()}; tsp -K"}

    def down(self) -> None:
        self.home.clear()

    def _settings(self, slots: int) -> None:
        self.home.fresh()
        self.home.env.update(
            TS_SOCKET=f"{self.home.dir}/socket", TS_MAXFINISHED="100000", TS_MAXCONN="1000", TS_SLOTS=str(slots)
        )

    @staticmethod
    def _waiting() -> str:
        """`tsp -w` waits for the last job only, and with several slots that need not be the last to end."""
        return "while tsp | grep -qE '^[0-9]+ +(queued|running)'; do tsp -w >/dev/null; done"


class Parallel:
    """GNU parallel: one Perl program that runs a list; `sem` where a single submission is asked for."""

    name = "parallel"
    records = "--joblog and --results: stdout and stderr files, start, run time, exit, signal"
    most_queued = UNBOUNDED
    can_hold = True

    def __init__(self, scratch: Scratch) -> None:
        """The list is read by the run itself, so a queue exists only while that lives."""
        self.home, self.slots, self.held = Home(self.name, scratch), 1, False
        self.running: list[Running] = []

    def missing(self) -> str:
        if reason := _absent("parallel"):
            return reason
        said = subprocess.run(["parallel", "--version"], capture_output=True, text=True, check=False).stdout
        return "" if said.startswith("GNU parallel") else "the `parallel` found is not GNU parallel"

    def version(self) -> str:
        return _package_version("parallel")

    def up(self, slots: int, *, held: bool) -> None:
        self.home.fresh()
        self.slots, self.held, self.running = slots, held, []
        os.makedirs(f"{self.home.dir}/.parallel")
        with open(f"{self.home.dir}/.parallel/will-cite", "w", encoding="ascii"):
            pass

    def submit(self, job: str) -> str:
        return f"sem --id bench -j{self.slots} {job}"

    def queue(self, n: int, job: str) -> None:
        with open(f"{self.home.dir}/list", "w", encoding="ascii") as file:
            file.write(f"{job}\n" * n)
        if not self.held:
            self.running.append(self.home.background(self._run()))

    def wait(self, n: int) -> float:
        for running in self.running:
            running.end(60 + n)
        return time.time()

    def drain(self, n: int) -> Drained:
        return Drained(self.home.sh(self._run(), 60 + n), None)

    def traced(self, n: int) -> dict[str, str]:
        self.up(1, held=True)
        self.queue(n, TRUE)
        return {"run a list": self._run()}

    def down(self) -> None:
        self.home.clear()

    def _run(self) -> str:
        return f"exec parallel -j{self.slots} --joblog log --results out/r <list >/dev/null"


class At:
    """`at`: a file a job, started by atd at once; it knows no slots, so its rows compare with nothing but the floor."""

    name = "at"
    records = "nothing (mail); no limit on how many run at a time"
    most_queued = UNBOUNDED
    can_hold = False

    def __init__(self, scratch: Scratch) -> None:
        """Its spool is where the distribution put it, whatever the scratch directory."""
        self.home = Home(self.name, scratch)

    def missing(self) -> str:
        if reason := _absent("at") or _absent("atd"):
            return reason
        if os.geteuid():
            return "atd needs root"
        if self._left():
            return f"{ATJOBS} holds somebody's jobs: left alone"
        pids = (name for name in os.listdir("/proc") if name.isdigit())
        return "an atd runs already: left alone" if any(_comm(pid) == "atd" for pid in pids) else ""

    def version(self) -> str:
        return _package_version("at")

    def up(self, slots: int, *, held: bool) -> None:
        assert slots
        assert not held
        self.home.fresh()
        self.home.background("exec atd -f -l 1000")
        time.sleep(0.5)

    def submit(self, job: str) -> str:
        return f"echo '{job}' | at -M now 2>/dev/null"

    def queue(self, n: int, job: str) -> None:
        self.home.sh(_loop(n, self.submit(job)))

    def wait(self, n: int) -> float:
        until(lambda: not self._left(), 60 + n, "at: jobs left")
        return time.time()

    def drain(self, n: int) -> Drained:
        raise NotImplementedError(n)

    def traced(self, n: int) -> dict[str, str]:
        raise NotImplementedError(n)

    def down(self) -> None:
        self.home.clear()
        for name in self._left():  # `missing` saw to it that there were none before
            os.unlink(f"{ATJOBS}/{name}")

    @staticmethod
    def _left() -> list[str]:
        return [name for name in os.listdir(ATJOBS) if name[0] in "a="]


def _loop(n: int, command: str) -> str:
    return f"i=0; while [ $i -lt {n} ]; do {command} || exit 9; i=$((i+1)); done"


def _absent(program: str) -> str:
    return "" if shutil.which(program) else f"no `{program}` on the PATH"


def _comm(pid: str) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def _package_version(package: str) -> str:
    if not shutil.which("dpkg-query"):
        return "unknown"
    asked = subprocess.run(["dpkg-query", "-W", "-f=${Version}", package], capture_output=True, text=True, check=False)
    return asked.stdout or "unknown"
