"""What a node does around a command: prolog, epilog, wrapper and hooks, with real nodes."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from spoolq import config, shepherd
from spoolq.around import SHEPHERD_MB, Around
from spoolq.config import Settings
from spoolq.entry import parse_name
from spoolq.errors import Misconfigured
from spoolq.job import Job
from tests.cluster import Cluster, read


def program(cluster: Cluster, name: str, text: str) -> str:
    """A shell script of the site's."""
    path = f"{cluster.base}/{name}"
    with open(path, "w") as file:
        file.write(f"#!/bin/sh\n{text}\n")
    os.chmod(path, 0o755)
    return path


def configure(cluster: Cluster, text: str) -> None:
    """The configuration of nodes and commands."""
    os.makedirs(f"{cluster.base}/.config/spoolq", exist_ok=True)
    with open(f"{cluster.base}/.config/spoolq/config.toml", "w") as file:
        file.write(text)


def test_prolog_and_epilog_run_in_the_jobs_environment(cluster: Cluster):
    log = f"{cluster.base}/log"
    prolog = program(
        cluster, "prolog", f'pwd >>{log}; echo "export FROM_PROLOG=some value"; echo unset GONE; echo shown'
    )
    epilog = program(cluster, "epilog", f'echo "epilog $SPOOLQ_JOB_ID $SPOOLQ_EXIT_CODE $SPOOLQ_SIGNAL." >>{log}')
    configure(cluster, f'[node]\nprolog = "{prolog}"\nepilog = "{epilog}"\n')
    cluster.node()
    job = cluster.sub("sh", "-c", 'echo "$FROM_PROLOG$GONE"; exit 7', env={"GONE": "here"})
    result = cluster.result(job)
    assert ("FAILED", 7, None) == (result["state"], result["exit_code"], result["reason"])
    assert ("some value\n", "shown\n") == (cluster.text(job), cluster.text(job, "stderr"))
    assert f"{cluster.base}\nepilog 1 7 .\n" == read(log)

    job = cluster.sub("sh", "-c", "kill -USR2 $$")
    assert signal.SIGUSR2 == cluster.result(job)["signal"]
    assert f"epilog 2 140 {signal.SIGUSR2:d}.\n" == read(log).splitlines(keepends=True)[-1]
    job = cluster.sub("no-such-program")
    result = cluster.result(job)
    assert 127 == result["exit_code"]
    assert "cannot execute" in result["reason"]
    job = cluster.sub("-m", "100", sys.executable, "-c", "import time; x = bytearray(300 << 20); time.sleep(60)")
    assert "OUT_OF_MEMORY" == cluster.result(job)["state"]
    assert f"epilog {job} 1 9." in read(log)
    steps = f"{cluster.base}/state/{os.listdir(cluster.base + '/state')[0]}/steps"
    cluster.until(lambda: not os.listdir(steps), "what was noted of the jobs is gone")  # after their results


@pytest.mark.parametrize("victim", ["daemon", "runner"])
def test_the_epilog_of_a_job_that_was_killed_runs_all_the_same(cluster: Cluster, victim: str):
    """SIGKILL takes the shepherd too; and a daemon or runner that was killed meanwhile changes nothing."""
    mark = f"{cluster.base}/m"
    configure(cluster, f'[node]\nepilog = "{program(cluster, "epilog", f"echo $SPOOLQ_ATTEMPT >>{mark}.epilog")}"\n')
    node = cluster.node()
    job = cluster.sub("sh", "-c", f"trap '' TERM; touch {mark}; while :; do sleep 0.1; done")
    cluster.running(job, mark)
    for pid in cluster.family()[victim]:
        os.kill(pid, signal.SIGKILL)
    if victim == "daemon":
        node.wait()
        cluster.node()
    cluster.ok("kill", str(job))

    assert "CANCELLED" == cluster.result(job)["state"]
    assert "1\n" == read(f"{mark}.epilog")


