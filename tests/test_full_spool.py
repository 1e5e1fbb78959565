"""A node on a spool that is full: it starts, jobs go on, and an output that was lost is never called a success."""

import errno
import json
import os

import pytest

from spoolq import control, fsops, home, recover
from spoolq.daemon import Daemon
from spoolq.spool import Spool
from tests.faults import Died
from tests.test_crash_points import World


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.setattr(recover, "FULL_S", 0)
    return World(str(tmp_path / "w"), monkeypatch)


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def died(*_, **__):
    raise Died


def result(world):
    with open(f"{home.path_of(world.root, 1)}/result.json", "rb") as file:
        return json.load(file)


def test_a_node_that_is_started_meanwhile_waits_for_room(world, monkeypatch):
    world.submit(1)
    refusals = [full, full]
    real = Spool.beat
    monkeypatch.setattr(Spool, "beat", lambda *words: (refusals.pop() if refusals else real)(*words))
    world.serve()
    world.check()
    assert [] == refusals


def test_what_is_wrong_with_the_spool_otherwise_ends_it(world, monkeypatch):
    def denied(*_):
        raise PermissionError(errno.EACCES, "denied")

    monkeypatch.setattr(Spool, "beat", denied)
    with pytest.raises(PermissionError):
        world.serve()


def test_a_lost_output_is_told_also_after_a_restart(world, monkeypatch):
    """The error comes once, to the daemon that had the output open; it cannot record the end, and is killed."""
    world.submit(1)
    tries = []

    def record(*_):
        tries.append(1)
        full()

    with monkeypatch.context() as patch:
        patch.setattr(fsops, "size_of", lambda fd: 1)
        patch.setattr(fsops, "sync_file", full)
        patch.setattr(Spool, "record", record)
        patch.setattr(control, "obey", lambda _: tries and died())
        patch.setattr(Daemon, "due", lambda *_: True)
        patch.setattr(Daemon, "pause", lambda *_: None)
        with pytest.raises(Died):
            world.serve()
    world.serve()
    world.check()
    told = result(world)
    assert ("FAILED", 1, "output: output lost: No space left on device") == (
        told["state"], told["exit_code"], told["reason"],
    )  # fmt: skip
    assert {} == recover.read_lost(world.state)


def test_a_lost_output_is_told_also_if_the_daemon_dies_while_it_records_the_end(world, monkeypatch):
    """Real NFS: on a full export that takes its time, and the daemon was killed in it; the job was a success."""
    world.submit(1)
    with monkeypatch.context() as patch:

        def killed(*_):
            patch.setattr(recover, "note_lost", lambda _: None)  # nothing more is done, on the way out neither
            raise Died

        patch.setattr(fsops, "size_of", lambda fd: 1)
        patch.setattr(fsops, "sync_file", full)
        patch.setattr(Spool, "record", killed)
        with pytest.raises(Died):
            world.serve()
    world.serve()
    world.check()
    assert "FAILED" == result(world)["state"]
    assert {} == recover.read_lost(world.state)


def test_outputs_of_adopted_jobs_are_synced_too(world, monkeypatch):
    world.submit(1)
    world.runner.ends = False
    with monkeypatch.context() as patch:
        patch.setattr(control, "obey", died)
        with pytest.raises(Died):
            world.serve()
    assert [(1, 1)] == world.runner.starts
    synced = []
    ends = [(1, 1)]
    monkeypatch.setattr(fsops, "size_of", lambda fd: 1)
    monkeypatch.setattr(fsops, "sync_file", synced.append)
    monkeypatch.setattr(control, "obey", lambda daemon: ends and world.runner.end(ends.pop()))
    world.serve()
    world.check()
    assert 2 == len(synced)


def test_results_wait_no_longer_when_the_spool_is_back(world, monkeypatch):
    monkeypatch.setattr(Daemon, "pause", lambda *_: None)
    world.submit(1)
    node = world.up()
    with monkeypatch.context() as patch:
        patch.setattr(Spool, "record", full)
        patch.setattr(Spool, "beat", full)
        for _ in range(3):
            world.turn(node)
        assert "running" == world.at(1).top
    node.set_due("deliver", 1e12)  # as after many tries
    world.turn(node, "control")
    assert "running" == world.at(1).top
    world.turn(node, "beat")
    world.turn(node, "control")
    assert ("done", "exit0", 1) == world.where(1)
