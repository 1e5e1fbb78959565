"""One table, one meaning: the command line, and fields of a job from options."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spoolq import nodelist
from spoolq import options as o
from spoolq.errors import UsageError
from spoolq.job import DEFAULT_WANTS, Job

SOME = st.text(alphabet="acmtpHW-=/4 ,[]'\"ü\n", max_size=6)


def job_of(line: str) -> Job:
    parsed = o.parse(line.split())
    return o.to_job(parsed.pairs, parsed.words or ["true"])


def test_names_and_letters_are_unique():
    names = [name for option in o.OPTIONS for name in (option.name, *option.aliases)]
    letters = [option.short for option in o.OPTIONS if option.short]
    assert len(set(names)) == len(names)
    assert len(set(letters)) == len(letters)
    assert "n" not in letters  # left free on purpose: elsewhere it means tasks


@pytest.mark.parametrize(
    "line", ["-c4", "-c 4", "-c=4", "--cpus=4", "--cpus 4", "--cpu 4", "--cpus-per-task 4", "-c 2 -c 4", "-Hc4"]
)
def test_all_ways_to_write_an_option_mean_the_same(line):
    assert job_of(line).wants == {"cpus": 4000, "mem": 1000_000}


def test_options_end_at_the_first_word_that_is_none():
    parsed = o.parse(["-c", "4", "make", "-j4", "--", "-c"])
    assert parsed == ([("cpus", "4", None)], {}, ["make", "-j4", "--", "-c"])
    assert o.parse(["-H", "--", "-odd"]).words == ["-odd"]
    assert o.parse(["-H", "-"]).words == ["-"]


@given(st.lists(SOME, max_size=5))
def test_the_command_after_two_dashes_is_untouched(words):
    assert o.parse(["-c", "2", "--", *words]).words == words


@given(st.lists(SOME, max_size=6))
def test_any_words_give_a_job_or_a_usage_error(words):
    try:
        parsed = o.parse(words)
        said = o.to_job(parsed.pairs, parsed.words).entry(1).name
    except UsageError as error:
        said = str(error)
    assert "\n" not in said


@given(st.sampled_from([x.name for x in o.OPTIONS]), st.text(max_size=30))
def test_any_value_of_any_option_is_fields_or_a_usage_error(name, value):
    fields, said = {}, ""
    try:
        fields = o.BY_NAME[name].parse(value)
    except UsageError as error:
        said = str(error)
    assert fields.keys() <= {*Job._fields}
    assert "\n" not in said


def test_asking_for_nothing_gives_the_defaults():
    assert o.apply([]) == {"wants": DEFAULT_WANTS, "declared": frozenset()}


def test_every_option_reaches_its_field():
    job = job_of(
        "-c 0.5 -m 3G -t 2h30m -J align -p 7 -D /d -o %j.out -e %j.err --open-mode append --export none,A=1 "
        "-w n[1-3,5],m* -x n2 -H -g lic:2,disk=0.5 -G 2 --rerun never --umask 0077"
    )
    assert job == Job(
        command=("true",),
        name="align",
        wants={"cpus": 500, "mem": 3072_000, "lic": 2000, "disk": 500, "gpu": 2000},
        declared=frozenset(("cpus", "mem", "lic", "disk", "gpu", "time", "rerun")),
        limit_s=9000,
        priority=7,
        chdir="/d",
        output="%j.out",
        error="%j.err",
        open_mode="append",
        export="none,A=1",
        nodelist=("n[1-3,5]", "m*"),
        exclude=("n2",),
        held="HU",
        rerun="never",
        umask=0o077,
    )


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ("--nice 3", "priority", -3),
        ("--nice=-3", "priority", 3),
        ("-p -3", "priority", -3),
        ("-p 1 --nice 2", "priority", -2),
        ("-p 1 --nice 2 -p 3", "priority", 3),
        ("--nice 2 -p 1", "priority", 1),
        ("--requeue", "rerun", "yes"),
        ("--requeue --no-requeue", "rerun", "never"),
        ("--no-requeue --rerun certain", "rerun", "certain"),
        ("-t unlimited", "limit_s", None),
        ("-g gpu:1 -G 2", "wants", DEFAULT_WANTS | {"gpu": 2000}),
        ("-g a:1 -g b", "wants", DEFAULT_WANTS | {"b": 1000}),
    ],
)
def test_the_last_wins(line, field, value):
    assert getattr(job_of(line), field) == value


def test_a_base_holds_where_nothing_is_said():
    base = {"wants": {"cpus": 2000, "mem": 500_000}, "limit_s": 60, "rerun": "yes"}
    assert o.apply([("mem", "7")], base) == {
        "wants": {"cpus": 2000, "mem": 7000},
        "declared": frozenset(["mem"]),
        "limit_s": 60,
        "rerun": "yes",
    }
    assert o.apply([("time", "unlimited")], base)["limit_s"] is None
    assert base["wants"] == {"cpus": 2000, "mem": 500_000}


def test_flags_of_the_command_line_are_no_options_of_the_job():
    parsed = o.parse(["-HWf", "job.toml", "--each-line=-", "--parsable", "--check"])
    assert parsed.pairs == [("hold", "yes", None)]
    assert parsed.flags == {"wait": "yes", "file": "job.toml", "each-line": "-", "parsable": "yes", "check": "yes"}


def test_help_stops_everything():
    assert o.parse(["-h", "--nonsense"]).flags == {"help": "yes"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("-n 4", "unknown option '-n' (did you mean -c/--cpus?)"),
        ("--ntasks 4", "unknown option '--ntasks' (did you mean -c/--cpus?)"),
        ("--memry 4", "unknown option '--memry' (did you mean --mem?)"),
        ("-Z", "unknown option '-Z' (see spoolq sub --help)"),
        ("--no", "option '--no' is ambiguous: --nodelist, --no-requeue"),
        ("-c", "-c/--cpus: needs a value (N)"),
        ("--umask", "--umask: needs a value (MASK)"),
        ("--hold=yes", "-H/--hold: takes no value"),
        ("-c four", "cpus: 'four' is no number (examples: 4, 0.5)"),
        ("-c 0", "cpus: must be more than 0 and at most 1000000000"),
        ("-m 0", "mem: must be more than 0 and at most 1000000000"),
        ("-m lots", "mem: 'lots' is no amount of memory (examples: 500, 500M, 3G)"),
        ("-t 0", "time: must be more than 0 and at most 10000 days (for no limit: unlimited)"),
        ("-p 501", "priority: priority 501 is not within -499..500"),
        ("-p high", "priority: 'high' is no whole number"),
        ("--rerun maybe", "rerun: 'maybe' is none of never, certain, yes"),
        ("--open-mode x", "open-mode: 'x' is none of append, truncate"),
        ("--umask 9", "umask: '9' is no octal mask (example: 0022)"),
        ("-g GPU:1", "gres: 'GPU:1' is no resource (examples: gpu:2, license=1; names are lower case)"),
        ("-g mem:1", "gres: mem has an option of its own, --mem"),
        ("-g gpu:2:a100", "gres: 'gpu:2:a100': '2' is no type (gpu:a100:2; or --constraint)"),
        ("-w n[3-1]", "nodes: [3-1] in 'n[3-1]' is no range, or a long one (example: n[1-3,5])"),
        ("-w n[0-999999]", "nodes: [0-999999] in 'n[0-999999]' is no range, or a long one (example: n[1-3,5])"),
        ("-w n[ab]", "nodes: 'n[ab]' is no node (examples: n1, n[1-3,5], gpu*)"),
        ("-x ,", "exclude: names no node (examples: n1,n2 or n[1-4] or gpu*)"),
        (
            "--export 1A",
            "export: '1A' is no variable (all, none, NAME or NAME=VALUE; a comma in a value is written \\,)",
        ),
        ("--wrap ls true", "wrap: stands instead of a command, not beside one"),
    ],
)
def test_mistakes_are_explained(line, message):
    with pytest.raises(UsageError) as caught:
        job_of(line)
    assert str(caught.value) == message


def test_scripts_take_options_of_the_job_only():
    with pytest.raises(UsageError, match="only on the command line"):
        o.parse(["--wait"], (o.JOB,))
    with pytest.raises(UsageError, match="only on the command line"):
        o.parse(["-W"], (o.JOB,))


def test_a_job_without_a_command_is_refused_unless_it_has_a_script():
    with pytest.raises(UsageError, match="no command"):
        o.to_job([])
    assert o.to_job([], script=True).command == ()
    assert o.to_job([("wrap", "a | b")]).command == ("/bin/sh", "-c", "a | b")


def test_an_entry_name_that_could_become_too_long_is_refused():
    many = ",".join(f"resource_number_{n}:100" for n in range(9))
    with pytest.raises(UsageError, match="bytes too many"):
        o.to_job([("gres", many)], ["true"])


@given(st.integers(1, 9), st.integers(1, 40), st.integers(1, 12))
def test_a_job_that_is_accepted_can_be_named_all_its_life(kinds, label, digits):
    gres = ",".join(f"kind{n}:{'9' * digits}" for n in range(kinds)) if digits < 10 else "a"
    pairs = [("gres", gres), ("name", "x" * label), ("time", "12345s")]
    try:
        job = o.to_job(pairs, ["true"], user="u" * 32)
    except UsageError:
        return
    late = job.entry(10**12 - 1)._replace(
        gen=99_999, attempt=999, ending="cancelled", held="HU", suspended=True, chunk="a1000000-2000000-999"
    )
    assert len(late.name) <= 200


@pytest.mark.parametrize(
    ("pattern", "fits", "does_not"),
    [
        ("n1", ["n1"], ["n10", "n", "xn1", "N1", ""]),
        ("n*", ["n1", "n", "nx.y"], ["m1"]),
        ("n?", ["n1"], ["n", "n10"]),
        ("n[1-3,5]", ["n1", "n2", "n3", "n5"], ["n4", "n13", "n01", "n", "n1-3"]),
        ("n[8-11]x", ["n8x", "n9x", "n10x", "n11x"], ["n12x", "n08x"]),
        ("n[08-11]", ["n08", "n11"], ["n8", "n12"]),
        ("r[1-2]n[1-2]", ["r1n2"], ["r3n1", "r1n3"]),
        ("n.1", ["n.1"], ["nx1"]),
    ],
)
def test_nodes_match_by_their_whole_name(pattern, fits, does_not):
    assert all(nodelist.matches([pattern], node) for node in fits)
    assert not any(nodelist.matches([pattern], node) for node in does_not)


@given(st.integers(0, 120), st.integers(0, 40), st.integers(0, 200))
def test_a_range_holds_what_lies_in_it(low, length, number):
    assert nodelist.matches([f"n[{low}-{low + length}]"], f"n{number}") == (low <= number <= low + length)


def test_help_and_readme_name_every_option():
    for option in o.OPTIONS:
        assert f"--{option.name}" in o.help_text()
        assert f"`--{option.name}`" in o.readme_table()
    assert "--wait" not in o.help_text((o.JOB,))
    assert all(len(line) <= 100 for line in o.help_text().splitlines())
