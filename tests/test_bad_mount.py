"""
The spool is read-only, or not mounted any more, under a running node, and comes back: nothing is lost.

The spool is mounted in a mount namespace of the node's own, from `real`; here `spool` is the bare mount point,
in which nothing may ever be made.
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.cluster import Cluster

pytestmark = pytest.mark.root


class Mounted:
    """A cluster whose node sees the spool through a mount that can be taken away."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.mount_point = cluster, cluster.root
        cluster.policy(grace_s=1, settle_s=0, min_free_mb=1, beat_s=1, fence_s=900)
        self.real = f"{cluster.base}/real"
        os.rename(cluster.root, self.real)
        os.mkdir(self.mount_point)
        cluster.root = self.real
        cluster.env["SPOOLQ_DIR"] = self.real
        words = ["unshare", "-m", "--propagation", "private", "sleep", "10000"]
        self.holder = subprocess.Popen(words, stderr=subprocess.DEVNULL, env=cluster.env)
        cluster.until(self._apart, "a namespace of its own")
        self.mount()

    def _apart(self) -> bool:
        if self.holder.poll() is not None:
            pytest.skip("LANE SKIPPED: no mount namespaces here (needs root)")
        with open(f"/proc/{self.holder.pid}/comm", encoding="ascii") as file:
            return file.read() == "sleep\n"

    def inside(self, *words: str) -> list[str]:
        """The words of a command that sees the mount."""
        return ["nsenter", "-t", str(self.holder.pid), "-m", *words]

    def run(self, *words: str) -> None:
        done = subprocess.run(self.inside(*words), capture_output=True, text=True)
        if done.returncode and words[0] == "mount" and "--bind" in words:
            pytest.skip(f"LANE SKIPPED: cannot mount here: {done.stderr}")
        assert 0 == done.returncode, done.stderr

    def mount(self, *options: str) -> None:
        self.run("mount", "--bind", *options, self.real, self.mount_point)

    def unmount(self) -> None:
        self.run("umount", "-l", self.mount_point)

    def start(self) -> "subprocess.Popen[bytes]":
        """A node that is not waited for."""
        words = [sys.executable, "-m", "spoolq", "node", "--name", "n1", "--cpus", "4", "--mem", "64T"]
        with open(f"{self.cluster.base}/n1.log", "ab") as log:
            node = subprocess.Popen(
                self.inside(*words),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.cluster.base,
                env=self.cluster.env | {"SPOOLQ_DIR": self.mount_point},
            )
        self.cluster.nodes.append(node)
        return node

    def node(self) -> "subprocess.Popen[bytes]":
        """A node, up."""
        node = self.start()
        self.cluster.until(lambda: self.cluster.facts("n1").get("pid") == node.pid, "the node is up")
        return node

    @contextlib.contextmanager
    def away(self, how: str) -> Iterator[None]:
        """For a while it is unmounted, or read-only."""
        if how == "unmounted":
            self.unmount()
        else:
            self.mount("-o", "ro")  # over it: no mount becomes read-only while somebody writes there
        yield
        if how == "unmounted":
            assert [] == os.listdir(self.mount_point), "something was made in the bare mount point"
            self.mount()
        else:
            self.unmount()


@pytest.fixture
def mounted(cluster):
    made = Mounted(cluster)
    yield made
    made.holder.kill()
    made.holder.wait()


HOW = ["unmounted", "read-only"]


def waits(cluster, number, *options):
    """A job that says something when it is let go, and leaves a mark."""
    script = f"touch up{number}; while [ ! -e go ]; do sleep 0.05; done; echo said {number}; touch ended{number}"
    return cluster.sub(*options, "sh", "-c", script)


def let_go(cluster):
    with open(f"{cluster.base}/go", "w", encoding="ascii"):
        pass


def marked(cluster, *names):
    cluster.until(lambda: all(os.path.exists(f"{cluster.base}/{name}") for name in names), f"marks {names}")


def once(cluster, jobs, states=None):
    """All have ended well, and each ran once."""
    for number, job in enumerate(jobs):
        found = cluster.result(job)
        assert ("COMPLETED", 1, f"said {number}\n") == (found["state"], found["attempt"], cluster.text(job)), job


@pytest.mark.parametrize("how", HOW)
def test_jobs_run_on_and_are_delivered_afterwards(mounted, cluster, how):
    cluster.hurry("intake", REFUSED_S=2.0)
    mounted.node()
    jobs = [waits(cluster, 0), waits(cluster, 1, "--output-mode", "local")]
    marked(cluster, "up0", "up1")
    with mounted.away(how):
        let_go(cluster)
        marked(cluster, "ended0", "ended1")
        jobs.append(waits(cluster, 2))
        with open(f"{mounted.real}/drop/three.sh", "w", encoding="ascii") as file:
            file.write("#!/bin/sh\necho said 3\n#SPOOLQ end\n")
        cluster.until(lambda: cluster.log().count("spool beat") >= 2, "it cannot beat")
        cluster.until(lambda: "spool deliver" in cluster.log(), "it cannot deliver")
        assert ["running", "running", "queue"] == [cluster.place(job) for job in jobs]
    once(cluster, jobs)
    cluster.until(lambda: os.path.exists(f"{mounted.real}/drop/three.sh.id"), "the dropped file is a job")
    with open(f"{mounted.real}/drop/three.sh.id", encoding="ascii") as file:
        jobs.append(int(file.read()))
    once(cluster, jobs)
    assert [] == os.listdir(f"{mounted.real}/rejected")


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("victim", ["runner", "watch", "daemon"])
def test_whoever_is_killed_meanwhile(mounted, cluster, how, victim):
    """What is compared with a spool that is not there must not be forgotten."""
    daemon = mounted.node()
    jobs = [waits(cluster, 0), waits(cluster, 1, "--output-mode", "local")]
    marked(cluster, "up0", "up1")
    with mounted.away(how):
        let_go(cluster)
        marked(cluster, "ended0", "ended1")
        cluster.until(lambda: "spool deliver" in cluster.log(), "it cannot deliver")
        pids = [daemon.pid] if victim == "daemon" else cluster.family()[victim]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        assert pids
        said = cluster.log().count("spool ")
        if victim == "daemon":
            daemon.wait()
            again = mounted.start()
            if how == "unmounted":
                assert 78 == again.wait(timeout=120)
            else:
                cluster.until(lambda: "waiting for it" in cluster.log(), "it waits")
        else:
            cluster.until(lambda: cluster.log().count("spool ") > said + 3, "it goes on trying")
    if victim == "daemon" and how == "unmounted":
        mounted.node()
    once(cluster, jobs)


def test_a_spool_that_goes_while_the_queue_is_read_makes_no_job_fail(mounted, cluster):
    """Its home cannot be found for a moment: it is not the job's fault."""
    mounted.node()
    jobs = []
    for number in range(12):
        jobs.append(waits(cluster, number))
        if number % 4 == 1:
            with mounted.away("unmounted"):
                jobs.append(0)
                jobs.pop()
                cluster.until(lambda: "spool " in cluster.log(), "it is missed")
        let_go(cluster)
    once(cluster, jobs)
