"""What a node measures, and what it does about it, with real daemons on a machine whose load the test chooses."""

import re
from collections.abc import Iterator

import pytest

from .cluster import Cluster
from .load import CPUS, Load


@pytest.fixture
def load(cluster: Cluster) -> Iterator[Load]:
    """All cpus are busy for others."""
    made = Load(f"{cluster.base}/machine", float(len(CPUS)))
    cluster.env["SPOOLQ_TEST_ROOT"] = made.root
    yield made
    made.close()


def say(cluster: Cluster, text: str, overload_s: float = 0.5) -> None:
    """The policy, all of it; with a short `overload_s` and `overload_suspend` the load is looked at often."""
    cluster.policy(grace_s=1, settle_s=0, min_free_mb=1, beat_s=1, overload_s=overload_s)
    with open(f"{cluster.root}/spool.toml", "a") as file:
        file.write(f"[policy]\noverload_suspend = true\n{text}\n")


def known(cluster: Cluster) -> None:
    """Wait until the node knows of 0.8 foreign cpus: what it measures first lacks what its own beginning took."""
    cluster.until(lambda: ((cluster.facts("n1").get("measured") or {}).get("foreign_cpus") or 0) > 0.5, "load is known")


def node(cluster: Cluster):
    return cluster.node("n1", len(CPUS), mem="100M")


def test_a_job_waits_for_load_of_others_and_the_reason_offers_the_remedy(cluster: Cluster, load: Load):
    load.foreign = 0.8
    say(cluster, "")
    daemon = node(cluster)
    first = cluster.sub("-c", "0.1", "-m", "10", "sleep", "600")  # the load is looked at often while something runs
    known(cluster)
    whole = cluster.sub("-c", f"{len(CPUS) - 0.1:g}", "-m", "10", "true")
    offered = re.compile(r"MeasuredLoad.*if that is usual there, idle_load = 0\.[789] in spool.toml", re.DOTALL)
    cluster.until(lambda: offered.search(cluster.ok("why", str(whole))), "the reason and the remedy")
    daemon.terminate()
    daemon.wait()
    say(cluster, "idle_load = 1.2")
    node(cluster)
    assert "COMPLETED" == cluster.result(whole)["state"]
    cluster.ok("kill", str(first))


def test_a_job_that_waits_for_others_to_go_away_keeps_no_job_behind_it(cluster: Cluster, load: Load):
    load.foreign = 0.8
    say(cluster, "")
    node(cluster)
    first = cluster.sub("-c", "0.1", "-m", "10", "sleep", "600")
    known(cluster)
    whole = cluster.sub("-c", str(len(CPUS)), "-m", "10", "true")
    small = cluster.sub("-c", "0.1", "-m", "10", "true")  # nobody knows how long it runs
    assert "COMPLETED" == cluster.result(small)["state"]
    assert "queue" == cluster.place(whole)
    said = "no place is kept for it while others leave n1 no more than"  # while that is what was measured last
    why = cluster.until(lambda: said in (text := cluster.ok("why", str(whole))) and text, "the reason")
    assert "A place is kept for it" not in why, why
    cluster.ok("kill", str(first), str(whole))


def test_a_job_steps_aside_when_memory_runs_out(cluster: Cluster, load: Load):
    load.foreign = 0.0
    load.memory(2000)
    say(cluster, "")
    node(cluster)
    words = ("-c", "0.1", "-m", "10", "sleep", "600")
    better, victim = cluster.sub("-p", "5", *words), cluster.sub("-p", "-5", *words)
    cluster.until(lambda: all("running" == cluster.place(j) for j in (better, victim)), "both run")
    load.memory(150)
    cluster.until(lambda: "steps aside" in cluster.ok("why", str(victim)), "the job of lowest priority steps aside")
    assert "runs on n1" in cluster.ok("why", str(better))  # the last one runs on
    said = re.compile(rf"overload suspend job={victim}: .*150 MB are available")
    cluster.until(lambda: said.search(cluster.log()), "its log says so")  # after the name does
    load.memory(600)
    cluster.until(lambda: "runs on n1" in cluster.ok("why", str(victim)), "it goes on")
    cluster.ok("kill", str(better), str(victim))


def test_a_job_steps_aside_on_overload_and_goes_on_over_a_restart(cluster: Cluster, load: Load):
    say(cluster, "")
    load.foreign = 0.0
    daemon = node(cluster)
    share = f"{len(CPUS) / 4:g}"
    words = ("-c", share, "-m", "10", "sh", "-c", "while :; do date >>beats; sleep 0.1; done")
    better = cluster.sub("-p", "5", *words)
    user = cluster.sub(*words)
    victim = cluster.sub("-p", "-5", *words)
    cluster.until(lambda: all("running" == cluster.place(j) for j in (better, user, victim)), "all run")
    cluster.ok("suspend", str(user))
    cluster.until(lambda: "is suspended on n1" in cluster.ok("why", str(user)), "its user's suspension comes first")
    load.foreign = float(len(CPUS))

    cluster.until(lambda: "steps aside" in cluster.ok("why", str(victim)), "the job of lowest priority steps aside")
    assert "SUSPENDED" in cluster.ok("show", str(victim))
    assert "by its node, while others take the cpus" in cluster.ok("show", str(victim))
    assert "overload_suspend" not in cluster.ok("show", str(user))
    assert "runs on n1" in cluster.ok("why", str(better))  # the last one runs on
    daemon.kill()
    daemon.wait()
    load.foreign = 0.0
    node(cluster)
    cluster.until(lambda: "runs on n1" in cluster.ok("why", str(victim)), "it goes on, by the next daemon")
    assert "is suspended on n1" in cluster.ok("why", str(user))
    cluster.ok("kill", str(better), str(user), str(victim))
    assert "CANCELLED" == cluster.result(victim)["state"]
