"""The command `sub`: what is recorded, what is refused, and that a refusal leaves nothing."""

import errno
import io
import json
import os
import re
import stat
import sys
from types import SimpleNamespace

import pytest

from spoolq import __main__ as program
from spoolq import environment, fsops, home, request, stored, submit
from spoolq.entry import parse_name
from spoolq.lines import each_line
from spoolq.script import interpreter

from . import play
from .faults import faulty


class Tty(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def place(spool, tmp_path, monkeypatch):
    """A directory to submit from, and an environment without the tester's own."""
    monkeypatch.setenv("SPOOLQ_DIR", spool.root)
    monkeypatch.setenv("PATH", "/usr/local/bin:/usr/bin:/bin")
    monkeypatch.delenv("SPOOLQ_SUB_OPTS", raising=False)
    monkeypatch.setattr(sys, "stdin", Tty())
    play.announce(spool)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def stdin(monkeypatch, text):
    data = text.encode() if isinstance(text, str) else text
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: False, buffer=io.BytesIO(data)))


def sub(*words):
    return program.main(["sub", *map(str, words)])


def job_of(spool, job_id=1):
    return stored.read_job(home.read_job(spool.root, job_id), "job")


def env_of(spool, job_id=1):
    return environment.unpack(home.read_env(spool.root, job_id))


def waiting(spool):
    return [placed.entry for placed in spool.waiting()]


def nothing_left(spool):
    homes = [os.path.join(at, name) for at, _, names in os.walk(f"{spool.root}/jobs") for name in names]
    return not spool.live() and not homes


# --- what is recorded


def test_it_prints_the_id_alone_off_a_terminal(spool, capsys):
    assert sub("true") == 0
    assert sub("true") == 0
    assert capsys.readouterr() == ("1\n2\n", "")


def test_on_a_terminal_it_prints_a_sentence(spool, monkeypatch):
    monkeypatch.setattr(sys, "stdout", Tty())

    sub("true")
    assert sys.stdout.getvalue() == "submitted job 1\n"
    sub("--parsable", "true")
    assert sys.stdout.getvalue().endswith("\n2\n")


def test_options_end_at_the_first_other_word(spool):
    sub("-c", 4, "-m", "3G", "-t", "90s", "-J", "build", "-p", 7, "make", "-j4", "-c", "x")

    job = job_of(spool)
    assert job.command == ("make", "-j4", "-c", "x")
    assert dict(job.wants) == {"cpus": 4000, "mem": 3072000}
    assert (job.limit_s, job.name, job.priority) == (90, "build", 7)
    assert [re.sub(",@.*", "", entry.name) for entry in waiting(spool)] == ["493.1.0.1~c4,m3072,t1.5"]


def test_it_records_where_when_by_whom_and_how(spool, place, monkeypatch):
    monkeypatch.setenv("COLOUR", "blue, green=\n")
    monkeypatch.setenv("MY_TOKEN", "secret")
    old = os.umask(0o027)
    try:
        sub("true")
    finally:
        os.umask(old)

    job = job_of(spool)
    assert (str(place), 0o027, "true") == (job.chdir, job.umask, job.name)
    assert (request.user_name(), os.uname().nodename) == (job.user, job.submit_host)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", job.submitted)
    env = env_of(spool)
    assert env["COLOUR"] == "blue, green=\n"
    assert str(place) == env["SPOOLQ_SUBMIT_DIR"]
    assert "MY_TOKEN" not in env
    assert stat.S_IMODE(os.stat(f"{home.path_of(spool.root, 1)}/env").st_mode) == 0o600


def test_export_chooses(spool, monkeypatch):
    monkeypatch.setenv("ONE", "1")
    monkeypatch.setenv("TWO", "2")

    sub("--export", "ONE,THREE=3", "true")
    env = env_of(spool)
    assert (env["ONE"], env["THREE"]) == ("1", "3")
    assert "TWO" not in env


def test_another_directory_and_umask(spool, place):
    (place / "sub").mkdir()

    sub("-D", "sub", "--umask", "077", "true")
    assert (str(place / "sub"), 0o077) == (job_of(spool).chdir, job_of(spool).umask)


