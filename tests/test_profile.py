"""profile.py and rules, found and applied: in `sub`, for each line of many, and for dropped files on a node."""

import os

import pytest

from spoolq import config, options, profile, where
from spoolq.errors import JobFileError, Misconfigured, UsageError
from spoolq.options import Pair
from spoolq.resources import CPUS, MEM, UNIT
from tests.cluster import Cluster, read

POLICY = b'format = 1\nuuid = "u"\nname = "n"\n'


@pytest.fixture
def places(tmp_path, monkeypatch):
    """The directories of the site and the user; the policy of a spool with a short time limit."""
    for name in ("site", "user"):
        (tmp_path / name / "spoolq").mkdir(parents=True)
    site, user = (str(tmp_path / name / "spoolq") for name in ("site", "user"))
    monkeypatch.setattr(where, "SITE", f"{site}/config.toml")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "user"))
    return site, user


def write(directory: str, name: str, text: str) -> None:
    with open(f"{directory}/{name}", "w") as file:
        file.write(text)


def rule(words=("prog", "arg"), pairs=(), *, script=None, name="", spool=b"", profile_s=20, plugins=False, **fields):
    policy = config.parse_policy(POLICY + f"limits.profile_s = {profile_s}\n".encode() + spool, "spool.toml")
    book = profile.load(policy, plugins=plugins)
    assert book is not None

    def make(said):
        return options.to_job(said, words, {"chdir": "/", **fields}, script=script is not None)

    try:
        ruled = book.rule([Pair(*pair) for pair in pairs], make, words, script, name)
    finally:
        book.close()
    return make(ruled.pairs), ruled.notes


def test_without_any_there_is_none(places):
    assert profile.load(config.parse_policy(POLICY, "spool.toml"), plugins=False) is None


def test_a_submission_without_any_pays_two_listings_of_local_directories(places, monkeypatch):
    policy, looked = config.parse_policy(POLICY, "spool.toml"), []
    real = os.listdir
    monkeypatch.setattr(profile.os, "listdir", lambda path: looked.append(path) or real(path))
    monkeypatch.setattr("builtins.open", lambda *_: pytest.fail("a file was opened"))
    profile.load(policy, plugins=False)
    assert sorted(places) == sorted(looked)


def test_of_defaults_the_users_hold_and_of_the_rest_the_sites(places):
    site, user = places
    for directory, cpus in ((site, 8), (user, 2)):
        write(directory, "config.toml", f"[[rule]]\ndefault = {{ cpus = {cpus} }}\nset = {{ priority = {cpus} }}\n")
    job, notes = rule(spool=b"[[rule]]\ndefault = { cpus = 5, mem = 77 }\nset = { priority = 5 }\n")

    assert (2 * UNIT, 77 * UNIT, 8) == (job.wants[CPUS], job.wants[MEM], job.priority)
    assert [f"{user}/config.toml:1", "spool.toml:5", f"{site}/config.toml:1"] == list(
        dict.fromkeys(note.rpartition("(")[2].rstrip(")") for note in notes)
    )


def test_a_profile_sees_the_job_and_asks_for_options(places, tmp_path):
    (tmp_path / "in.dat").write_bytes(b"x" * (3 << 20))
    write(places[1], "profile.py", """
def profile(job):
    assert job.command == ["prog", "in.dat", "-v"] and job.line == "prog in.dat -v" and job.program == "prog"
    assert job.user == "eve" and job.cpus == 1 and job.mem_mb == 1000 and job.time_s is None and not job.script
    assert job.options == {"priority": "3"} and [p[-6:] for p in job.inputs] == ["in.dat"]
    print("a profile may print")
    job.minimum(mem=job.input_mb * 1000.00001)
    job.set(no_requeue=True)
    return {"cpus": 4, "priority": 9}
""")  # fmt: skip
    job, notes = rule(("prog", "in.dat", "-v"), [("priority", "3")], user="eve", chdir=str(tmp_path))

    assert (3000 * UNIT, 4 * UNIT, 3, "never") == (job.wants[MEM], job.wants[CPUS], job.priority, job.rerun)
    assert [f"{places[1]}/profile.py:{n}" for n in (7, 8, 2)] == [n.rpartition("(")[2].rstrip(")") for n in notes]


