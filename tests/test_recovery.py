"""What a daemon does after something went wrong half-way: nothing is lost, nothing runs twice, nothing bad stops a node."""

import errno
import json
import os
import shutil

import pytest

from spoolq import claim, claims, daemon, deliver, fsops, home, host, recover
from spoolq.errors import TryAgain
from spoolq.fsops import Answer
from spoolq.spool import Spool
from tests.desk import node_json
from tests.faults import faulty
from tests.world import World


def refuse(*_, **__):
    """A spool that says no."""
    raise OSError(errno.EACCES, "no", "file")


def once(function, outcome):
    """The outcome at the first call, the function after that."""
    left = [outcome]

    def call(*args, **kwargs):
        return left.pop()(*args, **kwargs) if left else function(*args, **kwargs)

    return call


def unknown_but_done(function):
    """A rename whose reply is lost together with all that could tell: done, but UNKNOWN."""
    return lambda *args, **kwargs: (Answer.UNKNOWN, function(*args, **kwargs)[1])


def finished(world: World, job_id: int = 1, attempt: int = 1):
    """Its entry, done at this attempt."""
    assert ("done", "exit0", attempt) == world.where(job_id)


# --- memory and spool out of step


def test_a_job_whose_entry_was_renamed_unnoticed_still_ends_as_itself(world, monkeypatch):
    world.submit()
    node = world.up()
    world.turn(node)
    monkeypatch.setattr(node.spool, "edit", once(node.spool.edit, unknown_but_done(node.spool.edit)))
    world.spool.request("n1", "suspend", 1, {"attempt": 1}, "1")
    node.set_due("control", 0.0)
    node.step()
    assert world.entry(1).suspended
    assert not node.live[1].at.entry.suspended
    world.runner.end((1, 1))
    world.turn(node, "deliver")
    world.turn(node)
    finished(world)
    assert [(1, 1)] == world.runner.starts
    (record,) = [r for r in records(world) if r["gen"] == world.entry(1).gen]
    assert record["state"] == "COMPLETED"


def records(world: World) -> list[dict]:
    """All lines of history."""
    from spoolq import history

    return [r for name in world.spool.history_files() for r in history.parse(world.spool.read_history(name))]


def test_a_refusal_that_cannot_be_given_back_does_not_swallow_the_ends_behind_it(world, monkeypatch):
    world.submit(2)
    node = world.up()
    world.turn(node)
    del world.runner.jobs[1, 1]
    world.runner.out.append({"op": "refused", "id": 1, "attempt": 1, "why": "the lease is over"})
    world.runner.end((2, 1))
    monkeypatch.setattr(node.spool, "give_back", once(node.spool.give_back, refuse))
    node.turn()
    world.turn(node)
    finished(world, 2)
    assert not node.ended
    assert 1 not in node.live or world.runner.starts.count((1, 1)) == 2


@pytest.mark.parametrize("what", ["scratch", "message", "outputs"])
def test_a_claim_that_cannot_be_started_is_given_back(world, monkeypatch, what):
    world.submit()
    node = world.up()
    place = {"scratch": (node.scratch, "take"), "message": (node.launcher, "message"), "outputs": (os, "dup")}[what]
    monkeypatch.setattr(*place, once(getattr(*place), refuse))
    if what == "outputs":
        monkeypatch.setattr(node.family, "send", lambda message, fds=(): os.dup(0) if fds else None)
    world.turn(node)
    assert not node.live
    assert world.at(1).top in ("queue", "running")
    if what != "outputs":
        world.turn(node)
        world.turn(node)
        assert [(1, 1)] == world.runner.starts


def test_what_one_delivery_meets_does_not_stop_the_others(world, monkeypatch):
    world.submit(2)
    node = world.up()
    world.turn(node)
    shutil.rmtree(home.path_of(world.root, 1))
    world.runner.end((1, 1))
    world.runner.end((2, 1))
    world.turn(node)
    world.turn(node)
    finished(world, 1)
    finished(world, 2)
    assert not node.ended


def test_what_was_delivered_is_not_delivered_again_because_another_was_refused(world, monkeypatch):
    world.submit(2)
    node = world.up()
    world.turn(node)
    world.runner.end((1, 1))
    world.runner.end((2, 1))
    publish = home.publish_result

    def picky(root, job_id, data, **kwargs):
        if job_id == 2:
            refuse()
        publish(root, job_id, data, **kwargs)

    monkeypatch.setattr(home, "publish_result", picky)
    world.turn(node)
    assert [2] == [item.at.entry.id for item in node.ended]
    world.spool.requeue(world.at(1))  # by its user, meanwhile
    monkeypatch.setattr(home, "publish_result", publish)
    world.turn(node, "deliver")
    assert not node.ended
    assert not [n for n in os.listdir(home.path_of(world.root, 1)) if "late" in n]


