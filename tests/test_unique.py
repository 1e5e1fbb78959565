"""`--unique KEY`: one job at a time has a key, whoever submits from wherever, and whoever dies in between."""

import contextlib
import os
import signal
import subprocess
import sys

import pytest

from spoolq import home, steer, stored, unique
from spoolq.errors import SpoolqError, TryAgain, UsageError
from spoolq.job import Job
from spoolq.selector import me
from spoolq.spool import Spool
from tests.cluster import PATIENCE_S, Cluster
from tests.desk import end, run
from tests.test_crash_points import explore
from tests.world import World


def test_a_second_submission_fails_or_joins_until_the_first_has_ended(cluster: Cluster):
    cluster.node()
    wait = f"while [ ! -e {cluster.base}/go ]; do sleep 0.02; done; exit 3"
    first = cluster.sub("--unique", "nightly", "sh", "-c", wait)
    refused = cluster.spoolq("sub", "--unique", "nightly", "true")
    joined = cluster.sub("--unique", "nightly:join", "true")
    other = cluster.sub("--unique", "weekly", "true")

    assert (1, "") == (refused.returncode, refused.stdout)
    assert f"job {first} (" in refused.stderr
    assert "has the key 'nightly'" in refused.stderr
    assert first == joined
    assert first != other
    with cluster.start("sub", "-W", "--unique", "nightly:join", "true") as waiting:
        assert f"{first}\n".encode() == waiting.stdout.readline()
        with open(f"{cluster.base}/go", "w"):
            pass
        assert 3 == waiting.wait()
    cluster.result(first)
    assert first < cluster.sub("--unique", "nightly", "true")


def test_run_that_joins_shows_the_output_and_does_not_kill_what_it_joined(cluster: Cluster):
    cluster.node()
    wait = f"echo begun; while [ ! -e {cluster.base}/go ]; do sleep 0.02; done; echo over"
    first = cluster.sub("--unique", "k", "sh", "-c", wait)
    with cluster.start("run", "--unique", "k:join", "true") as impatient:
        assert b"begun\n" == impatient.stdout.readline()
        impatient.send_signal(signal.SIGINT)
        assert 130 == impatient.wait()
    assert "running" == cluster.place(first)
    with cluster.start("run", "--unique", "k:join", "true") as patient:
        assert b"begun\n" == patient.stdout.readline()
        with open(f"{cluster.base}/go", "w"):
            pass
        assert (b"over\n", 0) == (patient.stdout.read(), patient.wait())


def test_of_many_submitters_at_the_same_moment_one_wins(cluster: Cluster):
    cluster.hurry("unique", UNCOMMITTED_S=PATIENCE_S)  # nobody is dead who takes long
    started = [cluster.start("sub", "--unique", "k", "true") for _ in range(8)]
    outs = [process.communicate() for process in started]  # closes their pipes
    ids = [int(out) for out, _ in outs if out]

    assert 1 == len(ids), outs
    assert sorted([0] + [1] * 7) == sorted(process.returncode for process in started)
    assert [ids[0]] == [at.entry.id for at in Spool(cluster.root).live()]


