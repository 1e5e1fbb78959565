"""Jobs that submit jobs and wait for them: what they lend, what they take again, and who ends with whom."""

import json
import os
import signal
import sys
from types import SimpleNamespace

import pytest

from spoolq import control, descent, environment, fair, lend, nested
from spoolq.around import Around
from spoolq.config import NO_SETTINGS
from spoolq.deliver import Finished
from spoolq.entry import Entry, parse_name
from spoolq.errors import UsageError
from spoolq.job import Job
from spoolq.live import Live
from spoolq.spool import Placed, Spool
from tests.cluster import Cluster, read
from tests.desk import put, run
from tests.test_crash_points import explore_node, running
from tests.world import World

SPOOLQ = f"{sys.executable} -m spoolq"


def script(cluster: Cluster, name: str, text: str) -> str:
    path = f"{cluster.base}/{name}"
    with open(path, "w") as file:
        file.write(f"#!/bin/sh\n{text}\n")
    os.chmod(path, 0o755)
    return path


def touch(path: str) -> None:
    with open(path, "w"):
        pass


def test_ten_jobs_deep_on_one_cpu(cluster: Cluster):
    """Each asks for the whole cpu and for most of the memory, and waits for the next."""
    cluster.node(cpus=1)
    ask = f"[ $1 -eq 0 ] && exit 7; exec {SPOOLQ} run -c 1 -m 800G {cluster.base}/deep.sh $(($1 - 1))"
    deep = script(cluster, "deep.sh", f"echo level $1 of priority $SPOOLQ_PRIORITY in $SPOOLQ_PARENT\n{ask}")
    first = cluster.sub("-c", "1", "-m", "800G", "-p", "3", deep, "9")

    assert 7 == cluster.result(first)["exit_code"]
    levels = [line.split()[:5] for line in cluster.text(first).splitlines()]
    assert [["level", str(9 - i), "of", "priority", "3"] for i in range(10)] == levels
    assert "level 0 of priority 3 in 9" == cluster.text(first).splitlines()[-1]
    assert [7] * 10 == [cluster.result(job)["exit_code"] for job in range(first, first + 10)]
    cluster.until(lambda: not os.listdir(f"{cluster.root}/nodes/n1/control"), "nobody waits any more")


@pytest.mark.parametrize("how", ["sub -W", "wait"])
def test_sub_that_waits_and_wait_lend_and_take_again(cluster: Cluster, how):
    cluster.node(cpus=1)
    work = f"touch {cluster.base}/up; while [ ! -e {cluster.base}/go ]; do sleep 0.02; done"
    child = f"sh -c '{work}'"
    line = f"{SPOOLQ} sub -W {child}" if how == "sub -W" else f"{SPOOLQ} wait $({SPOOLQ} sub {child})"
    parent = cluster.sub(
        "--wrap", f"{line}; touch {cluster.base}/back; while [ ! -e {cluster.base}/end ]; do sleep 0.02; done"
    )
    other = parent + 1
    cluster.until(lambda: os.path.exists(f"{cluster.base}/up"), "the child runs beside its parent")

    facts = cluster.until(lambda: cluster.facts("n1").get("lent") and cluster.facts("n1"), "the node says so")
    assert 1000 == facts["lent"][str(parent)]["cpus"]
    assert "waits for jobs of its own, and lends 1 cpus" in cluster.ok("why", str(parent))
    assert "lends" in cluster.ok("show", str(parent))
    assert f"parent     job {parent}" in cluster.ok("show", str(other))
    assert parent == json.loads(cluster.ok("show", "--json", str(other)))["job"][0]["job"]["parent"]

    touch(f"{cluster.base}/go")
    cluster.until(lambda: os.path.exists(f"{cluster.base}/back"), "the parent goes on")
    cluster.until(lambda: not cluster.facts("n1")["lent"], "it has its cpu again")
    third = cluster.sub("true")
    cluster.until(lambda: "Resources" in cluster.ok("why", str(third)), "no cpu is free")
    assert "queue" == cluster.place(third)
    touch(f"{cluster.base}/end")
    assert ["COMPLETED"] * 3 == [cluster.result(job)["state"] for job in (parent, other, third)]


