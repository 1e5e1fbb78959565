"""Requests to follow a job: on NFS, output that nobody synced reaches other machines about 30 s late."""

import errno
import os
from types import SimpleNamespace

import pytest

from spoolq import control, fsops, home, host, tail
from spoolq.live import Live

from . import desk
from .faults import faulty


@pytest.fixture
def job(spool):
    """A job that runs on n1, a node of another machine."""
    desk.node_json(spool, "n1")
    return desk.run(spool, desk.put(spool), "n1")


@pytest.fixture
def daemon(spool, job):
    """What `control` needs of the daemon of n1."""
    spool.enter_node("n1")
    live = {job.entry.id: Live(job, None)}
    return SimpleNamespace(spool=spool, node="n1", live=live, chunks={}, ended=[], carried_out=set(), family=None)


@pytest.fixture
def synced(monkeypatch):
    """The paths that are synced."""
    paths = []
    monkeypatch.setattr(fsops, "sync_path", lambda path: paths.append(os.path.basename(path)))
    return paths


def follower(spool, job):
    """Somebody who looks at the output."""
    with open(f"{home.path_of(spool.root, job.entry.id)}/stdout", "ab"):
        pass
    target = os.open(os.devnull, os.O_WRONLY)
    return tail.Following(spool, job.entry.id, [tail.Stream(spool, job.entry.id, "stdout", target)])


def test_outputs_are_synced_while_somebody_on_another_machine_follows(spool, job, daemon, synced, monkeypatch):
    monkeypatch.setattr(tail, "SOON_S", 0.0)
    control.sync_followed(daemon, host.boottime())
    assert [] == synced

    follower(spool, job).look()
    control.obey(daemon)
    assert [] == spool.requests("n1")
    control.sync_followed(daemon, host.boottime())
    assert ["stdout", "stderr"] == synced
    control.sync_followed(daemon, host.boottime() + control.FOLLOWED_S + 1)
    assert ["stdout", "stderr"] == synced


def test_a_follower_leaves_one_request_however_long_nobody_hears(spool, job, daemon, monkeypatch):
    monkeypatch.setattr(tail, "SOON_S", 0.0)
    monkeypatch.setattr(tail, "ASK_S", 0.0)
    following = follower(spool, job)
    for _ in range(3):
        following.look()
    assert 1 == len(spool.requests("n1"))


def test_requests_are_repeated_before_the_last_one_lapses():
    assert tail.ASK_S * 2 < control.FOLLOWED_S


def test_nothing_is_asked_on_the_machine_where_the_job_runs(spool, job, daemon, monkeypatch):
    monkeypatch.setattr(tail, "SOON_S", 0.0)
    desk.node_json(spool, "n1", **desk.here())
    follower(spool, job).look()
    assert [] == spool.requests("n1")


def test_a_request_about_a_job_that_has_ended_is_dropped_without_a_word(spool, job, daemon, caplog):
    spool.request("n1", "follow", 99, {"attempt": 1}, "somebody")
    control.obey(daemon)
    assert [] == spool.requests("n1")
    assert [] == caplog.records


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_job_on_a_full_spool_can_be_killed(spool, job, daemon, code):
    """Real NFS: on a full export an empty file can be made, and nothing written."""
    sent = []
    daemon.family, daemon.policy = SimpleNamespace(send=sent.append), SimpleNamespace(grace_s=5)
    with faulty(0, error=code, only="write"):
        spool.request("n1", "kill", job.entry.id, {"attempt": 1}, "tag")
    control.obey(daemon)
    assert [("kill", job.entry.id)] == [(message["op"], message["id"]) for message in sent]


def test_what_needs_more_than_a_name_is_refused_on_a_full_spool(spool, job):
    with faulty(0, error=errno.ENOSPC, only="write"), pytest.raises(OSError, match="No space"):
        spool.request("n1", "signal", job.entry.id, {"attempt": 1, "signal": 10}, "tag")
    assert [] == os.listdir(f"{spool.root}/nodes/n1/control")


@pytest.mark.parametrize("name", ["kill", ".kill", "42.kill.x", "x.-1.kill", "x.4²2.kill", "x.42.signal"])
def test_names_that_are_no_request_are_dropped(spool, job, daemon, name):
    with open(f"{spool.root}/nodes/n1/control/{name}", "w"):
        pass
    control.obey(daemon)
    assert [] == spool.requests("n1")


def test_what_is_no_regular_file_is_not_synced(spool, job):
    os.mkfifo(f"{home.path_of(spool.root, job.entry.id)}/stdout")
    os.symlink("/dev/null", f"{home.path_of(spool.root, job.entry.id)}/stderr")
    home.sync_outputs(spool.root, job.entry.id)
