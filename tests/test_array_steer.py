"""What users do to arrays and to their tasks, with real daemons."""

import json
import os
import signal

from spoolq import array
from tests.cluster import PATIENCE_S, Cluster, read
from tests.test_array_real import MARK, marks, states, sub

HERE = "[ $SPOOLQ_ARRAY_TASK_ID"


def test_no_more_tasks_run_at_once_than_the_user_allows_over_all_nodes(cluster: Cluster):
    cluster.node("n1", 2)
    cluster.node("n2", 2)
    count = f"mkdir {cluster.base}/now.$SPOOLQ_ARRAY_TASK_ID; ls -d {cluster.base}/now.* | wc -l >> {cluster.base}/most"
    job = sub(cluster, "-a", "1-12%2", f"{count}; {MARK}; sleep 0.3; rmdir {cluster.base}/now.$SPOOLQ_ARRAY_TASK_ID")
    cluster.until(lambda: marks(cluster), "one runs")
    said = json.loads(cluster.ok("stat", "--json"))["jobs"]
    waiting = [row for row in said if row["state"] == "PENDING"]
    if sum(row["state"] == "RUNNING" for row in said) == 2:
        assert {"ArrayTaskLimit"} >= {row["reason"] for row in waiting}
    cluster.ok("wait", str(job))
    with open(f"{cluster.base}/most", encoding="ascii") as file:
        most = [int(line) for line in file.read().split()]
    assert (12, True) == (len(most), max(most) <= 2)
    assert 12 == len({task for task, _, _ in marks(cluster)}) == len(marks(cluster))


def test_why_names_the_limit_of_an_array(cluster: Cluster):
    cluster.node("n1", 4)
    job = sub(cluster, "-a", "1-4%1", f"{MARK}; sleep 600")
    cluster.until(lambda: marks(cluster), "one runs")
    assert "ArrayTaskLimit: 1 tasks of job" in cluster.ok("why", f"{job}_4")
    assert {"RUNNING": "1", "PENDING": "2-4"} == states(cluster, job)
    cluster.ok("kill", str(job))
    assert 130 == cluster.spoolq("wait", str(job)).returncode


def test_only_the_failed_tasks_run_again(cluster: Cluster):
    cluster.node("n1", 2)
    job = sub(
        cluster, "-a", "1-310", f"{MARK}; {HERE} != 3 -a $SPOOLQ_ARRAY_TASK_ID != 305 ] || [ $SPOOLQ_ATTEMPT = 2 ]"
    )
    assert 1 == cluster.spoolq("wait", str(job)).returncode
    assert "3,305" == states(cluster, job)["FAILED"]
    assert 310 == len(marks(cluster))
    cluster.ok("requeue", str(job), "--failed")
    cluster.ok("wait", str(job))
    assert [["3", "2"], ["305", "2"]] == sorted(run[:2] for run in marks(cluster)[310:])
    assert {"COMPLETED": "1-310"} == states(cluster, job)


def test_one_task_or_all_of_an_array_run_again(cluster: Cluster):
    cluster.node("n1", 2)
    job = sub(cluster, "-a", "1-303", MARK)
    cluster.ok("wait", str(job))
    assert 303 == len(marks(cluster))
    cluster.ok("requeue", f"{job}_2")
    cluster.until(lambda: marks(cluster)[303:], "it runs again")
    cluster.ok("wait", str(job))
    assert [["2", "2", "n1"]] == marks(cluster)[303:]
    cluster.ok("requeue", str(job))
    cluster.until(lambda: len(marks(cluster)) >= 607, "all run again")
    cluster.ok("wait", str(job))
    assert list(map(str, range(1, 304))) == sorted((run[0] for run in marks(cluster)[304:]), key=int)


def test_a_failing_task_is_tried_again_alone(cluster: Cluster):
    cluster.policy(grace_s=1, settle_s=0, min_free_mb=1, retry_s=1)
    cluster.node("n1", 2)
    job = sub(cluster, "-a", "1-303", "-r", "2", f"{MARK}; {HERE} != 2 ] || [ $SPOOLQ_ATTEMPT = 3 ]")
    cluster.ok("wait", str(job))
    assert ["1", "2", "3"] == [attempt for task, attempt, _ in marks(cluster) if task == "2"]
    assert 305 == len(marks(cluster))