def test_a_restarted_daemon_knows_who_waits_and_a_killed_command_lends_nothing(cluster: Cluster):
    node = cluster.node(cpus=1)
    wait = f"{SPOOLQ} wait 4711 & echo $! > {cluster.base}/pid; wait; while [ ! -e {cluster.base}/end ]; do sleep 0.02; done"
    far = cluster.sub("-H", "true")
    parent = cluster.sub("--wrap", wait.replace("4711", str(far)))
    cluster.until(lambda: cluster.facts("n1").get("lent"), "it waits")
    node.kill()
    node.wait()
    cluster.node(cpus=1)
    cluster.until(lambda: cluster.facts("n1").get("lent"), "the new daemon has found the request")
    assert "COMPLETED" == cluster.result(cluster.sub("true"))["state"]
    os.kill(int(cluster.until(lambda: read(f"{cluster.base}/pid"), "the shell has told")), signal.SIGKILL)

    cluster.until(lambda: not cluster.facts("n1")["lent"], "the daemon sees that nobody waits")
    cluster.until(lambda: not os.listdir(f"{cluster.root}/nodes/n1/control"), "the request is gone")
    touch(f"{cluster.base}/end")
    assert "COMPLETED" == cluster.result(parent)["state"]


def test_the_embedded_node_of_run_serves_nested_runs(cluster: Cluster):
    inner = f"{SPOOLQ} run sh -c 'echo inside'; exit 5"
    done = cluster.spoolq("run", "--", "sh", "-c", inner)

    assert (5, "inside\n") == (done.returncode, done.stdout), done


@pytest.mark.parametrize("how", ["killed", "at its time limit"])
def test_a_parent_that_is_ended_ends_its_children_waiting_and_running_everywhere(cluster: Cluster, how):
    cluster.node("n1", 1)
    cluster.node("n2", 1)
    child = f"touch {cluster.base}/child.up; sleep 100"
    lines = f"""
        {SPOOLQ} sub -w n2 sh -c '{child}'
        {SPOOLQ} sub -w n2 sleep 100
        {SPOOLQ} sub -H --wrap 'sleep 100'
        {SPOOLQ} sub -w n2 --detach -H true
        touch {cluster.base}/parent.up; sleep 100"""
    limit = ["-t", "1h"] if how != "killed" else []
    parent = cluster.sub("-w", "n1", *limit, script(cluster, "parent.sh", lines))
    for mark in ("parent.up", "child.up"):
        cluster.until(lambda mark=mark: os.path.exists(f"{cluster.base}/{mark}"), mark)
    if how == "killed":
        cluster.ok("kill", str(parent))
    else:
        cluster.ok("edit", str(parent), "time=1s")

    running, waiting, held, free = range(parent + 1, parent + 5)
    assert "CANCELLED" == cluster.result(running)["state"]
    assert f"with its parent, job {parent}" in cluster.result(waiting)["reason"]
    assert "CANCELLED" == cluster.result(held)["state"]
    cluster.result(parent)
    assert "held" == cluster.place(free)


def test_a_parent_that_ends_by_itself_ends_nobody(cluster: Cluster):
    cluster.node(cpus=1)
    parent = cluster.sub("--wrap", f"{SPOOLQ} sub -H true; exit 3")
    cluster.result(parent)

    assert "held" == cluster.place(parent + 1)
    cluster.ok("release", str(parent + 1))
    assert "COMPLETED" == cluster.result(parent + 1)["state"]


def test_a_nested_job_may_use_what_a_reservation_keeps(cluster: Cluster):
    """A whole-node job that comes before it must not wait for its parent while the parent waits for it."""
    cluster.node(cpus=2)
    go = f"while [ ! -e {cluster.base}/go ]; do sleep 0.02; done; {SPOOLQ} run -m 1 true"
    parent = cluster.sub("-m", "500", "--wrap", go)
    whole = cluster.sub("-m", "64T", "true")
    small = cluster.sub("-m", "1", "true")
    cluster.until(lambda: "keeps" in cluster.ok("why", str(small)), "a place is kept")
    touch(f"{cluster.base}/go")

    assert ["COMPLETED"] * 3 == [cluster.result(job)["state"] for job in (parent, whole, small)]