def test_term_reaches_the_command_and_the_epilog_follows(cluster: Cluster):
    mark = f"{cluster.base}/m"
    configure(cluster, f'[node]\nepilog = "{program(cluster, "epilog", f"echo $SPOOLQ_EXIT_CODE >>{mark}.epilog")}"\n')
    cluster.policy(grace_s=120, settle_s=0, min_free_mb=1)  # it ends by itself, however late it is heard
    cluster.node()
    job = cluster.sub("sh", "-c", f"trap 'echo polite; exit 3' TERM; touch {mark}; while :; do sleep 0.05; done")
    cluster.running(job, mark)
    cluster.ok("kill", str(job))

    assert ("CANCELLED", 3) == (cluster.result(job)["state"], cluster.result(job)["exit_code"])
    assert ("polite\n", "3\n") == (cluster.text(job), read(f"{mark}.epilog"))


@pytest.mark.parametrize(
    ("text", "prolog_s", "said"),
    [("exit 3", 99, "failed with exit code 3"), ("sleep 99", 0.5, "took longer than 0.5 s")],
)
def test_a_node_whose_prolog_fails_gives_the_job_back_and_drains(
    cluster: Cluster, text: str, prolog_s: float, said: str
):
    prolog = program(cluster, "prolog", f"[ $SPOOLQ_NODE != n1 ] || {text}")
    configure(cluster, f'[node]\nprolog = ["{prolog}", "word"]\nprolog_s = {prolog_s}\n')
    cluster.node("n1")
    job = cluster.sub("--rerun", "never", "echo", "ran")
    cluster.until(lambda: read(f"{cluster.root}/nodes/n1/drain"), "n1 drains")
    assert said in read(f"{cluster.root}/nodes/n1/drain")
    assert said in cluster.ok("nodes") + cluster.ok("why", str(job))
    cluster.until(lambda: cluster.place(job) == "queue", "the job waits")
    kept = cluster.until(lambda: read(cluster.home(job, "result.1.json")), "what the first attempt came to")
    assert said in json.loads(kept)["reason"]
    configure(cluster, f'[node]\nprolog = ["{prolog}", "word"]\nprolog_s = 99\n')
    cluster.node("n2")

    result = cluster.result(job)
    assert ("COMPLETED", "n2", 2) == (result["state"], result["node"], result["attempt"])
    assert "ran\n" == cluster.text(job)


def test_a_warning_to_the_first_process_reaches_the_command(cluster: Cluster):
    configure(cluster, '[node]\nepilog = "/bin/true"\n')
    mark = f"{cluster.base}/m"
    cluster.node()
    line = f"trap 'echo warned; exit 0' USR1; touch {mark}; while :; do sleep 0.05; done"
    job = cluster.sub("-t", "2h", "--signal", "B:USR1@3599", "sh", "-c", line)
    cluster.running(job, mark)
    cluster.ok("edit", str(job), "time=1h")  # now it is time: 3599 s before the end

    assert "COMPLETED" == cluster.result(job)["state"]
    assert "warned\n" == cluster.text(job)


def test_a_job_that_is_killed_in_its_prolog_blames_nobody(cluster: Cluster):
    mark = f"{cluster.base}/m"
    prolog = program(cluster, "prolog", f"touch {mark}; sleep 99")
    epilog = program(cluster, "epilog", f"touch {mark}.epilog")
    configure(cluster, f'[node]\nprolog = "{prolog}"\nepilog = "{epilog}"\n')
    cluster.node()
    job = cluster.sub("touch", f"{mark}.ran")
    cluster.running(job, mark)
    cluster.ok("kill", str(job))

    assert "CANCELLED" == cluster.result(job)["state"]
    assert (True, False) == (os.path.exists(f"{mark}.epilog"), os.path.exists(f"{mark}.ran"))
    assert not os.path.exists(f"{cluster.root}/nodes/n1/drain")


def test_a_prolog_may_blame_the_job(cluster: Cluster):
    configure(cluster, f'[node]\nprolog = "{program(cluster, "prolog", "exit 100")}"\n')
    cluster.node()
    result = cluster.result(cluster.sub("touch", f"{cluster.base}/ran"))

    assert ("FAILED", 1) == (result["state"], result["exit_code"])
    assert "prolog: the prolog failed with exit code 100" == result["reason"]
    assert not os.path.exists(f"{cluster.base}/ran")
    assert not os.path.exists(f"{cluster.root}/nodes/n1/drain")


def test_an_epilog_that_fails_drains_the_node_and_not_the_job(cluster: Cluster):
    configure(cluster, f'[node]\nepilog = "{program(cluster, "epilog", "exit 1")}"\n')
    cluster.node()
    assert "COMPLETED" == cluster.result(cluster.sub("true"))["state"]
    assert "the epilog failed" in cluster.until(lambda: read(f"{cluster.root}/nodes/n1/drain"), "n1 drains")