def test_when_enough_tasks_failed_no_more_are_started(cluster: Cluster):
    cluster.node("n1", 2)
    job = sub(cluster, "-a", "1-400", "--max-fails", "3", f"{MARK}; {HERE} -lt 5 -o $SPOOLQ_ARRAY_TASK_ID -gt 20 ]")
    assert 0 != cluster.spoolq("wait", str(job)).returncode
    found = states(cluster, job)
    failed = {number for some in array.parse(found["FAILED"]).ranges for number in some}
    assert failed <= set(range(5, 21))  # which of them come first is up to two cpus
    # on each cpu one may have ended, one be about to be written down, and one have begun, when the third is counted
    assert 3 <= len([run for run in marks(cluster) if 5 <= int(run[0]) <= 20]) <= 3 + 2 * 3
    assert "400" in found["CANCELLED"]
    assert "--max-fails is 3" in cluster.ok("why", f"{job}_400")
    ran = len(marks(cluster))
    cluster.ok("requeue", str(job), "--failed")
    cluster.until(lambda: len(marks(cluster)) >= ran + 3, "they run again")
    assert len(failed) >= 3


def test_killed_tasks_and_the_others(cluster: Cluster):
    """A running task, one of its chunk that is still to come, one of a chunk that waits: only these are cancelled."""
    cluster.node("n1", 1)
    job = sub(cluster, "-a", "1-310", f"{MARK}; {HERE} != 1 ] || sleep 600")
    cluster.until(lambda: marks(cluster), "the first runs")
    held = os.listdir(f"{cluster.root}/running/n1")[0]
    assert ",a1-3~" in held  # 1, 2 and 3 are one entry
    for task in (2, 5, 310):
        cluster.ok("kill", f"{job}_{task}")
    cluster.until(lambda: "2," in states(cluster, job).get("CANCELLED", ""), "the node has heard of it")
    cluster.ok("kill", f"{job}_1")
    assert 130 == cluster.spoolq("wait", f"{job}_1").returncode
    cluster.spoolq("wait", str(job))
    assert {"CANCELLED": "1-2,5,310", "COMPLETED": "3-4,6-309"} == states(cluster, job)
    assert {str(n) for n in range(1, 310)} - {"2", "5"} == {task for task, _, _ in marks(cluster)}


def test_an_array_is_held_released_suspended_and_resumed(cluster: Cluster):
    cluster.node("n1", 1)
    wait = f"while [ ! -e {cluster.base}/go ]; do sleep 0.05; done"
    job = sub(cluster, "-a", "1-303", "-H", f"{MARK}; {HERE} != 1 ] || {wait}")
    assert {"HELD": "1-303"} == states(cluster, job)
    cluster.ok("release", str(job))
    cluster.until(lambda: marks(cluster), "the first runs")
    cluster.ok("suspend", str(job))
    cluster.until(lambda: "SUSPENDED" in states(cluster, job), "it stands still")
    assert {"SUSPENDED": "1", "HELD": "4-303"}.items() <= states(cluster, job).items()
    assert 1 == len(marks(cluster))
    open(f"{cluster.base}/go", "w").close()
    cluster.ok("resume", str(job))
    cluster.ok("wait", str(job))
    assert {"COMPLETED": "1-303"} == states(cluster, job)


def test_what_cannot_be_an_array_is_refused(cluster: Cluster):
    for words, said in (
        (("-a", "9-1"), "is no range of tasks"),
        (("-a", "1-3%0"), "after % must stand"),
        (("-a", "1-9999999"), "at most 1000000"),
    ):
        refused = cluster.spoolq("sub", *words, "true")
        assert (2, True) == (refused.returncode, said in refused.stderr), refused.stderr
    cluster.node("n1", 1)
    with open(f"{cluster.root}/drop/x.sh", "w", encoding="ascii") as file:
        file.write("#!/bin/sh\n#SPOOLQ -a 1-3\ntrue\n#SPOOLQ end\n")
    cluster.until(lambda: os.path.exists(f"{cluster.root}/drop/x.sh.why"), "it is refused")
    with open(f"{cluster.root}/drop/x.sh.why", encoding="ascii") as file:
        assert "submit it with `spoolq sub`" in file.read()


def test_an_array_whose_output_is_kept_on_the_node_until_each_task_has_ended(cluster: Cluster):
    cluster.node("n1", 2)
    job = cluster.sub("-a", "1-303", "--output-mode", "local", "--wrap", "echo $SPOOLQ_ARRAY_TASK_ID")
    cluster.ok("wait", str(job))
    assert [str(n) for n in range(1, 304)] == cluster.ok("out", str(job)).split()


def test_the_output_of_a_task_is_followed_from_before_it_starts(cluster: Cluster):
    job = cluster.sub("-a", "1-3", "--wrap", "echo one; sleep 0.5; echo two; exit $SPOOLQ_ARRAY_TASK_ID")
    follower = cluster.start("out", "-f", f"{job}_2")
    cluster.node("n1", 2)
    out, _ = follower.communicate(timeout=120)
    assert (b"one\ntwo\n", 2) == (out, follower.returncode)


