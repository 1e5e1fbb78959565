"""
Every file operation of submitting, claiming, starting, finishing, cancelling and admitting, interrupted once.

Each scenario runs once to count its calls to the file system, then once per call dying just before it
and once dying just after it took effect, then a new daemon recovers and the invariants are checked:
every acknowledged job ended exactly once, was started exactly once, and its result can be read.
"""

import errno
import os
from collections.abc import Callable
from typing import Any

import pytest

from spoolq import amend, daemon, deliver, history, host, intake, measure, recover, steer
from spoolq.daemon import Daemon
from spoolq.errors import SpoolqError
from spoolq.fsops import Answer
from spoolq.spool import Spool
from tests.fake_family import FakeRunner
from tests.faults import Died, faulty
from tests.world import World

# an interruption after these leaves what one before them leaves
LOOKS = frozenset("read close readlink listdir lstat fstat statvfs fsync".split())


def calls_of(world: World, before: Callable[[World], object], act: Callable[[World], object]) -> list[str]:
    """The calls that a scenario makes."""
    before(world)
    with faulty() as fake:
        act(world)
    return fake.log


def explore(
    tmp_path,
    monkeypatch,
    before,
    act,
    after=lambda world: None,
    error: int | None = None,
    starts: int = 1,
    kind: type[World] = World,
) -> int:
    """
    Die at every call, before and after it; recover; check. Returns the number of points.

    Args:
        after: what else must hold, between two daemons that serve until nothing is left to do.
        starts: of one job, at most.
        kind: of world.
    """
    log = calls_of(kind(str(tmp_path / "count"), monkeypatch), before, act)
    calls, points = len(log), 0
    for number, name in enumerate(log):
        for effect in (False, True)[: 1 + (name not in LOOKS)]:
            world = kind(str(tmp_path / f"{number}{'a' if effect else 'b'}"), monkeypatch)
            before(world)
            with faulty(number, after=effect, error=error):
                try:
                    act(world)
                except (Died, OSError, SpoolqError):
                    points += 1
            try:
                world.serve()
                after(world)
                world.serve()
                world.check(starts=starts)
            except BaseException as problem:
                problem.add_note(f"call {number} of {calls}, {'after' if effect else 'before'} its effect")
                raise
            world.close()
    return points


def test_submitter_dies_at_every_call(tmp_path, monkeypatch):
    points = explore(tmp_path, monkeypatch, lambda w: None, lambda w: w.submit(2))
    print(f"submit: {points} crash points")
    assert points > 30


def test_daemon_dies_at_every_call(tmp_path, monkeypatch):
    """Claim, start, finish: the whole life of three jobs on a node with room for two."""
    points = explore(tmp_path, monkeypatch, lambda w: w.submit(3), lambda w: w.serve())
    print(f"claim, start, finish: {points} crash points")
    assert points > 100


MORE = [pytest.param(code, marks=pytest.mark.more) for code in (errno.EIO, errno.EACCES)]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.ESTALE, *MORE])
def test_daemon_goes_on_when_any_call_fails_once(tmp_path, monkeypatch, code):
    monkeypatch.setattr(daemon, "RETRY_S", (0.0, 0.0))
    monkeypatch.setattr(recover, "FULL_S", 0)
    monkeypatch.setattr(Daemon, "pause", lambda self, seconds: self.set_due("beat", 0.0))  # time passes
    explore(tmp_path, monkeypatch, lambda w: w.submit(1), lambda w: w.serve(), error=code)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS])
def test_a_submission_that_fails_is_there_whole_or_not_at_all(tmp_path, monkeypatch, code):
    explore(tmp_path, monkeypatch, lambda w: None, lambda w: w.submit(1), error=code)


def cancel_all(world: World) -> None:
    """As `spoolq kill` of waiting jobs."""
    spool = Spool(world.root)
    for at in list(spool.waiting()):
        assert deliver.finish_unstarted(spool, at, "cancelled", "by its user", "cli") is Answer.WON


def test_canceller_dies_at_every_call(tmp_path, monkeypatch):
    points = explore(tmp_path, monkeypatch, lambda w: w.submit(2), cancel_all)
    print(f"cancel: {points} crash points")
    assert points > 10


