"""What a user at a shell sees, with real nodes and real processes."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import spoolq
from tests.cluster import Cluster, read


def test_a_job_runs_and_leaves_all_beside_itself(cluster: Cluster):
    job = cluster.sub("-c", "1", "-m", "50", "sh", "-c", "echo out; echo err >&2; exit 3")
    cluster.node()

    assert 3 == cluster.spoolq("wait", str(job)).returncode
    result = cluster.result(job)
    assert ("FAILED", 3, None, "n1", 1) == tuple(result[k] for k in ("state", "exit_code", "signal", "node", "attempt"))
    assert ("out\n", "err\n") == (cluster.text(job), cluster.text(job, "stderr"))
    assert "done" == cluster.place(job)
    (name,) = (name for name in os.listdir(f"{cluster.root}/history") if name.endswith(".jsonl"))
    line = json.loads(read(f"{cluster.root}/history/{name}"))
    assert (job, "sh") == (line["id"], line["command"][0])


def test_run_without_a_node_runs_here_and_says_so(cluster: Cluster):
    done = cluster.spoolq("run", "sh", "-c", "echo to-out; echo to-err >&2; exit 7")

    assert (7, "to-out\n") == (done.returncode, done.stdout)
    assert "to-err\n" in done.stderr
    assert "no node" in done.stderr


def test_the_script_is_copied_at_submission(cluster: Cluster):
    script = f"{cluster.base}/step.sh"
    with open(script, "w") as file:
        file.write("#!/bin/sh\n#SPOOLQ -J stepname -m 77\necho first $1\n")
    job = cluster.sub("./step.sh", "arg")
    with open(script, "w") as file:
        file.write("#!/bin/sh\necho second\n")
    cluster.node()

    result = cluster.result(job)

    assert ("COMPLETED", 77) == (result["state"], result["mem_mb"])
    assert "first arg\n" == cluster.text(job)


def test_script_on_stdin_and_job_file(cluster: Cluster):
    first = cluster.sub(stdin="#!/bin/sh\necho from stdin $SPOOLQ_JOB_ID\n")
    with open(f"{cluster.base}/job.toml", "w") as file:
        file.write('command = ["echo", "from toml"]\ncpus = 0.5\nname = "tomljob"\n')
    second = cluster.sub("-f", "job.toml")
    cluster.node()

    assert 0.5 == cluster.result(second)["cpus"]
    cluster.result(first)
    assert (f"from stdin {first}\n", "from toml\n") == (cluster.text(first), cluster.text(second))


def test_environment_cwd_umask_are_those_of_the_submitter(cluster: Cluster):
    os.mkdir(f"{cluster.base}/here")
    job = cluster.sub(
        "sh", "-c", 'pwd; umask; echo "$COLOUR"; env | grep -c MY_TOKEN; ls -d "$TMPDIR"; cat; echo $OMP_NUM_THREADS',
        cwd=f"{cluster.base}/here", env={"COLOUR": "blue", "MY_TOKEN": "secret"},
    )  # fmt: skip
    cluster.node()
    cluster.result(job)

    here, umask, colour, tokens, tmpdir, threads = cluster.text(job).splitlines()
    assert (f"{cluster.base}/here", "blue", "0", "1") == (os.path.realpath(here), colour, tokens, threads)
    assert int(umask, 8) == int(subprocess.run(["sh", "-c", "umask"], capture_output=True, text=True).stdout, 8)
    assert tmpdir.startswith(f"{cluster.base}/tmp")
    assert 0o600 == os.stat(cluster.home(job, "env")).st_mode & 0o777


def test_a_job_whose_directory_is_missing_waits_with_the_reason(cluster: Cluster):
    os.mkdir(f"{cluster.base}/gone")
    job = cluster.sub("true", cwd=f"{cluster.base}/gone")
    os.rmdir(f"{cluster.base}/gone")
    cluster.hurry("launch", LOOK_AGAIN_S=0.5)
    cluster.node()
    cluster.until(lambda: os.path.exists(cluster.home(job, "why/n1")), "the node says why")

    assert "CwdMissing" in cluster.ok("why", str(job))
    assert "queue" == cluster.place(job)
    os.mkdir(f"{cluster.base}/gone")
    assert "COMPLETED" == cluster.result(job)["state"]


def fifty(cluster: Cluster) -> dict[int, int]:
    """50 running jobs with distinct exit codes, waiting for a file: id -> code."""
    lines = "".join(
        f"echo up > {cluster.base}/up.{i}; while [ ! -e {cluster.base}/go ]; do sleep 1; done; exit {i}\n"
        for i in range(50)
    )
    ids = [int(word) for word in cluster.ok("sub", "-c", "0.01", "--each-line", "-", stdin=lines).split()]
    cluster.until(lambda: len([n for n in os.listdir(cluster.base) if n.startswith("up.")]) == 50, "50 jobs run")
    return dict(zip(ids, range(50), strict=True))


def check_fifty(cluster: Cluster, codes: dict[int, int]) -> None:
    """They end, each with its own code, once."""
    touch(f"{cluster.base}/go")
    for job, code in codes.items():
        result = cluster.result(job)
        assert (code, 1) == (result["exit_code"], result["attempt"]), result
        assert "wait4" == result["measured_by"] or "cgroup" in result["measured_by"]
        assert result["max_rss_kb"] > 0


def test_daemon_killed_and_restarted_under_fifty_jobs(cluster: Cluster):
    node = cluster.node()
    codes = fifty(cluster)
    node.kill()
    node.wait()
    cluster.node()

    check_fifty(cluster, codes)


def test_jobs_that_end_while_no_daemon_lives_are_delivered(cluster: Cluster):
    node = cluster.node()
    codes = fifty(cluster)
    node.kill()
    node.wait()
    touch(f"{cluster.base}/go")
    cluster.node()

    check_fifty(cluster, codes)


@pytest.mark.parametrize("victims", ["runner", "watch", "runner watch", "watch runner daemon"])
def test_any_member_of_the_family_killed_under_fifty_jobs(cluster: Cluster, victims: str):
    """One after the other, each once the family is whole again."""
    cluster.node()
    codes = fifty(cluster)
    for victim in victims.split():
        family = cluster.until(
            lambda: (f := cluster.family()) and len(f["runner"]) == 1 and len(f["watch"]) >= 1 and f, "a whole family"
        )
        killed = family[victim][0]
        os.kill(killed, signal.SIGKILL)
        cluster.until(lambda killed=killed: killed not in sum(cluster.family().values(), []), "it is gone")
        if victim == "daemon":
            cluster.nodes[-1].wait()
            cluster.node()
        cluster.until(lambda: len(cluster.family()["runner"]) == 1, "a runner again")

    check_fifty(cluster, codes)


def test_sigterm_leaves_jobs_and_the_next_daemon_takes_over(cluster: Cluster):
    node = cluster.node()
    codes = fifty(cluster)
    node.terminate()
    assert 0 == node.wait()
    cluster.node()

    check_fifty(cluster, codes)


def test_upgrade_of_all_under_fifty_jobs(cluster: Cluster):
    """A newer version, installed elsewhere, is started: it takes over, and the family becomes the new program in place."""
    node = cluster.node()
    codes = fifty(cluster)
    pids = cluster.family()
    newer = f"{cluster.base}/newer"
    shutil.copytree(Path(spoolq.__file__).parent, f"{newer}/spoolq", ignore=shutil.ignore_patterns("__pycache__"))
    with open(f"{newer}/spoolq/__init__.py", "w") as file:
        file.write('"""A newer version."""\n\n__version__ = "99.0"\n')
    node.terminate()
    node.wait()
    cluster.node(path=newer)
    assert "99.0" == cluster.facts("n1")["version"]
    for pid in (*pids["runner"], *pids["watch"]):
        cluster.until(lambda pid=pid: newer in program(pid), f"{pid} runs the new program")

    check_fifty(cluster, codes)
    assert [] == [line for line in cluster.log().splitlines() if "rror" in line]


def program(pid: int) -> str:
    """What a process was executed with."""
    with open(f"/proc/{pid}/cmdline") as file:
        return file.read()


def test_two_daemons_race_for_two_thousand_jobs(cluster: Cluster):
    """Each runs once: by the entries, and by what the jobs themselves wrote."""
    script = f"{cluster.base}/mark"
    with open(script, "w") as file:
        file.write(f'#!/bin/sh\necho "$SPOOLQ_JOB_ID $SPOOLQ_NODE" >> {cluster.base}/marks\n')
    os.chmod(script, 0o755)
    cluster.ok("sub", "-m", "1", "--each-line", "-", stdin=f"{script}\n" * 2000)
    nodes = [cluster.node(name, 4, "--idle-exit", "2") for name in ("n1", "n2")]
    for node in nodes:
        node.wait(timeout=240)

    marks = [line.split() for line in read(f"{cluster.base}/marks").splitlines()]
    assert list(range(1, 2001)) == sorted(int(job) for job, _ in marks)
    assert {"n1", "n2"} == {node for _, node in marks}
    done = [name for group in os.listdir(f"{cluster.root}/done") for name in os.listdir(f"{cluster.root}/done/{group}")]
    assert 2000 == len(done)
    assert all("~exit0," in name and name.split("~")[0].endswith(".1") for name in done)


def test_time_limit_term_then_kill(cluster: Cluster):
    mark = f"{cluster.base}/m"
    cluster.policy(grace_s=120, settle_s=0, min_free_mb=1)  # it ends by itself, however late it is heard
    line = f"trap 'echo term; exit 0' TERM; touch {mark}; sleep 100 & while :; do wait; done"
    polite = cluster.sub("-t", "1h", "sh", "-c", line)
    node = cluster.node()
    cluster.running(polite, mark)
    cluster.ok("edit", str(polite), "time=1s")
    assert 124 == cluster.spoolq("wait", str(polite)).returncode
    assert "term\n" == cluster.text(polite)
    assert "time" == cluster.result(polite)["limit_hit"]

    node.terminate()
    node.wait()
    cluster.policy(grace_s=1, settle_s=0, min_free_mb=1)
    cluster.node()
    stubborn = cluster.sub("-t", "1s", "sh", "-c", "trap '' TERM; sleep 100 & while :; do wait; sleep 0.2; done")
    result = cluster.result(stubborn)
    assert ("TIMEOUT", "time") == (result["state"], result["limit_hit"])


def test_memory_limit(cluster: Cluster):
    code = "import time; x = bytearray(300 << 20); time.sleep(60)"
    job = cluster.sub("-m", "100", sys.executable, "-c", code)
    cluster.node()

    assert 137 == cluster.spoolq("wait", str(job)).returncode
    result = cluster.result(job)
    assert ("OUT_OF_MEMORY", "mem") == (result["state"], result["limit_hit"])


def test_kill_waiting_and_running_with_the_whole_tree(cluster: Cluster):
    mark = f"{cluster.base}/m"
    cluster.node(cpus=1)
    both = f"while [ ! -s {mark}.1 ]; do sleep 0.02; done; touch {mark}"
    tree = f"(setsid sh -c 'echo $$ > {mark}.1; exec sleep 999' &) ; sleep 998 & echo $! > {mark}.2; {both}; wait"
    running = cluster.sub("sh", "-c", tree)
    cluster.running(running, mark)
    waiting = cluster.sub("true")
    cluster.ok("kill", str(waiting), str(running))

    assert ("CANCELLED", "CANCELLED") == (cluster.result(waiting)["state"], cluster.result(running)["state"])
    for number in (1, 2):
        pid = int(read(f"{mark}.{number}"))
        cluster.until(lambda pid=pid: not os.path.exists(f"/proc/{pid}") or "Z" in state(pid), f"{number} is gone")


def state(pid: int) -> str:
    """The state letter of a process."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def test_suspend_resume_of_a_running_job(cluster: Cluster):
    mark = f"{cluster.base}/m"
    cluster.node()
    job = cluster.sub("sh", "-c", f"touch {mark}; while [ ! -e {mark}.go ]; do sleep 0.05; done; echo end")
    cluster.running(job, mark)
    cluster.ok("suspend", str(job))
    cluster.until(lambda: " S " in cluster.ok("stat"), "stat says suspended")
    touch(f"{mark}.go")
    cluster.ok("resume", str(job))

    assert "COMPLETED" == cluster.result(job)["state"]


