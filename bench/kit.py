"""
Measure what a set of processes costs, beside a floor taken in the same breath.

A shared machine can halve its speed between two minutes, so no figure here stands alone: every
phase brings its own `floor`, a bare posix_spawn + wait4 of /bin/true, and figures are compared as
shares of it. CPU is that of a whole family, daemons included: by a cgroup of its own where one can
be made, else by /proc and the rusage of what was reaped.
Invariant: only processes that carry this run's mark, or sit in its own cgroup, are ever ended.
"""

import contextlib
import ctypes
import os
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

TRUE = "/bin/true"
MARK = "BENCH_FAMILY"  # in the environment of every process of a family; spoolq drops SPOOLQ_* from that of jobs
CGROUP_ROOTS = ("/sys/fs/cgroup/cpuacct", "/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup")
PR_SET_CHILD_SUBREAPER = 36  # from <sys/prctl.h>
TICK_S = 1 / os.sysconf("SC_CLK_TCK")
# The shell enters the cgroup (10 to 20 ms: the kernel waits for a grace period) and then waits for
# a line, so that the clock can start with nothing left to do but the exec.
STARTER = 'read -r _; exec "$@" </dev/null'


@dataclass(frozen=True, slots=True)
class Cost:
    """What one thing took: wall and CPU (user + system) in seconds."""

    wall_s: float
    cpu_s: float


@dataclass(frozen=True, slots=True)
class Stats:
    """n repetitions of one figure."""

    n: int
    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Stats":
        """Sum up n values, n >= 1."""
        return cls(len(values), statistics.median(values), min(values), max(values))

    def scaled(self, factor: float) -> "Stats":
        """Return the same in another unit."""
        return Stats(self.n, self.median * factor, self.low * factor, self.high * factor)


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory of a family in KiB: PSS shares out a page among those that map it, RSS counts it for each."""

    processes: int
    rss_kib: int
    pss_kib: int


def floor(n: int = 300) -> Cost:
    """Time one bare posix_spawn + wait4 of /bin/true (mean of n): the yardstick of this very moment."""
    wall, cpu = time.perf_counter(), own_cpu_s()
    for _ in range(n):
        os.wait4(os.posix_spawn(TRUE, [TRUE], os.environ), 0)
    return Cost((time.perf_counter() - wall) / n, (own_cpu_s() - cpu) / n)


def mean_cost(first: Cost, second: Cost) -> Cost:
    """Return the mean of the floors taken before and after a phase."""
    return Cost((first.wall_s + second.wall_s) / 2, (first.cpu_s + second.cpu_s) / 2)


def own_cpu_s() -> float:
    """Return the CPU seconds of this process and of the children that it has waited for."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def timed(argv: Sequence[str], env: Mapping[str, str]) -> Cost:
    """
    Run one command to its end, output discarded: its wall time, and the CPU of it and what it waited for.

    Raises:
        RuntimeError: the command failed.
    """
    null = os.open(os.devnull, os.O_RDWR)
    try:
        start = time.perf_counter()
        actions = [(os.POSIX_SPAWN_DUP2, null, fd) for fd in (0, 1, 2)]
        _, status, usage = os.wait4(os.posix_spawnp(argv[0], list(argv), dict(env), file_actions=actions), 0)
        wall_s = time.perf_counter() - start
    finally:
        os.close(null)
    if status:
        raise RuntimeError(f"{' '.join(argv)[:200]}: wait status {status}")
    return Cost(wall_s, usage.ru_utime + usage.ru_stime)