def test_a_directory_that_is_not_here_is_a_warning(spool, capsys):
    assert sub("-D", "/on/the/node", "true") == 0
    assert "/on/the/node" in capsys.readouterr().err
    assert job_of(spool).chdir == "/on/the/node"


def test_held_jobs_lie_in_held(spool):
    sub("-H", "true")

    assert waiting(spool) == []
    assert [placed.entry.held for placed in spool.waiting("held")] == ["HU"]


def test_the_entry_is_a_link_to_the_job_file(spool):
    sub("true")

    (at,) = spool.waiting()
    assert os.path.samefile(f"{spool.root}/{at.path}", f"{home.path_of(spool.root, 1)}/job")
    assert parse_name(at.entry.name) == at.entry


# --- scripts


def script(place, name="step.sh", text="#!/bin/sh\n#SPOOLQ -c 3 -J stepped\necho hi\n", mode=0o755):
    path = place / name
    path.write_text(text)
    path.chmod(mode)
    return path


def test_a_script_is_copied_and_its_directives_hold(spool, place):
    path = script(place)
    sub("./step.sh", "a", "b")
    path.write_text("changed")

    job = job_of(spool)
    assert (job.script, job.command, job.name, job.wants["cpus"]) == (True, ("a", "b"), "stepped", 3000)
    assert home.read_script(spool.root, 1) == b"#!/bin/sh\n#SPOOLQ -c 3 -J stepped\necho hi\n"


def test_the_command_line_wins_over_directives_and_they_over_the_environment(spool, place, monkeypatch):
    script(place)
    monkeypatch.setenv("SPOOLQ_SUB_OPTS", "-c 7 -m '2 G' -p 5")

    sub("-p", 9, "step.sh")
    job = job_of(spool)
    assert (job.wants["cpus"], job.wants["mem"], job.priority) == (3000, 2048000, 9)


@pytest.mark.parametrize("opts", ["-c x", "-q", "make", "-J 'open", "--each-line f"])
def test_wrong_options_in_the_environment_are_named(spool, monkeypatch, capsys, opts):
    monkeypatch.setenv("SPOOLQ_SUB_OPTS", opts)

    assert sub("true") == 2
    assert nothing_left(spool)
    if opts != "-c x":
        assert "SPOOLQ_SUB_OPTS" in capsys.readouterr().err


def test_the_name_of_a_script_without_one_is_its_files(spool, place):
    script(place, text="#!/bin/sh\n")
    sub("./step.sh")

    assert job_of(spool).name == "step.sh"


def test_a_text_without_x_bit_is_a_script(spool, place):
    script(place, text="echo no shebang\n", mode=0o644)
    sub("step.sh")

    assert job_of(spool).script
    assert list(interpreter(home.read_script(spool.root, 1))) == ["/bin/sh"]


def test_a_program_of_the_path_is_not_copied(spool, place):
    script(place, name="ls")
    sub("ls")
    sub("/bin/ls")
    sub(sys.executable)

    assert [job_of(spool, job_id).script for job_id in (1, 2, 3)] == [False] * 3
    assert job_of(spool).command == ("ls",)


def test_an_installed_script_is_not_copied_even_by_its_path(spool, place, monkeypatch):
    script(place, name="tool")
    monkeypatch.setenv("PATH", f"/bin:{place}")
    sub("tool")
    sub("./tool")

    assert not job_of(spool, 1).script
    assert not job_of(spool, 2).script


def test_a_binary_without_x_bit_is_refused(spool, place, capsys):
    (place / "prog").write_bytes(b"\x7fELF\0\0\0")

    assert sub("./prog") == 2
    assert "chmod +x" in capsys.readouterr().err


def test_a_wrong_directive_is_named_with_its_line(spool, place, capsys):
    script(place, text="#!/bin/sh\n\n#SPOOLQ -c many\n")

    assert sub("./step.sh") == 2
    assert "./step.sh:3: " in capsys.readouterr().err
    assert nothing_left(spool)


