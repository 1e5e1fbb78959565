"""Elbow room: what is enforced of what was asked for, and the signal before the end."""

import os
import signal
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spoolq import config, elbow, options, runs, values
from spoolq.entry import Entry
from spoolq.errors import UsageError
from spoolq.job import Job
from spoolq.runs import Act, Event, Run, happen

from .cluster import Cluster
from .node_family import Node, wait_until

BYTES = "import sys, time; x = bytearray(int(sys.argv[1]) << 20); time.sleep(float(sys.argv[2]))"


def policy(text: str = "") -> config.Policy:
    return config.parse_policy(f'format = 1\nuuid = "1-2"\nname = "lab"\n[policy]\n{text}'.encode(), "spool.toml")


def job(**more) -> Job:
    wants = {"cpus": 1000, "mem": 100_000}
    return Job(**{"command": ("true",), "wants": wants, "declared": frozenset(("mem",)), "limit_s": 60, **more})


factors = st.none() | st.floats(1, 100)


@given(factors, factors, st.floats(1, 100), st.floats(1, 100), st.integers(1, 10**6), st.integers(1, 10**9))
def test_what_is_enforced_is_never_less_than_was_asked_for(mem, time, site_mem, site_time, mb, limit_s):
    site = policy(f"mem_factor = {site_mem}\ntime_factor = {site_time}\nmax_time_factor = 50\n")
    asked = job(mem_factor=mem, time_factor=time, limit_s=limit_s, wants={"cpus": 1000, "mem": mb * 1000})

    limit, most = elbow.enforced(asked.entry(1), asked, site)

    assert limit_s <= limit <= limit_s * max(50, site_time)
    assert mb <= most <= mb * 100
    assert {"cpus": 1000, "mem": mb * 1000} == asked.entry(1).wants  # the reservation stays what was asked for


def test_memory_that_nobody_asked_for_is_not_enforced_until_somebody_says_it():
    guess = job(declared=frozenset(), limit_s=None)
    assert (None, None) == elbow.enforced(guess.entry(1), guess, policy())
    assert (None, 100) == elbow.enforced(guess.entry(1), guess, policy("enforce_default_mem = true"))
    edited = guess.entry(1)._replace(wants={"cpus": 1000, "mem": 50_000})
    assert (None, 50) == elbow.enforced(edited, guess, policy())


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"time_factor": 3.0}, "time-factor: 3 is more than this spool allows (2, set in its spool.toml)"),
        ({"signal": "USR1@60"}, "signal: 60 s before the end at 60 s is before the start (a shorter time: --signal"),
    ],
)
def test_what_the_site_does_not_allow_or_cannot_work_is_refused(asked, words):
    with pytest.raises(UsageError) as error:
        elbow.check(job(**asked), policy("max_time_factor = 2"))
    assert str(error.value).startswith(words)
    elbow.check(job(signal="USR1@60", time_factor=1.5), policy())
    elbow.check(job(signal="USR1@60", limit_s=None), policy())


@pytest.mark.parametrize(
    ("text", "said"),
    [("USR1", "USR1@60"), ("B:usr1@5", "B:USR1@5"), ("SIGTERM@3", "TERM@3"), ("10@7", "10@7"), ("B:2", "B:2@60")],
)
def test_the_signal_is_written_as_slurm_does(text, said):
    assert {"signal": said} == values.warning(text)


@pytest.mark.parametrize("text", ["", "@5", "KILL@5", "USR1@0", "USR1@-1", "99@5", "R:USR1", "USR1@5m", "x" * 99])
def test_another_form_of_signal_is_refused(text):
    with pytest.raises(UsageError, match="^signal: "):
        values.warning(text)


@pytest.mark.parametrize("text", ["0.5", "0", "101", "nan", "inf", "two", ""])
def test_a_factor_is_a_number_from_1_to_100(text):
    with pytest.raises(UsageError, match="mem-factor"):
        values.factor("mem-factor")(text)
    assert {"mem_factor": 1.5} == values.factor("mem-factor")("1.5x")


@pytest.mark.parametrize(
    ("reason", "detail", "said"),
    [
        ("timeout", "time limit of 90 s", "time limit of 90 s (asked for 60 s)"),
        ("timeout", "time limit of 60 s", "time limit of 60 s"),
        ("oom", "held 300 MB in 2 processes, limit 200 MB (sampled)", " (asked for 100 MB)"),
        ("oom", "the kernel ended it at its limit of 100 MB, peak 99 MB", "peak 99 MB"),
        ("cancelled", "limit 200 MB", "limit 200 MB"),
    ],
)
def test_a_result_says_what_was_asked_for_where_more_was_allowed(reason, detail, said):
    assert elbow.words(reason, detail, Entry(rank=500, id=1, wants={"mem": 100_000}, limit_s=60)).endswith(said)


