"""Which job steps aside, and when it goes on."""

import math

from hypothesis import given
from hypothesis import strategies as st

from spoolq.overload import Holder, Hysteresis, Step, lack, wanted

IDLE = 300
holders = st.lists(
    st.builds(
        Holder,
        id=st.integers(1, 99),
        rank=st.integers(498, 502),
        cpus=st.integers(100, 4000),
        suspended=st.booleans(),
        aside=st.booleans(),
    ),
    max_size=6,
    unique_by=lambda job: job.id,
).map(lambda jobs: [job._replace(aside=job.aside and job.suspended) for job in jobs])
loads = st.integers(0, 9000)
spares = st.sampled_from([0.5, 1.0, 1.5, 2.0, math.inf])


def job(job_id, *, rank=500, cpus=1000, **more):
    return Holder(job_id, rank, cpus, **more)


def after(jobs, step):
    stop = step.verb == "suspend"
    return [j._replace(suspended=stop, aside=stop) if j.id == step.id else j for j in jobs]


@given(holders, st.integers(1000, 8000), loads, st.integers(0, 1000), spares)
def test_a_users_suspension_is_never_touched_and_the_last_job_runs_on(jobs, cpus, foreign, idle_load, spare):
    step = wanted(jobs, cpus, foreign, idle_load, spare)
    if step is None:
        return
    chosen = next(j for j in jobs if j.id == step.id)
    if step.verb == "suspend":
        assert not chosen.suspended
        assert sum(not j.suspended for j in jobs) > 1
        assert all((j.rank, j.id) <= (chosen.rank, chosen.id) for j in jobs if not j.suspended)
    else:
        assert chosen.aside
        assert all((j.rank, j.id) >= (chosen.rank, chosen.id) for j in jobs if j.aside)


@given(holders, st.integers(1000, 8000), loads, st.integers(0, 1000), spares)
def test_the_same_load_never_makes_a_job_stop_and_go(jobs, cpus, foreign, idle_load, spare):
    directions = set()
    for _ in range(2 * len(jobs) + 1):
        step = wanted(jobs, cpus, foreign, idle_load, spare)
        if step is None:
            break
        jobs = after(jobs, step)
        directions.add(step.verb)
    assert None is wanted(jobs, cpus, foreign, idle_load, spare)  # it settles
    assert len(directions) < 2 or (lack(jobs, cpus, foreign) <= idle_load and spare >= 1)
    if spare < 1:
        assert sum(not j.suspended for j in jobs) <= 1, "while memory lacks, more than one runs on"


@given(holders, st.integers(1000, 8000))
def test_when_others_are_gone_and_jobs_end_all_go_on(jobs, cpus):
    while jobs:
        while (step := wanted(jobs, cpus, 0, IDLE)) and step.verb == "resume":
            jobs = after(jobs, step)
        jobs = [j for j in jobs if j.suspended]  # what runs ends
        if not any(j.aside for j in jobs):
            return


def test_the_lowest_priority_goes_first_and_comes_back_last():
    jobs = [job(1), job(2), job(3, rank=400), job(4, rank=600)]
    assert Step("suspend", 4) == wanted(jobs, 4000, 2000, IDLE)
    jobs = after(jobs, Step("suspend", 4))
    assert None is wanted(jobs, 4000, 2000, IDLE)  # one cpu is lacking, which is no more than a quarter
    jobs = after(jobs, Step("suspend", 2))
    assert None is wanted(jobs, 4000, 1500, IDLE)
    assert Step("resume", 2) == wanted(jobs, 4000, 1200, IDLE)


def test_a_job_steps_aside_for_memory_and_goes_on_when_twice_as_much_is_there():
    jobs = [job(1), job(2, rank=600)]
    assert None is wanted(jobs, 4000, 0, IDLE, 1.0)
    assert Step("suspend", 2) == wanted(jobs, 4000, 0, IDLE, 0.9)
    jobs = after(jobs, Step("suspend", 2))
    assert None is wanted(jobs, 4000, 0, IDLE, 1.9)
    assert Step("resume", 2) == wanted(jobs, 4000, 0, IDLE, 2.0)
    assert None is wanted(jobs, 4000, 3500, IDLE, 9.0), "its cpus are not there"
    assert Step("resume", 2) == wanted(jobs[1:], 4000, 0, IDLE, 0.1), "nothing else runs"


def test_only_what_lasts_counts():
    gate, stop, go = Hysteresis(30.0), Step("suspend", 1), Step("resume", 1)
    assert None is gate.feed(0.0, stop)
    assert None is gate.feed(29.0, stop)
    assert None is gate.feed(29.5, None)
    assert None is gate.feed(30.0, stop)
    assert None is gate.feed(59.0, go)
    assert None is gate.feed(60.0, stop)
    assert stop == gate.feed(90.0, stop)
    assert None is gate.feed(91.0, stop)
    assert stop == gate.feed(120.0, stop)