def test_a_child_waits_for_all_of_an_array_and_another_for_one_task(cluster: Cluster):
    job = sub(cluster, "-a", "1-3", f"{HERE} != 3 ] || sleep 1; {MARK}; {HERE} != 2 ]")
    early = cluster.sub("-d", f"afterok:{job}_1", "--wrap", f"cat {cluster.base}/marks")
    late = cluster.sub("-d", f"afterany:{job}", "--wrap", f"cat {cluster.base}/marks")
    never = cluster.sub("-d", f"afterok:{job}", "true")
    refused = cluster.spoolq("sub", "-d", f"afterok:{job}_9", "true")
    assert (2, True) == (refused.returncode, "no such task" in refused.stderr), refused.stderr
    cluster.node("n1", 4)
    cluster.ok("wait", str(early), str(late))
    assert "1.1.n1" in cluster.text(early).split()
    assert ["1.1.n1", "2.1.n1", "3.1.n1"] == sorted(cluster.text(late).split())
    assert "CANCELLED" == cluster.result(never)["state"]


def test_run_shows_the_output_of_each_task_whole_and_exits_with_the_worst_code(cluster: Cluster):
    cluster.node("n1", 2)
    step = "for i in 1 2 3; do echo out $SPOOLQ_ARRAY_TASK_ID $i; done; echo err $SPOOLQ_ARRAY_TASK_ID >&2"
    end = "[ $SPOOLQ_ARRAY_TASK_ID != 3 ] || exit 7; [ $SPOOLQ_ARRAY_TASK_ID != 4 ] || kill -9 $$"
    done = cluster.spoolq("run", "-a", "1-5%2", "sh", "-c", f"{step}; {end}")
    shown = done.stdout.splitlines()
    blocks = [tuple(shown[at : at + 3]) for at in range(0, len(shown), 3)]
    assert sorted(blocks) == [tuple(f"out {task} {i}" for i in (1, 2, 3)) for task in range(1, 6)], done.stdout
    assert 137 == done.returncode
    said = done.stderr.splitlines()
    assert [f"err {task}" for task in range(1, 6)] == sorted(line for line in said if line.startswith("err"))
    assert "spoolq: job 1_3: FAILED (exit7)" in said
    assert "spoolq: job 1_4: FAILED (signal9)" in said
    assert "not well: 3-4" in said[-1]
    assert not any("1_5" in line for line in said)


def test_run_shows_all_tasks_of_a_chunk_and_all_that_both_tries_of_one_wrote(cluster: Cluster):
    cluster.policy(grace_s=1, settle_s=0, min_free_mb=1, retry_s=0)
    cluster.node("n1", 2)
    fails_once = f"echo $SPOOLQ_ARRAY_TASK_ID; [ $SPOOLQ_ARRAY_TASK_ID != 5 ] || ! mkdir {cluster.base}/first"
    done = cluster.spoolq("run", "-v", "-a", "1-305", "--retries", "2", "sh", "-c", f"{fails_once} 2> /dev/null")
    assert 0 == done.returncode, done.stderr
    assert sorted([*range(1, 306), 5]) == sorted(map(int, done.stdout.split())), "of both tries, once"
    assert "305 of 305 have ended" in done.stderr
    done = cluster.spoolq("run", "-a", "1-3", "-o", "log.%a", "sh", "-c", "echo $SPOOLQ_ARRAY_TASK_ID")
    assert (0, "") == (done.returncode, done.stdout)
    assert ["1\n", "2\n", "3\n"] == [read(f"{cluster.base}/log.{task}") for task in (1, 2, 3)]


def test_who_interrupts_run_or_closes_its_output_ends_all_of_the_array(cluster: Cluster):
    cluster.node("n1", 2)
    mark = MARK.replace("$MARKS", f"{cluster.base}/marks")
    for job, number in enumerate((signal.SIGINT, signal.SIGTERM), 1):
        run = cluster.start("run", "-a", "1-9", "sh", "-c", f"{mark}; exec sleep 999")
        cluster.until(lambda: len(marks(cluster)) == 2, "two run")
        run.send_signal(number)
        assert 128 + number == run.wait(PATIENCE_S)
        run.communicate()
        # it waits some seconds for the end
        cluster.until(lambda job=job: states(cluster, job) == {"CANCELLED": "1-9"}, "all of it has ended")
        os.unlink(f"{cluster.base}/marks")
    run = cluster.start("run", "-a", "1-9", "sh", "-c", "echo word; [ $SPOOLQ_ARRAY_TASK_ID = 1 ] || exec sleep 999")
    assert run.stdout
    run.stdout.close()
    assert run.stderr
    with run.stderr:
        assert 128 + signal.SIGPIPE == run.wait(PATIENCE_S), run.stderr.read()
    cluster.until(lambda: states(cluster, 3) == {"COMPLETED": "1", "CANCELLED": "2-9"}, "all of it has ended")