# --- more memory for a retry


@pytest.mark.parametrize(
    ("text", "mb"), [("2x", 200), ("1.5X", 150), ("+50", 150), ("+1G", 1124), ("1.001x", 101), ("999x", 99900)]
)
def test_a_retry_asks_for_more(text, mb):
    assert mb * 1000 == values.grown(100_000, values.retry_mem(text)["retry_mem"])


@pytest.mark.parametrize("text", ["", "2", "1x", "0.5x", "-1x", "+0", "+", "x", "nanx", "2x2"])
def test_what_is_no_growth_is_refused(text):
    with pytest.raises(UsageError, match="^retry-mem: "):
        values.retry_mem(text)


def test_without_retries_there_is_none_that_could_ask_for_more():
    with pytest.raises(UsageError, match="remedy: -r 3 --retry-mem 2x"):
        options.to_job([("retry-mem", "2x")], ["true"])


# --- the signal, as the runner counts it


def run(**more) -> Run:
    """Begun at 1000 s, to end at 1100 s, warned at 1080 s."""
    made = Run("", {"id": 1, "attempt": 1, "limit_s": 100.0, "grace_s": 10.0, "warn": [10, 20, 0], **more})
    made.since = 1000.0
    return made


def test_the_signal_comes_once_before_the_limit():
    one = run()
    assert (1080.0, Event.WARN) == (runs.due_at(one), runs.due(one))
    assert Act.WARN is happen(one, Event.WARN, 1080.0)
    assert (1100.0, Event.LIMIT, "") == (runs.due_at(one), runs.due(one), one.reason)
    again = run()
    again.take_change(one.change())
    assert (1100.0, Event.LIMIT) == (runs.due_at(again), runs.due(again))


def test_a_suspended_job_gets_it_later_and_one_that_ends_not_at_all():
    one = run()
    happen(one, Event.PAUSE, 1010.0)
    assert None is happen(one, Event.WARN, 1080.0)
    happen(one, Event.RESUME, 1060.0)
    assert (1130.0, Event.WARN) == (runs.due_at(one), runs.due(one))
    happen(one, Event.CANCEL, 1070.0)
    assert (Event.GRACE, None) == (runs.due(one), happen(one, Event.WARN, 1130.0))


def test_a_longer_limit_has_a_signal_of_its_own():
    one = run()
    happen(one, Event.WARN, 1080.0)
    one.limit_s = 110.0
    runs.rewarn(one, 1095.0)
    assert Event.LIMIT is runs.due(one)  # the time of its signal is over
    one.limit_s = 200.0
    runs.rewarn(one, 1095.0)
    assert (1180.0, Event.WARN) == (runs.due_at(one), runs.due(one))


@pytest.fixture
def node():
    """A family; whatever it printed is a fault."""
    made = Node()
    yield made
    assert "" == made.close()


TRAP = "trap 'echo {0}' USR1; echo {0} is up; "
LOOP = "while :; do sleep 0.05; done"


@pytest.mark.parametrize("first", [0, 1])
def test_all_processes_get_the_signal_or_the_first_alone(node, first):
    began = time.monotonic()
    node.start(
        1, f"({TRAP.format('child')}{LOOP})& {TRAP.format('first')}{LOOP}",
        limit_s=7200.0, grace_s=0.2, warn=[signal.SIGUSR1, 3600.0, first],
    )  # fmt: skip
    lines = lambda: node.pump() or {*node.output().splitlines()}  # noqa: E731
    wait_until(lambda: lines() >= {"child is up", "first is up"}, "both")
    heard = {"first"} if first else {"child", "first"}
    node.say("limits", 1, limit_s=3600.0)  # so the signal is due
    wait_until(lambda: lines() >= heard, "the signal")
    node.say("limits", 1, limit_s=time.monotonic() - began + 2)  # time for what must not come
    assert "timeout" == node.ended(1)["reason"]
    assert heard == lines() & {"child", "first"}


# --- with real nodes