def drop(world: World) -> None:
    """A dropped script, already settled: it ends with the trailer."""
    with open(f"{world.root}/drop/nightly.sh", "w", encoding="ascii") as file:
        file.write("#!/bin/sh\ntrue\n#SPOOLQ end\n")


def test_admission_dies_at_every_call(tmp_path, monkeypatch):
    """The dropped file becomes exactly one job, whatever happens in between."""

    def one_job(world: World) -> None:
        ids = {job_id for _, job_id in world.entries()}
        assert 1 == len(ids), ids
        assert [] == [n for n in os.listdir(f"{world.root}/drop") if not n.endswith(".id")]

    points = explore(tmp_path, monkeypatch, drop, lambda w: w.serve(), after=one_job)
    print(f"admission: {points} crash points")
    assert points > 50


def test_admission_goes_on_when_any_call_fails_once(tmp_path, monkeypatch):
    """What cannot be read now is no bad job: it is looked at again, not rejected."""
    monkeypatch.setattr(daemon, "RETRY_S", (0.0, 0.0))
    monkeypatch.setattr(recover, "FULL_S", 0)
    monkeypatch.setattr(intake, "REFUSED_S", 0.0)
    monkeypatch.setattr(Daemon, "pause", lambda self, seconds: [self.set_due(what, 0.0) for what in ("beat", "drop")])

    def one_job(world: World) -> None:
        assert [] == [name for name in os.listdir(f"{world.root}/rejected") if name.endswith(".why")]
        assert 1 == len({job_id for _, job_id in world.entries()})

    explore(tmp_path, monkeypatch, drop, lambda w: w.serve(), after=one_job, error=errno.EIO)


def test_every_rename_whose_reply_is_lost(tmp_path, monkeypatch):
    """ENOENT from a rename that happened, at each rename of a whole life."""
    calls = 0
    world = World(str(tmp_path / "count"), monkeypatch)
    drop(world)
    with faulty(only="rename") as fake:
        world.submit(2)
        world.serve()
    calls = fake.count
    for number in range(calls):
        world = World(str(tmp_path / str(number)), monkeypatch)
        drop(world)
        with faulty(number, after=True, error=errno.ENOENT, only="rename"):
            world.submit(2)
            world.serve()
        world.serve()
        world.check()
        assert 3 == len(world.entries())
    assert calls > 10


# --- users' transitions, each at every call


def act_on(step: Callable[[Spool, Any], Any], job_id: int = 1) -> Callable[[World], None]:
    """As the commands do to one job, wherever it is."""

    def act(world: World) -> None:
        spool = Spool(world.root)
        steer.do(spool, spool.find(job_id), step)

    return act


def submit_one(world: World) -> None:
    world.submit()


def submit_held(world: World) -> None:
    world.submit()
    act_on(steer.hold_step)(world)


def release(world: World) -> None:
    """Let go of what was held, for the end; it may have been run already."""
    if world.at(1).top == "held":
        act_on(steer.release_step)(world)


def test_the_node_that_keeps_a_place_dies_at_every_call(tmp_path, monkeypatch):
    """A reservation stands or does not; the job for which a place is kept runs once, and its name says nothing of it then."""

    def submit(world: World) -> None:
        world.submit()
        world.submit(wants={"cpus": 2000, "mem": 1000})
        world.submit(2)

    def plain(world: World) -> None:
        assert [] == [at for at in world.placed() if at.top != "queue" and at.entry.other]

    reserved: list[str] = []
    transfer = Spool.transfer

    def seen(self: Spool, at: Any, top: str, entry: Any, node: str = "") -> Any:
        reserved.extend(fact for fact in entry.other if top == "queue")
        return transfer(self, at, top, entry, node)

    monkeypatch.setattr(Spool, "transfer", seen)
    assert explore(tmp_path, monkeypatch, submit, lambda w: w.serve(), after=plain) > 100
    assert "R=n1" in reserved


def test_holder_dies_at_every_call(tmp_path, monkeypatch):
    assert explore(tmp_path, monkeypatch, submit_one, act_on(steer.hold_step), after=release) >= 2


