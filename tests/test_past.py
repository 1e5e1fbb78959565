"""The command hist."""

from datetime import UTC, datetime

import pytest

from spoolq import look, past, steer
from spoolq.errors import UsageError
from spoolq.selector import me
from tests.desk import end, put, run, value

NOW = datetime(2025, 3, 10, 12, tzinfo=UTC)


@pytest.fixture
def call(spool, capsys):
    """Call hist; (exit code, stdout, stderr)."""

    def calling(*words):
        code = look.hist(["--spool", spool.root, *words])
        return (code, *capsys.readouterr())

    return calling


@pytest.fixture
def ids(call):
    """The ids of its JSON records."""
    return lambda *words: [record["id"] for record in value(call(*words, "--json")[1])]


@pytest.fixture
def some(spool):
    """Three jobs that ended an hour apart, on two nodes."""
    for n, (code, node) in enumerate(((0, "n1"), (1, "n2"), (0, "n1")), 1):
        at = 1741600000 + 3600 * n
        end(spool, run(spool, put(spool, name=f"job{n}"), node), code, started=at - 5, ended=at)


@pytest.mark.usefixtures("some")
def test_hist_shows_the_newest_attempts_with_what_they_used(call):
    code, out, err = call()
    assert 0 == code
    assert ["1", "2", "3"] == [line.split()[0] for line in out.splitlines()[1:]]
    assert ["2", "1", "job2", me(), "FAILED", "1"] == out.splitlines()[2].split()[:6]
    assert "3 jobs: 2 completed, 1 failed" in err


@pytest.mark.usefixtures("some")
def test_filters_select(ids):
    assert [3, 2] == ids("-n", "2")
    assert [2] == ids("--failed")
    assert [2] == ids("--node", "n2")
    assert [3, 1] == ids("1", "3-9")
    assert [3] == ids("--name", "job3")
    assert [] == ids("--user", "somebody")
    assert [3, 2] == ids("--since", "2025-03-10T11:00:00Z")
    assert [1] == ids("--until", "2025-03-10T11:00:00Z")


@pytest.mark.usefixtures("some")
def test_sums_by_a_key(call):
    groups = {group["node"]: group for group in value(call("--by", "node", "--json")[1])}
    assert (2, 1) == (groups["n1"]["jobs"], groups["n2"]["jobs"])
    assert 4 == len(call("--by", "name")[1].splitlines())
    assert "2025-03-10" in call("--by", "day")[1]


def test_every_attempt_is_a_line(spool, ids):
    end(spool, run(spool, put(spool)), 1)
    steer.requeue(["--spool", spool.root, "1"])
    end(spool, run(spool, spool.find(1)), 0)
    assert [1, 1] == ids()


@pytest.mark.usefixtures("some")
def test_only_as_many_days_are_read_as_needed(spool, ids, monkeypatch):
    for n in range(1, 10):
        spool.record(f"2024-01-0{n}", "n1", [b'{"id": 99, "attempt": 1}\n'])
    read = []
    real = type(spool).read_history
    monkeypatch.setattr(type(spool), "read_history", lambda self, name: read.append(name) or real(self, name))
    assert [3, 2] == ids("-n", "2")
    assert all(not name.startswith("2024") for name in read)


def test_a_job_without_history_gives_1(call):
    assert 1 == call("7")[0]
    assert 1 == call("last")[0]
    assert 0 == call()[0]


@pytest.mark.parametrize(
    ("text", "when"),
    [
        ("2025-03-01T16:00:00Z", datetime(2025, 3, 1, 16, tzinfo=UTC)),
        ("2h", datetime(2025, 3, 10, 10, tzinfo=UTC)),
        ("3d", datetime(2025, 3, 7, 12, tzinfo=UTC)),
    ],
)
def test_times_are_understood(text, when):
    assert when == past.parse_when(text, NOW)


def test_today_begins_at_midnight_here():
    midnight = past.parse_when("today", NOW)
    assert (0, 0) == (midnight.hour, midnight.minute)
    assert midnight <= NOW
    assert past.parse_when("yesterday", NOW) < midnight


@pytest.mark.parametrize("text", ["soon", "unlimited", "", "2025-13-01"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(UsageError):
        past.parse_when(text, NOW)


def test_an_unknown_key_is_refused(call):
    with pytest.raises(UsageError):
        call("--by", "colour")
