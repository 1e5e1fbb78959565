"""Jobs that run only if what they make is older than what it is made from."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spoolq import options, stale
from spoolq.errors import UsageError
from spoolq.stale import Seen, fresh, marked
from tests.cluster import Cluster

SEEN = st.none() | st.builds(Seen, st.integers(0, 5), st.just(1), st.just(1))


@given(st.lists(SEEN, max_size=3), st.lists(SEEN, max_size=3))
def test_up_to_date_means_all_there_and_no_output_older_than_an_input(inputs, targets):
    everything = [*inputs, *targets]
    expected = bool(targets) and None not in everything
    expected = expected and not any(made.mtime < of.mtime for made in targets for of in inputs)
    assert expected == fresh(inputs, targets)


@pytest.mark.parametrize(
    ("command", "found"),
    [
        ("cp %i:a %o:b", ("cp a b", "a", "b")),
        ("cp #i:a x #o:b %i: %o", ("cp x %i: %o", "a", "b")),
        ("date +%H%i:x", ("date +%H%i:x", "", "")),
    ],
)
def test_marks_in_words(command, found):
    assert found == tuple(" ".join(words) for words in marked(command.split()))


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("sort <%i:a.txt>%o:b.txt; true", ("sort <a.txt>b.txt; true", ["a.txt"], ["b.txt"])),
        ("sort %i:'a b' | uniq >%o:\"c d\"", ("sort 'a b' | uniq >\"c d\"", ["a b"], ["c d"])),
        ("make#o:x #o:y;", ("make#o:x ;", [], ["y"])),
        ("date +%H%i:x", ("date +%H%i:x", [], [])),
    ],
)
def test_marks_in_a_line_for_the_shell(line, found):
    done = marked(("/bin/sh", "-c", line))
    assert found == (done.command[2], list(done.inputs), list(done.targets))


def test_an_option_given_twice_counts_twice():
    job = options.to_job([("in", "a,b"), ("out", "x"), ("in", r"c\,d"), ("if-stale", "yes")], ("true",))
    assert (("a", "b", "c,d"), ("x",), True) == (job.inputs, job.targets, job.if_stale)
    with pytest.raises(UsageError, match="in: must name files"):
        options.to_job([("in", "")], ("true",))


def test_what_makes_nothing_is_refused():
    with pytest.raises(UsageError, match="if-stale: names nothing that is made"):
        stale.prepared(options.to_job([("if-stale", "yes"), ("in", "a")], ("true",)))


def write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def read(path: str) -> str:
    with open(path) as file:
        return file.read()


def test_what_is_up_to_date_is_not_run_again(cluster: Cluster):
    """Decided at submission, and once more on the node."""
    here = cluster.base
    write(f"{here}/a", "1")
    line = f"cat a >b; echo run >>{here}/runs"
    words = ("--if-stale", "--in", "a", "--out", "b", "--wrap", line)
    first, second = cluster.sub(*words), cluster.sub(*words)
    cluster.node(cpus=1)

    assert ("COMPLETED", None) == tuple(cluster.result(first)[key] for key in ("state", "reason"))
    result = cluster.result(second)
    assert ("COMPLETED", 0, "up to date, not run: b") == (result["state"], result["exit_code"], result["reason"])
    assert "up to date" in cluster.text(second, "stderr")
    done = cluster.spoolq("sub", "-W", *words)
    assert (0, "", "spoolq: up to date, nothing submitted: b\n") == (done.returncode, done.stdout, done.stderr)
    assert "run\n" == read(f"{here}/runs")

    os.utime(f"{here}/b", ns=(0, 0))
    assert 0 == cluster.spoolq("run", "--if-stale", "sh", "-c", "cat %i:a %i:a >%o:b").returncode
    assert "11" == read(f"{here}/b")
    lines = "cp %i:a %o:c\ncp %i:a %o:b\nsort <%i:a >%o:d\n"
    done = cluster.spoolq("sub", "--if-stale", "--each-line", "-", stdin=lines)
    assert "up to date, nothing submitted: 1 of 3 lines" in done.stderr
    ids = [int(word) for word in done.stdout.split()]
    assert 2 == len([cluster.result(job) for job in ids])
    assert ("1", "1") == (read(f"{here}/c"), read(f"{here}/d").strip())
    assert 'command = ["/bin/sh", "-c", "cp a c"]' in read(cluster.home(ids[0], "job"))
    assert 'out = ["c"]' in read(cluster.home(ids[0], "job"))


@pytest.mark.parametrize("how", ["exit 3", "kill -9 $$", "kill -9 $PPID; sleep 9"])
def test_outputs_of_a_failed_command_are_renamed(cluster: Cluster, how: str):
    """Also when the whole job was killed; what the command did not touch stays."""
    here = cluster.base
    for name in ("old", "made"):
        write(f"{here}/{name}", "before")
    cluster.node()
    job = cluster.sub("--out", "made,old,never", "sh", "-c", f"echo half >made; {how}")

    assert "FAILED" == cluster.result(job)["state"]
    assert ("half\n", "before") == (read(f"{here}/made.failed"), read(f"{here}/old"))
    assert not os.path.exists(f"{here}/made")
    assert not os.path.exists(f"{here}/never.failed")


def test_a_later_attempt_runs_whatever_it_finds(cluster: Cluster):
    """An attempt that was lost may have left its output half made."""
    here, mark = cluster.base, f"{cluster.base}/m"
    write(f"{here}/drop.toml", f'command = ["sh", "-c", "echo $SPOOLQ_ATTEMPT >made; touch {mark}; [ $SPOOLQ_ATTEMPT = 2 ] || sleep 99"]\n'
          f'out = ["{here}/made"]\nif-stale = true\nchdir = "{here}"\n')  # fmt: skip
    os.rename(f"{here}/drop.toml", f"{cluster.root}/drop/job.toml")
    cluster.node()
    cluster.running(1, mark)
    cluster.ok("requeue", "1")

    cluster.until(lambda: cluster.place(1) == "done", "done")
    assert ("COMPLETED", 2, "2\n") == (*(cluster.result(1)[key] for key in ("state", "attempt")), read(f"{here}/made"))
