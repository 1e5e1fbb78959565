"""Wrong command lines: one clear line, the documented exit code, and nothing left behind."""

import io
import os

import pytest

from spoolq import __main__ as program
from tests.desk import node_json, put

LONG = "9" * 5000


@pytest.fixture
def call(spool, capsys, monkeypatch, tmp_path):
    """Call a command as a shell would: (exit code, stdout, stderr)."""
    monkeypatch.setenv("SPOOLQ_DIR", spool.root)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SPOOLQ_SUB_OPTS", raising=False)
    monkeypatch.chdir(tmp_path)

    def calling(*words, stdin=b""):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = program.main([os.fsdecode(word) for word in words])
        return (code, *capsys.readouterr())

    return calling


def tree(root):
    """Every name in a spool."""
    return sorted(os.path.join(at, name) for at, directories, files in os.walk(root) for name in directories + files)


def test_the_tables_and_texts_of_a_terminal_hold_no_control_character(spool, call):
    put(spool, name="a\x1b[31mb\nc", command=("\x1b]0;title\x07", "\x9b2J", "\r\x08"))
    node_json(spool, host="\x1b[2J", version="\x1b[2J", state="\x1b[2J", load=["\x1b[2J"])
    spool.mark_node("n1", "drain", on=True, text="\x1b[31mwhy\x07")

    for words in (["stat"], ["show", "1"], ["why", "1"], ["nodes"], ["show", "--json", "1"], ["nodes", "--json"]):
        code, out, err = call(*words)
        assert code == 0, words
        assert not [c for c in out + err if not c.isprintable() and c != "\n"], words


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--cpuz", "1", "true"], "did you mean --cpus?"),
        (["-n", "4", "true"], "--cpus"),
        (["-Z", "true"], "-Z"),
        ([""], "empty"),
        (["--wrap", " "], "no command"),
        (["--"], "no command"),
        (["-c", "-1", "true"], "-1"),
        (["-c", "nan", "true"], "nan"),
        (["-c", "²", "true"], "²"),
        (["-c", LONG, "true"], "cpus"),
        (["-m", LONG, "true"], "mem"),
        (["-t", LONG, "true"], "time"),
        (["-p", LONG, "true"], "priority"),
        (["-g", f"{'a' * 5000}:1", "true"], "gres"),
        (["-g", "../x:1", "true"], "gres"),
        (["-J", "a\nb\x1b[31m", "true"], "name"),
        (["-J", b"\xff", "true"], "name"),
        (["-w", "n[1-99999999]", "true"], "nodes"),
        (["--umask", "999", "true"], "umask"),
        (["--export", "A=B,=C", "true"], "export"),
        (["-D", "/dev/null", "true"], "no directory"),
        (["echo", b"tr\xff"], "not UTF-8"),
        (["true", "x" * 70_000], "put it into a script"),
        (["-f", "/"], "directory"),
        (["-f", "/nonexistent.toml"], "No such file"),
        (["--each-line", "/nonexistent"], "No such file"),
    ],
)
def test_a_submission_that_cannot_be_meant_is_refused_in_one_short_line(spool, call, words, said):
    before = tree(spool.root)
    code, out, err = call("sub", *words)

    assert (2, "") == (code, out)
    assert said in err
    assert err.startswith("spoolq: ")
    assert 1 == err.count("\n")
    assert len(err) < 400
    assert err.replace("\n", "").isprintable()
    assert before == tree(spool.root)


@pytest.mark.parametrize(
    "script",
    [
        b"",
        b"\0\1\2",
        b"#!/bin/sh\n#SPOOLQ --cpuz 3\n",
        b'#!/bin/sh\n#SPOOLQ -c "3\n',
        b"#!/bin/sh\n#SPOOLQ -J " + b"x" * (1000 << 10),
        b"#!/bin/sh\n" + b"x" * (10 << 20),
    ],
    ids=["empty", "NUL", "unknown", "quote", "line of 1 MB", "10 MB"],
)
def test_a_script_that_cannot_be_meant_is_refused_in_one_short_line(spool, call, script):
    before = tree(spool.root)
    code, _, err = call("sub", stdin=script)

    assert (2, 1) == (code, err.count("\n"))
    assert len(err) < 400
    assert before == tree(spool.root)


def test_what_no_known_node_could_run_is_refused(spool, call):
    node_json(spool)
    before = tree(spool.root)

    code, _, err = call("sub", "-c", "400", "true")

    assert (2, "spoolq: no node could ever run this: needs 400 cpus, and no node has more than 4 cpus\n") == (code, err)
    assert before == tree(spool.root)


WORDS = ["../../x", "%s", "9" * 300, "0", "1e9", "-", "5-3", "1-999999999999", "²", "٣", "\n1", "1_x", "", ","]  # noqa: PLE2512


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("command", ["show", "why", "out", "wait", "kill", "hold", "requeue", "edit", "stat", "hist"])
def test_what_is_no_job_id_is_refused_and_never_means_all_jobs(spool, call, command, word):
    put(spool)
    before = tree(spool.root)

    code, out, err = call(command, word, *(["cpus=2"] if command == "edit" else []))

    assert (2, "") == (code, out)
    assert "job id" in err
    assert 1 == err.count("\n")
    assert len(err) < 200
    assert before == tree(spool.root)


@pytest.mark.parametrize(
    "words",
    [
        ["kill", "-s", "²", "1"],
        ["kill", "-s", "999", "1"],
        ["kill", "-rf"],
        ["wait", "-1"],
        ["stat", "-n", "²"],
        ["stat", "-t", "xx"],
        ["hist", "--since", "9" * 30 + "d"],
        ["edit", "1", "user=root"],
        ["edit", "1", "name=\x1b[31m"],
        ["node", "--name", "../x"],
        ["node", "--cpus", "²"],
        ["node", "--cpus", "0"],
        ["node", "--idle-exit", "²"],
        ["completion", "tcsh"],
        ["stat", "--jsn"],
        ["sbu"],
        ["--foo", "stat"],
    ],
)
def test_other_wrong_words_are_refused_too(spool, call, words):
    put(spool)
    before = tree(spool.root)

    code, out, err = call(*words)

    assert (2, "", 1) == (code, out, err.count("\n"))
    assert err.replace("\n", "").isprintable()
    assert before == tree(spool.root)
