"""Placement by real nodes: packing, spreading, a big job among an endless stream of small ones, backfill."""

import os

from spoolq.placement import around
from tests.cluster import Cluster

WAIT = "while [ ! -e {}/go ]; do sleep 0.05; done"


def say(cluster: Cluster, **policy: str) -> None:
    """Values of [policy], beside what `Cluster.policy` has set."""
    with open(f"{cluster.root}/spool.toml", "a", encoding="utf-8") as file:
        file.write("\n[policy]\n" + "".join(f'{key} = "{value}"\n' for key, value in policy.items()))


def running(cluster: Cluster) -> dict[str, list[int]]:
    """Node -> ids of the jobs that run there."""
    top = f"{cluster.root}/running"
    return {node: sorted(int(name.split(".")[1]) for name in os.listdir(f"{top}/{node}")) for node in os.listdir(top)}


def placed(cluster: Cluster, jobs: list[int]) -> dict[str, list[int]]:
    """The same, once all of these run."""

    def all_run() -> dict[str, list[int]] | None:
        found = running(cluster)
        return found if sorted(sum(found.values(), [])) == sorted(jobs) else None

    return dict(cluster.until(all_run, f"{jobs} run"))


def names(cluster: Cluster, top: str) -> list[str]:
    """All names under a top."""
    return [
        name for place in os.listdir(f"{cluster.root}/{top}") for name in os.listdir(f"{cluster.root}/{top}/{place}")
    ]


def go(cluster: Cluster) -> None:
    """Let all jobs end."""
    with open(f"{cluster.base}/go", "w"):
        pass


def test_small_jobs_fill_one_node_and_a_big_one_starts_at_once(cluster: Cluster):
    cluster.node("n1", 4)
    cluster.node("n2", 4)
    small = [cluster.sub("--wrap", WAIT.format(cluster.base)) for _ in range(4)]

    (full, empty) = sorted(placed(cluster, small).values(), key=len, reverse=True)
    assert (small, []) == (full, empty)

    big = cluster.sub("-c", "4", "--wrap", WAIT.format(cluster.base))
    placed(cluster, [*small, big])
    assert [small, [big]] == sorted(running(cluster).values())
    go(cluster)


def test_spread_takes_the_emptiest_node(cluster: Cluster):
    say(cluster, placement="spread")
    cluster.node("n1", 4)
    cluster.node("n2", 4)
    jobs = []
    for _ in range(4):
        jobs.append(cluster.sub("--wrap", WAIT.format(cluster.base)))
        placed(cluster, jobs)

    assert [2, 2] == [len(found) for found in running(cluster).values()]
    go(cluster)


def test_a_whole_node_job_gets_its_turn_among_an_endless_stream(cluster: Cluster):
    cluster.node("n1", 2)
    cluster.node("n2", 2)
    stream = "".join(f"sleep 0.{20 + number % 17}\n" for number in range(150))
    cluster.ok("sub", "--each-line", "-", stdin=stream)
    big = cluster.sub("-c", "2", "-p", "1", "true")

    cluster.result(big)
    waiting = names(cluster, "queue")
    assert len(waiting) > 50, "it started when the stream was nearly over"
    assert not [name for name in names(cluster, "done") if "R=" in name], "a reservation outlives the claim"


def test_backfill_takes_what_ends_before_and_leaves_what_would_delay(cluster: Cluster):
    cluster.node("n1", 2)
    first = cluster.sub("-t", "1h", "--wrap", WAIT.format(cluster.base))
    placed(cluster, [first])
    big = cluster.sub("-c", "2", "true")
    long = cluster.sub("-t", "2h", "true")
    short = cluster.sub("-t", "10m", "true")

    cluster.result(short)
    cluster.until(lambda: any(f".{big}." in name and "R=n1" in name for name in names(cluster, "queue")), "reserved")
    cluster.until(lambda: os.path.exists(cluster.home(long, "why/n1")), "the node says why")
    why = cluster.ok("why", str(long))
    assert f"n1 keeps 2 cpus, 1000M mem for job {big}, which starts in 59:" in why, why
    assert {"n1": [first]} == running(cluster)

    go(cluster)
    started = {job: cluster.result(job)["started"] for job in (big, long)}
    assert started[big] <= started[long]
    assert "R=" not in "".join(names(cluster, "done"))


def test_the_nearest_on_the_ring_come_first_from_both_sides():
    assert ["d", "b", "e", "a", "f"] == list(around("c", ["a", "b", "c", "d", "e", "f"]))
    assert ["a"] == list(around("z", ["a"]))
    assert [] == list(around("z", ["z"]))
