"""Output mode `local`: on the node's disk first, in the spool before the job is done, whatever happens in between."""

import errno
import json
import os
from collections.abc import Iterator

import pytest

from spoolq import control, daemon, fsops, home, host, recover, ship
from spoolq.daemon import Daemon
from tests.faults import Died, faulty
from tests.test_crash_points import explore
from tests.world import World

SAID = b"one\ntwo of attempt %d\n"


def said(*attempts: int) -> bytes:
    """What some attempts wrote."""
    return b"".join(SAID % attempt for attempt in attempts)


@pytest.fixture
def world(tmp_path, monkeypatch) -> Iterator[World]:
    """A spool whose jobs write, and run until they are told to end."""
    monkeypatch.setattr(Daemon, "pause", lambda self, seconds: None)
    monkeypatch.setattr(daemon, "RETRY_S", (0.0, 0.0))
    made = World(str(tmp_path), monkeypatch, ends=False)
    made.runner.writes = SAID
    yield made
    made.close()


def output(world, job_id=1, name="stdout"):
    with open(f"{home.path_of(world.root, job_id)}/{name}", "rb") as file:
        return file.read()


def kept(world):
    """What lies on the node's own disk."""
    path = f"{world.state}/jobs"
    return sorted(os.listdir(path)) if os.path.isdir(path) else []


def result(world, job_id=1):
    return json.loads(output(world, job_id, "result.json"))


def test_it_is_here_while_the_job_runs_and_there_when_it_has_ended(world):
    world.submit(output_mode="local")
    node = world.up()
    world.turn(node)
    assert (b"", ["1.1"]) == (output(world), kept(world))
    world.runner.end((1, 1))
    world.turn(node)
    assert ("done", "exit0", 1) == world.where(1)
    assert (said(1), b"", []) == (output(world), output(world, name="stderr"), kept(world))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE])
def test_a_spool_that_refuses_gets_it_later(world, monkeypatch, code):
    world.submit(output_mode="local")
    node = world.up()
    world.turn(node)
    world.runner.end((1, 1))

    def refuse(_fd):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(fsops, "sync_file", refuse)
        for _ in range(3):
            world.turn(node)
        assert "running" == world.at(1).top
        assert (b"", ["1.1"]) == (output(world), kept(world))
        assert [] == [name for name in os.listdir(home.path_of(world.root, 1)) if "ship" in name]  # takes no room
    world.turn(world.up())
    assert ("done", "exit0", 1) == world.where(1)
    assert (said(1), [], "COMPLETED") == (output(world), kept(world), result(world)["state"])


def test_others_are_not_kept_back(world, monkeypatch):
    world.submit(output_mode="local")
    world.submit()
    node = world.up()
    world.turn(node)
    world.runner.end((1, 1))
    world.runner.end((2, 1))
    with monkeypatch.context() as patch:
        patch.setattr(fsops, "copy", lambda *_, **__: fsops.facts_of(-1))
        world.turn(node)
    assert ("running", "done") == (world.at(1).top, world.at(2).top)
    world.turn(node)
    assert "done" == world.at(1).top


def test_outputs_of_the_users_own_choice(world):
    world.submit(output_mode="local", output="%j.out", error="sub.err")
    world.submit(output_mode="local", output="both")
    with open(f"{world.chdir}/log", "w", encoding="ascii") as file:
        file.write("before\n")
    world.submit(output_mode="local", output="log", open_mode="append")
    world.submit(output_mode="local", output="/dev/null")
    for job_id in range(1, 5):
        node = world.up()
        world.turn(node)
        world.runner.end((job_id, 1))
        world.turn(node)
    for name, text in (("1.out", said(1)), ("both", said(1)), ("log", b"before\n" + said(1)), ("sub.err", b"")):
        with open(f"{world.chdir}/{name}", "rb") as file:
            assert text == file.read(), name
    assert {"done"} == {world.at(job_id).top for job_id in range(1, 5)}
    assert [] == kept(world)


def test_a_place_that_was_taken_away_is_replaced_by_the_home(world):
    os.mkdir(f"{world.chdir}/there")
    world.submit(output_mode="local", output="there/out")
    node = world.up()
    world.turn(node)
    os.unlink(f"{world.chdir}/there/out")
    os.rmdir(f"{world.chdir}/there")
    world.runner.end((1, 1))
    world.turn(node)
    assert (said(1), "done") == (output(world), world.at(1).top)


