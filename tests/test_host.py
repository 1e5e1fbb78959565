"""Facts of a machine, read from made-up trees and from this one."""

import os
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spoolq import host

MOUNTS = """\
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
40 27 0:30 / /net rw,relatime shared:1 - nfs4 server:/export rw,vers=4.2,hard
41 40 0:31 / /net/with\\040blank rw - fuse.sshfs me@there:/ rw,user_id=0
42 27 0:32 / /data rw - ext4 /dev/vdb rw
43 27 0:33 / /data rw - cifs //nas/data rw
44 27 0:34 / /over rw - fuse.fuse-overlayfs fuse-overlayfs rw
broken line
"""


def tree(tmp_path, files):
    for path, text in files.items():
        where = tmp_path / path
        where.parent.mkdir(parents=True, exist_ok=True)
        where.write_text(text)
    return str(tmp_path)


MEMINFO = "MemTotal:  16777216 kB\nMemFree:  1 kB\nMemAvailable:  8388608 kB\nHugePages_Total:  0\n"
V2 = "35 27 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
V1 = (
    "33 31 0:30 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)


# --- capacity


def test_the_smallest_limit_of_all_levels_counts(tmp_path):
    root = tree(
        tmp_path,
        {
            "proc/meminfo": MEMINFO,
            "proc/self/mountinfo": V2,
            "proc/self/cgroup": "0::/a.slice/b.service\n",
            "sys/fs/cgroup/a.slice/cpu.max": "50000 100000\n",
            "sys/fs/cgroup/a.slice/memory.max": f"{8 << 30}\n",
            "sys/fs/cgroup/a.slice/b.service/cpu.max": "max 100000\n",
            "sys/fs/cgroup/a.slice/b.service/memory.max": f"{4 << 30}\n",
        },
    )
    assert host.capacity(root) == {"cpus": 500, "mem": 4096_000}


def test_version_one_and_a_container_that_sees_a_part(tmp_path):
    root = tree(
        tmp_path,
        {
            "proc/meminfo": MEMINFO,
            "proc/self/mountinfo": V1.replace(" / /sys/fs/cgroup/memory", " /docker/x /sys/fs/cgroup/memory"),
            "proc/self/cgroup": "3:cpuacct,cpu:/\n2:memory:/docker/x\n1:name=systemd:/\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "25000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{1 << 30}\n",
        },
    )
    assert host.capacity(root) == {"cpus": 250, "mem": 1024_000}


def test_without_limits_it_is_the_machine(tmp_path):
    root = tree(
        tmp_path,
        {
            "proc/meminfo": MEMINFO,
            "proc/self/mountinfo": V1 + V2,
            "proc/self/cgroup": "3:cpuacct,cpu:/\n2:memory:/../..\n0::/gone\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        },
    )
    assert {"cpus": 1000 * len(os.sched_getaffinity(0)), "mem": 16384_000} == host.capacity(root)


def test_this_machine_has_something():
    found = host.capacity()
    assert found["cpus"] > 0
    assert found["mem"] > 0


# --- load


def meter(tmp_path, **more):
    cpus = "".join(f"cpu{number} 100 0 100 9999 50 0 0 0 7 0\n" for number in sorted(os.sched_getaffinity(0)))
    files = {
        "proc/meminfo": MEMINFO,
        "proc/stat": f"cpu  1 2 3 4\n{cpus}intr 1 2 3\n",
        "proc/self/mountinfo": V2,
        "proc/self/cgroup": "0::/x\n",
    }
    return host.Meter(tree(tmp_path, files | more))


CPUS = len(os.sched_getaffinity(0))


def test_until_two_samples_only_memory_is_known(tmp_path):
    m = meter(tmp_path)
    assert m.measured() == {"mem": 8192_000}
    m.feed(100.0, 50.0, 10.0)
    assert "cpus" not in m.measured()
    assert m.facts() == {"foreign_cpus": None, "available_mb": 8192}


def test_what_jobs_use_is_no_foreign_load(tmp_path):
    m = meter(tmp_path)
    m.feed(100.0, 50.0, 10.0)
    m.feed(110.0, 55.0, 15.0)
    assert m.foreign_cpus == 0.0
    assert m.measured()["cpus"] == 1000 * CPUS


def test_foreign_load_is_smoothed(tmp_path):
    m = meter(tmp_path)
    m.feed(0.0, 0.0, 0.0)
    m.feed(10.0, 0.0, 0.0)
    m.feed(20.0, 10.0, 0.0)
    assert pytest.approx(0.632, abs=0.001) == m.foreign_cpus
    assert m.measured()["cpus"] == 1000 * CPUS - 632
    for now in range(21, 80):
        m.feed(float(now), 10.0 + (now - 20), 0.0)
    assert pytest.approx(1.0, abs=0.01) == m.foreign_cpus


def test_memory_that_others_take_counts_at_once_and_what_they_free_is_believed_slowly(tmp_path):
    m, boot = meter(tmp_path), host.boottime()
    m.sample(0.0, own_mb=1000)  # 8192 MB of 16384 are available, so that others hold 7192 beside our 1000
    assert m.measured(1000) == {"mem": 8192_000}
    assert m.measured(3000) == {"mem": 6192_000}  # a job has grown since
    (tmp_path / "proc/meminfo").write_text(MEMINFO.replace("8388608", "2097152"))
    m._available = (-1.0, 0)
    assert m.measured(1000)["mem"] == 2048_000
    (tmp_path / "proc/meminfo").write_text(MEMINFO.replace("8388608", "14680064"))  # all of theirs is free again
    m._available, m._last = (-1.0, 0), (boot - 5.0, 0.0, 0.0)
    m.sample(0.0, own_mb=1000)
    assert 8192_000 < m.measured(1000)["mem"] < 14336_000


def test_a_report_that_comes_late_is_evened_out(tmp_path):
    m = meter(tmp_path)
    m.feed(0.0, 0.0, 0.0)
    m.feed(10.0, 10.0, 10.0)
    m.feed(11.0, 11.0, 10.0)
    m.feed(12.0, 12.0, 12.0)
    assert m.foreign_cpus < 0.1


def test_a_new_family_counts_from_zero_again(tmp_path):
    m = meter(tmp_path)
    m.feed(0.0, 0.0, 1000.0)
    m.feed(10.0, 10.0, 1.0)
    m.feed(20.0, 20.0, 11.0)
    assert m.foreign_cpus == 0.0


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 1000), st.floats(0, 1000)), max_size=20))
def test_measured_cpus_are_within_the_machine(steps):
    m = host.Meter()
    now = busy = own = 0.0
    for wait, some, mine in steps:
        now, busy, own = now + wait, busy + some, own + mine
        m.feed(now, busy, own)
        assert 0 <= m.measured().get("cpus", 0) <= 1000 * CPUS