# --- without processes


def test_what_a_job_holds_while_it_waits():
    at = Placed("running/n1", Entry(500, 7, wants={"cpus": 2000, "mem": 900_000, "gpu": 1000}))
    live = Live(at, None, lends=True)
    assert {"cpus": 0, "mem": 900_000, "gpu": 1000} == live.holds  # not measured yet
    live.rss_mb = 100
    assert {"cpus": 0, "mem": 100_000, "gpu": 1000} == live.holds
    assert {"7": {"cpus": 2000, "mem": 800_000}} == lend.given([live])
    live.rss_mb = 1000
    assert 900_000 == live.holds["mem"]
    live.lends = False
    assert at.entry.wants == live.holds
    assert {} == lend.given([live])


def test_a_job_that_lends_does_not_count_among_what_its_user_runs():
    waits = Entry(500, 7, wants={"cpus": 2000}, owner="anna", other=("L",))
    runs = Entry(500, 8, wants={"cpus": 1000}, owner="anna", other=("P7",))
    assert {"anna": (1, 1000)} == fair.used([waits, runs])


def test_only_a_process_of_this_boot_that_lives_waits(spool):
    me = {"pid": os.getpid(), "start": nested.host.process_identity(os.getpid()), "boot": nested.host.boot_id()}
    assert lend.waits(me)
    for wrong in (
        {"pid": 2**22 + 5},
        {"start": 1},
        {"boot": "x"},
        {"pid": "7"},
        {"pid": -1},
        {"start": None},
        {"pid": True},
    ):
        assert not lend.waits(me | wrong)


def test_who_is_inside_a_job(spool, monkeypatch):
    inside = {"SPOOLQ_JOB_ID": "7", "SPOOLQ_ATTEMPT": "2", "SPOOLQ_NODE": "n1", "SPOOLQ_SPOOL": spool.root}
    assert nested.outer(spool) is None
    for name, value in inside.items():
        monkeypatch.setenv(name, value)
    assert (7, 2, "n1", 0, None) == nested.outer(spool)
    monkeypatch.setenv("SPOOLQ_PRIORITY", "-5")
    assert {"priority": -5, "parent": "7"} == nested.base(spool)
    with pytest.raises(UsageError, match="its own end"):
        nested.refuse_own(spool, {7})
    with monkeypatch.context() as patch:
        patch.setenv("SPOOLQ_JOB_ID", "7_3")
        assert (7, 3, "7_3") == (nested.outer(spool).id, nested.outer(spool).task, nested.outer(spool).unit)
        assert "7_3" == nested.base(spool)["parent"]
        for wanted in (7, "7_3"):
            with pytest.raises(UsageError, match="7_3 would wait for its own end"):
                nested.refuse_own(spool, {wanted})
    for name, value in (
        ("SPOOLQ_JOB_ID", "../7"),
        ("SPOOLQ_JOB_ID", "7_"),
        ("SPOOLQ_JOB_ID", "7_../3"),
        ("SPOOLQ_ATTEMPT", ""),
        ("SPOOLQ_NODE", ""),
        ("SPOOLQ_SPOOL", "/"),
    ):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert nested.outer(spool) is None
            assert {} == nested.base(spool)


def test_a_request_to_lend_is_gone_when_nobody_waits(tmp_path, monkeypatch):
    world = World(str(tmp_path), monkeypatch, ends=False)
    world.submit()
    node = world.up(cpus=1)
    world.turn(node)
    for name, value in {"JOB_ID": "1", "ATTEMPT": "1", "NODE": "n1", "SPOOL": world.root}.items():
        monkeypatch.setenv(f"SPOOLQ_{name}", value)
    with nested.waiting(world.spool):
        control.obey(node)
        assert node.live[1].lends
        assert 1 == len(world.requests())
    control.obey(node)
    assert not node.live[1].lends
    assert [] == world.requests()
    world.spool.request("n1", "lend", 1, {"attempt": 1, "pid": 2**22 + 5, "start": 1, "boot": "x"}, "t")
    world.spool.request("n1", "lend", 99, {"attempt": 1, "pid": os.getpid()}, "t")
    me = {"pid": os.getpid(), "start": nested.host.process_identity(os.getpid()), "boot": nested.host.boot_id()}
    world.spool.request("n1", "lend", 1, {"attempt": 1, **me, "task": [1]}, "u")  # anybody may have written it
    control.obey(node)
    assert [] == world.requests()
    world.close()


