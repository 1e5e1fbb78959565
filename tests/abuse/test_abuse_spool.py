"""Spools that are none, damaged, of the future, full or read-only; and foreign things inside one."""

import io
import os
import shutil
import subprocess

import pytest

from spoolq import __main__ as program
from spoolq import home, intake, launch
from spoolq import spool as spool_room
from tests.desk import end, node_json, put, run
from tests.world import SPOOL_TEXT

LOOKS = (
    ["stat", "-a"],
    ["stat", "-a", "--json"],
    ["show", "1"],
    ["show", "--json", "1"],
    ["why", "1"],
    ["why", "--json", "1"],
    ["hist"],
    ["hist", "--by", "user"],
    ["nodes"],
    ["nodes", "--json"],
    ["out", "1"],
    ["show", "last"],
)
DEEP = b"[" * 60_000
TYPES = b"""{"format": 1, "id": "x", "attempt": [], "state": 5, "exit_code": "x", "ended": {}, "node": 7, "free": 5,
    "capacity": {"cpus": "x"}, "load": "x", "beat_s": "x", "labels": 3, "measured": "q", "allocated": {"cpus": [1]},
    "pid": "x", "starttime": {}, "machine": 4, "boot": [], "host": "\\u001b[31m", "jobs": "x", "reason": "\\u001b[31m"}
"""
NUMBERS = b"""{"format": 1, "id": 1, "attempt": 1, "state": "FAILED", "exit_code": NaN, "wall_s": 1e999, "load": [NaN],
    "capacity": {"cpus": NaN, "mem": 1e999}, "free": {"cpus": NaN}, "beat_s": NaN}
"""
KINDS = {
    "empty": b"",
    "bytes": b"\x1b[31m\0\xff{[",
    "list": b"[1, 2]",
    "types": TYPES,
    "digits": b"9" * 60_000 + b" x",
    "deep": DEEP,
    "numbers": NUMBERS,
    "link": None,
    "loop": None,
    "fifo": None,
    "directory": None,
}


@pytest.fixture
def call(spool, capsys, monkeypatch, tmp_path):
    """Call a command as a shell would: (exit code, stdout, stderr)."""
    monkeypatch.setenv("SPOOLQ_DIR", spool.root)
    monkeypatch.setenv("SPOOLQ_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def calling(*words):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"")))
        return (program.main(list(words)), *capsys.readouterr())

    return calling


def replace(path, kind):
    """Put something else in the place of a file."""
    if os.path.lexists(path):
        os.rename(path, f"{path}.before")
    if (data := KINDS[kind]) is not None:
        with open(path, "wb") as file:
            file.write(data)
    elif kind == "directory":
        os.mkdir(path)
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        os.symlink("/etc/passwd" if kind == "link" else os.path.basename(path), path)


def looks_well(call):
    """All commands that look answer, within what a terminal may be given."""
    for words in LOOKS:
        code, out, err = call(*words)
        assert 0 == code, (words, err)
        assert not [c for c in out + err if not c.isprintable() and c != "\n"], words


@pytest.fixture
def lived(spool):
    """A spool in which one job has ended, one runs, and a node is up."""
    node_json(spool)
    end(spool, run(spool, put(spool)), code=3)
    run(spool, put(spool))
    put(spool)
    return spool


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", ["jobs/0/1/result.json", "nodes/n1/node.json", "nodes/n1/heartbeat", "history"])
def test_commands_go_on_when_a_file_of_the_spool_is_replaced(lived, call, place, kind):
    if place == "history":
        place += "/" + os.listdir(f"{lived.root}/history")[0]
    replace(f"{lived.root}/{place}", kind)

    looks_well(call)

    code, out, _ = call("sub", "true")
    assert (0, "4\n") == (code, out)


@pytest.mark.parametrize("kind", ["empty", "fifo", "link", "directory"])
@pytest.mark.parametrize(
    "place",
    "queue/x held/x running/x reaping/x done/x done/7 done/² jobs/x jobs/² jobs/7 nodes/x nodes/n9 history/x "
    "history/2030-01-01.x.jsonl queue/500.000000001/x queue/500.000000001/500.9 done/0/x running/n1/x".split(),
)
def test_commands_go_on_when_foreign_things_lie_in_the_spool(lived, call, place, kind):
    replace(f"{lived.root}/{place}", kind)

    looks_well(call)

    code, out, _ = call("sub", "true")
    assert 0 == code
    assert out.strip().isdigit()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "format = 2\n",
        'format = "1"\n',
        'uuid = "x"\n',
        "\0\1",
        SPOOL_TEXT + "format = 1\n",
        SPOOL_TEXT + '[limits]\nbeat_s = "x"\n',
        SPOOL_TEXT + "[limits]\nbeat_s = -1\n",
        SPOOL_TEXT + "[limits]\nfoo = 1\n",
        "a" + ".a" * 20_000 + " = 1\n",
        "x = " + "[" * 60_000,
        "x" * 70_000,
    ],
    ids="empty newer text nothing NUL twice type range unknown dots nested long".split(),
)
def test_a_damaged_spool_is_neither_served_nor_given_jobs(spool, call, text):
    with open(f"{spool.root}/spool.toml", "w") as file:
        file.write(text)

    for words in (["sub", "true"], ["node", "--once", "--name", "n1"]):
        code, out, err = call(*words)
        assert (78, "", 1) == (code, out, err.count("\n")), words
        assert len(err) < 400
        assert err.replace("\n", "").isprintable()
    assert [] == os.listdir(f"{spool.root}/jobs")