def test_what_runs_is_told_by_the_runner_not_by_memory(world):
    world.submit()
    node = world.up()
    world.turn(node)
    node.drop_live(node.live[1])
    world.turn(node, "beat")
    node.turn()
    assert 1 in node.live
    world.runner.end((1, 1))
    world.turn(node)
    finished(world)


def test_what_is_left_in_reaping_is_decided_without_a_restart(world, monkeypatch):
    world.submit()
    node = world.up()
    world.turn(node)
    world.spool.request("n1", "requeue", 1, {"attempt": 1}, "1")
    monkeypatch.setattr(node.spool, "requeue", once(node.spool.requeue, lambda at, **_: (Answer.UNKNOWN, at)))
    world.turn(node)
    world.turn(node)
    world.turn(node)
    world.turn(node)
    assert [(1, 1), (1, 2)] == world.runner.starts


def test_a_spool_that_does_not_answer_while_the_runner_changes_is_no_reason_to_die(world, monkeypatch):
    world.submit()
    node = world.up()
    world.turn(node)
    world.runner.gone = True
    monkeypatch.setattr(node.spool, "on_node", once(node.spool.on_node, refuse))
    node.turn()
    node.turn()
    world.runner.end((1, 1))
    world.turn(node)
    finished(world)


def test_no_runner_within_patience_is_no_reason_to_die(world, monkeypatch):
    from spoolq.errors import TryAgain

    world.submit()
    node = world.up()
    world.turn(node)
    world.runner.gone = True

    def slow(*_, **__):
        raise TryAgain("the runner does not answer")

    monkeypatch.setattr(daemon, "Family", type("F", (), {"connect": once(world.runner.connect, slow)}))
    node.turn()
    node.turn()
    world.runner.end((1, 1))
    world.turn(node)
    finished(world)


def test_a_runner_that_leaves_as_the_next_daemon_says_hello_is_no_reason_to_die(world):
    """The daemon before had let it go: an idle node that was restarted at once ended with `Broken pipe`."""
    node = world.daemon()
    world.runner.gone = True
    node.begin()
    world.submit()
    world.turn(node)
    world.runner.end((1, 1))
    world.turn(node)
    finished(world)


def test_a_node_that_leaves_and_finds_no_runner_has_left_all_the_same(world):
    node = world.up()
    world.runner.gone = True
    assert 0 == node.close()
    assert "stopped" == world.spool.read_node("n1")["state"]


def test_a_stop_while_saying_hello_leaves_the_scratch_of_jobs_alone(world):
    world.submit()
    node = world.up()
    world.turn(node)
    scratch = node.live[1].scratch
    with open(f"{scratch}/precious", "w", encoding="ascii"):
        pass
    successor = world.daemon()
    successor.stopping = True
    successor.run()
    assert ["precious"] == os.listdir(scratch)


def test_a_claim_in_doubt_is_not_tried_again_after_it_was_given_back(world, monkeypatch):
    """The give-back may still be on its way when the entry seems to be ours once more."""
    world.submit()
    node = world.up(cpus=1)
    stale = node.queue.look()
    answer, claimed = world.spool.claim(stale[0], "n1")  # a claim given up on that the server carried out late
    assert answer is Answer.WON
    node.claims.add(claimed.entry.name)
    node.candidates = stale
    node.set_due("queue", host.boottime() + 100)
    monkeypatch.setattr(node.spool, "give_back", lambda at: (Answer.UNKNOWN, at))  # on its way
    recover.look_for_ghosts(node)
    node.turn()
    node.set_due("queue", host.boottime() + 100)
    node.turn()
    assert [] == world.runner.starts


def test_a_claim_in_doubt_is_not_listed_again(world, monkeypatch):
    world.submit()
    node = world.up()
    monkeypatch.setattr(node.spool, "claim", lambda at, name: (Answer.UNKNOWN, at._replace(place=f"running/{name}")))
    monkeypatch.setattr(claim, "settle_claims", lambda _: None)
    world.turn(node, "queue")
    assert 1 == len(node.unsettled)
    assert [] == node.queue.look()


