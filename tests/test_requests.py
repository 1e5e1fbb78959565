"""Requests to a node: none is lost, none hits the wrong attempt, and their order is kept."""

import errno
import math
import os

import pytest

from spoolq import fsops
from spoolq.daemon import Daemon
from spoolq.fsops import Answer
from tests.world import World


def ask(world: World, verb: str, tag: str = "1", *, job_id: int = 1, attempt: int = 1, node: str = "n1", **more):
    """As the commands do."""
    world.spool.request(node, verb, job_id, {"attempt": attempt, **more}, tag)


def started(world: World, **facts) -> Daemon:
    """One job that runs."""
    world.submit(**facts)
    node = world.up()
    world.turn(node)
    assert [(1, 1)] == world.runner.starts
    return node


def settle(world: World, node: Daemon, turns: int = 4) -> None:
    for _ in range(turns):
        world.turn(node)


def test_a_kill_is_carried_out_once_and_its_file_goes_when_the_job_has_ended(world):
    node = started(world)
    ask(world, "kill")
    world.turn(node)
    settle(world, node)
    assert ("done", "cancelled", 1) == world.where(1)
    assert 1 == len(world.runner.heard("kill"))
    assert [] == world.requests()


def test_a_kill_that_the_runner_did_not_read_is_said_again_by_the_next_daemon(world):
    node = started(world)
    world.runner.deaf = True
    ask(world, "kill")
    world.turn(node)
    node = world.up()
    settle(world, node)
    assert ("done", "cancelled", 1) == world.where(1)


def test_a_kill_that_the_runner_did_not_read_is_said_again_to_the_next_runner(world):
    node = started(world)
    world.runner.deaf = True
    ask(world, "kill")
    world.turn(node)
    world.runner.gone = True
    settle(world, node)
    assert ("done", "cancelled", 1) == world.where(1)


@pytest.mark.parametrize("verb", ["kill", "requeue"])
def test_asking_while_the_start_is_on_its_way_and_then_refused(world, verb):
    world.runner.refuses = True
    world.submit()
    node = world.up()
    world.turn(node, "queue")
    assert [] == world.runner.starts
    ask(world, verb)
    for _ in range(2):  # it hears of the refusal, then of the request, and claims nothing meanwhile
        node.set_due("queue", math.inf)
        world.turn(node, "control")
    world.runner.refuses = False
    settle(world, node)
    if verb == "kill":
        assert [] == world.runner.starts
        assert ("done", "cancelled", 1) == world.where(1)
    else:
        assert [(1, 1)] == world.runner.starts
    assert [] == world.requests()


def test_a_kill_follows_the_job_to_another_node(world):
    node = started(world)
    ask(world, "kill")
    at = world.at(1)
    node.live.clear()
    world.runner.jobs.clear()
    _, at = world.spool.give_back(at)
    world.spool.enter_node("n2")
    world.spool.claim(at, "n2")
    world.turn(node, "control")
    assert [] == world.requests("n1")
    (name,) = world.requests("n2")
    assert name.endswith(".1.kill")


def test_a_kill_that_came_too_late_does_not_hit_the_next_attempt(world):
    node = started(world)
    world.runner.end((1, 1))
    world.turn(node, "deliver")
    world.spool.requeue(world.at(1))
    ask(world, "kill")
    settle(world, node)
    assert [(1, 1), (1, 2)] == world.runner.starts
    assert world.runner.jobs[1, 2]["state"] == "running"
    assert [] == world.requests()


def test_a_job_that_was_to_be_killed_when_its_machine_went_down_is_not_run_again(world):
    started(world)
    ask(world, "kill")
    world.reboot()
    node = world.up()
    settle(world, node)
    assert [(1, 1)] == world.runner.starts
    assert ("done", "cancelled", 1) == world.where(1)
    assert [] == world.requests()


@pytest.mark.parametrize("dies", ["before it ended", "before it was delivered"])
def test_a_requeue_is_not_forgotten_by_the_next_daemon(world, dies, monkeypatch):
    node = started(world)
    kill = world.runner.end
    monkeypatch.setattr(world.runner, "end", lambda *args: None)  # it takes its time to end
    ask(world, "requeue")
    world.turn(node, "control")
    monkeypatch.setattr(world.runner, "end", kill)
    if dies == "before it ended":
        node = world.up()
        world.runner.end((1, 1), 143, "cancelled")
    else:
        world.runner.end((1, 1), 143, "cancelled")
        node.hear()
        world.turn(node, "control")
        node = world.up()
    settle(world, node)
    assert [(1, 1), (1, 2)] == world.runner.starts
    assert [] == world.requests()