def test_a_script_on_standard_input(spool, monkeypatch):
    stdin(monkeypatch, "#SPOOLQ -m 700\necho $1\n")
    assert sub() == 0
    stdin(monkeypatch, "#!/bin/sh\necho $1\n")
    assert sub("-c", 2, "-", "word") == 0

    assert (job_of(spool).wants["mem"], job_of(spool).name, job_of(spool).command) == (700000, "stdin", ())
    assert (job_of(spool, 2).command, job_of(spool, 2).wants["cpus"]) == (("word",), 2000)


def test_an_empty_standard_input_is_no_command(spool, monkeypatch, capsys):
    stdin(monkeypatch, "")

    assert sub() == 2
    assert "no command" in capsys.readouterr().err


def test_a_job_file_and_options_over_it(spool, place):
    (place / "job.toml").write_text('command = ["sleep", "5"]\ncpus = 2\nmem = "3G"\nname = "nap"\n')

    assert sub("-f", "job.toml", "-c", 4) == 0
    job = job_of(spool)
    assert (job.command, job.wants["cpus"], job.wants["mem"], job.name) == (("sleep", "5"), 4000, 3072000, "nap")


def test_a_job_file_with_a_script(spool, place):
    (place / "job.toml").write_text('script = """#!/bin/sh\n#SPOOLQ -c 2\necho hi\n"""\n')

    sub("-f", "job.toml")
    assert (job_of(spool).script, job_of(spool).name, job_of(spool).wants["cpus"]) == (True, "job", 2000)


def test_a_shell_line(spool):
    sub("--wrap", "echo a | wc")

    assert (job_of(spool).command, job_of(spool).name) == (("/bin/sh", "-c", "echo a | wc"), "echo")


