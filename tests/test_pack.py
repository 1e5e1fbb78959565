"""The plan that each node works out alone: one place for each job, no waste, nobody overtaken for ever, always a reason."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spoolq.entry import Entry, released
from spoolq.pack import DEPTH, OUTSIDE_S, STEP_S, STEPS, delay_s, emptiness, plan, worth_a_plan
from spoolq.reserve import Node, Task, holder, opening, reserving
from spoolq.resources import add, fits, free_of
from spoolq.schedule import ANYWHERE, Conditions, NodeView, in_order, outside

amounts = st.dictionaries(st.sampled_from(["cpus", "mem", "gpu"]), st.integers(0, 5).map(lambda n: n * 500))
few = st.dictionaries(st.sampled_from(["cpus", "mem"]), st.integers(0, 2).map(lambda n: n * 500))
limits = st.none() | st.integers(1, 50)
entries = st.builds(
    Entry,
    rank=st.integers(499, 501),
    id=st.integers(1, 10_000),
    wants=amounts | st.integers(1, 5).map(lambda n: {"cpus": n * 500}),
    limit_s=limits,
    held=st.sampled_from(["", "", "", "HU"]),
    more=st.booleans(),
    other=st.sampled_from([(), (), ("R=n1",), ("R=n2",), ("R=gone",)]),
)
queues = st.lists(entries, max_size=25, unique_by=lambda entry: entry.id).map(in_order)
terms = st.sampled_from([ANYWHERE, None, Conditions(nodelist=("n[2-3]",)), Conditions(exclude=("n1",))])


@st.composite
def clusters(draw):
    found = []
    for number in range(draw(st.integers(1, 4))):
        tasks = tuple(draw(st.lists(st.builds(Task, amounts, limits, st.booleans()), max_size=4)))
        idle = draw(few)  # so that what fits an empty node often fits none now
        found.append(Node(f"n{number + 1}", add(idle, *(task.wants for task in tasks)), idle, tasks))
    return found


def view(node, **changes):
    held = {90_000 + number: task.wants for number, task in enumerate(node.tasks)}
    changes = {"usable": node.usable, **changes}
    return NodeView(name=node.name, capacity=node.capacity, free=node.free, held=held, **changes)


def plans(queue, cluster, terms=lambda _: ANYWHERE, **options):
    for node in cluster:
        others = [other for other in cluster if other is not node]
        yield node, *plan(queue, view(node), others, node.tasks, terms, reasons=1000, **options)


def keys(found):
    return [entry.id for entry in found]


@given(queues, clusters(), terms, st.booleans(), st.floats(0, 5))
def test_what_starts_fits_and_every_other_job_has_one_reason(queue, cluster, said, spread, age):
    waited = {("claim", entry.id, ""): age for entry in queue}
    asked = lambda entry: said if entry.more else ANYWHERE  # noqa: E731
    for node, found, part in plans(queue, cluster, asked, spread=spread, waited=waited):
        assert part.start == found.start
        assert fits(add(*(entry.wants for entry in found.start)), node.free)
        assert sorted(keys(queue)) == sorted(keys(found.start) + keys(entry for entry, _ in found.blocked))
        assert keys(entry for entry, _ in found.blocked) == [e.id for e in queue if e not in found.start]


@given(queues, clusters(), terms, st.booleans())
def test_nodes_that_know_the_same_share_out_the_same_way(queue, cluster, said, spread):
    asked = lambda entry: said if entry.more else ANYWHERE  # noqa: E731
    known = list(plans(queue, cluster, asked, spread=spread))
    started = [job for _, found, _ in known for job in keys(found.start)]
    assert len(started) == len(set(started))
    assert 1 == len({(part.reserve[0].id, part.reserve[1]) if part.reserve else None for _, _, part in known})


@given(queues, clusters())
def test_a_job_that_some_node_may_start_now_is_started_by_one(queue, cluster):
    """Nobody waits for a node that waits for somebody: what all withhold is withheld for a reservation."""
    known = list(plans(queue, cluster))
    started = {job for _, found, _ in known for job in keys(found.start)}
    for _, _, part in known:
        for entry, reason in part.withheld:
            assert entry.id in started or "keeps" in reason.text


@given(queues, clusters(), st.integers(1, 5))
def test_few_reasons_leave_the_plan_as_it_is(queue, cluster, reasons):
    node, *others = cluster
    whole, _ = plan(queue, view(node), others, node.tasks, reasons=1000)
    short, _ = plan(queue, view(node), others, node.tasks, reasons=reasons)
    assert whole.start == short.start
    assert [entry for entry, _ in whole.blocked] == [*(entry for entry, _ in short.blocked), *short.rest]
    assert list(whole.blocked)[:reasons] == list(short.blocked)


@given(queues, clusters())
def test_a_plan_is_not_worth_making_only_if_nothing_would_start(queue, cluster):
    for node, found, part in plans(queue, cluster):
        assert worth_a_plan(queue, node.free) or (not found.start and not part.withheld)


@pytest.mark.parametrize("shut", [{"draining": True}, {"full": True}])
def test_a_node_that_drains_or_is_full_starts_and_reserves_nothing(shut):
    node = Node("n1", {"cpus": 4000}, {"cpus": 4000})
    found, part = plan([job(1, cpus=1)], view(node, **shut), [], ())
    assert ((), None) == (found.start, part.reserve)
    assert [1] == keys(entry for entry, _ in found.blocked)


def job(job_id, limit_s=None, other=(), **wants):
    return Entry(
        rank=500, id=job_id, limit_s=limit_s, other=other, wants={name: int(n * 1000) for name, n in wants.items()}
    )


def idle(name, cpus=4):
    return Node(name, {"cpus": cpus * 1000}, {"cpus": cpus * 1000})


def busy(name, *running, cpus=4):
    tasks = tuple(Task({"cpus": held * 1000}, left_s) for held, left_s in running)
    return Node(name, {"cpus": cpus * 1000}, free_of({"cpus": cpus * 1000}, [task.wants for task in tasks]), tasks)


def starts(queue, cluster, **options):
    return {node.name: keys(found.start) for node, found, _ in plans(queue, cluster, **options)}


def test_small_jobs_fill_one_node_and_a_big_one_starts_at_once_on_the_other():
    queue = [job(n, cpus=1) for n in range(1, 5)] + [job(5, cpus=4)]
    assert {"n1": [1, 2, 3, 4], "n2": [5]} == starts(queue, [idle("n1"), idle("n2")])


def test_spread_goes_to_the_emptiest():
    queue = [job(n, cpus=1) for n in range(1, 5)]
    assert {"n1": [1, 3], "n2": [2, 4]} == starts(queue, [idle("n1"), idle("n2")], spread=True)


def test_a_job_goes_to_the_node_that_it_fills_best():
    assert {"n1": [], "n2": [1]} == starts([job(1, cpus=1)], [idle("n1"), busy("n2", (3, None))])


def test_the_second_choice_takes_a_job_that_the_first_leaves():
    node, other = idle("n1"), busy("n2", (3, None))
    found, part = plan([job(1, cpus=1)], view(node), [other], ())
    assert ((), frozenset({("claim", 1, "")})) == (found.start, part.watch)
    assert part.again_s == delay_s(0.75)
    assert "n2 should take it" in part.withheld[0][1].text
    waited = dict.fromkeys(part.watch, part.again_s)
    found, part = plan([job(1, cpus=1)], view(node), [other], (), waited=waited)
    assert [1] == keys(found.start)


def test_of_a_long_queue_the_first_are_shared_out_and_nothing_behind_them_starts():
    node, other = idle("n2", cpus=10), busy("n1", (DEPTH * 9, None), cpus=DEPTH * 10)
    queue = [job(n, cpus=1) for n in range(1, DEPTH)] + [job(DEPTH, cpus=2), job(DEPTH + 1, cpus=1)]
    found, part = plan(queue, view(node), [other], ())
    assert DEPTH == part.looked
    assert [DEPTH] == keys(found.start)
    assert DEPTH + 1 in keys(found.rest)


@given(st.floats(0, 1), st.floats(0, 1))
def test_the_emptier_a_node_the_longer_it_waits_and_spread_the_opposite(one, other):
    low, high = sorted([one, other])
    assert STEP_S <= delay_s(low) <= delay_s(high) <= STEP_S * (1 + STEPS)
    assert delay_s(high, spread=True) <= delay_s(low, spread=True)


@given(amounts, amounts, amounts)
def test_emptiness_is_a_share(wants, capacity, free):
    assert 0 <= emptiness(wants, capacity, free) <= 1


def test_the_first_job_that_fits_nowhere_is_kept_a_place_where_it_can_start_first():
    cluster = [busy("n1", (2, 500)), busy("n2", (2, 60)), busy("n3", (2, None))]
    for _, _, part in plans([job(1, cpus=4)], cluster):
        assert (job(1, cpus=4), "n2") == part.reserve


def test_only_the_node_that_keeps_a_place_declines_what_would_delay():
    cluster = [busy("n1", (1, 500)), busy("n2", (2, 60))]
    queue = [job(1, cpus=4), job(2, 61, cpus=2), job(3, 60, cpus=2), job(4, 61, cpus=1)]
    assert {"n1": [2, 4], "n2": [3]} == starts(queue, cluster)
    assert {"n1": [3], "n2": [2]} == starts(queue[1:3], cluster)


def test_what_a_reserved_job_leaves_is_lent_once():
    queue = [job(1, cpus=3), job(2, cpus=1), job(3, cpus=1), job(4, 60, cpus=1)]
    assert {"n1": [2, 4]} == starts(queue, [busy("n1", (2, 60))])


def test_who_is_declined_for_a_reservation_is_told_for_whom_and_how_long():
    found, _ = plan([job(1, cpus=4), job(2, 61, cpus=1)], view(busy("n1", (2, 60))), [], busy("n1", (2, 60)).tasks)
    assert "Priority: n1 keeps 4 cpus for job 1, which starts in 1:00 at the latest; this would delay it" == str(
        found.blocked[1][1]
    )


def test_a_job_that_may_outlast_its_limit_is_not_let_in_by_it():
    queue, node = [job(1, cpus=4), job(2, 40, cpus=2)], busy("n1", (2, 60))
    for factor, started in ((0.0, [2]), (2.0, [])):
        found, _ = plan(queue, view(node), [], node.tasks, lambda _: Conditions(time_factor=factor))
        assert started == keys(found.start)


def test_a_reservation_that_stands_is_not_made_again():
    kept = job(1, other=("R=n2",), cpus=4)
    for _, _, part in plans([kept], [busy("n1", (2, 60)), busy("n2", (2, 60))]):
        assert part.reserve is None


@pytest.mark.parametrize("holder", ["n9", "n3"])
def test_a_reservation_on_a_node_that_is_gone_or_too_small_is_void(holder):
    kept = job(1, other=(f"R={holder}",), cpus=4)
    for _, _, part in plans([kept], [busy("n1", (2, 60)), busy("n2", (2, 70)), idle("n3", cpus=2)]):
        assert (kept, "n1") == part.reserve


def test_a_job_of_higher_priority_does_not_wait_for_a_reservation_of_a_lower_one():
    kept = job(2, other=("R=n1",), cpus=4)
    assert {"n1": [1]} == starts([job(1, cpus=2), kept], [busy("n1", (2, 60))])


def test_a_job_that_can_never_start_takes_no_reservation():
    for _, _, part in plans([job(1, cpus=5), job(2, cpus=4)], [busy("n1", (2, 60))]):
        assert 2 == part.reserve[0].id


def used(name, *running, cpus=4, others=1):
    """A node of which `others` cpus are used outside spoolq."""
    node = busy(name, *running, cpus=cpus)
    usable = {"cpus": (cpus - others) * 1000}
    return node._replace(usable=usable, free=free_of(usable, [task.wants for task in node.tasks]))


def windows(queue, cluster, waited=None):
    [(found, part), *_] = [(found, part) for _, found, part in plans(queue, cluster, waited=waited or {})]
    return keys(found.start), part.reserve and part.reserve[1], sorted(key[0] for key in part.watch)


def test_no_place_is_kept_for_what_others_use():
    queue = [job(1, cpus=4), job(2, cpus=1)]  # neither has a time limit
    assert ([], "n1", ["keep"]) == windows(queue, [busy("n1", (2, None))])
    assert ([2], None, []) == windows(queue, [used("n1", (2, None))])
    # what jobs keep it from is waited for, beside what others use, and by who comes after it too
    assert ([], "n1", ["keep"]) == windows([job(1, cpus=3), job(2, cpus=1)], [used("n1", (2, None))])
    assert ([], "n1", ["keep"]) == windows([job(1, cpus=4), job(3, cpus=3), job(2, cpus=1)], [used("n1", (2, None))])
    # another node where only jobs keep it from starting has the place
    assert ([2], "n2", []) == windows(queue, [used("n1", (2, None)), busy("n2", (4, None))])


def test_a_place_that_is_promised_outlasts_what_others_do_for_a_moment():
    queue, node = [job(1, cpus=4, other=("R=n1",)), job(2, cpus=1)], used("n1", (2, None))
    key = ("outside", 1, "")
    assert ([], None, ["keep", "outside"]) == windows(queue, [node], {key: OUTSIDE_S / 2})
    assert ([2], None, ["outside"]) == windows(queue, [node], {key: OUTSIDE_S})
    assert ([2], "n2", ["outside"]) == windows(queue, [node, busy("n2", (4, None))], {key: OUTSIDE_S})


@given(queues, clusters(), st.data())
def test_what_no_end_of_a_job_would_let_start_bars_nobody(queue, cluster, data):
    """Whatever others use: with or without what lacks that, the rest of the queue starts as it would."""
    cluster = [
        node._replace(usable={name: data.draw(st.integers(0, amount)) for name, amount in node.capacity.items()})
        for node in cluster
    ]
    cluster = [
        node._replace(
            free={name: min(amount, node.usable[name]) for name, amount in node.free.items()},
        )
        for node in cluster
    ]
    waited = {(kind, entry.id, ""): 1e9 for entry in queue for kind in ("claim", "outside")}
    hopeless = [e for e in queue if all(outside(e.wants, node.usable) for node in cluster)]
    for node, found, part in plans(queue, cluster, waited=waited):
        assert part.reserve is None or part.reserve[0] not in hopeless
        others = [other for other in cluster if other is not node]
        rest = [e for e in queue if e not in hopeless]
        alone, _ = plan(rest, view(node), others, node.tasks, waited=waited, reasons=1000)
        assert keys(alone.start) == keys(found.start)


class World:
    """Nodes that all know everything at once, one step a second; the queue is the only thing they share."""

    def __init__(self, cpus):
        self.now, self.queue, self.done = 0, [], {}
        self.cpus = {f"n{number}": n for number, n in enumerate(cpus)}
        self.running = {name: [] for name in self.cpus}  # (entry, since, until)
        self.waited = {name: {} for name in self.cpus}
        self.runs = {}

    def submit(self, entry, runs):
        self.queue = in_order([*self.queue, entry])
        self.runs[entry.id] = runs

    def node(self, name):
        kept = [since for key, since in self.waited[name].items() if key[0] == "keep"]
        tasks = tuple(
            Task(
                entry.wants, entry.limit_s and entry.limit_s - (self.now - since), young=since >= min(kept, default=1e9)
            )
            for entry, since, _ in self.running[name]
        )
        capacity = {"cpus": self.cpus[name] * 1000}
        return Node(name, capacity, free_of(capacity, [task.wants for task in tasks]), tasks)

    def step(self):
        for name, jobs in self.running.items():
            self.running[name] = [item for item in jobs if item[2] > self.now]
        for name in self.cpus:
            me, others = self.node(name), [self.node(other) for other in self.cpus if other != name]
            waited = {key: self.now - since for key, since in self.waited[name].items()}
            found, part = plan(self.queue, view(me), others, me.tasks, waited=waited)
            self.waited[name] = {key: self.waited[name].get(key, self.now) for key in part.watch}
            for entry in found.start:
                self.queue.remove(entry)
                self.running[name].append((released(entry), self.now, self.now + self.runs[entry.id]))
                self.done[entry.id] = self.now
            if part.reserve and part.reserve[0] in self.queue:
                self.queue[self.queue.index(part.reserve[0])] = reserving(*part.reserve)
            assert fits(add(*(item[0].wants for item in self.running[name])), {"cpus": self.cpus[name] * 1000})
        self.now += 1


streams = st.lists(st.tuples(st.integers(1, 2), st.integers(1, 20)), min_size=8, max_size=30)


@pytest.mark.parametrize(("factors", "drain_s"), [((1,), 20), ((2,), 40), ((None,), 20), ((None, 1), 40)])
@settings(max_examples=25, deadline=None)
@given(cpus=st.lists(st.integers(2, 4), min_size=1, max_size=3), stream=streams)
def test_a_whole_node_job_among_an_endless_stream_starts_within_one_drain_time(factors, drain_s, cpus, stream):
    """The longest time limit, or run where nothing is limited; both where some jobs have none."""
    world = World(cpus)
    for number in range(1, 80):
        held, runs = stream[number % len(stream)]
        factor = factors[number % len(factors)]
        small = Entry(rank=500, id=number, wants={"cpus": held * 1000}, limit_s=factor and runs * factor)
        world.submit(small, runs)
        if number == 30:
            world.submit(Entry(rank=499, id=1000, wants={"cpus": max(cpus) * 1000}, limit_s=10), 10)
            came = world.now
        world.step()
    assert world.done[1000] - came <= drain_s


@pytest.mark.parametrize("factor", [1, 2])
@settings(max_examples=25, deadline=None)
@given(cpus=st.lists(st.integers(2, 4), min_size=1, max_size=3), stream=streams)
def test_a_reserved_job_starts_no_later_than_was_promised_when_limits_hold(factor, cpus, stream):
    world, promised = World(cpus), {}
    for number in range(1, 60):
        held, runs = stream[number % len(stream)]
        wants = {"cpus": (held if number % 7 else max(cpus)) * 1000}
        world.submit(Entry(rank=500, id=number, wants=wants, limit_s=runs * factor), runs)
        world.step()
        first = next(iter(world.queue), None)
        if first and (name := holder(first)):
            seen = opening(first.wants, world.node(name))
            promised.setdefault(first.id, world.now + seen.in_s)
    while world.queue:
        assert world.now < 60 * 20 * 2 * 2, "each in turn would have been through"
        world.step()
    assert {} == {late: when for late, when in promised.items() if world.done[late] > when}
