"""Arrays beside the other capabilities: a task is treated as a job in every respect, with real daemons."""

import json
import os
import subprocess
import sys

import pytest

from spoolq import awaiting, measure, steer
from spoolq.overload import Step
from tests.cluster import PATIENCE_S, Cluster, read
from tests.test_around import configure, program
from tests.test_array_crash import recorded, submit
from tests.test_array_real import states
from tests.test_nested import SPOOLQ, script, touch
from tests.world import World

TASK = "$SPOOLQ_ARRAY_TASK_ID"
MANY = "1-301"  # of so many the first entry is 1-3


def only_first(cluster: Cluster, *words: str) -> int:
    """An array of which only the first entry, of three tasks, may start."""
    job = cluster.sub("-a", MANY, "-H", *words)
    cluster.ok("release", f"{job}_1-3")
    return job


def until_file(path: str) -> str:
    """Words for a shell that wait for a file."""
    return f"while [ ! -e {path} ]; do sleep 0.02; done"


# --- what runs around a task, and what it is given


def test_a_node_does_around_each_task_what_it_does_around_a_job(cluster: Cluster):
    log = f"{cluster.base}/log"
    prolog = program(cluster, "prolog", f"echo prolog $SPOOLQ_JOB_ID >>{log}; echo export FROM=p{TASK}")
    epilog = program(cluster, "epilog", f"echo epilog $SPOOLQ_JOB_ID $SPOOLQ_EXIT_CODE >>{log}")
    hook = program(cluster, "hook", f"echo $SPOOLQ_EVENT $SPOOLQ_JOB_ID $SPOOLQ_STATE >>{log}")
    hooks = "".join(f'on_{event} = "{hook}"\n' for event in ("submit", "start", "end", "fail"))
    node = f'prolog = "{prolog}"\nepilog = "{epilog}"\nwrapper = ["env", "WRAPPED=w"]\n'
    configure(cluster, f"[node]\n{node}[hooks]\n{hooks}")
    cluster.node("n1", 1)
    job = only_first(cluster, "--wrap", f"echo $FROM $WRAPPED; [ {TASK} != 2 ]")
    assert 1 == cluster.spoolq("wait", f"{job}_[1-3]").returncode
    assert ["p1 w", "p2 w", "p3 w"] == cluster.ok("out", f"{job}_[1-3]").splitlines()
    expected = [f"submit {job}", f"fail {job}_2 FAILED"]
    for task, state, code in ((1, "COMPLETED", 0), (2, "FAILED", 1), (3, "COMPLETED", 0)):
        unit = f"{job}_{task}"
        expected += [f"prolog {unit}", f"epilog {unit} {code}", f"start {unit}", f"end {unit} {state}"]
    cluster.until(lambda: len(read(log).splitlines()) >= len(expected), "all hooks have run")
    assert sorted(expected) == sorted(line.rstrip() for line in read(log).splitlines())


def test_each_task_holds_its_devices_alone(cluster: Cluster):
    cluster.policy(
        grace_s=1, settle_s=0, min_free_mb=1, beat_s=1
    )  # node.json, which tells who holds what, is new as often
    configure(cluster, "[node.devices]\ngpu = { count = 2 }\n")
    cluster.node("n1", 8)
    alone = "mkdir lock.$CUDA_VISIBLE_DEVICES || echo shared; sleep 0.1; rmdir lock.$CUDA_VISIBLE_DEVICES"
    job = only_first(cluster, "-g", "gpu:1", "--wrap", f"{alone}; echo $SPOOLQ_DEVICES_GPU; {until_file('go')}")
    cluster.ok("release", f"{job}_4-6")
    cluster.until(lambda: states(cluster, job).get("RUNNING") == "1,4", "both cards are lent")

    def held() -> set[str]:
        rows = json.loads(cluster.ok("show", "--json", f"{job}_[1,4]"))["job"]
        return {number for row in rows for number in row["devices"].get("gpu", {})}

    cluster.until(lambda: held() == {"0", "1"}, "the node says who holds which")
    assert "  devices    gpu " in cluster.ok("show", f"{job}_4")
    touch(f"{cluster.base}/go")
    cluster.ok("wait", f"{job}_[1-6]")
    assert {"0", "1"} == set(cluster.ok("out", f"{job}_[1-6]").split())
    parts = cluster.sub("-a", "1-6", "-g", "gpu:0.5", "--wrap", "echo $CUDA_VISIBLE_DEVICES")
    cluster.ok("wait", str(parts))
    assert {"0", "1"} >= set(cluster.ok("out", str(parts)).split())
    assert 6 == len(cluster.ok("out", str(parts)).split())


