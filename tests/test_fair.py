"""Whose turn it is: ageing, fair share, limits of users; as pure rules, on nodes that share a spool, and for real."""

import collections
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spoolq import config, fair
from spoolq.entry import Entry
from spoolq.errors import Misconfigured
from spoolq.fair import Most, Use
from spoolq.job import Job
from tests.cluster import Cluster
from tests.test_placement import WAIT, go, names, placed, say
from tests.world import POLICY, World

waiting = st.lists(
    st.builds(
        Entry,
        rank=st.integers(499, 501),
        id=st.integers(1, 10_000),
        wants=st.integers(1, 8).map(lambda n: {"cpus": n * 500}),
        owner=st.sampled_from(["anna", "ben", "cy", ""]),
        other=st.sampled_from([(), (), (), ("R=n1",), ("Q=100",), ("Q=900",)]),
    ),
    max_size=30,
    unique_by=lambda entry: entry.id,
)
uses = st.dictionaries(
    st.sampled_from(["anna", "ben", "cy", "dan"]), st.builds(Use, st.integers(0, 9), st.integers(0, 9000))
)
mosts = st.builds(Most, st.none() | st.integers(1, 9), st.none() | st.integers(1, 9000))


def job(job_id, owner="", cpus=1, rank=500, other=()):
    return Entry(rank=rank, id=job_id, owner=owner, wants={"cpus": int(cpus * 1000)}, other=other)


def turns(queue, use=None, **options):
    return [queue[i].id for i in fair.order(queue, use, **options)]


# --- the order


@given(waiting, st.none() | uses, st.sampled_from([0.0, 60.0]), st.randoms())
def test_all_nodes_order_the_same_whatever_they_list_first(queue, use, ageing_s, chance):
    other = chance.sample(queue, len(queue))
    found = turns(queue, use, now=1000.0, ageing_s=ageing_s)
    assert found == turns(other, use, now=1000.0, ageing_s=ageing_s)
    assert sorted(found) == sorted(entry.id for entry in queue)


@given(waiting, uses)
def test_the_higher_priority_comes_first_and_of_one_user_the_lower_id(queue, use):
    found = [queue[i] for i in fair.order(queue, use)]
    assert [entry.rank for entry in found] == sorted(entry.rank for entry in queue)
    for owner in fair.owners(queue):
        for kept in (False, True):
            mine = [(e.rank, e.id) for e in found if e.owner == owner and kept == any("R=" in f for f in e.other)]
            assert mine == sorted(mine)


@given(waiting)
def test_with_one_user_the_order_is_rank_then_id(queue):
    queue = [entry._replace(owner="anna", other=()) for entry in queue]
    assert turns(queue, {}) == turns(queue) == [e.id for e in sorted(queue, key=lambda e: (e.rank, e.id))]


@given(waiting, uses)
def test_next_is_always_whoever_would_have_the_fewest_cpus_in_use(queue, use):
    queue = [entry._replace(rank=500, other=()) for entry in queue]
    cpus = collections.Counter({owner: use.get(owner, fair.NOTHING).cpus for owner in fair.owners(queue)})
    left = collections.Counter(entry.owner for entry in queue)
    for entry in (queue[i] for i in fair.order(queue, use)):
        assert cpus[entry.owner] == min(cpus[owner] for owner, count in left.items() if count)
        cpus[entry.owner] += entry.wants["cpus"]
        left[entry.owner] -= 1


def test_users_take_turns_by_cpus_in_use():
    queue = [job(n, "anna") for n in range(1, 5)] + [job(n, "ben") for n in range(5, 7)]
    assert [1, 5, 2, 6, 3, 4] == turns(queue, {})
    assert [5, 6, 1, 2, 3, 4] == turns(queue, {"anna": Use(2, 2000)})


def test_who_was_promised_a_place_keeps_its_turn():
    queue = [job(1, "anna", 4, other=("R=n1",)), job(2, "ben")]
    assert [1, 2] == turns(queue, {"anna": Use(9, 9000)})


def test_nobody_is_overtaken_for_ever():
    """Whatever others submit: one whole-node job among small ones of a user who never uses more."""
    queue, use = [job(1, "anna", 4)], {"anna": Use(1, 1000)}
    for number in range(2, 50):
        queue.append(job(number, "ben"))
        use["ben"] = Use(number - 1, (number - 1) * 1000)
        if turns(queue, use)[0] == 1:
            break
        queue.pop()
    else:
        raise AssertionError("always overtaken")