def test_the_kernels_ticks_are_read(tmp_path):
    assert pytest.approx(meter(tmp_path)._busy_s() * host._TICKS / 100) == 2.0 * CPUS


def test_a_limited_cgroup_has_what_it_has_left(tmp_path):
    limited = {
        "sys/fs/cgroup/x/memory.max": f"{2 << 30}\n",
        "sys/fs/cgroup/x/memory.current": f"{1536 << 20}\n",
        "sys/fs/cgroup/x/memory.stat": f"anon 5\ninactive_file {256 << 20}\n",
    }
    assert meter(tmp_path, **limited).measured()["mem"] == 768_000


def test_this_machine_can_be_measured():
    m = host.Meter()
    m.sample(0.0)
    m.sample(0.0)
    assert 0 < m.measured()["mem"] <= host.capacity()["mem"]


# --- file systems


@pytest.mark.parametrize(
    ("path", "kind", "remote"),
    [
        ("/net/a/b", "nfs4", True),
        ("/network", "ext4", False),
        ("/net/with blank/x", "fuse.sshfs", True),
        ("/data/x", "cifs", True),
        ("/over", "fuse.fuse-overlayfs", False),
        ("/", "ext4", False),
        ("/proc/self", "proc", False),
    ],
)
def test_file_system_of_a_path(tmp_path, path, kind, remote):
    root = tree(tmp_path, {"proc/self/mountinfo": MOUNTS})
    found = host.file_system(path, touch=False, root=root)
    assert (kind, remote) == (found.kind, found.remote)