# --- what was known of claims


def test_the_record_of_claims_keeps_what_may_still_arrive(tmp_path):
    record = claims.Claims(str(tmp_path), "boot")
    for number in range(2000):
        record.add(f"500.{number}.1.1~c1~x")
    record.keep({"500.3.1.1~c1~x"})
    assert "500.3.1.1~c1~x" in record
    assert "500.1999.1.1~c1~x" in record
    assert "500.4.1.1~c1~x" not in record
    again = claims.Claims(str(tmp_path), "boot")
    assert "500.1999.1.1~c1~x" in again
    assert "500.3.1.1~c1~x" in again


def test_a_ghost_is_on_record_also_when_the_record_is_shortened(world, monkeypatch):
    world.submit(rerun="never")
    node = world.up()
    for number in range(5000):
        node.claims.add(f"500.{number + 10}.1.1~c1~x")
    _, claimed = world.spool.claim(next(world.spool.waiting()), "n1")
    node.claims.names = {claimed.entry.name: None, **dict.fromkeys(node.claims.names)}
    monkeypatch.setattr(claims, "MOST_BYTES", 0)
    world.turn(node, "beat")
    world.turn(node)
    assert [(1, 1)] == world.runner.starts


def test_a_claim_that_cannot_be_recorded_is_not_tried(tmp_path, monkeypatch):
    record = claims.Claims(str(tmp_path), "boot")
    write = os.write
    monkeypatch.setattr(claims.os, "write", lambda fd, data: write(fd, data[:5]))
    with pytest.raises(OSError):
        record.add("500.1.1.1~c1~x")
    monkeypatch.setattr(claims.os, "write", write)
    assert "500.1.1.1~c1~x" not in record
    record.add("500.2.1.1~c1~x")
    assert "500.2.1.1~c1~x" in claims.Claims(str(tmp_path), "boot")


# --- what history proves


def gone(world: World) -> None:
    """The machine went down, and the end is in history only."""
    world.reboot()


def crash_after_recording(world: World, monkeypatch) -> None:
    """Job 1 ends and its line is written; then the daemon dies."""
    node = world.up()
    world.turn(node)
    world.runner.end((1, 1))
    with monkeypatch.context() as patched:
        patched.setattr(Spool, "finish", refuse)
        world.turn(node)
    assert 1 == len(records(world))
    gone(world)


def test_an_end_on_record_is_carried_out(world, monkeypatch):
    world.submit()
    crash_after_recording(world, monkeypatch)
    world.serve()
    finished(world)
    assert 1 == len(records(world))


def test_an_end_on_record_counts_also_for_an_entry_that_was_being_decided_about(world, monkeypatch):
    world.submit()
    crash_after_recording(world, monkeypatch)
    world.spool.reap(world.at(1), "n1")
    world.serve()
    finished(world)
    assert world.entry(1).gen in [record["gen"] for record in records(world)]
    os.unlink(f"{home.path_of(world.root, 1)}/result.json")
    assert "COMPLETED" == deliver.read_ending(world.spool, 1)["state"]
    assert 0 == deliver.read_ending(world.spool, 1)["exit_code"]


def test_a_line_about_another_rename_proves_nothing(world, monkeypatch):
    world.submit()
    crash_after_recording(world, monkeypatch)
    at = world.at(1)
    os.rename(f"{world.root}/{at.path}", f"{world.root}/running/n1/{at.entry._replace(gen=7).name}")
    world.runner.ends = True
    world.serve()
    finished(world, attempt=2)


def test_a_line_that_is_no_sound_result_proves_nothing(world, monkeypatch):
    world.submit()
    node = world.up()
    world.turn(node)
    line = {"id": 1, "attempt": 1, "gen": world.entry(1).gen + 1, "exit_code": 10**9}
    world.spool.record("2026-01-01", "n1", [json.dumps(line).encode() + b"\n"])
    gone(world)
    world.runner.ends = True
    world.serve()
    finished(world, attempt=2)


# --- rules


def test_a_job_that_was_fenced_runs_again_if_its_rule_allows_it(world):
    world.submit(rerun="yes")
    world.submit(rerun="certain")
    node = world.up()
    world.turn(node)
    world.runner.end((1, 1), None, "lost")
    world.runner.end((2, 1), None, "lost")
    world.turn(node)
    world.turn(node)
    assert [(1, 1), (2, 1), (1, 2)] == world.runner.starts
    assert ("done", "nodefail", 1) == world.where(2)


