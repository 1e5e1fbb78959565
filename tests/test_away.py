"""The spool is not there for a while (its directory is an empty mount point), at the worst moments: nothing is lost."""

import errno
import os

import pytest

from spoolq import fsops, home, intake
from spoolq.errors import SpoolqError
from spoolq.fsops import Answer
from spoolq.spool import Spool


def go(world):
    """Unmount it."""
    os.rename(world.root, world.root + ".away")
    os.mkdir(world.root)


def come(world):
    """Mount it again; nothing was made in the bare mount point."""
    assert [] == os.listdir(world.root)
    os.rmdir(world.root)
    os.rename(world.root + ".away", world.root)


def forgotten(world):
    """What the runner was told to forget."""
    return [job for message in world.runner.heard("forget") for job in message["jobs"]]


def test_an_end_is_not_forgotten_when_all_is_compared_meanwhile(world):
    world.submit(2)
    node = world.up()
    world.turn(node)
    world.runner.end((1, 1))
    go(world)
    node.sure = False
    for _ in range(3):
        world.turn(node)
    assert [] == forgotten(world)
    come(world)
    world.turn(node)
    assert ("done", "exit0", 1) == world.where(1)
    assert "running" == world.at(2).top
    assert [(1, 1), (2, 1)] == world.runner.starts


@pytest.mark.parametrize("call", ["record", "finish"])
def test_it_goes_between_the_steps_of_a_delivery(world, monkeypatch, call):
    world.submit()
    node = world.up()
    world.turn(node)
    world.runner.end((1, 1))
    real = getattr(Spool, call)

    def then_away(spool, *args, **kwargs):
        if call == "record":
            real(spool, *args, **kwargs)
        if os.path.exists(f"{world.root}/spool.toml"):
            go(world)
        return None if call == "record" else real(spool, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Spool, call, then_away)
        for _ in range(3):
            node.turn()
    assert [] == forgotten(world)
    come(world)
    world.turn(node)
    assert ("done", "exit0", 1) == world.where(1)
    assert not [name for name in os.listdir(home.path_of(world.root, 1)) if "late" in name]
    world.check()


def test_it_goes_between_the_commit_and_the_result(world, monkeypatch):
    """The runner must not be told to forget an end whose result.json could not be written."""
    world.submit()
    node = world.up()
    world.turn(node)
    world.runner.end((1, 1))
    publish = home.publish_result

    def away(*args, **kwargs):
        go(world)
        return publish(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(home, "publish_result", away)
        world.turn(node)
    assert [] == forgotten(world)
    come(world)
    world.turn(node)
    assert ("done", "exit0", 1) == world.where(1)
    assert home.read_result(world.root, 1)
    assert [[1, 1]] == forgotten(world)


def test_it_goes_before_a_claim(world, monkeypatch):
    world.submit()
    node = world.up()
    real = Spool.claim

    def claim(spool, at, name):
        if os.path.exists(f"{world.root}/spool.toml"):
            go(world)
        return real(spool, at, name)

    with monkeypatch.context() as patch:
        patch.setattr(Spool, "claim", claim)
        for _ in range(3):
            world.turn(node)
    assert [] == world.runner.starts
    come(world)
    for _ in range(3):
        world.turn(node)
    assert [(1, 1)] == world.runner.starts
    assert "running" == world.at(1).top


def test_it_goes_between_a_claim_and_the_start(world, monkeypatch):
    world.submit()
    node = world.up()
    real = fsops.open_output

    def open_output(path, **kwargs):
        if os.path.exists(f"{world.root}/spool.toml") and not world.runner.starts and not went:
            went.append(1)
            go(world)
        return real(path, **kwargs)

    went = []
    with monkeypatch.context() as patch:
        patch.setattr(fsops, "open_output", open_output)
        for _ in range(3):
            world.turn(node)
    assert ([1], []) == (went, world.runner.starts)
    come(world)
    for _ in range(5):
        world.turn(node)
    assert [(1, 1)] == world.runner.starts
    assert "running" == world.at(1).top


def test_a_home_that_was_away_for_a_moment_makes_no_job_fail(world, monkeypatch):
    world.submit()
    node = world.up()
    real = home.read_job
    away = [True]

    def read_job(root, job_id):
        if not away:
            return real(root, job_id)
        away.clear()
        go(world)
        try:
            return real(root, job_id)
        finally:
            come(world)

    monkeypatch.setattr(home, "read_job", read_job)
    for _ in range(3):
        world.turn(node)
    assert [] == away
    assert [(1, 1)] == world.runner.starts
    assert "running" == world.at(1).top


def test_submitting_makes_nothing_where_it_was(world):
    go(world)
    with pytest.raises((OSError, SpoolqError)):
        world.submit()
    come(world)


def test_entering_makes_nothing_where_it_was(world):
    go(world)
    with pytest.raises(OSError):
        world.spool.enter_node("n1")
    come(world)


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE])
def test_a_dropped_file_that_cannot_be_read_for_a_moment_is_not_rejected(world, monkeypatch, code):
    path = f"{world.root}/drop/one.sh"
    with open(path, "w", encoding="ascii") as file:
        file.write("#!/bin/sh\ntrue\n#SPOOLQ end\n")
    node = world.up()
    refusals = [1, 1]
    real = fsops.read

    def read(name, *args):
        if "/admit/" in name and refusals:
            refusals.pop()
            raise OSError(code, os.strerror(code), name)
        return real(name, *args)

    monkeypatch.setattr(intake.fsops, "read", read)
    for _ in range(4):
        world.turn(node)
    assert ([], []) == (refusals, os.listdir(f"{world.root}/rejected"))
    assert "running" == world.at(1).top


