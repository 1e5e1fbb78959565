"""Placement by real nodes: packing, spreading, a big job among an endless stream of small ones, backfill."""

import json
import os
import re
import time

import pytest

from spoolq import host, pack
from spoolq.daemon import Daemon
from spoolq.entry import Entry
from spoolq.placement import FORGET_S, LOOK_S, NEAR, around
from tests.cluster import Cluster
from tests.world import World

WAIT = "while [ ! -e {}/go ]; do sleep 0.05; done"


def say(cluster: Cluster, **policy: object) -> None:
    """Values of [policy], beside what `Cluster.policy` has set."""
    with open(f"{cluster.root}/spool.toml", "a", encoding="utf-8") as file:
        file.write("\n[policy]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in policy.items()))


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


def two_nodes(cluster: Cluster, cpus: int) -> None:
    """
    n1 and n2, which know each other: whoever has jobs to place looks around if the last look is a second old.

    One that was seen while it came up is looked at again as soon.
    """
    cluster.hurry("placement", GONE_S=LOOK_S)
    cluster.node("n1", cpus)
    cluster.node("n2", cpus)
    time.sleep(LOOK_S * 3)


def no_second_choice(cluster: Cluster) -> None:
    """What a node leaves to the other it leaves for long: on a busy machine the one that should take it is late."""
    cluster.hurry("pack", STEP_S=60.0)


def go(cluster: Cluster) -> None:
    """Let all jobs end."""
    with open(f"{cluster.base}/go", "w"):
        pass


def test_small_jobs_fill_one_node_and_a_big_one_starts_at_once(cluster: Cluster):
    no_second_choice(cluster)
    two_nodes(cluster, 4)
    small = [cluster.sub("--wrap", WAIT.format(cluster.base)) for _ in range(4)]

    (full, empty) = sorted(placed(cluster, small).values(), key=len, reverse=True)
    assert (small, []) == (full, empty)

    big = cluster.sub("-c", "4", "--wrap", WAIT.format(cluster.base))
    placed(cluster, [*small, big])
    assert [small, [big]] == sorted(running(cluster).values())
    go(cluster)


def test_spread_takes_the_emptiest_node(cluster: Cluster):
    say(cluster, placement="spread")
    no_second_choice(cluster)
    two_nodes(cluster, 4)
    jobs = []
    for _ in range(4):
        jobs.append(cluster.sub("--wrap", WAIT.format(cluster.base)))
        placed(cluster, jobs)

    assert [2, 2] == [len(found) for found in running(cluster).values()]
    go(cluster)


def test_a_whole_node_job_gets_its_turn_among_an_endless_stream(cluster: Cluster):
    two_nodes(cluster, 2)
    stream = "".join(f"sleep 1.{20 + number % 17}\n" for number in range(600))  # for minutes
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
    assert "A place is kept for it on n1: it starts there in " in cluster.ok("why", str(big))
    why = cluster.ok("why", str(long))
    assert f"n1 keeps 2 cpus, 1000M mem for job {big}, which starts in " in why, why
    assert re.search(r"starts in (1:00:00|5\d:\d\d)", why), why
    assert {"n1": [first]} == running(cluster)

    go(cluster)
    started = {job: cluster.result(job)["started"] for job in (big, long)}
    assert started[big] <= started[long]
    assert "R=" not in "".join(names(cluster, "done"))


def test_the_nearest_on_the_ring_come_first_from_both_sides():
    assert ["d", "b", "e", "a", "f"] == list(around("c", ["a", "b", "c", "d", "e", "f"]))
    assert ["a"] == list(around("z", ["a"]))
    assert [] == list(around("z", ["z"]))


# --- what one daemon knows of the others

NOW = 1e9  # no machine is up for so long


def said(world: World, name: str, **facts: object) -> None:
    """Another machine's node says this of itself."""
    world.spool.enter_node(name)
    known = {"format": 1, "node": name, "instance": "x", "beats": 1, "state": "up", "host": "elsewhere"}
    known |= {"capacity": {"cpus": 4000}, "free": {"cpus": 4000}, "tasks": [[{"cpus": 1000}, 60]]}
    world.spool.write_node(name, known | facts)


def others(node: Daemon) -> list[str]:
    return [other.name for other in node.placement.others]


def test_of_others_count_those_that_are_up_and_beat(world: World):
    node = world.up()
    for name, state in (("a", "up"), ("b", "draining"), ("c", "full"), ("d", "stopped"), ("e", "up")):
        said(world, name, state=state)
    node.placement.look(NOW)
    assert {"a", "e"} == set(others(node))
    beat_s = world_beat(node)
    for number in range(2, 6):  # e stands still
        said(world, "a", beats=number)
        node.placement.look(NOW + (number - 1) * beat_s)
    assert ["a"] == others(node)
    said(world, "e", beats=2)
    node.placement.look(NOW + 6 * beat_s)
    assert ["a", "e"] == sorted(others(node))


def world_beat(node: Daemon) -> float:
    return float(node.policy.beat_s)


def test_what_the_jobs_of_others_have_left_is_counted_down_between_reads(world: World):
    node = world.up()
    said(world, "a")
    node.placement.look(NOW)
    node.placement.look(NOW + 20)
    assert 40 == node.placement.others[0].tasks[0].left_s


@pytest.mark.parametrize(
    "facts",
    [
        {"tasks": 5},
        {"tasks": [5, [1], [{"cpus": "x"}, "y"], [[], []], [{"cpus": -1}, -5]]},
        {"free": [1], "labels": 7},
        {"beats": "many"},
        {"beat_s": None},
    ],
)
def test_what_others_say_wrong_does_no_harm(world: World, facts):
    node = world.up()
    said(world, "a", **facts)
    world.submit(3)
    world.turn(node)
    assert {"running", "queue"} >= {at.top for at in world.placed()}
    node.placement.look(NOW)
    assert ["a"] == others(node)


def test_nobody_is_told_what_changed_while_nobody_else_is_there(world: World):
    node = world.up()
    world.submit()
    world.turn(node)
    assert not node.placement.news()
    said(world, "a")
    node.placement.look(NOW)
    world.submit()
    for part in ("news", "beat"):  # not in the turn itself, however long ago the last one was
        node.set_due(part, NOW)
    world.turn(node, "queue")
    assert node.placement.news()
    node.set_due("news", 1.0)
    node.turn()
    facts = world.spool.read_node("n1")
    assert ([[{"cpus": 2000, "mem": 2_000_000}, None]], False) == (facts["tasks"], node.placement.news())


def test_of_a_crowd_the_nearest_are_read_and_the_rest_is_left_alone(world: World, monkeypatch):
    node = world.up("m")
    for number in range(70):
        said(world, f"{'az'[number % 2]}{number:03d}")
    node.placement.look(NOW)
    assert NEAR == len(others(node)) == len(node.placement.known)
    monkeypatch.setattr("spoolq.placement.CROWD", 10)
    node.placement.look(NOW + 1)
    assert 7.1 == pytest.approx(node.placement.every_s)


def test_a_place_that_is_kept_far_away_counts(world: World, monkeypatch):
    monkeypatch.setattr("spoolq.placement.NEAR", 1)
    node = world.up("m")
    said(world, "n")
    said(world, "z")
    node.placement.look(NOW)
    assert ["n"] == others(node)
    far = Entry(rank=500, id=1, wants={"cpus": 9000}, other=("R=z",))
    assert ["n", "z"] == [other.name for other in node.placement._with_holders([far], NOW)]


def test_a_node_that_runs_once_leaves_nothing_to_others(world: World):
    said(world, "a", free={"cpus": 1000})  # it would be filled best
    world.submit()
    node = world.up()
    node.limits.once = True
    world.turn(node)
    assert "running" == world.at(1).top


def test_a_job_is_left_to_the_node_that_it_fills_best_and_taken_if_that_does_not_come(world: World, monkeypatch):
    said(world, "a", free={"cpus": 1000, "mem": 4_000_000}, capacity={"cpus": 4000, "mem": 4_000_000})
    world.submit()
    node = world.up()
    world.turn(node)
    assert ("queue", ["a"]) == (world.at(1).top, others(node))
    [key] = node.placement.since
    node.placement.since[key] = (0.0, host.boottime())
    world.turn(node)
    assert "running" == world.at(1).top


def test_who_is_kept_is_remembered_while_only_the_first_of_the_queue_are_looked_at(world: World):
    node = world.up()
    part = pack.Share((), watch=frozenset({("keep", 1, ""), ("claim", 2, "")}))
    node.placement._remember(part, 100.0, whole=True)
    node.placement._remember(pack.Share(()), 110.0, whole=False)
    assert {("keep", 1, ""), ("claim", 2, "")} == node.placement.since.keys()
    node.placement._remember(pack.Share(()), 100.0 + FORGET_S + 1, whole=False)
    assert {("keep", 1, "")} == node.placement.since.keys()
    node.placement._remember(pack.Share(()), 999.0, whole=True)
    assert {} == node.placement.since