def test_a_requeue_that_was_interrupted_is_completed_whatever_the_rule(world):
    world.submit(rerun="never")
    node = world.up()
    world.turn(node)
    world.runner.end((1, 1), 143, "cancelled")
    world.spool.reap(world.at(1), "n1")  # as far as the daemon came
    successor = world.up()
    world.turn(successor)
    world.turn(successor)
    assert [(1, 1), (1, 2)] == world.runner.starts


def test_a_start_in_doubt_is_decided_about_and_then_forgotten(world):
    world.submit()
    node = world.up()
    world.turn(node)
    world.runner.jobs[1, 1] |= {"state": "doubtful", "stage": "doubtful"}
    node = world.up()
    assert ("queue", None, 2) == world.where(1)
    assert {} == world.runner.jobs


def test_a_result_is_set_aside_under_its_own_number(world):
    world.runner.ends = True
    world.submit()
    world.serve()
    at = world.at(1)
    for _ in range(2):  # two users ask at once; the second is late
        home.set_aside(world.root, 1, 1)
        if world.at(1).entry.attempt == 1:
            world.spool.requeue(at)
            world.serve()
    finished(world, attempt=2)
    assert 2 == json.loads(home.read_result(world.root, 1))["attempt"]
    with open(f"{home.path_of(world.root, 1)}/result.1.json", "rb") as file:
        assert 1 == json.load(file)["attempt"]


# --- nothing bad in the spool stops a node


def stray_file_in_queue(world):
    with open(f"{world.root}/queue/step.sh", "w", encoding="ascii") as file:
        file.write("#!/bin/sh\n")


def name_out_of_range(world):
    os.makedirs(f"{world.root}/queue/500.000000001", exist_ok=True)
    os.symlink("x", f"{world.root}/queue/500.000000001/500.7.0.1~c{'9' * 30}~x")


def directory_among_requests(world):
    os.makedirs(f"{world.root}/nodes/n1/control/kill")


def request_of_nonsense(world):
    os.makedirs(f"{world.root}/nodes/n1/control", exist_ok=True)
    for number, text in enumerate(('{"id": []}', '{"id": 1, "verb": "signal", "signal": "x"}', "[" * 60000, "{}")):
        with open(f"{world.root}/nodes/n1/control/{number}", "w", encoding="ascii") as file:
            file.write(text)


def directory_in_history(world):
    os.makedirs(f"{world.root}/history/2026-01-01.n1.jsonl")


def script_that_is_none(world):
    world.submit(script=True)
    os.makedirs(f"{home.path_of(world.root, world.acknowledged[-1])}/script")


def env_that_is_none(world):
    job_id = world.submit()
    path = f"{home.path_of(world.root, job_id)}/env"
    os.unlink(path)
    os.makedirs(path)


def another_nodes_nonsense(world):
    node_json(world.spool, "n2", capacity=5)
    with open(f"{world.root}/nodes/n3", "w", encoding="ascii") as file:
        file.write("no directory")
    with open(f"{world.root}/drop/nightly.sh", "w", encoding="ascii") as file:
        file.write("#!/bin/sh\ntrue\n#SPOOLQ end\n")


def admitted_nonsense(world):
    os.makedirs(f"{world.root}/nodes/n1/admit", exist_ok=True)
    with open(f"{world.root}/nodes/n1/admit/1~%00.sh", "w", encoding="ascii") as file:
        file.write("#!/bin/sh\ntrue\n")


def entry_without_room_for_its_end(world):
    entry = world.spool.find(world.acknowledged[0]).entry
    at = world.at(1)
    label = "x" * (200 - len(entry.name) + len(entry.label))
    os.rename(f"{world.root}/{at.path}", f"{world.root}/{at.place}/{entry._replace(label=label).name}")


@pytest.mark.parametrize(
    "bad",
    [
        stray_file_in_queue,
        name_out_of_range,
        directory_among_requests,
        request_of_nonsense,
        directory_in_history,
        script_that_is_none,
        env_that_is_none,
        another_nodes_nonsense,
        admitted_nonsense,
        entry_without_room_for_its_end,
    ],
)
def test_one_bad_thing_does_not_stop_a_node(world, bad):
    world.runner.ends = True
    world.submit()
    bad(world)
    world.submit()
    node = world.up()
    for _ in range(4):
        beats = node.presence.began
        world.turn(node)
        assert beats < node.presence.began
    for job_id in world.acknowledged:
        assert "done" == world.at(job_id).top
    finished(world, world.acknowledged[-1])


