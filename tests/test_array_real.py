"""Arrays with real daemons: each sentence of the README about them."""

import json
import os
import time

from tests.cluster import Cluster

MARK = "echo $SPOOLQ_ARRAY_TASK_ID.$SPOOLQ_ATTEMPT.$SPOOLQ_NODE >> $MARKS"


def marks(cluster: Cluster) -> list[list[str]]:
    """[task, attempt, node] of each run, in order."""
    if not os.path.exists(f"{cluster.base}/marks"):
        return []
    with open(f"{cluster.base}/marks", encoding="ascii") as file:
        return [line.split(".") for line in file.read().split()]


def sub(cluster: Cluster, *words: str) -> int:
    """Submit an array whose last word is a line for a shell, which is told where to leave marks."""
    *options, line = words
    return cluster.sub(*options, "--export", f"PATH,MARKS={cluster.base}/marks", "--wrap", line)


def states(cluster: Cluster, job: int) -> dict[str, str]:
    """State -> its tasks."""
    return dict(json.loads(cluster.ok("show", str(job), "--json"))["job"][0]["states"])


def lines(cluster: Cluster, job: int) -> list[dict[str, object]]:
    """All results of tasks."""
    found = []
    for name in os.listdir(cluster.home(job, "tasks")):
        with open(cluster.home(job, f"tasks/{name}"), encoding="ascii") as file:
            found += [json.loads(line) for line in file if line.strip()]
    return found


def test_each_task_has_its_number_its_output_and_its_result(cluster: Cluster):
    cluster.node("n1", 2)
    say = "echo $SPOOLQ_ARRAY_JOB_ID $SPOOLQ_ARRAY_TASK_COUNT $SPOOLQ_ARRAY_TASK_MIN $SPOOLQ_ARRAY_TASK_MAX"
    job = cluster.sub(
        "-a", "1-9:2", "--wrap", f"{say} $SPOOLQ_ARRAY_TASK_STEP $SPOOLQ_JOB_ID; exit $((SPOOLQ_ARRAY_TASK_ID == 5))"
    )
    waited = cluster.spoolq("wait", str(job))
    assert 1 == waited.returncode
    assert f"{job} 5 1 9 2 {job}_3\n" == cluster.ok("out", f"{job}_3") == cluster.text(job, "out/0/3.stdout")
    assert [f"{job}_{n}" for n in (1, 3, 5, 7, 9)] == [
        line.split()[-1] for line in cluster.ok("out", str(job)).splitlines()
    ]
    assert {"COMPLETED": "1,3,7,9", "FAILED": "5"} == states(cluster, job)
    assert {1: 0, 3: 0, 5: 1, 7: 0, 9: 0} == {line["task"]: line["exit_code"] for line in lines(cluster, job)}
    assert 0 == cluster.spoolq("wait", f"{job}_3").returncode
    assert 1 == cluster.spoolq("wait", f"{job}_[3-5]").returncode
    shown = json.loads(cluster.ok("show", "last_5", "--json"))["job"][0]
    assert ("FAILED", 1, 5) == (shown["state"], shown["result"]["exit_code"], shown["task"])
    assert "FAILED, its command exited with 1" in cluster.ok("why", f"{job}_5")
    assert [f"{job}_5"] == [line.split()[0] for line in cluster.ok("hist", f"{job}_5").splitlines()[1:]]
    assert 5 == len(json.loads(cluster.ok("hist", str(job), "--json"))["history"])
    assert [f"{job}_3", f"{job}_5"] == [line.split()[0] for line in cluster.ok("stat", "last_[3-5]").splitlines()[1:]]
    refused = cluster.spoolq("show", f"{job}_4")
    assert (1, True) == (refused.returncode, "no such task" in refused.stderr)


def test_output_patterns_of_tasks(cluster: Cluster):
    cluster.node("n1", 2)
    own = cluster.sub(
        "-a", "1,3", "-o", f"{cluster.base}/own.%A.%a", "--wrap", "echo $SPOOLQ_ARRAY_TASK_ID; echo err >&2"
    )
    one = cluster.sub("-a", "1-3", "-o", f"{cluster.base}/one", "--wrap", "echo $SPOOLQ_ARRAY_TASK_ID")
    cluster.ok("wait", str(own), str(one))
    with open(f"{cluster.base}/own.{own}.3", encoding="ascii") as file:
        assert "3\nerr\n" == file.read()
    assert "3\nerr\n" == cluster.ok("out", f"{own}_3")
    with open(f"{cluster.base}/one", encoding="ascii") as file:
        assert ["1", "2", "3"] == sorted(file.read().split())  # without %a they append to one file


def test_a_hundred_thousand_tasks_are_a_few_hundred_entries_and_one_line(cluster: Cluster):
    job = cluster.sub("-a", "1-100000", "true")
    entries = os.listdir(f"{cluster.root}/queue/500.{job:09d}a")
    assert 300 < len(entries) <= 500
    shown = [line.split()[0] for line in cluster.ok("stat").splitlines()]
    assert ["ID", f"{job}_[1-100000]"] == shown
    assert {"PENDING": "1-100000"} == states(cluster, job)
    cluster.ok("kill", str(job))
    assert {"CANCELLED": "1-100000"} == states(cluster, job)


def test_chunks_survive_a_daemon_that_is_killed_in_the_middle(cluster: Cluster):
    """400 tasks in chunks, on two nodes, one of whose daemons dies twice: each task runs exactly once."""
    node = cluster.node("n1", 2)
    cluster.node("n2", 1)
    job = sub(cluster, "-a", "1-400", f"{MARK}; sleep 0.01")
    for enough in (40, 150):
        cluster.until(lambda enough=enough: len(marks(cluster)) >= enough, "tasks run")
        node.kill()
        node.wait()
        time.sleep(0.1)
        node = cluster.node("n1", 2)
    cluster.ok("wait", str(job))
    runs = marks(cluster)
    assert list(range(1, 401)) == sorted(int(task) for task, _, _ in runs)
    assert {"1"} == {attempt for _, attempt, _ in runs}
    assert {"n1", "n2"} == {node for _, _, node in runs}
    assert sorted(range(1, 401)) == sorted({line["task"] for line in lines(cluster, job)})
    assert {"COMPLETED": "1-400"} == states(cluster, job)


def test_the_runner_and_the_daemon_are_killed_and_the_chunk_goes_on(cluster: Cluster):
    node = cluster.node("n1", 1)
    wait = f"while [ ! -e {cluster.base}/go ]; do sleep 0.05; done"
    job = sub(cluster, "-a", "1-310", f"{MARK}; [ $SPOOLQ_ARRAY_TASK_ID != 2 ] || {wait}")
    cluster.until(lambda: any(task == "2" for task, _, _ in marks(cluster)), "task 2 runs")
    [runner] = cluster.family()["runner"]
    os.kill(runner, 9)
    node.kill()
    node.wait()
    cluster.node("n1", 2)
    with open(f"{cluster.base}/go", "w"):
        pass
    cluster.ok("wait", str(job))
    assert [str(number) for number in range(1, 311)] == sorted((run[0] for run in marks(cluster)), key=int)
    assert {"COMPLETED": "1-310"} == states(cluster, job)
