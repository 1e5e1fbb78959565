"""What is learned of commands: signatures, quantiles, files; and with real nodes."""

import json
import os
import re
import shlex
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spoolq import config, learn, lessons
from spoolq.deliver import Finished
from spoolq.elbow import enforced
from spoolq.job import Job
from spoolq.learn import Estimate, Run
from spoolq.selector import me
from spoolq.spool import Placed

from .cluster import Cluster

names = st.text(max_size=8).map(lambda text: learn.key("anna", text))
runs = st.lists(
    st.builds(
        Run,
        day=st.integers(739000, 739400),
        mem_mb=st.integers(0, 10**7),
        cpus=st.integers(0, 51200).map(lambda n: n / 100),
        wall_s=st.integers(0, 10**8).map(lambda n: n / 10),
    ),
    max_size=40,
)
POLICY = config.parse_policy(b'format = 1\nuuid = "1-2"\nname = "lab"\n', "spool.toml")


# --- the same command


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("make -j4", "make"),
        ("make test", "make test"),
        ("/opt/bwa-0.7/bwa mem -t 4 ref.fa x.fq", "bwa mem"),
        ("python3.11 train.py --lr 0.1", "python train.py"),
        ("python -m pytest -q", "python pytest"),
        ("python -c 'print(1)'", "python -c edpgango"),
        ("./sim_17 a b", "sim_#"),
        ("sim_18", "sim_#"),
        ("env A=1 nice -n 5 gzip x", "gzip"),
        ("A=1 gzip x", "gzip"),
        ("timeout 60 gzip x", "gzip"),
        ("bash step.sh 7", "bash step.sh"),
        ("sh -c 'sort big | uniq > out'", "sort big"),
        ("/bin/sh -c 'B=2 ./a.out 9'", "a.out"),
        ("java -jar x.jar", "java x.jar"),
        ("", ""),
        ("env", ""),
    ],
)
def test_a_command_is_known_by_what_makes_it_different(line, said):
    assert said == learn.signature(shlex.split(line))


def test_inline_programs_are_told_apart_by_their_text():
    one, two = (learn.signature(["python3", "-c", text]) for text in ("print(1)", "print(2)"))
    assert one != two
    assert one.startswith("python -c ")


def test_a_script_is_known_by_the_name_of_its_job():
    assert "script align.sh" == learn.of_job(Job(command=("x",), name="align.sh", script=True))
    assert "script align.sh" == learn.of_record({"command": ["y"], "name": "align.sh", "script": True})
    assert "y" == learn.of_record({"command": ["y"], "name": "align.sh"})
    assert "" == learn.of_record({"command": None, "name": None})


@given(st.lists(st.text(max_size=20), max_size=6))
def test_any_words_have_a_short_signature(words):
    assert len(learn.signature(words)) <= 120


# --- how much


@given(runs.filter(lambda some: len(some) >= learn.LEAST))
def test_an_estimate_is_what_was_seen_and_a_margin(some):
    found = learn.estimate(some)
    most = max(run.mem_mb for run in some)
    assert min(run.mem_mb for run in some) <= found.mem_mb <= max(learn.LEAST_MB, most * learn.MARGIN + 10)
    assert found.time_s % 60 == 0
    assert 60 <= found.time_s <= max(run.wall_s for run in some) * learn.MARGIN + 60
    assert found.cpus is None or 1 <= found.cpus <= max(1, max(run.cpus for run in some) + 1)


@given(runs.filter(lambda some: len(some) < learn.LEAST))
def test_a_few_runs_say_nothing(some):
    assert None is learn.estimate(some)


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0.01, 10)), min_size=1), st.floats(0.01, 1))
def test_a_quantile_has_its_share_at_or_below(weighted, share):
    found = learn.quantile(weighted, share)
    below = sum(weight for value, weight in weighted if value <= found)
    assert below >= share * sum(weight for _, weight in weighted) - 1e-6
    assert found in [value for value, _ in weighted]


def test_what_is_long_ago_is_forgotten():
    old, new = Run(739000, 4000, 1.0, 60.0), Run(739120, 100, 1.0, 60.0)
    assert learn.estimate([old] * 10 + [new] * 3).mem_mb == 120
    assert learn.estimate([old._replace(day=new.day)] + [new] * 3).mem_mb == 4800


def test_threads_ask_for_cpus_and_idleness_asks_for_no_fewer():
    assert 4 == learn.estimate([Run(1, 1, 3.9, 60.0)] * 3).cpus
    assert 1 == learn.estimate([Run(1, 1, 1.1, 60.0)] * 3).cpus
    assert 1 == learn.estimate([Run(1, 1, 0.1, 60.0)] * 3).cpus
    assert None is learn.estimate([Run(1, 1, 0.0, 0.5)] * 3).cpus


