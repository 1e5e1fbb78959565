"""
What the package finds in place of `os`, `time`, `host`, `select`, ...: the machine of the process that runs.

`fsops` makes all system calls on the spool; a few rooms beside it keep files on the node's own disk
or look at a clock. Each gets a stand-in for the module it uses, for the time of a run.
"""

import contextlib
import functools
import importlib
import itertools
import os
import pkgutil
import time
from collections.abc import Iterator
from typing import Any

import spoolq
from spoolq import array, daemon, fsops, host, mount, presence, recover, request, rerun, steer, tally
from tests.sim.client import FIRST_FD
from tests.sim.disk import Disk
from tests.sim.kernel import Kernel

EPOCH = 1.8e9
READABLE = {"wake": 3, "family": 4}


class Process:
    """What belongs to one process: its machine, its number, its open files."""

    def __init__(self, machine: Any, pid: int) -> None:
        self.machine, self.pid = machine, pid
        self.fds: set[int] = set()
        self.counter = itertools.count()
        self.chance = machine.rng("process", pid)
        self.on_death: Any = None

    def process_died(self, actor: Any) -> None:
        """Killed in the middle of a system call."""
        actor.dead = True
        self.gone()

    def gone(self) -> None:
        """Its kernel closes what it had open."""
        self.machine.client.left_open(self.fds)
        self.fds = set()
        if self.on_death:
            self.on_death()


class Seam:
    """The kernel whose run is on, for the stand-ins."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    @property
    def process(self) -> Process:
        """Of the actor that runs."""
        assert self.kernel.me is not None
        found: Process = self.kernel.me.context
        return found

    @property
    def machine(self) -> Any:
        """The same."""
        return self.process.machine


class SimOs:
    """`os`: by path or descriptor to the mount or to the machine's own disk."""

    path = os.path

    def __init__(self, seam: Seam) -> None:
        self.seam = seam

    def __getattr__(self, name: str) -> Any:
        if name.startswith("O_") or name in ("strerror", "getuid", "fsencode", "fsdecode", "environ"):
            value = getattr(os, name)
            setattr(self, name, value)
            return value
        seam = self.seam
        by_fd = name in ("write", "read", "fsync", "close", "fstat", "set_blocking", "dup")

        def call(first: Any, *rest: Any, **options: Any) -> Any:
            machine = seam.machine
            if seam.kernel.me.dead:  # type: ignore[union-attr]
                seam.kernel.sleep(0)
            on_spool = first >= FIRST_FD if by_fd else (rest[0] if name == "symlink" else first).startswith("/spool")
            return getattr(machine.client if on_spool else machine.disk, name)(first, *rest, **options)

        setattr(self, name, call)
        return call

    def getpid(self) -> int:
        return self.seam.process.pid

    def getloadavg(self) -> tuple[float, float, float]:
        return (0.0, 0.0, 0.0)


class SimTime:
    """`time`: the clocks of the machine."""

    def __init__(self, seam: Seam) -> None:
        self.seam = seam

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    def monotonic(self) -> float:
        return float(self.seam.machine.clock())

    def monotonic_ns(self) -> int:
        return int(self.seam.machine.clock() * 1e9)

    def time(self) -> float:
        return float(self.seam.machine.wall())

    def time_ns(self) -> int:
        return int(self.seam.machine.wall() * 1e9)

    def gmtime(self, seconds: float | None = None) -> Any:
        return time.gmtime(self.seam.machine.wall() if seconds is None else seconds)

    def sleep(self, seconds: float) -> None:
        self.seam.kernel.sleep(seconds)


class SimPoll:
    """`select`, and its own poll object."""

    POLLIN, POLLOUT = 1, 4

    def __init__(self, seam: Seam) -> None:
        self.seam = seam

    def poll(self, *milliseconds: float) -> Any:
        if not milliseconds:
            return self
        kernel, machine = self.seam.kernel, self.seam.machine
        kernel.sleep(0.001)  # a turn costs something
        if not machine.readable() and milliseconds[0] > 0:
            kernel.sleep(milliseconds[0] / 1000 * machine.drowsy, wakeable=True)
        return []

    def register(self, fd: int, mask: int) -> None:
        return None


class Wake:
    """`wake.Wake`: rung by changes made on this machine."""

    def __init__(self) -> None:
        self.rang = False

    def fileno(self) -> int:
        return READABLE["wake"]

    def clear(self) -> bool:
        rang, self.rang = self.rang, False
        return rang

    def close(self) -> None:
        return None