def test_a_submitter_killed_before_its_commit_keeps_nobody_for_ever(cluster: Cluster, monkeypatch):
    code = (
        "import os, sys; from spoolq import unique; from spoolq.__main__ import main; take = unique.take\n"
        "def die(*a):\n    take(*a); os._exit(9)\n"
        "unique.take = die; sys.argv = ['spoolq', 'sub', '--unique', 'k', 'true']; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], env=cluster.env, cwd=cluster.base, check=False)
    assert 9 == done.returncode
    monkeypatch.setattr(unique, "UNCOMMITTED_S", 0.2)
    spool = Spool(cluster.root)
    placed = keyed(spool, user=me())

    assert "queue" == placed.top
    assert f"{placed.entry.id}\n" == read(f"{cluster.root}/unique/{me()}~k/2")


def test_requeue_of_an_ended_job_needs_its_key_again(cluster: Cluster):
    cluster.node()
    first = cluster.sub("--unique", "k", "true")
    cluster.result(first)
    second = cluster.sub("--unique", "k", "sleep", "100")
    refused = cluster.spoolq("requeue", str(first))

    assert 1 == refused.returncode
    assert f"job {second}" in refused.stderr
    assert "done" == cluster.place(first)
    cluster.ok("kill", str(second))
    cluster.result(second)
    cluster.ok("requeue", str(first))
    cluster.until(lambda: cluster.place(first) == "done", "it has run again")


def test_what_makes_no_sense_is_refused(cluster: Cluster):
    for words in (["--unique", "a/b", "true"], ["--unique", "a:wait", "true"], ["--unique", "a", "--each-line", "-"]):
        assert 2 == cluster.spoolq("sub", *words, stdin="true\n").returncode


@pytest.mark.parametrize("text", ["", ":join", "a b", "a" * 101, "k:", "k:x"])
def test_keys_that_are_none(text):
    with pytest.raises(UsageError):
        unique.parse(text)


# --- without processes


def read(path: str) -> str:
    with open(path) as file:
        return file.read()


def job_of(**facts: object) -> Job:
    return Job(**{"command": ("true",), "user": "root", "unique": "k", **facts})


def keyed(spool: Spool, **facts: object):
    """As `submit` does: home, key, commit."""
    job = job_of(**facts)
    unique.look(spool, job)
    job_id = home.allocate(spool.root)
    home.fill(spool.root, job_id, stored.format_job(job))
    unique.take(spool, job, job_id)
    placed = spool.submit(job_id, job.entry(job_id))
    unique.committed(spool, job, job_id)
    return placed


def test_users_have_their_own_keys(spool):
    keyed(spool)
    keyed(spool, user="anna")
    with pytest.raises(unique.Taken):
        keyed(spool)


def test_the_key_is_free_when_its_holder_has_ended_or_was_swept_away(spool):
    first = keyed(spool)
    placed = end(spool, run(spool, first))
    second = keyed(spool)
    assert second.entry.id > placed.entry.id
    os.unlink(f"{spool.root}/{second.path}")  # swept: the entry, and its home
    for name in os.listdir(home.path_of(spool.root, second.entry.id)):
        os.unlink(f"{home.path_of(spool.root, second.entry.id)}/{name}")
    assert keyed(spool).entry.id > second.entry.id


def test_whoever_is_too_slow_is_told_and_makes_no_job(spool, monkeypatch):
    monkeypatch.setattr(unique, "UNCOMMITTED_S", 0.0)
    job = job_of()
    slow = home.allocate(spool.root)
    home.fill(spool.root, slow, stored.format_job(job))
    unique.take(spool, job, slow)
    fast = keyed(spool)
    spool.submit(slow, job.entry(slow))  # its source is gone, which otherwise means: committed
    with pytest.raises(TryAgain, match="took longer"):
        unique.committed(spool, job, slow)

    assert [fast.entry.id] == [at.entry.id for at in spool.live()]


def test_somebody_who_gets_the_key_during_a_requeue_wins(spool, monkeypatch):
    first = end(spool, run(spool, keyed(spool)))
    take, made = unique.take, []

    def interrupted(*args):
        number = take(*args)
        if not made:
            made.append(1)
            made.append(keyed(spool))
        return number

    monkeypatch.setattr(unique, "take", interrupted)
    outcome = steer.do(spool, first, steer.requeue_step())

    assert outcome.failed
    assert [made[1].entry.id] == [at.entry.id for at in spool.live()]


def test_a_submitter_dies_at_every_call_and_the_next_gets_the_key(tmp_path, monkeypatch):
    """One job at most has not ended, whatever happened to the first submitter."""
    monkeypatch.setattr(unique, "UNCOMMITTED_S", 0.0)

    def act(world: World) -> None:
        placed = keyed(Spool(world.root), chdir=world.chdir)
        world.acknowledged.append(placed.entry.id)

    def then(world: World) -> None:
        keyed(Spool(world.root), chdir=world.chdir)

    points = explore(tmp_path, monkeypatch, lambda world: None, act, after=then)
    print(f"submit with a key: {points} crash points")
    assert points > 20


def test_at_every_call_of_one_submitter_another_one_comes_between(tmp_path, monkeypatch):
    from spoolq import fsops
    from tests.faults import Faulty

    monkeypatch.setattr(unique, "UNCOMMITTED_S", 0.0)
    at, seen = 0, 1
    while at < seen:
        world = World(str(tmp_path / str(at)), monkeypatch)
        calls = {"n": 0}

        class Between(Faulty):
            def __getattr__(self, name, world=world, calls=calls, at=at):
                found = super().__getattr__(name)
                if callable(found) and name in ("link", "rename", "listdir", "open", "mkdir", "symlink"):
                    number, calls["n"] = calls["n"], calls["n"] + 1
                    if number == at:
                        attempt(world)
                return found

        monkeypatch.setattr(fsops, "os", Between())
        attempt(world)
        monkeypatch.setattr(fsops, "os", Faulty())
        live = [placed.entry.id for placed in world.spool.live()]
        assert 1 == len(live), (at, live)
        at, seen = at + 1, calls["n"]
    assert at > 20


def attempt(world: World) -> None:
    with contextlib.suppress(SpoolqError):
        keyed(Spool(world.root), chdir=world.chdir)