def test_a_dropped_file_is_there_after_it_was_away(world, monkeypatch):
    """It goes after the file was taken, before it is a job."""
    with open(f"{world.root}/drop/one.sh", "w", encoding="ascii") as file:
        file.write("#!/bin/sh\ntrue\n#SPOOLQ end\n")
    node = world.up()
    real = intake.Intake._parse
    away = [True]

    def parse(self, name, path, **more):
        if away:
            away.clear()
            go(world)
        return real(self, name, path, **more)

    monkeypatch.setattr(intake.Intake, "_parse", parse)
    for _ in range(3):
        world.turn(node)
    come(world)
    assert [] == os.listdir(f"{world.root}/rejected")
    for _ in range(3):
        world.turn(node)
    assert "running" == world.at(1).top


def test_a_rename_where_nothing_is_mounted_is_not_lost(tmp_path):
    assert Answer.UNKNOWN is fsops.move(f"{tmp_path}/spool/running/n1/a", f"{tmp_path}/spool/done/0/b")
    assert [] == os.listdir(tmp_path)
    os.makedirs(f"{tmp_path}/spool/running/n1")
    os.makedirs(f"{tmp_path}/spool/queue")
    os.makedirs(f"{tmp_path}/spool/done")
    assert Answer.LOST is fsops.move(f"{tmp_path}/spool/running/n1/a", f"{tmp_path}/spool/done/0/b")
    assert Answer.LOST is fsops.move(f"{tmp_path}/spool/queue/swept/a", f"{tmp_path}/spool/done/0/b")


def test_a_dropped_file_is_not_refused_while_it_is_not_known_what_another_node_has(world, monkeypatch):
    """Only that node could run it, and what it says of itself cannot be read now."""
    world.spool.enter_node("big")
    world.spool.write_node("big", {"format": 1, "node": "big", "capacity": {"cpus": 64_000, "mem": 64_000_000}})
    node, real = world.up(), fsops.read

    def refuse(path, *limit):
        if path.endswith("big/node.json"):
            raise OSError(errno.EIO, "Input/output error", path)
        return real(path, *limit)

    with open(f"{world.root}/drop/a.sh", "w", encoding="ascii") as file:
        file.write("#!/bin/sh\n#SPOOLQ -c 32\ntrue\n#SPOOLQ end\n")
    with monkeypatch.context() as patched:
        patched.setattr(fsops, "read", refuse)
        world.turn(node, "drop")
    assert [] == os.listdir(f"{world.root}/rejected")
    world.turn(node, "drop")
    assert "queue" == world.at(1).top
