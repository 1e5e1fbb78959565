"""
Every file operation of submitting and running an array, interrupted once: no task is lost, none runs twice.

As `test_crash_points` does for jobs; here the entries are chunks, and what counts is each task's start and line.
"""

import errno
import os
from collections.abc import Callable

import pytest

from spoolq import array, daemon, home, host, nested, recover, rerun, stored, tasks
from spoolq.daemon import Daemon
from spoolq.errors import SpoolqError
from spoolq.job import Job
from spoolq.spool import Spool
from tests.faults import Died, faulty
from tests.world import World

CHUNKS = ["a1-3", "a4"]


def submit(world: World, **facts: object) -> None:
    """Four tasks in two entries, as `spoolq sub` does."""
    spool = Spool(world.root)
    job = Job(**{"command": ("true",), "chdir": world.chdir, "array": "1-4", **facts})
    job_id = home.allocate(world.root)
    home.fill(world.root, job_id, stored.format_job(job), env=b"PATH=/bin\0", entry=False)
    entries = [job.entry(job_id)._replace(chunk=chunk) for chunk in CHUNKS]
    tasks.fill(world.root, job_id, [entry.name for entry in entries])
    spool.committed([spool.submit(job_id, entries[0])])
    world.acknowledged.append(job_id)


def recorded(world: World, job_id: int = 1) -> dict[int, str]:
    """Task -> state, of those that have a line."""
    return {n: str(line["state"]) for n, line in array.latest(tasks.of_tasks(tasks.read(world.root, job_id))).items()}


def check(world: World, *, starts: int = 1, lossy: bool = False) -> None:
    """Each task of an acknowledged array has ended well (`lossy`: but for its output), and was started once."""
    fine = {"exit0", "exit1"} if lossy else {"exit0"}
    for job_id in {at.entry.id for at in world.placed()} | set(world.acknowledged):
        mine = [at for at in world.placed() if at.entry.id == job_id]
        assert CHUNKS == sorted(at.entry.chunk for at in mine), mine
        assert {"done"} == {at.top for at in mine}, mine
        assert fine >= {at.entry.ending for at in mine}, mine
        assert [1, 2, 3, 4] == sorted(recorded(world, job_id))
        assert lossy or {"COMPLETED"} == set(recorded(world, job_id).values())
        for number in range(1, 5):
            keys = [key for key in world.runner.starts if key[0] == f"{job_id}_{number}"]
            assert 1 <= len(keys) <= starts, (number, keys)
    assert len(set(world.runner.starts)) == len(world.runner.starts), "an attempt was started twice"


def explore(
    tmp_path,
    monkeypatch,
    before: Callable[[World], object],
    act: Callable[[World], object],
    after: Callable[[World], object] = lambda world: None,
    *,
    error: int | None = None,
    starts: int = 1,
    verify: Callable[[World], None] | None = None,
) -> int:
    """Interrupt each call once, before and after its effect; recover; check. Returns the number of points."""
    world = World(str(tmp_path / "count"), monkeypatch)
    before(world)
    with faulty() as fake:
        act(world)
    points = 0
    for number in range(fake.count):
        for effect in (False, True):
            world = World(str(tmp_path / f"{number}{'a' if effect else 'b'}"), monkeypatch)
            before(world)
            with faulty(number, after=effect, error=error):
                try:
                    act(world)
                except (Died, OSError, SpoolqError):
                    points += 1
            try:
                after(world)
                world.serve()
                world.serve()
                if verify:
                    verify(world)
                else:
                    check(world, starts=starts, lossy=error is not None)
            except BaseException as problem:
                problem.add_note(f"call {number} of {fake.count}, {'after' if effect else 'before'} its effect")
                raise
            world.close()
    return points


def test_submitter_dies_at_every_call_and_all_of_the_array_is_there_or_nothing(tmp_path, monkeypatch):
    assert explore(tmp_path, monkeypatch, lambda w: None, submit) > 15


def test_daemon_dies_at_every_call_of_an_array(tmp_path, monkeypatch):
    points = explore(tmp_path, monkeypatch, submit, lambda w: w.serve())
    print(f"array: {points} crash points")
    assert points > 60