class Family:
    """The processes of one peer: started here, marked, counted, measured and at last ended."""

    def __init__(self, tag: str) -> None:
        """Make the family's cgroup, or fall back to sampling (said by `accounting`)."""
        self.mark = f"{tag}-{os.getpid()}"
        self.started: list[subprocess.Popen[str]] = []
        self.cgroup, self.cgroup_root = _own_cgroup(f"spoolq-bench-{self.mark}")
        if not self.cgroup:  # orphans come back to this process and so into its rusage
            ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    @property
    def accounting(self) -> str:
        """Say how CPU is counted."""
        return f"cgroup {self.cgroup_root}" if self.cgroup else "rusage and /proc (10 ms ticks)"

    def start(self, argv: Sequence[str], *, env: Mapping[str, str], cwd: str, log: str) -> Callable[[], "Running"]:
        """Prepare a command inside the family; calling what is returned starts it with the clock."""
        with open(log, "a", encoding="utf-8") as output:
            process = subprocess.Popen(
                ["/bin/sh", "-c", STARTER, "sh", *argv],
                cwd=cwd,
                env={**env, MARK: self.mark},
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                text=True,
                preexec_fn=self._adopt,  # noqa: PLW1509 - single-threaded, and the cgroup must come first
            )
        self.started.append(process)

        def go() -> Running:
            assert process.stdin is not None
            running = Running(process, time.time(), time.perf_counter(), log)
            process.stdin.write("\n")
            process.stdin.close()
            return running

        return go

    def run(self, argv: Sequence[str], *, env: Mapping[str, str], cwd: str, log: str, limit_s: float = 300) -> float:
        """Run a command inside the family to its end: its wall time in seconds."""
        return self.start(argv, env=env, cwd=cwd, log=log)().end(limit_s)

    def cpu_s(self) -> float:
        """Return the CPU seconds of the family so far: meaningful as a difference over a phase."""
        if not self.cgroup:
            self._reap_orphans()
            return own_cpu_s() + sum(_ticks(pid) * TICK_S for pid in self.members())
        if os.path.exists(f"{self.cgroup}/cpuacct.usage"):
            return int(_read(f"{self.cgroup}/cpuacct.usage")) / 1e9
        lines = dict(line.split() for line in _read(f"{self.cgroup}/cpu.stat").splitlines())
        return int(lines["usage_usec"]) / 1e6

    def members(self) -> list[int]:
        """List the family's living processes: by cgroup, and by mark for what has left the cgroup."""
        pids = {int(word) for word in _read(f"{self.cgroup}/cgroup.procs").split()} if self.cgroup else set()
        wanted = f"{MARK}={self.mark}".encode()
        for name in os.listdir("/proc"):
            if name.isdigit() and int(name) not in pids and wanted in _read_bytes(f"/proc/{name}/environ").split(b"\0"):
                pids.add(int(name))
        return sorted(pids - {os.getpid()})

    def end(self) -> None:
        """End what is left of the family, politely at first."""
        for signum in (signal.SIGTERM, signal.SIGKILL, signal.SIGKILL):
            members = self.members()
            for pid in members:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signum)
            for _ in range(30):
                for process in self.started:
                    process.poll()
                if not self.members():
                    break
                time.sleep(0.05)
        self.started.clear()

    def remove(self) -> None:
        """End everything and remove the cgroup."""
        self.end()
        if self.cgroup:
            with contextlib.suppress(OSError):
                os.rmdir(self.cgroup)

    def _adopt(self) -> None:
        os.setsid()
        if self.cgroup:
            with open(f"{self.cgroup}/cgroup.procs", "w", encoding="ascii") as file:
                file.write(str(os.getpid()))

    def _reap_orphans(self) -> None:
        """Wait for zombies that came back to this process and belong to no Popen."""
        known = {process.pid for process in self.started}
        for name in os.listdir("/proc"):
            fields = _stat_fields(name) if name.isdigit() else []
            if fields and fields[0] == "Z" and int(fields[1]) == os.getpid() and int(name) not in known:
                os.waitpid(int(name), os.WNOHANG)


@dataclass(frozen=True, slots=True)
class Running:
    """A command that runs: `since` is its start by the wall clock (s since the epoch)."""

    process: subprocess.Popen[str]
    since: float
    since_monotonic: float
    log: str

    def end(self, limit_s: float) -> float:
        """
        Wait for the command: its wall time in seconds.

        Raises:
            RuntimeError: it failed, or took longer than `limit_s`.
        """
        try:
            status = self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"no end in {limit_s:g} s: {_tail(self.log)}") from None
        if status:
            raise RuntimeError(f"status {status}: {_tail(self.log)}")
        return time.perf_counter() - self.since_monotonic


def memory(pids: Sequence[int]) -> Memory:
    """Sum the memory of some processes; those that ended meanwhile count nothing."""
    sums = {"Rss:": 0, "Pss:": 0}
    counted = 0
    for pid in pids:
        lines = [line.split() for line in _read(f"/proc/{pid}/smaps_rollup").splitlines()]
        counted += bool(lines)
        for words in lines:
            if words[0] in sums:
                sums[words[0]] += int(words[1])
    return Memory(counted, sums["Rss:"], sums["Pss:"])


def name_of(pid: int) -> str:
    """Return the kernel's short name of a process, or nothing if it is gone."""
    return _read(f"/proc/{pid}/comm").strip()


def until(done: Callable[[], bool], limit_s: float, what: str, pause_s: float = 0.05) -> None:
    """
    Look now and then until something is so.

    Raises:
        RuntimeError: it was not so after `limit_s`.
    """
    end = time.monotonic() + limit_s
    while not done():
        if time.monotonic() > end:
            raise RuntimeError(f"{what}: not within {limit_s:g} s")
        time.sleep(pause_s)


@contextlib.contextmanager
def said(what: str) -> Iterator[None]:
    """Tell a person what was done and how long it took."""
    start = time.monotonic()
    try:
        yield
    finally:
        print(f"  {what}: {time.monotonic() - start:.1f} s", file=sys.stderr, flush=True)


def _own_cgroup(name: str) -> tuple[str, str]:
    """Make a cgroup where CPU is counted: its path and its root, or two empty strings."""
    for root in CGROUP_ROOTS:
        path = f"{root}/{name}"
        if not os.path.exists(f"{root}/cgroup.procs"):
            continue
        try:
            os.makedirs(path, exist_ok=True)
        except OSError:
            continue
        if os.access(f"{path}/cgroup.procs", os.W_OK) and os.path.exists(f"{path}/cgroup.procs"):
            return path, root
    return "", ""


def _ticks(pid: int) -> int:
    """CPU clock ticks of a living process and of the children that it has reaped."""
    fields = _stat_fields(str(pid))
    return sum(int(field) for field in fields[11:15]) if fields else 0


def _stat_fields(name: str) -> list[str]:
    """Fields of /proc/<pid>/stat from the state on; the command before may hold anything."""
    return _read(f"/proc/{name}/stat").rpartition(")")[2].split()


def _read(path: str) -> str:
    return _read_bytes(path).decode(errors="replace")


def _read_bytes(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def _tail(path: str) -> str:
    return _read(path)[-600:]
