"""The spool: one entry, one rename, one transition."""

import os

import pytest

from spoolq import home
from spoolq import spool as spool_room
from spoolq.errors import Misconfigured, NotFound, TryAgain
from spoolq.fsops import Answer
from spoolq.job import Job
from spoolq.state import State


def put(spool, job=None, **facts):
    """Submit a job."""
    job = job or Job(command=("true",), name="t", user="anna", **facts)
    job_id = home.allocate(spool.root)
    home.fill(spool.root, job_id, b"format = 1\n")
    return spool.submit(job_id, job.entry(job_id))


def test_a_directory_without_the_mark_is_refused(tmp_path):
    with pytest.raises(Misconfigured, match="not a spool"):
        spool_room.Spool(str(tmp_path))


def test_ids_count_up_from_one_and_are_never_used_twice(spool):
    assert [1, 2, 3] == [put(spool).entry.id for _ in range(3)]
    home.discard(spool.root, 3)
    assert 4 == put(spool).entry.id


def test_a_submitted_entry_points_at_its_job(spool):
    at = put(spool)
    with open(f"{spool.root}/{at.path}", "rb") as file:
        assert b"format = 1\n" == file.read()


def test_a_submission_is_not_called_committed_where_the_spool_is_gone(spool, monkeypatch):
    """The mount vanishes before the commit: what is absent there is no answer."""
    job_id = home.allocate(spool.root)
    home.fill(spool.root, job_id, b"format = 1\n")
    away = f"{spool.root}.away"

    def vanish(*_):
        os.rename(spool.root, away)
        raise FileNotFoundError(2, "No such file or directory")

    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", lambda *names: (patched.undo(), vanish()))
        with pytest.raises(TryAgain):
            spool.submit(job_id, Job(command=("true",), name="t").entry(job_id))
    os.rename(away, spool.root)
    with pytest.raises(NotFound):
        spool.find(job_id)


def test_every_state_directory_has_the_same_depth(spool):
    """The relative link leads to the job from wherever the entry goes."""
    at = put(spool)
    _, at = spool.claim(at, "n1")
    assert os.path.exists(f"{spool.root}/{at.path}")
    _, at = spool.reap(at, "n2")
    assert os.path.exists(f"{spool.root}/{at.path}")
    _, at = spool.finish(at, "nodefail")
    assert os.path.exists(f"{spool.root}/{at.path}")


def test_of_two_claims_one_wins(spool):
    at = put(spool)

    answers = [spool.claim(at, "n1")[0], spool.claim(at, "n2")[0]]

    assert [Answer.WON, Answer.LOST] == answers


def test_a_claim_beats_a_cancel_and_the_other_way_round(spool):
    at = put(spool)
    assert Answer.WON is spool.finish(at, "cancelled")[0]
    assert Answer.LOST is spool.claim(at, "n1")[0]


def test_hold_release_edit(spool):
    at = put(spool)
    answer, at = spool.hold(at)
    assert (Answer.WON, State.HELD) == (answer, at.state)
    answer, at = spool.edit(at, priority=10)
    assert Answer.WON is answer
    answer, at = spool.release(at)
    assert (Answer.WON, State.PENDING, 490, 3) == (answer, at.state, at.entry.rank, at.entry.gen)
    assert at == spool.find(at.entry.id)


def test_a_higher_priority_is_listed_first(spool):
    low, high, middle = put(spool, priority=-5), put(spool, priority=7), put(spool)

    assert [high, middle, low] == list(spool.waiting())


def test_find_knows_all_places_and_says_when_there_is_none(spool):
    at = put(spool)
    for step in (
        lambda at: spool.hold(at),
        lambda at: spool.release(at),
        lambda at: spool.claim(at, "n1"),
        lambda at: spool.reap(at, "n2"),
        lambda at: spool.requeue(at),
        lambda at: spool.claim(at, "n1"),
        lambda at: spool.finish(at, "exit0"),
    ):
        answer, at = step(at)
        assert Answer.WON is answer
        assert at == spool.find(at.entry.id)
    with pytest.raises(NotFound):
        spool.find(99)


def test_requeue_raises_attempt_and_gen(spool):
    _, at = spool.claim(put(spool), "n1")
    _, at = spool.reap(at, "n1")
    _, at = spool.requeue(at)

    assert (2, 3) == (at.entry.attempt, at.entry.gen)


def test_a_transition_that_is_none_is_our_bug(spool):
    at = put(spool)
    with pytest.raises(AssertionError):
        spool.reap(at, "n1")


def test_empty_segments_are_swept_and_made_again(spool):
    at = put(spool)
    _, running = spool.claim(at, "n1")
    spool.sweep_segments()
    assert [] == spool.segments("queue")
    assert Answer.WON is spool.give_back(running)[0]


def test_strange_names_are_skipped(spool):
    at = put(spool)
    open(f"{spool.root}/{at.place}/README", "w").close()
    open(f"{spool.root}/{at.place}/.nfs01", "w").close()

    assert [at] == list(spool.waiting())


def test_requests_are_listed_and_answered(spool):
    spool.enter_node("n1")
    spool.request("n1", "kill", 42, {}, "abc")

    (name, request), *rest = spool.requests("n1")
    spool.answered("n1", name)

    assert ({"verb": "kill", "id": 42}, []) == (request, rest)
    assert [] == spool.requests("n1")


def test_live_sees_a_moving_job_once(spool):
    at = put(spool)
    _, running = spool.claim(at, "n1")

    assert [running] == spool.live()


def test_two_submitters_get_different_ids(spool):
    ids = {home.allocate(spool.root, after=0) for _ in range(50)}

    assert 50 == len(ids)


def test_a_spool_that_went_away_or_was_replaced_is_noticed(spool):
    spool.check_same()
    with open(f"{spool.root}/spool.toml", encoding="utf-8") as file:
        text = file.read()
    os.rename(f"{spool.root}/spool.toml", f"{spool.root}/away")
    with pytest.raises(FileNotFoundError):
        spool.check_same()
    with open(f"{spool.root}/spool.toml", "w", encoding="utf-8") as file:
        file.write(text.replace("1111", "2222"))
    with pytest.raises(Misconfigured, match="another spool"):
        spool.check_same()


def test_where_nothing_is_mounted_absence_is_no_answer(spool):
    """Else a job that ended in such a moment would be given up, or one that runs be begun again (I2)."""
    at = put(spool)
    spool.enter_node("n1")
    _, running = spool.claim(at, "n1")
    os.rename(spool.root, spool.root + ".away")
    os.mkdir(spool.root)

    answer, target = spool.finish(running, "exit0")
    assert Answer.UNKNOWN is answer
    assert Answer.UNKNOWN is spool.settle(running, target)
    with pytest.raises(FileNotFoundError):
        spool.find(running.entry.id)
    with pytest.raises(FileNotFoundError):
        spool.on_node("n1", lasting=True)

    os.rmdir(spool.root)
    os.rename(spool.root + ".away", spool.root)
    assert spool.settle(running, target) is None
    assert Answer.WON is spool.finish(running, "exit0")[0]
