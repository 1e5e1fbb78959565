"""Arrays beside the other capabilities: a task is treated as a job in every respect, with real daemons."""

import json
import os

import pytest

from tests.cluster import Cluster
from tests.test_nested import SPOOLQ, script, touch

TASK = "$SPOOLQ_ARRAY_TASK_ID"


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
    assert not cluster.facts("n1")["lent"]


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
    assert ",L" not in os.listdir(f"{cluster.root}/running/n1")[0]
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
    limit = ["-t", "8s"] if how != "killed" else []
    job = cluster.sub("-a", "1-2", *limit, script(cluster, "parent.sh", lines))
    for mark in ("parent.up", "child.up", "array.up"):
        cluster.until(lambda mark=mark: os.path.exists(f"{cluster.base}/{mark}"), mark)
    cluster.ok("wait", f"{job}_2")
    if how == "killed":
        cluster.ok("kill", f"{job}_1")
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
