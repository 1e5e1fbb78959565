"""
Which numbered devices are in use by processes that are not of spoolq: NVML for GPUs, else the process table.

A device file that a process has open (`/dev/nvidia0`) counts as used; NVML (the optional package
nvidia-ml-py) knows better, since it counts only processes that compute, also those of other users.
What only keeps a driver or a screen alive is no use. A process is of spoolq if it, or one that begot
it, bears the mark of this node's jobs in its environment.
Never decides anything: `left` is arithmetic, `schedule` makes a reason of it.
"""

import contextlib
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from spoolq import process
from spoolq.resources import UNIT, Amounts

DEVICE_FILES = {"gpu": "/dev/nvidia%d"}  # what is looked at unless `device_files` of [node] says more
_NVIDIA = DEVICE_FILES["gpu"]
_BYSTANDERS = frozenset(
    ["nvidia-persiste", "nvidia-smi", "nv-hostengine", "Xorg", "Xwayland", "gnome-shell", "kwin_wayland"]
)  # /proc/PID/comm has 15 letters
_ANCESTORS = 64  # looked at, of one process

Users = dict[int, set[int]]  # pids by number of the device


def busy(files: Mapping[str, str], state_dir: str) -> dict[str, set[int]]:
    """
    The numbers of the devices that others use, by resource; one that nobody else uses is left out.

    Args:
        files: resource -> pattern of its device files, with one `%d` for the number.
        state_dir: of this node, by which its jobs' processes are known.
    """
    found: dict[str, set[int]] = {}
    for name, pattern in files.items():
        users = _nvml() if pattern == _NVIDIA else None
        if users is None:
            users = holders(pattern)
        if numbers := {number for number, pids in users.items() if any(_foreign(pid, state_dir) for pid in pids)}:
            found[name] = numbers
    return found


def left(capacity: Amounts, used: Mapping[str, Iterable[int]]) -> dict[str, int]:
    """What others leave of each resource of which they use something, thousandths."""
    return {
        name: max(0, capacity[name] - len(set(numbers)) * UNIT) for name, numbers in used.items() if name in capacity
    }


def holders(pattern: str) -> Users:
    """Who has device files open; of the processes that may be looked at, which for root are all."""
    form = re.compile(re.escape(pattern).replace("%d", r"(\d{1,6})"))
    found: Users = {}
    for pid in process.scan():
        with contextlib.suppress(OSError):
            for fd in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    if match := form.fullmatch(os.readlink(f"/proc/{pid}/fd/{fd}")):
                        found.setdefault(int(match[1]), set()).add(pid)
    return found


def _foreign(pid: int, state_dir: str) -> bool:
    """Whether a process lives and is neither a bystander nor of a job of this node."""
    stat = process.read_stat(pid)
    if stat is None or stat.state in "ZX" or stat.comm in _BYSTANDERS:
        return False
    for _ in range(_ANCESTORS):
        if process.environment(stat.pid).get(b"SPOOLQ_FAMILY") == os.fsencode(state_dir):
            return False
        parent = process.read_stat(stat.parent) if stat.parent > 1 else None
        if parent is None:
            return True
        stat = parent
    return True


def _nvml() -> Users | None:
    """What NVML says, by the number of the device file; None where it is not installed or does not answer."""
    try:
        import pynvml
    except ImportError:
        return None
    with contextlib.suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        try:
            return _computing(pynvml)
        finally:
            pynvml.nvmlShutdown()
    return None


def _computing(nvml: Any) -> Users:
    found: Users = {}
    for index in range(nvml.nvmlDeviceGetCount()):
        device = nvml.nvmlDeviceGetHandleByIndex(index)
        pids = {running.pid for running in nvml.nvmlDeviceGetComputeRunningProcesses(device)}
        if pids:
            found[nvml.nvmlDeviceGetMinorNumber(device)] = pids
    return found
