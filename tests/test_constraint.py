"""Constraints: what matches, what cannot be told, what is refused and where; nothing that anybody writes raises else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spoolq import config, options, stored
from spoolq.constraint import Both, Compare, Has, Not, check_labels, labels_of, mismatch, parse, parse_label, sound
from spoolq.errors import Misconfigured, UsageError
from spoolq.schedule import Conditions, NodeView, could_take, explain, impossible
from tests.test_schedule import entry

LABELS = {
    "arch": "x86_64", "os": "linux", "kernel": "6.10.3-amd64", "node": "gpu7", "cpus": 8, "mem": 64000, "ssd": True,
    "old": False, "rack": "b 4", "disk": 1.5, "gpu": 2, "tesla.v-1": "yes",
}  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "arch==x86_64", "arch == x86_64 and ssd", "arch==x86*", "arch=='x86_[0-9]4'", "arch!=aarch64", "ssd", "not old",
        "not fpga", "!old&ssd", "!(old|fpga)", "fpga or ssd", "fpga || ssd", "ssd && !old", "node in (gpu7, n1)",
        "node in (gpu*,)" [:-2] + ")", "node in [n1, gpu7]", "node not in (n1, n2)", "not node in (n1)", "mem>=62G",
        "mem >= 64000", "mem<64G", "cpus>7 and cpus<9", "cpus==8", "cpus!=9", "cpus in (4, 8)", "kernel>=6.9",
        "kernel<6.11", "kernel>6", "kernel == 6.10*", "ssd==true", "old==false", "ssd!=false", "rack=='b 4'",
        'rack == "b 4"', "disk>1.4 and disk<=1.5", "gpu", "gpu>=2", "tesla.v-1", "not (arch==x and ssd)",
        "arch==x or (old or (ssd))", "fpga_mem>4 or ssd", "ssd or fpga_mem>4", "not (fpga_mem>4 and old)", "fpga<1 or cpus",
    ],
)  # fmt: skip
def test_what_matches(text):
    assert "" == mismatch(text, LABELS)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("arch==aarch64", "arch is x86_64"),
        ("ssd and arch==aarch64", "arch is x86_64"),
        ("fpga", "there is no label fpga"),
        ("old", "old is false"),
        ("not ssd", "ssd is true"),
        ("fpga or old", "there is no label fpga, old is false"),
        ("node in (n1, n2)", "node is gpu7"),
        ("node not in (n1, gpu*)", "node is gpu7"),
        ("mem>=64G", "mem is 64000"),
        # what cannot be answered is no match, turned round or not
        ("fpga_mem>=4", "there is no label fpga_mem"),
        ("not fpga_mem>=4", "there is no label fpga_mem"),
        ("fpga!=x", "there is no label fpga"),
        ("fpga_mem>4 and ssd", "there is no label fpga_mem"),
        ("not (fpga_mem>4 or old)", "there is no label fpga_mem"),
        ("cpus>many", "8 is a number, and 'many' is none"),
        ("gpu==a100", "2 is a number, and 'a100' is none"),
        ("arch>5", "'x86_64' and '5' are no versions to compare by >"),
        ("ssd>1", "a label that is true can only be == or != true or false, not > 1"),
    ],
)
def test_what_does_not_match_and_why(text, why):
    assert why == mismatch(text, LABELS)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("", "character 1: expected a label; it ends"),
        ("arch=x86", "character 5: = compares nothing, == does; found '='"),
        ("arch==", "character 7: expected a value; it ends"),
        ("arch == == x", "character 9: expected a value; found '=='"),
        ("ssd and", "character 8: expected a label; it ends"),
        ("ssd fast", "character 5: expected and, or, or the end; found 'fast'"),
        ("(ssd", "character 5: expected ); it ends"),
        ("ssd)", "character 4: expected and, or, or the end; found ')'"),
        ("8 <= cpus", "character 1: expected a label; found '8'"),
        ("1 < cpus < 3", "character 1: expected a label; found '1'"),
        ("cpus > 1 < 3", "character 10: expected and, or, or the end; found '<'"),
        ("node in n1", "character 9: expected a list in parentheses; found 'n1'"),
        ("node in ()", "character 10: expected a value; found ')'"),
        ("node in (a b)", "character 12: expected , or ); found 'b'"),
        ("node not n1", "character 6: expected and, or, or the end; found 'not'"),
        ("rack=='b 4", "character 7: the quote ' is not closed"),
        ("and", "character 1: expected a label; found 'and'"),
        ("__import__('os')", "character 1: expected a label; found '__import__'"),
        ("(" * 60 + "ssd" + ")" * 60, "more than 40 levels"),
        ("not " * 60 + "ssd", "more than 40 levels"),
    ],
)
def test_what_is_refused_and_where(text, place):
    with pytest.raises(UsageError) as error:
        parse(text)
    assert place in str(error.value)
    assert place in mismatch(text, LABELS), "by hand in a job file: no match, with the reason"


def test_long_or_unprintable_is_refused():
    for text in ("a" * 2000, "ssd\nand x", "ssd \x1b[31m"):
        with pytest.raises(UsageError):
            parse(text)


values = st.one_of(st.booleans(), st.integers(), st.floats(), st.text(max_size=5))
names = st.sampled_from(["a", "b", "c"])


@given(st.text(alphabet="ab =!<>&|()[],'\"notrdi.0", max_size=40) | st.text(), st.dictionaries(names, values))
def test_nothing_raises_but_usage_errors(text, labels):
    why = mismatch(text, labels)
    assert isinstance(why, str)
    try:
        parse(text)
    except UsageError:
        assert why


parts = st.recursive(
    st.builds(Has, names) | st.builds(Compare, names, st.sampled_from(["==", "!=", "<"]), st.just(("1",))),
    lambda inner: (
        st.builds(Not, inner) | st.builds(Both, st.booleans(), st.lists(inner, min_size=2, max_size=3).map(tuple))
    ),
    max_leaves=8,
)


def written(part):
    match part:
        case Has(label):
            return label
        case Compare(label, sign, values):
            return f"{label} {sign} '{values[0]}'"
        case Not(inner):
            return f"not ({written(inner)})"
        case Both(decisive, inner):
            return "(" + (" or " if decisive else " and ").join(written(p) for p in inner) + ")"


def truth(part, labels):
    """Kleene's logic once more, by enumeration: what is true whatever the unknown answers would be."""
    match part:
        case Has(label):
            return {bool(labels.get(label))}
        case Compare(label, sign, _):
            if label not in labels:
                return {True, False}
            return {{"==": labels[label] == 1, "!=": labels[label] != 1, "<": labels[label] < 1}[sign]}
        case Not(inner):
            return {not t for t in truth(inner, labels)}
        case Both(decisive, inner):
            all_of = [truth(p, labels) for p in inner]
            found = set()
            if any(decisive in t for t in all_of):
                found.add(decisive)
            if all((not decisive) in t for t in all_of):
                found.add(not decisive)
            return found


