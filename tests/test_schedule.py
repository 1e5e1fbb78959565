"""What one node decides: partition, never over capacity, the same for everybody, and always a reason."""

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spoolq.entry import Entry
from spoolq.errors import UsageError
from spoolq.nodelist import matches, node_names
from spoolq.reason import WORDS, Reason, overall, parse_reason
from spoolq.resources import add, fits, free_of
from spoolq.schedule import (
    ANYWHERE,
    Conditions,
    NodeView,
    admit,
    could_take,
    effective_free,
    explain,
    impossible,
    in_order,
)

amounts = st.dictionaries(st.sampled_from(["cpus", "mem", "gpu"]), st.integers(0, 5).map(lambda n: n * 500))
entries = st.builds(
    Entry,
    rank=st.integers(498, 502),
    id=st.integers(1, 10_000),
    wants=amounts,
    held=st.sampled_from(["", "", "", "HU"]),
    more=st.booleans(),
)
queues = st.lists(entries, max_size=30, unique_by=lambda entry: entry.id).map(in_order)
helds = st.dictionaries(st.integers(10_001, 10_020), amounts, max_size=5)


@st.composite
def nodes(draw):
    capacity, held = draw(amounts), draw(helds)
    measured = draw(st.none() | st.dictionaries(st.sampled_from(["cpus", "mem", "gpu"]), st.integers(0, 3000)))
    free = effective_free(capacity, held.values(), measured, draw(st.integers(0, 1000)), draw(st.integers(0, 2000)))
    shut = draw(st.sampled_from([(False, False)] * 4 + [(True, False), (False, True)]))
    busy = draw(st.dictionaries(st.just("gpu"), st.lists(st.integers(0, 9), max_size=3)))
    return NodeView(name="n1", capacity=capacity, free=free, held=held, draining=shut[0], full=shut[1], busy=busy)


terms = st.sampled_from(
    [ANYWHERE, ANYWHERE, None, Conditions(nodelist=("n[2-3]",)), Conditions(exclude=("n*",)), Conditions(missing="/x")]
)


def entry(job_id=1, *, more=False, held="", **wants):
    return Entry(rank=500, id=job_id, wants={name: int(n * 1000) for name, n in wants.items()}, more=more, held=held)


def node(name="n1", *, held=None, free=None, **capacity):
    capacity = {what: int(n * 1000) for what, n in capacity.items()}
    held = held or {}
    return NodeView(name=name, capacity=capacity, free=free or free_of(capacity, held.values()), held=held)


@given(queues, nodes(), st.data(), st.integers(0, 40))
def test_every_job_is_in_one_part_and_what_starts_fits(queue, view, data, reasons):
    known = {e.id: data.draw(terms) for e in queue}
    plan = admit(queue, view.free, view, lambda e: known[e.id], reasons)
    parts = [*plan.start, *(e for e, _ in plan.blocked), *plan.rest]
    assert sorted(e.id for e in queue) == sorted(e.id for e in parts)
    assert fits(add(*(e.wants for e in plan.start)), view.free)
    assert fits(add(*(e.wants for e in plan.start)), view.capacity)
    assert len(plan.blocked) == min(reasons, len(queue) - len(plan.start))
    for part in (plan.start, [e for e, _ in plan.blocked] + [*plan.rest]):
        assert [e.id for e in queue if e in part] == [e.id for e in part]
    if view.draining or view.full:
        assert not plan.start
    for e in plan.start:
        assert not e.held
        assert known[e.id] is not None
        assert explain(e, view, known[e.id]) is None
    for _, reason in plan.blocked:
        assert reason.word in WORDS
        assert parse_reason(f"n1 {reason}") == ("n1", reason)


@given(queues, nodes(), st.randoms(use_true_random=False))
def test_the_order_of_what_comes_in_changes_nothing(queue, view, rng):
    shuffled = queue[:]
    rng.shuffle(shuffled)
    held = [*view.held.items()]
    rng.shuffle(held)
    other = NodeView(
        name="n1",
        capacity=dict(reversed(view.capacity.items())),
        free=dict(reversed(view.free.items())),
        held=dict(held),
        draining=view.draining,
        full=view.full,
    )
    assert admit(queue, view.free, view) == admit(in_order(shuffled), other.free, other)


@given(queues, nodes(), st.data())
def test_more_room_never_blocks_the_first_that_differs(queue, view, data):
    """Counts may fall, as one large job can now take the place of three small ones; the order of luck may not."""
    if not view.held:
        return
    gone = data.draw(st.sampled_from(sorted(view.held)))
    rest = {job_id: held for job_id, held in view.held.items() if job_id != gone}
    before = admit(queue, free_of(view.capacity, view.held.values()), view).start
    after = admit(queue, free_of(view.capacity, rest.values()), view).start
    first = next((e for e in queue if (e in before) != (e in after)), None)
    assert first is None or first in after


