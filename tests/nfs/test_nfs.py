"""
Two nodes on one spool over real kernel NFS, versions 4.2 and 3, with default mount options.

Skipped, with the reason, where `lab` cannot run. `sh tests/nfs/lab/setup.sh` gets what it needs.
"""

import json
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

import spoolq

from .lab import Lab, missing, seen_inside

pytestmark = pytest.mark.nfs
PYTHON = seen_inside(sys.executable)
CHECKOUT = str(Path(spoolq.__file__).parent.parent)
PATIENCE_S = 400


class Site:
    """One spool, and a node on each machine; what ran is written by the jobs on each node's own disk."""

    def __init__(self, lab: Lab, name: str) -> None:
        self.lab, self.root, self.truth = lab, f"/spool/{name}", f"/persist/{name}.ran"
        self.env = {"PYTHONPATH": seen_inside(CHECKOUT), "SPOOLQ_DIR": self.root, "PYTHONDONTWRITEBYTECODE": "1"}
        self.env |= {"SPOOLQ_STATE_DIR": "/persist/state"}
        self.daemons: dict[str, int] = {}
        self.ok("n1", "init", self.root)
        for node in ("n1", "n2"):
            self.lab.run(node, "mkdir", "-p", "-m", "700", "/persist/state")
            self.serve(node)

    def spoolq(self, node, *words, stdin="", background=False):
        words = (PYTHON, "-m", "spoolq", *words)
        return self.lab.run(node, *words, stdin=stdin, background=background, timeout=PATIENCE_S, **self.env)

    def ok(self, node, *words, **kwargs):
        done = self.spoolq(node, *words, **kwargs)
        assert done["code"] == 0, (words, done)
        return done["out"]

    def serve(self, node):
        """Start a daemon."""
        self.daemons[node] = self.spoolq(node, "node", "--cpus", "4", "--mem", "8G", background=True)["pid"]

    def kill(self, node):
        """kill -9 of the daemon."""
        assert self.lab.run(node, "kill", "-9", str(self.daemons[node]))["code"] == 0

    def sub(self, node, *words):
        return int(self.ok(node, "sub", *words))

    def results(self, node, ids):
        """The results, waited for on a node."""
        done = self.spoolq(node, "wait", "--json", "--timeout", f"{PATIENCE_S - 30}s", *map(str, ids))
        return {found["id"]: found for found in json.loads(done["out"])["results"]}

    def ran(self):
        """(id, attempt) -> how often a job says that it ran, on any node."""
        found = Counter()
        for node in ("n1", "n2"):
            found.update(self.lab.run(node, "sh", "-c", f"cat {self.truth} 2>/dev/null")["out"].splitlines())
        return found

    def job(self, rest=""):
        """A shell command that says that it ran, durably, and goes on."""
        return f"echo $SPOOLQ_JOB_ID.$SPOOLQ_ATTEMPT >> {self.truth}; sync {self.truth}; {rest}"

    def until_ran(self, *wanted):
        end = time.monotonic() + PATIENCE_S
        while not set(wanted) <= self.ran().keys():
            assert time.monotonic() < end, f"{wanted} did not start: {self.ran()}"
            time.sleep(0.5)

    def left(self):
        """Entries that are not in done/."""
        return self.lab.run(
            "server", "sh", "-c", f"cd {self.root} && ls queue/* held/* running/* reaping/* | grep '~'"
        )["out"]


@pytest.fixture(scope="module", params=["4.2", "3"])
def lab(request):
    if reason := missing():
        pytest.skip(f"real NFS was NOT tested: {reason}")
    made = Lab(request.param)
    yield made
    made.close()


@pytest.fixture
def site(lab, request):
    made = Site(lab, request.node.originalname)
    yield made
    for node in ("n1", "n2"):
        made.kill(node)


def test_two_nodes_race_for_sixty_jobs(site):
    lines = f"{site.job('echo $SPOOLQ_NODE')}\n" * 60
    ids = [int(word) for word in site.ok("n1", "sub", "--each-line", "-", stdin=lines).split()]
    found = site.results("n2", ids)

    assert {"COMPLETED"} == {one["state"] for one in found.values()}
    assert {f"{job_id}.1": 1 for job_id in ids} == site.ran()
    assert {"n1", "n2"} == {one["node"] for one in found.values()}
    assert all(site.ok("n1", "out", str(job_id)) == f"{found[job_id]['node']}\n" for job_id in ids[:4])
    assert "" == site.left()


def test_a_daemon_that_is_killed_loses_nothing(site):
    ids = [site.sub("n1", "sh", "-c", site.job(f"sleep 30; exit {code}")) for code in range(3, 7)]
    site.until_ran(*(f"{job_id}.1" for job_id in ids))
    for node in ("n1", "n2"):
        site.kill(node)
        site.serve(node)
    found = site.results("n2", ids)

    assert [3, 4, 5, 6] == [found[job_id]["exit_code"] for job_id in ids]
    assert {"wait4"} == {one["measured_by"] for one in found.values()}
    assert {f"{job_id}.1": 1 for job_id in ids} == site.ran()


def test_a_node_that_loses_power_decides_when_it_is_back(site):
    words = ("--nodelist", "n2", "--rerun")
    again, never = (site.sub("n1", *words, rule, "sh", "-c", site.job("sleep 20")) for rule in ("certain", "never"))
    site.until_ran(f"{again}.1", f"{never}.1")
    site.lab.kill("n2")
    other = site.sub("n1", "sh", "-c", site.job())
    assert "n1" == site.results("n1", [other])[other]["node"]
    site.lab.boot("n2")
    site.serve("n2")
    found = site.results("n1", [again, never])

    assert ("COMPLETED", 2) == (found[again]["state"], found[again]["attempt"])
    assert ("NODE_FAIL", 1) == (found[never]["state"], found[never]["attempt"])
    assert {f"{again}.1": 1, f"{again}.2": 1, f"{never}.1": 1, f"{other}.1": 1} == site.ran()


def test_output_is_followed_from_the_other_node_while_it_grows(site):
    """Without the requests of `tail` it comes when the kernel writes back, up to 30 s later."""
    writes = "import time\nfor i in range(400): print(i, flush=True); time.sleep(1)"
    job = site.sub("n1", "--nodelist", "n2", PYTHON, "-c", writes)
    follow = f"timeout {PATIENCE_S} {PYTHON} -m spoolq out -f {job} | head -n 5"
    seen = site.lab.run("n1", "sh", "-c", follow, **site.env)["out"]

    assert list("01234") == seen.split()
    site.ok("n1", "kill", str(job))
    assert "CANCELLED" == site.results("n1", [job])[job]["state"]
