"""
Every file operation of submitting, claiming, starting, finishing, cancelling and admitting, interrupted once.

Each scenario runs once to count its calls to the file system, then once per call dying just before it
and once dying just after it took effect, then a new daemon recovers and the invariants are checked:
every acknowledged job ended exactly once, was started exactly once, and its result can be read.
"""

import contextlib
import errno
import os
from collections.abc import Callable

import pytest

from spoolq import config, daemon, deliver, fsops, home, jobfile, recover
from spoolq.daemon import Daemon, Limits
from spoolq.entry import parse_name
from spoolq.errors import SpoolqError
from spoolq.fsops import Answer
from spoolq.job import Job
from spoolq.spool import Spool, initialise
from spoolq.wake import Wake
from tests.conftest import SPOOL_TEXT
from tests.fake_family import FakeRunner
from tests.faults import Died, faulty


class World:
    """A spool, a runner that outlives daemons, and what a submitter was told."""

    def __init__(self, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.state = f"{path}/spool", f"{path}/state"
        self.chdir = path
        initialise(self.root, SPOOL_TEXT)
        self.runner = FakeRunner()
        self.acknowledged: list[int] = []
        monkeypatch.setattr(daemon, "Family", self.runner)
        monkeypatch.setenv("TMPDIR", path)
        os.makedirs(self.state)

    def submit(self, count: int = 1) -> None:
        """As `spoolq sub` does: the id is told only after the commit."""
        spool = Spool(self.root)
        for _ in range(count):
            job = Job(command=("true",), name="t", chdir=self.chdir)
            job_id = home.allocate(self.root)
            home.fill(self.root, job_id, jobfile.format_job(job), env=b"PATH=/bin\0")
            spool.committed([spool.submit(job_id, job.entry(job_id))])
            self.acknowledged.append(job_id)

    def serve(self) -> None:
        """A daemon until nothing is left to do."""
        before_it = set(os.listdir("/proc/self/fd"))
        policy = config.parse_policy(SPOOL_TEXT.encode() + b"[limits]\nsettle_s = 0\nmin_free_mb = 0\n", "spool.toml")
        node = Daemon(
            Spool(self.root),
            policy,
            "n1",
            capacity={"cpus": 2000, "mem": 4_000_000},
            measured=False,
            state_dir=self.state,
            limits=Limits(idle_exit_s=0.0),
            wake=Wake(),
        )
        try:
            node.run()
        finally:
            for fd in set(os.listdir("/proc/self/fd")) - before_it:  # what a dead process would not have open
                with contextlib.suppress(OSError):
                    os.close(int(fd))

    def entries(self) -> list[tuple[str, int]]:
        """(directory, id) of every entry in the spool."""
        found = []
        for top in ("queue", "held", "running", "reaping", "done"):
            for directory, _, names in os.walk(f"{self.root}/{top}"):
                found += [(top, entry.id) for name in names if (entry := parse_name(name))]
        return found

    def check(self) -> None:
        """The invariants, after everything has come to rest."""
        entries = self.entries()
        assert len({job_id for _, job_id in entries}) == len(entries), f"two entries of one job: {entries}"
        assert {"done"} >= {top for top, _ in entries}, entries
        assert set(self.acknowledged) <= {job_id for _, job_id in entries}, "an acknowledged job is lost"
        assert len(set(self.runner.starts)) == len(self.runner.starts), "started twice"
        for _, job_id in entries:
            record = deliver.read_ending(Spool(self.root), job_id)
            assert record is not None, f"no result of {job_id}"
            assert record["id"] == job_id
        for directory, _, names in os.walk(self.root):
            for name in names:
                if name == "result.json":
                    with open(os.path.join(directory, name), "rb") as file:
                        assert file.read().endswith(b"}\n"), "a torn result"


def count_calls(tmp_path, monkeypatch, before: Callable[[World], object], act: Callable[[World], object]) -> int:
    """How many calls a scenario makes."""
    world = World(str(tmp_path / "count"), monkeypatch)
    before(world)
    with faulty() as fake:
        act(world)
    return fake.count


def explore(tmp_path, monkeypatch, before, act, after=lambda world: None, error: int | None = None) -> int:
    """Die at every call, before and after it; recover; check. Returns the number of points."""
    calls = count_calls(tmp_path, monkeypatch, before, act)
    points = 0
    for number in range(calls):
        for effect in (False, True):
            world = World(str(tmp_path / f"{number}{'a' if effect else 'b'}"), monkeypatch)
            before(world)
            with faulty(number, after=effect, error=error):
                try:
                    act(world)
                except (Died, OSError, SpoolqError):
                    points += 1
            try:
                world.serve()
                after(world)
                world.serve()
                world.check()
            except BaseException as problem:
                problem.add_note(f"call {number} of {calls}, {'after' if effect else 'before'} its effect")
                raise
    return points


def test_submitter_dies_at_every_call(tmp_path, monkeypatch):
    points = explore(tmp_path, monkeypatch, lambda w: None, lambda w: w.submit(2))
    print(f"submit: {points} crash points")
    assert points > 30


def test_daemon_dies_at_every_call(tmp_path, monkeypatch):
    """Claim, start, finish: the whole life of three jobs on a node with room for two."""
    points = explore(tmp_path, monkeypatch, lambda w: w.submit(3), lambda w: w.serve())
    print(f"claim, start, finish: {points} crash points")
    assert points > 100


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.ESTALE, errno.EACCES])
def test_daemon_goes_on_when_any_call_fails_once(tmp_path, monkeypatch, code):
    monkeypatch.setattr(daemon, "RETRY_S", (0.0, 0.0))
    monkeypatch.setattr(recover, "FULL_S", 0)
    monkeypatch.setattr(Daemon, "pause", lambda self, seconds: None)
    explore(tmp_path, monkeypatch, lambda w: w.submit(2), lambda w: w.serve(), error=code)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS])
