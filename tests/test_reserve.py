"""Reservations: a place on the node that can start first, and backfill that never delays."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spoolq.entry import MAX_NAME, Entry, parse_name
from spoolq.reserve import Node, Opening, Task, Window, holder, opening, released, reserving, sooner, worth_moving
from spoolq.resources import add, fits, free_of

names = st.sampled_from(["cpus", "mem", "gpu"])
amounts = st.dictionaries(names, st.integers(0, 8).map(lambda n: n * 500))
tasks = st.lists(st.builds(Task, amounts, st.none() | st.integers(0, 100), st.booleans()), max_size=8)


@st.composite
def nodes(draw):
    running = tuple(draw(tasks))
    idle = draw(st.dictionaries(names, st.integers(0, 8).map(lambda n: n * 500)))
    return Node("n1", add(idle, *(task.wants for task in running)), idle, running)


def entry(job_id=1, limit_s=None, **wants):
    return Entry(rank=500, id=job_id, limit_s=limit_s, wants={name: n * 1000 for name, n in wants.items()})


def node(free, *running, cpus=8):
    return Node("n1", {"cpus": cpus * 1000}, {"cpus": free * 1000}, running)


def task(cpus, left_s=None, *, young=False):
    return Task({"cpus": cpus * 1000}, left_s, young)


def test_a_reservation_is_a_fact_of_the_name_and_read_back():
    reserved = reserving(entry(7, cpus=4), "n3")
    assert "500.7.1.1~c4,R=n3~" == reserved.name
    assert "n3" == holder(parse_name(reserved.name))
    assert entry(7, cpus=4).next() == released(reserved)


def test_a_reservation_that_moves_leaves_one_holder():
    moved = reserving(reserving(entry(cpus=4), "n3"), "n4")
    assert ("R=n4",) == moved.other
    assert 2 == moved.gen


def test_other_facts_of_the_name_stay():
    strange = entry(cpus=4)._replace(other=("zz",))
    assert ("zz",) == released(reserving(strange, "n1")).other


@given(label=st.text("ab", max_size=40), node=st.text("n1", min_size=1, max_size=63), length=st.integers(0, 140))
def test_a_reserved_name_is_a_name_or_there_is_no_reservation(label, node, length):
    reserved = reserving(entry(cpus=4)._replace(label=label, other=("x" * length,) if length else ()), node)
    if reserved:
        assert node == holder(parse_name(reserved.name))
        assert len(reserved.name) <= MAX_NAME
    else:
        assert length > 90


def test_a_job_that_fits_can_start_now():
    assert Opening(0.0, {"cpus": 1000}) == opening({"cpus": 2000}, node(3, task(5, 100)))


def test_a_job_can_start_when_enough_has_ended_by_its_limits():
    found = opening({"cpus": 6000}, node(1, task(2, 30), task(3, 10), task(2, 90)))
    assert Opening(30, {"cpus": 0}) == found


def test_what_ends_at_the_same_time_is_spare():
    assert Opening(30, {"cpus": 2000}) == opening({"cpus": 6000}, node(0, task(6, 30), task(2, 30)))


def test_nobody_knows_when_a_job_without_limit_ends():
    assert Opening(None, {"cpus": 2000}) == opening({"cpus": 6000}, node(2, task(6)))


def test_what_started_since_the_reservation_counts_against_the_room_beside_it():
    assert Opening(None, {"cpus": 1000}) == opening({"cpus": 6000}, node(1, task(6), task(1, young=True)))


@given(nodes(), amounts)
def test_at_its_opening_a_job_fits_with_what_is_spare(node, wants):
    seen = opening(wants, node)
    ended = [t.wants for t in node.tasks if t.left_s is not None and seen.in_s is not None and t.left_s <= seen.in_s]
    if seen.in_s is None:
        assert not fits(wants, add(node.free, *(t.wants for t in node.tasks if t.left_s is not None)))
    else:
        then = add(node.free, *ended) if seen.in_s or not fits(wants, node.free) else node.free
        assert fits(wants, then)
        assert fits(add(wants, seen.spare), add(then, {}))
        assert not seen.in_s or not fits(
            wants, add(node.free, *(t.wants for t in node.tasks if t.left_s is not None and t.left_s < seen.in_s))
        )


def window(in_s, cpus, spare):
    return Window(entry(9, cpus=cpus), Opening(in_s, {"cpus": spare * 1000}))


@pytest.mark.parametrize(
    ("limit_s", "cpus", "lets"), [(100, 4, True), (101, 4, False), (101, 2, True), (None, 2, True), (None, 3, False)]
)
def test_a_kept_node_starts_what_ends_before_or_leaves_what_is_kept(limit_s, cpus, lets):
    assert lets is window(100.0, 6, 2).lets(entry(limit_s=limit_s, cpus=cpus))


def test_limits_count_as_long_as_they_are_enforced():
    assert not window(100.0, 6, 0).lets(entry(limit_s=90, cpus=1), elbow=1.2)


def test_what_is_spare_can_be_lent_once():
    kept = window(100.0, 6, 2)
    kept.take(entry(limit_s=50, cpus=4))
    assert kept.lets(entry(cpus=2))
    kept.take(entry(cpus=2))
    assert not kept.lets(entry(cpus=1))


def test_without_a_known_end_a_short_job_does_not_count_as_ending_before():
    assert not window(None, 6, 0).lets(entry(limit_s=1, cpus=1))


def test_a_job_that_wants_nothing_of_what_is_kept_may_start():
    assert window(None, 6, 0).lets(entry(gpu=1))


def test_the_soonest_holds_and_among_unknown_the_one_with_the_least_missing():
    wants, n = {"cpus": 4000}, node(0)
    known, later, never = Opening(5.0, {}), Opening(9.0, {}), Opening(None, {})
    assert sooner(wants, n, known, n.free) < sooner(wants, n, later, n.free) < sooner(wants, n, never, n.free)
    assert sooner(wants, n, never, {"cpus": 3000}) < sooner(wants, n, never, {"cpus": 2000})


def test_a_reservation_moves_only_for_something_worth_a_rename():
    assert worth_moving(Opening(100.0, {}), Opening(500.0, {}))
    assert worth_moving(Opening(100.0, {}), Opening(None, {}))
    assert not worth_moving(Opening(100.0, {}), Opening(130.0, {}))
    assert not worth_moving(Opening(None, {}), Opening(100.0, {}))
    assert not worth_moving(Opening(None, {}), Opening(None, {}))


@given(nodes(), amounts, st.lists(st.tuples(amounts, st.none() | st.integers(1, 60)), max_size=12))
def test_backfill_never_delays_the_reserved_job_on_its_node(node, wants, asked):
    """Whatever the window lets start, the opening computed anew afterwards is not later."""
    seen = opening(wants, node)
    if seen.in_s is None:
        return
    kept = Window(Entry(rank=500, id=1, wants=wants), seen)
    running, free = list(node.tasks), dict(node.free)
    for number, (more, limit_s) in enumerate(asked):
        other = Entry(rank=500, id=number + 2, wants=more, limit_s=limit_s)
        if fits(more, free) and kept.lets(other):
            kept.take(other)
            running.append(Task(more, limit_s))
            free = free_of(free, (more,))
    after = opening(wants, node._replace(free=free, tasks=tuple(running)))
    assert after.in_s is not None
    assert after.in_s <= seen.in_s