def test_a_job_of_a_newer_format_stays_for_newer_nodes(world):
    world.runner.ends = True
    newer = world.submit()
    with open(f"{home.path_of(world.root, newer)}/job", "w", encoding="ascii") as file:
        file.write('format = 99\ncommand = ["true"]\n')
    other = world.submit()
    node = world.up()
    world.turn(node)
    world.turn(node)
    assert "queue" == world.at(newer).top
    finished(world, other)


def test_what_cannot_be_taken_from_drop_stops_nothing_else(world, monkeypatch):
    world.submit()
    for name in ("a.sh", "b.sh"):
        with open(f"{world.root}/drop/{name}", "w", encoding="ascii") as file:
            file.write("#!/bin/sh\ntrue\n#SPOOLQ end\n")
    move = fsops.move
    monkeypatch.setattr(fsops, "move", lambda s, t, **k: refuse() if s.endswith("/a.sh") else move(s, t, **k))
    world.runner.ends = True
    node = world.up()
    beats = node.presence.began
    world.turn(node)
    world.turn(node)
    world.turn(node)
    assert beats < node.presence.began
    finished(world, 2)


@pytest.mark.parametrize("text", ['{"format": 99}\n', "x" * 100_000, "{"])
def test_a_bad_result_does_not_stop_a_node_after_a_reboot(world, text):
    world.runner.ends = True
    world.submit()
    world.serve()
    with open(f"{home.path_of(world.root, 1)}/result.json", "w", encoding="ascii") as file:
        file.write(text)
    world.reboot()
    world.submit()
    world.serve()
    finished(world, 2)


def test_a_result_that_nobody_was_left_to_write_is_written_after_a_reboot(world):
    """Found by simulation: committed, then the power fails before result.json, and the runner forgets with it."""
    world.runner.ends = True
    world.submit()
    world.serve()
    os.unlink(f"{home.path_of(world.root, 1)}/result.json")
    world.reboot()
    world.serve()
    assert b'"COMPLETED"' in home.read_result(world.root, 1)


def test_only_the_newest_results_are_looked_at_after_a_reboot(world, monkeypatch):
    world.runner.ends = True
    world.submit(6)
    world.serve()
    world.reboot()
    looked = []
    monkeypatch.setattr(recover, "REPAIR", 2)
    monkeypatch.setattr(home, "read_result", lambda root, job_id: looked.append(job_id))
    world.up()
    assert {5, 6} == set(looked)


def test_history_is_read_only_when_something_needs_it(world, monkeypatch):
    world.submit()
    node = world.up()
    world.turn(node)
    monkeypatch.setattr(Spool, "read_history", refuse)
    monkeypatch.setattr(recover, "journal_of_this_boot", lambda _: True)
    world.up()


def test_a_home_that_refuses_does_not_stop_a_node_that_starts(world, monkeypatch):
    """An end that was committed, its result.json not; and an attempt to run again whose old result cannot be moved."""
    world.submit(2)
    node = world.up()
    world.turn(node)
    world.runner.end((1, 1))
    with monkeypatch.context() as patched:
        patched.setattr(home, "publish_result", refuse)
        world.turn(node)
    assert ("done", "exit0", 1) == world.where(1)
    world.spool.reap(world.at(2), "n1")
    del world.runner.jobs[2, 1]
    with monkeypatch.context() as patched:
        patched.setattr(home, "publish_result", refuse)
        patched.setattr(home, "set_aside", refuse)
        world.up()
    assert ("queue", None, 2) == world.where(2)
    assert (1, 1) in world.runner.jobs  # to be tried again
    world.up()
    assert home.read_result(world.root, 1)
    assert (1, 1) not in world.runner.jobs


def test_a_result_that_could_not_be_written_when_the_node_started_is_written_while_it_serves(world, monkeypatch):
    """Found by simulation: the end is committed, a full spool refuses result.json once, and no restart follows."""
    world.submit()
    node = world.up()
    world.turn(node)
    world.runner.end((1, 1))
    with monkeypatch.context() as patched:
        patched.setattr(home, "publish_result", refuse)
        world.turn(node)
        assert ("done", "exit0", 1) == world.where(1)
        node = world.up()
    assert home.read_result(world.root, 1) is None
    for _ in range(2):
        world.turn(node)
    assert home.read_result(world.root, 1)
    assert (1, 1) not in world.runner.jobs