def test_a_second_attempt_goes_on_below_the_first(world):
    world.submit(output_mode="local")
    node = world.up()
    world.turn(node)
    world.spool.request("n1", "requeue", 1, {"attempt": 1}, "0")
    for _ in range(3):
        world.turn(node)
    assert [(1, 1), (1, 2)] == world.runner.starts
    world.runner.end((1, 2))
    world.turn(node)
    assert (said(1, 2), ("done", "exit0", 2), []) == (output(world), world.where(1), kept(world))


def test_after_a_reboot_what_there_was_is_there(world):
    world.submit(output_mode="local")
    world.turn(world.up())
    world.reboot()
    node = world.up()
    assert (said(1), []) == (output(world), kept(world))
    world.turn(node)
    world.runner.end((1, 2))
    world.turn(node)
    assert (said(1, 2), ("done", "exit0", 2)) == (output(world), world.where(1))


def test_output_that_a_power_loss_may_have_cut_is_no_success(world):
    """The end is in the journal, and the output was not yet synced when the machine went down."""
    world.submit(output_mode="local")
    world.turn(world.up())
    world.runner.end((1, 1))
    plan = f"{ship.directory_of(world.state, (1, 1))}/plan"
    with open(plan, encoding="ascii") as file:
        text = file.read()
    with open(plan, "w", encoding="ascii") as file:
        file.write(text.replace(host.boot_id(), "an earlier boot"))
    world.turn(world.up())
    told = result(world)
    assert ("FAILED", said(1)) == (told["state"], output(world))
    assert "the end of it may be missing" in told["reason"]


def test_output_of_an_attempt_that_others_decided_about_replaces_nothing(world):
    world.submit(output_mode="local")
    node = world.up()
    world.turn(node)
    at = world.at(1)
    _, taken = world.spool.reap(at, "n2")
    world.spool.requeue(taken)
    with open(f"{home.path_of(world.root, 1)}/stdout", "wb") as file:
        file.write(b"of the second attempt")
    world.runner.end((1, 1))
    world.turn(node, "deliver")
    assert (b"of the second attempt", said(1)) == (output(world), output(world, name="stdout.1.late"))
    assert [] == kept(world)


def test_a_home_that_was_removed_keeps_no_job_running(world):
    import shutil

    world.submit(output_mode="local")
    node = world.up()
    world.turn(node)
    shutil.rmtree(home.path_of(world.root, 1))
    world.runner.end((1, 1))
    world.turn(node)
    assert ("done", []) == (world.at(1).top, kept(world))


def test_somebody_who_follows_sees_what_there_is_so_far(world, monkeypatch):
    monkeypatch.setattr(control, "FOLLOWED_S", 1e6)
    world.submit(output_mode="local")
    node = world.up()
    world.turn(node)
    world.spool.request("n1", "follow", 1, {"attempt": 1}, "0")
    for _ in range(2):
        world.turn(node, "control", "followed")
    assert said(1) == output(world)
    with open(f"{world.state}/jobs/1.1/stdout", "ab") as file:
        file.write(b"more\n")
    world.turn(node, "followed")
    assert said(1) + b"more\n" == output(world)
    world.runner.end((1, 1))
    world.turn(node)
    assert said(1) + b"more\n" == output(world)


def test_a_full_local_disk_claims_nothing(world, monkeypatch):
    world.submit(output_mode="local")
    node = world.daemon()
    real = fsops.free_mb
    monkeypatch.setattr(fsops, "free_mb", lambda path: 0 if path == world.state else real(path))
    node.begin()
    world.turn(node)
    assert ("queue", "full") == (world.at(1).top, node.presence.state)


# --- killed at every file operation


def local(world: World) -> None:
    """Two jobs that write, one of them to a place of its own."""
    world.runner.writes = SAID
    world.submit(output_mode="local")
    world.submit(output_mode="local", output="mine")


def whole(world: World) -> None:
    """Everything that was written is there, once, and nothing is left on the node's disk."""
    assert said(1) == output(world)
    with open(f"{world.chdir}/mine", "rb") as file:
        assert said(1) == file.read()
    assert [] == kept(world)
    assert [] == [name for job in "12" for name in os.listdir(f"{world.root}/jobs/0/{job}") if "late" in name]


