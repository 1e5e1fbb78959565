"""Jobs that wait for other jobs: real submissions, real nodes; and a daemon killed at every call."""

import json
import os
import signal

import pytest

from spoolq import awaiting, home, parents, steer, stored, ties
from spoolq.depend import Condition
from spoolq.entry import Entry
from spoolq.spool import Spool
from spoolq.state import State
from tests.cluster import PATIENCE_S, Cluster
from tests.faults import faulty
from tests.test_crash_points import act_on, explore, submit_one
from tests.world import World


def touch(path: str) -> None:
    with open(path, "w"):
        pass


def gate(cluster: Cluster, name: str, code: int = 0, *words: str) -> int:
    """A job that ends with a code when a file appears."""
    wait = f"touch {cluster.base}/{name}.up; while [ ! -e {cluster.base}/{name} ]; do sleep 0.02; done; exit {code}"
    return cluster.sub(*words, "sh", "-c", wait)


def test_a_child_starts_after_its_parents_have_ended_as_it_asks(cluster: Cluster):
    cluster.node(cpus=8)
    good, bad = gate(cluster, "good"), gate(cluster, "bad", 3)
    child = cluster.sub("-d", f"afterok:{good},afternotok:{bad}", "sh", "-c", "echo ran")
    after = cluster.sub("-d", f"afterany:{child}", "true")
    cluster.running(good, f"{cluster.base}/good.up")
    cluster.running(bad, f"{cluster.base}/bad.up")

    assert "held" == cluster.place(child)
    assert f"Dependency: waits for job {good} (RUNNING on n1) to complete" in cluster.ok("stat")
    told = cluster.ok("why", str(child))
    assert f"afterok:{good}: job {good} (RUNNING on n1)" in told
    assert f"afternotok:{bad}: job {bad} (RUNNING on n1)" in told

    touch(f"{cluster.base}/good")
    cluster.result(good)
    assert "held" == cluster.place(child)
    touch(f"{cluster.base}/bad")

    assert "COMPLETED" == cluster.result(child)["state"]
    assert "ran\n" == cluster.text(child)
    assert "COMPLETED" == cluster.result(after)["state"]


def test_a_failed_parent_ends_the_child_and_its_children_with_the_reason(cluster: Cluster):
    cluster.node()
    parent = gate(cluster, "go", 3)
    child = cluster.sub("-d", str(parent), "true")
    grandchild = cluster.sub("-d", "last", "true")
    other = cluster.sub("-d", f"afternotok:{grandchild}", "true")
    touch(f"{cluster.base}/go")

    result = cluster.result(child)
    assert ("CANCELLED", None) == (result["state"], result["node"])
    assert f"DependencyNeverSatisfied: job {parent} ended as FAILED (exit3)" in result["reason"]
    assert f"job {child} ended as CANCELLED" in cluster.result(grandchild)["reason"]
    assert "COMPLETED" == cluster.result(other)["state"]
    assert 130 == cluster.spoolq("wait", str(child)).returncode
    assert "DependencyNeverSatisfied" in cluster.ok("why", str(child))


def test_a_child_may_wait_for_what_can_never_be_until_its_parent_runs_again(cluster: Cluster):
    cluster.node()
    parent = cluster.sub("sh", "-c", f"test -e {cluster.base}/fixed")
    child = cluster.sub("-d", str(parent), "--kill-on-invalid-dep", "no", "true")
    cluster.result(parent)
    cluster.until(lambda: "DependencyNeverSatisfied" in cluster.ok("stat"), "the reason is shown")
    touch(f"{cluster.base}/fixed")
    cluster.ok("requeue", str(parent))

    assert "COMPLETED" == cluster.result(child)["state"]


def test_a_parent_that_has_ended_before_lets_the_child_go_at_once(cluster: Cluster):
    cluster.node()
    parent = cluster.sub("-J", "first", "true")
    cluster.result(parent)
    child = cluster.sub("-d", "@first", "true")
    late = cluster.spoolq("sub", "-d", f"afternotok:{parent}", "true")

    assert "COMPLETED" == cluster.result(child)["state"]
    assert 0 == late.returncode
    assert "was cancelled at once" in late.stderr
    assert "CANCELLED" == cluster.result(int(late.stdout))["state"]


def test_unknown_jobs_and_so_cycles_are_refused(cluster: Cluster):
    job = cluster.sub("true")
    for words, text in (
        (["-d", f"{job + 1}"], f"job {job + 1}: no such job"),
        (["-d", "afterok:99"], "job 99: no such job"),
        (["-d", "@nobody"], "no job of that name"),
        (["-d", f"afterok:{job}_7"], "is no array"),
        (["-d", "before:1"], "no kind of dependency"),
    ):
        done = cluster.spoolq("sub", *words, "true")
        assert (2, "") == (done.returncode, done.stdout), done
        assert text in done.stderr
    refused = cluster.spoolq("edit", str(job), "depend=1")
    assert 2 == refused.returncode
    assert "only `none` is possible" in refused.stderr