def test_a_requeue_that_says_no_attempt_is_carried_out_by_the_next_daemon(world):
    """Found by simulation: `touch control/x.1.requeue`, or a full spool, makes a request of nothing but its name."""
    world.submit()
    node = world.up()
    world.turn(node)
    with open(f"{world.root}/nodes/n1/control/x.1.requeue", "w", encoding="ascii"):
        pass
    node.set_due("control", 0.0)
    node.step()  # asks the runner to kill it, which it does; then the daemon dies
    assert "ended" == world.runner.jobs[1, 1]["state"]
    world.runner.ends = True
    world.serve()
    assert [(1, 1), (1, 2)] == world.runner.starts
    finished(world, attempt=2)


def test_a_requeue_that_says_no_attempt_ends_one_attempt_and_no_more(world):
    """Found by simulation: each new attempt was killed and queued again, for ever."""
    world.submit()
    node = world.up()
    world.turn(node)
    with open(f"{world.root}/nodes/n1/control/x.1.requeue", "w", encoding="ascii"):
        pass
    for _ in range(3):
        world.turn(node, "control")
        for _ in range(3):  # it is queued and started again before requests are looked at
            node.set_due("control", host.boottime() + 60)
            world.turn(node, "queue", "deliver")
    assert [(1, 1), (1, 2)] == world.runner.starts
    assert "running" == world.at(1).top
    assert [] == world.requests()


def test_a_file_whose_admission_was_carried_out_late_becomes_a_job_without_a_restart(world, monkeypatch):
    """Found by simulation: the rename fails, the file is still in drop/, and then the server does it."""
    from spoolq import intake

    node = world.up()
    world.turn(node)
    with open(f"{world.root}/nodes/n1/admit/1~a.sh", "w", encoding="ascii") as file:
        file.write("#!/bin/sh\ntrue\n#SPOOLQ end\n")
    world.turn(node)
    assert [] == world.entries()
    monkeypatch.setattr(intake, "LOOK_S", 0.0)
    node.intake._look_at = 0.0
    world.turn(node)
    assert [1] == [job_id for _, job_id in world.entries()]


def test_a_job_that_was_taken_over_and_ended_unheard_holds_nothing_here_any_more(world):
    """Found by simulation: suspended, its runner killed, the job taken over; its cpus were lent for ever."""
    world.submit(rerun="yes")
    node = world.up()
    world.turn(node)
    assert 1 in node.live
    world.runner.end((1, 1))
    world.runner.out.clear()
    world.spool.enter_node("n2")
    world.spool.reap(world.at(1), "n2")
    node.sure = False
    node.turn()
    assert {} == node.live


# --- two machines of one name


def test_the_daemon_that_beat_last_is_remembered_however_many_never_come_to_beat(world):
    """Found by simulation: on a full spool each look of a waiting daemon was one more, until it knew none but itself."""
    node = world.up()
    for _ in range(30):
        waiting = world.daemon()
        for _ in range(30):
            assert waiting.presence.arrive()
    with open(f"{world.state}/instance", encoding="ascii") as file:
        known = file.read().split()
    assert node.presence.instance in known
    assert len(known) == len(set(known)) < 30


def test_which_daemons_were_of_this_machine_is_known_after_a_power_loss(world):
    """Found by simulation: node.json and this file both torn, the node would wait for an operator for ever."""
    node = world.daemon()
    with faulty() as fake:
        assert node.presence.arrive()
    assert "fsync" in fake.log
    with open(f"{world.state}/instance", encoding="ascii") as file:
        assert node.presence.instance == file.read()


@pytest.fixture
def elsewhere(world, tmp_path, monkeypatch):
    """A daemon of the same name on a machine with a disk of its own; time passes as it waits."""
    os.makedirs(tmp_path / "elsewhere")
    twin = world.daemon(state=str(tmp_path / "elsewhere"))
    passed = [0.0]
    real, clear = host.boottime, twin.wake.clear
    monkeypatch.setattr(host, "boottime", lambda: real() + passed[0])

    def waited():
        passed[0] += 10.0
        return clear()

    monkeypatch.setattr(twin.wake, "clear", waited)
    monkeypatch.setattr(recover, "TWIN_S", 0)
    twin.passed = passed
    return twin


