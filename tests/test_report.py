"""Nothing printed steers a terminal, nothing is wider than asked for, JSON is JSON."""

import json
import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spoolq.entry import Entry
from spoolq.reason import Reason
from spoolq.report import (
    COLOURS,
    Column,
    JobRow,
    NodeRow,
    arranged,
    breadth,
    cut,
    detail_lines,
    finding_lines,
    history_lines,
    job_json,
    job_lines,
    node_lines,
    paint,
    show,
    table,
    to_json,
)
from spoolq.schedule import NodeView
from spoolq.state import State

texts = st.text(
    st.characters() | st.sampled_from("\x1b\x07\r\n\u202e\u200b\ufeff\u2028\udc80\u0301\u4e2d\x7f\x9b\u3164")
)
BAD = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
PAINT = re.compile(r"\x1b\[\d+m(.*?)\x1b\[0m", re.DOTALL)


def harmless(text):
    return not any(unicodedata.category(char) in BAD for char in text)


@given(texts | st.binary())
def test_no_control_character_is_shown(text):
    shown = show(text)
    assert harmless(shown)
    shown.encode("utf-8")  # and so no lone surrogate
    assert not shown or not unicodedata.combining(shown[0])
    assert shown == show(shown)


@given(texts, st.integers(0, 40))
def test_a_shown_text_keeps_its_width(text, width):
    assert breadth(show(text, width)) <= width


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("align", "align"),
        ("größe 中文 हिन्दी", "größe 中文 हिन्दी"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("a\nb\tc\r", r"a\x0ab\x09c\x0d"),
        ("\u202egpj.exe", r"\u202egpj.exe"),
        ("a\u200bb\ufeff", r"a\u200bb\ufeff"),
        ("\u2028", r"\u2028"),
        ("\x9b1m\x7f", r"\x9b1m\x7f"),
        (b"\xff\xfeok", r"\xff\xfeok"),
        ("\udcff", r"\xff"),
        ("\udc80", r"\x80"),
        ("\ud800", r"\ud800"),
        ("\u3164\ufe0f", r"\u3164\ufe0f"),
        ("\U000e0041", r"\U000e0041"),
        ("\u0301x", r"\u0301x"),
        (42, "42"),
    ],
)
def test_what_becomes_of_a_text(raw, shown):
    assert shown == show(raw)


def test_cutting_counts_columns():
    assert cut("abc", 3) == "abc"
    assert cut("abcd", 3) == "ab+"
    assert cut("中文", 2) == "+"
    assert cut("中文字", 4) == "中+"
    assert cut("abc", 0) == ""


@given(
    st.lists(st.builds(Column, st.text("ABC", min_size=1), st.booleans(), st.integers(0, 8)), min_size=1, max_size=5),
    st.data(),
    st.none() | st.integers(1, 60),
    st.booleans(),
)
def test_a_table_is_aligned_and_no_wider_than_asked(columns, data, width, colour):
    cells = texts | st.tuples(texts, st.sampled_from([*COLOURS]))
    rows = data.draw(st.lists(st.lists(cells, min_size=len(columns), max_size=len(columns)), max_size=5))
    lines = table(columns, rows, width, colour=colour)
    assert len(rows) + 1 == len(lines)
    plain = [PAINT.sub(r"\1", line) for line in lines]
    assert all(map(harmless, plain))
    if not colour:
        assert plain == lines
    assert plain == table(columns, rows, width, colour=False) or any(line.endswith(" ") for line in plain)
    if width is not None:
        assert all(breadth(line) <= width for line in plain)


def test_what_a_table_looks_like():
    lines = table([Column("ID", right=True), "NAME"], [["7", "a"], ["123", "long name"]])
    assert lines == [" ID  NAME", "  7  a", "123  long name"]
    assert table([Column("ID", right=True), "NAME"], [["  7", "a"]], header=False) == ["  7  a"]
    assert table(["ID"], [], header=False) == []


def test_columns_that_may_are_narrowed_first():
    columns = [Column("ID"), Column("NAME", least=4), Column("WHY", least=4)]
    (line,) = table(columns, [["123", "x" * 20, "y" * 20]], 24, header=False)
    assert line == "123  xxx+  " + "y" * 12 + "+"


def test_colour_is_optional():
    assert paint("a", "red", enabled=False) == "a"
    assert paint("a", "red", enabled=True) == "\x1b[31ma\x1b[0m"
    assert paint("a", "", enabled=True) == "a"


# --- JSON

scalars = st.none() | st.booleans() | st.integers() | st.floats() | texts
trees = st.recursive(scalars, lambda some: st.lists(some) | st.dictionaries(texts, some), max_leaves=10)


@given(trees)
def test_json_is_one_line_of_harmless_ascii(tree):
    def constant(word):
        raise AssertionError(word)

    text = to_json("things", tree)
    assert text.isascii()
    assert text.isprintable()
    assert [*json.loads(text, parse_constant=constant)] == ["format", "kind", "things"]


def test_the_one_control_character_that_json_leaves_alone():
    assert r'"a\u007f"' in to_json("x", "a\x7f")


def test_a_number_that_json_has_not_is_null():
    assert '"x": [null, {"a": null}]' in to_json("x", (float("inf"), {"a": float("nan")}))


def test_the_envelope():
    assert to_json("jobs", [{"id": 1}]) == '{"format": 1, "kind": "jobs", "jobs": [{"id": 1}]}'


# --- rows