def test_releaser_dies_at_every_call(tmp_path, monkeypatch):
    assert explore(tmp_path, monkeypatch, submit_held, act_on(steer.release_step), after=release) >= 2


def test_editor_dies_at_every_call(tmp_path, monkeypatch):
    changes = {"mem": "2G", "time": "2h", "priority": "10"}
    fields = amend.parse(changes)

    def edit(spool: Spool, placed: Any) -> Any:
        return amend.edit_step(spool, placed, changes, fields, {})

    assert explore(tmp_path, monkeypatch, submit_one, act_on(edit)) >= 2


def run_one(world: World) -> None:
    world.submit()
    world.serve()


def test_requeuer_of_a_done_job_dies_at_every_call(tmp_path, monkeypatch):
    points = explore(tmp_path, monkeypatch, run_one, lambda world: act_on(steer.requeue_step())(world), starts=2)
    assert points >= 6


# --- the node, asked to do something to a running job, at every call


def running(*verbs: str) -> Callable[[World], None]:
    """A job that runs, and requests to its node, one after the other."""

    def before(world: World) -> None:
        world.runner.ends = False
        world.submit(2)
        node = world.up()
        world.turn(node)
        assert 2 == len(world.runner.starts)
        for number, verb in enumerate(verbs):
            world.spool.request("n1", verb, 1, {"attempt": 1, "limit_s": 7200}, str(number))

    return before


def one_daemon(world: World) -> None:
    """A new daemon of the node, for some turns."""
    node = world.up()
    for _ in range(3):
        world.turn(node, "queue", "control", "deliver")


def then_all_end(verify: Callable[[World], None]) -> Callable[[World], None]:
    """What was asked for has come true; then the jobs that still run end."""

    def after(world: World) -> None:
        verify(world)
        world.runner.end_running()

    return after


def explore_node(tmp_path, monkeypatch, before, verify, *, starts: int = 1) -> int:
    """Kill the daemon at every call; its successor must make true what `verify` says."""
    monkeypatch.setattr(Daemon, "pause", lambda self, seconds: None)
    monkeypatch.setattr(World, "serve", serve_by_turns)
    return explore(tmp_path, monkeypatch, before, one_daemon, after=then_all_end(verify), starts=starts)


def serve_by_turns(world: World) -> None:
    """As many turns as it takes; jobs may run on."""
    node = world.up()
    for _ in range(4):
        world.turn(node, "queue", "control", "deliver")


def test_node_dies_at_every_call_of_a_kill(tmp_path, monkeypatch):
    def verify(world: World) -> None:
        assert ("done", "cancelled", 1) == world.where(1)
        assert "running" == world.at(2).top
        assert [] == world.requests()

    assert explore_node(tmp_path, monkeypatch, running("kill"), verify) > 50


def test_node_dies_at_every_call_of_a_requeue(tmp_path, monkeypatch):
    def verify(world: World) -> None:
        assert [(1, 1), (1, 2)] == [key for key in world.runner.starts if key[0] == 1]
        assert [] == world.requests()

    assert explore_node(tmp_path, monkeypatch, running("requeue"), verify, starts=2) > 50


def test_node_dies_at_every_call_of_suspend_resume_suspend(tmp_path, monkeypatch):
    def verify(world: World) -> None:
        assert "paused" == world.runner.jobs[1, 1]["stage"]
        assert world.entry(1).suspended
        assert [] == world.requests()

    assert explore_node(tmp_path, monkeypatch, running("suspend", "resume", "suspend"), verify) > 50


def test_node_dies_at_every_call_of_an_edit(tmp_path, monkeypatch):
    def verify(world: World) -> None:
        assert 7200 == world.entry(1).limit_s
        assert [] == world.requests()

    assert explore_node(tmp_path, monkeypatch, running("edit"), verify) > 50


# --- another node is lost, and an attempt that is tried again

BEAT_S = 20.0


