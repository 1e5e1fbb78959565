"""Looks at the spool are as rare as they are slow; but after one that hung for an hour the next is not a day away."""

import pytest

from spoolq import awaiting, fsops, host, intake
from tests.world import World

HOUR = 3600.0


@pytest.fixture
def hanging(monkeypatch):
    """Let the first listing by a name, of what is given, take an hour; the clock is the daemon's."""
    clock = [0.0]
    monkeypatch.setattr(host, "boottime", lambda real=host.boottime: real() + clock[0])

    def hang(what, name: str) -> None:
        def late(*args, real=getattr(what, name), **kwargs):
            found = real(*args, **kwargs)
            clock[0] += HOUR
            monkeypatch.setattr(what, name, real)
            return found

        monkeypatch.setattr(what, name, late)

    return hang


def soon(due: float) -> bool:
    return due - host.boottime() <= 61.0


def test_jobs_that_wait_for_their_time_and_for_others(world: World, hanging):
    node = world.up()
    hanging(node.begins, "list")
    node.set_due("begin times", 0.0)
    node.set_due("begins", 0.0)
    node.begins.step(host.boottime())
    assert soon(node.due_at("begin times"))
    hanging(node.dependents, "_remember")
    node.dependents.look(host.boottime())
    assert soon(node.due_at("held"))


def test_the_rest_of_a_long_queue(world: World, hanging, monkeypatch):
    monkeypatch.setattr("spoolq.queue.SCAN_LIMIT", 3)
    monkeypatch.setattr("spoolq.entry.BLOCK", 4)
    world.submit(12, user="anna")
    node = world.up()
    hanging(node.queue, "_find_far")
    node.queue.look(3)
    assert soon(node.queue._far[0])
    assert host.boottime() > HOUR


def test_a_command_that_waits(spool, monkeypatch):
    now, slept = [0.0], []
    monkeypatch.setattr(awaiting.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(awaiting.time, "sleep", lambda seconds: slept.append(seconds))
    monkeypatch.setattr(awaiting, "lost", lambda *_: {})

    def look(*_, **__):
        now[0] += HOUR if len(slept) == 1 else 0.001
        return {7: "ended"} if len(slept) == 3 else {}

    monkeypatch.setattr(awaiting, "ended_now", look)
    assert {7: "ended"} == awaiting.until_ended(spool, [7])
    assert max(slept) <= awaiting.MOST_S


def test_a_dropped_file_is_the_same_since_it_was_seen(world: World, monkeypatch):
    """A node that was held up before the first of two looks does not take what was written a moment ago."""
    node, clock = world.up(), [1000.0]
    node.intake.settle_s = 2.0
    monkeypatch.setattr(intake.time, "monotonic", lambda: clock[0])
    with open(f"{world.root}/drop/a.sh", "w") as file:
        file.write("#!/bin/sh\n")

    def late(path, real=fsops.look):
        monkeypatch.setattr(fsops, "look", real)
        clock[0] += 3.0
        return real(path)

    monkeypatch.setattr(fsops, "look", late)
    taken = [node.intake.step(clock[0])]
    for seconds in (0.5, 1.6):
        clock[0] += seconds
        taken.append(node.intake.step(clock[0]))
    assert [0, 0, 1] == taken