def test_a_submission_that_fails_is_there_whole_or_not_at_all(tmp_path, monkeypatch, code):
    explore(tmp_path, monkeypatch, lambda w: None, lambda w: w.submit(1), error=code)


def cancel_all(world: World) -> None:
    """As `spoolq kill` of waiting jobs."""
    spool = Spool(world.root)
    for at in list(spool.waiting()):
        assert deliver.finish_unstarted(spool, at, "cancelled", "by its user", "cli") is Answer.WON


def test_canceller_dies_at_every_call(tmp_path, monkeypatch):
    points = explore(tmp_path, monkeypatch, lambda w: w.submit(2), cancel_all)
    print(f"cancel: {points} crash points")
    assert points > 10


def drop(world: World) -> None:
    """A dropped script, already settled: it ends with the trailer."""
    with open(f"{world.root}/drop/nightly.sh", "w", encoding="ascii") as file:
        file.write("#!/bin/sh\ntrue\n#SPOOLQ end\n")


def test_admission_dies_at_every_call(tmp_path, monkeypatch):
    """The dropped file becomes exactly one job, whatever happens in between."""

    def one_job(world: World) -> None:
        ids = {job_id for _, job_id in world.entries()}
        assert 1 == len(ids), ids
        assert [] == [n for n in os.listdir(f"{world.root}/drop") if not n.endswith(".id")]

    points = explore(tmp_path, monkeypatch, drop, lambda w: w.serve(), after=one_job)
    print(f"admission: {points} crash points")
    assert points > 50


def test_every_rename_whose_reply_is_lost(tmp_path, monkeypatch):
    """ENOENT from a rename that happened, at each rename of a whole life."""
    calls = 0
    world = World(str(tmp_path / "count"), monkeypatch)
    drop(world)
    with faulty(only="rename") as fake:
        world.submit(2)
        world.serve()
    calls = fake.count
    for number in range(calls):
        world = World(str(tmp_path / str(number)), monkeypatch)
        drop(world)
        with faulty(number, after=True, error=errno.ENOENT, only="rename"):
            world.submit(2)
            world.serve()
        world.serve()
        world.check()
        assert 3 == len(world.entries())
    assert calls > 10
    assert fsops.os is os


def test_a_part_that_always_fails_keeps_back_no_other(tmp_path, monkeypatch):
    """Requests cannot be read, for ever: jobs are started and delivered, and the node beats."""

    def refuse(_daemon: Daemon) -> None:
        raise OSError(errno.EIO, "no answer")

    monkeypatch.setattr(daemon.control, "obey", refuse)
    monkeypatch.setattr(Daemon, "pause", lambda self, seconds: None)
    world = World(str(tmp_path / "w"), monkeypatch)
    world.submit(2)
    world.serve()
    world.check()
