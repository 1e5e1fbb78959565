"""A node on a spool that is full: it starts, jobs go on, and an output that was lost is never called a success."""

import errno
import json
import os

import pytest

from spoolq import array, control, deliver, fsops, home, host, recover, tasks
from spoolq.daemon import Daemon
from spoolq.spool import Spool
from tests.faults import Died
from tests.test_array_crash import submit as submit_array
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
        patch.setattr(deliver, "may_hold", lambda fd: True)
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

        patch.setattr(deliver, "may_hold", lambda fd: True)
        patch.setattr(fsops, "sync_file", full)
        patch.setattr(Spool, "record", killed)
        with pytest.raises(Died):
            world.serve()
    world.serve()
    world.check()
    assert "FAILED" == result(world)["state"]
    assert {} == recover.read_lost(world.state)


def test_an_output_of_which_nothing_is_left_is_lost_too(world, monkeypatch):
    """Real NFS: what could not be written back is dropped, and the file has the server's size, which is 0."""
    world.submit(1)
    assert not host.is_remote_device(os.stat(world.root).st_dev)
    monkeypatch.setattr(host, "is_remote_device", lambda device: device == os.stat(world.root).st_dev)
    monkeypatch.setattr(fsops, "sync_file", full)
    world.serve()
    world.check()
    assert "output: output lost: No space left on device" == result(world)["reason"]
    assert ("done", "exit1", 1) == world.where(1)


def test_an_empty_output_on_a_local_disk_costs_no_call(world, monkeypatch):
    world.submit(1)
    monkeypatch.setattr(fsops, "sync_file", full)
    world.serve()
    assert "COMPLETED" == result(world)["state"]


@pytest.mark.parametrize("noted", [True, False])
def test_a_lost_output_is_told_also_if_the_daemon_dies_after_the_commit(world, monkeypatch, noted):
    """Real NFS: the entry said exit1, and the next daemon wrote a result.json that said 0."""
    world.submit(1)
    with monkeypatch.context() as patch:
        patch.setattr(deliver, "may_hold", lambda fd: True)
        patch.setattr(fsops, "sync_file", full)
        patch.setattr(home, "publish_result", died)
        if not noted:
            patch.setattr(recover, "note_lost", lambda _: None)
        with pytest.raises(Died):
            world.serve()
    assert ("done", "exit1", 1) == world.where(1)
    world.serve()
    world.check()
    assert ("FAILED", 1) == (result(world)["state"], result(world)["exit_code"])


def test_each_lost_output_is_noted_before_the_next_is_looked_at(world, monkeypatch):
    """Each takes its time on a full spool, and the error is not told again."""
    world.submit(2)
    with monkeypatch.context() as patch:
        synced = []

        def sync(fd):
            synced.append(fd)
            died() if len(synced) > 2 else full()

        patch.setattr(deliver, "may_hold", lambda fd: True)
        patch.setattr(fsops, "sync_file", sync)
        with pytest.raises(Died):
            world.serve()
    assert 1 == len(recover.read_lost(world.state))
    world.serve()
    world.check()
    assert ["exit0", "exit1"] == sorted(str(world.entry(job).ending) for job in (1, 2))


def test_a_lost_output_of_a_task_is_told_also_after_a_restart(world, monkeypatch):
    submit_array(world)
    with monkeypatch.context() as patch:
        patch.setattr(deliver, "may_hold", lambda fd: True)
        patch.setattr(fsops, "sync_file", full)
        patch.setattr(tasks, "record", died)
        with pytest.raises(Died):
            world.serve()
    assert world.runner.starts
    world.serve()
    ended = array.latest(tasks.of_tasks(tasks.read(world.root, 1)))
    assert [1] == [number for number, line in ended.items() if line["state"] == "FAILED"]
    assert [1, 2, 3, 4] == sorted(ended)


def test_outputs_of_adopted_tasks_are_synced_too(world, monkeypatch):
    submit_array(world)
    world.runner.ends = False
    with monkeypatch.context() as patch:
        patch.setattr(control, "obey", died)
        with pytest.raises(Died):
            world.serve()
    adopted = list(world.runner.starts)
    assert adopted
    ends = list(adopted)
    world.runner.ends = True
    with monkeypatch.context() as patch:
        patch.setattr(deliver, "may_hold", lambda fd: True)
        patch.setattr(fsops, "sync_file", full)
        patch.setattr(control, "obey", lambda daemon: ends and world.runner.end(ends.pop()))
        patch.setattr(tasks, "record", died)
        with pytest.raises(Died):
            world.serve()
    for key in ends:
        world.runner.end(key)
    world.serve()
    ended = array.latest(tasks.of_tasks(tasks.read(world.root, 1)))
    assert 1 == [line["state"] for line in ended.values()].count("FAILED"), ended


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
    monkeypatch.setattr(deliver, "may_hold", lambda fd: True)
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