# --- what is done with it


@given(
    st.builds(Estimate, mem_mb=st.integers(32, 10**6), cpus=st.none() | st.integers(1, 64), time_s=st.integers(60, 600), runs=st.just(5)),
    st.sets(st.sampled_from(["cpus", "mem", "time"])),
    st.sampled_from([None, 600]),
)  # fmt: skip
def test_what_was_asked_for_is_never_replaced(found, declared, limit_s):
    job = Job(command=("x",), declared=frozenset(declared), limit_s=limit_s)
    filled = learn.fill(job, found)
    for name in ("cpus", "mem"):
        assert name not in declared or job.wants[name] == filled.wants[name]
    assert filled.wants["cpus"] >= job.wants["cpus"]
    assert (job.limit_s, job.declared) == (filled.limit_s, filled.declared)
    if "mem" not in declared:
        assert found.mem_mb * 1000 == filled.wants["mem"]
        assert None is enforced(filled.entry(1), filled, POLICY).mem_mb  # a guess is no limit
    assert job == learn.fill(job, None)


def test_an_estimate_is_told_in_words():
    words = ("mem=120", "cpus=4", "time=6", "runs=23")
    assert "memory 120M, 4 cpus, time 6:00 (not enforced): from 23 runs of this command" == learn.told(words)
    assert "from 0 runs" in learn.told(("x", "mem=", "=5"))


# --- files


@given(
    st.dictionaries(names, runs.filter(bool), max_size=80),
    st.dictionaries(names, runs, max_size=5),
)
def test_a_file_is_bounded_and_read_back(known, fresh):  # fmt: skip
    both = learn.merged(known, {name: some for name, some in fresh.items() if some})
    assert len(both) <= learn.COMMANDS
    assert all(0 < len(some) <= learn.NEWEST for some in both.values())
    assert both == learn.parse(learn.form(both))
    for name, some in fresh.items():
        if name in both and some:
            assert both[name][: len(some)] == some[: learn.NEWEST]


@given(st.binary(max_size=200) | st.text("1 .\t\nx-", max_size=60).map(str.encode))
def test_what_is_no_such_file_says_nothing(data):
    assert isinstance(learn.parse(data), dict)


def ended(job_id: int, mb: int, *, code: int = 0, peak_mb: int = 0) -> Finished:
    job = Job(command=("crunch", "x"), user="anna")
    facts = {"exit_code": code, "reason": "", "wall_s": 2.0, "ended": 1741600000.0}
    facts["rusage"] = {"max_rss_kb": mb << 10, "user_s": 1.0, "system_s": 0.5}
    item = Finished(Placed("running/n1", job.entry(job_id)), facts, job)
    item.peak_mb = peak_mb
    return item


def test_nodes_add_what_ended_and_a_submission_finds_it(root):
    first, second = lessons.Notes(), lessons.Notes()
    job = Job(command=("crunch", "y"), user="anna")
    assert job == lessons.estimated(job, root, POLICY)
    for notes in (first, second):
        for n in range(2):
            notes.take(ended(n, 100, peak_mb=200 * n))
        notes.take(ended(7, 9000, code=1))
        notes.write(root)
        assert not notes.fresh
    found = lessons.estimated(job, root, POLICY)
    assert ("mem=240", "time=1", "runs=4") == found.estimate
    assert 240_000 == found.wants["mem"]
    assert job == lessons.estimated(job, root, POLICY._replace(learn=False))
    assert Job(command=("crunch",), user="ben") == lessons.estimated(Job(command=("crunch",), user="ben"), root, POLICY)


def test_what_the_spool_refuses_is_kept_for_the_next_time(root, monkeypatch):
    notes = lessons.Notes()
    for n in range(3):
        notes.take(ended(n, 100))
    os.rename(f"{root}/history", f"{root}/away")
    with pytest.raises(OSError):
        notes.write(root)
    os.rename(f"{root}/away", f"{root}/history")
    notes.write(root)
    assert lessons.estimated(Job(command=("crunch", "y"), user="anna"), root, POLICY).estimate


# --- with real nodes