def test_hold_release_edit_of_a_waiting_job(cluster: Cluster):
    job = cluster.sub("-H", "echo", "done")
    cluster.node()
    cluster.ok("edit", str(job), "mem=3G", "time=90s", "priority=5")
    assert "held" == cluster.place(job)
    cluster.ok("release", str(job))

    result = cluster.result(job)
    assert (3072, "COMPLETED") == (result["mem_mb"], result["state"])


def test_requeue_running_and_done(cluster: Cluster):
    mark = f"{cluster.base}/m"
    cluster.node()
    job = cluster.sub("sh", "-c", f"echo $SPOOLQ_ATTEMPT >> {mark}; [ $SPOOLQ_ATTEMPT != 1 ] || sleep 999")
    cluster.running(job, mark)
    cluster.ok("requeue", str(job))
    assert 2 == cluster.result(job)["attempt"]
    cluster.until(lambda: cluster.place(job) == "done", "done")
    cluster.ok("requeue", str(job))
    cluster.until(lambda: read(mark) == "1\n2\n3\n", "a third attempt")
    cluster.until(lambda: cluster.place(job) == "done" and cluster.result(job)["attempt"] == 3, "its result")
    assert os.path.exists(cluster.home(job, "result.2.json"))


def test_edit_extends_the_time_limit_of_a_running_job(cluster: Cluster):
    mark = f"{cluster.base}/m"
    cluster.node()
    job = cluster.sub("-t", "15s", "sh", "-c", f"touch {mark}; sleep 17; echo lived")
    cluster.running(job, mark)
    cluster.ok("edit", str(job), "time=5m")

    assert "COMPLETED" == cluster.result(job)["state"]


