"""The commands that change jobs and nodes."""

import json

import pytest

from spoolq import deliver, fsops, home, steer
from spoolq.errors import UsageError
from spoolq.fsops import Answer
from spoolq.spool import Spool
from spoolq.state import State
from tests.desk import DEAD_PID, end, here, node_json, put, run, value


@pytest.fixture
def call(spool):
    """Call a command on the spool."""
    return lambda command, *words: getattr(steer, command)(["--spool", spool.root, *words])


def requests(spool, node="n1"):
    return [request for _, request in spool.requests(node)]


# --- kill


def test_kill_ends_a_waiting_job_with_result_and_history(spool, call):
    put(spool)
    assert 0 == call("kill", "1")
    placed = spool.find(1)
    assert State.CANCELLED is placed.state
    assert "CANCELLED" == json.loads(home.read_result(spool.root, 1))["state"]
    assert 1 == len(spool.history_files())


def test_kill_asks_the_node_of_a_running_job(spool, call):
    run(spool, put(spool))
    node_json(spool)
    assert 0 == call("kill", "1")
    [request] = requests(spool)
    assert ("kill", 1, 1) == (request["verb"], request["id"], request["attempt"])
    assert State.RUNNING is spool.find(1).state


def test_kill_with_a_signal_goes_to_running_jobs_only(spool, call, capsys):
    run(spool, put(spool))
    put(spool)
    assert 0 == call("kill", "1", "2", "-s", "usr1")
    assert [("signal", 10)] == [(r["verb"], r["signal"]) for r in requests(spool)]
    assert "job 2: is not running" in capsys.readouterr().err
    assert State.PENDING is spool.find(2).state


@pytest.mark.parametrize("word", ["WINCHESTER", "0", "99", ""])
def test_an_unknown_signal_is_refused(call, word):
    with pytest.raises(UsageError):
        call("kill", "1", "-s", word)


def test_kill_of_an_ended_job_says_so_and_fails_only_if_nothing_else_was_done(spool, call, capsys):
    end(spool, run(spool, put(spool)))
    put(spool)
    assert 1 == call("kill", "1")
    assert "has already ended (COMPLETED, exit0)" in capsys.readouterr().err
    assert 0 == call("kill", "1", "2")


def test_a_missing_job_gives_1_and_the_others_are_killed(spool, call, capsys):
    put(spool)
    assert 1 == call("kill", "9", "1")
    assert "job 9: no such job" in capsys.readouterr().err
    assert State.CANCELLED is spool.find(1).state


def test_kill_follows_a_job_that_starts_meanwhile(spool, call, monkeypatch):
    put(spool)
    real = deliver.finish_unstarted

    def claimed_first(at_spool, placed, *rest):
        if placed.top == "queue" and spool.find(1).top == "queue":
            run(spool, placed)
        return real(at_spool, placed, *rest)

    monkeypatch.setattr(deliver, "finish_unstarted", claimed_first)
    assert 0 == call("kill", "1")
    assert ["kill"] == [request["verb"] for request in requests(spool)]


def test_kill_whose_answer_was_lost_is_looked_up(spool, call, monkeypatch):
    put(spool)
    real = Spool.finish
    monkeypatch.setattr(Spool, "finish", lambda *args: (Answer.UNKNOWN, real(*args)[1]))
    assert 0 == call("kill", "1")
    assert State.CANCELLED is spool.find(1).state
    assert home.read_result(spool.root, 1)


def test_kill_gives_up_on_a_job_that_is_always_somewhere_else(spool, call, monkeypatch, capsys):
    put(spool)
    monkeypatch.setattr(Spool, "finish", lambda _self, at, _ending: (Answer.LOST, at))
    assert 1 == call("kill", "1")
    assert "try again" in capsys.readouterr().err


def test_without_words_and_filters_nothing_is_killed(spool, call):
    put(spool)
    with pytest.raises(UsageError, match="which jobs"):
        call("kill")
    assert State.PENDING is spool.find(1).state


def test_kill_all_and_filters_mean_ones_own_jobs(spool, call):
    put(spool, user="somebody")
    put(spool)
    put(spool, held="HU")
    assert 0 == call("kill", "--state", "held")
    assert [State.PENDING, State.PENDING, State.CANCELLED] == [spool.find(n).state for n in (1, 2, 3)]
    assert 0 == call("kill", "--all")
    assert [State.PENDING, State.CANCELLED] == [spool.find(n).state for n in (1, 2)]
    assert 0 == call("kill", "--user", "somebody")
    assert State.CANCELLED is spool.find(1).state


def test_a_filter_that_nothing_passes_is_said(spool, call, capsys):
    put(spool)
    assert 1 == call("kill", "--name", "nobody")
    assert "no job passes the filter" in capsys.readouterr().err


def test_a_request_to_a_node_that_cannot_hear_says_that_it_waits(spool, call, capsys):
    run(spool, put(spool))
    node_json(spool, **here(), pid=DEAD_PID)
    assert 0 == call("kill", "1")
    assert "the daemon of node n1 is not running: the request waits" in capsys.readouterr().err
    node_json(spool, state="stopped")
    call("suspend", "1")
    assert "node n1 is stopped" in capsys.readouterr().err