def test_options_and_source(tmp_path):
    root = tree(tmp_path, {"proc/self/mountinfo": MOUNTS})
    found = host.file_system("/net/x", touch=False, root=root)
    assert (found.mount_point, found.source) == ("/net", "server:/export")
    assert {"hard", "vers=4.2", "relatime"} <= set(found.options)


def test_links_are_followed_if_it_may_touch(tmp_path):
    (tmp_path / "link").symlink_to("/proc/self")
    assert host.file_system(str(tmp_path / "link")).kind == "proc"
    assert host.file_system(str(tmp_path / "link"), touch=False).kind != "proc"


def test_where_nothing_can_be_told_it_is_local(tmp_path):
    found = host.file_system("/x", root=str(tmp_path))
    assert (found.kind, found.remote) == ("", False)


@pytest.mark.parametrize(
    "kind",
    ["nfs", "nfs4", "cifs", "smb3", "9p", "lustre", "gpfs", "ceph", "glusterfs", "beegfs", "afs", "fuse.glusterfs"],
)
def test_network_file_systems(kind):
    assert host.FileSystem(kind=kind).remote


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "tmpfs", "overlay", "zfs", "fuseblk", "virtiofs"])
def test_local_file_systems(kind):
    assert not host.FileSystem(kind=kind).remote


# --- identity


def test_names_are_short_and_safe():
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,62}", host.host_name())
    assert host.host_name() == host.node_name()


@pytest.mark.parametrize(
    ("raw", "name"),
    [("n1.example.org", "n1"), ("Böser Name", "B-ser-Name"), ("..", "node"), ("", "node"), ("-x-", "x")],
)
def test_odd_names(monkeypatch, raw, name):
    monkeypatch.setattr(host.os, "uname", lambda: os.uname_result(("Linux", raw, "6", "1", "x86_64")))
    assert name == host.host_name()


def test_a_machine_has_one_id_that_does_not_show_the_original(tmp_path):
    tree(tmp_path / "a", {"etc/machine-id": "0123456789abcdef0123456789abcdef\n"})
    tree(
        tmp_path / "b", {"etc/machine-id": "0123456789abcdef0123456789abcdef\n", "sys/class/dmi/id/product_uuid": "U\n"}
    )
    tree(tmp_path / "c", {"etc/machine-id": "uninitialized\n"})
    one, cloned, none = (host.machine_id(str(tmp_path / name)) for name in "abc")
    assert re.fullmatch("[0-9a-f]{32}", one)
    assert "0123456789abcdef" not in one
    assert one != cloned
    assert none == ""


def test_this_process_has_an_identity_and_a_reaped_one_has_none():
    mine = host.process_identity(os.getpid())
    assert mine == host.process_identity(os.getpid())
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert host.process_identity(child.pid) >= mine
        child.communicate(b"\n")
        assert host.process_identity(child.pid) is None


def test_the_boot_has_a_clock_and_an_id():
    assert host.boottime() <= host.boottime()
    assert re.fullmatch(r"[0-9a-f-]{36}", host.boot_id())


def test_labels():
    assert {"arch", "os", "kernel", "host"} == set(host.labels())


def test_probe_finds_nothing_wrong_that_psutil_would_not():
    findings = host.probe()
    assert all(len(finding) == 4 for finding in findings)
    assert {"ok", "warning"} >= {finding[0] for finding in findings}
    assert all(finding[3] for finding in findings if finding[0] != "ok")
    assert "psutil counts it differently" not in " ".join(finding[2] for finding in findings)


def test_facts_cost_no_heavy_import():
    code = "import spoolq.host as h, sys; h.capacity(); h.Meter(); h.file_system('/'); print('psutil' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