def test_dropped_files_become_jobs_or_are_rejected_with_a_reason(cluster: Cluster):
    drop = f"{cluster.root}/drop"
    cluster.hurry("intake", DOUBT_S=0.5)
    with open(f"{drop}/good.sh", "w") as file:
        file.write("#!/bin/sh\n#SPOOLQ -m 5\necho dropped\n")
    with open(f"{drop}/good.toml", "w") as file:
        file.write('command = ["echo", "toml"]\n')
    with open(f"{drop}/bad.toml", "w") as file:
        file.write('command = ["x"]\ncpuss = 4\n')
    os.symlink("/etc/passwd", f"{drop}/link.sh")
    os.mkfifo(f"{drop}/fifo.sh")
    with open(f"{drop}/.hidden.sh", "w") as file:
        file.write("#!/bin/sh\n")
    cluster.node()
    first = int(cluster.until(lambda: read(f"{drop}/good.sh.id"), "an id for the script"))
    second = int(cluster.until(lambda: read(f"{drop}/good.toml.id"), "an id for the TOML file"))

    assert "COMPLETED" == cluster.result(first)["state"] == cluster.result(second)["state"]
    assert ("dropped\n", "toml\n") == (cluster.text(first), cluster.text(second))
    why = cluster.until(lambda: read(f"{drop}/bad.toml.why"), "a reason for the bad one")
    assert "line 2" in why or ":2:" in why
    assert "cpus" in why
    cluster.until(lambda: len(os.listdir(f"{cluster.root}/rejected")) == 6, "three rejected, three reasons")
    assert os.path.exists(f"{drop}/.hidden.sh")


