"""Identity, trees and signals, with real processes."""

import os
import signal
import subprocess
import sys
import time

import pytest

from spoolq import process
from spoolq.process import Handle, Stat

from .node_family import gone, wait_until


@pytest.fixture(autouse=True)
def no_others():
    """`peek` shows any child: also one that another test left."""
    while end := process.peek():
        process.reap(end.pid)


@pytest.fixture
def sleeper():
    """A process of its own session."""
    made = subprocess.Popen(["sleep", "600"], start_new_session=True, env={"MARK": "1"})
    yield made
    made.kill()
    made.wait()


def stat(pid, parent=1, group=0, session=0, born=10, state="S"):
    """A made-up process."""
    return Stat(pid, "x", state, parent, group, session, born, 0, 0, 0)


def test_peek_leaves_the_child_and_reap_lets_it_go():
    pid = os.posix_spawn("/bin/sh", ["sh", "-c", "exit 7"], {})
    end = wait_until(process.peek)
    assert (pid, 7, None) == end[:3]
    assert end == process.peek()
    process.reap(pid)
    assert None is process.peek()


@pytest.mark.parametrize("raw", [True, False])
def test_status_and_usage_are_those_of_wait4(monkeypatch, raw):
    if not raw:
        monkeypatch.setattr(process, "_number", None)
    pid = os.posix_spawn("/bin/sh", ["sh", "-c", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; kill -TERM $$"], {})
    end = wait_until(process.peek)
    assert (pid, None, 15) == end[:3]
    if raw:
        _, status, u = os.wait4(pid, 0)
        assert (None, 15) == process.split(status)
        assert pytest.approx((u.ru_utime, u.ru_stime)) == end.usage[:2]
        assert (u.ru_maxrss, u.ru_minflt, u.ru_majflt, u.ru_inblock, u.ru_oublock) == end.usage[2:7]
        assert (u.ru_nvcsw, u.ru_nivcsw) == end.usage[7:]
    assert end.usage[0] + end.usage[1] > 0


def test_a_birth_lies_between_two_looks_at_the_clock():
    before = process.ticks(process.boottime())
    pid = os.posix_spawn("/bin/true", ["true"], {})
    after = process.ticks(process.boottime())
    assert before <= process.born(pid) <= after
    wait_until(process.peek)
    assert before <= process.born(pid) <= after
    process.reap(pid)
    assert -1 == process.born(pid)


def test_a_name_with_brackets_and_spaces_is_read(tmp_path):
    os.symlink("/bin/sleep", tmp_path / "a) S (b c")
    made = subprocess.Popen([str(tmp_path / "a) S (b c"), "600"])
    wait_until(lambda: process.read_stat(made.pid).comm == "a) S (b c")
    assert os.getpid() == process.read_stat(made.pid).parent
    made.kill()
    made.wait()


def test_a_handle_is_of_the_process_that_was_meant(sleeper):
    birth = process.born(sleeper.pid)
    assert None is Handle.open(sleeper.pid, birth + 1, birth + 9)
    assert not process.send(sleeper.pid, birth - 1, signal.SIGKILL)
    handle = Handle.open(sleeper.pid, birth, birth)
    assert handle.send(0)
    assert handle.send(signal.SIGKILL)
    assert -9 == sleeper.wait()
    assert not handle.send(signal.SIGKILL)
    assert None is handle.stat()
    assert handle.status() in (9, None)  # told since Linux 6.15
    handle.close()
    assert None is Handle.open(sleeper.pid, birth, birth)


def test_without_pidfd_the_birth_is_checked_at_each_use(sleeper, monkeypatch):
    def missing(pid, flags=0):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "pidfd_open", missing)
    birth = process.born(sleeper.pid)
    handle = Handle.open(sleeper.pid, birth, birth)
    assert -1 == handle.fd
    assert handle.send(signal.SIGKILL)
    sleeper.wait()
    assert not handle.send(signal.SIGKILL)
    assert None is handle.status()


def test_a_tree_is_session_group_descendants_and_marked_orphans():
    stats = {
        s.pid: s
        for s in (
            stat(100, parent=50, group=100, session=100),
            stat(101, parent=100, group=100, session=100),
            stat(102, parent=101, group=102, session=102),  # a daemon still below
            stat(103, parent=50, group=103, session=103),  # an orphan with the marker
            stat(104, parent=103, group=104, session=104),
            stat(105, parent=50, group=105, session=105),  # an orphan of another job
            stat(106, parent=50, group=100, session=100),  # an orphan of the same group
            stat(107, parent=1, group=100, session=100, born=1),  # older: not of this tree
            stat(50, parent=40, group=40, session=40, born=99),  # the runner
        )
    }
    found = process.tree(stats, 100, 5, lambda pid: pid in (103, 50), {50, 40})
    assert {100, 101, 102, 103, 104, 106} == found


def test_no_process_escapes_from_being_killed_by_forking():
    # each lives on: what ends as soon as it has forked can be gone at each look, and no look is promised to be faster
    code = "import os, time\nfor i in range(40):\n  os.fork() and time.sleep(600)\n  os.setsid()\ntime.sleep(600)"
    mark = f"escape{os.getpid()}"
    made = subprocess.Popen([sys.executable, "-S", "-c", code], env={"MARK": mark})

    def find():
        living = [stat for stat in process.scan().values() if stat.state not in "ZX"]
        return {s.pid: s.born for s in living if process.environment(s.pid).get(b"MARK") == mark.encode()}

    wait_until(find)
    process.kill_all(find)
    made.wait()
    wait_until(lambda: not find())


def test_children_and_environment_of_a_process(sleeper):
    assert sleeper.pid in process.children(os.getpid())
    wait_until(lambda: process.environment(sleeper.pid).get(b"MARK") == b"1")
    assert {} == process.environment(2**22 - 1)
    assert [] == process.children(2**22 - 1)
    assert not process.same_program(sleeper.pid)
    assert process.same_program(os.getpid())


def test_shared_memory_is_counted_once():
    code = (
        "import os, time\nx = bytearray(40 << 20)\np = os.fork()\nos.write(1, b'%d\\n' % os.getpid())\ntime.sleep(600)"
    )
    made = subprocess.Popen([sys.executable, "-S", "-c", code], stdout=subprocess.PIPE, start_new_session=True)
    pids = [int(made.stdout.readline()) for _ in range(2)]
    kb = process.proportional_kb(pids)
    assert 40 << 10 <= kb < 70 << 10
    assert sum(process.read_stat(pid).rss_kb for pid in pids) > 80 << 10
    os.killpg(made.pid, signal.SIGKILL)
    made.wait()
    made.stdout.close()
    wait_until(lambda: all(gone(pid) for pid in pids))
    assert 0 == process.proportional_kb(pids)


def test_the_boot_has_a_name_and_a_clock():
    assert 36 == len(process.boot_id())
    assert process.boottime() >= time.monotonic() - 1
