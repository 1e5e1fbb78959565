"""Pools of the whole cluster: all interleavings of a small world, with listings as old as they may be."""

import contextlib
import itertools
import os
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tests.world
from spoolq import claim, config, host
from spoolq.entry import Entry, released
from spoolq.errors import Misconfigured
from spoolq.pack import plan
from spoolq.pools import Verdict, concerns, holders, judge, taken
from spoolq.reserve import Node, reserving
from spoolq.resources import fits
from spoolq.schedule import ANYWHERE, POOL_KEPT, Conditions, NodeView, admit, could_take, explain
from tests.test_crash_points import explore
from tests.test_pack import World as Nodes
from tests.test_placement import said as say
from tests.test_schedule import entry
from tests.world import World

POOL = "lic"


# --- the model: nodes claim, list twice, and decide by the real rule


class Check(NamedTuple):
    """A node that has claimed a job: what each directory may look like to it, and what its first listing showed."""

    job: int
    before: frozenset[int]
    versions: tuple[frozenset[frozenset[int]], ...]  # of each directory, since the claim or the first listing
    found: frozenset[int] | None = None


class State(NamedTuple):
    queue: frozenset[int]
    places: tuple[frozenset[int], ...]  # running of each node, then reaping of each node: jobs that are there
    runs: frozenset[int]  # jobs whose processes live
    checks: tuple[Check | None, ...]
    moves: int  # takeovers that may still happen
    backs: int  # claims given back that are made once more


