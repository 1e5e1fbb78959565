"""The commands `run`, `out` and `wait`, with a node that the test plays."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import spoolq
from spoolq import __main__ as program
from spoolq import awaiting, embedded, follow, home, tail
from spoolq.errors import NotFound

from . import play
from .node_family import wait_until

PACKAGE_ROOT = str(Path(spoolq.__file__).parent.parent)
PATIENCE_S = 600.0


@pytest.fixture(autouse=True)
def place(spool, tmp_path, monkeypatch):
    monkeypatch.setenv("SPOOLQ_DIR", spool.root)
    monkeypatch.delenv("SPOOLQ_SUB_OPTS", raising=False)
    for name in ("SILENT_S", "LINGER_S"):  # a busy machine is no reason to say so, nor to leave without the end
        monkeypatch.setattr(follow, name, PATIENCE_S)
    play.announce(spool)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield tmp_path / "here"
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def node(spool):
    with play.Node(spool) as playing:
        yield playing


def call(*words):
    return program.main([str(word) for word in words])


def sub(*words):
    assert call("sub", *words) == 0


@pytest.fixture
def start(tmp_path):
    """Start a command as a process of its own, as patient as those in this one."""
    started = []
    (tmp_path / "site").mkdir()
    patient = f"import spoolq.follow as room\nroom.SILENT_S = room.LINGER_S = {PATIENCE_S}\n"
    (tmp_path / "site/sitecustomize.py").write_text(patient)

    def start(*words, **kwargs):
        env = {**os.environ, "PYTHONPATH": f"{tmp_path}/site:{PACKAGE_ROOT}"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL} | kwargs
        started.append(subprocess.Popen([sys.executable, "-m", "spoolq", *words], env=env, **pipes))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        for pipe in (process.stdout, process.stderr):
            pipe.close()


def ended(spool, job_id):
    return awaiting.until_ended(spool, [job_id], timeout_s=120)[job_id]


# --- run


def test_run_streams_both_outputs_apart_and_exits_with_the_code(node, capfd):
    assert call("run", "sh", "-c", "echo out; echo err >&2; exit 3") == 3
    assert capfd.readouterr() == ("out\n", "err\n")


@pytest.mark.parametrize(("line", "code"), [("true", 0), ("kill -KILL $$", 137), ("exit 255", 255)])
def test_run_exits_as_a_shell_would(node, line, code):
    assert code == call("run", "--wrap", line)


def test_run_keeps_every_byte_of_a_large_output(node, capfd):
    data = "x" * 999 + "\n"

    assert call("run", "sh", "-c", f"yes {'x' * 999} | head -n 2000") == 0
    assert data * 2000 == capfd.readouterr().out


def test_output_appears_while_the_job_runs(node, place, start):
    process = start("run", "sh", "-c", "echo first; while [ ! -e go ]; do sleep 0.01; done; echo second")

    assert process.stdout.readline() == b"first\n"  # the job has not ended: it waits for the file
    (place / "go").write_text("")
    assert process.stdout.read() == b"second\n"
    assert process.wait(120) == 0


def test_output_that_is_not_text_passes_unchanged(node, start):
    process = start("run", "sh", "-c", r"printf '\000\377\033[2J'")

    assert process.communicate(timeout=120)[0] == b"\0\xff\x1b[2J"


def test_run_takes_scripts_and_options(node, place, capfd):
    (place / "step.sh").write_text("#!/bin/sh\n#SPOOLQ -J stepped\necho $1 $0\n")

    assert call("run", "-c", 2, "./step.sh", "word") == 0
    out = capfd.readouterr().out
    assert out.startswith("word ")
    assert out.endswith("/script\n")


def test_an_output_that_goes_to_a_file_is_not_shown(node, place, capfd):
    assert call("run", "-o", "log", "sh", "-c", "echo out; echo err >&2") == 0
    assert capfd.readouterr() == ("", "")
    assert (place / "log").read_text() == "out\nerr\n"

    assert call("run", "-e", "errors", "sh", "-c", "echo out; echo err >&2") == 0
    assert capfd.readouterr() == ("out\n", "")
    assert (place / "errors").read_text() == "err\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_kills_the_running_job(node, spool, number, start):
    process = start("run", "sh", "-c", "echo started; exec sleep 600")
    assert process.stdout.readline() == b"started\n"

    process.send_signal(number)
    assert 128 + number == process.wait(120)
    assert ended(spool, 1).state == "CANCELLED"


def test_what_a_killed_job_says_at_its_end_is_shown(node, start):
    process = start("run", "sh", "-c", "trap 'echo bye; exit 1' TERM; echo started; while :; do sleep 0.01; done")
    assert process.stdout.readline() == b"started\n"

    process.send_signal(signal.SIGTERM)
    assert process.stdout.read() == b"bye\n"
    assert process.wait(120) == 143


def test_a_signal_cancels_the_waiting_job(spool, start):
    process = start("run", "true")
    threading.Thread(target=lambda: _once_there(spool, 1, lambda: process.send_signal(signal.SIGTERM))).start()

    assert process.wait(120) == 143
    assert ended(spool, 1).state == "CANCELLED"
    assert b"130\n" not in process.communicate()[0]


def _once_there(spool, job_id, then):
    while True:
        try:
            spool.find(job_id)
        except NotFound:
            time.sleep(0.01)
            continue
        break
    then()


def test_a_second_signal_leaves_at_once(spool, start):
    """The job is claimed by a node that never answers, so its end cannot be waited for."""
    process = start("run", "true")
    waiting = _wait_for_entry(spool)
    spool.claim(waiting, play.NODE)
    process.send_signal(signal.SIGINT)
    wait_until(lambda: spool.requests(play.NODE), "the first signal was heard")
    process.send_signal(signal.SIGINT)

    assert process.wait(120) == 130
    assert spool.find(1).top == "running"


def _wait_for_entry(spool):
    return wait_until(lambda: next(iter(spool.waiting()), None), "a job waits")


def test_a_closed_pipe_kills_the_job(node, spool, start):
    process = start("run", "sh", "-c", "while :; do echo y; sleep 0.01; done")
    assert process.stdout.readline() == b"y\n"
    process.stdout.close()

    assert process.wait(120) == 141
    assert ended(spool, 1).state == "CANCELLED"
    assert process.stderr.read() == b""


def test_an_ignored_hang_up_stays_ignored(node, spool, place, start):
    """As under nohup."""
    process = start(
        "run", "sh", "-c", "echo started; while [ ! -e go ]; do sleep 0.01; done",
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )  # fmt: skip
    assert process.stdout.readline() == b"started\n"
    process.send_signal(signal.SIGHUP)
    (place / "go").write_text("")

    assert process.wait(120) == 0


def test_run_says_why_a_job_waits(spool, monkeypatch, capfd, start):
    monkeypatch.setattr(follow, "SILENT_S", 0.0)

    def play_on():
        placed = _wait_for_entry(spool)
        home.write_why(spool.root, 1, play.NODE, f"{play.NODE} Resources: needs 1 cpus, has 0 free")
        while "waits: " not in "".join(said):
            pass
        _, at = spool.claim(placed, play.NODE)
        play.finish(spool, at, "exit0")

    said: list[str] = []
    monkeypatch.setattr(
        follow.sys, "stderr", type("Said", (), {"write": lambda _, text: said.append(text), "flush": lambda _: None})()
    )
    monkeypatch.setattr(follow, "LOOK_S", 0.0)
    monkeypatch.setattr(follow, "REPEAT_S", 0.0)
    thread = threading.Thread(target=play_on)
    thread.start()
    assert call("run", "true") == 0
    thread.join()
    assert any("job 1 waits: " in text for text in said)


def test_verbose_run_says_what_happens(node, capfd):
    assert call("run", "-v", "-c", 2, "true") == 0
    assert capfd.readouterr().err.startswith("spoolq: submitted job 1\n")
    assert call("run", "cat", "-v", "/nowhere") == 1
    assert "submitted" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("ending", "reason", "said"),
    [
        ("exit3", None, ""),
        ("signal9", None, ""),
        ("exit127", "launch: cannot execute x: No such file", "FAILED: launch: cannot execute x: No such file"),
        ("timeout", "timeout", "TIMEOUT"),
        ("oom", "oom", "OUT_OF_MEMORY: oom"),
        ("nodefail", "lost: rebooted", "NODE_FAIL: lost: rebooted"),
        ("cancelled", "cancelled: \x1b[2J", "CANCELLED: cancelled: \\x1b[2J"),
    ],
)
def test_an_end_that_the_job_did_not_choose_is_explained(spool, capfd, ending, reason, said):
    sub("true")
    play.finish(spool, spool.find(1), ending, reason=reason)
    capfd.readouterr()

    assert call("out", "-f", 1) > 0
    assert (f"spoolq: job 1: {said}\n" if said else "") == capfd.readouterr().err


def test_why_a_job_waits_in_words(spool):
    sub("true")
    sub("-H", "true")
    assert "no node has said why" in follow.why_it_waits(spool, 1)
    home.write_why(spool.root, 1, "n1", "n1 Resources: needs 4 cpus")
    assert "n1: needs 4 cpus" in follow.why_it_waits(spool, 1)
    assert "spoolq release 2" in follow.why_it_waits(spool, 2)


def test_run_refuses_what_sub_refuses(capsys):
    assert call("run", "sleep", "5", "&") == 2
    assert call("run", "-c", 400, "true") == 2
    assert call("run", "--each-line", "x") == 2
    assert call("run", "--check", "true") == 0
    assert "could run on" in capsys.readouterr().out


# --- the embedded node


def test_a_node_of_another_machine_counts_as_alive_until_it_says_that_it_stopped(spool):
    assert embedded.anybody_alive(spool)
    play.announce(spool, state="stopped")
    assert not embedded.anybody_alive(spool)


def test_a_node_of_this_machine_lives_with_its_process(spool):
    from spoolq import host

    here = {"machine": host.machine_id(), "boot": host.boot_id(), "pid": os.getpid(), "host": host.host_name()}
    play.announce(spool, starttime=host.process_identity(os.getpid()), **here)
    assert embedded.anybody_alive(spool)
    play.announce(spool, starttime=0, **here)
    assert not embedded.anybody_alive(spool)
    play.announce(spool, starttime=host.process_identity(os.getpid()), **(here | {"boot": "another"}))
    assert not embedded.anybody_alive(spool)


@pytest.fixture
def fake_spawn(monkeypatch):
    started = []

    def spawn(path, argv, env, **kwargs):
        started.append((argv, kwargs))
        return 4_000_000 + len(started)

    monkeypatch.setattr(embedded.os, "posix_spawn", spawn)
    return started


def test_without_a_live_node_one_is_started_in_a_session_of_its_own(spool, fake_spawn, capsys):
    from spoolq import where

    play.announce(spool, state="stopped")
    keeper = embedded.Embedded(where.find(spool.root))
    keeper.ensure()
    argv, kwargs = fake_spawn[0]

    assert kwargs["setsid"]
    assert argv[-6:] == ["node", "--spool", spool.root, "--idle-exit", "2", "--quiet"]
    assert f"spoolq: no node is running on {spool.root}, so the job runs here\n" == capsys.readouterr().err


def test_another_is_started_when_it_is_gone_but_not_before(spool, fake_spawn, monkeypatch, capsys):
    from spoolq import where

    play.announce(spool, state="stopped")
    monkeypatch.setattr(embedded, "START_S", PATIENCE_S)
    keeper = embedded.Embedded(where.find(spool.root))
    monkeypatch.setattr(keeper, "_reap", lambda: None)
    keeper.ensure()
    keeper.ensure()
    assert len(fake_spawn) == 1

    def gone():
        keeper._pid = 0
        return 0

    monkeypatch.setattr(keeper, "_reap", gone)
    keeper.ensure()
    assert len(fake_spawn) == 2
    assert capsys.readouterr().err.count("so the job runs here") == 1


def test_a_node_that_fails_again_and_again_is_an_error(spool, fake_spawn, monkeypatch):
    from spoolq import where

    play.announce(spool, state="stopped")
    keeper = embedded.Embedded(where.find(spool.root))

    def failed():
        keeper._pid = 0
        return 78

    monkeypatch.setattr(keeper, "_reap", failed)
    with pytest.raises(spoolq.errors.SpoolqError, match="exit 78"):
        for _ in range(10):
            keeper.ensure()


def test_a_live_node_is_not_doubled(spool, fake_spawn):
    from spoolq import where

    embedded.Embedded(where.find(spool.root)).ensure()
    assert fake_spawn == []


def test_on_a_spool_of_somebody_else_no_node_is_started(spool, fake_spawn, monkeypatch):
    from spoolq import where

    play.announce(spool, state="stopped")
    monkeypatch.setattr(embedded.os, "getuid", lambda: os.stat(spool.root).st_uid + 1)
    embedded.Embedded(where.find(spool.root)).ensure()
    assert fake_spawn == []


# --- out


def test_out_prints_either_stream(node, spool, capfd):
    sub("sh", "-c", "echo out; echo err >&2")
    ended(spool, 1)
    capfd.readouterr()

    assert call("out", 1) == 0
    assert capfd.readouterr() == ("out\n", "")
    assert call("cat", "-e", "1") == 0
    assert capfd.readouterr() == ("err\n", "")
    assert call("out", "last") == 0
    assert capfd.readouterr().out == "out\n"


def test_out_follows_a_file_of_the_users(node, spool, place, capfd):
    sub("-o", "log.%j", "sh", "-c", "echo out; echo err >&2")
    ended(spool, 1)
    os.unlink(f"{home.path_of(spool.root, 1)}/stdout")  # as where the link could not be made
    capfd.readouterr()

    assert call("out", 1) == 0
    assert capfd.readouterr().out == "out\nerr\n"
    assert call("out", "-e", 1) == 0
    assert capfd.readouterr().out == "out\nerr\n"


def test_out_of_a_job_that_waits_says_so(capfd):
    sub("true")
    capfd.readouterr()

    assert call("out", 1) == 0
    out, err = capfd.readouterr()
    assert out == ""
    assert "has not started" in err


def test_out_of_no_job(capsys):
    assert call("out", 7) == 1
    assert "no such job" in capsys.readouterr().err
    assert call("tail", 7) == 1
    assert call("out") == 2
    assert call("out", "../etc") == 2
    assert call("out", "-f", "1,2") == 2


def test_out_f_waits_for_the_start_and_exits_with_the_code(spool, place, start):
    sub("sh", "-c", "echo out; while [ ! -e go ]; do sleep 0.01; done; echo more; exit 4")
    process = start("out", "-f", "1")
    with play.Node(spool):
        assert process.stdout.readline() == b"out\n"
        (place / "go").write_text("")
        assert process.stdout.read() == b"more\n"
        assert process.wait(120) == 4


def test_out_f_of_a_job_that_is_cancelled_before_it_starts(spool, start):
    sub("true")
    process = start("out", "-f", "1")
    play.finish(spool, spool.find(1), "cancelled", exit_code=None)

    assert process.wait(120) == 130
    assert process.communicate()[0] == b""


def test_out_f_of_an_ended_job(node, spool, capfd):
    sub("sh", "-c", "echo out; exit 5")
    ended(spool, 1)
    capfd.readouterr()

    assert call("tail", 1) == 5
    assert capfd.readouterr().out == "out\n"


def write_output(spool, job_id, data, name="stdout"):
    with open(f"{home.path_of(spool.root, job_id)}/{name}", "wb") as stream:
        stream.write(data)


@pytest.mark.parametrize(
    ("lines", "text", "expected"),
    [
        (2, b"a\nb\nc\n", "b\nc\n"),
        (2, b"a\nb\nc", "b\nc"),
        (3, b"a\nb\nc\n", "a\nb\nc\n"),
        (9, b"a\nb\n", "a\nb\n"),
        (0, b"a\nb\n", ""),
        (1, b"\n\n\n", "\n"),
        (1, b"", ""),
        (2, b"x" * 9 + b"\ny\nz\n", "y\nz\n"),
    ],
)
@pytest.mark.parametrize("chunk", [1, 3, 1 << 18])
def test_the_last_lines(spool, capfd, monkeypatch, lines, text, expected, chunk):
    monkeypatch.setattr(tail, "CHUNK", chunk)
    sub("true")
    write_output(spool, 1, text)
    capfd.readouterr()

    assert call("out", "-n", lines, 1) == 0
    assert expected == capfd.readouterr().out


def test_an_output_that_is_no_file_is_not_read(spool, capfd):
    sub("true")
    path = f"{home.path_of(spool.root, 1)}/stdout"
    os.symlink("/dev/zero", path)
    capfd.readouterr()
    assert call("out", 1) == 0
    os.unlink(path)
    os.mkfifo(path)
    assert call("out", 1) == 0
    assert capfd.readouterr().out == ""


def test_an_output_that_another_attempt_writes_anew_is_shown_from_its_start(spool, capfd):
    sub("true")
    capfd.readouterr()
    stream = tail.Stream(spool, 1, "stdout", 1)
    write_output(spool, 1, b"first attempt\n")
    stream.pump(["stdout"])
    write_output(spool, 1, b"second\n")
    stream.pump(["stdout"])
    assert capfd.readouterr().out == "first attempt\nsecond\n"


# --- wait


def test_wait_exits_with_the_worst_code(node, spool):
    sub("true")
    sub("sh", "-c", "exit 3")
    sub("sh", "-c", "exit 2")

    assert call("wait", "1", "2,3") == 3
    assert call("wait", "1") == 0
    assert call("wait", "1-3") == 3
    assert call("wait", "1-3", "--no-fail") == 0


@pytest.mark.parametrize(
    ("ending", "code"),
    [("exit0", 0), ("exit9", 9), ("signal9", 137), ("timeout", 124), ("oom", 137), ("cancelled", 130), ("nodefail", 1)],
)
def test_codes_of_all_endings(spool, ending, code):
    sub("true")
    play.finish(spool, spool.find(1), ending, result=False)

    assert code == call("wait", 1)


def test_wait_for_a_job_that_is_still_waiting(spool, start):
    sub("sh", "-c", "exit 6")
    process = start("wait", "1")
    with play.Node(spool):
        assert process.wait(120) == 6


def test_wait_gives_up(spool, capsys):
    sub("true")

    assert call("wait", 1, "--timeout", "0.05s") == 124
    assert "1 of 1" in capsys.readouterr().err


def test_wait_for_any(spool):
    sub("true")
    sub("true")
    play.finish(spool, spool.find(2), "exit4", result=False)

    assert call("wait", "--any", "1-2") == 4


def test_wait_for_no_job_is_reported_and_the_others_are_waited_for(node, capsys):
    sub("sh", "-c", "exit 3")

    assert call("wait", 1, 99) == 3
    assert "job 99: no such job" in capsys.readouterr().err
    assert call("wait", 98, 99) == 1
    assert call("wait") == 2
    assert call("wait", "1; rm") == 2


@pytest.mark.parametrize(
    ("facts", "code"),
    [
        ({"state": "COMPLETED", "exit_code": 0}, 0),
        ({"state": "FAILED", "exit_code": 5}, 5),
        ({"state": "FAILED", "signal": 11, "exit_code": None}, 139),
        ({"state": "TIMEOUT"}, 124),
        ({"state": "OUT_OF_MEMORY", "signal": 9}, 137),
        ({"state": "CANCELLED"}, 130),
        ({"state": "NODE_FAIL"}, 1),
    ],
)
def test_a_job_whose_home_was_swept_is_found_in_history(spool, facts, code, capsys):
    old = {"format": 1, "id": 7, "attempt": 1, "state": "FAILED", "exit_code": 99, "signal": None}
    new = {"format": 1, "id": 7, "attempt": 2, "exit_code": None, "signal": None} | facts
    spool.record("2026-01-01", "n1", [json.dumps(old).encode() + b"\n", json.dumps(new).encode() + b"\n"])

    assert code == call("wait", 7)
    assert capsys.readouterr().err == ""


def test_many_jobs_are_waited_for_by_listing_done(node, spool, place, capsys):
    (place / "list").write_text("".join(f"exit {i % 3}\n" for i in range(40)))
    sub("--each-line", "list")

    assert call("wait", "1-40") == 2


def test_wait_json(node, spool, capsys):
    pytest.importorskip("spoolq.report")
    sub("sh", "-c", "exit 3")
    capsys.readouterr()

    assert call("wait", "--json", 1) == 3
    text = capsys.readouterr().out
    assert '"exit_code": 3' in text
    json.loads(text)


def test_a_result_without_an_entry_in_done_is_no_end(spool):
    """The rename is the commit point: what lies in the home before it may still be decided otherwise."""
    sub("true")
    home.publish_result(spool.root, 1, b"{}\n", sync=False)

    assert awaiting.until_ended(spool, [1], timeout_s=0.05) == {}


def test_a_requeued_job_is_waited_for_again(spool):
    sub("true")
    play.finish(spool, spool.find(1), "exit1")
    home.set_aside(spool.root, 1, 1)
    spool.requeue(spool.find(1))

    assert awaiting.until_ended(spool, [1], timeout_s=0.05) == {}
    play.finish(spool, spool.find(1), "exit0")
    assert ended(spool, 1).code == 0