def test_a_machine_of_the_same_name_elsewhere_is_refused_while_jobs_lie_here(world, elsewhere):
    world.submit()
    node = world.up()
    world.turn(node)
    with pytest.raises(TryAgain, match="1 jobs of node n1 may still run on .* node-dead n1 --certain"):
        elsewhere.begin()
    assert "running" == world.at(1).top


def test_a_machine_of_the_same_name_that_beats_is_noticed(world, elsewhere, monkeypatch):
    node = world.up()
    monkeypatch.setattr(elsewhere.wake, "clear", node.presence.beat)
    with pytest.raises(TryAgain, match="another machine serves as node n1 now"):
        elsewhere.begin()


def test_a_machine_whose_predecessor_left_nothing_takes_its_place_after_long_silence(world, elsewhere):
    world.up()
    elsewhere.begin()
    assert elsewhere.passed[0] >= elsewhere.policy.dead_s


def test_a_machine_takes_the_jobs_of_its_predecessor_after_an_operators_word(world, elsewhere):
    world.submit()
    node = world.up()
    world.turn(node)
    world.runner.jobs.clear()
    world.spool.mark_node("n1", "dead", on=True, text=node.presence.instance)
    elsewhere.begin()
    assert ("queue", None, 2) == world.where(1)
    assert {} == world.spool.node_marks("n1")


def test_a_machine_cloned_from_this_disk_is_refused_while_the_first_one_beats(world, monkeypatch):
    """It has the machine's id and its state directory, and another boot."""
    world.submit()
    node = world.up()
    world.turn(node)
    monkeypatch.setattr(host, "boot_id", lambda: "99999999-of-the-clone")
    clone = world.daemon()
    monkeypatch.setattr(recover, "TWIN_S", 0)
    monkeypatch.setattr(clone.wake, "clear", node.presence.beat)
    with pytest.raises(TryAgain, match="another machine serves as node n1 now"):
        clone.begin()
    assert "running" == world.at(1).top


def test_who_finds_the_heartbeat_of_a_twin_claims_nothing(world):
    world.submit()
    node = world.up()
    world.spool.beat("n1", 17, "twin")
    node.set_due("queue", host.boottime() + 100)
    world.turn(node, "beat")
    node.set_due("queue", 0.0)
    node.turn()
    assert [] == world.runner.starts
    for _ in range(4):
        world.turn(node)
    assert [(1, 1)] == world.runner.starts


# --- nothing leaks


def test_a_thousand_turns_leave_no_descriptor_and_no_memory_of_jobs(world):
    world.runner.ends = True
    node = world.up()
    world.submit(3)
    for _ in range(4):
        world.turn(node)
    before = len(os.listdir("/proc/self/fd"))
    world.submit(60)
    for _ in range(80):
        world.turn(node)
    assert not node.live
    assert before == len(os.listdir("/proc/self/fd"))
    assert not node.ended
    assert not node.unsettled
    assert {} == world.runner.jobs
    world.check()


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.ESTALE])
def test_a_rename_in_doubt_at_any_point_of_a_requeue(world, tmp_path, monkeypatch, code):
    """Each rename of kill-and-run-again fails once, done or not done."""
    for number in range(6):
        for effect in (False, True):
            one = World(str(tmp_path / f"{code}.{number}{effect}"), monkeypatch, ends=False)
            one.submit()
            node = one.up()
            one.turn(node)
            one.spool.request("n1", "requeue", 1, {"attempt": 1}, "1")
            with faulty(number, after=effect, error=code, only="rename"):
                for _ in range(4):
                    one.turn(node)
            one.runner.ends = True
            for _ in range(4):
                one.turn(node)
            assert [(1, 1), (1, 2)] == one.runner.starts
            if "running" == one.runner.jobs.get((1, 2), {}).get("state"):
                one.runner.end((1, 2))
            one.turn(node)
            one.turn(node)
            finished(one, attempt=2)


# --- a spool that is not mounted for a while


def away(world: World) -> None:
    """Nothing is mounted: where the spool was there is an empty directory."""
    os.rename(world.root, world.root + ".away")
    os.mkdir(world.root)


def back(world: World) -> None:
    """It is there again."""
    shutil.rmtree(world.root)
    os.rename(world.root + ".away", world.root)


def test_a_job_that_ended_to_run_again_while_the_spool_was_away_runs_again_as_the_next_attempt(world):
    """Absence there is no answer: taken for one, the same attempt began twice (I2)."""
    world.submit()
    node = world.up()
    world.turn(node)
    node.live[1].requeue = True
    world.runner.end((1, 1), 143, "cancelled")
    away(world)
    world.turn(node)
    back(world)
    for _ in range(3):
        world.turn(node)
    assert [(1, 1), (1, 2)] == world.runner.starts