def test_a_wrapper_is_put_before_every_command(cluster: Cluster):
    configure(cluster, '[node]\nwrapper = ["env", "WRAPPED=yes"]\n')
    cluster.node()
    job = cluster.sub("sh", "-c", "echo $WRAPPED; exit 4")
    script = cluster.sub(stdin="#!/bin/sh\necho $WRAPPED too\n")

    assert 4 == cluster.result(job)["exit_code"]
    assert "COMPLETED" == cluster.result(script)["state"]
    assert ("yes\n", "yes too\n") == (cluster.text(job), cluster.text(script))


def test_a_node_that_could_run_nothing_refuses_to_serve(cluster: Cluster):
    configure(cluster, '[node]\nprolog = "/no/such/program"\n')
    done = cluster.spoolq("node", "--name", "n1")
    assert 78 == done.returncode
    assert "config.toml:2: prolog: /no/such/program" in done.stderr


@pytest.mark.parametrize("value", ["3", '""', "[]", '["a", 3]', "{}"])
def test_a_wrapper_must_be_words(value):
    with pytest.raises(Misconfigured, match="f:2: wrapper: "):
        config.parse_settings([("f", f"[node]\nwrapper = {value}\n".encode())])


def test_hooks_hear_of_every_change(cluster: Cluster):
    """Also of a dropped file; one that hangs is killed, and keeps nothing back."""
    log = f"{cluster.base}/log"
    line = f'echo "$1 $SPOOLQ_EVENT $SPOOLQ_JOB_ID $SPOOLQ_JOB_NAME $SPOOLQ_STATE $SPOOLQ_EXIT_CODE." >>{log}'
    hook = program(cluster, "hook", line)
    hang = program(cluster, "hang", f"echo hangs >>{log}; sleep 999; echo never >>{log}")
    configure(cluster, f"""[hooks]
on_submit = ["{hook}", "a"]
on_start = ["{hook}", "b"]
on_end = ["{hook}", "c"]
on_fail = ["{hang}"]
hook_s = 30
""")  # fmt: skip
    cluster.node()
    job = cluster.sub("-J", "me", "sh", "-c", "exit 3")
    with open(f"{cluster.root}/drop/x.tmp", "w") as file:
        file.write("#!/bin/sh\n#SPOOLQ end\n")
    os.rename(f"{cluster.root}/drop/x.tmp", f"{cluster.root}/drop/x.sh")
    expected = [
        "a submit 1 me  .", "b start 1 me  .", "c end 1 me FAILED 3.", "hangs",
        "a submit 2 x  .", "b start 2 x  .", "c end 2 x COMPLETED 0.",
    ]  # fmt: skip
    cluster.until(lambda: len(read(log).splitlines()) >= len(expected), "all hooks ran, in whatever order")
    assert sorted(expected) == sorted(read(log).splitlines())
    assert "FAILED" == cluster.result(job)["state"]
    cluster.ok("sub", "--each-line", "-", stdin="true\ntrue\n")
    cluster.until(lambda: "end 4" in read(log) and "submit 3" in read(log), "the hooks of more jobs ran")
    assert ["a submit 3 true  ."] == [
        text for text in read(log).splitlines() if "submit 3" in text or "submit 4" in text
    ]
    assert "never" not in read(log)


def test_hooks_hear_of_jobs_that_are_cancelled_while_they_wait(cluster: Cluster):
    """By the command that cancels them, on its machine, or by the node that finds that they can never start."""
    log = f"{cluster.base}/log"
    line = f'echo "$1 $SPOOLQ_JOB_ID $SPOOLQ_STATE $SPOOLQ_NODE $SPOOLQ_REASON" >>{log}'
    hook = program(cluster, "hook", line)
    configure(cluster, f'[hooks]\non_end = ["{hook}", "end"]\non_fail = ["{hook}", "fail"]\non_start = "{hook}"\n')
    held = cluster.ok("sub", "-H", "--each-line", "-", stdin="true\n" * 10).split()
    cluster.ok("kill", *held)
    parent = cluster.sub("-H", "true")
    child = cluster.sub("-d", f"afterok:{parent}", "true")
    cluster.node()
    cluster.ok("kill", str(parent))
    cluster.until(
        lambda: f"end {child} CANCELLED n1 DependencyNeverSatisfied" in read(log), "the node tells of the child"
    )
    late = cluster.sub("-d", f"afterok:{parent}", "true")  # the submitter itself finds that it can never start
    cluster.until(lambda: f"end {late} CANCELLED" in read(log), "somebody tells of the second child")
    by_user = [f"end {job} CANCELLED  cancelled by " for job in [*held, str(parent)]]
    cluster.until(lambda: all(text in read(log) for text in by_user), "the commands tell of the others")
    assert len(by_user) + 2 == len(read(log).splitlines()), "each once, and a cancelled job has not failed"