def touch(path: str) -> None:
    """Make a file."""
    with open(path, "w"):
        pass


def test_more_than_the_machine_has_is_lent_with_a_warning(cluster: Cluster):
    node = cluster.node("n1", 2, "--once")
    assert 0 == node.wait(timeout=120)
    assert "measured load does not count" in cluster.log()


def test_foreign_load_keeps_a_job_waiting_with_the_reason(cluster: Cluster):
    """What runs outside spoolq counts: nothing is declared here, and still a whole-machine job waits."""
    cpus = len(os.sched_getaffinity(0))
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cpus)]
    try:
        cluster.policy(beat_s=1, grace_s=1, min_free_mb=1)
        cluster.node("n1", cpus, mem="500")
        cluster.until(
            lambda: ((cluster.facts("n1").get("measured") or {}).get("foreign_cpus") or 0) > cpus / 2, "load is seen"
        )
        job = cluster.sub("-c", str(cpus), "-m", "1", "true")
        why = cluster.until(lambda: (w := cluster.ok("why", str(job))) and "MeasuredLoad" in w and w, "the reason")
        assert "queue" == cluster.place(job), why
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


def test_priority_order(cluster: Cluster):
    order = f"{cluster.base}/order"
    for name, priority in (("low", "-5"), ("high", "10"), ("middle", "0")):
        cluster.sub("-p", priority, "-c", "2", "sh", "-c", f"echo {name} >> {order}")
    node = cluster.node("n1", 2, "--idle-exit", "0")
    node.wait(timeout=120)

    assert "high\nmiddle\nlow\n" == read(order)


def test_two_daemons_of_one_name_are_refused(cluster: Cluster):
    cluster.node()
    done = cluster.spoolq("node", "--name", "n1")

    assert 75 == done.returncode
    assert "already runs" in done.stderr


def test_out_follow_waits_and_exits_with_the_code(cluster: Cluster):
    job = cluster.sub("sh", "-c", "for i in 1 2 3; do echo $i; sleep 0.2; done; exit 5")
    follower = cluster.start("out", "-f", str(job))
    cluster.node()
    out, _ = follower.communicate(timeout=120)

    assert (b"1\n2\n3\n", 5) == (out, follower.returncode)


def test_ctrl_c_of_run_kills_the_job(cluster: Cluster):
    cluster.node()
    mark = f"{cluster.base}/m"
    run = cluster.start("run", "sh", "-c", f"echo $$ > {mark}; sleep 999")
    cluster.running(1, mark)
    cluster.until(lambda: read(mark), "a pid")
    run.send_signal(signal.SIGINT)
    run.communicate(timeout=120)

    assert "CANCELLED" == cluster.result(1)["state"]
    pid = int(read(mark))
    cluster.until(lambda: not os.path.exists(f"/proc/{pid}") or state(pid) == "Z", "the job is gone")


def test_idle_exit_waits_for_what_could_start_here_and_for_nothing_else(cluster: Cluster):
    """A job that other load keeps waiting is still something to do; one that is too big for this node is not."""
    mark = f"{cluster.base}/m"
    first = cluster.sub("-c", "2", "sh", "-c", f"touch {mark}; sleep 1")
    second = cluster.sub("-c", "2", "true")
    big = cluster.sub("-c", "64", "true")
    node = cluster.node("n1", 2, "--idle-exit", "0")
    node.wait(timeout=120)

    assert ["done", "done", "queue"] == [cluster.place(job) for job in (first, second, big)]
