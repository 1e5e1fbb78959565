"""What becomes of the jobs of a node that is lost, and of those that fail, with real daemons."""

import json
import os

from tests.cluster import Cluster, read


def lost_node(cluster: Cluster, *words: str) -> int:
    """A job runs on n2; then everything of n2 dies, as when the power goes. n1 stays."""
    cluster.policy(grace_s=1, settle_s=0, min_free_mb=1, beat_s=0.2)
    n2 = cluster.node("n2")
    mark = f"{cluster.base}/mark"
    script = f"echo $SPOOLQ_NODE.$SPOOLQ_ATTEMPT >> {mark}; [ $SPOOLQ_ATTEMPT = 2 ] || sleep 600"
    job = cluster.sub(*words, "sh", "-c", script)
    cluster.until(lambda: read(mark), f"job {job} runs, and has said so")
    n2.kill()
    n2.wait()
    cluster.close()
    cluster.node("n1")
    return job


def test_after_the_operators_word_a_lost_job_runs_again_on_another_node(cluster: Cluster):
    job = lost_node(cluster)
    refused = cluster.spoolq("node-dead", "n2")
    assert (1, True) == (refused.returncode, "--certain" in refused.stderr)
    assert "running" == cluster.place(job)

    cluster.ok("node-dead", "n2", "--certain")
    result = cluster.result(job)
    assert ("COMPLETED", 2, "n1") == (result["state"], result["attempt"], result["node"])
    with open(f"{cluster.base}/mark", encoding="ascii") as file:
        assert ["n2.1", "n1.2"] == file.read().split()


def test_a_lost_job_that_must_not_run_again_ends_with_the_reason(cluster: Cluster):
    job = lost_node(cluster, "--rerun", "never")
    cluster.ok("drain", "n1")  # which goes on watching
    cluster.ok("node-dead", "n2", "--certain")
    nodes = {node["node"]: node["state"] for node in json.loads(cluster.ok("nodes", "--json"))["nodes"]}
    assert "dead" == nodes["n2"]
    result = cluster.result(job)
    assert ("NODE_FAIL", 1) == (result["state"], result["attempt"])
    assert "node n2 went down" in result["reason"]
    assert "node n2 went down" in cluster.ok("why", str(job))


def test_a_node_that_lives_is_not_declared_dead(cluster: Cluster):
    cluster.node("n1")
    refused = cluster.spoolq("node-dead", "n1", "--certain")
    assert (1, True) == (refused.returncode, "n1 lives" in refused.stderr)
    assert not os.path.exists(f"{cluster.root}/nodes/n1/dead")


def test_a_node_whose_daemon_alone_is_dead_is_not_declared_dead(cluster: Cluster):
    node = cluster.node("n1")
    mark = f"{cluster.base}/mark"
    job = cluster.sub("sh", "-c", f"touch {mark}; sleep 600")
    cluster.running(job, mark)
    node.kill()
    node.wait()
    refused = cluster.spoolq("node-dead", "n1", "--certain")
    assert (1, True) == (refused.returncode, "run on this machine" in refused.stderr)


def test_a_failing_job_is_tried_again_after_a_while_and_every_attempt_is_in_history(cluster: Cluster):
    cluster.policy(grace_s=1, settle_s=0, min_free_mb=1, retry_s=1)
    cluster.node("n1")
    job = cluster.sub("-r", "2", "sh", "-c", "echo attempt $SPOOLQ_ATTEMPT; exit $((3 - SPOOLQ_ATTEMPT))")
    result = cluster.result(job)
    assert ("COMPLETED", 3) == (result["state"], result["attempt"])
    assert ["attempt 1", "attempt 2", "attempt 3"] == cluster.text(job).splitlines()
    codes = []
    for attempt in (1, 2):
        with open(cluster.home(job, f"result.{attempt}.json"), encoding="ascii") as file:
            codes.append(json.load(file)["exit_code"])
    assert [2, 1] == codes
    lines = []
    for name in (name for name in os.listdir(f"{cluster.root}/history") if name.endswith(".jsonl")):
        with open(f"{cluster.root}/history/{name}", encoding="utf-8") as file:
            lines += [json.loads(line) for line in file]
    assert [(1, 2), (2, 1), (3, 0)] == sorted((line["attempt"], line["exit_code"]) for line in lines)


def test_a_retry_that_waits_can_be_released_or_cancelled(cluster: Cluster):
    cluster.policy(grace_s=1, settle_s=0, min_free_mb=1, retry_s=3600)
    cluster.node("n1")
    jobs = [cluster.sub("-r", "1", "sh", "-c", "exit $((2 - SPOOLQ_ATTEMPT))") for _ in range(2)]
    cluster.until(lambda: {cluster.place(job) for job in jobs} == {"held"}, "they wait")
    assert "RetryBackoff" in cluster.ok("why", str(jobs[0]))
    cluster.ok("release", str(jobs[0]))
    cluster.ok("kill", str(jobs[1]))
    assert "COMPLETED" == cluster.result(jobs[0])["state"]
    assert "CANCELLED" == cluster.result(jobs[1])["state"]