def test_children_are_ended_before_the_parents_end_is_delivered(spool, tmp_path):
    node = SimpleNamespace(spool=spool, node="n1", around=Around(spool.root, "n1", str(tmp_path), NO_SETTINGS))
    child = put(spool, parent="1")
    running = run(spool, put(spool, parent="1"), "n2")
    gone = 99
    for number in (child.entry.id, running.entry.id, gone):
        nested.record(spool, Job(command=("x",), parent=str(child.entry.id)), number)
    descent.end_children(node, child.entry.id)

    assert "done" == spool.find(child.entry.id).top
    assert ["kill"] == [request["verb"] for _, request in spool.requests("n2")]
    descent.end_children(node, child.entry.id)  # again, as after a crash
    assert 1 == len(spool.requests("n2"))


@pytest.mark.parametrize(
    ("ended", "facts", "answer"),
    [
        ({"reason": "cancelled"}, {}, True),
        ({"reason": "timeout"}, {}, True),
        ({"reason": "oom: 3"}, {}, True),
        ({"reason": "", "exit_code": 0}, {}, False),
        ({"exit_code": 3}, {"requeue": True, "retry": True}, False),
        ({"exit_code": 3}, {"requeue": True}, True),
        ({"signal": 9}, {}, False),
    ],
)
def test_who_was_ended_from_outside(ended, facts, answer):
    assert answer is descent.was_ended(Finished(Placed("running/n1", Entry(500, 7)), ended, None, **facts))


def test_a_node_that_ends_a_family_dies_at_every_call(tmp_path, monkeypatch):
    """One of two children waits, one runs; whenever the node dies, all three have ended in the end."""

    def before(world: World) -> None:
        running("kill")(world)  # 1 and 2 run, 1 is to be killed
        nested.record(world.spool, Job(command=("x",), parent="1"), 2)
        nested.record(world.spool, Job(command=("x",), parent="1"), world.submit(held="HU", parent="1"))

    def verify(world: World) -> None:
        assert [("done", "cancelled", 1)] * 3 == [world.where(job) for job in (1, 2, 3)]

    points = explore_node(tmp_path, monkeypatch, before, verify)
    print(f"a family is ended: {points} crash points")
    assert points > 20


def test_the_name_of_a_child_says_whose_it_is():
    entry = Job(command=("x",), parent="42").entry(43)
    assert 42 == entry.parent
    assert entry == parse_name(entry.name)
    assert 0 == Job(command=("x",), parent="none").entry(43).parent


def test_what_a_nested_job_finds_in_its_environment():
    job = Job(command=("x",), parent="42", priority=7, depend=("afterok:3",), user="a")
    env = environment.for_job(environment.shared(b""), job.entry(43), job, node="n1", spool="/s", tmpdir="/t")
    assert {"SPOOLQ_PARENT=42", "SPOOLQ_PRIORITY=7", "SPOOLQ_DEPENDENCY=afterok:3"} <= set(env)


def test_a_command_outside_a_job_asks_nobody(root, monkeypatch):
    monkeypatch.delenv("SPOOLQ_JOB_ID", raising=False)
    spool = Spool(root)
    with nested.waiting(spool):
        assert [] == spool.nodes()


def test_a_limit_of_one_job_for_each_user_does_not_keep_a_job_from_its_own(cluster: Cluster):
    with open(f"{cluster.root}/spool.toml", "a") as file:
        file.write("\n[policy]\nmax_running = 1\n")
    cluster.node(cpus=4)
    parent = cluster.sub("--wrap", f"{SPOOLQ} run echo inside; touch {cluster.base}/end; sleep 1")
    ids = [parent, cluster.sub("true")]
    assert ["COMPLETED"] * 2 == [cluster.result(job)["state"] for job in ids]
    assert "inside\n" == cluster.text(parent)