# --- what is refused


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no command"),
        ([""], "empty"),
        (["sleep", "5", "&"], "&"),
        (["--wrap", "sleep 5 &"], "&"),
        (["--wrap", "x", "make"], "--wrap"),
        (["-n", "4", "make"], "-c/--cpus"),
        (["--cpu", "x", "make"], "no number"),
        (["--tiem", "4", "make"], "--time"),
        (["-c"], "needs a value"),
        (["-c", "0", "make"], "cpus"),
        (["-t", "soon", "make"], "no time"),
        (["-J", "x" * 300, "make"], "name"),
        (["-p", "501", "make"], "priority"),
        (["echo a | wc"], "--wrap"),
        (["/bin"], "directory"),
        (["echo", "x" * 70000], "script"),
        (["-f", "job.toml", "make"], "job.toml"),
        (["-f", "nowhere.toml"], "nowhere.toml"),
        (["echo", "caf\udce9"], "UTF-8"),
        (["-D", "/etc/passwd", "true"], "no directory"),
        (["--each-line", "nowhere"], "nowhere"),
        (["--each-line", "x", "make"], "--each-line"),
        (["-c", "400", "make"], "400"),
        (["-m", "9T", "make"], "mem"),
        (["-w", "n[1-3]", "make"], "n[1-3]"),
    ],
)
def test_refusals_are_one_line_and_leave_nothing(spool, capsys, words, said):
    assert sub(*words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert err.count("\n") == 1, err
    assert err.startswith("spoolq: ")
    assert nothing_left(spool)


def test_a_directory_that_is_gone_is_refused(spool, place, capsys):
    os.rmdir(place)

    assert sub("true") == 2
    assert "gone" in capsys.readouterr().err


def test_a_directory_that_cannot_be_entered_is_refused(spool, monkeypatch, capsys):
    monkeypatch.setattr(request.os, "access", lambda _path, mode: mode & os.X_OK == 0)

    assert sub("true") == 2
    assert "cannot be entered" in capsys.readouterr().err


def test_what_fits_one_known_node_is_accepted(spool):
    play.announce(spool, "small", cpus=1)
    play.announce(spool, "big", cpus=500, state="stopped")

    assert sub("-c", 400, "make") == 0


def test_without_any_known_node_a_big_job_is_accepted_with_a_warning(spool, capsys):
    os.unlink(f"{spool.root}/nodes/{play.NODE}/node.json")

    assert sub("-c", 400, "make") == 0
    out, err = capsys.readouterr()
    assert out == "1\n"
    assert "no node" in err


def test_a_program_that_is_not_here_is_a_warning(spool, capsys):
    assert sub("no-such-program") == 0
    assert sub("./no-such-program") == 0
    assert capsys.readouterr().err.count("no-such-program") == 2


def test_not_a_spool_is_78(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SPOOLQ_DIR", str(tmp_path / "nowhere"))

    assert sub("true") == 78
    assert "nowhere" in capsys.readouterr().err


# --- faults of the spool


def test_a_full_spool_takes_nothing(spool, monkeypatch, capsys):
    monkeypatch.setattr(fsops, "free_mb", lambda _path: 3)

    assert sub("true") == 75
    assert "only 3 MB free" in capsys.readouterr().err
    assert nothing_left(spool)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_spool_that_fills_up_anywhere_in_a_submission_is_75_and_nothing_is_left(spool, capsys, number):
    sub("true")  # makes the directories
    with faulty() as counted:
        assert sub("true") == 0
    assert capsys.readouterr().out == "1\n2\n"
    writes = [i for i, name in enumerate(counted.log) if name in ("write", "fsync", "mkdir", "symlink", "rename")]
    committed = counted.log.index("rename")

    for at in (i for i in writes if i <= committed):
        with faulty(at, error=number):
            assert sub("true") == 75, counted.log[at]
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        assert [placed.entry.id for placed in spool.live()] == [1, 2]
        homes = [os.listdir(f"{spool.root}/jobs/0/{name}") for name in os.listdir(f"{spool.root}/jobs/0")]
        assert len([names for names in homes if names]) == 2


def test_an_id_is_printed_only_when_the_job_is_durable(spool, capsys):
    sub("true")
    with faulty() as counted:
        sub("true")
    capsys.readouterr()

    last = len(counted.log) - 1 - counted.log[::-1].index("fsync")
    with faulty(last, error=errno.EIO):
        assert sub("true") == 75
    out, err = capsys.readouterr()
    assert out == ""
    assert "submitted as 3" in err


def test_a_doubtful_commit_is_told_and_its_home_stays(spool, capsys, monkeypatch):
    monkeypatch.setattr(fsops, "move", lambda _source, _target: fsops.Answer.UNKNOWN)

    assert sub("true") == 75
    assert "does not say" in capsys.readouterr().err
    assert job_of(spool).command == ("true",)


# --- one job a line


def lines_file(place, text, name="list"):
    (place / name).write_text(text) if isinstance(text, str) else (place / name).write_bytes(text)
    return name


def test_each_line_is_a_job(spool, place, capsys):
    file = lines_file(place, "sleep 1\n\n  # comment\necho $HOME | wc\n  gzip a b \nexport A=1\n")

    assert sub("--each-line", file, "-c", 2) == 0
    assert capsys.readouterr().out == "1\n2\n3\n4\n"
    expected = [
        ("sleep", "1"),
        ("/bin/sh", "-c", "echo $HOME | wc"),
        ("gzip", "a", "b"),
        ("/bin/sh", "-c", "export A=1"),
    ]
    assert expected == [job_of(spool, job_id).command for job_id in range(1, 5)]
    assert [entry.label for entry in waiting(spool)] == ["sleep", "echo", "gzip", "export"]
    assert {2000} == {entry.wants["cpus"] for entry in waiting(spool)}


def test_lines_share_one_environment_file(spool, place):
    sub("--each-line", lines_file(place, "true\n" * 5))

    paths = [f"{home.path_of(spool.root, job_id)}/env" for job_id in range(1, 6)]
    assert {5} == {os.stat(path).st_nlink for path in paths}
    assert stat.S_IMODE(os.stat(paths[4]).st_mode) == 0o600


def test_lines_from_standard_input_with_a_common_name(spool, monkeypatch):
    stdin(monkeypatch, "true\nfalse\n")

    sub("--each-line", "-", "-J", "both")
    assert [entry.label for entry in waiting(spool)] == ["both", "both"]


def test_on_a_terminal_ranges_are_printed(spool, place, monkeypatch):
    monkeypatch.setattr(sys, "stdout", Tty())

    sub("--each-line", lines_file(place, "true\n" * 5))
    assert sys.stdout.getvalue() == "submitted jobs 1-5\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("true\nsleep 5 &\n", "list:2: "),
        (b"true\n\ncaf\xe9\n", "list:3: "),
        (b"true\nx\0y\n", "list:2: "),
        ("# nothing\n\n", "no line"),
        ("echo " + "x" * 70000, "list:1: "),
    ],
)
def test_a_wrong_line_refuses_all(spool, place, capsys, text, said):
    assert sub("--each-line", lines_file(place, text)) == 2
    assert said in capsys.readouterr().err
    assert nothing_left(spool)