class Model:
    """
    Args:
        wants: of each job. size: of the pool.
        wrong: a rule taken away, to see that it is missed: `stale`, a listing may be older than the claim;
            `first`, the list is read before the claim; `order`, the first in order starts without looking again;
            `once`, one listing is enough.
    """

    def __init__(
        self, nodes: int, wants: tuple[int, ...], size: int, *, moves: int = 1, backs: int = 1, wrong: str = ""
    ) -> None:
        self.nodes, self.wants, self.size, self.moves, self.wrong = nodes, wants, size, moves, wrong
        self.backs = backs

    def first(self) -> State:
        places = (frozenset(),) * (2 * self.nodes)
        return State(
            frozenset(range(len(self.wants))),
            places[: len(places) if self.moves else self.nodes],
            frozenset(),
            (None,) * self.nodes,
            self.moves,
            self.backs,
        )

    def entry(self, job: int) -> Entry:
        return Entry(rank=500, id=job + 1, wants={POOL: self.wants[job]})

    def put(self, state: State, index: int, jobs: frozenset[int]) -> State:
        """A directory changes: who lists may still see what it was since their claim."""
        places = tuple(jobs if i == index else place for i, place in enumerate(state.places))
        checks = tuple(
            c and c._replace(versions=tuple(v | {jobs} if i == index else v for i, v in enumerate(c.versions)))
            for c in state.checks
        )
        return state._replace(places=places, checks=checks)

    def check(self, state: State, node: int, check: Check | None) -> State:
        return state._replace(checks=tuple(check if i == node else c for i, c in enumerate(state.checks)))

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        for node in range(self.nodes):
            check = state.checks[node]
            yield from self.claims(state, node) if check is None else self.looks(state, node, check)
        for index, place in enumerate(state.places):
            for job in place & state.runs:
                node = index % self.nodes
                ended = self.put(state, index, place - {job})
                yield f"job {job} ends", ended._replace(runs=state.runs - {job})
                if state.moves and not any(c and c.job == job for c in state.checks):
                    for other in set(range(self.nodes)) - {node}:
                        to = self.nodes + other
                        moved = self.put(self.put(state, index, place - {job}), to, state.places[to] | {job})
                        # one rename: nobody sees it in neither or in both by one fresh look, but may by two
                        yield f"job {job} is taken over by n{other}", moved._replace(moves=state.moves - 1)

    def claims(self, state: State, node: int) -> Iterator[tuple[str, State]]:
        """Whatever the plan was made with: that may be so old that it shows nobody."""
        for job in state.queue:
            after = self.put(state, node, state.places[node] | {job})
            after = after._replace(queue=state.queue - {job})
            now = state.places if self.wrong == "first" else after.places
            old = [frozenset[int]()] if self.wrong == "stale" else []
            versions = tuple(frozenset([place, *old]) for place in now)
            for before in {frozenset[int](), frozenset[int]().union(*state.places)}:
                yield f"n{node} claims {job}", self.check(after, node, Check(job, before, versions))

    def looks(self, state: State, node: int, check: Check) -> Iterator[tuple[str, State]]:
        """
        A listing, of which each directory may be as old as the claim, or the second as the end of the first.

        To read them all at its end is to read each at any time before: what could be seen then may still be.
        """
        for seen in {frozenset().union(*read) for read in itertools.product(*check.versions)}:
            if check.found is None and self.wrong != "once":
                now = check.versions if self.wrong else tuple(frozenset([place]) for place in state.places)
                first = check._replace(found=seen, versions=now)
                yield f"n{node} lists {set(seen)}", self.check(state, node, first)
            else:
                yield from self.decides(state, node, check, seen)

    def decides(self, state: State, node: int, check: Check, seen: frozenset[int]) -> Iterator[tuple[str, State]]:
        found = seen | (check.found or frozenset()) | ({check.job} if self.wrong else frozenset())
        now = holders((self.entry(job) for job in found), {POOL: self.size})
        verdict = judge({POOL: self.size}, self.entry(check.job), {(job + 1, "") for job in check.before}, now)
        if verdict is Verdict.START or (verdict is Verdict.WAIT and self.wrong == "order"):
            yield f"n{node} starts {check.job}", self.check(state._replace(runs=state.runs | {check.job}), node, None)
        if verdict is Verdict.WAIT:
            again = check._replace(found=seen, versions=tuple(frozenset([place]) for place in state.places))
            yield f"n{node} looks again", self.check(state, node, again)
        if verdict is not Verdict.START:  # also one that waits may run out of patience
            back = self.check(self.put(state, node, state.places[node] - {check.job}), node, None)
            if state.backs:
                back = back._replace(queue=state.queue | {check.job}, backs=state.backs - 1)
            yield f"n{node} gives {check.job} back", back

    def search(self) -> tuple[int, list[str]]:
        """(states, the way to one in which too much runs)."""
        start = self.first()
        came: dict[State, tuple[State, str] | None] = {start: None}
        ahead = [start]
        while ahead:
            later = []
            for state in ahead:
                if sum(self.wants[job] for job in state.runs) > self.size:
                    way, step = [], came[state]
                    while step is not None:
                        way.append(step[1])
                        step = came[step[0]]
                    return len(came), way[::-1]
                for label, after in self.steps(state):
                    if after not in came:
                        came[after] = (state, label)
                        later.append(after)
            ahead = later
        return len(came), []


@pytest.mark.parametrize(
    ("nodes", "wants", "size", "moves"),
    [(2, (1, 1), 1, 1), (2, (2, 1, 1), 2, 0), (3, (1, 1, 1), 2, 0)],
)
def test_a_pool_is_never_exceeded(nodes, wants, size, moves):
    states, way = Model(nodes, wants, size, moves=moves, backs=int(nodes == 2)).search()
    print(f"{nodes} nodes, wants {wants} of {size}, {moves} takeovers: {states} states")
    assert [] == way
    assert states > 50


@pytest.mark.parametrize("wrong", ["stale", "first", "order", "once"])
def test_each_rule_is_needed(wrong):
    _, way = Model(2, (1, 1), 1, wrong=wrong).search()
    print(way)
    assert way, f"without {wrong} nothing breaks: the search is blind"


def test_somebody_always_gets_it():
    """Of those that claimed at once, listed freshly, the first in order is never the one that gives back."""
    for size in (1, 2, 3):
        for n in range(1, 6):
            claimed = {(i, ""): Entry(rank=500, id=i, wants={POOL: 1}) for i in range(1, n + 1)}
            while True:
                verdicts = {key: judge({POOL: size}, own, (), claimed) for key, own in claimed.items()}
                back = [key for key, verdict in verdicts.items() if verdict is Verdict.BACK]
                for key in back:
                    del claimed[key]
                if not back:
                    break
            assert min(size, n) == len(claimed)
            assert {Verdict.START} == set(verdicts.values())


