"""The commands eff and suggest, and the advice that they give."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spoolq import advice, eff, learn
from spoolq.errors import UsageError
from tests.desk import end, put, run, value

numbers = st.none() | st.integers(0, 10**7) | st.floats(0, 1e6) | st.text(max_size=3) | st.just(float("nan"))
RECORDS = st.fixed_dictionaries(
    {"id": st.integers(1, 99), "attempt": st.just(1), "state": st.sampled_from(["COMPLETED", "TIMEOUT", "OUT_OF_MEMORY", "FAILED", 7])},
    optional=dict.fromkeys(("cpus", "mem_mb", "max_rss_kb", "user_s", "system_s", "wall_s", "limit_s", "ended"), numbers),
)  # fmt: skip


def record(**facts):
    usual = {"id": 1, "attempt": 1, "state": "COMPLETED", "cpus": 1, "mem_mb": 1000, "wall_s": 60.0, "limit_s": None}
    return {**usual, "user_s": 50.0, "system_s": 8.0, "max_rss_kb": 900 << 10, "ended": "2025-03-10T12:00:00Z", **facts}


@given(RECORDS)
def test_advice_is_given_on_whatever_lies_in_history(some):
    assert all(hint.startswith(("-m ", "-c ", "-t ")) for hint in advice.hints(some))
    assert set(advice.shares(some)) == {"cpus", "mem", "time"}
    advice.rows([some])


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({}, []),
        ({"max_rss_kb": 95 << 10}, ["-m 120: it used 95M of 1000M"]),
        ({"max_rss_kb": 450 << 10}, []),
        ({"cpus": 4}, ["-c 1: it kept 1.0 of 4 cpus busy"]),
        ({"user_s": 200.0}, ["-c 4: it kept 3.5 of 1 cpus busy"]),
        ({"user_s": 200.0, "wall_s": 9.0, "limit_s": None}, []),
        ({"limit_s": 3600}, ["-t 2: it took 1.0 of 60 minutes"]),
        ({"limit_s": 180}, []),
        ({"state": "TIMEOUT", "limit_s": 60}, ["-t 2: 1:00 was too little"]),
        ({"state": "OUT_OF_MEMORY"}, ["-m 2000 (or -r 3 --retry-mem 2x): 1000M were too little"]),
        ({"max_rss_kb": None, "user_s": None, "wall_s": None}, []),
    ],
)
def test_hints(facts, said):
    assert said == advice.hints(record(**facts))


@given(st.integers(1, 10**6), st.integers(1, 10**9))
def test_nobody_is_told_to_ask_for_less_than_was_used(mem_mb, rss_kb):
    for hint in advice.hints(record(mem_mb=mem_mb, max_rss_kb=rss_kb)):
        if hint.startswith("-m"):
            assert float(hint.split()[1].rstrip(":")) * 1024 >= rss_kb * learn.MARGIN - 1


@pytest.fixture
def call(spool, capsys):
    """Call one of the commands; (exit code, stdout, stderr)."""

    def calling(function, *words):
        code = function(["--spool", spool.root, *words])
        return (code, *capsys.readouterr())

    return calling


@pytest.fixture
def some(spool):
    """Four jobs of one command that ended."""
    for n in range(1, 5):
        facts = {"command": ("bwa", "mem", f"x{n}"), "limit_s": 36000}
        end(
            spool,
            run(spool, put(spool, name="bwa", **facts)),
            0,
            started=1741600000,
            ended=1741600000 + 60 * n,
            wall_s=60.0 * n,
        )


@pytest.mark.usefixtures("some")
def test_eff_shows_shares_and_what_would_do(call):
    code, out, _ = call(eff.eff)
    assert (0, 5) == (code, len(out.splitlines()))
    assert "NEXT TIME" in out.splitlines()[0]
    code, out, _ = call(eff.eff, "4", "--json")
    (found,) = value(out)
    assert (4, 240.0 / 36000) == (found["id"], found["share"]["time"])
    code, out, _ = call(eff.eff, "4")
    assert "job 4: next time -t 5: it took 4.0 of 600 minutes" in out


def test_eff_of_nothing(call):
    assert (0, 1) == (call(eff.eff)[0], call(eff.eff, "77")[0])


@pytest.mark.usefixtures("some")
def test_suggest_gives_options_for_a_command_line(call):
    code, out, _ = call(eff.suggest, "--", "/usr/bin/bwa", "mem", "-t", "4", "y.fa")
    assert 0 == code
    assert out.startswith("-c ")
    assert out.endswith(" -t 5\n")
    code, out, _ = call(eff.suggest)
    assert "bwa mem" in out.splitlines()[1]
    (found,) = value(call(eff.suggest, "--json")[1])
    assert ("bwa mem", 4, 0) == (found["command"], found["runs"], found["failed"])


@pytest.mark.usefixtures("some")
def test_suggest_says_when_it_knows_too_little(call):
    code, out, err = call(eff.suggest, "--", "bwa", "index")
    assert (1, "") == (code, out)
    assert "bwa index: 0 runs that succeeded; 3 are needed to tell" in err
    assert "nothing of yours" in "".join(call(eff.suggest, "--user", "nobody-at-all")[1:])
    with pytest.raises(UsageError, match="names no command"):
        call(eff.suggest, "--", "env")
