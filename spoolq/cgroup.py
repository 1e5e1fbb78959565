"""
Control groups (cgroup v2): one group a job, where this node was given a part of the tree.

Only a directory that was delegated is touched: the extended attribute that systemd sets on it says
so, or an operator named it. A group with members cannot pass controllers on, so the family sits in a
leaf of its own beside its jobs. Every function says by None or False that something is not there;
nothing here raises because a kernel is old, except `create`.
It never decides anything about jobs and never signals by pid.
"""

import contextlib
import errno
import os
import signal
from collections.abc import Callable

FAMILY = "spoolq-family"  # the leaf that holds daemon, runner and watchers
_WANTED = ("memory", "pids", "cpu")
_ATTRIBUTES = ("user.delegate", "trusted.delegate")
_MB = 1 << 20


def delegated(explicit: str | None = None, *, proc: str = "/proc/self") -> str | None:
    """
    The cgroup v2 directory under which groups may be made, or None.

    Args:
        explicit: a directory named by the operator, believed if it is a cgroup and writable.
        proc: where `cgroup` and `mountinfo` are read.
    """
    if explicit is not None:
        usable = os.path.exists(f"{explicit}/cgroup.procs") and os.access(explicit, os.W_OK)
        return explicit if usable else None
    own = _own(proc)
    if own is None:
        return None
    # with DelegateSubgroup= the processes start one level below what was delegated
    for directory in (own, os.path.dirname(own)):
        if _marked(directory) and os.access(directory, os.W_OK):
            return directory
    return None


def _own(proc: str) -> str | None:
    mount, path = None, None
    for line in (_read(f"{proc}/mountinfo") or "").splitlines():
        left, _, right = line.partition(" - ")
        if right.startswith("cgroup2 "):
            mount = left.split()[4]
            break
    for line in (_read(f"{proc}/cgroup") or "").splitlines():
        if line.startswith("0::/"):
            path = line[4:]
    if mount is None or path is None or path.startswith(".."):
        return None
    return os.path.join(mount, path).rstrip("/")


def _marked(directory: str) -> bool:
    for name in _ATTRIBUTES:
        with contextlib.suppress(OSError):
            if os.getxattr(directory, name) == b"1":
                return True
    return False


def settle(root: str) -> frozenset[str]:
    """
    Move everything that sits in `root` itself into the family's leaf and pass controllers on to its children.

    Returns:
        The controllers that groups below `root` have now; memory limits need `memory`.
    """
    with contextlib.suppress(OSError):
        os.mkdir(f"{root}/{FAMILY}")
    for _ in range(3):  # a process may be born while its parent moves
        members = members_of(root)
        for pid in members:
            _write(f"{root}/{FAMILY}/cgroup.procs", str(pid))
        if not members:
            break
    offered = (_read(f"{root}/cgroup.controllers") or "").split()
    for name in _WANTED:
        if name in offered:
            _write(f"{root}/cgroup.subtree_control", f"+{name}")
    return controllers(root)


def controllers(root: str) -> frozenset[str]:
    """The controllers that children of a group have."""
    return frozenset((_read(f"{root}/cgroup.subtree_control") or "").split())


def create(group: str, *, mem_mb: int | None = None) -> bool:
    """
    Make a group, limited to memory of mem_mb (2**20 bytes) without swap; one left behind is used again.

    Returns:
        Whether the kernel enforces the memory limit; False without a limit or without the controller.

    Raises:
        OSError: it cannot be made.
    """
    with contextlib.suppress(FileExistsError):
        os.mkdir(group)
    return mem_mb is not None and limit_memory(group, mem_mb)


def limit_memory(group: str, mem_mb: int) -> bool:
    """Set the memory limit of a group; False without the controller."""
    if not _write(f"{group}/memory.max", str(mem_mb * _MB)):
        return False
    _write(f"{group}/memory.swap.max", "0")
    _write(f"{group}/memory.oom.group", "1")  # the job ends whole, not its largest process alone
    return True


def remove(group: str) -> bool:
    """Remove a group and what was made below it; False while something lives in it. A missing one is removed."""
    try:
        below = [entry.path for entry in os.scandir(group) if entry.is_dir(follow_symlinks=False)]
    except OSError as error:
        return error.errno in (errno.ENOENT, errno.ENODEV)
    for directory in below:
        remove(directory)
    try:
        os.rmdir(group)
    except OSError as error:
        return error.errno in (errno.ENOENT, errno.ENODEV)
    return True


def members_of(group: str) -> list[int]:
    """The pids in a group itself, not below it."""
    return [int(word) for word in (_read(f"{group}/cgroup.procs") or "").split()]


def tree_of(group: str) -> list[int]:
    """The pids in a group and below it."""
    found: list[int] = []
    for directory, _, _ in os.walk(group):
        found += members_of(directory)
    return found


def kill(group: str, send: Callable[[int, int], object]) -> bool:
    """
    SIGKILL all in a group and below, without a race; False if there is no such group.

    Args:
        send: (pid, signal), for kernels before 5.14, where the frozen group is killed one by one.
    """
    if not os.path.exists(f"{group}/cgroup.procs"):
        return False
    if _write(f"{group}/cgroup.kill", "1"):
        return True
    freeze(group, True)
    for pid in tree_of(group):
        send(pid, signal.SIGKILL)
    return freeze(group, False)


def freeze(group: str, on: bool) -> bool:
    """Stop or continue all in a group; False if that is not possible."""
    return _write(f"{group}/cgroup.freeze", "1" if on else "0")


def populated(group: str) -> bool:
    """Whether anything lives in a group or below."""
    return _field(f"{group}/cgroup.events", "populated") == 1


def oom_kills(group: str) -> int:
    """How many processes the kernel killed for the group's memory limit."""
    return _field(f"{group}/memory.events", "oom_kill") or 0


def peak_kb(group: str) -> int | None:
    """Most memory the group ever held, KiB; None before Linux 5.19 or without the controller."""
    text = _read(f"{group}/memory.peak")
    return int(text) // 1024 if text and text.strip().isdigit() else None


def memory_kb(group: str) -> int | None:
    """Memory the group holds now, KiB."""
    text = _read(f"{group}/memory.current")
    return int(text) // 1024 if text and text.strip().isdigit() else None


def cpu_s(group: str) -> tuple[float, float] | None:
    """(user, system) CPU seconds of the group, orphans included."""
    user, system = _field(f"{group}/cpu.stat", "user_usec"), _field(f"{group}/cpu.stat", "system_usec")
    return None if user is None or system is None else (user / 1e6, system / 1e6)


def _field(path: str, name: str) -> int | None:
    for line in (_read(path) or "").splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return None


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return None


def _write(path: str, text: str) -> bool:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        os.write(fd, text.encode())
    except OSError:
        return False
    finally:
        os.close(fd)
    return True
