"""At each commit, what it stands for is on the disk: a loss of power right after it takes nothing back."""

import glob
import os
from typing import Any

import pytest

from spoolq import fsops, home
from tests.faults import Faulty
from tests.world import World


class Disk(Faulty):
    """`os` that knows which files hold something that was written and not synced, and calls `commit` at each rename."""

    def __init__(self) -> None:
        super().__init__()
        self.dirty: dict[int, str] = {}  # by inode, since names change
        self.commits: list[str] = []

    def __getattr__(self, name: str) -> Any:
        call = super().__getattr__(name)
        if name == "write":
            return lambda fd, data: (self.wrote(fd), call(fd, data))[1]
        if name == "fsync":
            return lambda fd: self.dirty.pop(os.fstat(fd).st_ino, None)
        if name in ("rename", "link"):
            return lambda old, new, **kwargs: (self.check(new), call(old, new, **kwargs))[1]
        return call

    def wrote(self, fd: int) -> None:
        self.dirty[os.fstat(fd).st_ino] = os.readlink(f"/proc/self/fd/{fd}")

    def unsynced(self, pattern: str) -> list[str]:
        """The files of a pattern that a loss of power would take, or empty."""
        return [path for path in glob.glob(pattern) if os.stat(path).st_ino in self.dirty]

    def check(self, target: str) -> None:
        root, _, rest = target.rpartition("/spool/")
        top = rest.partition("/")[0]
        if top not in ("queue", "running", "done"):
            return
        job_id = int(os.path.basename(target).split(".")[1])
        needed = [f"{home.path_of(f'{root}/spool', job_id)}/job"]
        if top == "done":
            needed.append(f"{root}/spool/history/*")
        lost = [path for pattern in needed for path in self.unsynced(pattern)]
        assert [] == lost, f"{rest} is there, and would be without {lost}"
        assert all(glob.glob(pattern) for pattern in needed), f"{rest} is there without {needed}"
        self.commits.append(f"{top} {job_id}")


@pytest.fixture
def disk(world: World, monkeypatch) -> Disk:
    made = Disk()
    monkeypatch.setattr(fsops, "os", made)
    return made


def test_what_a_job_is_and_how_it_ended_is_on_the_disk_before_its_entry_says_so(world: World, disk: Disk):
    world.runner.ends = True
    world.submit(3)
    world.serve()
    world.check()
    assert {f"{top} {job}" for top in ("queue", "running", "done") for job in (1, 2, 3)} == set(disk.commits)


def test_the_disk_of_this_test_sees_what_was_not_synced(world: World, disk: Disk, monkeypatch):
    monkeypatch.setattr(fsops, "append", lambda *args, real=fsops.append, **kw: real(*args, **kw | {"sync": False}))
    world.runner.ends = True
    world.submit()
    with pytest.raises(AssertionError, match="done/.*would be without.*history"):
        world.serve()