def test_a_job_ages_by_one_of_priority_in_each_period():
    old, young = job(2, rank=505, other=("Q=0",)), job(1, rank=500, other=("Q=590",))
    assert [1, 2] == turns([old, young], now=599, ageing_s=100)
    assert [2, 1] == turns([old, young], now=600, ageing_s=100)
    assert [1, 2] == turns([old, young], now=1e9)
    assert 0 == fair.rank(old, 1e9, 1)
    assert 505 == fair.rank(old, -50, 1)


@pytest.mark.parametrize("fact", ["Q=", "Q=x", "Q=99999999999999999"])
def test_what_is_no_time_in_a_name_does_not_age(fact):
    assert 500 == fair.rank(job(1, other=(fact,)), 1e9, 1)


def test_a_name_says_since_when_it_is_in_line_only_where_the_site_wants_it():
    made = Job(command=("true",), submitted="2026-12-24T18:30:00.123456Z")
    assert () == made.entry(1).other
    assert ("Q=1798137000",) == made._replace(ages=True).entry(1).other


# --- limits


@given(waiting, uses, mosts)
def test_no_user_starts_more_than_the_limits_and_every_other_job_has_a_reason(queue, use, most):
    may, not_now = fair.within(queue, use, most)
    assert sorted(e.id for e in queue) == sorted([e.id for e in may] + [e.id for e, _ in not_now])
    assert {"UserLimit"} >= {reason.word for _, reason in not_now}
    started = fair.used(may)
    for owner, mine in started.items():
        total = fair.together([use, {owner: mine}])[owner]
        assert most.jobs is None or total.jobs <= most.jobs
        assert most.cpus is None or total.cpus <= most.cpus


def test_the_reason_has_words_and_figures():
    assert "anna runs 3 jobs on all nodes, and max_running is 3 a user" in str(
        fair.over(job(1, "anna"), Use(3, 3000), Most(3))
    )
    assert "needs 2 cpus, anna uses 3 on all nodes, and max_cpus is 4 a user" in str(
        fair.over(job(1, "anna", 2), Use(3, 3000), Most(None, 4000))
    )


@pytest.mark.parametrize("value", ["0", "-1", '"some"', "true", "1.5"])
def test_a_limit_that_is_none_is_refused(value):
    with pytest.raises(Misconfigured, match=r"max_running"):
        config.parse_policy(POLICY + f"[policy]\nmax_running = {value}\n".encode(), "spool.toml")


# --- nodes


def limited(world: World, monkeypatch, text: str):
    """Daemons that read this in [policy]."""
    monkeypatch.setattr("tests.world.POLICY", POLICY + f"[policy]\n{text}\n".encode())


def test_what_a_user_runs_elsewhere_counts(world: World, monkeypatch, tmp_path):
    limited(world, monkeypatch, "max_running = 2")
    for name in ("a", "b", "c", "d"):
        world.submit(user="anna" if name != "d" else "ben")
    one, two = world.up("n1", cpus=1), world.up("n2", cpus=4, state=str(tmp_path))
    world.turn(one)
    assert "running" == world.at(1).top
    world.turn(two)
    assert ["running", "running", "queue", "running"] == [world.at(n).top for n in range(1, 5)]


def test_of_two_claims_at_once_the_one_that_is_too_many_is_given_back(world: World, monkeypatch, tmp_path):
    limited(world, monkeypatch, "max_running = 1")
    world.submit(2, user="anna")
    one, two = world.up("n1", cpus=1), world.up("n2", state=str(tmp_path))
    two.queue.count()  # before the other claims: nothing runs there
    world.turn(one)
    assert ["running", "queue"] == [world.at(n).top for n in (1, 2)]
    two.queue._counted = 1e12
    world.turn(two)
    assert ("queue", 2) == (world.at(2).top, world.entry(2).gen)
    assert [(1, 1)] == world.runner.starts


def test_of_a_long_queue_other_users_and_old_jobs_are_seen_too(world: World, monkeypatch):
    monkeypatch.setattr("spoolq.queue.SCAN_LIMIT", 3)
    monkeypatch.setattr("spoolq.entry.BLOCK", 4)
    limited(world, monkeypatch, "ageing_s = 1000")
    world.submit(12, user="anna")
    last = world.submit(user="ben")
    low = world.submit(user="anna", priority=-1, ages=True, submitted="2020-01-01T00:00:00.000000Z")
    node = world.up()
    found = [at.entry.id for at in node.queue.look(3)]
    assert [low, 1, last, 2] == found[:4]


