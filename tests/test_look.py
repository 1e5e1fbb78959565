"""The commands that look: stat and nodes."""

import os

import pytest

from spoolq import home, host, look, outlook, roster
from spoolq.job import Job
from spoolq.selector import me
from tests.desk import DEAD_PID, end, here, node_json, put, run, silence, value


@pytest.fixture
def call(spool, capsys):
    """Call a command; (exit code, stdout, stderr)."""

    def calling(command, *words):
        code = getattr(look, command)(["--spool", spool.root, *words])
        return (code, *capsys.readouterr())

    return calling


@pytest.fixture
def rows(call):
    """The JSON rows of stat."""
    return lambda *words: value(call("stat", *words, "--json")[1])


def line_of(text, start):
    return next(line for line in text.splitlines() if line.split()[:1] == [start])


# --- stat


def test_stat_says_what_runs_where_and_what_waits_and_why(spool, call):
    node_json(spool)
    run(spool, put(spool, name="align", wants={"cpus": 4000, "mem": 500_000}))
    put(spool, wants={"cpus": 2000, "mem": 500_000})
    put(spool, held="HU")
    code, out, err = call("stat")
    assert 0 == code
    assert ["1", "align", me(), "R"] == line_of(out, "1").split()[:4]
    assert line_of(out, "1").endswith("n1")
    assert "(Resources: n1: needs 2 cpus, 0 of 4" in line_of(out, "2")
    assert "(JobHeldUser: " in line_of(out, "3")
    assert "1 running" in err
    assert "nodes: 1 up" in err


def test_stat_of_an_empty_spool_prints_no_table(call):
    code, out, err = call("stat")
    assert (0, "") == (code, out)
    assert "nothing waits or runs" in err


def test_running_jobs_come_first_and_waiting_ones_in_the_order_of_their_start(spool, rows):
    put(spool)
    put(spool, priority=5)
    put(spool, held="HU")
    run(spool, put(spool))
    assert [4, 2, 1, 3] == [row["id"] for row in rows()]


def test_what_fits_waits_for_its_turn(spool, rows):
    node_json(spool)
    put(spool)
    assert "Priority" == rows()[0]["reason"]


def test_without_a_living_node_that_is_the_reason(spool, rows):
    put(spool)
    assert "no node has ever served" in rows()[0]["reason_text"]
    node_json(spool, state="stopped")
    assert ("NoNodeAlive", True) == (rows()[0]["reason"], "n1 is stopped" in rows()[0]["reason_text"])


def test_foreign_load_that_the_node_measured_counts(spool, rows):
    node_json(spool, free={"cpus": 1000, "mem": 8000_000})
    put(spool, wants={"cpus": 2000, "mem": 1000})
    assert "MeasuredLoad" == rows()[0]["reason"]


def test_a_drained_node_says_why(spool, rows):
    node_json(spool)
    spool.mark_node("n1", "drain", on=True, text="new disk")
    put(spool)
    assert "new disk" in rows()[0]["reason_text"]


def test_no_job_file_is_opened_but_for_those_that_say_more(spool, rows, monkeypatch):
    node_json(spool)
    opened = []
    real = home.read_job
    monkeypatch.setattr(home, "read_job", lambda root, job_id: opened.append(job_id) or real(root, job_id))
    put(spool)
    put(spool, nodelist=("n7",))
    reasons = [row["reason"] for row in rows()]
    assert ["Priority", "ReqNodeNotAvail"] == reasons
    assert [2] == opened


def test_equal_requests_are_asked_once(spool, rows, monkeypatch):
    node_json(spool)
    asked = []
    real = outlook.schedule.explain
    monkeypatch.setattr(outlook.schedule, "explain", lambda *args: asked.append(1) or real(*args))
    for _ in range(20):
        put(spool)
    assert 20 == len(rows())
    assert 1 == len(asked)


def test_finished_jobs_are_shown_on_demand_the_newest_of_them(spool, rows):
    for code in (0, 1, 0):
        end(spool, run(spool, put(spool)), code)
    put(spool)
    assert [4] == [row["id"] for row in rows()]
    assert [4, 1, 2, 3] == [row["id"] for row in rows("-a")]
    assert [4, 3] == [row["id"] for row in rows("-a", "-n", "1")]
    [failed] = rows("--state", "failed")
    assert (2, "FAILED", "exit1") == (failed["id"], failed["state"], failed["ending"])


def test_jobs_and_filters_narrow(spool, call, rows):
    put(spool, name="a")
    put(spool, name="b", user="somebody")
    end(spool, run(spool, put(spool)))
    assert [2] == [row["id"] for row in rows("--user", "somebody")]
    assert [1] == [row["id"] for row in rows("--name", "a*")]
    assert [2, 3] == sorted(row["id"] for row in rows("2-3"))
    assert [2] == [row["id"] for row in rows("@b")]
    code, _, err = call("stat", "1", "77")
    assert 1 == code
    assert "job 77: no such job" in err