def test_lines_that_no_node_could_run_are_refused(spool, place):
    assert sub("--each-line", lines_file(place, "true\n"), "-c", 400) == 2
    assert nothing_left(spool)


def test_what_was_committed_before_the_spool_was_full_is_printed(spool, place, capsys, monkeypatch):
    monkeypatch.setattr(submit, "BATCH", 2)
    file = lines_file(place, "true\n" * 7)
    with faulty(6, error=errno.ENOSPC, only="rename"):  # the first rename makes its directory and is repeated
        assert sub("--each-line", file) == 75

    out, err = capsys.readouterr()
    assert out == "1\n2\n3\n4\n5\n"
    assert "5 of 7" in err
    assert [entry.id for entry in waiting(spool)] == [1, 2, 3, 4, 5]
    assert not os.path.exists(f"{home.path_of(spool.root, 6)}/job")


def test_ids_go_on_over_the_end_of_a_directory_of_homes(spool, place):
    os.makedirs(home.path_of(spool.root, 998))

    sub("--each-line", lines_file(place, "true\n" * 4))
    assert [entry.id for entry in waiting(spool)] == [999, 1000, 1001, 1002]


def test_many_submitters_at_once_get_ids_of_their_own(spool, place, capsys):
    import threading

    from spoolq import where

    file = lines_file(place, "true\n" * 20)
    found = where.find(spool.root)
    got: list[int] = []

    def one():
        parsed = submit.options.parse(["--each-line", file])
        got.extend(each_line(parsed, found, str(place), only_check=False))

    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 80 == len(set(got)) == len(waiting(spool))


def test_ranges():
    assert submit.ranges([1, 2, 3, 5, 7, 8]) == "1-3, 5, 7-8"
    assert submit.ranges([]) == ""


# --- check, wait


def test_check_says_which_nodes_could_run_it_and_submits_nothing(spool, capsys):
    play.announce(spool, "small", cpus=1)

    assert sub("--check", "-c", 2, "true") == 0
    out = capsys.readouterr().out
    assert "could run on: played" in out
    assert "not on small: too little cpus" in out
    assert nothing_left(spool)


def test_check_of_the_impossible_is_2(spool):
    assert sub("--check", "-c", 400, "true") == 2
    assert sub("--check", "-w", "other", "true") == 2
    assert sub("--check", "-t", "soon", "true") == 2
    assert nothing_left(spool)


def test_wait_exits_with_the_code_of_the_job(spool, capsys):
    with play.Node(spool):
        assert sub("-W", "sh", "-c", "exit 3") == 3
        assert sub("-W", "sh", "-c", "kill -TERM $$") == 143
    assert capsys.readouterr().out == "1\n2\n"


def test_wait_for_each_line_exits_with_the_worst(spool, place):
    with play.Node(spool):
        assert sub("-W", "--each-line", lines_file(place, "true\nexit 7\nexit 2\n")) == 7


def test_json(spool, capsys):
    pytest.importorskip("spoolq.report")

    assert sub("--json", "true") == 0
    assert 1 in json.loads(capsys.readouterr().out).get("submitted", [1])