# --- for real


def owned(cluster: Cluster, user: str, *words: str) -> int:
    """Submitted by another user, as the name says."""
    job_id = cluster.sub("-H", *words)
    (name,) = (name for name in names(cluster, "held") if name.split(".")[1] == str(job_id))
    top, _, rest = name.partition("~")
    rank, number, gen, attempt = top.split(".")
    place = f"{cluster.root}/held/500.000000001"
    facts = ",".join(f"@{user}" if fact.startswith("@") else fact for fact in rest.split(","))
    os.rename(f"{place}/{name}", f"{place}/{rank}.{number}.{int(gen) + 1}.{attempt}~{facts}")
    return job_id


def test_two_users_share_a_node(cluster: Cluster):
    """Six jobs of one who came first and two of another, four of which run at once: two of each."""
    wait = WAIT.format(cluster.base)
    many = [owned(cluster, "anna", "--wrap", wait) for _ in range(6)]
    few = [owned(cluster, "ben", "--wrap", wait) for _ in range(2)]
    cluster.ok("release", *map(str, many + few))
    why = cluster.ok("why", str(many[1]))
    assert "users of equal priority take turns, the fewest cpus in use first: anna 0, ben 0" in why
    cluster.node("n1", 4)

    assert {"n1": sorted([*many[:2], *few])} == placed(cluster, [*many[:2], *few])
    go(cluster)
    assert {"COMPLETED"} == {cluster.result(job)["state"] for job in many + few}


def ups(cluster: Cluster) -> int:
    """How many jobs have begun."""
    return len([name for name in os.listdir(cluster.base) if name.startswith("up.")])


def test_no_user_runs_more_than_max_running_on_all_nodes(cluster: Cluster):
    say(cluster, max_running=2)
    cluster.node("n1", 2)
    cluster.node("n2", 2)
    jobs = [cluster.sub("--wrap", f"touch up.$SPOOLQ_JOB_ID; {WAIT.format(cluster.base)}") for _ in range(4)]
    cluster.until(lambda: ups(cluster) == 2, "two run")
    said = "runs 2 jobs on all nodes, and max_running is 2 a user"
    cluster.until(lambda: "UserLimit" in (why := cluster.ok("why", str(jobs[3]))) and said in why, "it says so")
    assert 2 == ups(cluster)  # running/ may hold a third for a moment: claimed at once with another, and given back
    go(cluster)
    assert {"COMPLETED"} == {cluster.result(job)["state"] for job in jobs}


def test_no_user_has_more_than_max_cpus_on_all_nodes(cluster: Cluster):
    say(cluster, max_cpus=3)
    cluster.node("n1", 2)
    cluster.node("n2", 2)
    command = ("--wrap", WAIT.format(cluster.base))
    jobs = [cluster.sub("-c", "2", *command), cluster.sub("-c", "1", *command)]
    cluster.until(
        lambda: all("running" == cluster.place(job) for job in jobs), "both run, which are all cpus that one may have"
    )
    over = cluster.sub("-H", "-c", "1", "true")
    other = owned(cluster, "ben", "-c", "1", "true")
    cluster.ok("release", str(over), str(other))
    assert "COMPLETED" == cluster.result(other)["state"], "another user's"
    cluster.until(lambda: "UserLimit" in cluster.ok("why", str(over)), "it says so")
    assert "uses 3 on all nodes, and max_cpus is 3 a user" in cluster.ok("why", str(over))
    assert "queue" == cluster.place(over)
    go(cluster)
    assert {"COMPLETED"} == {cluster.result(job)["state"] for job in [*jobs, over]}


def test_an_old_job_comes_before_younger_ones_of_higher_priority(cluster: Cluster):
    say(cluster, ageing_s=1e-6)  # both have the best rank long before a node looks, and then the lower id counts
    old = cluster.sub("-p", "-3", "true")
    assert any(",Q=" in name for name in names(cluster, "queue"))
    cluster.until(lambda: cluster.spoolq("sub", "true").returncode == 0, "a younger one")
    cluster.node("n1", 1)
    assert cluster.result(old)["started"] <= cluster.result(old + 1)["started"]
