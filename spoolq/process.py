"""
What the operating system says about processes, and how trees of them are signalled.

A pid alone is never an identity: it is reused. Here a process is a pid and the clock ticks since
boot between which it was born (`/proc/PID/stat` field 22), or a pidfd whose birth was checked after
it was opened. An own child that nobody has waited for cannot lose its number, so it needs neither.
Invariant: no signal is sent by number to what is not an own, unreaped child.
It never knows what a job is; that a process belongs to one is told by its marker (bytes that its
environment contains), its session or its ancestors.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import signal
import struct
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple

TICK = os.sysconf("SC_CLK_TCK")  # ticks per second of every time in /proc/PID/stat
_PAGE_KB = os.sysconf("SC_PAGESIZE") // 1024
_PASSES = 50  # looks at a tree that grows while it is being stopped; then it is killed as it is

# raw waitid: the only call that gives status and rusage and leaves the zombie (same struct on all these)
_WAITID = {"x86_64": 247, "aarch64": 95, "riscv64": 95, "ppc64le": 272, "s390x": 281, "loongarch64": 95}
_number = _WAITID.get(os.uname().machine)
_libc = ctypes.CDLL(None, use_errno=True)
_syscall, _prctl = _libc.syscall, _libc.prctl
_syscall.restype = ctypes.c_long
_siginfo, _usage = ctypes.create_string_buffer(128), ctypes.create_string_buffer(144)
_read_siginfo, _read_usage = struct.Struct("iii4xiii").unpack_from, struct.Struct("18q").unpack_from
_LOOK = os.WEXITED | os.WNOHANG | os.WNOWAIT

_PIDFD_GET_INFO, _PIDFD_INFO_EXIT = 0xC040FF0B, 8  # linux/pidfd.h: _IOWR(0xFF, 11, 64 bytes); since 6.15
_SUBREAPER, _PDEATHSIG, _SET_NAME = 36, 1, 15  # linux/prctl.h


class Exit(NamedTuple):
    """
    How a child ended: exit code or signal, one of them None, and what it used with the children it waited for.

    `usage`: user s, system s, max RSS KiB, minor, major faults, blocks in, out, voluntary, involuntary switches.
    """

    pid: int
    code: int | None
    signal: int | None
    usage: tuple[float, float, int, int, int, int, int, int, int]


class Stat(NamedTuple):
    """One line of /proc/PID/stat; `born` in ticks since boot, `cpu` in ticks with waited-for children, `status` raw."""

    pid: int
    comm: str
    state: str
    parent: int
    group: int
    session: int
    born: int
    cpu: int
    rss_kb: int
    status: int


def become(name: str, *, wake: signal.Signals) -> None:
    """Take orphaned descendants in, be told of the parent's death by `wake`, and be called `name` in `ps`."""
    _prctl(_SUBREAPER, 1, 0, 0, 0)
    _prctl(_PDEATHSIG, int(wake), 0, 0, 0)
    _prctl(_SET_NAME, ctypes.c_char_p(name.encode()[:15]), 0, 0, 0)


def boottime() -> float:
    """Seconds since boot, with the time that the machine slept."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def ticks(boottime_s: float) -> int:
    """The tick of a boottime, comparable with `Stat.born`."""
    return int(boottime_s * TICK)


def boot_id() -> str:
    """The name of this boot of this machine."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def peek() -> Exit | None:
    """
    An ended own child, left as a zombie so that a crash of ours before `reap` loses nothing; None if there is none.

    Where the raw call is unknown the child is reaped at once, and its end is safe a few microseconds later.
    """
    if _number is None:
        return _wait4()
    ctypes.memset(_siginfo, 0, 24)
    if _syscall(_number, 0, 0, _siginfo, _LOOK, _usage) != 0:
        return None
    _, _, how, pid, _, status = _read_siginfo(_siginfo)
    if pid == 0:
        return None
    u = _read_usage(_usage)
    usage = (u[0] + u[1] / 1e6, u[2] + u[3] / 1e6, u[4], u[8], u[9], u[11], u[12], u[16], u[17])
    return Exit(pid, status, None, usage) if how == os.CLD_EXITED else Exit(pid, None, status, usage)


def _wait4() -> Exit | None:
    try:
        pid, status, u = os.wait4(-1, os.WNOHANG)
    except ChildProcessError:
        return None
    if pid == 0:
        return None
    usage = (u.ru_utime, u.ru_stime, u.ru_maxrss, u.ru_minflt, u.ru_majflt, u.ru_inblock, u.ru_oublock)
    return Exit(pid, *split(status), (*usage, u.ru_nvcsw, u.ru_nivcsw))