def test_what_concerns_only_some_tasks(cluster: Cluster):
    """More memory after OUT_OF_MEMORY, and only what is stale: each for itself."""
    cluster.policy(grace_s=1, settle_s=0, min_free_mb=1, retry_s=0)
    cluster.node("n1", 2)
    take = "import os, time; second = os.environ['SPOOLQ_ARRAY_TASK_ID'] == '2'; x = bytearray(second * 300 << 20)"
    stay = "second and os.environ['SPOOLQ_ATTEMPT'] == '1' and time.sleep(600)"  # until it is seen
    line = f"{take}; {stay}; print(os.environ['SPOOLQ_MEM_MB'], os.environ['SPOOLQ_ATTEMPT'])"
    job = only_first(cluster, "-m", "200", "-r", "1", "--retry-mem", "3x", sys.executable, "-c", line)
    cluster.ok("wait", f"{job}_[1-3]")
    assert ["200 1", "600 2", "200 1"] == cluster.ok("out", f"{job}_[1-3]").splitlines()

    touch(f"{cluster.base}/in")
    words = ("--if-stale", "--in", "in", "--out", "made.%a", "--stage-out", "s.%a", "--wrap")
    line = f"sleep 0.05; echo {TASK} >made.{TASK}; touch $SPOOLQ_SCRATCH/s.{TASK}; echo ran"
    first = cluster.sub("-a", "1-3", *words, line)
    cluster.ok("wait", str(first))
    os.unlink(f"{cluster.base}/made.2")
    second = cluster.sub("-a", "1-3", *words, line)
    cluster.ok("wait", str(second))
    assert ("ran\n" * 3, "ran\n") == (cluster.ok("out", str(first)), cluster.ok("out", str(second)))
    assert "up to date, not run: made.3" in cluster.ok("out", "-e", f"{second}_3")
    assert "2\n" == read(f"{cluster.base}/made.2")
    assert os.path.exists(f"{cluster.base}/s.3")


def test_an_array_begins_as_one_and_has_a_key_as_one(cluster: Cluster):
    cluster.node("n1", 4)
    begins = cluster.sub("-a", "1-40", "--begin", "now+1s", "true")
    job = cluster.sub("-a", "1-40", "--unique", "k", "-H", "true")
    taken = cluster.spoolq("sub", "--unique", "k", "true")
    assert (1, True) == (taken.returncode, f"job {job} (HELD) has the key" in taken.stderr), taken.stderr
    cluster.ok("release", str(job))
    cluster.ok("wait", str(job), str(begins))  # within two minutes: a look of five seconds lets all go
    after = cluster.sub("-a", "1-2", "--unique", "k", "-H", "true")
    refused = cluster.spoolq("requeue", str(job))
    assert (1, True) == (refused.returncode, f"job {after} (HELD) has the key" in refused.stderr), refused.stderr
    assert {"COMPLETED": "1-40"} == states(cluster, job)
    cluster.ok("kill", str(after))
    cluster.ok("requeue", f"{job}_7")
    cluster.ok("wait", str(job))
    assert 2 == json.loads(cluster.ok("show", "--json", f"{job}_7"))["job"][0]["attempt"]


# --- what is said of a task


