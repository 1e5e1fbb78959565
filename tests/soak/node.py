"""
Nodes that are small containers: own host name, processes, boot id, machine id and state; they can lose power.

As root, or where user namespaces are allowed, `unshare` makes them. Elsewhere a node is a process group: it
runs the same work, but all nodes share one boot, so a loss of power cannot be played.
"""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from typing import NamedTuple

HERE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
FAMILY = ("spoolq-runner", "spoolq-watch")
_PARTS = ["--mount", "--pid", "--uts", "--fork", "--mount-proc", "--kill-child"]
# name, directory, where the spool is, where it is to be seen ("-": where it is), then the command
_SET_UP = """
hostname "$1"
mount --bind "$2/boot_id" /proc/sys/kernel/random/boot_id
[ ! -e /etc/machine-id ] || mount --bind "$2/machine-id" /etc/machine-id
[ "$4" = - ] || mount --bind "$3" "$4"
shift 4
exec "$@"
"""


class Process(NamedTuple):
    """A process of a node, by its pid on this machine; `kind`: init, daemon, runner, watch or job."""

    pid: int
    kind: str


def containment() -> list[str]:
    """The words that start a container here; empty if there can be none."""
    for user in ([], ["--user", "--map-root-user"]):
        for clock in (["--time", "--boottime", "1000"], []):
            words = ["unshare", *user, *_PARTS, *clock]
            probe = "hostname x && mount --bind /etc/hostname /proc/sys/kernel/random/boot_id"
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                done = subprocess.run([*words, "sh", "-c", probe], capture_output=True, timeout=20, check=False)
                if done.returncode == 0:
                    return words
    return []