def test_node_dies_at_every_call_of_shipping(tmp_path, monkeypatch):
    points = explore(tmp_path, monkeypatch, local, lambda w: w.serve(), after=whole)
    print(f"shipping: {points} crash points")
    assert points > 150


@pytest.mark.parametrize("code", [errno.ENOSPC, pytest.param(errno.ESTALE, marks=pytest.mark.more)])
def test_shipping_goes_on_when_any_call_fails_once(tmp_path, monkeypatch, code):
    monkeypatch.setattr(daemon, "RETRY_S", (0.0, 0.0))
    monkeypatch.setattr(recover, "FULL_S", 0)
    monkeypatch.setattr(Daemon, "pause", lambda self, seconds: self.set_due("beat", 0.0))  # time passes
    explore(tmp_path, monkeypatch, local, lambda w: w.serve(), after=whole, error=code)


def test_after_a_reboot_it_is_shipped_also_by_a_daemon_that_dies(tmp_path, monkeypatch):
    def before(world: World) -> None:
        world.runner.ends, world.runner.writes = False, SAID
        world.submit(output_mode="local")
        world.turn(world.up())
        world.runner.ends = True
        world.reboot()

    def all_there(world: World) -> None:
        assert said(1, 2) == output(world)
        assert [] == kept(world)

    points = explore(tmp_path, monkeypatch, before, lambda w: w.serve(), after=all_there, starts=2)
    assert points > 150


def test_a_follower_and_a_death(tmp_path, monkeypatch):
    """Part of it was shown; the daemon dies; the whole comes once."""
    world = World(str(tmp_path / "w"), monkeypatch, ends=False)
    local(world)
    node = world.up()
    world.turn(node)
    world.spool.request("n1", "follow", 1, {"attempt": 1}, "0")
    with faulty(only="lseek", at=0):
        try:
            world.turn(node, "control")
            world.turn(node, "followed")
        except Died:
            pass
    for key in world.runner.jobs:
        world.runner.end(key)
    world.serve()
    whole(world)
    world.close()


# --- real nodes


def test_out_follows_a_job_that_keeps_its_output_to_itself(cluster):
    cluster.node()
    job = cluster.sub(
        "--output-mode", "local", "sh", "-c", "echo first; touch up; while [ ! -e go ]; do sleep 0.1; done; echo last"
    )
    cluster.running(job, f"{cluster.base}/up")
    done = cluster.spoolq("out", str(job))
    assert f"spoolq: job {job} keeps its output on n1 until it ends; -f asks for it\n" == done.stderr
    following = cluster.start("out", "-f", str(job))
    assert b"first\n" == following.stdout.readline()
    assert "running" == cluster.place(job)
    with open(f"{cluster.base}/go", "w", encoding="ascii"):
        pass
    assert b"last\n" == following.communicate(timeout=120)[0]
    assert "first\nlast\n" == cluster.text(job)


def test_daemons_that_are_killed_lose_no_output(cluster):
    """While it runs, and after it has ended."""
    node = cluster.node()
    script = "touch up$0; while [ ! -e go ]; do sleep 0.05; done; seq 20000; touch ended$0"
    jobs = [cluster.sub("--output-mode", "local", "sh", "-c", script, str(number)) for number in range(2)]
    for number, job in enumerate(jobs):
        cluster.running(job, f"{cluster.base}/up{number}")
    node.kill()
    node.wait()
    with open(f"{cluster.base}/go", "w", encoding="ascii"):
        pass
    for number, job in enumerate(jobs):
        cluster.running(job, f"{cluster.base}/ended{number}")
    cluster.node()
    for job in jobs:
        assert "COMPLETED" == cluster.result(job)["state"]
        assert "".join(f"{n}\n" for n in range(1, 20001)) == cluster.text(job)


def test_run_shows_it_while_it_runs(cluster):
    running = cluster.start(
        "run", "--output-mode", "local", "sh", "-c", "echo first; while [ ! -e go ]; do sleep 0.1; done"
    )
    assert b"first\n" == running.stdout.readline()
    with open(f"{cluster.base}/go", "w", encoding="ascii"):
        pass
    running.communicate(timeout=120)
    assert 0 == running.returncode
