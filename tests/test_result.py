"""What is known of a finished attempt, and what a torn file is not."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from spoolq import result
from spoolq.errors import Misconfigured
from spoolq.job import RESULT_KEYS, Job

JOB = Job(command=("make", "-j4"), name="build", user="anna", wants={"cpus": 500, "mem": 3072_000})
ENTRY = JOB.entry(42)
RUSAGE = {key: 1.5 if key.endswith("_s") else 7 for key in result.RUSAGE_KEYS}
ENDED = {"exit_code": 0, "signal": None, "started": 0.0, "ended": 1714566000.5, "wall_s": 2.0000000001}
ENDED |= {"rusage": RUSAGE, "measured_by": "wait4"}
NUMBERS = st.one_of(st.none(), st.integers(0, 10**12), st.floats(0, 1e9))


def facts_of(**changes):
    ended = ENDED | changes
    return result.facts(
        ENTRY, ended, ending=result.ending_word(ended), node="n1", submitted="2024-05-01T12:00:00.000000Z"
    )


def test_a_result_has_exactly_the_stable_keys_in_order_on_one_line():
    data = result.build(facts_of())
    assert list(json.loads(data)) == RESULT_KEYS
    assert data.count(b"\n") == 1
    assert data.endswith(b"}\n")


def test_a_result_says_what_happened():
    assert facts_of() == RUSAGE | {
        "format": 1,
        "id": 42,
        "attempt": 1,
        "state": "COMPLETED",
        "exit_code": 0,
        "signal": None,
        "reason": None,
        "node": "n1",
        "submitted": "2024-05-01T12:00:00.000000Z",
        "started": "1970-01-01T00:00:00.000000Z",
        "ended": "2024-05-01T12:20:00.500000Z",
        "wall_s": 2.0,
        "cpus": 0.5,
        "mem_mb": 3072,
        "limit_hit": None,
        "measured_by": "wait4",
    }


@pytest.mark.parametrize(
    ("ended", "word", "state", "limit"),
    [
        ({"exit_code": 0}, "exit0", "COMPLETED", None),
        ({"exit_code": 3}, "exit3", "FAILED", None),
        ({"exit_code": None, "signal": 9}, "signal9", "FAILED", None),
        ({"exit_code": None, "signal": 15, "reason": "timeout"}, "timeout", "TIMEOUT", "time"),
        ({"exit_code": 0, "reason": "oom"}, "oom", "OUT_OF_MEMORY", "mem"),
        ({"exit_code": None, "reason": "cancelled"}, "cancelled", "CANCELLED", None),
        ({"exit_code": None, "reason": "lost"}, "nodefail", "NODE_FAIL", None),
        ({"exit_code": None, "reason": "nodefail"}, "nodefail", "NODE_FAIL", None),
        ({"exit_code": 0, "reason": "lost"}, "nodefail", "NODE_FAIL", None),
        ({"exit_code": 126, "reason": "launch"}, "exit126", "FAILED", None),
        ({"exit_code": None, "reason": "launch"}, "exit127", "FAILED", None),
        ({"exit_code": None}, "nodefail", "NODE_FAIL", None),
    ],
)
def test_the_state_agrees_with_the_ending(ended, word, state, limit):
    assert result.ending_word(ENDED | ended) == word
    found = facts_of(**ended)
    assert (found["state"], found["limit_hit"]) == (state, limit)


@given(
    st.none() | st.integers(0, 255),
    st.none() | st.integers(1, 64),
    st.sampled_from(["", "timeout", "oom", "cancelled", "lost", "launch"]),
)
def test_a_result_read_again_has_the_same_ending(exit_code, signal, reason):
    ended = ENDED | {"exit_code": exit_code, "signal": signal, "reason": reason, "detail": "in words"}
    word = result.ending_word(ended)
    again = result.parse(result.build(result.facts(ENTRY, ended, ending=word, node="n1", submitted=None)))
    if exit_code is not None or signal is not None or reason:
        assert result.ending_word(again) == word
    assert (word == "exit0") <= (exit_code == 0)


def test_a_reason_is_a_word_then_the_details():
    assert facts_of(reason="timeout", detail="x")["reason"] == "timeout: x"
    assert facts_of(reason="oom", exit_code=None, signal=9)["reason"] == "oom"
    assert facts_of(reason="launch", exit_code=127, detail="not found")["reason"] == "launch: not found"
    assert facts_of(detail="output lost")["reason"] == "output lost"


def test_absent_facts_are_null():
    found = result.facts(ENTRY, {}, ending="cancelled", node=None, submitted=None)
    known = {"format", "id", "attempt", "state", "cpus", "mem_mb"}
    assert {key for key, value in found.items() if value is not None} == known
    assert result.parse(result.build(found)) == found


def test_times_that_are_none_are_null():
    assert facts_of(started=float("nan"), ended=1e300)["started"] is None
    assert facts_of(started=None, ended=1e300)["ended"] is None


@given(st.builds(dict, **dict.fromkeys(result.RUSAGE_KEYS, NUMBERS)), st.text(max_size=20), st.floats(0, 1e10))
def test_what_is_built_is_read_back(rusage, detail, wall_s):
    found = facts_of(rusage=rusage, detail=detail, wall_s=wall_s)
    assert result.parse(result.build(found)) == found


def test_a_torn_result_is_none():
    data = result.build(facts_of())
    assert all(result.parse(data[:size]) is None for size in range(len(data)))
    assert result.parse(data) is not None


@given(st.binary(max_size=300))
def test_any_bytes_are_a_result_or_none(data):
    assert result.parse(data + b"\n") is None


@given(st.sampled_from(RESULT_KEYS), st.sampled_from([True, [], {}, {"a": 1}, "NaN", -1.5, "COMPLETED", None]))
@example("state", [])  # no word, and not even hashable
def test_a_foreign_value_is_no_result_or_a_sound_one(key, value):
    data = json.dumps(facts_of() | {key: value}).encode() + b"\n"
    found = result.parse(data)
    assert found is None or (
        type(found["id"]) is int and found["state"] == "COMPLETED" and type(found["node"]) in (str, type(None))
    )


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b"{}\n",
        b"[]\n",
        b"null\n",
        b"[" * 100_000 + b"\n",
        b'{"format": 1}\n',
        b'{"format": ' + b"9" * 5000 + b"}\n",
    ],
)
def test_files_that_are_no_result(data):
    assert result.parse(data) is None


def test_infinity_is_no_number():
    assert result.parse(result.build(facts_of()).replace(b"2.0", b"Infinity")) is None


def test_a_missing_key_is_no_result_and_a_new_one_is_kept():
    found = facts_of()
    for key in RESULT_KEYS:
        assert result.parse(json.dumps({k: v for k, v in found.items() if k != key}).encode() + b"\n") is None
    assert result.parse(json.dumps(found | {"energy_j": 5}).encode() + b"\n") == found | {"energy_j": 5}


def test_a_newer_format_is_refused_aloud():
    with pytest.raises(Misconfigured, match="format 2"):
        result.parse(json.dumps(facts_of() | {"format": 2}).encode() + b"\n")


def test_history_adds_who_and_what_and_gives_the_result_back():
    found = facts_of()
    record = json.loads(result.history_line(found, JOB))
    assert record == found | {"name": "build", "user": "anna", "command": ["make", "-j4"]}
    assert result.rebuild(record) == result.build(found)
    assert json.loads(result.history_line(found, None))["command"] is None


@given(st.lists(st.text(max_size=30), max_size=5))
def test_history_is_one_line_whatever_the_command(command):
    line = result.history_line(facts_of(), JOB._replace(command=tuple(command)))
    assert line.count(b"\n") == 1
    assert json.loads(line)["command"] == command


def test_a_long_command_is_cut_in_history():
    line = result.history_line(facts_of(), JOB._replace(command=("x" * 10_000, "y") * 5))
    assert len(line) < 6000
    assert json.loads(line)["command"][0].endswith("x...")
    assert len(result.history_line(facts_of(), JOB._replace(command=("y",) * 100_000))) < 20_000