@given(parts, st.dictionaries(names, st.integers(0, 2)))
def test_three_valued_logic(part, labels):
    assert (mismatch(written(part), labels) == "") == (truth(part, labels) == {True})


def test_labels_of_a_node():
    capacity = {"cpus": 8000, "mem": 16000_000, "gpu": 2000, "io": 500, "none": 0}
    labels = labels_of("n1", capacity, {"arch": "x", "io": "fast", "node": "forged"})
    assert {"cpus": 8, "mem": 16000, "gpu": 2, "io": "fast", "arch": "x", "node": "n1"} == labels
    assert {"a": 1, "b": "x"} == sound({"a": 1, "b": "x", "c": [1], "d": None})
    assert {} == sound("labels") == sound(None)


def test_labels_as_sites_write_them():
    assert [{"ssd": True}, {"old": False}, {"disk": 2000}, {"rack": "b4"}, {"cuda": "12.10"}] == [
        parse_label(text) for text in ("ssd", "old=false", "disk=2000", "rack=b4", "cuda=12.10")
    ]
    for text in ("node=x", "cpus=4", "and", "1st", "a b=c", "", "x=" + "y" * 300):
        with pytest.raises(UsageError):
            parse_label(text)
    with pytest.raises(UsageError):
        check_labels({"rack": ["a"]})
    with pytest.raises(Misconfigured, match=r"c\.toml:2: labels: node is said by each node itself"):
        config.parse_settings([("c.toml", b"[node]\nlabels = { node = 'x' }\n")])
    settings = config.parse_settings([("c.toml", b"[node]\nlabels = { ssd = true, rack = 'b4', disk = 2000 }\n")])
    assert {"ssd": True, "rack": "b4", "disk": 2000} == dict(settings.labels)


def test_a_job_with_a_constraint_is_stored_and_marked():
    job = options.to_job([("constraint", "arch==x86_64")], ["true"])
    assert "arch==x86_64" == job.constraint
    assert job.entry(1).more
    assert job == stored.read_job(stored.format_job(job), "job")
    with pytest.raises(UsageError, match="character 5"):
        options.to_job([("constraint", "arch=x")], ["true"])


def test_typed_devices_are_a_constraint():
    job = options.to_job([("gres", "gpu:a100:2,io:4"), ("constraint", "ssd or old")], ["true"])
    assert (2000, 4000) == (job.wants["gpu"], job.wants["io"])
    assert "(ssd or old) and gpu_type=='*a100*'" == job.constraint
    assert "" == mismatch(job.constraint, {"ssd": True, "gpu_type": "nvidia-a100-80gb"})
    assert "gpu_type is v100" == mismatch(job.constraint, {"ssd": True, "gpu_type": "v100"})
    assert "gpu_type=='*a100*'" == options.to_job([("gres", "gpu:a100")], ["true"]).constraint
    with pytest.raises(UsageError, match=r"no type \(gpu:a100:2; or --constraint\)"):
        options.to_job([("gres", "gpu:a'1:2")], ["true"])


def test_a_node_says_why_it_does_not_match():
    job, terms = entry(1, cpus=1, more=True), Conditions(constraint="arch==aarch64 and ssd")
    view = NodeView(name="n1", capacity={"cpus": 4000}, free={"cpus": 4000}, labels={"arch": "x86_64", "ssd": True})
    reason = explain(job, view, terms)
    assert "BadConstraints: asks for arch==aarch64 and ssd, and on n1 arch is x86_64" == str(reason)


def test_impossible_knows_labels():
    known, labels = {"n1": {"cpus": 4000}, "n2": {"cpus": 8000}}, {"n1": {"arch": "x"}, "n2": {"arch": "y"}}
    assert ["n2"] == could_take({}, known, Conditions(constraint="arch==y"), labels)
    assert None is impossible({"cpus": 8000}, known, Conditions(constraint="arch==y"), labels)
    assert "needs 8 cpus, and no node has more than 4 cpus" == impossible(
        {"cpus": 8000}, known, Conditions(constraint="arch==x"), labels
    )
    assert "asks for arch==z, and no known node is so: on n1 arch is x, on n2 arch is y" == impossible(
        {}, known, Conditions(constraint="arch==z"), labels
    )
    assert None is impossible({}, {**known, "n3": {}}, Conditions(constraint="arch==z"), labels), "n3 says nothing"
