"""Begin times: as people write them, in names, and jobs that start when theirs has come."""

import re
import time
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spoolq import begin, steer
from spoolq.entry import Entry, parse_name
from spoolq.errors import UsageError
from spoolq.job import Job
from tests.cluster import Cluster
from tests.test_crash_points import explore
from tests.world import World

NOW = datetime(2026, 12, 23, 15, 30).timestamp()


@pytest.mark.parametrize(
    ("text", "when"),
    [
        ("now+2h", datetime(2026, 12, 23, 17, 30)),
        ("now + 90s", datetime(2026, 12, 23, 15, 31, 30)),
        ("now", datetime(2026, 12, 23, 15, 30)),
        ("16:00", datetime(2026, 12, 23, 16, 0)),
        ("6:15:30", datetime(2026, 12, 24, 6, 15, 30)),
        ("15:30", datetime(2026, 12, 24, 15, 30)),
        ("tomorrow", datetime(2026, 12, 24)),
        ("Tomorrow 6:30", datetime(2026, 12, 24, 6, 30)),
        ("today 18:00", datetime(2026, 12, 23, 18, 0)),
        ("noon", datetime(2026, 12, 24, 12, 0)),
        ("midnight", datetime(2026, 12, 24)),
        ("2027-01-02", datetime(2027, 1, 2)),
        ("2027-01-02T18:30", datetime(2027, 1, 2, 18, 30)),
        ("2027-01-02 18:30:05", datetime(2027, 1, 2, 18, 30, 5)),
    ],
)
def test_times_as_people_write_them(text, when):
    assert int(when.timestamp()) == begin.moment(text, NOW)


def test_a_zone_that_is_said_counts():
    assert begin.moment("2027-01-02T18:30Z", NOW) == begin.moment("2027-01-02T19:30+01:00", NOW) == 1798914600


@pytest.mark.parametrize(
    "text", ["", "soon", "25:00", "12:60", "2027-13-01", "now+", "now-2h", "now+xyz", "0001-01-01"]
)
def test_what_is_no_time_is_refused(text):
    with pytest.raises(UsageError, match=r"begin: "):
        begin.moment(text, NOW)


def test_a_bare_number_after_now_is_refused_with_what_to_say():
    with pytest.raises(UsageError, match=r"now\+90s, now\+30m"):
        begin.moment("now+3600", NOW)


@given(st.integers(0, begin.MOST - 1), st.integers(0, 4_000_000_000))
def test_what_the_job_file_keeps_is_the_same_moment(when, now):
    text = begin.resolved(f"now+{when % 10**9}s", now)
    assert (begin.moment(text, 0) if text else now) == now + when % 10**9


def test_a_begin_time_is_a_fact_of_the_name_and_read_back():
    entry = Job(command=("true",), begin="2026-12-24T18:30:00Z").entry(7)
    assert "500.7.0.1~c1,m1000,HB,B=1798137000~" == entry.name
    assert 1798137000 == begin.begins(parse_name(entry.name))
    assert Job(command=("true",)).entry(7) == entry._replace(held="", other=())


@pytest.mark.parametrize("fact", ["B=", "B=x", "B=123456789012345"])
def test_what_is_no_begin_time_in_a_name_is_none(fact):
    assert begin.begins(Entry(rank=500, id=1, other=(fact,))) is None


# --- nodes


def later(world: World) -> None:
    world.submit(begin="2099-01-01T00:00:00Z")


def come(world: World) -> None:
    """Let the time of job 1 come: its name says so."""
    at = world.spool.lookup("held", 1)
    if at:
        world.spool.edit(at, other=begin.fact(1))


def test_a_node_lets_it_go_when_its_time_has_come(world: World):
    later(world)
    node = world.up()
    world.turn(node, "begins", "begin times", "queue")
    assert "held" == world.at(1).top
    come(world)
    world.turn(node, "begins", "begin times", "queue")
    world.turn(node, "queue")
    assert ("running", ()) == (world.at(1).top, world.entry(1).other)


def test_of_some_nodes_one_comes_first_and_the_others_wait_for_it(world: World, tmp_path):
    from spoolq.reserve import Node

    node = world.up()
    node.placement.others = tuple(Node(f"n{number}", {}, {}) for number in range(2, 6))
    places = {node.begins.place(job_id) for job_id in range(1, 60)}
    assert {0, 4} <= places


def test_the_node_that_lets_it_go_dies_at_every_call(tmp_path, monkeypatch):
    def before(world: World) -> None:
        later(world)
        come(world)

    assert explore(tmp_path, monkeypatch, before, World.serve) > 50


def test_released_by_its_user_it_does_not_wait(world: World):
    later(world)
    steer.do(world.spool, world.at(1), steer.release_step)
    assert ("queue", ()) == (world.at(1).top, world.entry(1).other)


def test_held_by_its_user_too_it_waits_for_both(world: World):
    world.submit(begin="2099-01-01T00:00:00Z", held="HU")
    steer.do(world.spool, world.at(1), steer.release_step)
    assert ("held", "HB") == (world.at(1).top, world.entry(1).held)
    steer.do(world.spool, world.at(1), steer.hold_step)
    assert ("HU", ("B=4070908800",)) == (world.entry(1).held, world.entry(1).other)


def test_jobs_begin_when_their_time_has_come(cluster: Cluster):
    cluster.node()
    said = time.time()
    soon = cluster.sub("-b", "now+2s", "date", "+%s")
    later = cluster.sub("-b", "now+2h", "true")
    assert "held" == cluster.place(later)
    why = cluster.ok("why", str(later))
    assert "BeginTime: begins " in why
    assert re.search(r", in (2:00:00|1:5\d:\d\d)", why)

    cluster.result(soon)
    assert int(cluster.text(soon)) >= int(said) + 2
    assert "held" == cluster.place(later)
    cluster.ok("edit", str(later), "begin=now")
    assert "COMPLETED" == cluster.result(later)["state"]


def test_a_waiting_job_is_put_off(cluster: Cluster):
    job = cluster.sub("true")
    cluster.ok("edit", str(job), "begin=tomorrow")
    assert "held" == cluster.place(job)
    done = cluster.spoolq("edit", str(job), "begin=whenever")
    assert (2, True) == (done.returncode, "is no time" in done.stderr)


def test_in_scripts_and_dropped_files(cluster: Cluster):
    with open(f"{cluster.root}/drop/late.sh", "w") as file:
        file.write("#!/bin/sh\n#SPOOLQ -b now+1h\ntrue\n#SPOOLQ end\n")
    cluster.node()
    cluster.until(lambda: cluster.place(1) == "held", "it is held")
    with open(cluster.home(1, "job")) as file:
        assert 'begin = "20' in file.read()
