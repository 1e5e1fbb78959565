"""
Facts of this machine: who it is, its clocks, what it has and how much of that is free, what a path lies on.

Invariant: reads only; a machine's identity survives a change of its name.
Never looks at the processes of jobs: what they use is told by the caller.
Plain /proc and not psutil: importing psutil takes some 30 ms, more than a whole `sub`, and each reading
is 3 to 5 times dearer; the figures here are lines of two stable files. `probe` has time: it compares
both, so that a kernel that means something else is found by `spoolq doctor`. The age of a process is
read in clock ticks since boot, as psutil's is a float that moves when somebody sets the clock.
"""

import contextlib
import functools
import hashlib
import math
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass

from spoolq.mount import REMOTE
from spoolq.resources import CPUS, MEM, UNIT, show_amount, show_mb
from spoolq.smooth import smoothed

Finding = tuple[str, str, str, str]  # level (ok, warning, error), what, text, remedy (may be empty)

FRESH_S = 0.2  # for so long a reading of available memory is used again
KB, MB = 1024, 1 << 20

_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")
_OCTAL = re.compile(r"\\([0-7]{3})")
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSystem:
    """What a path lies on; `kind` is empty where it is unknown. `options` of mount and superblock; `device` as 0:45."""

    kind: str
    source: str = ""
    mount_point: str = ""
    options: tuple[str, ...] = ()
    device: str = ""

    @property
    def remote(self) -> bool:
        """Whether it comes over a network, and so may hang or lie."""
        return REMOTE.fullmatch(self.kind) is not None


def _read(path: str) -> str:
    """A file of the kernel's, whole (one read gives a page of some), or an empty text."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.readall().decode("utf-8", "surrogateescape")
    except OSError:
        return ""


# --- identity and clocks


def host_name() -> str:
    """The short name of this machine, in letters that file names and entries take."""
    return _UNSAFE.sub("-", os.uname().nodename.partition(".")[0]).strip("-")[:63] or "node"


def node_name() -> str:
    """The name of the node on this machine unless the site says otherwise."""
    return host_name()


@functools.cache
def machine_id(root: str = "") -> str:
    """
    An id that stays with this installation, hashed as machine-id(5) asks; empty if it has none.

    The firmware's uuid, which only root can read, tells apart machines cloned from one image.

    Args:
        root: of the tree to read, for tests.
    """
    text = _read(f"{root}/etc/machine-id").strip() or _read(f"{root}/var/lib/dbus/machine-id").strip()
    if len(text) < 16 or text == "uninitialized":
        return ""
    firmware = _read(f"{root}/sys/class/dmi/id/product_uuid").strip().lower()
    return hashlib.sha256(f"spoolq {text} {firmware}".encode("utf-8", "surrogateescape")).hexdigest()[:32]


@functools.cache
def boot_id() -> str:
    """The id of this boot of the kernel; empty if it has none."""
    return _read("/proc/sys/kernel/random/boot_id").strip()


def boottime() -> float:
    """Seconds since boot, those in suspension included, so that no lease outlives a closed lid."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def process_identity(pid: int) -> int | None:
    """When a process began, in clock ticks since boot: with the pid and boot id an identity. None if gone."""
    # after the last parenthesis, since a program may call itself anything
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return int(fields[19]) if len(fields) > 19 else None


def labels() -> dict[str, str]:
    """`arch`, `os`, `kernel` and `host` of this machine."""
    system = os.uname()
    return {"arch": system.machine, "os": system.sysname.lower(), "kernel": system.release, "host": host_name()}


# --- what it has