wants = st.dictionaries(st.sampled_from(["cpus", "a", "b", "c"]), st.integers(1, 3000), max_size=3)
entries = st.lists(
    st.builds(Entry, rank=st.just(500), id=st.integers(1, 6), gen=st.integers(0, 3), wants=wants), max_size=8
)


@given(entries, st.integers(0, 7), st.frozensets(st.tuples(st.integers(1, 6), st.just(""))))
def test_start_means_that_all_of_it_fits(found, index, before):
    pools = {"a": 4000, "b": 2000}
    now = holders(found, pools)
    for key, seen in now.items():
        assert seen.gen == max(e.gen for e in found if (e.id, e.chunk) == key and concerns(e.wants, pools))
    own = found[index % len(found)] if found else Entry(rank=500, id=9, wants={"a": 1})
    verdict = judge(pools, own, before, now)
    seen = now.get((own.id, own.chunk))
    if seen is None or (seen.gen, seen.attempt) != (own.gen, own.attempt):
        assert verdict is Verdict.WAIT
    elif verdict is Verdict.START:
        total = taken(now.values(), pools)
        assert all(total[name] <= pools[name] for name in pools if name in own.wants)
    else:
        assert any(taken(now.values(), pools)[name] > pools[name] for name in pools)


def test_who_takes_nothing_is_not_concerned():
    assert not concerns({"cpus": 1000, "io": 5}, {POOL: 1000})
    assert not concerns({POOL: 1000}, {})
    assert concerns({POOL: 1}, {POOL: 1000})


def test_pools_in_spool_toml():
    text = b'format = 1\nuuid = "u"\nname = "x"\n[pools]\nmatlab = 5\nbandwidth = 0.5\n'
    policy = config.parse_policy(text, "spool.toml")
    assert {"matlab": 5000, "bandwidth": 500} == policy.pools
    assert {} == config.parse_policy(text.partition(b"[pools]")[0], "spool.toml").pools
    assert "{ matlab = 5, bandwidth = 0.5 }" in [setting.value for setting in policy.in_force]
    for bad in (b"cpus = 1", b"A = 1", b"a = 0", b"a = true"):
        with pytest.raises(Misconfigured, match="pools"):
            config.parse_policy(text.partition(b"matlab")[0] + bad, "spool.toml")
    assert "# pools = {} " in config.new_spool("u", "x")


def test_why_and_who_comes_first():
    view = NodeView(
        name="n1", capacity={"cpus": 4000, POOL: 5000}, free={"cpus": 4000, POOL: 2000},
        held={7: {POOL: 3000}}, pools=frozenset([POOL]),
    )  # fmt: skip
    assert ("Resources: needs 3 lic, 2 of 5 free; all nodes share lic; job 7 holds 3 lic") == str(
        explain(entry(1, lic=3), view)
    )
    plan = admit([entry(1, cpus=1, lic=3), entry(2, cpus=1, lic=1), entry(3, cpus=1)], view.free, view)
    assert [3] == [e.id for e in plan.start]
    assert "Priority: what it wants of a shared pool is kept for a job that comes first" == str(plan.blocked[1][1])
    # what could never start here keeps nobody waiting
    plan = admit([entry(1, cpus=8, lic=3), entry(4, lic=6), entry(2, cpus=1, lic=1)], view.free, view)
    assert [2] == [e.id for e in plan.start]