def job(job_id, state=State.PENDING, rank=500, **more):
    facts = {name: more.pop(name) for name in ("owner", "label", "limit_s", "ending", "chunk") if name in more}
    wants = {"cpus": 1000, "mem": 500_000, **more.pop("wants", {})}
    return JobRow(entry=Entry(rank=rank, id=job_id, wants=wants, **facts), state=state, **more)


def test_what_runs_where_and_what_waits_why():
    rows = [
        job(3, State.FAILED, ending="exit1"),
        job(9, reason=Reason("Resources", "needs 4 cpus")),
        job(8, rank=400, reason=Reason("Priority", "x"), wants={"gpu": 2000}),
        job(5, State.RUNNING, node="n2", elapsed_s=75, limit_s=3600, owner="anna", label="align"),
        job(6, State.RUNNING, node="n1", chunk="a1-100"),
        job(7, State.HELD, reason=Reason("JobHeldUser", "held")),
    ]
    assert [row.entry.id for row in arranged(rows)] == [6, 5, 8, 9, 7, 3]
    lines = job_lines(rows)
    assert lines[0] == "     ID  NAME   USER  ST     CPUS   MEM    TIME/LIMIT  NODE/REASON"
    assert lines[1] == "6_1-100  -      -     R         1  500M           -/-  n1"
    assert lines[2] == "      5  align  anna  R         1  500M  1:15/1:00:00  n2"
    assert lines[3].endswith("1 gpu:2  500M           -/-  (Priority: x)")
    assert lines[6].endswith("F         1  500M           -/-  exit1")


@given(st.lists(st.builds(job, st.integers(1, 99), st.sampled_from(State), node=texts, name=texts, user=texts)))
def test_jobs_of_anybody_fit_a_terminal(rows):
    lines = job_lines(rows, 80)
    assert len(rows) + 1 == len(lines)
    assert all(breadth(line) <= 80 and harmless(line) for line in lines)
    assert len(rows) == len(json.loads(to_json("jobs", [job_json(row) for row in rows]))["jobs"])


def test_keys_of_a_job_stay():
    row = job(5, State.RUNNING, node="n2", chunk="a1-9", wants={"gpu": 500}, owner="anna", label="x")
    expected = {
        "id": 5,
        "attempt": 1,
        "chunk": "1-9",
        "name": "x",
        "user": "anna",
        "state": "RUNNING",
        "reason": None,
        "reason_text": None,
        "node": "n2",
        "priority": 0,
        "cpus": 1.0,
        "mem_mb": 500.0,
        "gres": {"gpu": 0.5},
        "limit_s": None,
        "elapsed_s": None,
        "rerun": "certain",
        "held": None,
        "begin": None,
        "ending": None,
    }
    assert expected == job_json(row)


def test_nodes():
    busy = NodeView(
        name="n1",
        capacity={"cpus": 8000, "mem": 4096_000, "io": 4000},
        free={},
        held={7: {"cpus": 500, "mem": 1024_000, "io": 3000}},
    )
    idle = NodeView(name="a2", capacity={}, free={}, draining=True, note="disk\n")
    lines = node_lines([NodeRow(view=busy, state="up", load=1.5, beat_age_s=4.0), NodeRow(view=idle, state="drained")])
    assert lines[0].split() == ["NAME", "STATE", "CPUS", "MEM", "GRES", "LOAD", "JOBS", "BEAT", "NOTE"]
    assert lines[1].split() == ["a2", "drained", "0/0", "0/0M", "-", "-", "0", "-", r"disk\x0a"]
    assert lines[2].split() == ["n1", "up", "0.5/8", "1G/4G", "io", "3/4", "1.50", "1", "4s", "-"]


def test_history():
    record = {
        "id": 1,
        "attempt": 2,
        "state": "FAILED",
        "exit_code": 3,
        "wall_s": 100.0,
        "user_s": 50.0,
        "system_s": 0.0,
    }
    record |= {"cpus": 1, "mem_mb": 100, "max_rss_kb": 51200, "node": "n1", "user": "anna", "name": "x", "ended": "T"}
    killed = {"id": 2, "attempt": 1, "state": "FAILED", "exit_code": None, "signal": 9}
    lines = history_lines([record, killed])
    assert lines[1].split() == ["1", "2", "x", "anna", "FAILED", "3", "1:40", "50%", "50%", "n1", "T"]
    assert lines[2].split() == ["2", "1", "-", "-", "FAILED", "sig", "9", "-", "-", "-", "-", "-"]


@given(
    st.dictionaries(st.sampled_from(["state", "name", "user", "wall_s", "signal", "exit_code", "node", "ended"]), trees)
)
def test_any_record_can_be_shown(facts):
    lines = history_lines([{**facts, "id": 1, "attempt": 1}], 60)
    assert all(breadth(line) <= 60 and harmless(line) for line in lines)


@given(st.dictionaries(texts, trees), st.none() | st.integers(1, 60))
def test_details_are_harmless(facts, width):
    lines = detail_lines(facts, width)
    assert len(facts) == len(lines)
    assert all(map(harmless, lines))
    assert width is None or all(breadth(line) <= width for line in lines)


def test_details():
    assert detail_lines({"id": 1, "command": ["a", "b"], "node": None}) == ["id:      1", "command: a b", "node:    -"]


def test_findings():
    lines = finding_lines([("ok", "clock", "fine", ""), ("error", "mount", "soft", "use hard"), ("warning", "x", "y")])
    assert lines == ["ok       clock: fine", "error    mount: soft", "         -> use hard", "warning  x: y"]
    assert "\x1b[31merror  \x1b[0m  mount: soft" in finding_lines([("error", "mount", "soft")], colour=True)