def split(status: int) -> tuple[int | None, int | None]:
    """(exit code, signal) of a raw wait status."""
    return (None, status & 0x7F) if status & 0x7F else (status >> 8 & 0xFF, None)


def reap(pid: int) -> None:
    """Let go of a child that `peek` showed; from here on its number may be another process's."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def read_stat(pid: int) -> Stat | None:
    """What /proc says of a process or zombie; None if there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            text = file.read(1024)
    except OSError:  # ENOENT, or ESRCH when it goes away meanwhile
        return None
    name, _, rest = text.partition(b"(")[2].rpartition(b")")
    f = rest.split()
    if len(f) < 22:
        return None
    cpu = int(f[11]) + int(f[12]) + int(f[13]) + int(f[14])
    status = int(f[49]) if len(f) > 49 else 0
    comm, state = name.decode(errors="replace"), f[0].decode()
    return Stat(pid, comm, state, int(f[1]), int(f[2]), int(f[3]), int(f[19]), cpu, int(f[21]) * _PAGE_KB, status)


def born(pid: int) -> int:
    """The birth tick of a process; -1 if there is none."""
    stat = read_stat(pid)
    return stat.born if stat else -1


def scan() -> dict[int, Stat]:
    """Every process of this pid namespace; some ms, so only for what happens rarely."""
    found = (read_stat(int(name)) for name in os.listdir("/proc") if name[0] in "123456789")
    return {stat.pid: stat for stat in found if stat}


def children(pid: int) -> list[int]:
    """The children of a single-threaded process, zombies too."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children", "rb", buffering=0) as file:
            return [int(word) for word in file.readall().split()]
    except FileNotFoundError:  # the process is gone, or a kernel without CONFIG_PROC_CHILDREN
        if not os.path.exists("/proc/self/task") or not os.path.exists(f"/proc/{pid}"):
            return []
        return [stat.pid for stat in scan().values() if stat.parent == pid]
    except OSError:
        return []


def environment(pid: int) -> dict[bytes, bytes]:
    """The environment that a process was started with; empty if it may not be read, or for a zombie."""
    try:
        with open(f"/proc/{pid}/environ", "rb", buffering=0) as file:
            text = file.readall()
    except OSError:
        return {}
    return {name: value for name, _, value in (word.partition(b"=") for word in text.split(b"\0"))}


def unborn(pid: int) -> bool:
    """
    Whether a process may still become a job: posix_spawn blocks all signals from its vfork to its exec (glibc, musl).

    In between it joins its own session. A process of the family is in this state for moments only.
    """
    try:
        with open(f"/proc/{pid}/status", "rb", buffering=0) as file:
            words = file.readall().split()
        return int(words[words.index(b"SigBlk:") + 1], 16) != 0
    except (OSError, ValueError, IndexError):
        return False


def in_exec(pid: int) -> bool:
    """Whether a living process has a new program and not yet its words and environment (Linux fs/proc/base.c)."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb", buffering=0) as file:
            return not file.read(1)
    except OSError:
        return False


def same_program(pid: int) -> bool:
    """Whether a process runs our own executable: a child between vfork and exec does."""
    try:
        return os.readlink(f"/proc/{pid}/exe") == os.readlink("/proc/self/exe")
    except OSError:
        return False


def tree(
    stats: Mapping[int, Stat], root: int, since: int, belongs: Callable[[int], bool], reapers: Collection[int]
) -> set[int]:
    """
    The pids of a tree: root, its session and group, orphans that belong to it, and all their descendants.

    Args:
        stats: a scan.
        root: the first process, leader of its session; alive or a zombie, or its number means nothing.
        since: tick of its birth; nothing older is in the tree.
        belongs: whether the environment of an orphan bears the tree's marker.
        reapers: to whom orphans are re-parented: our family, and pid 1 for what outlived a family.
    """
    below: dict[int, list[int]] = {}
    found: set[int] = set()
    for stat in stats.values():
        below.setdefault(stat.parent, []).append(stat.pid)
        if stat.born < since:
            continue
        mine = root in (stat.pid, stat.session, stat.group)
        if mine or (stat.parent in reapers and stat.pid not in reapers and belongs(stat.pid)):
            found.add(stat.pid)
    return with_descendants(found, below) - set(reapers)


def with_descendants(roots: Iterable[int], below: Mapping[int, list[int]]) -> set[int]:
    """Processes and all that descend from them; `below`: children by parent."""
    found: set[int] = set()
    todo = list(roots)
    while todo:
        pid = todo.pop()
        if pid not in found:
            found.add(pid)
            todo += below.get(pid, ())
    return found