def test_a_pool_is_kept_for_the_first_also_by_nodes_that_could_not_run_it():
    """Job 1 may run on n2 alone and waits for the pool; n1 does not give the rest of it to a smaller one."""
    cpus = {"cpus": 4000}
    view = NodeView(
        name="n1",
        capacity={**cpus, POOL: 3000},
        free={**cpus, POOL: 1000},
        held={7: {POOL: 2000}},
        pools=frozenset([POOL]),
    )
    other = Node("n2", {**cpus, POOL: 3000}, {**cpus, POOL: 3000})
    queue = [entry(1, cpus=1, lic=2, more=True), entry(2, cpus=1, lic=1), entry(3, cpus=1)]
    for where, starts in (("n2", {3}), ("n9", {2, 3})):
        waited = {("claim", job, ""): 100.0 for job in (1, 2, 3)}
        terms = {1: Conditions(nodelist=(where,))}
        ask = lambda e, terms=terms: terms.get(e.id, ANYWHERE)  # noqa: E731
        found, _ = plan(queue, view, [other], [], ask, waited)
        assert starts == {e.id for e in found.start}
        if where == "n2":
            assert POOL_KEPT in str({e.id: reason for e, reason in found.blocked}[2])


class Shared(Nodes):
    """
    Nodes with a pool of which each plans with itself and the next `near` only, as one of a crowd does.

    A job with `more` may run on `bound` alone, which is the last to look.
    """

    def __init__(self, cpus, size, near, bound):
        super().__init__(cpus)
        self.size, self.near, self.bound = size, near, bound

    def terms(self, entry):
        return Conditions(nodelist=(self.bound,)) if entry.more else ANYWHERE

    def left(self):
        using = sum(entry.wants.get(POOL, 0) for jobs in self.running.values() for entry, _, _ in jobs)
        return {POOL: self.size * 1000 - using}

    def node(self, name):
        found = super().node(name)
        return found._replace(capacity={**found.capacity, POOL: self.size * 1000}, free={**found.free, **self.left()})

    def look(self, name):
        names = [*self.cpus] * 2
        place = names.index(name)
        others = [other for other in dict.fromkeys(names[place + 1 : place + 1 + self.near]) if other != name]
        me = self.node(name)
        view = NodeView(name=name, capacity=me.capacity, free=me.free, pools=frozenset([POOL]))
        asked = []

        def abroad(entry, terms):
            asked.append(entry.id)
            far = {other: self.node(other).capacity for other in self.cpus if other not in (name, *others)}
            return bool(could_take(entry.wants, far, terms))

        waited = {key: self.now - since for key, since in self.waited[name].items()}
        found, part = plan(
            self.queue, view, [self.node(other) for other in others], me.tasks, self.terms, waited, abroad=abroad
        )
        assert len(asked) <= sum(POOL in entry.wants for entry in self.queue)
        self.waited[name] = {key: self.waited[name].get(key, self.now) for key in part.watch}
        for job in found.start:
            assert fits({POOL: job.wants.get(POOL, 0)}, self.left())
            self.queue.remove(job)
            self.running[name].append((released(job), self.now, self.now + self.runs[job.id]))
            self.done[job.id] = self.now
        if part.reserve and part.reserve[0] in self.queue:
            self.queue[self.queue.index(part.reserve[0])] = reserving(*part.reserve)

    def step(self):
        for name, jobs in self.running.items():
            self.running[name] = [item for item in jobs if item[2] > self.now]
        for name in sorted(self.cpus, key=lambda name: name == self.bound):
            self.look(name)
        self.now += 1


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.integers(1, 3), min_size=2, max_size=4),
    st.integers(1, 3),
    st.integers(0, 3),
    st.lists(st.integers(1, 6), min_size=5, max_size=5),
    st.data(),
)
def test_nobody_is_overtaken_for_ever_for_a_pool_whatever_its_node_and_who_sees_it(cpus, size, near, runs, data):
    """Of an endless stream of small jobs none keeps one from starting that may run on one node only, the last to look."""
    bound = data.draw(st.sampled_from([f"n{number}" for number in range(len(cpus))]))
    world, came = Shared(cpus, size, near, bound), 6
    wants = {"cpus": data.draw(st.integers(1, world.cpus[bound])) * 1000, POOL: size * 1000}
    for step in range(came + 3 * max(runs)):  # the pool, then the node, and a look of each
        for number in range(3 * step + 1, 3 * step + 4):
            small = {"cpus": 1000, **({POOL: 1000} if number % 3 else {})}
            world.submit(Entry(rank=500, id=number, wants=small), runs[number % 5])
        if step == came:
            world.submit(Entry(rank=499, id=1000, wants=wants, more=True), 1)
        world.step()
        if 1000 in world.done:
            break
    assert 1000 in world.done
    # on a node that is gone nobody waits for it
    gone = Shared(cpus, size, near, "gone")
    gone.submit(Entry(rank=499, id=1000, wants=wants, more=True), 1)
    gone.submit(Entry(rank=500, id=1, wants={"cpus": 1000, POOL: 1000}), 1)
    for _ in range(8):
        gone.step()
    assert [1] == [*gone.done]