def test_a_node_that_leaves_has_run_its_hooks(cluster: Cluster):
    """More than run at once: the others wait, and the node for them."""
    log = f"{cluster.base}/log"
    configure(cluster, f'[hooks]\non_end = "{program(cluster, "hook", f"sleep 0.2; echo x >>{log}")}"\n')
    cluster.ok("sub", "-c", "0.1", "--each-line", "-", stdin="true\n" * 20)
    assert 0 == cluster.node("n1", 2, "--once").wait(timeout=120)
    assert 20 == len(read(log).splitlines())


def test_a_hook_hears_of_a_job_that_was_lost_with_its_node(cluster: Cluster):
    log, mark = f"{cluster.base}/log", f"{cluster.base}/m"
    configure(
        cluster, f'[hooks]\non_fail = ["{program(cluster, "hook", f"echo $SPOOLQ_JOB_ID $SPOOLQ_STATE >>{log}")}"]\n'
    )
    cluster.policy(grace_s=1, settle_s=0, min_free_mb=1, beat_s=0.2)
    cluster.node("n2")
    job = cluster.sub("--rerun", "never", "sh", "-c", f"touch {mark}; sleep 60")
    cluster.running(job, mark)
    cluster.close()
    cluster.node("n1")
    cluster.ok("node-dead", "n2", "--certain")
    cluster.until(lambda: read(log), "the hook ran")

    assert f"{job} NODE_FAIL\n" == read(log)


def test_what_a_hook_prints_is_in_the_log_of_the_node(cluster: Cluster):
    configure(cluster, f'[hooks]\non_end = "{program(cluster, "hook", "echo spoken; no-such-thing")}"\n')
    cluster.node()
    cluster.result(cluster.sub("true"))
    state = f"{cluster.base}/state"
    path = f"{state}/{os.listdir(state)[0]}/hooks.log"
    assert "spoken" in cluster.until(lambda: "no-such-thing" in read(path) and read(path), "the log")


def test_a_step_that_closes_its_output_and_one_that_prints_much(tmp_path):
    env = {"PATH": os.environ["PATH"]}
    assert (3, b"") == shepherd.step(["/bin/sh", "-c", "exec >&-; sleep 0.2; exit 3"], env, 60)
    code, said = shepherd.step(["/bin/sh", "-c", "head -c 3000000 /dev/zero"], env, 60)
    assert shepherd.MOST_SAID >= len(said) > 1000
    assert code != shepherd.TIMED_OUT
    assert shepherd.TIMED_OUT == shepherd.step(["/bin/sh", "-c", "echo x; sleep 99"], env, 0.3)[0]
    assert 127 == shepherd.step(["/no/such"], env, 1)[0]


def attempt(base: str, epilog: str, argv: list[str]) -> tuple[Around, dict]:
    """A plan for attempt 1 of job 7, as a daemon writes it, and the start message."""
    around = Around("/spool", "n1", f"{base}/state", Settings(epilog=(epilog,)))
    message = {"argv": argv, "program": argv[0], "env": ["PATH=/usr/bin:/bin"], "chdir": base, "scratch": base}
    around.wrap(parse_name("500.7.1.1~c1,m1~x"), Job(("x",)), message | {"mem_mb": None, "umask": 0})
    started = message | {"mem_mb": 100}
    around.wrap(parse_name("500.7.1.1~c1,m1~x"), Job(("x",)), started)
    assert 100 + SHEPHERD_MB == started["mem_mb"]
    return around, started


def wait(*arounds: Around, daemon) -> None:
    """Until nothing is being finished."""
    while any(around.busy for around in arounds):
        for around in arounds:
            around.step(daemon)
        time.sleep(0.01)