@given(entries, nodes(), st.data())
def test_for_one_job_alone_less_running_is_never_worse(job, view, data):
    for gone in view.held:
        rest = {job_id: held for job_id, held in view.held.items() if job_id != gone}
        more = add(view.free, view.held[gone])
        if explain(job, view) is None:
            freer = NodeView(name="n1", capacity=view.capacity, free=more, held=rest)
            assert explain(job, freer) is None


@given(nodes(), queues)
def test_a_reason_names_what_is_short(view, queue):
    for job in queue:
        reason = explain(job, view)
        if reason and reason.word in ("Resources", "MeasuredLoad", "BadConstraints"):
            assert not fits(job.wants, view.free) or not fits(job.wants, view.capacity)


def test_reasons_have_words_and_figures():
    view = node(cpus=8, mem=128000, held={412: {"mem": 96_800_000, "cpus": 1000}})
    reason = explain(entry(mem=64000), view)
    assert Reason("Resources", "needs 64000M mem, 31200M of 128000M free; job 412 holds 96800M mem") == reason
    assert explain(entry(cpus=9), view).word == "BadConstraints"
    assert explain(entry(cpus=9), view).text == "needs 9 cpus, 8 cpus in all: n1 can never run it"
    assert explain(entry(cpus=7), view) is None


def test_load_of_others_is_told_apart_from_what_jobs_hold():
    view = node(cpus=8, held={1: {"cpus": 2000}}, free={"cpus": 2500})
    reason = explain(entry(cpus=4), view)
    assert reason.word == "MeasuredLoad"
    assert reason.text.startswith("needs 4 cpus, 2.5 of 8 free as measured; 6 cpus not held by jobs")


def test_who_comes_first_is_named():
    view = node(cpus=4)
    plan = admit([entry(1, cpus=3), entry(2, cpus=2)], view.free, view)
    ((job, reason),) = plan.blocked
    assert (job.id, reason.word) == (2, "Priority")
    assert reason.text == "needs 2 cpus, 1 cpu left after jobs that come first; job 1 takes 3 cpus"


def test_places_that_do_not_suit():
    view = node(cpus=4)
    job = entry(cpus=1, more=True)
    assert explain(job, view, Conditions(nodelist=("n2",))).word == "ReqNodeNotAvail"
    assert explain(job, view, Conditions(exclude=("n1",))).word == "ReqNodeNotAvail"
    assert explain(job, view, None).word == "ReqNodeNotAvail"
    assert explain(job, view, Conditions(missing="/scratch/x")).word == "CwdMissing"
    assert explain(entry(held="HU"), view).word == "JobHeldUser"
    shut = NodeView(name="n1", capacity={}, free={}, draining=True, note="disk change")
    assert explain(job, shut).text == "n1 takes no new jobs: disk change"
    assert explain(job, NodeView(name="n1", capacity={}, free={}, full=True)).word == "SpoolFull"


def test_conditions_are_asked_only_where_they_matter():
    asked = []
    view = node(cpus=1)

    def conditions(e):
        asked.append(e.id)
        return ANYWHERE

    queue = [entry(1, cpus=1), entry(2, cpus=1), entry(3, cpus=1, more=True), entry(4, cpus=1, more=True)]
    admit(queue, view.free, view, conditions, reasons=2)
    assert asked == [1, 3]


def test_a_shut_node_starts_not_even_what_needs_nothing():
    for shut in ({"draining": True}, {"full": True}):
        view = NodeView(name="n1", capacity={"cpus": 1000}, free={"cpus": 1000}, **shut)
        assert admit([entry(1)], view.free, view).start == ()


# --- what is free


@given(amounts, helds, st.none() | amounts, st.integers(0, 5000))
def test_what_may_be_lent_is_never_more_than_is_not_declared(capacity, held, measured, unused):
    free = effective_free(capacity, held.values(), measured, unused)
    declared = free_of(capacity, held.values())
    assert all(0 <= free[name] <= declared[name] for name in capacity)


def test_jobs_that_have_not_allocated_yet_are_counted_beside_foreign_processes():
    capacity, job = {"cpus": 8000, "mem": 64_000_000}, {"cpus": 1000, "mem": 30_000_000}
    # somebody else uses 20000M; the first job has allocated 1000M of its 30000M
    free = effective_free(capacity, [job], {"mem": 43_000_000}, 29_000_000)
    assert free["mem"] == 14_000_000


def test_an_idle_machine_can_lend_all_its_cpus():
    assert effective_free({"cpus": 8000}, [], {"cpus": 7750})["cpus"] == 8000
    assert effective_free({"cpus": 8000}, [], {"cpus": 7000})["cpus"] == 7300


def test_the_load_that_counts_as_idle_is_the_sites_choice():
    assert effective_free({"cpus": 8000}, [], {"cpus": 7000}, idle_load=1000)["cpus"] == 8000
    assert effective_free({"cpus": 8000}, [], {"cpus": 7750}, idle_load=0)["cpus"] == 7750


