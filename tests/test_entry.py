"""Entry names: what is written is read back, and nothing else is."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spoolq import entry as e

AMOUNT = st.integers(1, 10**9)
NAME = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True).filter(lambda n: n not in ("cpus", "mem"))


@st.composite
def entries(draw):
    wants = {"cpus": draw(AMOUNT), "mem": draw(AMOUNT), **draw(st.dictionaries(NAME, AMOUNT, max_size=2))}
    return e.Entry(
        rank=draw(st.integers(0, 999)),
        id=draw(st.integers(1, 10**9)),
        gen=draw(st.integers(0, 10**6)),
        attempt=draw(st.integers(1, 999)),
        ending=draw(st.sampled_from([None, "exit0", "exit255", "signal9", "timeout", "oom", "cancelled", "nodefail"])),
        wants=wants,
        limit_s=draw(st.none() | st.integers(0, 10**7)),
        rerun=draw(st.sampled_from("NCY")),
        owner=draw(st.from_regex(r"[A-Za-z0-9._-]{0,12}", fullmatch=True)),
        held=draw(st.sampled_from(["", *e.HELD])),
        **draw(st.sampled_from([{}, {"suspended": True}, {"suspended": True, "aside": True}])),
        more=draw(st.booleans()),
        chunk=draw(st.sampled_from(["", "a1-100", "a1-9-2"])),
        label=draw(st.from_regex(r"[A-Za-z0-9._-]{0,20}", fullmatch=True)),
    )


@given(entries())
def test_a_name_reads_back_as_what_was_written(entry):
    assert entry == e.parse_name(entry.name)


@given(entries())
def test_names_need_no_quoting_and_fit(entry):
    assert re.fullmatch(r"[A-Za-z0-9._,=~@-]{1,200}", entry.name)


@given(st.text(max_size=80))
def test_any_text_is_an_entry_or_none(text):
    entry = e.parse_name(text)
    assert entry is None or entry.name == text


@pytest.mark.parametrize(
    "name",
    [
        "500.42.0.1~c4,m500~x\n",
        "500.42.0.1~c4,m500,c5~x",
        "500.042.0.1~c4,m500~x",
        "500.42.0.1~m500,c4~x",
        "500.42.0.1~c4.0~x",
        ".nfs0001",
        "500.42.0.1",
        "500.42.0.1~c4~x~y",
        "500.42.0.1~c4~../x",
        "5000.42.0.1~c4~x",
    ],
)
def test_what_we_would_write_differently_is_not_ours(name):
    assert e.parse_name(name) is None


def test_facts_of_newer_versions_are_kept():
    name = "500.42.3.1~c1,m10,Zfuture~x"

    entry = e.parse_name(name)

    assert entry is not None
    assert ("Zfuture",) == entry.other
    assert "500.42.4.1~c1,m10,Zfuture~x" == entry.next().name


@given(st.lists(st.tuples(st.integers(0, 999), st.integers(1, 10**6)), min_size=2, max_size=30, unique=True))
def test_ls_order_is_start_order(pairs):
    """Sorting segments, then names in each, as `ls queue/*` does, gives rank, then id."""
    paths = [(e.segment(rank, i), e.Entry(rank=rank, id=i, wants={"cpus": 1000}).name) for rank, i in pairs]

    listed = [e.parse_name(name) for _, name in sorted(paths)]

    assert sorted(pairs) == [(entry.rank, entry.id) for entry in listed]


@given(st.integers(0, 999), st.integers(1, 10**9))
def test_a_segment_knows_its_ids(rank, job_id):
    assert e.segment_holds(e.segment(rank, job_id), job_id)
    assert not e.segment_holds(e.segment(rank, job_id + 1000), job_id)


def test_a_segment_has_at_most_512_names():
    sizes: dict[str, int] = {}
    for job_id in range(1, 20_000):
        name = e.segment(500, job_id)
        sizes[name] = sizes.get(name, 0) + 1

    assert max(sizes.values()) <= 512


def test_next_raises_gen():
    entry = e.Entry(rank=500, id=1, gen=7)

    assert 8 == entry.next(held="HU").gen