def read(path: str) -> bytes:
    """A file of /proc, or nothing."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        return file.read()
    return b""


def parent_of(pid: int) -> int:
    """The parent of a process; 0 if it is gone."""
    fields = read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    return int(fields[1]) if len(fields) > 1 else 0


def kind_of(pid: int) -> str:
    """What a process of a node is."""
    name = read(f"/proc/{pid}/comm").strip().decode("utf-8", "replace")
    if name in FAMILY:
        return name.removeprefix("spoolq-")
    words = read(f"/proc/{pid}/cmdline").split(b"\0")
    if b"spoolq" in words and b"node" in words:
        return "daemon"
    return "init" if b"tests.soak.init" in words else "job"


class Node:
    """One node."""

    def __init__(self, base: str, name: str, root: str, *, cpus: int, contained: Sequence[str], view: str = "") -> None:
        """
        Args:
            base: of the whole run; the node's own directory is `base/name`.
            root: the spool on this machine.
            contained: see `containment`.
            view: where the node sees the spool, if it is contained; its parent is a mount point.
        """
        self.name, self.directory, self.root, self.cpus = name, f"{base}/{name}", root, cpus
        self.contained, self.view = list(contained), view if contained else ""
        self.boots, self.outside = 0, None
        for part in ("state", "tmp"):
            os.makedirs(f"{self.directory}/{part}", mode=0o700)
        self._write("machine-id", uuid.uuid4().hex)
        self._write("program", HERE)
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("SPOOLQ_")}
        self.env |= {
            "PYTHONPATH": HERE,
            "PYTHONUNBUFFERED": "1",
            "HOME": base,
            "TMPDIR": f"{self.directory}/tmp",
            "SPOOLQ_DIR": self.view or root,
            "SPOOLQ_STATE_DIR": f"{self.directory}/state",
            "SPOOLQ_SOAK_NODE": self.directory,
        }
        self.outside: subprocess.Popen[bytes] | None = None

    def _write(self, name: str, text: str) -> None:
        with open(f"{self.directory}/{name}", "w", encoding="ascii") as file:
            file.write(text + "\n")

    @property
    def words(self) -> list[str]:
        """Of `spoolq node`."""
        return ["--name", self.name, "--cpus", str(self.cpus), "--mem", "64T"]

    # --- power

    def boot(self) -> None:
        """Switch it on."""
        self._write("boot_id", str(uuid.uuid4()))
        self.boots += 1
        serve = [sys.executable, "-m", "tests.soak.init", self.directory, "--", *self.words]
        if self.contained:
            words = list(self.contained)
            if "--boottime" in words:  # each boot has a clock of its own
                words[words.index("--boottime") + 1] = str(random.randrange(10, 10**7))
            mount = [os.path.dirname(self.root), os.path.dirname(self.view)] if self.view else ["-", "-"]
            serve = [*words, "sh", "-euc", _SET_UP, "sh", self.name, self.directory, *mount, *serve]
        with open(f"{self.directory}/log", "ab") as log:
            self.outside = subprocess.Popen(
                serve, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=HERE, env=self.env, start_new_session=True
            )

    @property
    def on(self) -> bool:
        """Whether it is switched on."""
        return self.outside is not None and self.outside.poll() is None

    def power_off(self) -> None:
        """Everything of it dies at once."""
        assert self.outside is not None
        if self.contained:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.first() or self.outside.pid, signal.SIGKILL)
        else:
            for process in self.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
            self.outside.kill()
        self.outside.wait()

    def shut_down(self, patience_s: float = 60.0) -> bool:
        """Stop it as an operator would; whether it did."""
        if not self.on:
            return True
        assert self.outside is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.first() or self.outside.pid, signal.SIGTERM)
        try:
            self.outside.wait(patience_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    # --- processes

    def first(self) -> int:
        """The node's process 1, by its pid here; 0 if it is not there."""
        assert self.outside is not None
        if not self.contained:
            return self.outside.pid
        words = read(f"/proc/{self.outside.pid}/task/{self.outside.pid}/children").split()
        return int(words[0]) if words else 0

    def processes(self) -> list[Process]:
        """All of its processes."""
        if not self.on:
            return []
        space = ""
        if self.contained:
            with contextlib.suppress(OSError):
                space = os.readlink(f"/proc/{self.first()}/ns/pid")
            if not space or space == os.readlink("/proc/self/ns/pid"):
                return []
        mark = f"SPOOLQ_SOAK_NODE={self.directory}".encode()
        found = []
        for word in os.listdir("/proc"):
            if word.isdigit():
                with contextlib.suppress(OSError):
                    if self.contained:
                        mine = os.readlink(f"/proc/{word}/ns/pid") == space
                    else:
                        mine = mark in read(f"/proc/{word}/environ").split(b"\0")
                    if mine and read(f"/proc/{word}/cmdline"):
                        found.append(Process(int(word), kind_of(int(word))))
        return found

    def family(self, *kinds: str) -> list[Process]:
        """Those of some kinds: daemon, runner, watch; not a job that is about to begin, which looks like its parent."""
        found = self.processes()
        runners = {process.pid for process in found if process.kind == "runner"}
        return [p for p in found if p.kind in kinds and not (p.kind == "runner" and parent_of(p.pid) in runners)]

    def enter(self, *words: str) -> list[str]:
        """The command that does something inside."""
        return ["nsenter", "-t", str(self.first()), "-a", *words] if self.contained else list(words)

    def upgrade(self, version: str) -> None:
        """Install another version: the next daemon is of that one."""
        program = f"{self.directory}/v{version}"
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(f"{HERE}/spoolq", f"{program}/spoolq", ignore=ignored, dirs_exist_ok=True)
        with open(f"{program}/spoolq/__init__.py", "w", encoding="ascii") as file:
            file.write(f'"""Another version."""\n\n__version__ = "{version}"\n')
        self._write("program", program)

    def descriptors(self) -> dict[str, int]:
        """How many descriptors each member of the family has open."""
        found: dict[str, int] = {}
        for process in self.family("daemon", "runner"):
            with contextlib.suppress(OSError):
                found[process.kind] = len(os.listdir(f"/proc/{process.pid}/fd"))
        return found

    def log(self) -> list[str]:
        """What it has said."""
        with contextlib.suppress(OSError), open(f"{self.directory}/log", encoding="utf-8", errors="replace") as file:
            return file.read().splitlines()
        return []

    def until_up(self, patience_s: float = 60.0) -> bool:
        """Wait for its daemon; whether it came."""
        end = time.monotonic() + patience_s
        while time.monotonic() < end:
            if self.family("daemon"):
                return True
            time.sleep(0.1)
        return False