def test_scripts_job_files_dropped_files_and_lines_can_depend(cluster: Cluster):
    parent = gate(cluster, "go")
    with open(f"{cluster.base}/step.sh", "w") as file:
        file.write(f"#!/bin/sh\n#SPOOLQ -d {parent}\ntrue\n")
    with open(f"{cluster.base}/job.toml", "w") as file:
        file.write(f'command = ["true"]\ndepend = "afterok:{parent}"\n')
    ids = [cluster.sub("./step.sh"), cluster.sub("-f", "job.toml")]
    ids += map(int, cluster.ok("sub", "-d", str(parent), "--each-line", "-", stdin="true\ntrue\n").split())
    with open(f"{cluster.root}/drop/cron.toml", "w") as file:
        file.write(f'command = ["true"]\ndepend = ["afterany:{parent}", "after:{ids[0]}"]\n')
    with open(f"{cluster.root}/drop/bad.toml", "w") as file:
        file.write('command = ["true"]\ndepend = "afterok:4711"\n#SPOOLQ end\n')
    cluster.node(cpus=4)
    cluster.until(lambda: os.path.exists(f"{cluster.root}/drop/cron.toml.id"), "the file is admitted")
    with open(f"{cluster.root}/drop/cron.toml.id") as file:
        ids.append(int(file.read()))
    cluster.until(lambda: cluster.place(ids[-1]), "its job is there")  # the id is told before
    cluster.until(lambda: os.path.exists(f"{cluster.root}/drop/bad.toml.why"), "the other is refused")

    assert ["held"] * 5 == [cluster.place(job) for job in ids]
    touch(f"{cluster.base}/go")
    assert ["COMPLETED"] * 5 == [cluster.result(job)["state"] for job in ids]


def test_hold_release_edit_and_requeue_keep_the_dependency(cluster: Cluster):
    cluster.node()
    parent = gate(cluster, "go")
    held = cluster.sub("-H", "-d", str(parent), "true")
    free = cluster.sub("-d", str(parent), "true")
    refused = cluster.spoolq("release", str(free))
    cluster.ok("release", str(held))

    assert 1 == refused.returncode
    assert "depend=none" in refused.stderr
    assert "waits for job" in cluster.ok("why", str(held))
    cluster.ok("hold", str(free))
    cluster.ok("release", str(free))
    assert ["held", "held"] == [cluster.place(held), cluster.place(free)]

    cluster.ok("edit", str(free), "depend=none")
    assert "COMPLETED" == cluster.result(free)["state"]
    cluster.ok("requeue", str(free))
    assert "held" == cluster.place(free)
    touch(f"{cluster.base}/go")
    assert ["COMPLETED", "COMPLETED"] == [cluster.result(job)["state"] for job in (held, free)]


def test_the_finisher_dies_before_the_release_and_another_node_lets_the_child_go(cluster: Cluster):
    first = cluster.node("n1", 1)
    parent = gate(cluster, "go")
    cluster.running(parent, f"{cluster.base}/go.up")
    child = cluster.sub("-d", str(parent), "true")
    cluster.node("n2", 1)
    spool = Spool(cluster.root)
    first.send_signal(signal.SIGKILL)
    first.wait()
    touch(f"{cluster.base}/go")
    # n1 has ended it and is gone: as if it had died between the commit and the release
    assert spool.finish(spool.find(parent), "exit0")[0].value == "won"

    assert "n2" == cluster.result(child)["node"]


def test_a_retried_parent_has_not_ended(cluster: Cluster):
    cluster.policy(grace_s=1, settle_s=0, min_free_mb=1, retry_s=0.1)
    cluster.node()
    flaky = f"echo x >> {cluster.base}/tries; test $(wc -l < {cluster.base}/tries) = 3"
    parent = cluster.sub("-r", "3", "sh", "-c", flaky)
    child = cluster.sub("-d", str(parent), "sh", "-c", f"wc -l < {cluster.base}/tries")

    assert "COMPLETED" == cluster.result(child)["state"]
    assert "3" == cluster.text(child).strip()


def test_a_job_in_the_foreground_waits_for_its_parent_and_says_so(cluster: Cluster):
    parent = gate(cluster, "go")
    run = cluster.start("run", "-d", str(parent), "echo", "here")
    assert run.stderr is not None
    said = b""
    while b" waits: " not in said:
        assert (line := run.stderr.readline()), said
        said += line
    touch(f"{cluster.base}/go")
    out, _ = run.communicate(timeout=PATIENCE_S)

    assert (0, b"here\n") == (run.returncode, out)
    assert f"waits: Dependency: waits for job {parent}" in said.decode()