def test_a_signal_reaches_one_task_and_orders_for_an_entry_take_all_of_its_tasks(cluster: Cluster):
    cluster.node("n1", 1)
    wait = f"trap 'echo got; exit 3' USR1; touch {cluster.base}/up; {until_file('go')}"
    job = only_first(cluster, "--wrap", f"[ {TASK} != 1 ] || {{ {wait}; }}")
    cluster.until(lambda: os.path.exists(f"{cluster.base}/up"), "the first runs")
    for words, said in (
        (("kill", "-s", "USR1", f"{job}_2"), f"job {job}_2: is not running (PENDING): no signal was sent"),
        (("suspend", f"{job}_2"), f"spoolq suspend {job}_1-3"),
        (("edit", f"{job}_[1-2]", "time=1h"), f"spoolq edit {job}_1-3"),
        (("requeue", f"{job}_2"), "again when they have ended, or kill them"),
    ):
        done = cluster.spoolq(*words)
        assert (1, True) == (done.returncode, said in done.stderr), done.stderr
    cluster.ok("edit", f"{job}_1-3", "time=1h")
    cluster.ok("suspend", f"{job}_1-3")
    cluster.until(lambda: states(cluster, job).get("SUSPENDED") == "1", "it stands still")
    cluster.ok("resume", f"{job}_1-3")
    cluster.until(lambda: states(cluster, job).get("RUNNING") == "1", "it goes on")
    cluster.ok("kill", "-s", "USR1", f"{job}_1")
    assert 3 == cluster.spoolq("wait", f"{job}_1").returncode
    cluster.ok("wait", f"{job}_[2-3]")
    assert "got\n" == cluster.ok("out", f"{job}_1")
    assert "FAILED" in cluster.ok("hist", f"{job}_1")


def test_what_a_task_writes_is_shown_before_it_ends_though_it_is_kept_on_its_node(cluster: Cluster):
    cluster.node("n1", 1)
    wait = f"echo first; {until_file('go')}; echo second; exit 5"
    job = only_first(cluster, "--output-mode", "local", "--wrap", f"[ {TASK} != 2 ] || {{ {wait}; }}")
    follower = cluster.start("out", "-f", f"{job}_2")
    assert follower.stdout is not None
    assert b"first\n" == follower.stdout.readline()
    touch(f"{cluster.base}/go")
    out, _ = follower.communicate(timeout=PATIENCE_S)
    assert (b"second\n", 5) == (out, follower.returncode)


def test_between_two_tasks_nothing_is_said_to_the_runner(world: World):
    """A user's or the node's own suspension, a signal, other limits: they hold for the next task, and none is lost."""
    submit(world)
    node = world.up(cpus=1)
    world.turn(node)
    [(unit, chunk)] = node.chunks.items()
    world.runner.end(("1_1", 1))
    node.hear()
    assert chunk.current is None
    said = len(world.runner.said)
    measure.carry_out(node, chunk.live, Step("suspend", unit), "others need it")
    assert chunk.entry.aside
    world.spool.request("n1", "signal", 1, {"attempt": 1, "chunk": "1-3", "signal": 10}, "1")
    world.spool.request("n1", "edit", 1, {"attempt": 1, "chunk": "1-3", "limit_s": 77}, "2")
    world.turn(node)
    assert [] == [m for m in world.runner.said[said:] if m["op"] in ("suspend", "signal", "limits", "start")]
    assert [("1_1", 1)] == world.runner.starts
    measure.carry_out(node, chunk.live, Step("resume", unit), "there is room again")
    world.turn(node)
    assert [("1_1", 1), ("1_2", 1)] == world.runner.starts
    assert 77 == world.runner.heard("start")[-1]["limit_s"]
    assert [] == [message for message in world.runner.said if message.get("id") == ""]
    measure.carry_out(node, chunk.live, Step("suspend", unit), "others need it")
    assert "1_2" == world.runner.heard("suspend")[-1]["id"]


def test_a_suspended_entry_whose_last_task_is_killed_has_ended(world: World):
    submit(world)
    node = world.up(cpus=1)
    world.turn(node)
    for task in (1, 2):
        world.runner.end((f"1_{task}", 1))
        world.turn(node)
    world.spool.request("n1", "suspend", 1, {"attempt": 1, "chunk": "1-3"}, "1")
    world.spool.request("n1", "kill", 1, {"attempt": 1, "chunk": "1-3", "task": 3}, "2")
    for _ in range(3):
        world.turn(node)
    [at] = [at for at in world.placed() if at.entry.chunk == "a1-3"]
    assert ("done", "cancelled") == (at.top, at.entry.ending)
    assert {1: "COMPLETED", 2: "COMPLETED", 3: "CANCELLED"} == recorded(world)


