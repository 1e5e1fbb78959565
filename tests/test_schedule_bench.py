"""The simulator of bench/schedule: its baselines do what they are said to do, and the nodes run everything once."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.schedule import workload
from bench.schedule.central import Central
from bench.schedule.nodes import Cluster
from bench.schedule.outcome import Ran, outcome
from bench.schedule.workload import Job

NODES, CPUS = 2, 4

LINE = "{} {} -1 {} {} -1 -1 -1 -1 -1 1 -1 -1 -1 0 -1 -1 -1\n"

jobs = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 40), st.integers(1, CPUS)), min_size=1, max_size=25).map(
    lambda rows: [Job(n, float(at), float(run), cpus, None) for n, (at, run, cpus) in enumerate(sorted(rows), 1)]
)


def started(ran):
    return {item.job.id: (item.node, item.start) for item in ran}


def test_a_workload_is_read_and_mapped_to_one_node_a_job(tmp_path):
    path = tmp_path / "w.swf"
    path.write_text(
        "; Version: 2\n" + LINE.format(1, 100, 7, 17) + LINE.format(2, 130, 0, 1) + LINE.format(3, 140, 9, 256)
    )
    assert [Job(1, 0.0, 7.0, 3, None), Job(2, 40.0, 9.0, 32, None)] == workload.read(str(path), 8, 32, 10)


def test_a_workload_offers_the_load_that_was_asked_for():
    given = [Job(1, 0.0, 10.0, 2, None), Job(2, 100.0, 10.0, 2, None)]
    assert 0.5 == pytest.approx(workload.load(workload.at_load(given, 4, 0.5), 4))


def test_first_come_first_served_overtakes_nobody_and_easy_does():
    given = [Job(1, 0, 10, 3, 10), Job(2, 1, 10, 4, 10), Job(3, 2, 5, 1, 5), Job(4, 3, 50, 1, 50)]
    assert {1: (0, 0), 2: (0, 10), 3: (0, 20), 4: (0, 20)} == started(Central(given, 1, CPUS, easy=False).run())
    assert {1: (0, 0), 3: (0, 2), 2: (0, 10), 4: (0, 20)} == started(Central(given, 1, CPUS, easy=True).run())


def test_more_than_a_node_has_is_noticed():
    with pytest.raises(AssertionError, match="more than a node has"):
        outcome([Ran(Job(1, 0, 10, 3, None), 0, 0.0), Ran(Job(2, 0, 10, 3, None), 0, 5.0)], 1, 4)


def test_figures_are_what_they_are_said_to_be():
    found = outcome([Ran(Job(1, 0, 20, 2, None), 0, 0.0), Ran(Job(2, 0, 5, 4, None), 0, 20.0)], 2, 4)
    assert (1 + 25 / 10) / 2 == found.slowdown
    assert (10.0, 20.0) == (found.wait, found.longest)
    assert 60 / (2 * 4 * 25) == found.used
    assert 60 / (4 * 25) == found.packing


@settings(max_examples=40)
@given(jobs, st.sampled_from([1.0, 2.0, None]), st.integers(0, 5), st.booleans())
def test_nodes_that_decide_alone_run_every_job_once(jobs, factor, seed, reserve):
    given = workload.limited(workload.shaken(jobs, seed), factor)
    ran = Cluster(given, NODES, CPUS, seed, reserve=reserve).run()
    outcome(ran, NODES, CPUS)
    assert len(given) == len(ran)


@settings(max_examples=40)
@given(jobs, st.sampled_from([1.0, 2.0, None]))
def test_the_baselines_run_every_job_once(jobs, factor):
    given = workload.limited(jobs, factor)
    for easy in (False, True):
        ran = Central(given, NODES, CPUS, easy=easy).run()
        outcome(ran, NODES, CPUS)
        assert len(given) == len(ran)