class Scratch:
    """`local.Scratch` without directories."""

    def __init__(self, state_dir: str) -> None:
        self._number = itertools.count()

    def adopt(self, used: set[str]) -> None:
        return None

    def take(self) -> str:
        return f"/tmp/{next(self._number)}"

    def give_back(self, path: str) -> None:
        return None


class Family:
    """`channel.Family`: whoever is the runner of the machine."""

    def __init__(self, seam: Seam) -> None:
        self.seam = seam

    def connect(self, state_dir: str) -> Any:
        return self.seam.machine.connect()


class Counter:
    """`fsops._counter`: each process has its own."""

    def __init__(self, seam: Seam) -> None:
        self.seam = seam

    def __next__(self) -> int:
        return next(self.seam.process.counter)


class Chance:
    """`random` and `secrets`."""

    def __init__(self, seam: Seam) -> None:
        self.seam = seam

    def uniform(self, low: float, high: float) -> float:
        return float(self.seam.process.chance.uniform(low, high))

    def token_hex(self, count: int) -> str:
        return f"{self.seam.process.chance.getrandbits(8 * count):0{2 * count}x}"


def _host(seam: Seam) -> dict[str, Any]:
    return {
        "boottime": lambda: seam.machine.clock(),
        "boot_id": lambda: seam.machine.boot_id(),
        "machine_id": lambda: seam.machine.machine_id,
        "host_name": lambda: seam.machine.name,
        "is_remote_device": lambda device: not seam.machine.client.local,
        "process_identity": lambda pid: pid * 7,
        "labels": lambda: {"arch": "sim", "os": "sim"},
        "file_system": lambda path, **_: _Kind(),
    }


class _Kind:
    kind, remote = "nfs", True


def _sizes(count: int, _workers: int = 0) -> list[int]:
    """`array.sizes`, whose first chunk of several tasks is of an array with more than 300: 7 in parts of 4, 2 and 1."""
    found = []
    while count:
        found.append(-(-count // 2))
        count -= found[-1]
    return found


def _replacements(seam: Seam) -> Iterator[tuple[Any, str, Any]]:
    clock, system, chance, poll = SimTime(seam), SimOs(seam), Chance(seam), SimPoll(seam)
    for info in pkgutil.iter_modules(spoolq.__path__):  # no room sees the real clock
        module = importlib.import_module(f"spoolq.{info.name}")
        if vars(module).get("time") is time:
            yield module, "time", clock
    for name in ("fsops", "claims", "recover", "presence", "roster", "daemon", "spool", "steer", "intake", "chunk"):
        module = importlib.import_module(f"spoolq.{name}")
        if hasattr(module, "os"):
            yield module, "os", system
    for name in ("claims", "recover", "presence"):
        module = importlib.import_module(f"spoolq.{name}")
        yield module, "open", lambda path, mode="r", **kw: seam.machine.disk.open_text(path, mode, **kw)
    for name, value in _host(seam).items():
        yield host, name, value
    yield fsops, "_counter", Counter(seam)
    yield daemon, "random", chance
    yield presence, "secrets", chance
    yield daemon, "select", poll
    yield recover, "select", poll
    yield daemon, "Family", Family(seam)
    yield daemon, "Scratch", Scratch
    yield steer, "writer", lambda: f"cli-{seam.machine.name}"
    yield array, "sizes", _sizes
    yield request, "warn", lambda message: None
    yield mount, "here_alone", lambda directory, root: False  # it looks at the real file system
    for owner in (rerun.Known, tally.Tally):
        for found in vars(owner).values():
            # before Python 3.12 it has one lock for all objects, and each of our daemons would wait for another's
            if isinstance(found, functools.cached_property):
                yield found, "lock", contextlib.nullcontext()


@contextlib.contextmanager
def in_place(kernel: Kernel) -> Iterator[Seam]:
    """The stand-ins, for a while."""
    seam, before = Seam(kernel), []
    missing = object()
    try:
        for module, name, value in _replacements(seam):
            before.append((module, name, vars(module).get(name, missing)))
            setattr(module, name, value)
        yield seam
    finally:
        for module, name, value in reversed(before):
            if value is missing:
                delattr(module, name)
            else:
                setattr(module, name, value)


__all__ = ["Disk", "Process", "Seam", "Wake", "in_place"]
