"""Consumables, constraints, devices and pools, with real nodes and real processes, as a user at a shell meets them."""

import itertools
import json
import os
import signal

from tests.cluster import Cluster

NUMBERS = itertools.count()


def touch(path: str) -> None:
    open(path, "w").close()


def said(cluster: Cluster, job: int, text: str, node: str = "n1") -> str:
    """Wait until `why` says it, and what else it says then."""
    return str(cluster.until(lambda: text in (why := cluster.ok("why", str(job))) and why, f"why {job} says {text}"))


def waiter(cluster: Cluster, *words: str, say: str = "echo") -> tuple[int, str]:
    """A job that says something, marks that it runs and waits for a file: (id, the file)."""
    number = next(NUMBERS)
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


SAY = 'echo "[$CUDA_VISIBLE_DEVICES] [${SPOOLQ_DEVICES_GPU-unset}] $SPOOLQ_GRES_GPU"'


def held(cluster: Cluster, job: int) -> list[str]:
    """The devices that a job was told of."""
    first = cluster.text(job).split()[0]
    return [number for number in first.strip("[]").split(",") if number]


def test_devices_whole_and_shared(cluster: Cluster):
    """Never two holders of a whole one, parts of one and the same, none for jobs that ask for none, and whys."""
    cluster.node("n1", 8, "--gres", "gpu:2")
    env = {"CUDA_VISIBLE_DEVICES": "7", "CUDA_DEVICE_ORDER": "FASTEST_FIRST"}
    none = cluster.sub("sh", "-c", SAY, env=env)
    whole, go = waiter(cluster, "-c", "1", "-G", "1", say=SAY)
    halves = [waiter(cluster, "-c", "1", "-g", "gpu:0.5", say=SAY) for _ in range(2)]
    cluster.result(none)
    assert "[] [unset] \n" == cluster.text(none)
    runs(cluster, whole, *(job for job, _ in halves))
    cluster.until(lambda: all(cluster.text(job) for job in (whole, *(job for job, _ in halves))), "all have said it")
    assert (["0"], ["1"], ["1"]) == (held(cluster, whole), *(held(cluster, job) for job, _ in halves))
    assert "[0] [0] 1\n" == cluster.text(whole)

    touch(halves[0][1])
    cluster.result(halves[0][0])
    again, again_go = waiter(cluster, "-c", "1", "-g", "gpu:0.25", say=SAY)
    runs(cluster, again)
    touch(go)
    cluster.result(whole)
    both = cluster.sub("-c", "1", "-G", "2", "sh", "-c", SAY)
    said(cluster, both, "needs 2 gpu, 1.25 of 2 free")
    touch(again_go)
    cluster.result(again)
    # 1.5 are free, and no two whole ones; a third whole one there is none of
    part = cluster.sub("-p", "9", "-c", "1", "-g", "gpu:1.5", "sh", "-c", SAY)
    assert "COMPLETED" == cluster.result(part)["state"]
    assert ["0", "1"] == held(cluster, part)
    assert 2 == cluster.spoolq("sub", "-G", "3", "true").returncode
    touch(halves[1][1])
    assert "COMPLETED" == cluster.result(both)["state"]
    assert ["0", "1"] == held(cluster, both)


def test_enough_in_parts_is_not_enough(cluster: Cluster):
    cluster.policy(beat_s=0.5, fence_s=30, dead_s=120, grace_s=1, settle_s=0, min_free_mb=1)
    cluster.node("n1", 8, "--gres", "gpu:2")
    first = [waiter(cluster, "-c", "1", "-g", "gpu:0.75") for _ in range(2)]
    runs(cluster, *(job for job, _ in first))
    half = cluster.sub("-c", "1", "-g", "gpu:0.5", "true")
    text = said(cluster, half, "needs 0.5 gpu of one device, free are 0.25 of gpu 0, 0.25 of gpu 1")
    assert f"job {first[0][0]} holds 0.75 gpu" in text
    cluster.until(lambda: "gpu 1 (0.75)" in cluster.ok("show", str(first[1][0])), "show says which it has")
    touch(first[1][1])
    assert "COMPLETED" == cluster.result(half)["state"]


def test_devices_are_held_over_every_death_of_daemon_and_runner(cluster: Cluster):
    node = cluster.node("n1", 8, "--gres", "gpu:3")
    jobs = [waiter(cluster, "-c", "1", "-G", "1", say=SAY) for _ in range(2)]
    runs(cluster, *(job for job, _ in jobs))
    cluster.until(lambda: all(cluster.text(job) for job, _ in jobs), "both have said it")
    assert [["0"], ["1"]] == [held(cluster, job) for job, _ in jobs]
    touch(jobs[0][1])
    cluster.result(jobs[0][0])  # 0 is free again, 1 is held

    for kind in ("daemon", "runner", "both"):
        family = cluster.family()
        if kind != "daemon":
            os.kill(family["runner"][0], signal.SIGKILL)
            cluster.until(lambda: cluster.family()["runner"] not in ([], family["runner"]), "another runner")
        if kind != "runner":
            node.kill()
            node.wait()
            node = cluster.node("n1", 8, "--gres", "gpu:3")
        two = cluster.sub("-c", "1", "-G", "2", "sh", "-c", SAY)
        assert "COMPLETED" == cluster.result(two)["state"]
        assert ["0", "2"] == held(cluster, two), kind
        three = cluster.sub("-c", "1", "-G", "3", "sh", "-c", SAY)
        said(cluster, three, "needs 3 gpu, 2 of 3 free")
        cluster.ok("kill", str(three))
    touch(jobs[1][1])
    assert "COMPLETED" == cluster.result(jobs[1][0])["state"]