class Handle:
    """
    A process that need not be our child, and certainly is the one that was meant.

    With a pidfd the number cannot mislead; on kernels before 5.3 the birth is checked at each use,
    which leaves a race of microseconds.
    """

    __slots__ = ("earliest", "fd", "latest", "pid")

    def __init__(self, pid: int, earliest: int, latest: int, fd: int) -> None:
        self.pid, self.earliest, self.latest, self.fd = pid, earliest, latest, fd

    @classmethod
    def open(cls, pid: int, earliest: int, latest: int) -> "Handle | None":
        """The process `pid` if it was born within these ticks, also as a zombie; None if it is gone."""
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            return None
        except OSError:
            fd = -1
        handle = cls(pid, earliest, latest, fd)
        if handle.stat() is None:  # the birth is looked at after the descriptor is held
            handle.close()
            return None
        return handle

    def stat(self) -> Stat | None:
        """What /proc says of it, None if it is gone."""
        stat = read_stat(self.pid)
        return stat if stat and self.earliest <= stat.born <= self.latest else None

    def send(self, number: int) -> bool:
        """Send a signal; False if it is gone or not ours to signal."""
        try:
            if self.fd >= 0:
                signal.pidfd_send_signal(self.fd, number)
            elif self.stat() is None:
                return False
            else:
                os.kill(self.pid, number)
        except (ProcessLookupError, PermissionError):
            return False
        return True

    def status(self) -> int | None:
        """The raw wait status of the ended process if the kernel still tells it to strangers (reaped: 6.15)."""
        info = bytearray(64)
        struct.pack_into("Q", info, 0, _PIDFD_INFO_EXIT)
        if self.fd >= 0:
            with contextlib.suppress(OSError):
                fcntl.ioctl(self.fd, _PIDFD_GET_INFO, info)
                if struct.unpack_from("Q", info, 0)[0] & _PIDFD_INFO_EXIT:
                    return int(struct.unpack_from("i", info, 60)[0])
        return None

    def close(self) -> None:
        """Let go of it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def send(pid: int, birth: int, number: int) -> bool:
    """Send one signal to the process that a scan showed, and to no later one of its number."""
    handle = Handle.open(pid, birth, birth)
    if handle is None:
        return False
    try:
        return handle.send(number)
    finally:
        handle.close()


def stop_all(find: Callable[[], Mapping[int, int]]) -> dict[int, int]:
    """
    SIGSTOP a tree until two looks in a row show nothing new, so that none escapes by forking.

    Args:
        find: looks anew; gives the birth ticks by pid.

    Returns:
        All that was found, birth ticks by pid.
    """
    seen: dict[int, int] = {}
    quiet = 0
    for _ in range(_PASSES):
        new = {pid: birth for pid, birth in find().items() if seen.get(pid) != birth}
        for pid, birth in new.items():
            send(pid, birth, signal.SIGSTOP)
        seen.update(new)
        quiet = 0 if new else quiet + 1
        if quiet == 2:
            break
    return seen


def kill_all(find: Callable[[], Mapping[int, int]]) -> int:
    """SIGKILL a tree of which nothing escapes; returns how many processes that were."""
    seen = stop_all(find)
    for pid, birth in seen.items():
        send(pid, birth, signal.SIGKILL)
    return len(seen)


def proportional_kb(pids: Iterable[int]) -> int:
    """
    Memory that would be free without these processes, KiB: anonymous and shmem pages, shared ones counted once.

    From smaps_rollup, whose cost grows with the memory; before Linux 5.9 it is the whole PSS, and where
    it may not be read resident minus shared pages.
    """
    total = 0
    for pid in pids:
        parts: dict[bytes, int] = {}
        try:
            with open(f"/proc/{pid}/smaps_rollup", "rb", buffering=0) as file:
                for line in file.readall().splitlines()[1:]:
                    name, _, rest = line.partition(b":")
                    parts[name] = int(rest.split()[0])
            total += parts[b"Pss_Anon"] + parts[b"Pss_Shmem"] if b"Pss_Anon" in parts else parts[b"Pss"]
        except (OSError, KeyError, ValueError, IndexError) as error:
            if getattr(error, "errno", errno.EACCES) != errno.ESRCH:
                total += _unshared_kb(pid)
    return total


def _unshared_kb(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm", "rb", buffering=0) as file:
            _, resident, shared = file.read(200).split()[:3]
    except (OSError, ValueError):
        return 0
    return (int(resident) - int(shared)) * _PAGE_KB


def expose(pid: int, score: int) -> None:
    """Let the kernel's out-of-memory killer prefer a process; best effort."""
    with contextlib.suppress(OSError):
        fd = os.open(f"/proc/{pid}/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, b"%d" % score)
        finally:
            os.close(fd)
