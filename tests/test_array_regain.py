"""
What simulation (`tests/sim`) found of arrays whose daemon, runner or spool failed in the middle of a chunk.
"""

import errno

import pytest

from spoolq import array, fsops, home, nested, output, part, steer, tasks
from spoolq.entry import Entry
from tests.test_array_crash import check, recorded, submit
from tests.world import World


@pytest.fixture
def world(tmp_path, monkeypatch):
    made = World(str(tmp_path / "w"), monkeypatch, ends=False)
    yield made
    made.close()


def at(world: World, unit: str):
    """Where a chunk is."""
    return next(placed for placed in world.placed() if placed.entry.unit == unit)


def finish(world: World, node) -> None:
    """Everything that runs ends, and what is to run runs."""
    world.runner.ends = True
    for key, job in list(world.runner.jobs.items()):
        if job["state"] == "running":
            world.runner.end(key)
    for _ in range(12):
        world.turn(node)


def test_a_chunk_whose_start_is_in_doubt_goes_on_under_the_daemon_that_sent_it(world):
    submit(world)
    node = world.up()
    world.turn(node)
    world.runner.jobs["1_1", 1] |= {"state": "doubtful", "stage": "doubtful"}  # the runner and its watcher were killed
    node.sure = False
    finish(world, node)
    check(world, starts=2)
    assert {"1_1": 2, "1_2": 1} == {unit: [k[0] for k in world.runner.starts].count(unit) for unit in ("1_1", "1_2")}


def test_a_second_try_that_ended_while_nobody_listened_is_recorded(world):
    """The result of the first try was taken for that of the second, which then was waited for for ever."""
    submit(world)
    node = world.up()
    world.turn(node)
    world.runner.end(("1_4", 1), 1)
    while at(world, "1_4").top != "done":
        world.turn(node)
    assert "requeued" == steer.do(world.spool, at(world, "1_4"), steer.requeue_step(failed=True)).done
    while ("1_4", 2) not in world.runner.jobs:
        world.turn(node)
    world.runner.end(("1_4", 2))
    world.runner.out = []  # the connection broke before that was said
    node.sure = False
    finish(world, node)
    assert {1: "COMPLETED", 2: "COMPLETED", 3: "COMPLETED", 4: "COMPLETED"} == recorded(world)
    assert {"done"} == {placed.top for placed in world.placed()}


@pytest.mark.parametrize("word", ["", "task"])
def test_a_request_on_a_full_spool_is_about_one_part_of_an_array(world, monkeypatch, word):
    """An empty file: it was obeyed by each attempt of each chunk here."""
    submit(world)
    node = world.up()
    world.turn(node)
    assert [("1_1", 1), ("1_4", 1)] == sorted(world.runner.starts)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    doing = part.kill([2]) if word else steer.kill_step(None)
    with monkeypatch.context() as patched:
        patched.setattr(fsops, "publish", full)
        assert "requested" == steer.do(world.spool, at(world, "1_1-3"), doing).done
    for _ in range(3):
        world.turn(node)
    ended = {key: job["ended"]["reason"] for key, job in world.runner.jobs.items() if job["ended"]}
    assert not word or {} == ended
    finish(world, node)
    whole = {1: "CANCELLED", 4: "COMPLETED"}
    assert ({1: "COMPLETED", 2: "CANCELLED", 3: "COMPLETED", 4: "COMPLETED"} if word else whole) == recorded(world)
    assert [] == world.requests()


@pytest.mark.parametrize("verb", ["kill", "requeue"])
def test_a_request_without_words_is_obeyed_by_no_later_attempt(world, verb):
    submit(world)
    node = world.up()
    world.turn(node)
    fsops.create(f"{world.root}/nodes/n1/control/me.a7.1.{verb}", b"")
    for _ in range(3):
        world.turn(node)
    assert [] == world.runner.heard("kill")
    assert [] == world.requests()


def test_the_end_of_a_fenced_task_is_no_result_and_frees_its_place(world):
    """Taken over from a node that was silent: it said NODE_FAIL, and the next attempt had nothing to run."""
    submit(world, rerun="yes")
    node = world.up()
    world.turn(node)
    for unit in ("1_1-3", "1_4"):  # as another node does
        _, taken = world.spool.reap(at(world, unit), "n2")
        world.spool.requeue(taken)
    for key in list(world.runner.jobs):
        world.runner.end(key, None, "lost")
    world.runner.out = []
    node.sure = False
    finish(world, node)
    check(world, starts=2)
    assert [] == list(node.live)


def test_what_is_asked_of_a_task_that_is_to_run_again_counts(world):
    """`requeue 1_2`, and `kill 1_2` before it runs; also if the clocks of the two differ."""
    submit(world)
    world.runner.ends = True
    world.serve()
    steer.do(world.spool, at(world, "1_1-3"), part.requeue([2]))
    assert "PENDING" == recorded(world)[2]
    assert "cancelled" == steer.do(world.spool, at(world, "1_1-3"), part.kill([2])).done
    assert "CANCELLED" == recorded(world)[2]
    world.serve()
    assert 1 == [key[0] for key in world.runner.starts].count("1_2")
    lines = [
        {"task": 1, "attempt": 2, "state": state, "ended": t} for state, t in (("PENDING", "1"), ("NODE_FAIL", "2"))
    ]
    for some in (lines, lines[::-1]):
        assert "NODE_FAIL" == array.latest(some)[1]["state"]


def test_results_are_not_taken_for_missing_when_the_spool_is_away(world):
    submit(world)
    with pytest.raises(OSError, match="No such file"):
        tasks.read(f"{world.root}/elsewhere", 1, "a1-3", sure=True)
    assert [] == tasks.read(world.root, 1, "a1-3", sure=True), "its directory is there from the beginning"
    entry = Entry(rank=500, id=1, gen=0, chunk="a1-3", attempt=1)
    tasks.record(world.root, entry, "n1", [b'{"task": 1, "attempt": 1}\n'])
    (name,) = fsops.names(f"{home.path_of(world.root, 1)}/tasks")
    assert name == "a1-3.1.n1.jsonl"


def test_who_knows_a_node_finds_what_it_runs(world, monkeypatch):
    """An NFS client that once missed running/n1 would count nothing there for 60 s, and exceed limits."""
    made = []
    monkeypatch.setattr(fsops, "make_directory", lambda path: made.append(path.removeprefix(f"{world.root}/")))
    world.spool.enter_node("n9")
    assert {"running/n9", "reaping/n9"} == set(made[:2])
    assert made[2] == "nodes/n9"


def test_a_task_that_waits_takes_its_request_away(world):
    world.spool.enter_node("n1")
    for task in (None, 7):
        name = nested.ask(world.spool, nested.Outer(1, 1, "n1", 0, task))
        assert [name] == world.requests()
        world.spool.answered("n1", name)


def test_the_results_of_an_array_are_read_once_for_the_output_of_all_its_tasks(world, monkeypatch):
    """They were read anew for each: of 300 tasks that were 63,000 files opened."""
    submit(world)
    finish(world, world.up())
    reads = []
    monkeypatch.setattr(tasks, "read", lambda *words, real=tasks.read: reads.append(words) or real(*words))
    assert 0 == output.out(["--spool", world.root, "1"])
    assert 1 == len(reads)
