"""Devices that processes outside spoolq use, by the process table and by NVML."""

import os
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from spoolq import busy

from .cluster import Cluster
from .node_family import wait_until

HOLD = "import sys, time; file = open(sys.argv[1]); print('open', flush=True); time.sleep(600)"


@pytest.fixture
def device_dir(tmp_path) -> str:
    """Three device files."""
    for number in range(3):
        (tmp_path / f"gpu{number}").write_text("")
    return str(tmp_path)


def hold(path: str, **env: str) -> subprocess.Popen[bytes]:
    """A process that has a file open."""
    word = [sys.executable, "-S", "-c", HOLD, path]
    made = subprocess.Popen(word, env={"PATH": os.environ["PATH"], **env}, stdout=subprocess.PIPE)
    assert made.stdout
    assert b"open\n" == made.stdout.readline()
    return made


@pytest.fixture
def killed() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes to be ended."""
    made: list[subprocess.Popen[bytes]] = []
    yield made
    for process in made:
        process.kill()
        process.communicate()


def test_open_device_files_of_others_count_and_those_of_jobs_do_not(device_dir, killed):
    files = {"gpu": f"{device_dir}/gpu%d", "none": "/nowhere/x%d"}
    assert {} == busy.busy(files, "/state/n1")
    killed.append(hold(f"{device_dir}/gpu2"))
    killed.append(hold(f"{device_dir}/gpu1", SPOOLQ_FAMILY="/state/n1"))
    assert {"gpu": {2}} == busy.busy(files, "/state/n1")
    assert {"gpu": {1, 2}} == busy.busy(files, "/state/of another node")
    assert {1, 2} == busy.holders(files["gpu"]).keys()


def test_a_child_of_a_job_that_wiped_its_environment_is_of_the_job(device_dir, killed):
    line = f"exec 9<{device_dir}/gpu0; env -i sh -c 'echo open; exec sleep 600'"
    made = subprocess.Popen(
        ["sh", "-c", f"({line}); true"], env={"PATH": os.environ["PATH"], "SPOOLQ_FAMILY": "/state/n1"},
        stdout=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        assert made.stdout
        assert b"open\n" == made.stdout.readline()
        assert {} == busy.busy({"gpu": f"{device_dir}/gpu%d"}, "/state/n1")
        assert {"gpu": {0}} == busy.busy({"gpu": f"{device_dir}/gpu%d"}, "/state/n2")
    finally:
        os.killpg(made.pid, 9)
        made.communicate()


def test_what_others_leave():
    assert {"gpu": 2000} == busy.left({"gpu": 4000, "cpus": 1000}, {"gpu": {0, 3}, "tpu": {1}})
    assert {"gpu": 0} == busy.left({"gpu": 1000}, {"gpu": [0, 3]})


class Refusal(Exception):
    """What NVML raises."""


def nvml(users: dict[int, list[int]], *, broken: bool = False) -> SimpleNamespace:
    """The part of pynvml that is used; the number of a device file is not its index."""

    def init() -> None:
        if broken:
            raise Refusal

    return SimpleNamespace(
        NVMLError=Refusal,
        nvmlInit=init,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: len(users),
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetMinorNumber=lambda handle: handle + 4,
        nvmlDeviceGetComputeRunningProcesses=lambda handle: [SimpleNamespace(pid=pid) for pid in users[handle]],
    )


def test_nvml_knows_better_where_it_answers(monkeypatch, killed, device_dir):
    killed.append(hold(f"{device_dir}/gpu0", SPOOLQ_FAMILY="/state/n1"))
    files, users = {"gpu": "/dev/nvidia%d"}, {0: [], 1: [os.getpid()], 2: [killed[0].pid], 3: [2**22 + 5]}
    monkeypatch.setitem(sys.modules, "pynvml", nvml(users))
    assert {"gpu": {5}} == busy.busy(files, "/state/n1")
    monkeypatch.setitem(sys.modules, "pynvml", nvml(users, broken=True))
    monkeypatch.setattr(busy, "holders", lambda pattern: {7: {os.getpid()}})
    assert {"gpu": {7}} == busy.busy(files, "/state/n1")


def test_a_job_waits_for_a_gpu_that_somebody_else_uses(cluster: Cluster, killed):
    os.makedirs(f"{cluster.base}/.config/spoolq")
    with open(f"{cluster.base}/.config/spoolq/config.toml", "w") as file:
        file.write(f'[node]\ndevice_files = {{ gpu = "{cluster.base}/gpu%d" }}\n')
    for number in range(2):
        with open(f"{cluster.base}/gpu{number}", "w"):
            pass
    killed.append(hold(f"{cluster.base}/gpu1"))
    cluster.node("n1", 4, "--gres", "gpu:2")
    one = cluster.sub("-c", "1", "-G", "1", "sh", "-c", f"exec 9<{cluster.base}/gpu0; sleep 1")

    assert "COMPLETED" == cluster.result(one)["state"]
    both = cluster.sub("-c", "1", "-G", "2", "true")
    cluster.until(lambda: "DeviceBusyOutside" in cluster.ok("why", str(both)), "the reason")
    assert "gpu 1 used outside spoolq" in cluster.ok("why", str(both))
    assert {"gpu": [1]} == cluster.facts("n1")["busy"]
    killed[0].kill()
    killed[0].wait()
    assert "COMPLETED" == cluster.result(both)["state"]
    wait_until(lambda: "done" == cluster.place(both))


def test_a_wrong_pattern_is_refused(cluster: Cluster):
    os.makedirs(f"{cluster.base}/.config/spoolq")
    with open(f"{cluster.base}/.config/spoolq/config.toml", "w") as file:
        file.write('[node]\ndevice_files = { gpu = "/dev/nvidia" }\n')
    done = cluster.spoolq("node", "--once")
    assert 78 == done.returncode
    assert "config.toml:2: device_files: gpu: '/dev/nvidia' is no absolute path with one %d" in done.stderr