def test_what_was_not_asked_for_comes_from_earlier_runs(cluster: Cluster):
    daemon = cluster.node()
    code = "import sys, time; x = bytearray(100 << 20); time.sleep(float(sys.argv[1]))"
    path = f"{cluster.base}/crunch.py"
    with open(path, "w") as file:
        file.write(code)
    command = (sys.executable, "-S", path)
    ids = [cluster.sub("-m", "900", "-t", "60", *command, "0.1") for _ in range(3)]
    for job_id in ids:
        assert "COMPLETED" == cluster.result(job_id)["state"]
    cluster.until(lambda: "done" == cluster.place(ids[-1]), "it is over")
    daemon.terminate()  # what it has noted it writes at the latest when it ends
    daemon.wait()
    cluster.until(lambda: os.path.isdir(f"{cluster.root}/history/learned"), "it was written")

    guess, said = cluster.sub(*command, "0.2"), cluster.sub("-m", "700", "-c", "1", *command, "0.2")
    shown = cluster.ok("show", str(guess))
    assert "estimated" in shown
    assert "from 3 runs of this command" in shown
    assert "estimated" not in cluster.ok("show", str(said))
    wanted = json.loads(cluster.ok("show", str(guess), "--json"))["job"][0]
    told = [word.partition("=")[0] for word in wanted["job"]["estimate"]]
    assert ["mem", "time", "runs"] == [word for word in told if word != "cpus"]  # said of runs of a second or more
    mb = int(wanted["job"]["estimate"][0].partition("=")[2])
    assert 120 <= mb <= 300
    cluster.node()
    assert mb == cluster.result(guess)["mem_mb"]
    assert 700 == cluster.result(said)["mem_mb"]

    suggested = cluster.ok("suggest", "--", *command).strip()
    assert suggested.startswith(("-m ", "-c 1 -m "))
    again = cluster.sub(*suggested.split(), *command, "0.1")
    assert "COMPLETED" == cluster.result(again)["state"]
    assert "crunch.py" in cluster.ok("suggest")
    assert "next time -m " in cluster.ok("eff", str(ids[0]))
    assert re.search(r"next time -t 1: it took \d", cluster.ok("eff", str(ids[0])))


def test_dropped_files_and_lines_of_different_commands_are_estimated_too(cluster: Cluster):
    os.makedirs(f"{cluster.root}/history/learned", exist_ok=True)
    scripts = learn.signature((), script="job")
    for kind, mb in ((learn.signature(["true"]), 400), (learn.signature(["echo", "a"]), 200), (scripts, 300)):
        name = learn.key(me(), kind)
        path = f"{cluster.root}/history/learned/{learn.bucket(name)}.tsv"
        known = lessons.read(cluster.root, learn.bucket(name)) | {name: [Run(739000, mb, 0.0, 1.0)] * 3}
        with open(path, "wb") as file:
            file.write(learn.form(known))
    lines = "true\necho a\necho a\nsleep 0\ntrue\n"
    ids = [int(word) for word in cluster.ok("sub", "--each-line", "-", stdin=lines).split()]
    assert [*range(ids[0], ids[0] + 5)] == ids, "in the order of the lines"
    said = [int(word) for word in cluster.ok("sub", "-m", "50", "-c", "1", "--each-line", "-", stdin=lines).split()]
    cluster.node()
    with open(f"{cluster.root}/drop/job.sh.tmp", "w") as file:
        file.write("#!/bin/sh\n#SPOOLQ end\n")
    os.rename(f"{cluster.root}/drop/job.sh.tmp", f"{cluster.root}/drop/job.sh")
    default = cluster.result(ids[3])["mem_mb"]
    assert [480, 240, 240, default, 480] == [cluster.result(job)["mem_mb"] for job in ids]
    assert [50] * 5 == [cluster.result(job)["mem_mb"] for job in said]
    assert default not in (480, 240)
    assert 360 == cluster.result(said[-1] + 1)["mem_mb"], "the dropped file"
    assert "from 3 runs of this command" in cluster.ok("show", str(said[-1] + 1))


def test_an_estimate_that_no_node_could_hold_is_dropped(cluster: Cluster):
    node = cluster.node(cpus=10_000, mem="500")  # more than any machine has: what others use does not count
    name = learn.key(me(), "true")
    os.makedirs(f"{cluster.root}/history/learned", exist_ok=True)
    with open(f"{cluster.root}/history/learned/{learn.bucket(name)}.tsv", "wb") as file:
        file.write(learn.form({name: [Run(739000, 400, 0.0, 1.0)] * 3}))
    with open(f"{cluster.root}/spool.toml") as file:
        text = file.read()
    with open(f"{cluster.root}/spool.toml", "w") as file:
        file.write(text + "[policy]\ndefault_mem = 300\n")
    fits = cluster.sub("true")
    assert 480 == cluster.result(fits)["mem_mb"]
    node.terminate()  # else it might write what it has learned over this, or into it
    node.wait()
    with open(f"{cluster.root}/history/learned/{learn.bucket(name)}.tsv", "wb") as file:
        file.write(learn.form({name: [Run(739000, 4000, 0.0, 1.0)] * 3}))
    cluster.node(cpus=10_000, mem="500")
    assert 300 == cluster.result(cluster.sub("true"))["mem_mb"]