def test_the_factors_of_a_job_and_of_the_site(cluster: Cluster):
    with open(f"{cluster.root}/spool.toml", "a") as file:
        file.write("[policy]\ntime_factor = 2\nmax_mem_factor = 3\n")
    cluster.node()
    python = (sys.executable, "-S", "-c", BYTES)
    late = cluster.sub("-t", "1s", "sleep", "60")
    room = cluster.sub("-m", "60", "--mem-factor", "3", *python, "100", "1")
    tight = cluster.sub("-m", "60", "--mem-factor", "1.5", *python, "200", "60")
    refused = cluster.spoolq("sub", "-m", "60", "--mem-factor", "4", "true")

    ended = cluster.result(late)
    assert ("TIMEOUT", "time") == (ended["state"], ended["limit_hit"])
    assert "timeout: time limit of 2 s (asked for 1 s)" == ended["reason"]
    assert ended["wall_s"] >= 2
    ended = cluster.result(room)
    assert ("COMPLETED", 60, None) == (ended["state"], ended["mem_mb"], ended["limit_hit"])
    ended = cluster.result(tight)
    assert ("OUT_OF_MEMORY", "mem") == (ended["state"], ended["limit_hit"])
    assert ended["reason"].endswith("(asked for 60 MB)"), ended["reason"]
    assert "limit 90 MB" in ended["reason"] or "limit of 90 MB" in ended["reason"]
    assert (2, True) == (refused.returncode, "allows (3, set in its spool.toml)" in refused.stderr)
    assert "asked for 60 MB" in cluster.ok("why", str(tight))


def test_after_out_of_memory_a_retry_asks_for_more_up_to_the_largest_node(cluster: Cluster):
    cluster.policy(grace_s=1, settle_s=0, min_free_mb=1, retry_s=0)
    cluster.node(cpus=10_000, mem="200")  # more than any machine has: what others use of this one does not count
    python = f"exec {sys.executable} -S -c '{BYTES}'"
    line = f"echo $SPOOLQ_MEM_MB >&2; [ $SPOOLQ_MEM_MB = 160 ] && s=0 || s=60; {python} 120 $s"
    job_id = cluster.sub("-m", "40", "-r", "2", "--retry-mem", "2x", "sh", "-c", line)
    large = cluster.sub("-m", "150", "-r", "1", "--retry-mem", "3x", "sh", "-c", f"{python} 500 60")

    ended = cluster.result(job_id)
    assert ("COMPLETED", 3, 160) == (ended["state"], ended["attempt"], ended["mem_mb"])
    assert ["40", "80", "160"] == cluster.text(job_id, "stderr").split()
    ended = cluster.result(large)
    assert ("OUT_OF_MEMORY", 2, 200) == (ended["state"], ended["attempt"], ended["mem_mb"])


def test_a_job_may_outlast_its_time_by_its_own_factor(cluster: Cluster):
    cluster.node()
    job_id = cluster.sub("-t", "1s", "--time-factor", "60", "sh", "-c", "sleep 2; echo $SPOOLQ_TIME_LIMIT")
    assert "COMPLETED" == cluster.result(job_id)["state"]
    assert "1\n" == cluster.text(job_id)


def test_the_signal_comes_once_though_daemon_and_runner_are_killed(cluster: Cluster):
    daemon = cluster.node()
    up = f"{cluster.base}/up"
    line = f"trap 'echo warned' USR1; touch {up}; {LOOP}"
    job_id = cluster.sub("-t", "2h", "--signal", "USR1@3600", "sh", "-c", line)
    cluster.running(job_id, up)
    daemon.kill()
    daemon.wait()
    runner = cluster.family()["runner"]
    for pid in runner:
        os.kill(pid, signal.SIGKILL)
    cluster.node()
    cluster.ok("edit", str(job_id), "time=1h")  # so the signal is due
    cluster.until(lambda: "warned" in cluster.text(job_id), "the signal, from the second runner")
    second = cluster.family()["runner"]
    for pid in second:
        assert pid not in runner
        os.kill(pid, signal.SIGKILL)
    cluster.until(lambda: {*cluster.family()["runner"]} - {*second}, "a third runner, which would send it at once")
    cluster.ok("edit", str(job_id), "time=1s")
    ended = cluster.result(job_id)
    assert ("TIMEOUT", "timeout: time limit of 1 s") == (ended["state"], ended["reason"])
    assert ["warned"] == [line for line in cluster.text(job_id).split() if line == "warned"]
    wait_until(lambda: "done" == cluster.place(job_id))
