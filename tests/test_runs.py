"""The table of stages and events."""

import itertools

import pytest

from spoolq import runs
from spoolq.runs import Act, Event, Run, Stage, happen


def run(**more):
    """A job with a limit of 100 s, begun at 1000 s."""
    made = Run("", {"id": 1, "attempt": 1, "limit_s": 100.0, "grace_s": 10.0, **more})
    made.since = 1000.0
    return made


def test_every_cell_leads_to_a_stage_and_over_is_over():
    for stage, event in itertools.product(Stage, Event):
        job = run()
        job.stage = stage
        act = happen(job, event, 5.0)
        assert (act is None) == (job.stage is stage and (stage, event) not in runs._TABLE)
        if stage in (Stage.OVER, Stage.DOUBTFUL):
            assert None is act


def test_the_limit_asks_and_the_grace_kills():
    job = run()
    assert (1100.0, Event.LIMIT) == (runs.due_at(job), runs.due(job))
    assert Act.TERM is happen(job, Event.LIMIT, 1100.0, "words")
    assert (1110.0, Event.GRACE) == (runs.due_at(job), runs.due(job))
    assert Act.KILL is happen(job, Event.GRACE, 1110.0)
    assert (1112.0, Event.GRACE, "timeout", "words") == (runs.due_at(job), runs.due(job), job.reason, job.detail)
    assert Act.KILL is happen(job, Event.GRACE, 1112.0)  # again, while it lives


def test_suspended_time_does_not_count():
    job = run()
    assert Act.STOP is happen(job, Event.PAUSE, 1010.0)
    assert None is runs.due_at(job)
    assert None is happen(job, Event.PAUSE, 1020.0)
    assert Act.CONT is happen(job, Event.RESUME, 1060.0)
    assert 1150.0 == runs.due_at(job)


def test_the_first_reason_stays():
    job = run()
    happen(job, Event.CANCEL, 1.0, "a")
    happen(job, Event.MEMORY, 2.0, "b")
    assert ("cancelled", "a", Stage.KILLING) == (job.reason, job.detail, job.stage)


@pytest.mark.parametrize(("grace_s", "deadline"), [(0.0, 5.0), (600.0, 11.0)])
def test_asking_again_never_lengthens_the_grace(grace_s, deadline):
    job = run()
    happen(job, Event.CANCEL, 1.0)
    assert Act.TERM is happen(job, Event.CANCEL, 5.0, grace_s=grace_s)
    assert deadline == job.deadline


def test_changes_survive_the_journal():
    job = run()
    happen(job, Event.PAUSE, 1010.0)
    job.limit_s = 7.0
    again = run()
    again.take_change({**job.change(), "of a newer version": 1})
    assert job.change() == again.change()
    assert Stage.PAUSED is again.stage


def test_what_a_killed_runner_may_have_left_half_done_is_read_off_the_stage():
    job = run()
    assert None is runs.unfinished(job)
    job.limit_s = 7.0
    assert None is runs.unfinished(job), "other limits leave the tree alone"
    for event, act in [
        (Event.PAUSE, Act.STOP),
        (Event.RESUME, Act.CONT),
        (Event.CANCEL, Act.TERM),
        (Event.GRACE, Act.KILL),
    ]:
        assert act is happen(job, event, 1010.0 + job.paused_s)
        again = run()
        again.take_change(job.change())
        if event is Event.PAUSE:
            again.paused_at = job.paused_at = 1000.0
        assert act is runs.unfinished(again)
    job.stage = Stage.OVER
    assert None is runs.unfinished(job)
