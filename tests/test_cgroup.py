"""Control groups: rules by a made-up tree, deeds by the real one where there is one."""

import os
import subprocess

import pytest

from spoolq import cgroup, process

from .node_family import wait_until


@pytest.fixture
def proc(tmp_path):
    """A made-up /proc/self of a process in /a/b of a tree with that root."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "tree/a/b").mkdir(parents=True)
    (tmp_path / "proc/mountinfo").write_text(
        f"30 1 0:20 / /sys rw - sysfs sysfs rw\n31 1 0:26 / {tmp_path}/tree rw,relatime shared:4 - cgroup2 cgroup2 rw\n"
    )
    (tmp_path / "proc/cgroup").write_text("4:memory:/elsewhere\n0::/a/b\n")
    return str(tmp_path / "proc")


@pytest.fixture
def marked(monkeypatch):
    """Directories that are delegated, as their attribute says."""
    marks = {}

    def getxattr(path, name):
        try:
            return marks[path, name]
        except KeyError:
            raise OSError(61, "No data available") from None

    monkeypatch.setattr(os, "getxattr", getxattr)
    return marks


@pytest.fixture
def fake(tmp_path):
    """A made-up group with the files of the memory controller."""
    for name in ("memory.max", "memory.swap.max", "memory.oom.group", "cgroup.procs", "cgroup.subtree_control"):
        (tmp_path / name).write_text("")
    (tmp_path / "cgroup.controllers").write_text("hugetlb memory\n")
    return tmp_path


def test_only_what_was_delegated_is_used(proc, marked, tmp_path):
    own = str(tmp_path / "tree/a/b")
    assert None is cgroup.delegated(proc=proc)
    marked[own, "user.delegate"] = b"0"
    assert None is cgroup.delegated(proc=proc)
    marked[own, "trusted.delegate"] = b"1"
    assert own == cgroup.delegated(proc=proc)


def test_the_parent_counts_where_the_service_started_in_a_subgroup(proc, marked, tmp_path):
    marked[str(tmp_path / "tree/a"), "user.delegate"] = b"1"
    assert str(tmp_path / "tree/a") == cgroup.delegated(proc=proc)


def test_no_cgroup_v2_or_another_namespaces_is_none(proc, marked, tmp_path):
    (tmp_path / "proc/cgroup").write_text("0::/../x\n")
    assert None is cgroup.delegated(proc=proc)
    (tmp_path / "proc/mountinfo").write_text("")
    assert None is cgroup.delegated(proc=proc)
    assert None is cgroup.delegated(proc=str(tmp_path / "nothing"))


def test_an_operators_word_is_believed_if_it_is_a_cgroup(fake, tmp_path):
    assert str(fake) == cgroup.delegated(str(fake))
    (tmp_path / "other").mkdir()
    assert None is cgroup.delegated(str(tmp_path / "other"))


def test_the_memory_limit_holds_for_the_job_as_a_whole(fake):
    assert cgroup.create(str(fake), mem_mb=500)
    assert str(500 << 20) == (fake / "memory.max").read_text()
    assert "0" == (fake / "memory.swap.max").read_text()
    assert "1" == (fake / "memory.oom.group").read_text()
    assert not cgroup.create(str(fake))


def test_without_the_controller_nothing_is_enforced(tmp_path):
    assert not cgroup.create(str(tmp_path / "group"), mem_mb=500)
    assert (tmp_path / "group").is_dir()


def test_figures_are_read(fake):
    group = str(fake)
    assert (0, None, None, None) == (
        cgroup.oom_kills(group),
        cgroup.peak_kb(group),
        cgroup.memory_kb(group),
        cgroup.cpu_s(group),
    )
    (fake / "memory.events").write_text("low 0\noom 2\noom_kill 3\n")
    (fake / "memory.peak").write_text("2048\n")
    (fake / "memory.current").write_text("1024\n")
    (fake / "cpu.stat").write_text("usage_usec 3000000\nuser_usec 2000000\nsystem_usec 1000000\n")
    assert (3, 2, 1, (2.0, 1.0)) == (
        cgroup.oom_kills(group),
        cgroup.peak_kb(group),
        cgroup.memory_kb(group),
        cgroup.cpu_s(group),
    )


def test_controllers_are_passed_on(fake):
    cgroup.settle(str(fake))
    assert (fake / cgroup.FAMILY).is_dir()
    assert "+memory" == (fake / "cgroup.subtree_control").read_text()
    (fake / "cgroup.subtree_control").write_text("memory\n")
    assert frozenset({"memory"}) == cgroup.controllers(str(fake))


def test_what_is_not_there_is_false_not_an_error(tmp_path):
    gone = str(tmp_path / "gone")
    assert not cgroup.kill(gone, os.kill)
    assert not cgroup.freeze(gone, True)
    assert not cgroup.populated(gone)
    assert [] == cgroup.tree_of(gone)
    assert cgroup.remove(gone)


@pytest.fixture
def real():
    """A group of the host's cgroup v2 tree."""
    root = "/sys/fs/cgroup/unified" if os.path.isdir("/sys/fs/cgroup/unified") else "/sys/fs/cgroup"
    path = f"{root}/spoolq-test-unit-{os.getpid()}"
    try:
        os.mkdir(path)
    except OSError as error:
        pytest.skip(f"no writable cgroup v2: {error}")
    yield path
    cgroup.kill(path, os.kill)
    wait_until(lambda: cgroup.remove(path), "removal of the group")


def enter(group, words):
    """A process in a group."""
    return subprocess.Popen(["sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh", *words])


@pytest.mark.cgroup
@pytest.mark.parametrize("how", ["cgroup.kill", "one by one"])
def test_a_real_group_is_frozen_and_killed_whole(real, how, monkeypatch):
    if how == "one by one":
        write = cgroup._write
        monkeypatch.setattr(cgroup, "_write", lambda path, text: "cgroup.kill" not in path and write(path, text))
    group = f"{real}/job"
    cgroup.create(group)
    made = [enter(group, ["sleep", "600"]) for _ in range(3)]
    wait_until(lambda: sorted(p.pid for p in made) == sorted(cgroup.tree_of(group)))
    assert cgroup.populated(group)
    assert not cgroup.remove(group)
    assert cgroup.freeze(group, True)
    assert cgroup.freeze(group, False)
    assert cgroup.kill(group, lambda pid, number: process.send(pid, process.born(pid), number))
    assert [-9, -9, -9] == [p.wait() for p in made]
    wait_until(lambda: not cgroup.populated(group))
    assert cgroup.remove(group)
    assert cgroup.cpu_s(group) is None


@pytest.mark.cgroup
def test_members_of_the_root_move_into_the_familys_leaf(real):
    made = enter(real, ["sleep", "600"])
    wait_until(lambda: cgroup.members_of(real) == [made.pid])
    cgroup.settle(real)
    assert [] == cgroup.members_of(real)
    assert [made.pid] == cgroup.members_of(f"{real}/{cgroup.FAMILY}")
    made.kill()
    made.wait()