class Two(World):
    """Nodes n1 and n2 with a runner each and one clock, which goes on while a daemon waits."""

    def __init__(self, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(path, monkeypatch)
        self.now, self.begun = 1000.0, dict[str, FakeRunner]()
        monkeypatch.setattr(daemon, "Family", self)
        monkeypatch.setattr(host, "boottime", lambda: self.now)
        monkeypatch.setattr(Daemon, "pause", lambda _daemon, seconds: setattr(self, "now", self.now + 1))

    def connect(self, state_dir: str, **_: object) -> Any:
        """As `Family.connect`; what n2 ran is not known to the runner of n1."""
        made = self.begun.setdefault(state_dir, FakeRunner(ends=state_dir == self.state))
        self.runner = self.begun.get(self.state, made)
        return made.connect(state_dir)

    def serve(self) -> None:
        """A daemon of n1, until the other has been still for long enough and nothing is left to do."""
        node = self.up(idle_exit_s=None)
        for _ in range(8):
            self.now += BEAT_S
            self.turn(node, "queue", "control", "deliver", "beat")


def lost(rule: str) -> Callable[[World], None]:
    """A job of each rule ran on n2, of which nothing more is heard; an operator says that it is off."""

    def before(world: World) -> None:
        world.submit(rerun=rule)
        node = world.up("n2", state=f"{world.root}.n2", idle_exit_s=None)
        world.turn(node)
        assert ["running/n2"] == [at.place for at in world.placed()]
        spool = Spool(world.root)
        spool.mark_node("n2", "dead", on=True, text=spool.read_beat("n2")[1])

    return before


@pytest.mark.parametrize("rule", ["never", "certain"])
def test_whoever_takes_over_from_a_lost_node_dies_at_every_call(tmp_path, monkeypatch, rule):
    """Listed, taken into reaping/n1, decided: by this daemon, or by the next."""

    def act(world: World) -> None:
        node = world.up(idle_exit_s=None)
        for _ in range(5):
            world.now += BEAT_S
            world.turn(node, "beat")

    def verify(world: World) -> None:
        again = rule == "certain"
        assert (("done", "exit0", 2) if again else ("done", "nodefail", 1)) == world.where(1)
        assert [(1, 2)] * again == sorted(world.begun[world.state].starts)

    assert explore(tmp_path, monkeypatch, lost(rule), act, after=verify, kind=Two) > 60


def test_a_node_whose_job_is_tried_again_dies_at_every_call(tmp_path, monkeypatch):
    """It failed: through reaping/ into held/, a line of history, and released when it has waited."""

    class Fails(FakeRunner):
        def end(self, key: tuple[int, int], exit_code: int | None = 0, reason: str = "") -> None:
            super().end(key, 3 if key[1] == 1 else 0, reason)

    class Failing(Two):
        def connect(self, state_dir: str, **_: object) -> Any:
            self.begun.setdefault(state_dir, Fails())
            return super().connect(state_dir)

        def serve(self) -> None:
            node = self.up(idle_exit_s=None)
            for _ in range(5):
                self.now += BEAT_S
                self.turn(node, "queue", "deliver", "beat", "retries")

    def act(world: World) -> None:
        node = world.up(idle_exit_s=None)
        for _ in range(3):
            world.now += BEAT_S
            world.turn(node, "queue", "deliver")

    def verify(world: World) -> None:
        assert ("done", "exit0", 2) == world.where(1)
        assert [(1, 1), (1, 2)] == world.begun[world.state].starts
        spool = Spool(world.root)
        lines = [record for name in spool.history_files() for record in history.parse(spool.read_history(name))]
        assert {(1, 3), (2, 0)} <= {(record["attempt"], record["exit_code"]) for record in lines}

    def before(world: World) -> None:
        world.submit(retries=1)

    assert explore(tmp_path, monkeypatch, before, act, after=verify, starts=2, kind=Failing) > 60


@pytest.mark.parametrize("foreign", [9.0, 0.0])
def test_node_dies_at_every_call_of_stepping_aside_and_going_on(tmp_path, monkeypatch, foreign):
    """Two jobs under overload, or one of them aside and the load gone: name and runner agree in the end."""

    def overloaded(world: World, foreign: float) -> None:
        node = world.up()
        node.policy = node.policy._replace(overload_suspend=True)
        node.gauge.hysteresis.hold_s = 0.0
        node.gauge.meter._foreign = foreign
        for now in range(3):
            world.turn(node, "queue", "control", "deliver")
            measure.relieve(node, float(now))

    def before(world: World) -> None:
        running()(world)
        if not foreign:
            overloaded(world, 9.0)
            assert world.entry(2).aside

    def verify(world: World) -> None:
        for job_id in (1, 2):
            entry, stage = world.entry(job_id), world.runner.jobs[job_id, 1]["stage"]
            assert ("paused" if entry.suspended else "running") == stage, (entry.name, stage)
            assert entry.suspended == entry.aside
        assert not world.entry(1).suspended
        node = world.daemon()
        recover.come_up(node)
        recover.compare_notes(node)
        measure.relieve(node, 1.0)  # the site has turned it off: nobody is left behind
        assert "running" == world.runner.jobs[2, 1]["stage"]
        assert not world.entry(2).suspended

    monkeypatch.setattr(Daemon, "pause", lambda self, seconds: None)
    monkeypatch.setattr(World, "serve", lambda world: overloaded(world, foreign))
    points = explore(
        tmp_path, monkeypatch, before, lambda world: overloaded(world, foreign), after=then_all_end(verify)
    )
    assert points > 10


# --- what was left behind


@pytest.mark.parametrize("rule", ["never", "certain", "yes"])
def test_node_dies_at_every_call_after_a_reboot(tmp_path, monkeypatch, rule):
    """Nothing runs any more, and nothing is on record of this boot."""

    def before(world: World) -> None:
        world.runner.ends = False
        world.submit(2, rerun=rule)
        node = world.up()
        world.turn(node)
        assert 2 == len(world.runner.starts)
        world.runner.ends = True
        world.reboot()

    def verify(world: World) -> None:
        once = world.runner.starts[:2]
        if rule == "never":
            assert [("done", "nodefail", 1)] * 2 == [world.where(1), world.where(2)]
            assert [(1, 1), (2, 1)] == world.runner.starts
        else:
            assert {(1, 1), (2, 1), (1, 2), (2, 2)} == set(world.runner.starts)
            assert 2 == world.entry(1).attempt == world.entry(2).attempt
        assert [(1, 1), (2, 1)] == once

    points = explore(tmp_path, monkeypatch, before, lambda w: w.serve(), after=verify, starts=2)
    assert points > 50


def test_node_dies_at_every_call_of_a_give_back(tmp_path, monkeypatch):
    """The runner refuses a start: it goes back, and starts once, later."""

    def before(world: World) -> None:
        world.submit(2)
        world.runner.refuses = True

    def refused(world: World) -> None:
        node = world.up()
        world.turn(node)
        node.turn()
        world.runner.refuses = False
        for _ in range(2):
            world.turn(node, "queue", "deliver")

    def verify(world: World) -> None:
        assert [(1, 1), (2, 1)] == sorted(world.runner.starts)

    monkeypatch.setattr(Daemon, "pause", lambda self, seconds: None)

    def act(world: World) -> None:
        try:
            refused(world)
        finally:
            world.runner.refuses = False

    points = explore(tmp_path, monkeypatch, before, act, after=verify)
    assert points > 50


def test_claims_that_an_earlier_daemon_made_are_given_back_at_every_call(tmp_path, monkeypatch):
    """Claimed, on record, and never told to the runner."""

    def before(world: World) -> None:
        world.submit(2, rerun="never")
        node = world.up()
        for at in list(world.spool.waiting()):
            node.claims.add(at.entry.next().name)
            assert world.spool.claim(at, "n1")[0] is Answer.WON

    def verify(world: World) -> None:
        assert [(1, 1), (2, 1)] == sorted(world.runner.starts)

    assert explore(tmp_path, monkeypatch, before, lambda w: w.serve(), after=verify) > 50


def test_a_part_that_always_fails_keeps_back_no_other(tmp_path, monkeypatch):
    """Requests cannot be read, for ever: jobs are started and delivered, and the node beats."""

    def refuse(_daemon: Daemon) -> None:
        raise OSError(errno.EIO, "no answer")

    monkeypatch.setattr(daemon.control, "obey", refuse)
    monkeypatch.setattr(Daemon, "pause", lambda self, seconds: None)
    world = World(str(tmp_path / "w"), monkeypatch)
    world.submit(2)
    world.serve()
    world.check()
