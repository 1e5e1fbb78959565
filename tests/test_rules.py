"""Rules over jobs: what they match, what they change, and that they say so."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spoolq import config, options, rules
from spoolq.errors import Misconfigured, UsageError
from spoolq.options import Pair
from spoolq.resources import CPUS, MEM, UNIT
from spoolq.rules import Facts


def parse(text: str):
    return config.parse_rules(text.encode(), "c.toml")


def ruled(text: str, line: str, *pairs: tuple[str, str], script: str = "", inputs: int = 0, **fields):
    words = tuple(line.split())

    def make(said):
        return options.to_job(said, words, fields)

    facts = Facts(words[0], line, script, lambda: {"a": inputs})
    done = rules.apply(parse(text), [Pair(*pair) for pair in pairs], make, facts)
    return make(done.pairs), done.notes


def test_default_fills_in_what_nobody_said():
    rule = '[[rule]]\ndefault = { mem = "8G", time = "2h" }'
    job, notes = ruled(rule, "x", ("mem", "1G"))

    assert (1024 * UNIT, 7200) == (job.wants[MEM], job.limit_s)
    assert ("time 2h, since nothing was said (c.toml:1)",) == notes
    assert MEM in job.declared


def test_the_first_default_holds_and_the_last_set():
    job, _ = ruled("[[rule]]\ndefault = { cpus = 2 }\n[[rule]]\ndefault = { cpus = 3 }", "x")
    assert 2 * UNIT == job.wants[CPUS]
    job, _ = ruled("[[rule]]\nset = { cpus = 2 }\n[[rule]]\nset = { cpus = 3 }", "x", ("cpus", "9"))
    assert 3 * UNIT == job.wants[CPUS]


def test_what_is_as_it_should_be_is_not_talked_about():
    _, notes = ruled('[[rule]]\nset = { cpus = 2 }\nminimum = { mem = 5 }\nmaximum = { time = "1h" }', "x",
                     ("cpus", "2"), ("time", "60"))  # fmt: skip
    assert () == notes


@pytest.mark.parametrize(
    ("rule", "given", "found"),
    [
        ("minimum = { cpus = 2 }", ("cpus", "1"), "2"),
        ("minimum = { cpus = 2 }", ("cpus", "3"), "3"),
        ("maximum = { cpus = 2 }", ("cpus", "3"), "2"),
        ("maximum = { cpus = 2 }", ("cpus", "0.5"), "0.5"),
        ("maximum = { gpus = 2 }", ("cpus", "0.5"), "0.5"),
    ],
)
def test_minimum_and_maximum(rule, given, found):
    job, _ = ruled(f"[[rule]]\n{rule}", "x", given)
    assert found == f"{job.wants[CPUS] / UNIT:g}"
    assert "gpu" not in job.wants


def test_no_time_limit_is_more_than_any():
    job, notes = ruled('[[rule]]\nmaximum = { time = "1h" }', "x")
    assert 3600 == job.limit_s
    assert "instead of unlimited" in notes[0]
    job, _ = ruled('[[rule]]\nminimum = { time = "1h" }', "x")
    assert job.limit_s is None


def test_a_list_of_resources_is_added_to():
    job, _ = ruled('[[rule]]\nset = { gres = "io:1" }\ndefault = { gres = "disk:3" }', "x", ("gres", "gpu:2,io:4"))
    assert (2 * UNIT, UNIT, 3 * UNIT) == tuple(job.wants[name] for name in ("gpu", "io", "disk"))


@pytest.mark.parametrize(
    ("match", "line", "hit"),
    [
        ('command = "bwa*"', "/opt/bwa mem x", True),
        ('command = "bwa"', "/opt/bwa mem x", True),
        ('command = "bwa mem*"', "bwa mem x", True),
        ('command = "bwa mem*"', "bwa index x", False),
        ('command = ["a", "b*"]', "bwa index x", True),
        ('user = "eve"', "x", True),
        ('user = "ev"', "x", False),
        ('user = "e*", name = "other"', "x", False),
        ('chdir = "/data/*"', "x", True),
        ('script_contains = "mpirun"', "x", True),
        ('script_contains = "x -y"', "x -y", True),
        ('script_contains = "nothing"', "x", False),
        ('gres = "gpu"', "x", True),
        ('gres = "io"', "x", False),
        ("over = { cpus = 3 }", "x", True),
        ("over = { cpus = 4 }", "x", False),
        ('over = { cpus = 3, mem = "1T" }', "x", False),
        ('over = { time = "9d" }', "x", True),
        ("under = { cpus = 4.5 }", "x", True),
        ("under = { io = 1 }", "x", None),
        ('inputs_over = "1M"', "x", True),
        ('inputs_under = "2M"', "x", True),
        ('inputs_under = "1M"', "x", False),
    ],
)
def test_match(match, line, hit):
    text = f"[[rule]]\nmatch = {{ {match} }}\nset = {{ priority = 7 }}"
    fields = {"user": "eve", "chdir": "/data/run", "name": "me"}
    if hit is None:
        with pytest.raises(Misconfigured, match="'io' is no option"):
            parse(text)
        return
    job, _ = ruled(text, line, ("cpus", "4"), ("gpus", "1"), script="mpirun", inputs=(1 << 20) + 1, **fields)
    assert hit == (7 == job.priority)


def test_refuse_says_why_and_where():
    with pytest.raises(UsageError, match=r"refused: not here \(c.toml:2\)"):
        ruled('\n[[rule]]\nmatch = { command = "x" }\nrefuse = "not here"', "x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[rule]\nset = {}", "is a table; must be tables"),
        ("\n[[rule]]\nset = { cpu = 1 }", r"c.toml:2: rule: set: 'cpu' is no option of a job \(did you mean cpus\?\)"),
        ("[[rule]]\nset = { wrap = 'x' }", "is no option of a job"),
        ("[[rule]]\nset = { mem = 'much' }", "no amount of memory"),
        ("[[rule]]\nset = { hold = 1 }", "must be true or false"),
        ("[[rule]]\nmatch = { commands = 'x' }\nrefuse = 'x'", "unknown key 'commands' .did you mean command"),
        ("[[rule]]\nmatch = { command = 3 }\nrefuse = 'x'", "must be a string"),
        ("[[rule]]\nmatches = { command = 'x' }\nrefuse = 'x'", "unknown key 'matches'"),
        ("[[rule]]\nmatch = { command = 'x' }", "does nothing"),
        ("[[rule]]\nminimum = { output = 'x' }", "has no more and less"),
        ("[[rule]]\nminimum = { nice = 3 }", "has no more and less"),
        ("[[rule]]\nset = 3", "set: is an integer; must be a table"),
    ],
)
def test_a_wrong_rule_is_named_with_its_line(text, message):
    with pytest.raises(Misconfigured, match=message):
        parse(text)


def test_rules_may_stand_in_all_configuration_files():
    rule = b'[[rule]]\nrefuse = "no"\n'
    settings = config.parse_settings([("site", b'spool = "/x"\n' + rule), ("user", rule)])
    assert ["user:1", "site:2"] == [rule.origin for rule in settings.rules]
    policy = config.parse_policy(b'format = 1\nuuid = "u"\nname = "n"\n' + rule, "spool.toml")
    assert ["spool.toml:4"] == [rule.origin for rule in policy.rules]


AMOUNTS = st.integers(1, 64)
CHANGES = st.fixed_dictionaries({}, optional={"cpus": AMOUNTS, "mem": AMOUNTS, "time": AMOUNTS, "gpus": AMOUNTS})
RULES = st.lists(st.fixed_dictionaries({}, optional=dict.fromkeys(rules.VERBS, CHANGES)), max_size=3)


@given(RULES, CHANGES)
def test_bounds_of_the_last_rule_hold_and_what_changed_was_said(tables, given_options):
    def rule(table, *verbs):
        return rules.Rule((), rules.changes_of({verb: table.get(verb, {}) for verb in verbs}), "", "r")

    def make(said):
        return options.to_job(said, ("x",))

    pairs = [Pair(name, str(value)) for name, value in given_options.items()]
    done = rules.apply([rule(table, *rules.VERBS) for table in tables], pairs, make, Facts("x", "x"))

    assert done.notes or make(pairs) == make(done.pairs)
    for table in tables[-1:]:
        for _, pair in rule(table, "maximum").changes:
            assert all(have <= bound for _, have, bound in rules._amounts(pair, make(done.pairs)))
        assert () == rules.apply([rule(table, "maximum")], done.pairs, make, Facts("x", "x")).notes
