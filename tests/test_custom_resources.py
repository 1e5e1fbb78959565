"""Consumables, constraints, devices and pools, with real nodes and real processes, as a user at a shell meets them."""

import json
import os

from tests.cluster import Cluster


def touch(path: str) -> None:
    open(path, "w").close()


def said(cluster: Cluster, job: int, text: str, node: str = "n1") -> str:
    """Wait until `why` says it."""
    cluster.until(lambda: text in cluster.ok("why", str(job)), f"why {job} says {text}")
    return cluster.ok("why", str(job))


def waiter(cluster: Cluster, *words: str, say: str = "echo") -> tuple[int, str]:
    """A job that says something, marks that it runs and waits for a file: (id, the file)."""
    number = len([name for name in os.listdir(cluster.base) if name.startswith("up.")])
    up, go = f"{cluster.base}/up.{number}", f"{cluster.base}/go.{number}"
    job = cluster.sub(*words, "sh", "-c", f"{say}; echo > {up}; while [ ! -e {go} ]; do sleep 0.05; done")
    return job, go


def runs(cluster: Cluster, *jobs: int) -> None:
    cluster.until(lambda: all(cluster.place(job) == "running" for job in jobs), f"jobs {jobs} run")


def test_consumables_of_a_node(cluster: Cluster):
    """Fractions, whys, edit, what is free, and what no node could ever run."""
    cluster.node("n1", 4, "--gres", "io:2,licence:0.5")
    first, go = waiter(cluster, "-c", "1", "-g", "io:1.5,licence:0.25")
    runs(cluster, first)
    second = cluster.sub("-c", "1", "-g", "io:1", "true")

    said(cluster, second, f"needs 1 io, 0.5 of 2 free; job {first} holds 1.5 io")
    assert "io 1.5/2, licence 0.25/0.5" in cluster.ok("nodes")
    (node,) = json.loads(cluster.ok("nodes", "--json"))["nodes"]
    assert (0.5, 2, 0.25) == (node["free"]["io"], node["capacity"]["io"], node["free"]["licence"])

    refused = cluster.spoolq("sub", "-g", "io:3", "true")
    assert 2 == refused.returncode
    assert "no node could ever run this: needs 3 io, and no node has more than 2 io" in refused.stderr
    assert 2 == cluster.spoolq("sub", "-g", "tape:1", "true").returncode
    assert "no node could ever run it so: needs 9 io" in cluster.spoolq("edit", str(second), "gres=io:9").stderr

    cluster.ok("edit", str(second), "gres=io:0.5")
    assert "COMPLETED" == cluster.result(second)["state"]
    touch(go)
    assert "COMPLETED" == cluster.result(first)["state"]
    cluster.until(lambda: "io 0/2" in cluster.ok("nodes"), "all of it is free again")


def test_constraints_choose_the_node(cluster: Cluster):
    config = f"{cluster.base}/.config/spoolq"
    os.makedirs(config)
    with open(f"{config}/config.toml", "w") as file:
        file.write('[node]\nlabels = { rack = "b4" }\n')
    cluster.node("n1", 2, "--label", "ssd,disk=500")
    cluster.node("n2", 2, "--label", "disk=2000,cuda=12.10")
    here = os.uname().machine

    jobs = {
        cluster.sub("-C", f"arch=={here} and ssd and rack==b4", "true"): "n1",
        cluster.sub("-C", "not ssd and disk>=2000", "true"): "n2",
        cluster.sub("--constraint", "cuda>=12.9 or node==n7", "true"): "n2",
        cluster.sub("-C", "node in (n1, n9) and cpus>=2 and kernel>2.6 and os==linux", "true"): "n1",
        cluster.sub(stdin="#!/bin/sh\n#SPOOLQ -C 'cuda and rack==b*'\ntrue\n"): "n2",
    }
    assert jobs == {job: cluster.result(job)["node"] for job in jobs}

    none = cluster.spoolq("sub", "-C", "ssd and disk>=2000", "true")
    assert 2 == none.returncode
    said = "no known node is so: on n1 disk is 500, on n2 there is no label ssd"
    assert f"asks for ssd and disk>=2000, and {said}" in none.stderr
    wrong = cluster.spoolq("sub", "-C", "ssd and disk=2000", "true")
    assert 2 == wrong.returncode
    assert "constraint: 'ssd and disk=2000': character 13: = compares nothing, == does" in wrong.stderr
    check = cluster.ok("sub", "-C", "ssd", "--check", "true")
    assert "valid; could run on: n1\nnot on n2: asks for ssd, and there is no label ssd\n" == check


def test_a_constraint_that_nothing_satisfies_any_more_says_so(cluster: Cluster):
    job = cluster.sub("-C", "ssd and disk>=100", "true")  # no node has been seen yet
    cluster.node("n1", 2, "--label", "ssd")

    text = said(cluster, job, "BadConstraints")
    assert "asks for ssd and disk>=100, and on n1 there is no label disk" in text
    assert "No node ever seen here could run it" in text
    cluster.until(lambda: os.path.exists(cluster.home(job, "why/n1")), "the node says why")
    cluster.node("n2", 2, "--label", "ssd,disk=100")
    assert "n2" == cluster.result(job)["node"]