class Heard:
    """Stands for a daemon: notes what ended."""

    def __init__(self) -> None:
        self.ended: list = []
        self.live: dict = {}
        self.task_ends: list = []
        self.chunks: dict = {}

    def take_end(self, *what) -> None:
        self.ended.append(what)


def test_two_daemons_in_turn_finish_a_job_once(short_dir):
    """The first is killed while the epilog of a killed job runs; the second waits for it, and runs none of its own."""
    epilog = f"{short_dir}/epilog"
    with open(epilog, "w") as file:
        file.write(f"#!/bin/sh\nwhile [ ! -e {short_dir}/go ]; do sleep 0.05; done\necho ran >>{short_dir}/log\n")
    os.chmod(epilog, 0o755)
    first, message = attempt(short_dir, epilog, ["/bin/sh", "-c", f"touch {short_dir}/up; sleep 99"])
    job = subprocess.Popen(message["argv"], cwd=short_dir, start_new_session=True)
    while not os.path.exists(f"{short_dir}/up"):
        time.sleep(0.01)
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    ended = {"exit_code": None, "signal": 9, "reason": "", "detail": ""}
    assert first.unfinished((7, 1), ended)
    second = Around("/spool", "n1", f"{short_dir}/state", Settings())
    assert {(7, 1)} == second.keys
    assert second.unfinished((7, 1), ended)
    with open(f"{short_dir}/go", "w"):
        pass
    heard = Heard()
    wait(first, second, daemon=heard)

    assert "ran\n" == read(f"{short_dir}/log")
    assert [(7, 1, ended)] * 2 == heard.ended
    assert (False, False) == (second.unfinished((7, 1), ended), second.judge((7, 1), ended))
    second.tidy(Heard())
    assert (set(), []) == (second.keys, os.listdir(f"{short_dir}/state/steps"))


def test_an_epilog_that_was_killed_itself_runs_again(short_dir):
    epilog = f"{short_dir}/epilog"
    with open(epilog, "w") as file:
        file.write(f"#!/bin/sh\necho $SPOOLQ_EXIT_CODE >>{short_dir}/log\n[ -e {short_dir}/go ] || kill -9 $PPID\n")
    os.chmod(epilog, 0o755)
    around, message = attempt(short_dir, epilog, ["/bin/sh", "-c", "exit 5"])
    subprocess.run(message["argv"], cwd=short_dir, start_new_session=True)
    assert "5\n" == read(f"{short_dir}/log")
    with open(f"{short_dir}/go", "w"):
        pass
    ended = {"exit_code": None, "signal": 9, "reason": "", "detail": ""}
    assert around.unfinished((7, 1), ended)
    wait(around, daemon=Heard())

    assert "5\n5\n" == read(f"{short_dir}/log")
    assert not around.unfinished((7, 1), ended)


def test_a_plan_that_nobody_followed_is_removed_by_the_next_daemon(short_dir):
    attempt(short_dir, "/bin/true", ["/bin/true"])
    around = Around("/spool", "n1", f"{short_dir}/state", Settings())
    assert not around.unfinished((7, 1), {})  # it never began
    around.tidy(Heard())
    assert [] == os.listdir(f"{short_dir}/state/steps")


def test_what_a_dead_job_left_in_the_scratch_directory_is_cleared_up(short_dir):
    """But not what was kept for its user, nor what is another node's."""
    os.mkdir(f"{short_dir}/scratch")
    mine, other = (
        Around("/spool", name, f"{short_dir}/{name}", Settings(scratch=f"{short_dir}/scratch")) for name in ("n1", "n2")
    )
    message = {"argv": ["x"], "program": None, "env": [], "chdir": "/", "scratch": "/tmp/0", "mem_mb": None}
    for around in (mine, other):
        around.wrap(parse_name("500.7.1.1~c1,m1~x"), Job(("x",), stage_in=("a",)), started := dict(message))
        scratch = started["env"][0].partition("=")[2]
        os.mkdir(scratch)
    os.mkdir(f"{short_dir}/scratch/spoolq-job-6.1.kept")
    mine.tidy(Heard())

    assert {"spoolq-job-6.1.kept", os.path.basename(scratch)} == set(os.listdir(f"{short_dir}/scratch"))
