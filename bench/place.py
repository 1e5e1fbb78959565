"""
Where repetitions happen: a fresh directory each, on a known file system, in an environment without anybody's settings.

On disk nothing is deleted before the end of a run: ext4 does not reuse an inode that was freed
minutes ago and scans past it, so creates after deletes would measure the deletes.
"""

import itertools
import os
import re
import shutil
import tempfile
from collections.abc import Iterator

from kit import Family, Running


class Scratch:
    """Directories for repetitions, on one file system."""

    def __init__(self, base: str) -> None:
        """Make a private directory below `base`."""
        self.root = tempfile.mkdtemp(prefix="spoolq-bench-", dir=base)
        self.memory_backed = filesystem_of(self.root) in {"tmpfs", "ramfs"}
        self.numbers = itertools.count()

    def new(self, name: str) -> str:
        """Make a directory that no earlier repetition has used."""
        path = f"{self.root}/{name}-{next(self.numbers)}"
        os.makedirs(f"{path}/out")
        return path

    def drop(self, path: str) -> None:
        """Delete a directory; on disk only at the very end, as creates after deletes are dear on ext4."""
        if path and self.memory_backed:
            shutil.rmtree(path, ignore_errors=True)

    def remove(self) -> None:
        """Delete everything."""
        shutil.rmtree(self.root, ignore_errors=True)


class Home:
    """The directory, environment and family of one peer."""

    def __init__(self, name: str, scratch: Scratch) -> None:
        """Nothing is made yet: `fresh` does that."""
        self.name, self.scratch, self.dir = name, scratch, ""
        self.family = Family(name)
        self.env: dict[str, str] = {}
        self.gate_fd: int | None = None

    def fresh(self) -> None:
        """Begin in an empty directory, with a home and XDG directories inside it: no settings of the user's count."""
        self.dir = self.scratch.new(self.name)
        xdg = {f"XDG_{kind}_HOME": f"{self.dir}/xdg" for kind in ("CONFIG", "STATE", "CACHE", "DATA")}
        self.env = {**os.environ, **xdg, "HOME": self.dir, "TMPDIR": f"{self.dir}/out"}
        # Users' Pythons keep what they compiled; without that each start of a command would be timed compiling.
        self.env.pop("PYTHONDONTWRITEBYTECODE", None)

    def sh(self, script: str, limit_s: float = 300) -> float:
        """Run a shell text inside the family: its wall time in seconds."""
        return self.family.run(["/bin/sh", "-c", script], env=self.env, cwd=self.dir, log=self.log, limit_s=limit_s)

    def background(self, script: str) -> Running:
        """Start a shell text inside the family."""
        return self.family.start(["/bin/sh", "-c", script], env=self.env, cwd=self.dir, log=self.log)()

    @property
    def log(self) -> str:
        """Return the file where everything that the family says goes."""
        return f"{self.dir}/bench.log"

    def gated(self) -> str:
        """Make a gate and return a job that ends when it opens."""
        os.mkfifo(f"{self.dir}/gate")
        return f"/bin/sh -c ': <{self.dir}/gate'"

    def open_gate(self) -> None:
        """Let every gated job end, those too that have yet to reach the gate."""
        self.gate_fd = os.open(f"{self.dir}/gate", os.O_WRONLY)

    def clear(self) -> None:
        """End the family and drop the directory."""
        self.family.end()
        if self.gate_fd is not None:
            os.close(self.gate_fd)
            self.gate_fd = None
        self.scratch.drop(self.dir)


def filesystem_of(path: str) -> str:
    """Return the type of the file system that holds a path, as the mount table calls it."""
    path = os.path.realpath(path)
    best, kind = "", "unknown"
    for mounted, name in _mounts():
        inside = path == mounted or path.startswith(mounted.rstrip("/") + "/")
        if inside and len(mounted) >= len(best):
            best, kind = mounted, name
    return kind


def _mounts() -> Iterator[tuple[str, str]]:
    with open("/proc/self/mounts", encoding="utf-8") as file:
        for line in file:
            words = line.split()
            yield re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), words[1]), words[2]