def test_daemon_dies_at_every_call_of_an_array_that_must_never_run_twice(tmp_path, monkeypatch):
    explore(tmp_path, monkeypatch, lambda w: submit(w, rerun="never"), lambda w: w.serve())


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.ESTALE])
def test_daemon_goes_on_when_any_call_for_an_array_fails_once(tmp_path, monkeypatch, code):
    monkeypatch.setattr(daemon, "RETRY_S", (0.0, 0.0))
    monkeypatch.setattr(recover, "FULL_S", 0)
    monkeypatch.setattr(Daemon, "pause", lambda self, seconds: self.set_due("beat", 0.0))  # time passes
    explore(tmp_path, monkeypatch, submit, lambda w: w.serve(), error=code)


def test_after_a_reboot_no_task_with_a_result_runs_again(tmp_path, monkeypatch):
    """The daemon dies and the machine with it: what was running is run again, as its rule says, and nothing else."""
    before: dict[str, set[int]] = {}

    def reboot(world: World) -> None:
        known = recorded(world) if os.path.isdir(home.path_of(world.root, 1)) else {}
        before[world.root] = set(known)
        begun = len(world.runner.starts)
        world.reboot()
        world.serve()
        again = {int(str(key[0]).partition("_")[2]) for key in world.runner.starts[begun:]}
        assert not again & set(known), (again, known)

    explore(tmp_path, monkeypatch, submit, lambda w: w.serve(), reboot, starts=2)
    assert any(len(known) not in (0, 4) for known in before.values())


def test_after_a_reboot_the_task_that_ran_is_lost_alone_if_it_must_never_run_again(tmp_path, monkeypatch):
    world = World(str(tmp_path / "w"), monkeypatch, ends=False)
    submit(world, rerun="never")
    node = world.up()
    world.turn(node)
    world.runner.end(("1_1", 1))
    for _ in range(3):
        world.turn(node)
    assert [("1_1", 1), ("1_2", 1), ("1_4", 1)] == sorted(world.runner.starts)
    world.reboot()
    world.runner.ends = True
    world.serve()
    world.serve()
    lost = {1: "COMPLETED", 2: "NODE_FAIL", 3: "COMPLETED", 4: "NODE_FAIL"}
    assert lost == recorded(world)
    assert [("1_1", 1), ("1_2", 1), ("1_3", 2), ("1_4", 1)] == sorted(world.runner.starts)
    assert {"nodefail"} == {at.entry.ending for at in world.placed()}


def running(world: World) -> None:
    """The first task of each chunk runs, and has submitted a job."""
    world.runner.ends = False
    submit(world)
    node = world.up()
    world.turn(node)
    assert [("1_1", 1), ("1_4", 1)] == sorted(world.runner.starts)
    for number, task in enumerate((1, 4), start=2):
        nested.record(world.spool, Job(command=("x",), parent=f"1_{task}"), number)
        world.submit(held="HU", parent=f"1_{task}")


DAEMONS: dict[str, Daemon] = {}  # by spool: those that are to die


def goes_on(world: World) -> None:
    """The daemon that is there takes some turns."""
    for _ in range(2):
        world.turn(DAEMONS[world.root], "queue", "control", "deliver")


def turns(world: World) -> None:
    """A new daemon of the node, for some turns."""
    node = world.up()
    for _ in range(2):
        world.turn(node, "queue", "control", "deliver")


def all_end(world: World) -> None:
    """What was asked for is done by a daemon; then all that runs ends."""
    turns(world)
    world.runner.end_running()


def test_a_task_that_lends_and_is_killed_with_its_children_by_a_daemon_that_dies_at_every_call(tmp_path, monkeypatch):
    """The chunk is renamed when its task begins to wait, and again; its other tasks, and what they submitted, go on."""
    monkeypatch.setattr(Daemon, "pause", lambda self, seconds: None)

    def before(world: World) -> None:
        running(world)
        facts = {"pid": os.getpid(), "start": host.process_identity(os.getpid()), "boot": host.boot_id()}
        world.spool.request("n1", "lend", 1, {"attempt": 1, "task": 1, **facts}, "0")
        node = DAEMONS[world.root] = world.up()
        world.turn(node, "control")
        assert node.live["1_1-3"].lends
        world.spool.request("n1", "kill", 1, {"attempt": 1, "chunk": "1-3", "task": 1}, "1")

    def verify(world: World) -> None:
        assert {1: "CANCELLED", 2: "COMPLETED", 3: "COMPLETED", 4: "COMPLETED"} == recorded(world)
        mine = [at for at in world.placed() if at.entry.id == 1]
        assert {("done", "cancelled"), ("done", "exit0")} == {(at.top, at.entry.ending) for at in mine}
        assert not any("L" in at.entry.other for at in mine)
        assert [("1_1", 1), ("1_2", 1), ("1_3", 1), ("1_4", 1)] == sorted(world.runner.starts)
        assert ("done", "cancelled") == world.where(2)[:2]
        assert "held" == world.where(3)[0]
        assert [] == world.requests()

    points = explore(tmp_path, monkeypatch, before, goes_on, all_end, verify=verify)
    print(f"a task with children is killed: {points} crash points")
    assert points > 40


