"""History forgives torn lines, counts nothing twice, and does not depend on the order of files."""

import errno
import json
import os
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spoolq import fsops, history
from spoolq.spool import Spool


def record(job_id=1, attempt=1, **more):
    facts = {
        "id": job_id,
        "attempt": attempt,
        "state": "COMPLETED",
        "user": "anna",
        "name": "align",
        "node": "n1",
        "ended": f"2025-03-{job_id % 28 + 1:02d}T10:00:00Z",
        "wall_s": 100.0,
        "user_s": 150.0,
        "system_s": 50.0,
        "cpus": 4,
        "mem_mb": 1000,
        "max_rss_kb": 512_000,
    }
    return {**facts, **more}


def line(facts):
    return json.dumps(facts).encode() + b"\n"


values = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.lists(st.integers())
anything = st.builds(
    lambda a, b, more: {**more, "id": a, "attempt": b},
    st.integers(1, 5),
    st.integers(1, 2),
    st.dictionaries(st.sampled_from([*record(), "signal", "exit_code"]), values),
)


def test_what_is_torn_or_no_record_is_left_out():
    good = line(record(7))
    data = good + b'{"id": 8, "att\n' + b"[1]\n" + b'{"id": "x", "attempt": 1}\n' + b"\xff\xfe\n" + good[:-20]
    assert [r["id"] for r in history.parse(data)] == [7]
    assert history.parse(b"{" * 100_000) == []
    assert history.parse(b'{"id": true, "attempt": 1}') == []
    assert history.parse(b'{"a":' * 100_000) == []


@given(st.binary(max_size=300))
def test_any_bytes_are_read(data):
    assert isinstance(history.parse(data), list)


@given(st.lists(anything))
def test_whatever_is_in_records_they_can_be_counted(records):
    text = b"".join(line(r) for r in records)
    found = history.unique(history.parse(text))
    summary = history.summarise(history.newest_first(found))
    assert len({(r["id"], r["attempt"]) for r in records}) == summary.attempts
    assert summary.attempts == sum(summary.states.values())
    for r in found:
        history.efficiency(r)
    history.select(found, users=["a"], names=["*"], states=["F"], since=datetime(2025, 1, 1, tzinfo=UTC))


@given(st.lists(anything), st.randoms(use_true_random=False))
def test_the_order_of_lines_changes_nothing(records, rng):
    records = history.parse(b"".join(line(r) for r in records))
    other = records[:]
    rng.shuffle(other)

    def answer(found):
        return json.dumps(history.unique(found), sort_keys=True)  # as text, in which NaN equals itself

    assert answer(records) == answer(other) == answer(records + other)


def test_of_two_words_about_one_attempt_the_later_stays():
    lost = record(1, state="NODE_FAIL", ended="2025-03-01T12:00:00Z")
    late = record(1, state="COMPLETED", ended="2025-03-01T11:00:00Z")
    assert [r["state"] for r in history.unique([lost, late])] == ["NODE_FAIL"]


def test_selecting():
    records = [
        record(1),
        record(2, user="bob", state="FAILED"),
        record(3, name="train-7", node="gpu1"),
        record(4, ended=None),
    ]

    def ids(**wanted):
        return [r["id"] for r in history.select(records, **wanted)]

    assert ids() == [1, 2, 3, 4]
    assert ids(users=["bob"]) == [2]
    assert [2] == ids(states=["f"]) == ids(states=["FAILED"])
    assert [3] == ids(names=["train-*"]) == ids(nodes=["gpu*"])
    assert ids(ids=[4, 1]) == [1, 4]
    assert ids(since=datetime(2025, 3, 3, tzinfo=UTC)) == [2, 3]
    assert ids(until=datetime(2025, 3, 4, 10, tzinfo=UTC)) == [1, 2]


def test_newest_first_and_those_without_an_end_last():
    records = [record(2), record(5), record(3, ended=None), record(4)]
    assert [r["id"] for r in history.newest_first(records)] == [5, 4, 2, 3]


def test_efficiency_and_hours():
    assert history.efficiency(record()) == (0.5, 0.5)
    assert history.efficiency({"id": 1, "attempt": 1}) == (None, None)
    unmeasured = record(2, user_s=None, system_s=None, max_rss_kb=None, state="CANCELLED")
    summary = history.summarise([record(1), record(1, 2), unmeasured])
    assert (summary.jobs, summary.attempts) == (2, 3)
    assert summary.states == {"CANCELLED": 1, "COMPLETED": 2}
    assert summary.cpu_hours == 400 / 3600
    assert summary.held_cpu_s == 1200.0
    assert (summary.cpu_efficiency, summary.mem_efficiency) == (0.5, 0.5)
    assert summary.max_rss_kb == 512_000
    assert history.summarise([]).cpu_efficiency is None


def test_what_ran_for_some_milliseconds_says_nothing_of_its_cpus():
    brief = record(3, wall_s=0.004, user_s=0.006, system_s=0.001, cpus=1)
    assert None is history.efficiency(brief)[0]
    assert history.efficiency(brief)[1]
    assert None is history.summarise([brief]).cpu_efficiency
    assert 0.5 == history.summarise([brief, record(1)]).cpu_efficiency
    assert 0.007 == history.summarise([brief]).cpu_s, "it was used all the same"
    assert 0.07 == pytest.approx(history.efficiency(brief | {"wall_s": 0.1})[0])


def test_groups():
    groups = history.grouped([record(1), record(2, user="bob"), record(3)], "user")
    assert {name: summary.jobs for name, summary in groups.items()} == {"anna": 2, "bob": 1}
    assert [*history.grouped([record(1)], lambda r: r["ended"][:10])] == ["2025-03-02"]


def test_times():
    assert datetime(2025, 3, 1, tzinfo=UTC) == history.parse_time("2025-03-01T00:00:00Z")
    assert datetime(2025, 3, 1, tzinfo=UTC) == history.parse_time("2025-03-01")
    assert history.parse_time("soon") is None
    assert history.parse_time(None) is None


def test_a_line_that_a_full_disk_tore_takes_no_other_with_it(spool, monkeypatch):
    """Real NFS: on a full export an end was recorded behind a piece of its own first try, and was no line."""
    line = history_line(1)
    spool.record("2026-01-01", "n1", [line])
    real = os.write

    def full(fd, data):
        real(fd, bytes(data)[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(fsops.os, "write", full)
        with pytest.raises(OSError, match="No space"):
            spool.record("2026-01-01", "n1", [history_line(2)])
    spool.record("2026-01-01", "n1", [history_line(2)])
    spool.record("2026-01-01", "n1", [history_line(3)])
    with open(f"{spool.root}/history/2026-01-01.n1.jsonl", "ab") as file:
        file.write(line[: len(line) // 2])  # and this writer died
    Spool(spool.root).record("2026-01-01", "n1", [history_line(4)])

    (name,) = spool.history_files()
    data = spool.read_history(name)
    assert [1, 2, 3, 4] == [record["id"] for record in history.parse(data)]
    assert data.startswith(line)
    assert b"\n\n" not in data, "no empty lines where nothing was torn"


def history_line(job_id):
    """As short as one can be."""
    return b'{"id": %d, "attempt": 1, "gen": 2}\n' % job_id