def test_devices_of_a_configuration(cluster: Cluster):
    """Ids and variables that a site says, types as labels."""
    config = f"{cluster.base}/.config/spoolq"
    os.makedirs(config)
    with open(f"{config}/config.toml", "w") as file:
        file.write(
            "[node.devices]\ngpu = { index = [2, 5], env = 'ROCR_VISIBLE_DEVICES', type = 'mi250', none = 'x' }\n"
        )
        file.write("tape = { index = ['st0'], env = ['TAPE=/dev/'], none = false }\n")
    cluster.node("n1", 4)
    say = 'echo "$ROCR_VISIBLE_DEVICES $TAPE $SPOOLQ_DEVICES_TAPE ${CUDA_VISIBLE_DEVICES-unset}"'
    export = {"TAPE": "mine", "CUDA_VISIBLE_DEVICES": ""}
    with_both = cluster.sub("-G", "1", "-g", "tape:1", "sh", "-c", say, env=export)
    with_type = cluster.sub("-g", "gpu:mi250:2", "sh", "-c", say)
    none = cluster.sub("sh", "-c", say, env=export)
    for job in (with_both, with_type, none):
        cluster.result(job)

    assert ["2", "/dev/st0", "st0"] == cluster.text(with_both).split()
    assert ["2,5", "unset"] == cluster.text(with_type).split()
    assert ["x", "mine"] == cluster.text(none).split()
    refused = cluster.spoolq("sub", "-g", "gpu:a100:1", "true")
    assert "asks for gpu_type=='*a100*', and no known node is so: on n1 gpu_type is mi250" in refused.stderr


def pool(cluster: Cluster, text: str) -> None:
    with open(f"{cluster.root}/spool.toml", "a") as file:
        file.write(f"[pools]\n{text}\n")


def test_a_pool_is_shared_by_all_nodes_and_never_exceeded(cluster: Cluster):
    """Three nodes race for two licences; each job counts, under a lock of its own, who else runs."""
    pool(cluster, "matlab = 2")
    lock, count, most = (f"{cluster.base}/{name}" for name in ("lock", "count", "most"))
    for name in (count, most):
        with open(name, "w") as file:
            file.write("0\n")
    add = f"n=$(($(cat {count}) $1)); echo $n > {count}; [ $n -le $(cat {most}) ] || echo $n > {most}"
    with open(f"{cluster.base}/add.sh", "w") as file:
        file.write(add)
    step = f"flock {lock} sh {cluster.base}/add.sh +1; sleep 0.1; flock {lock} sh {cluster.base}/add.sh -1\n"
    ids = [int(i) for i in cluster.ok("sub", "-c", "1", "-g", "matlab:1", "--each-line", "-", stdin=step * 12).split()]
    for name in ("n1", "n2", "n3"):
        cluster.node(name, 4)

    for job in ids:
        result = cluster.result(job)
        assert ("COMPLETED", 1) == (result["state"], result["attempt"])
    with open(most) as file:
        assert int(file.read()) in (1, 2)


def test_why_a_job_waits_for_a_pool(cluster: Cluster):
    pool(cluster, "matlab = 3")
    cluster.node("n1", 4)
    cluster.node("n2", 4)
    first, go = waiter(cluster, "-c", "1", "-g", "matlab:2", "-w", "n1")
    runs(cluster, first)
    second = cluster.sub("-c", "1", "-g", "matlab:2", "-w", "n2", "true")
    text = said(cluster, second, "needs 2 matlab, 1 of 3 free; all nodes share matlab")
    assert f"job {first} holds 2 matlab" in text
    cluster.until(lambda: os.path.exists(cluster.home(second, "why/n2")), "n2 knows that it cannot start")
    cluster.until(lambda: cluster.place(second) == "queue", "it is not claimed any more, if it was")
    third = cluster.sub("-c", "1", "-g", "matlab:1", "true")
    other = cluster.sub("-c", "1", "true")
    assert "COMPLETED" == cluster.result(other)["state"], "who takes nothing of the pool waits for nobody"
    for name in ("n1", "n2"):  # also n1, which can never run the second
        cluster.until(lambda name=name: os.path.exists(cluster.home(third, f"why/{name}")), f"{name} says why")
    assert "queue" == cluster.place(third), "the pool is kept for the one that came first"
    assert "\npools: matlab 2/3\n" in cluster.ok("nodes")
    (node,) = json.loads(cluster.ok("nodes", "n2", "--json"))["nodes"]
    assert {"matlab": {"taken": 2.0, "size": 3.0}} == node["pools"]
    assert {"cpus", "mem"} == set(node["capacity"]), "nobody's own"
    refused = cluster.spoolq("sub", "-g", "matlab:4", "true")
    assert "needs 4 matlab, and no node has more than 3 matlab" in refused.stderr
    touch(go)
    for job in (second, third):
        assert "COMPLETED" == cluster.result(job)["state"]


def test_a_pool_is_held_until_the_job_has_ended_and_given_back_by_death(cluster: Cluster):
    """A daemon killed while its job runs holds the licence; a runner and daemon killed give it back."""
    pool(cluster, "matlab = 1")
    node = cluster.node("n1", 2)
    cluster.node("n2", 2)
    first, go = waiter(cluster, "-c", "1", "-g", "matlab:1", "-w", "n1")
    runs(cluster, first)
    cluster.running(first, go.replace("/go.", "/up."))  # its stdout is there before the runner is told to start it
    node.kill()
    node.wait()
    second = cluster.sub("-c", "1", "-g", "matlab:1", "-w", "n2", "true")
    said(cluster, second, f"job {first} holds 1 matlab")
    touch(go)
    node = cluster.node("n1", 2)
    assert "COMPLETED" == cluster.result(first)["state"]
    assert "COMPLETED" == cluster.result(second)["state"]
