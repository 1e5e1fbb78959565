"""A spool that does not answer: every command says so and ends, or says so and waits on."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest

from spoolq.__main__ import COMMANDS
from tests import hang
from tests.hang import CALLS

SILENT = "does not answer"
# words of commands that have something to do, and one that is no job's
WORDS = {
    "sub": ["true"],
    "run": ["true"],
    "stat": [],
    "nodes": [],
    "hist": [],
    "doctor": [],
    "config": [],
    "drain": ["n1"],
    "undrain": ["n1"],
    "edit": ["1", "mem=2G"],
}
NEVER_MEET_THE_SPOOL = {"completion", "init", "node"}


def ended(process):
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def call(cluster, *words, **env):
    return ended(hang.start(cluster.env | env, *words, cwd=cluster.base))


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - NEVER_MEET_THE_SPOOL - {"wait"}))
def test_commands_answer_within_seconds(cluster, hung, command):
    cluster.sub("-H", "true")
    with hung.lasting():
        code, out, err = call(cluster, command, *WORDS.get(command, ["1"]))
    assert (75, "") == (code, out), err
    assert err.startswith(f"spoolq: the spool {cluster.root} does not answer (waited 1 s: its file server is down")
    assert 1 == err.count("\n"), err


def test_what_only_looks_says_nothing_of_a_wish(cluster, hung):
    with hung.lasting():
        assert call(cluster, "stat")[2].endswith("the network is)\n")
        assert "perhaps not done" in call(cluster, "kill", "1")[2]


def test_a_submission_before_its_commit_was_none(cluster, hung):
    with hung.lasting():
        code, out, err = call(cluster, "sub", "true")
    assert (75, "") == (code, out)
    assert err.endswith(": nothing was submitted\n")
    assert 1 == cluster.sub("true")


def test_a_submission_at_its_commit_may_be_one(cluster, hung):
    with hung.lasting():
        code, out, err = call(cluster, "sub", "true", **{CALLS: "rename"})
    assert (75, "") == (code, out)
    assert err.endswith(": perhaps submitted; ask `spoolq show 1`\n")


def test_after_its_commit_it_is_one(cluster, hung):
    with hung.lasting():
        # the first call after the rename that a submission makes by this name
        code, out, err = call(cluster, "sub", "true", **{CALLS: "utime"})
    assert (75, "") == (code, out)
    assert ": submitted as 1" in err
    assert "queue" == cluster.place(1)


def test_of_many_lines_it_says_how_many(cluster, hung):
    with open(f"{cluster.base}/lines", "w", encoding="ascii") as file:
        file.write("true\n" * 3)
    with hung.lasting():
        code, _, err = call(cluster, "sub", "--each-line", "lines", **{CALLS: "rename"})
    assert 75 == code
    assert ": 0 of 3 jobs were submitted, perhaps up to" in err


def said(process, word, patience_s=120):
    """Read stderr up to a line with a word."""
    text, end = "", time.monotonic() + patience_s
    while word not in text:
        assert time.monotonic() < end, text
        text += process.stderr.readline()
    return text


@pytest.mark.parametrize("words", [["wait", "1"], ["out", "-f", "1"], ["sub", "-W", "true"], ["run", "-H", "true"]])
def test_what_waits_on_purpose_waits_on(cluster, hung, words):
    cluster.sub("true")
    waiting = hang.start(cluster.env, *words, cwd=cluster.base)
    job = 1 if words[-1] == "1" else 2
    cluster.until(lambda: waiting.poll() is not None or cluster.place(job) in ("queue", "held"), "a job waits")
    cluster.until(lambda: waiting.poll() is not None or hang.resting(waiting.pid), "it waits")
    with hung.lasting():
        assert "; still waiting\n" in said(waiting, SILENT)
    assert "answers again" in said(waiting, "answers")
    if words[0] == "run":  # brings a node of its own
        cluster.ok("release", "2")
    else:
        cluster.node()
    assert 0 == ended(waiting)[0]


def test_a_node_waits_on_and_serves_again(cluster, hung):
    """Found on real NFS: it ended itself after five seconds, and its lease with it."""
    cluster.policy(grace_s=1, settle_s=0, min_free_mb=1, beat_s=0.2)
    # more than any machine has: what others use of it is no matter
    node = hang.start(cluster.env, "node", "--cpus", "4", "--mem", "64T", cwd=cluster.base)
    try:
        said(node, "up node=")
        with hung.lasting():
            assert "jobs go on" in said(node, SILENT)
        assert "answers again" in said(node, "answers")
        assert 0 == ended(hang.start(cluster.env, "run", "true", cwd=cluster.base))[0]
        assert node.poll() is None
    finally:
        node.terminate()
        assert 0 == ended(node)[0]


def test_a_wait_that_was_given_a_time_ends_with_its_own_code(cluster, hung):
    cluster.sub("true")
    with hung.lasting():  # from its first look at the job on, so that its time cannot be over before
        code, _, err = call(cluster, "wait", "--timeout", "3s", "1", **{CALLS: "listdir"})
    assert 124 == code, err
    assert "time is over" in err


@pytest.mark.parametrize("words", [["wait", "1"], ["run", "-H", "true"]])
def test_control_c_is_heard_while_the_spool_hangs(cluster, hung, words):
    cluster.sub("-H", "true")
    job = 1 if words[-1] == "1" else 2
    waiting = hang.start(cluster.env | {"SPOOLQ_PATIENCE": "100"}, *words, cwd=cluster.base)
    cluster.until(lambda: cluster.place(job) == "held", "a job waits")
    cluster.until(lambda: waiting.poll() is not None or hang.resting(waiting.pid), "it waits for it")
    with hung.lasting():
        cluster.until(lambda: hang.stuck(waiting.pid), "it is stuck")
        waiting.send_signal(signal.SIGINT)
        code, _, err = ended(waiting)
    assert 130 == code
    assert f"the spool {cluster.root} {SILENT}; ended by SIGINT" in err
    assert ("job 2 may go on" in err) == (job == 2)


def test_a_slow_spool_is_no_hang(cluster, hung):
    """It answers each call, late: the command takes longer than the patience, and succeeds."""
    slow = "import sys, time, os; sys.argv = ['spoolq', 'stat']; real = os.listdir\n"
    slow += "from tests import hang\n"
    slow += "def late(path):\n    hang.wait_for_writer(os.environ['SLOW'])\n    return real(path)\n"
    slow += "os.listdir = late\nfrom spoolq.__main__ import main\nmain()"
    fifo = f"{cluster.base}/slow"
    os.mkfifo(fifo)
    process = subprocess.Popen(
        [sys.executable, "-c", slow],
        env=cluster.env | {"SLOW": fifo, "SPOOLQ_PATIENCE": "5"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    answers = 0
    while process.poll() is None:
        with contextlib.suppress(OSError):
            if hang.stuck(process.pid):
                time.sleep(1.5)
                os.close(os.open(fifo, os.O_RDWR | os.O_NONBLOCK))
                answers += 1
        time.sleep(0.02)
    assert SILENT.encode() not in process.communicate()[1]
    assert 0 == process.returncode
    assert answers > 3  # longer in all than the patience


def test_patience_can_be_endless(cluster, hung):
    with hung.lasting():
        process = hang.start(cluster.env | {"SPOOLQ_PATIENCE": "0"}, "stat", cwd=cluster.base)
        time.sleep(3)
        assert process.poll() is None
    assert 0 == ended(process)[0]


def test_an_error_of_a_soft_mount_is_try_again(monkeypatch, capsys):
    import errno

    from spoolq import __main__ as program
    from spoolq import look

    def stat(_argv):
        raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT), "/spool/queue")

    monkeypatch.setattr(look, "stat", stat)
    assert 75 == program.main(["stat"])
    assert capsys.readouterr().err == (
        "spoolq: /spool/queue: Connection timed out (the file server does not answer; try again)\n"
    )