def test_of_two_jobs_for_the_last_of_a_pool_each_node_starts_the_first():
    cpus = {"cpus": 1000}
    queue = [entry(1, cpus=1, lic=1), entry(2, cpus=1, lic=1)]
    started = []
    for name, other in (("n1", "n2"), ("n2", "n1")):
        view = NodeView(name=name, capacity={**cpus, POOL: 1000}, free={**cpus, POOL: 1000}, pools=frozenset([POOL]))
        found, _ = plan(queue, view, [Node(other, view.capacity, view.free)], [])
        started += [e.id for e in found.start]
    assert [1] == started, "job 2 is not for the other node: what one takes of a pool both have less of"


# --- the door: claims that wait for certainty


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A spool with one of `lic` for all nodes."""
    monkeypatch.setattr(tests.world, "POLICY", b"pools = { lic = 1 }\n" + tests.world.POLICY)
    made = World(str(tmp_path), monkeypatch, ends=False)
    yield made
    made.close()


GAP_S = 1e6  # nothing is due by itself


def up(world, name="n1", gap_s=0.0):
    """A node; with a gap as on a network file system."""
    node = world.up(name, state=f"{world.state}.{name}")
    node.pending.gap_s = gap_s
    return node


@pytest.fixture
def states(world):
    for name in ("n1", "n2"):
        os.makedirs(f"{world.state}.{name}")


WANTS = {"cpus": 1000, "mem": 1000, POOL: 1000}


def look(node):
    """The claims are due now."""
    for item in node.pending.items:
        item.due = 0.0
    node.pending.settle(1.0)


def test_a_claim_waits_until_it_is_certain(world, states):
    node = up(world, gap_s=GAP_S)
    job = world.submit(1, wants=WANTS)
    world.turn(node, "queue")

    assert "running" == world.where(job)[0]
    assert [] == world.runner.starts
    assert (0, 1000) == (claim.free(node)[POOL], claim.free(node)["cpus"]), "what it wants is not lent again"
    world.turn(node, "queue", "beat", "control")
    assert [] == world.runner.starts, "not before a listing that begins later, nor taken for a ghost"
    look(node)
    assert [] == world.runner.starts, "one listing is not enough"
    look(node)
    assert [(job, 1)] == world.runner.starts
    assert [] == node.pending.items


def test_too_many_at_once_and_the_later_gives_back(world, states, monkeypatch):
    monkeypatch.setattr("spoolq.pending.REST_S", (1e6, 1e6))
    first, second = up(world, "n1", GAP_S), up(world, "n2", GAP_S)
    ids = [world.submit(1, wants=WANTS), world.submit(1, wants=WANTS)]
    for node, keep in ((second, ids[1]), (first, ids[0])):  # each has seen only its own
        node.candidates = [at for at in node.queue.look() if at.entry.id == keep]
        claim.start_one(node, node.candidates.pop())
    look(second)
    look(first)
    look(first)
    assert [] == world.runner.starts
    assert "running" == world.where(ids[0])[0]
    look(second)
    assert "queue" == world.where(ids[1])[0]
    assert 0 == claim.free(second)[POOL], "it does not try again at once"
    look(first)
    look(first)
    assert [(ids[0], 1)] == world.runner.starts


def test_a_daemon_that_dies_or_stops_meanwhile_leaves_it_to_others(world, states):
    job = world.submit(1, wants=WANTS)
    dead = up(world, gap_s=GAP_S)
    world.turn(dead, "queue")
    assert "running" == world.where(job)[0]
    node = up(world)  # the next daemon of the same node: gives it back, and claims it anew
    assert "queue" == world.where(job)[0]
    world.turn(node, "queue")
    assert [(job, 1)] == world.runner.starts

    other = world.submit(1, wants={"cpus": 1000, "mem": 1000})
    world.turn(node, "queue")
    assert (other, 1) in world.runner.starts


def test_who_waits_for_a_pool_and_a_node_far_away_is_not_overtaken(world, monkeypatch):
    monkeypatch.setattr("spoolq.placement.NEAR", 1)
    node, lic = up(world, "m"), {"mem": 10_000, POOL: 1000}
    node.capacity.update(lic)
    say(world, "n", capacity={"cpus": 1000, **lic})
    say(world, "z", capacity={"cpus": 64_000, **lic}, free={**lic, "cpus": 0})
    world.submit(1, wants={**WANTS, "cpus": 50_000})
    world.submit(2, wants=WANTS)
    world.turn(node)
    assert (["n"], "queue") == ([o.name for o in node.placement.others], world.at(2).top), "z may run job 1"
    assert ["z"] == [name for name, other in node.placement.known.items() if name != "n" and other.takes]
    say(world, "z", state="draining")
    now = host.boottime()
    for later in range(3):
        monkeypatch.setattr(host, "boottime", lambda later=later: now + (later + 1) * 2 * node.policy.beat_s)
        world.turn(node)
    assert "running" == world.at(2).top, "nobody waits for a node that takes no jobs"


def test_a_daemon_that_is_told_to_stop_gives_its_claims_back(world, states):
    job = world.submit(1, wants=WANTS)
    node = up(world, gap_s=GAP_S)
    world.turn(node, "queue")
    node.close()
    assert "queue" == world.where(job)[0]


def test_a_spool_that_is_away_starts_nothing(world, states):
    """Where nothing is mounted every directory is empty, also our own."""
    job = world.submit(1, wants=WANTS)
    node = up(world, gap_s=GAP_S)
    world.turn(node, "queue")
    os.rename(world.root, world.root + ".away")
    os.makedirs(world.root)
    for _ in range(3):
        with contextlib.suppress(OSError):
            look(node)
    assert [] == world.runner.starts
    os.rmdir(world.root)
    os.rename(world.root + ".away", world.root)
    look(node)
    look(node)
    assert [(job, 1)] == world.runner.starts


def test_a_daemon_dies_at_every_call(tmp_path, monkeypatch):
    """Claim, list, start, finish of a job that takes the whole pool, and of the next."""
    monkeypatch.setattr(tests.world, "POLICY", b"pools = { lic = 1 }\n" + tests.world.POLICY)
    points = explore(tmp_path, monkeypatch, lambda w: w.submit(2, wants=WANTS), lambda w: w.serve())
    print(f"pools: {points} crash points")
    assert points > 50


jobs = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=8)  # cpus and licences of each


@given(jobs, st.lists(st.integers(0, 4), min_size=1, max_size=3), st.integers(0, 4))
def test_nodes_that_know_the_same_do_not_plan_more_of_a_pool_than_there_is(queue, cpus, left):
    entries = [entry(i + 1, cpus=n, **({POOL: licences} if licences else {})) for i, (n, licences) in enumerate(queue)]
    nodes = [
        Node(f"n{i}", {"cpus": 4000, POOL: 4000}, {"cpus": n * 1000, POOL: left * 1000}) for i, n in enumerate(cpus)
    ]
    starts = []
    for node in nodes:
        view = NodeView(name=node.name, capacity=node.capacity, free=node.free, pools=frozenset([POOL]))
        found, _ = plan(entries, view, [other for other in nodes if other is not node], [])
        assert taken(found.start, {POOL: 4000})[POOL] <= left * 1000
        told = {e.id for e, _ in found.blocked} | {e.id for e in found.rest}
        assert told == {e.id for e in entries} - {e.id for e in found.start}, "each has a reason, or waits to be told"
        starts += found.start
    assert len(starts) == len({e.id for e in starts})
    assert taken(starts, {POOL: 4000})[POOL] <= left * 1000