def test_a_task_to_be_killed_whose_chunk_went_back_into_the_queue_is_not_run_and_the_others_are(tmp_path, monkeypatch):
    def before(world: World) -> None:
        submit(world)
        node = DAEMONS[world.root] = world.up()
        world.spool.mark_node("n1", "drain", on=True)  # it claims nothing
        world.spool.request("n1", "kill", 1, {"attempt": 1, "chunk": "1-3", "task": 2}, "1")
        node.presence.heed()

    def after(world: World) -> None:
        node = world.up()
        node.presence.heed()
        world.turn(node, "control")
        assert [] == world.requests()
        world.spool.mark_node("n1", "drain", on=False)

    def verify(world: World) -> None:
        assert {1: "COMPLETED", 2: "CANCELLED", 3: "COMPLETED", 4: "COMPLETED"} == recorded(world)
        assert [("1_1", 1), ("1_3", 1), ("1_4", 1)] == sorted(world.runner.starts)

    monkeypatch.setattr(Daemon, "pause", lambda self, seconds: None)
    assert explore(tmp_path, monkeypatch, before, goes_on, after, verify=verify) > 10


def test_a_task_that_took_too_much_memory_is_tried_again_with_more_whenever_the_daemon_dies(tmp_path, monkeypatch):
    monkeypatch.setattr(Daemon, "pause", lambda self, seconds: None)

    def before(world: World) -> None:
        world.runner.ends = False
        submit(world, retries=1, retry_mem="2x")
        node = DAEMONS[world.root] = world.up()
        world.turn(node)
        world.runner.ends = True
        world.runner.end(("1_4", 1), None, "oom: too much")
        world.runner.end(("1_1", 1))

    def verify(world: World) -> None:
        assert {1: "COMPLETED", 2: "COMPLETED", 3: "COMPLETED", 4: "COMPLETED"} == recorded(world)
        assert [("1_4", 1), ("1_4", 2)] == sorted(key for key in world.runner.starts if key[0] == "1_4")
        [again] = [at for at in world.placed() if at.entry.chunk == "a4"]
        asked = Job(command=("true",)).wants["mem"]
        assert (2, 2 * asked) == (again.entry.attempt, again.entry.wants["mem"])

    monkeypatch.setattr(rerun, "wait_s", lambda daemon, attempt: 0.0)
    points = explore(tmp_path, monkeypatch, before, goes_on, turns, verify=verify)
    assert points > 40


def test_after_a_reboot_a_task_that_was_to_be_killed_does_not_run_again_and_the_others_do(tmp_path, monkeypatch):
    world = World(str(tmp_path / "w"), monkeypatch, ends=False)
    submit(world)
    world.turn(world.up())
    world.spool.request("n1", "kill", 1, {"attempt": 1, "chunk": "1-3", "task": 1}, "1")
    world.reboot()
    world.runner.ends = True
    world.serve()
    world.serve()
    assert {1: "CANCELLED", 2: "COMPLETED", 3: "COMPLETED", 4: "COMPLETED"} == recorded(world)
    assert [("1_1", 1), ("1_2", 2), ("1_3", 2), ("1_4", 1), ("1_4", 2)] == sorted(world.runner.starts)
    assert [] == world.requests()


def test_a_task_whose_chunk_was_taken_away_holds_its_devices_until_it_ends(tmp_path, monkeypatch):
    world = World(str(tmp_path / "w"), monkeypatch, ends=False)
    submit(world)
    node = world.up(cpus=1)
    world.turn(node)
    [at] = [at for at in world.placed() if at.top == "running"]
    world.runner.jobs["1_1", 1]["devices"] = {"gpu": {"0": 1000}}
    world.spool.reap(at, "n2")  # another node thought this one lost
    recover.reconcile(node, list(world.runner.jobs.values()))
    assert {("1_1", 1): {"gpu": {"0": 1000}}} == node.bench.strays
    world.runner.end(("1_1", 1))
    node.hear()
    assert {} == node.bench.strays