def test_a_spool_of_a_newer_format_is_not_touched_by_any_command(spool, call):
    put(spool)
    with open(f"{spool.root}/spool.toml", "w") as file:
        file.write(SPOOL_TEXT.replace("format = 1", "format = 2"))

    for words in (["stat"], ["kill", "1"], ["hold", "1"], ["edit", "1", "cpus=2"], ["wait", "1"], ["hist"], ["nodes"]):
        code, out, err = call(*words)
        assert (78, "", 1) == (code, out, err.count("\n")), words
        assert "format 2 is not known to this version" in err
    assert ["500.1.0.1~c1,m1000,@root~t".split("~")[0]] == [
        name.split("~")[0] for name in os.listdir(f"{spool.root}/queue/500.000000001")
    ]


@pytest.mark.parametrize("kind", ["link", "loop", "fifo", "directory"])
def test_a_mark_that_is_no_file_marks_no_spool(spool, call, kind):
    replace(f"{spool.root}/spool.toml", kind)

    code, out, err = call("stat")

    assert (78, "", 1) == (code, out, err.count("\n"))


@pytest.mark.parametrize("where", ["/nonexistent", "/etc", "relative", "\x1b[31m"])
def test_what_is_no_spool_is_named_and_left_alone(call, where, tmp_path):
    before = sorted(os.listdir(tmp_path))
    for words in (["stat"], ["sub", "true"], ["node", "--once"]):
        code, out, err = call("--spool", where, *words)
        assert (78, "", 1) == (code, out, err.count("\n")), words
        assert "not a spool" in err
        assert err.replace("\n", "").isprintable()
    assert before == sorted(os.listdir(tmp_path))


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A spool on a file system of 1 MB of its own."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    path = str(tmp_path / "small")
    os.mkdir(path)
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "tmpfs", path], capture_output=True
    ).returncode:
        pytest.skip("mounting is not allowed here")
    spool_room.initialise(f"{path}/s", SPOOL_TEXT + "[limits]\nmin_free_mb = 0\n")
    monkeypatch.setenv("SPOOLQ_DIR", f"{path}/s")
    yield path
    subprocess.run(["umount", "-l", path], check=True)


def entries(root):
    """Every entry that anybody could see."""
    return sorted(name for top in ("queue", "held") for at, _, names in os.walk(f"{root}/{top}") for name in names)


@pytest.mark.root
def test_a_full_spool_takes_no_job_and_says_that_it_may_later(small, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert 0 == program.main(["sub", "true"])
    before = entries(f"{small}/s")
    with open(f"{small}/ballast", "wb") as file:
        file.write(b"x" * (1 << 20 if shutil.disk_usage(small).free >= 1 << 20 else shutil.disk_usage(small).free))
    capsys.readouterr()

    code = program.main(["sub", "true"])

    out, err = capsys.readouterr()
    said = [line for line in err.splitlines() if "warning" not in line]
    assert (75, "", 1) == (code, out, len(said))
    assert "make room" in said[0]
    assert before == entries(f"{small}/s")
    os.unlink(f"{small}/ballast")
    assert 0 == program.main(["sub", "true"])


@pytest.mark.root
def test_a_read_only_spool_can_be_looked_at_and_refuses_the_rest(small, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert 0 == program.main(["sub", "true"])
    subprocess.run(["mount", "-o", "remount,ro", small], check=True)
    capsys.readouterr()

    for words, expected in ((["stat"], 0), (["show", "1"], 0), (["sub", "true"], 75), (["hold", "1"], 1)):
        code = program.main(words)
        err = [line for line in capsys.readouterr().err.splitlines() if "warning" not in line]
        assert expected == code, (words, err)
        assert len(err) <= 1
        assert expected == 0 or "read-only" in err[0].lower()


def test_a_job_whose_home_or_script_is_gone_is_still_shown(spool, call):
    put(spool, script=True, command=())
    put(spool)
    shutil.rmtree(f"{spool.root}/jobs/0/2")

    for words in (["stat"], ["show", "1-2"], ["why", "1-2"], ["hold", "1-2"], ["release", "1-2"], ["kill", "1-2"]):
        code, _, err = call(*words)
        assert 0 == code, (words, err)


def test_what_all_nodes_wrote_is_the_reason_although_they_seem_to_have_room(lived, call):
    node_json(lived, "n2")
    home.write_why(lived.root, 3, "n1", "n1 CwdMissing: its directory /x does not exist on n1")

    assert "has room" in call("why", "3")[1].splitlines()[0]

    home.write_why(lived.root, 3, "n2", "n2 CwdMissing: its directory /x does not exist on n2")
    assert "CwdMissing" in call("why", "3")[1].splitlines()[0]
    assert "CwdMissing" in call("stat")[1]


def test_a_user_without_a_name_or_home_can_serve_and_drop(spool, monkeypatch, tmp_path):
    def nobody(uid):
        raise KeyError(uid)

    monkeypatch.setattr("pwd.getpwuid", nobody)
    spool.enter_node("n1")
    with open(f"{spool.root}/drop/a.sh", "w") as file:
        file.write("#!/bin/sh\n#SPOOLQ end\n")
    room = intake.Intake(spool, "n1", settle_s=0, any_owner=False, base={}, check=lambda job: None)

    assert 1 == room.step(0.0) + room.step(1.0)
    assert str(os.getuid()) == launch.base_environment()["USER"]