def test_a_shell_line_and_a_script_are_looked_into(places, tmp_path):
    (tmp_path / "a b").write_bytes(b"x" * 100)
    write(places[1], "profile.py", "def profile(job): job.set(name=f'{job.program} {len(job.inputs)} {job.script}')\n")
    assert "sort 1 " == rule(("/bin/sh", "-c", "sort <'a b'|uniq"), chdir=str(tmp_path))[0].name
    assert "s.sh 0 echo x" == rule((), script=b"echo x", name="s.sh")[0].name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def profile(job):\n    1 / 0\n", "profile.py:2: ZeroDivisionError: division by zero: so the job is refused"),
        ("def profile(job):\n    raise SystemExit\n", "profile.py:2: SystemExit"),
        ("import os\ndef profile(job):\n    os._exit(1)\n", "profile.py: ended without an answer: so the job"),
        ("def profile(job:\n", "profile.py:1: SyntaxError"),
        ("import json\ndef profile(job):\n    json.loads('x')\n", "profile.py:3: JSONDecodeError"),
        ("profiles = 3\n", "defines no function profile"),
        ("def profile(job):\n    job.cpus = 3\n", "profile.py:2: AttributeError: job.cpus cannot be assigned to"),
        ("def profile(job):\n    job.set(cpu=3)\n", r"profile.py:2: set: 'cpu' is no option of a job \(did you mean"),
        ("def profile(job):\n    job.set(cpus='x')\n", "profile.py:2: "),
        ("def profile(job):\n    return 3\n", "returned int: must be a dict"),
    ],
)
def test_what_goes_wrong_refuses_the_job_and_says_where(places, text, message):
    write(places[1], "profile.py", text)
    with pytest.raises(JobFileError, match=message):
        rule()


def test_a_refusal_and_a_profile_that_hangs(places):
    write(
        places[1],
        "profile.py",
        "def profile(job):\n    if job.program == 'x':\n        job.refuse('not x')\n    while 1: pass\n",
    )
    with pytest.raises(JobFileError, match=r"took longer than 0.3 s \(limits.profile_s"):
        rule(("y",), profile_s=0.3)
    write(places[1], "profile.py", "def profile(job):\n    job.refuse('not x')\n")
    with pytest.raises(UsageError, match=r"refused: not x \(.*profile.py:2\)"):
        rule(("x",))


def test_a_wrong_rule_in_a_file(places):
    write(places[0], "config.toml", "[[rule]]\nset = { cpu = 1 }\n")
    with pytest.raises(Misconfigured, match="config.toml:1: rule: set: 'cpu'"):
        rule()


def configure(cluster: Cluster, name: str, text: str) -> None:
    """A file in the configuration of the user who submits and of the node, who are the same here."""
    os.makedirs(f"{cluster.base}/.config/spoolq", exist_ok=True)
    write(f"{cluster.base}/.config/spoolq", name, text)


PROFILE = """
import os, time

def profile(job):
    if job.program == "hang" or "hang" in job.script:
        time.sleep(999)
    if job.program == "forbidden":
        job.refuse("nobody may")
    if job.program == "broken":
        os.nothing()
    if "heavy" in job.line or "heavy" in job.script:
        job.minimum(mem="2G")
"""
RULES = """
[[rule]]
match = { command = "echo*" }
set = { name = "spoken" }

[[rule]]
match = { script_contains = "rm -rf /" }
refuse = "no"
"""


def test_rules_and_profile_from_submission_to_the_end(cluster: Cluster):
    """The command, many lines, and dropped files; a profile that hangs keeps neither `sub` nor the node."""
    configure(cluster, "profile.py", PROFILE)
    configure(cluster, "config.toml", RULES)
    cluster.policy(grace_s=1, settle_s=0, min_free_mb=1, profile_s=8)
    cluster.node(cpus=4)
    done = cluster.spoolq("sub", "--parsable", "echo", "heavy")
    assert (0, "1") == (done.returncode, done.stdout.strip())
    assert "mem 2G instead of 1000M, at least that is asked for" in done.stderr
    assert "name spoken, whatever was said" in cluster.ok("show", "1")
    assert (2048, "COMPLETED") == (cluster.result(1)["mem_mb"], cluster.result(1)["state"])
    for word, said in (
        ("hang", "took longer than 8 s"), ("forbidden", "nobody may"), ("broken", "profile.py:10: AttributeError")
    ):  # fmt: skip
        done = cluster.spoolq("sub", word)
        assert (2, "") == (done.returncode, done.stdout)
        assert said in done.stderr

    ids = [int(word) for word in cluster.ok("sub", "--each-line", "-", stdin="true\necho heavy\ntrue heavy\n").split()]
    assert [1000, 2048, 2048] == [cluster.result(job)["mem_mb"] for job in ids]
    assert "spoken" in cluster.ok("show", str(ids[1]))
    assert 2 == cluster.spoolq("sub", "--each-line", "-", stdin="true\nforbidden\n").returncode

    drop = f"{cluster.root}/drop"
    for name, text in (("hang", "hang"), ("ok", "echo heavy"), ("no", "rm -rf /")):
        write(drop, f"{name}.tmp", f"#!/bin/sh\n{text}\n#SPOOLQ end\n")
        os.rename(f"{drop}/{name}.tmp", f"{drop}/{name}.sh")
    job = int(cluster.until(lambda: read(f"{drop}/ok.sh.id"), "an id"))
    assert 2048 == cluster.result(job)["mem_mb"]
    for name, said in (("hang", "took longer"), ("no", "refused: no (")):
        why = cluster.until(lambda name=name: read(f"{drop}/{name}.sh.why"), f"{name} is rejected")
        assert said in why