# --- at every call


def family(world: World) -> None:
    """A parent that has ended, and a child that nobody has looked at since it was committed."""
    world.submit()
    world.serve()
    world.submit(depend=("afterok:1",))


def test_a_node_that_lets_a_child_go_dies_at_every_call(tmp_path, monkeypatch):
    points = explore(tmp_path, monkeypatch, family, lambda world: world.serve())
    print(f"release of a child: {points} crash points")
    assert points > 20


def test_a_submitter_that_looks_at_the_parents_dies_at_every_call(tmp_path, monkeypatch):
    def look(world: World) -> None:
        spool = Spool(world.root)
        placed = spool.find(2)
        ties.after(spool, [placed], stored.read_job(home.read_job(spool.root, 2), "job"))

    points = explore(tmp_path, monkeypatch, family, look)
    assert points >= 2


def test_a_node_that_ends_a_child_dies_at_every_call(tmp_path, monkeypatch):
    def before(world: World) -> None:
        submit_one(world)
        act_on(steer.kill_step(None))(world)
        world.submit(depend=("afterok:1",))

    def ended(world: World) -> None:
        assert ("done", "cancelled", 1) == world.where(2)

    points = explore(tmp_path, monkeypatch, before, lambda world: world.serve(), after=ended)
    assert points > 10


def test_a_child_whose_file_is_gone_is_not_held_for_ever(tmp_path, monkeypatch):
    world = World(str(tmp_path), monkeypatch)
    submit_one(world)
    world.submit(depend=("afterok:1",))
    os.unlink(f"{home.path_of(world.root, 2)}/job")
    world.serve()

    assert "done" == world.where(2)[0]


@pytest.mark.parametrize(("task", "state"), [(None, State.COMPLETED), (7, State.PENDING)])
def test_history_of_one_task_is_not_the_end_of_an_array_whose_entries_are_not_seen(spool, task, state):
    """As on NFS, where a client remembers for a minute that done/0 is missing (simulation, seed 700809)."""
    line = {"format": 1, "id": 1, "attempt": 1, "state": "COMPLETED", "exit_code": 0, "task": task}
    spool.record("2026-01-01", "n1", [json.dumps(line).encode() + b"\n"])
    assert state is parents.Parents(spool).fate(Condition("afterok", "1")).state
    assert (task is None) == (1 in awaiting.lost(spool, [1]))


def test_jobs_without_children_cost_no_call(tmp_path, monkeypatch):
    """What a finished job asks is a dictionary in memory."""
    world = World(str(tmp_path), monkeypatch)
    node = world.up()
    world.turn(node)
    node.dependents.over = [1, 2, 3]
    node.set_due("held", float("inf"))

    with faulty() as fake:
        node.dependents.step(0.0)
    assert 0 == fake.count


def test_a_parent_of_several_entries_has_ended_when_all_have(spool):
    """As the chunks of an array."""
    look = lambda: parents.Parents(spool).fate(Condition("afterok", "7"))  # noqa: E731
    for chunk, ending, top in (("a1-5", "exit0", "done"), ("a6-10", None, "running"), ("a11-15", "exit0", "done")):
        entry = Entry(500, 7, gen=3, ending=ending, chunk=chunk)
        place = "done/0" if top == "done" else "running/n1"
        os.makedirs(f"{spool.root}/{place}", exist_ok=True)
        os.symlink("x", f"{spool.root}/{place}/{entry.name}")
    assert (State.RUNNING, True) == look()[:2]
    running = Entry(500, 7, gen=3, chunk="a6-10")
    for ending, state in (("exit3", State.FAILED), ("exit0", State.COMPLETED)):
        ended = running._replace(ending=ending)
        os.rename(f"{spool.root}/running/n1/{running.name}", f"{spool.root}/done/0/{ended.name}")
        assert state is look().state
        os.rename(f"{spool.root}/done/0/{ended.name}", f"{spool.root}/running/n1/{running.name}")


@pytest.mark.parametrize("gone", ["swept", "swept with its history"])
def test_a_parent_that_was_swept_away_is_known_by_history_or_never_waited_for(tmp_path, monkeypatch, gone):
    world = World(str(tmp_path), monkeypatch)
    submit_one(world)
    world.serve()
    world.submit(depend=("afterok:1",))
    world.submit(depend=("afterany:1",))
    at = world.at(1)
    os.unlink(f"{world.root}/{at.path}")
    if gone != "swept":
        for name in os.listdir(f"{world.root}/history"):
            os.unlink(f"{world.root}/history/{name}")
    world.acknowledged.remove(1)
    node = world.up()
    node.dependents.look(1e9)
    world.serve()

    assert ("done", "exit0" if gone == "swept" else "cancelled", 1) == world.where(2)
    assert ("done", "exit0", 1) == world.where(3)