def test_a_task_that_is_to_run_again_has_not_ended(tmp_path, monkeypatch):
    world = World(str(tmp_path / "w"), monkeypatch)
    submit(world)
    world.serve()
    assert {"1_2"} == set(awaiting.ended_now(world.spool, {"1_2"}, sure=True))
    [at] = [at for at in world.placed() if at.entry.chunk == "a1-3"]
    steer.do(world.spool, at, steer.requeue_step())
    assert {"1_4"} == set(awaiting.ended_now(world.spool, {"1_2", "1_4"}, sure=True))
    world.serve()
    assert {"1_2"} == set(awaiting.ended_now(world.spool, {"1_2"}, sure=True))


# --- jobs in tasks


def test_tasks_that_submit_and_wait_on_one_cpu(cluster: Cluster):
    """A chunk of which each task runs a job of its own, one of which runs another: one cpu is enough for all."""
    cluster.node(cpus=1)
    inner = script(cluster, "inner.sh", f"{SPOOLQ} run -c 1 -- sh -c 'echo deepest of $SPOOLQ_PARENT; exit 3'")
    line = f"{SPOOLQ} run -c 1 {inner}; [ $? = 3 ] && {SPOOLQ} sub -W -c 1 true && echo back {TASK}"
    job = cluster.sub("-a", "1-301", "-p", "3", "-H", "--wrap", f"[ {TASK} -gt 2 ] || {{ {line}; }}")
    cluster.ok("release", f"{job}_1-3")
    cluster.ok("wait", f"{job}_[1-3]")

    for task in (1, 2):
        first, *_, last = cluster.ok("out", f"{job}_{task}").splitlines()
        child = json.loads(cluster.ok("show", "--json", first.split()[-1]))["job"][0]
        assert (f"deepest of {child['id']}", f"back {task}") == (first, last)
        assert (f"{job}_{task}", 3) == (child["job"]["parent"], child["priority"])
    cluster.until(lambda: not os.listdir(f"{cluster.root}/nodes/n1/control"), "nobody waits any more")
    cluster.until(lambda: not cluster.facts("n1")["lent"], "the node says so too")


def test_a_task_that_lends_is_told_of_and_the_next_of_its_chunk_holds_its_cpus(cluster: Cluster):
    node = cluster.node(cpus=1)
    wait = f"{SPOOLQ} wait $OTHER & touch {cluster.base}/up; while [ ! -e {cluster.base}/go ]; do sleep 0.02; done"
    other = cluster.sub("-H", "true")
    hold = f"touch {cluster.base}/second; while [ ! -e {cluster.base}/end ]; do sleep 0.02; done"
    job = cluster.sub("-a", "1-301", "-H", "--wrap", f"OTHER={other}; if [ {TASK} = 1 ]; then {wait}; else {hold}; fi")
    cluster.ok("release", f"{job}_1-3")
    facts = cluster.until(lambda: cluster.facts("n1").get("lent"), "the node says so")
    assert 1000 == facts[f"{job}_1-3"]["cpus"]
    assert "waits for jobs of its own, and lends 1 cpus" in cluster.ok("why", f"{job}_1")
    assert ",L~" in os.listdir(f"{cluster.root}/running/n1")[0]
    node.kill()
    node.wait()
    cluster.node(cpus=1)
    cluster.until(lambda: cluster.facts("n1").get("lent"), "the next daemon has found the request")
    assert "COMPLETED" == cluster.result(cluster.sub("true"))["state"]  # beside it
    touch(f"{cluster.base}/go")
    cluster.until(lambda: os.path.exists(f"{cluster.base}/second"), "the next task runs")
    cluster.until(lambda: not cluster.facts("n1")["lent"], "it lends nothing")
    third = cluster.sub("true")
    cluster.until(lambda: "Resources" in cluster.ok("why", str(third)), "no cpu is free")
    cluster.until(lambda: ",L" not in os.listdir(f"{cluster.root}/running/n1")[0], "its name says so too")
    touch(f"{cluster.base}/end")
    cluster.ok("wait", f"{job}_[1-3]", str(third))