@given(st.integers(0, 8000), st.integers(0, 100).map(lambda n: n * 100))
def test_the_remedy_that_a_reason_offers_works(foreign, idle_load):
    capacity, measured = {"cpus": 8000}, {"cpus": 8000 - foreign}
    free = effective_free(capacity, [], measured, idle_load=idle_load)
    view = NodeView(name="n1", capacity=capacity, free=free, idle_load=idle_load)
    reason = explain(entry(cpus=8), view)
    assert (foreign > idle_load) == (reason is not None)
    if reason:
        assert "MeasuredLoad" == reason.word
        offered = float(re.search(r"idle_load = ([0-9.]+) in spool.toml", reason.text)[1])
        assert effective_free(capacity, [], measured, idle_load=round(offered * 1000)) == capacity


def test_devices_that_others_use_are_named():
    free = effective_free({"gpu": 4000}, [{"gpu": 1000}], {"gpu": 2000})
    assert {"gpu": 1000} == free
    view = NodeView(name="n1", capacity={"gpu": 4000}, free=free, held={7: {"gpu": 1000}}, busy={"gpu": [3, 0]})
    assert None is explain(entry(gpu=1), view)
    assert explain(entry(gpu=2), view) == Reason(
        "DeviceBusyOutside",
        "needs 2 gpu, 1 of 4 free as measured; 3 gpu not held by jobs; gpu 0, gpu 3 used outside spoolq",
    )


def test_foreign_load_and_declared_cpus_add_up():
    assert effective_free({"cpus": 8000}, [{"cpus": 2000}], {"cpus": 4000})["cpus"] == 2300


def test_a_capacity_above_the_machine_is_taken_at_its_word():
    assert effective_free({"cpus": 64000}, [], None) == {"cpus": 64000}


# --- could it ever run


@given(amounts, st.dictionaries(st.sampled_from(["n1", "n2", "n3"]), amounts), st.just(ANYWHERE))
def test_impossible_is_said_exactly_if_no_known_node_could(wants, known, where):
    could = could_take(wants, known, where)
    assert (impossible(wants, known, where) is None) == (bool(could) or not known)
    assert all(fits(wants, known[name]) for name in could)


def test_refusals_say_what_is_missing():
    known = {"n1": {"cpus": 8000, "mem": 1_000_000}, "n2": {"cpus": 2000, "mem": 64_000_000}}
    assert impossible({"cpus": 16000}, known) == "needs 16 cpus, and no node has more than 8 cpus"
    both = impossible({"cpus": 8000, "mem": 64_000_000}, known)
    assert both == "no node has all of it at once: n1 lacks mem, n2 lacks cpus"
    where = Conditions(nodelist=("x*",))
    assert impossible({}, known, where) == "asks for x*, and no known node is that (known: n1, n2)"
    assert could_take({"cpus": 1000}, known, Conditions(exclude=("n2",))) == ["n1"]


def test_the_most_hopeful_reason_is_shown():
    said = {"n1": Reason("NodeDrained", "a"), "n2": Reason("Resources", "b"), "n3": Reason("BadConstraints", "c")}
    assert Reason("Resources", "n2: b") == overall(said)
    assert overall({}).word == "NoNodeAlive"


def test_a_line_that_is_no_reason_is_none():
    assert parse_reason("n1 Nonsense: x") is None
    assert parse_reason("") is None
    assert ("", Reason("Priority", "a: b")) == parse_reason("Priority: a: b\n")


# --- names of nodes


def test_patterns_of_nodes():
    assert node_names("n[1-3,5]") == ["n1", "n2", "n3", "n5"]
    assert node_names("n[08-10],big*") == ["n08", "n09", "n10", "big*"]
    assert node_names("a[1-2]b[1-2]") == ["a1b1", "a1b2", "a2b1", "a2b2"]
    assert matches(["n[1-3,5]"], "n5")
    assert not matches(["n[1-3,5]"], "n4")
    assert not matches(["n[01-03]"], "n1")
    assert matches(["x", "gpu*"], "gpu-a")
    assert matches(["n?"], "n7")
    assert not matches([], "n1")
    assert not matches([""], "n1")


@pytest.mark.parametrize("text", ["n[3-1]", "n[1-]", "n[1-99999999]", "[0-999][0-999]", "n[1,,2]", "n[ab]", "n;1"])
def test_a_bad_range_is_refused_and_matches_nobody(text):
    with pytest.raises(UsageError):
        node_names(text)
    assert not matches([text], "n1")


def test_a_hostile_pattern_takes_no_time():
    assert not matches(["*a" * 40 + "b"], "a" * 63)


@given(st.lists(st.text(), max_size=3), st.text())
def test_any_pattern_is_answered(patterns, name):
    assert matches(patterns, name) in (True, False)


def test_five_hundred_waiting_on_a_full_node_need_few_steps():
    """Counted, not timed: reasons are put into words for the first of each kind only."""
    random.seed(1)
    queue = [entry(number, cpus=1, mem=1000) for number in range(1, 501)]
    view = node(cpus=4, mem=4000, held={900: {"cpus": 4000, "mem": 4_000_000}})
    plan = admit(queue, view.free, view, reasons=20)
    assert len({id(reason) for _, reason in plan.blocked}) == 1
    assert (len(plan.start), len(plan.blocked), len(plan.rest)) == (0, 20, 480)
