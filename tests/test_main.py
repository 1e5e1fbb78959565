"""Dispatch, help, and what becomes of errors."""

import ast
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

import spoolq
from spoolq import __main__ as program
from spoolq.errors import TryAgain

PACKAGE = Path(spoolq.__file__).parent


def call(*words):
    return program.main(list(words))


def start(*words, **kwargs):
    env = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)} | kwargs.pop("env", {})
    argv = [sys.executable, "-m", "spoolq", *words]
    return subprocess.run(argv, check=False, capture_output=True, text=True, env=env, **kwargs)


def fail_with(monkeypatch, error):
    from spoolq import submit

    def sub(_argv):
        raise error

    monkeypatch.setattr(submit, "sub", sub)


def test_help_names_every_command_and_alias(capsys):
    assert call("--help") == 0
    text = capsys.readouterr().out
    for name in (*program.COMMANDS, *program.ALIASES):
        assert name in text


def test_help_is_aligned(capsys):
    call("--help")
    lines = [line for line in capsys.readouterr().out.splitlines() if line[2:].split(" ")[0] in program.COMMANDS]

    assert len(program.COMMANDS) == len([line for line in lines if line[14:15] != " " and line[13:14] == " "])
    assert max(len(line) for line in lines) <= 100


def test_no_command_is_help_and_2(capsys):
    assert call() == 2
    assert "usage" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["-h"], ["help"]])
def test_other_ways_to_help(words, capsys):
    assert call(*words) == 0
    assert "usage: spoolq" in capsys.readouterr().out


def test_help_of_one_command(capsys):
    assert call("help", "sub") == 0
    assert "usage: spoolq sub" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["sub", "run", "out", "wait"])
def test_commands_have_help_with_examples(command, capsys):
    assert call(command, "--help") == 0
    text = capsys.readouterr().out
    assert f"usage: spoolq {command}" in text
    assert "Examples:" in text
    assert max(len(line) for line in text.splitlines()) <= 120


def test_version(capsys):
    assert call("--version") == 0
    assert f"spoolq {spoolq.__version__}\n" == capsys.readouterr().out


def test_unknown_command_suggests(capsys):
    assert call("satt") == 2
    assert capsys.readouterr().err == "spoolq: unknown command 'satt' (did you mean stat?)\n"


def test_unknown_option_before_the_command(capsys):
    assert call("--spol", "x", "stat") == 2
    assert "--spol" in capsys.readouterr().err


def test_the_spool_may_be_named_before_or_after_the_command(spool, capsys):
    for words in (["--spool", spool.root, "sub"], [f"--spool={spool.root}", "sub"], ["sub", "--spool", spool.root]):
        assert call(*words, "true") == 0
    assert call("-S", spool.root, "sub", "true") == 0
    assert capsys.readouterr().out == "1\n2\n3\n4\n"


def test_a_missing_value_of_spool(capsys):
    assert call("--spool") == 2
    assert "needs a value" in capsys.readouterr().err


def test_errors_are_one_line_with_their_code(monkeypatch, capsys):
    fail_with(monkeypatch, TryAgain("full: later"))

    assert call("sub") == 75
    assert capsys.readouterr().err == "spoolq: full: later\n"


def test_messages_cannot_steer_a_terminal(monkeypatch, capsys):
    fail_with(monkeypatch, TryAgain("evil \x1b[2J\nname \udcff"))

    call("sub")
    assert capsys.readouterr().err == "spoolq: evil \\x1b[2J\\nname \\udcff\n"


@pytest.mark.parametrize(
    ("number", "code"),
    [(errno.ENOSPC, 75), (errno.EDQUOT, 75), (errno.EROFS, 75), (errno.EACCES, 1), (errno.ESTALE, 1)],
)
def test_errors_of_the_spool_say_what_to_do(number, code, monkeypatch, capsys):
    fail_with(monkeypatch, OSError(number, os.strerror(number), "/spool/x"))

    assert code == call("sub")
    said = capsys.readouterr().err
    assert said.startswith("spoolq: /spool/x: ")
    assert "(" in said
    assert said.count("\n") == 1


def test_ctrl_c_is_130(monkeypatch):
    fail_with(monkeypatch, KeyboardInterrupt())

    assert call("sub") == 130


def test_a_closed_pipe_is_quiet():
    run = subprocess.run(
        f"{sys.executable} -m spoolq --help | head -c 1 > /dev/null; echo ${{PIPESTATUS[0]}}",
        check=False,
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
    )
    assert run.stdout in ("0\n", "141\n")  # head may leave before or after the help is written
    assert run.stderr == ""


def test_as_a_program_it_exits_with_the_code_and_flushes(spool):
    env = {"SPOOLQ_DIR": spool.root}

    run = start("sub", "true", env=env)
    assert (run.returncode, run.stdout) == (0, "1\n")
    assert start("sub", env=env, stdin=subprocess.DEVNULL).returncode == 2


def test_every_command_is_found():
    """The table names functions that exist, in rooms that exist; a room may still be on its way."""
    for room, function, _ in program.COMMANDS.values():
        path = PACKAGE / f"{room}.py"
        if path.exists():
            names = {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
            assert function in names, f"{room}.{function}"


def test_submitting_imports_nothing_heavy(spool):
    heavy = [
        "argparse",
        "dataclasses",
        "inspect",
        "subprocess",
        "psutil",
        "watchdog",
        "filelock",
        "socket",
        "asyncio",
        "rich",
        "shutil",
        "logging",
        "random",
    ]
    code = (
        "import sys, os; from spoolq.__main__ import main; main(['sub', 'true']); "
        f"print([m for m in {heavy!r} if m in sys.modules])"
    )
    env = {**os.environ, "PYTHONPATH": str(PACKAGE.parent), "SPOOLQ_DIR": spool.root}
    run = subprocess.run([sys.executable, "-I", "-c", f"import sys; sys.path[:0] = [{str(PACKAGE.parent)!r}]; {code}"],
                         capture_output=True, text=True, env=env, check=True)  # fmt: skip

    assert run.stdout == "1\n[]\n"


@pytest.mark.parametrize("closed", ["0<&-", ">&-", "2>&-", "0<&- >&- 2>&-"])
def test_closed_streams_do_no_harm(spool, closed):
    env = {**os.environ, "PYTHONPATH": str(PACKAGE.parent), "SPOOLQ_DIR": spool.root}
    run = subprocess.run(
        ["/bin/sh", "-c", f'exec "$0" -m spoolq sub true {closed}', sys.executable], check=False, env=env
    )

    assert run.returncode == 0
    assert [entry.id for entry in spool.entries("queue/500.000000001")] == [1]


def test_an_id_that_cannot_be_printed_is_told(spool):
    with open("/dev/full", "w") as full:
        env = {**os.environ, "PYTHONPATH": str(PACKAGE.parent), "SPOOLQ_DIR": spool.root}
        argv = [sys.executable, "-m", "spoolq", "sub", "true"]
        run = subprocess.run(argv, check=False, env=env, stdout=full, stderr=subprocess.PIPE, text=True)

    assert run.returncode == 1
    assert "submitted as 1, but" in run.stderr