def capacity(root: str = "") -> dict[str, int]:
    """
    Cpus and memory that this process may use: the machine's, its affinity's or its cgroup's, the smallest.

    Args:
        root: of the tree to read, for tests.
    """
    cpus = len(os.sched_getaffinity(0)) * UNIT
    memory = _meminfo(root).get("MemTotal", 0)
    for directory in _cgroups(root):
        cpus = min(cpus, _quota(directory) or cpus)
        memory = min(memory, _memory_limit(directory) or memory)
    return {CPUS: cpus, MEM: memory // MB * UNIT}


def _meminfo(root: str = "") -> dict[str, int]:
    """Bytes by name."""
    found = {}
    for line in _read(f"{root}/proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if words and words[0].isdigit():
            found[name] = int(words[0]) * KB
    return found


def _cgroups(root: str = "") -> list[str]:
    """The directories of this process's cgroups and of all above them, v2 and v1 (cpu, memory)."""
    mounts: dict[str, tuple[str, str]] = {}
    for system, below in _mounts(root):
        if system.kind == "cgroup2":
            mounts[""] = (system.mount_point, below)
        elif system.kind == "cgroup":
            for controller in {"cpu", "memory"}.intersection(system.options):
                mounts[controller] = (system.mount_point, below)
    found = []
    for line in _read(f"{root}/proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for controller in {"", "cpu", "memory"}.intersection(controllers.split(",")):
            top, below = mounts.get(controller, ("", ""))
            if not top:
                continue
            # in a container the mount may show a part of the tree, or the path lead out of what is seen
            inside = path[len(below) :] if below != "/" and path.startswith(below) else path
            parts = [part for part in inside.split("/") if part and part != ".."]
            found += [f"{root}{top}/" + "/".join(parts[:depth]) for depth in range(len(parts), -1, -1)]
    return [path for path in dict.fromkeys(found) if os.path.isdir(path)]


def _quota(directory: str) -> int | None:
    """The cpus that a cgroup may use, thousandths, or None."""
    words = _read(f"{directory}/cpu.max").split()
    if not words:
        words = [_read(f"{directory}/cpu.cfs_quota_us").strip(), _read(f"{directory}/cpu.cfs_period_us").strip()]
    if len(words) < 2 or not all(word.isdigit() for word in words) or int(words[1]) == 0:
        return None  # max, or -1
    return max(1, int(words[0]) * UNIT // int(words[1]))


def _memory_limit(directory: str) -> int | None:
    """The bytes that a cgroup may use, or None; v1 writes an absurd number for no limit."""
    text = _read(f"{directory}/memory.max").strip() or _read(f"{directory}/memory.limit_in_bytes").strip()
    return int(text) if text.isdigit() and int(text) < 1 << 62 else None


def _memory_limits(root: str = "") -> list[tuple[str, int]]:
    """The cgroups that limit this process's memory, with their limits in bytes."""
    return [(path, limit) for path in _cgroups(root) if (limit := _memory_limit(path))]


def _memory_free(directory: str, limit: int) -> int:
    """What a limited cgroup has left, page cache that can go counted as free; bytes."""
    used = _read(f"{directory}/memory.current").strip() or _read(f"{directory}/memory.usage_in_bytes").strip()
    stat = dict(line.partition(" ")[::2] for line in _read(f"{directory}/memory.stat").splitlines())
    cache = stat.get("total_inactive_file") or stat.get("inactive_file") or "0"
    return max(0, limit - int(used or 0) + int(cache))


class Meter:
    """
    What processes outside spoolq leave of this machine, smoothed.

    `sample` every few seconds with what spoolq's own family and jobs have used; until there are two
    samples nothing is known of the cpus. Only cpus that this process may run on are looked at.
    """

    def __init__(self, root: str = "") -> None:
        """Nothing is measured yet; `root` is of the tree to read, for tests."""
        self._root = root
        self._cpus = {f"cpu{number}" for number in os.sched_getaffinity(0)}
        self._limits = _memory_limits(root)
        self._total_mb = min([_meminfo(root).get("MemTotal", 0), *(limit for _, limit in self._limits)]) // MB
        self._last: tuple[float, float, float] | None = None
        self._foreign: float | None = None
        self._foreign_mb: float | None = None
        self._available = (-math.inf, 0)

    def sample(self, own_cpu_s: float, own_mb: float = 0.0) -> None:
        """
        Measure cpus and memory.

        Args:
            own_cpu_s: used so far by spoolq and its jobs, running and ended; should be as of now.
            own_mb: held by its jobs now.
        """
        now = boottime()
        foreign_mb = max(0.0, self._total_mb - self._available_bytes() / MB - own_mb)
        span_s = now - self._last[0] if self._last else 0.0
        self._foreign_mb = smoothed(self._foreign_mb, foreign_mb, max(0.0, span_s))
        self.feed(now, self._busy_s(), own_cpu_s)

    def feed(self, now: float, busy_s: float, own_s: float) -> None:
        """One sample: clock (s) and cpu seconds so far, of all processes and of spoolq's."""
        if self._last is None or own_s < self._last[2]:  # a new family counts from 0 again
            self._last = (now, busy_s, own_s)
            return
        span = now - self._last[0]
        if span < 0.1:
            return  # too short to say anything: ticks are 10 ms
        foreign = ((busy_s - self._last[1]) - (own_s - self._last[2])) / span
        # what is negative evens out what a late report made too large before
        foreign = max(-float(len(self._cpus)), min(foreign, float(len(self._cpus))))
        self._foreign = smoothed(self._foreign, foreign, span)
        self._last = (now, busy_s, own_s)

    @property
    def cpus(self) -> int:
        """Cpus that are looked at, thousandths."""
        return len(self._cpus) * UNIT

    @property
    def foreign_cpus(self) -> float | None:
        """Cpus that others keep busy, or None if not known yet."""
        return None if self._foreign is None else max(0.0, self._foreign)

    @property
    def available_mb(self) -> int:
        """Memory that is available to anybody now, MB."""
        return self._available_bytes() // MB

    def measured(self, own_mb: int = 0) -> dict[str, int]:
        """
        For `schedule.effective_free`: cpus that others leave (if known), memory that is available; thousandths.

        Memory that others take counts at once, what they give back is believed smoothed.

        Args:
            own_mb: held by jobs, as told last.
        """
        available = self.available_mb
        if self._foreign_mb is not None:
            available = max(0, min(available, int(self._total_mb - self._foreign_mb - own_mb)))
        found = {MEM: available * UNIT}
        foreign = self.foreign_cpus
        if foreign is not None:
            found[CPUS] = max(0, len(self._cpus) * UNIT - round(foreign * UNIT))
        return found

    def facts(self) -> dict[str, float | int | None]:
        """For people and node.json."""
        foreign = self.foreign_cpus
        return {
            "foreign_cpus": None if foreign is None else round(foreign, 1),
            "available_mb": self.available_mb,
        }

    def _busy_s(self) -> float:
        """Cpu seconds that anybody used, since boot. Waiting for disks is idle; what a hypervisor takes is not."""
        busy = 0
        for line in _read(f"{self._root}/proc/stat").splitlines():
            if not line.startswith("cpu"):
                break  # the long line of interrupts comes after the cpus
            name, *fields = line.split()
            if name in self._cpus:
                user, nice, system, _idle, _wait, irq, soft, steal = map(int, fields[:8])
                busy += user + nice + system + irq + soft + steal  # guests are part of user
        return busy / _TICKS

    def _available_bytes(self) -> int:
        now = time.monotonic()
        if now - self._available[0] > FRESH_S:
            left = [_meminfo(self._root).get("MemAvailable", 0)]
            left += [_memory_free(path, limit) for path, limit in self._limits]
            self._available = (now, min(left))
        return self._available[1]


# --- what a path lies on


def file_system(path: str, *, touch: bool = True, root: str = "") -> FileSystem:
    """
    The file system of a path, from the table of mounts.

    Args:
        touch: whether links in the path are followed, which asks the file system, and hangs with it.
    """
    whole = os.path.realpath(path) if touch else os.path.abspath(path)
    best = FileSystem(kind="")
    for system, _ in _mounts(root):
        point = system.mount_point
        if (whole == point or whole.startswith(point.rstrip("/") + "/")) and len(point) >= len(best.mount_point):
            best = system  # of two on one point the later covers the earlier
    return best


@functools.lru_cache(maxsize=64)
def is_remote_device(device: int) -> bool:
    """Whether files of this `st_dev` come over a network; the table of mounts is read when it is first asked."""
    number = f"{os.major(device)}:{os.minor(device)}"
    return not os.major(device) and any(system.remote for system, _ in _mounts() if system.device == number)


def _mounts(root: str = "") -> Iterator[tuple[FileSystem, str]]:
    """Each mount, and which part of its file system it shows; proc_pid_mountinfo(5)."""
    for line in _read(f"{root}/proc/self/mountinfo").splitlines():
        first, _, second = line.partition(" - ")
        fields, more = first.split(), second.split()
        if len(fields) >= 6 and len(more) >= 2:
            options = (*fields[5].split(","), *(more[2].split(",") if len(more) > 2 else ()))
            plain = [_OCTAL.sub(lambda m: chr(int(m[1], 8)), word) for word in (fields[3], fields[4], more[1])]
            about = {"kind": more[0], "source": plain[2], "mount_point": plain[1], "device": fields[2]}
            yield FileSystem(**about, options=options), plain[0]


# --- doctor


def probe() -> list[Finding]:
    """Try on this machine what this module takes for granted."""
    findings: list[Finding] = []
    if boot_id() and machine_id():
        findings.append(("ok", "identity", f"node {node_name()}, machine {machine_id()[:8]}, boot {boot_id()[:8]}", ""))
    else:
        what = "machine-id" if boot_id() else "boot id"
        remedy = "run systemd-machine-id-setup; until then only an operator's word proves that this node died"
        findings.append(("warning", "identity", f"this machine has no {what}", remedy))
    if host_name() in ("localhost", "node"):
        remedy = "give each machine its own name, or set one with spoolq node --name"
        findings.append(("warning", "name", f"the machine calls itself {os.uname().nodename!r}", remedy))
    with contextlib.suppress(OSError):
        findings.append(("ok", "clock", f"up for {boottime() / 3600:.1f} h, suspension included", ""))
    if process_identity(os.getpid()) is None:
        findings.append(("error", "processes", "/proc cannot be read", "mount it"))
    return [*findings, *_probe_capacity()]


def _probe_capacity() -> list[Finding]:
    mine, memory = capacity(), _meminfo()
    whole = {CPUS: (os.cpu_count() or 1) * UNIT, MEM: memory.get("MemTotal", 0) // MB * UNIT}
    text = f"{show_amount(mine[CPUS])} cpus, {show_mb(mine[MEM])} memory"
    if mine != whole:
        text += f" (of {show_amount(whole[CPUS])} cpus, {show_mb(whole[MEM])}: affinity or cgroup allow no more)"
    findings: list[Finding] = [("ok", "capacity", text, "")]
    if "MemAvailable" not in memory:
        findings.append(("error", "memory", "the kernel does not say what is available", "use Linux 3.14 or newer"))
    try:
        import psutil
    except ImportError:
        return [*findings, ("warning", "psutil", "cannot be imported", "pip install psutil")]
    theirs, available = psutil.virtual_memory(), memory.get("MemAvailable", 0)
    # memory moves between two readings, so only a gross difference means anything
    if theirs.total != memory.get("MemTotal") or abs(theirs.available - available) > 1 << 30:
        findings.append(("warning", "memory", "psutil counts it differently; load may be misjudged", "report this"))
    else:
        limited = [show_mb(limit // MB * UNIT) for _, limit in _memory_limits() if limit < theirs.total]
        text = f"{show_mb(available // MB * UNIT)} available" + (f", cgroup limit {limited[0]}" if limited else "")
        findings.append(("ok", "memory", text, ""))
    return findings
