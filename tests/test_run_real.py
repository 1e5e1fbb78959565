"""`spoolq run` on a spool of one's own without any node: the embedded default, with the real one."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import spoolq
from spoolq import awaiting, embedded
from spoolq.spool import Spool

from .node_family import wait_until

PACKAGE_ROOT = str(Path(spoolq.__file__).parent.parent)


@pytest.fixture
def start(short_dir, tmp_path):
    """Start a command as a user of a machine where spoolq was never used."""
    started = []
    env = {name: value for name, value in os.environ.items() if not name.startswith(("SPOOLQ", "XDG"))}
    env |= {"HOME": str(tmp_path), "SPOOLQ_STATE_DIR": short_dir, "PYTHONPATH": f"{tmp_path}/site:{PACKAGE_ROOT}"}
    (tmp_path / "site").mkdir()  # a start that takes long on a busy machine is explained: not what is tested here
    (tmp_path / "site/sitecustomize.py").write_text(
        "import spoolq.follow as room\nroom.SILENT_S = room.LINGER_S = 600\n"
    )

    def start(*words, **more):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
        started.append(subprocess.Popen([sys.executable, "-m", "spoolq", *words], env=env, text=True, **pipes, **more))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()
    for node in _nodes(f"{tmp_path}/.spoolq"):
        _send(node, signal.SIGTERM)


def _send(node, number):
    """To a node, which may just have left for want of work."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(node, number)


def _nodes(root):
    spool = Spool(root)
    facts = [spool.read_node(name) for name in spool.nodes()]
    return [f["pid"] for f in facts if f and f.get("state") != "stopped" and embedded.anybody_alive(spool)]


def test_the_first_command_of_a_new_user(start):
    process = start("run", "sh", "-c", "echo out; echo err >&2; exit 3")
    out, err = process.communicate(timeout=120)

    assert (process.returncode, out) == (3, "out\n")
    assert err.splitlines() == [
        "spoolq: made a spool of your own, ~/.spoolq",
        "spoolq: no node is running on ~/.spoolq, so the job runs here",
        "err",
    ]


def test_a_second_command_finds_the_node_of_the_first(start, tmp_path):
    """Which leaves two seconds after its last job: here one goes on. So little that a busy machine has it too."""
    little = ("-c", "0.1")
    assert start("sub", *little, "sh", "-c", f"while [ ! -e {tmp_path}/go ]; do sleep 0.05; done").wait(120) == 0
    assert start("run", *little, "true").wait(120) == 0
    second = start("run", *little, "true")

    assert second.communicate(timeout=120)[1] == ""
    (tmp_path / "go").write_text("")


def test_ctrl_c_ends_the_job(start, tmp_path):
    process = start("run", "sh", "-c", "echo started; exec sleep 600")
    assert process.stdout.readline() == "started\n"
    process.send_signal(signal.SIGINT)

    assert process.wait(120) == 130
    assert awaiting.until_ended(Spool(f"{tmp_path}/.spoolq"), [1], timeout_s=120)[1].state == "CANCELLED"


def test_a_program_that_does_not_exist_is_127_and_says_so(start):
    process = start("run", "no-such-program")
    err = process.communicate(timeout=120)[1]

    assert process.returncode == 127
    assert "cannot execute no-such-program" in err


def test_a_node_that_is_killed_while_the_job_runs_is_replaced(start, tmp_path):
    """The job goes on under its runner; the next node delivers how it ended."""
    process = start("run", "sh", "-c", "echo started; while [ ! -e go ]; do sleep 0.05; done; exit 6", cwd=tmp_path)
    assert process.stdout.readline() == "started\n"
    for pid in wait_until(lambda: _nodes(f"{tmp_path}/.spoolq"), "a node that says that it is up"):
        _send(pid, signal.SIGKILL)
    (tmp_path / "go").write_text("")

    assert process.wait(120) == 6


def test_a_node_that_is_gone_while_the_job_waits_is_replaced(start, tmp_path):
    """The job is held, so that the node goes for want of work; then it is released."""
    waiting = start("run", "-H", "true")
    root = f"{tmp_path}/.spoolq"
    assert "made" in waiting.stderr.readline()
    assert "so the job runs here" in waiting.stderr.readline()
    for pid in wait_until(lambda: _nodes(root), "a node"):
        _send(pid, signal.SIGKILL)

    assert start("release", "1").wait(120) == 0
    assert waiting.wait(120) == 0