def test_a_refusing_spool_is_one_clear_line(spool, call, monkeypatch, capsys):
    put(spool)

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Spool, "finish", refuse)
    assert 1 == call("kill", "1")
    assert "spoolq: job 1: Permission denied" in capsys.readouterr().err


def test_json_says_what_was_done(spool, call, capsys):
    put(spool)
    assert 1 == call("kill", "1", "5", "--json")
    [outcome] = value(capsys.readouterr().out)
    assert (1, "cancelled", False) == (outcome["id"], outcome["done"], outcome["error"])


def test_quiet_when_not_on_a_terminal(spool, call, capsys):
    put(spool)
    call("kill", "1")
    assert ("", "") == tuple(capsys.readouterr())


# --- hold, release, suspend, resume


@pytest.mark.parametrize(("there", "back"), [("hold", "release"), ("suspend", "resume")])
def test_hold_and_release_of_a_waiting_job_are_renames(spool, call, there, back):
    put(spool)
    assert 0 == call(there, "1")
    placed = spool.find(1)
    assert (State.HELD, "HU", 1) == (placed.state, placed.entry.held, placed.entry.gen)
    assert 0 == call(back, "1")
    placed = spool.find(1)
    assert (State.PENDING, "", 2) == (placed.state, placed.entry.held, placed.entry.gen)


def test_hold_and_release_of_a_running_job_are_requests(spool, call):
    placed = run(spool, put(spool))
    assert 0 == call("hold", "1")
    assert 1 == call("release", "1"), "it is not suspended yet"
    spool.edit(placed, suspended=True)
    assert 0 == call("release", "1")
    assert ["resume", "suspend"] == sorted(request["verb"] for request in requests(spool))


def test_a_dependency_is_not_released_by_hand(spool, call, capsys):
    put(spool, held="HD")
    assert 1 == call("release", "1")
    assert "Dependency" in capsys.readouterr().err
    assert State.HELD is spool.find(1).state


def test_a_job_that_backs_off_can_be_held_for_good_or_released_now(spool, call):
    put(spool, held="HR")
    assert 0 == call("hold", "1")
    assert "HU" == spool.find(1).entry.held
    put(spool, held="HR")
    assert 0 == call("release", "2")
    assert State.PENDING is spool.find(2).state


@pytest.mark.parametrize(("command", "held"), [("hold", "HU"), ("release", "")])
def test_what_is_so_already_is_said_and_gives_1(spool, call, command, held):
    put(spool, held=held)
    assert 1 == call(command, "1")


# --- requeue


def test_requeue_of_an_ended_job_keeps_its_result_and_counts_the_attempt(spool, call):
    end(spool, run(spool, put(spool)), 3)
    assert 0 == call("requeue", "1")
    placed = spool.find(1)
    assert (State.PENDING, 2, None) == (placed.state, placed.entry.attempt, placed.entry.ending)
    assert home.read_result(spool.root, 1) is None
    assert 3 == json.loads(fsops.read(f"{home.path_of(spool.root, 1)}/result.1.json"))["exit_code"]


def test_requeue_that_is_refused_leaves_the_result_where_it_was(spool, call, monkeypatch):
    """Found by simulation: a full spool takes no new name in the queue."""
    end(spool, run(spool, put(spool)), 3)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Spool, "requeue", full)
        assert 1 == call("requeue", "1")
    assert "done" == spool.find(1).top
    assert 3 == json.loads(home.read_result(spool.root, 1))["exit_code"]


def test_requeue_of_a_running_job_is_a_request(spool, call):
    run(spool, put(spool))
    assert 0 == call("requeue", "1")
    assert ["requeue"] == [request["verb"] for request in requests(spool)]


def test_requeue_failed_means_all_that_failed(spool, call):
    end(spool, run(spool, put(spool)), 1)
    end(spool, run(spool, put(spool)), 0)
    end(spool, run(spool, put(spool)), None, reason="timeout")
    put(spool)
    assert 0 == call("requeue", "--failed")
    assert [State.PENDING, State.COMPLETED, State.PENDING] == [spool.find(n).state for n in (1, 2, 3)]
    assert 1 == spool.find(4).entry.attempt


def test_requeue_of_a_waiting_job_has_nothing_to_do(spool, call, capsys):
    put(spool)
    assert 1 == call("requeue", "1")
    assert "has not started yet" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(steer.COMMANDS))
def test_every_command_has_help(name, capsys):
    assert 0 == getattr(steer, name)(["--help"])
    assert f"usage: spoolq {name}" in capsys.readouterr().out


def test_one_requeue_makes_one_run_though_its_rename_had_no_answer(spool, monkeypatch):
    """Found by simulation: the next attempt had run and ended before the command looked."""
    at = end(spool, run(spool, put(spool)), 3)
    real = Spool.requeue

    def unanswered(self, placed, **held):
        answer, target = real(self, placed, **held)
        assert answer is Answer.WON
        end(spool, run(spool, target), 0)
        return Answer.UNKNOWN, target

    with monkeypatch.context() as patched:
        patched.setattr(Spool, "requeue", unanswered)
        outcome = steer.do(spool, spool.find(1), steer.requeue_step())
    assert ("requeued", ("done", 2)) == (outcome.done, (spool.find(1).top, spool.find(1).entry.attempt)), at