def test_the_last_word_counts_of_requeue_and_kill(world, monkeypatch):
    node = started(world)
    kill = world.runner.end
    monkeypatch.setattr(world.runner, "end", lambda *args: None)
    ask(world, "requeue", "1")
    world.turn(node, "control")
    ask(world, "kill", "2")
    world.turn(node, "control")
    monkeypatch.setattr(world.runner, "end", kill)
    world.runner.end((1, 1), 143, "cancelled")
    settle(world, node)
    assert ("done", "cancelled", 1) == world.where(1)
    assert [] == world.requests()


def test_suspend_and_resume_keep_their_order_when_the_spool_is_in_doubt(world, monkeypatch):
    node = started(world)
    edit, doubts = node.spool.edit, [1]

    def doubtful(at, **changes):
        if doubts:
            doubts.pop()
            return Answer.UNKNOWN, at
        return edit(at, **changes)

    monkeypatch.setattr(node.spool, "edit", doubtful)
    ask(world, "suspend", "1")
    ask(world, "resume", "2")
    settle(world, node)
    assert "running" == world.runner.jobs[1, 1]["stage"]
    assert not world.entry(1).suspended
    assert [] == world.requests()


def test_what_the_name_says_of_suspension_holds_for_the_next_runner(world):
    node = started(world)
    ask(world, "suspend")
    world.turn(node)
    assert world.entry(1).suspended
    world.runner.jobs[1, 1]["stage"] = "running"  # the runner was killed before it read
    world.up()
    assert "paused" == world.runner.jobs[1, 1]["stage"]


def test_a_hold_finds_a_job_that_was_given_back(world):
    node = started(world)
    ask(world, "suspend")
    at = world.at(1)
    node.live.clear()
    world.runner.jobs.clear()
    world.spool.give_back(at)
    node.presence.draining = True
    world.turn(node, "control")
    assert ("held", None, 1) == world.where(1)
    assert "HU" == world.entry(1).held


def test_limits_are_changed_in_the_runner_and_in_the_name(world):
    node = started(world)
    ask(world, "edit", limit_s=7200, mem_mb=2000)
    world.turn(node)
    assert 7200 == world.entry(1).limit_s
    assert 2_000_000 == world.entry(1).wants["mem"]
    (said,) = world.runner.heard("limits")
    assert 7200 == said["limit_s"]


@pytest.mark.parametrize("who", ["daemon", "runner"])
def test_limits_that_the_runner_did_not_read_are_said_again(world, who):
    node = started(world, limit_s=3600)
    world.runner.deaf = True
    ask(world, "edit", limit_s=7200, mem_mb=2000)
    world.turn(node)
    assert (7200, []) == (world.entry(1).limit_s, world.requests())
    assert 3600 == world.runner.jobs[1, 1]["limit_s"]
    if who == "daemon":
        node = world.up()
    else:
        world.runner.gone = True
    settle(world, node)
    job = world.runner.jobs[1, 1]
    assert (7200, 2000) == (job["limit_s"], job["mem_mb"])
    assert 1 == len(world.runner.heard("limits")), "what is so need not be said"


@pytest.mark.parametrize(
    "bad",
    [
        {"verb": "edit", "limit_s": 90.5},
        {"verb": "edit", "limit_s": 10**12},
        {"verb": "edit", "limit_s": -1},
        {"verb": "edit", "mem_mb": "3G"},
        {"verb": "edit", "mem_mb": True},
        {"verb": "signal", "signal": 1000},
        {"verb": "dance"},
    ],
)
def test_nonsense_is_passed_over(world, bad):
    node = started(world)
    ask(world, **bad)
    settle(world, node)
    assert "running" == world.at(1).top
    assert [] == world.requests()
    assert [] == world.runner.heard("kill") + world.runner.heard("signal")


def test_a_signal_whose_file_cannot_be_removed_is_sent_once(world, monkeypatch):
    node = started(world)
    ask(world, "signal", signal=10)

    def refuse(*_):
        raise PermissionError(13, "no", "file")

    with monkeypatch.context() as patched:
        patched.setattr(node.spool, "answered", refuse)
        settle(world, node)
    assert 1 == len(world.runner.heard("signal"))
    settle(world, node)
    assert 1 == len(world.runner.heard("signal"))
    assert [] == os.listdir(f"{world.root}/nodes/n1/control")


def test_a_request_on_a_full_spool_is_about_one_attempt_too(world, monkeypatch):
    """Found by simulation: an empty file of the same requeue was obeyed by each new attempt."""
    world.submit()
    node = world.up()
    world.turn(node)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(fsops, "publish", full)
        world.spool.request("n1", "requeue", 1, {"attempt": 1}, "me")
    assert ["me.a1.1.requeue"] == world.requests()
    assert [{"verb": "requeue", "id": 1, "attempt": 1}] == [request for _, request in world.spool.requests("n1")]