def test_a_new_runner_while_the_spool_is_away_forgets_no_end(world):
    world.submit(rerun="never")
    node = world.up()
    world.turn(node)
    world.runner.end((1, 1))
    node.sure = False
    away(world)
    world.turn(node)
    back(world)
    for _ in range(3):
        world.turn(node)
    finished(world)
    assert [(1, 1)] == world.runner.starts


def test_claims_on_record_stay_while_the_spool_is_away(world, monkeypatch):
    world.submit(2)
    node = world.up()
    world.turn(node)
    monkeypatch.setattr(claims, "MOST_BYTES", 0)
    monkeypatch.setattr(claims, "RECENT", 1)
    name = world.entry(1).name
    away(world)
    node.part("ghosts", recover.look_for_ghosts, node)
    back(world)
    assert name in node.claims


# --- what was found by rigs


def test_a_mount_that_goes_away_before_the_outputs_are_opened_fails_no_job(world, monkeypatch):
    """Found by soak: the claim was won, and then nothing was mounted there."""
    world.submit()
    node = world.up()
    away = f"{world.root}.away"

    def vanish(*_):
        os.rename(world.root, away)
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "stdout")

    with monkeypatch.context() as patched:
        patched.setattr(node.launcher, "open_outputs", vanish)
        world.turn(node)
    os.rename(away, world.root)
    assert "done" != world.at(1).top
    for _ in range(3):
        world.turn(node)
    assert [(1, 1)] == world.runner.starts


def test_the_claim_of_a_job_that_may_never_run_twice_is_durable_before_it_starts(world, monkeypatch):
    """Found by simulation: a spool on the node's own disk, and a power loss soon after the claim."""
    world.submit(rerun="never")
    world.submit(rerun="certain")
    node = world.up()
    said, real = [], fsops.sync_directory
    monkeypatch.setattr(fsops, "sync_directory", lambda path: (said.append(path), real(path)))
    monkeypatch.setattr(node.family, "send", lambda message, *_: said.append(message.get("id")))
    world.turn(node, "queue")
    assert said.index(f"{world.root}/running/n1") < said.index(1)
    assert 1 == said.count(f"{world.root}/running/n1")


def test_a_slow_result_does_not_replace_that_of_a_later_attempt(world):
    """Found by simulation: the daemon stood still between its commit and result.json, and a user asked for another run."""
    world.submit()
    world.runner.ends = True
    node = world.up()
    world.turn(node)
    world.turn(node)
    first = home.read_result(world.root, 1)
    home.set_aside(world.root, 1, 1)
    world.spool.requeue(world.at(1))
    world.turn(node)
    world.turn(node)
    assert ("done", "exit0", 2) == world.where(1)
    home.publish_result(world.root, 1, first, sync=False)
    assert 2 == deliver.read_ending(world.spool, 1)["attempt"]
    assert [] == [name for name in os.listdir(f"{world.root}/jobs/0/1") if name.startswith(".t.")]


def test_a_result_replaces_that_of_an_earlier_attempt_and_a_torn_one(world):
    job_id = world.submit()
    for text in (b'{"attempt": 1}\n', b'{"attempt": 2}\n'):
        home.publish_result(world.root, job_id, text, sync=False)
        assert text == home.read_result(world.root, job_id)
    assert os.path.exists(f"{world.root}/jobs/0/1/result.1.json")
    with open(f"{world.root}/jobs/0/1/result.json", "w", encoding="ascii") as file:
        file.write('{"att')
    home.publish_result(world.root, job_id, b'{"attempt": 2}\n', sync=False)
    assert b'{"attempt": 2}\n' == home.read_result(world.root, job_id)


def test_a_torn_result_that_could_not_be_repaired_at_once_is_repaired_with_the_next_beat(world, monkeypatch):
    """Found by simulation: the one try after the power loss was refused."""
    world.runner.ends = True
    world.submit()
    world.serve()
    with open(f"{world.root}/jobs/0/1/result.json", "w", encoding="ascii"):
        pass
    world.reboot()
    with monkeypatch.context() as patched:
        patched.setattr(home, "publish_result", refuse)
        node = world.up()
    for _ in range(2):
        world.turn(node)
    assert b'"COMPLETED"' in home.read_result(world.root, 1)