@pytest.mark.parametrize("how", ["killed", "at its time limit"])
def test_a_task_that_is_ended_ends_its_children_and_no_others(cluster: Cluster, how):
    """Children that run, wait, or are an array of their own; those of another task of the same array go on."""
    cluster.node("n1", 8)
    lines = f"""
        [ {TASK} = 2 ] && exec {SPOOLQ} run -J other true
        {SPOOLQ} sub -J kin sh -c 'touch {cluster.base}/child.up; sleep 100'
        {SPOOLQ} sub -J kin -H true
        {SPOOLQ} sub -J kin -a 1-302 sh -c 'touch {cluster.base}/array.up; sleep 100'
        touch {cluster.base}/parent.up; sleep 100"""
    limit = ["-t", "1h"] if how != "killed" else []
    job = cluster.sub("-a", "1-2", *limit, script(cluster, "parent.sh", lines))
    for mark in ("parent.up", "child.up", "array.up"):
        cluster.until(lambda mark=mark: os.path.exists(f"{cluster.base}/{mark}"), mark)
    cluster.ok("wait", f"{job}_2")
    if how == "killed":
        cluster.ok("kill", f"{job}_1")
    else:
        cluster.ok("edit", f"{job}_1", "time=1s")
    assert 0 != cluster.spoolq("wait", f"{job}_1").returncode
    rows = json.loads(cluster.ok("stat", "-a", "-n", "all", "--json", "--name", "kin"))["jobs"]
    cluster.ok("wait", "--no-fail", *{str(row["id"]).partition("_")[0] for row in rows})
    rows = json.loads(cluster.ok("stat", "-a", "-n", "all", "--json", "--name", "kin"))["jobs"]
    assert {"CANCELLED"} == {row["state"] for row in rows}
    [other] = json.loads(cluster.ok("stat", "-a", "-n", "all", "--json", "--name", "other"))["jobs"]
    assert "COMPLETED" == other["state"]


def test_a_task_does_not_wait_for_what_comes_after_it(cluster: Cluster):
    cluster.node(cpus=1)
    line = f"{SPOOLQ} wait $SPOOLQ_ARRAY_JOB_ID; {SPOOLQ} wait ${{SPOOLQ_ARRAY_JOB_ID}}_2"
    job = cluster.sub("-a", "1-301", "-H", "--wrap", f"[ {TASK} != 1 ] || {{ {line}; }}")
    cluster.ok("release", f"{job}_1-3")
    cluster.spoolq("wait", f"{job}_[1-3]")
    said = cluster.ok("out", "-e", f"{job}_1")
    assert f"job {job}_1 would wait for its own end" in said
    assert f"job {job}_1 and {job}_2 are of one entry (1-3), whose tasks run one after another" in said


def test_without_a_command_one_waits_by_looking_at_names(cluster: Cluster):
    """The lines of the README, in a shell."""
    with open(os.path.join(os.path.dirname(os.path.dirname(__file__)), "README.md"), encoding="utf-8") as file:
        lines = [line for line in file if line.startswith(("left() {", 'while [ "$(left'))]
    assert 2 == len(lines)
    job = cluster.sub("-a", "1-5", "-r", "1", "--wrap", f"[ {TASK} != 3 ] || [ $SPOOLQ_ATTEMPT = 2 ]")
    assert 1 == job
    text = "".join(lines).replace(".42.", f".{job}.").replace("sleep 1", "sleep 0.1")
    cluster.policy(grace_s=1, settle_s=0, min_free_mb=1, retry_s=0)
    waiter = subprocess.Popen(["sh", "-c", text], cwd=cluster.root, stdout=subprocess.PIPE, text=True)
    cluster.node("n1", 2)
    out, _ = waiter.communicate(timeout=PATIENCE_S)
    assert 5 == len(out.split())
    assert {"COMPLETED": "1-5"} == states(cluster, job)