def test_long_listings_can_be_cut(spool, call):
    for _ in range(5):
        put(spool)
    _, out, err = call("stat", "-n", "2")
    assert 3 == len(out.splitlines())
    assert "and 3 more that wait" in err


def test_the_keys_of_stat_are_stable(spool, rows):
    put(spool)
    keys = "id attempt chunk name user state reason reason_text node priority cpus mem_mb gres limit_s elapsed_s rerun held"
    assert [*keys.split(), "begin", "ending", "place"] == list(rows()[0])


def test_a_running_job_shows_for_how_long(spool, rows):
    run(spool, put(spool))
    assert 0 <= rows()[0]["elapsed_s"] < 3600


# --- nodes


def test_nodes_shows_what_is_free_counting_the_entries(spool, call):
    node_json(
        spool, capacity={"cpus": 4000, "mem": 8192_000, "gpu": 2000}, free={"cpus": 4000, "mem": 8192_000, "gpu": 2000}
    )
    run(spool, put(spool, wants={"cpus": 1500, "mem": 1024_000, "gpu": 1000}))
    _, out, _ = call("nodes")
    assert ["n1", "up", "1.5/4", "1G/8G", "gpu", "1/2", "0.50", "1"] == line_of(out, "n1").split()[:8]
    [node] = value(call("nodes", "--json")[1])
    assert {"cpus": 2.5, "mem": 7168.0, "gpu": 1.0} == node["free"]


def test_the_states_of_nodes(spool):
    node_json(spool, "alive", **here(), pid=os.getpid(), starttime=host.process_identity(os.getpid()))
    node_json(spool, "dead", **here(), pid=DEAD_PID)
    node_json(spool, "rebooted", **{**here(), "boot": "another"})
    node_json(spool, "stopped", **here(), pid=DEAD_PID, state="stopped")
    node_json(spool, "far")
    node_json(spool, "silent")
    silence(spool, "silent", 500)
    node_json(spool, "drained")
    node_json(spool, "draining")
    run(spool, put(spool), "draining")
    for name in ("drained", "draining"):
        spool.mark_node(name, "drain", on=True)
    node_json(spool, "full", state="full")
    spool.enter_node("new")
    states = {node.name: node.state for node in roster.look(spool)}
    assert states.pop("alive") == states.pop("far") == "up"
    assert states.pop("rebooted") == "dead"
    assert all(name == state for name, state in states.items()), states


def test_the_age_of_a_beat_is_told_by_the_servers_clock(spool):
    node_json(spool)
    silence(spool, "n1", 500)
    [node] = roster.look(spool)
    assert 500 <= node.beat_age_s < 560
    assert not [name for name in os.listdir(f"{spool.root}/nodes") if name.startswith(".")]


def test_nodes_can_be_named(spool, call):
    node_json(spool, "n1")
    node_json(spool, "m1")
    code, out, err = call("nodes", "n*", "x", "--json")
    assert 1 == code
    assert ["n1"] == [node["node"] for node in value(out)]
    assert "x: no such node" in err


def test_a_broken_node_json_breaks_nothing(spool, call):
    spool.enter_node("n1")
    with open(f"{spool.root}/nodes/n1/node.json", "w") as file:
        file.write('{"state": 7, "capacity": [1], "jobs": "x", "load": "\x1b[31m", "beat_s": null}')
    put(spool)
    assert 0 == call("nodes")[0]
    assert 0 == call("nodes", "--json")[0]
    assert 0 == call("stat")[0]


@pytest.mark.parametrize("command", ["stat", "nodes", "show", "why", "hist"])
def test_every_command_has_help(command, capsys):
    assert 0 == getattr(look, command)(["--help"])
    assert f"usage: spoolq {command}" in capsys.readouterr().out


def test_a_hundred_thousand_waiting_jobs_need_no_file(spool, monkeypatch, capsys):
    """Each name is parsed, and nothing of any job is opened or asked about."""
    from spoolq import fsops

    job = Job(command=("true",), user="anna")
    entries = [job.entry(n).name for n in range(1, 2001)]
    real = fsops.names

    def many(directory, **_):
        if directory == f"{spool.root}/queue":
            return ["500.000000001"]
        return entries if directory == f"{spool.root}/queue/500.000000001" else real(directory)

    monkeypatch.setattr(fsops, "names", many)
    read = []
    real_read = fsops.read
    monkeypatch.setattr(fsops, "read", lambda path, *rest: read.append(path) or real_read(path, *rest))
    assert 0 == look.stat(["--spool", spool.root])
    assert 2001 == len(capsys.readouterr().out.splitlines())
    assert [f"{spool.root}/spool.toml"] == read
