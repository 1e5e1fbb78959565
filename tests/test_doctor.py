"""doctor, init, config and completion."""

import os
import shutil
import subprocess

import pytest

from spoolq import completion, doctor, establish, fsops, local, trial
from spoolq.errors import SpoolqError, UsageError
from spoolq.fsops import Answer
from spoolq.host import FileSystem
from spoolq.spool import TOPS, Spool
from spoolq.trial import ERROR, OK, WARNING
from tests.desk import DEAD_PID, here, node_json, put, run, silence, value


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    """A node-local directory of the test's own."""
    path = tmp_path / "state"
    monkeypatch.setenv(local.VARIABLE, str(path))
    return path


def by_what(findings):
    return {finding.what: finding for finding in findings}


# --- the trials


def test_a_good_file_system_passes_every_trial_and_nothing_is_left(spool):
    before = sorted(os.walk(spool.root))
    findings = trial.try_all(spool.root, TOPS)
    assert {OK} == {finding.level for finding in findings if finding.what not in ("fsync", "clock")}, findings
    assert before == sorted(os.walk(spool.root))


def test_a_rename_with_two_winners_is_found(spool, monkeypatch):
    real = fsops.move

    def generous(source, target):
        answer = real(source, target)
        return Answer.WON if "/race/" in source else answer

    monkeypatch.setattr(fsops, "move", generous)
    finding = by_what(trial.try_all(spool.root, TOPS))["race"]
    assert (ERROR, True) == (finding.level, "told that it won" in finding.text)


def test_a_rename_that_copies_is_found(spool, monkeypatch):
    def copying(source, target):
        try:
            shutil.copy(source, target, follow_symlinks=False)
        except FileNotFoundError:
            return Answer.LOST
        return Answer.WON

    monkeypatch.setattr(fsops, "move", copying)
    found = by_what(trial.try_all(spool.root, TOPS))
    assert ERROR == found["rename"].level
    assert ERROR == found["race"].level


def test_a_file_system_without_symbolic_links_is_an_error_without_hard_links_a_warning(spool, monkeypatch):
    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fsops, "symlink", refuse)
    monkeypatch.setattr(fsops, "link", refuse)
    found = by_what(trial.try_all(spool.root, TOPS))
    assert (ERROR, WARNING) == (found["symlinks"].level, found["links"].level)


def test_directories_on_two_mounts_are_found(spool, monkeypatch):
    real = fsops.move

    def split(source, target):
        if f"{spool.root}/done/" in target:
            raise OSError(18, "Invalid cross-device link")
        return real(source, target)

    monkeypatch.setattr(fsops, "move", split)
    finding = by_what(trial.try_all(spool.root, TOPS))["one file system"]
    assert (ERROR, "done/: Invalid cross-device link") == (finding.level, finding.text)


def test_a_spool_that_cannot_be_written_stops_the_trials(spool, monkeypatch):
    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(fsops, "make_directory", refuse)
    [finding] = trial.try_all(spool.root, TOPS)
    assert (ERROR, "writable") == (finding.level, finding.what)


# --- the mount


def nfs(vers="4.2", options=("rw", "relatime"), more=("hard",)):
    every = (*options, "rw", f"vers={vers}", *more)
    mount = FileSystem(kind="nfs4", source="srv:/export", mount_point="/mnt", options=every)
    return [(finding.level, finding.text) for finding in doctor.look_at_mount(mount)]


def test_a_hard_mount_of_nfs_4_2_is_well_and_async_is_said_to_be_invisible():
    findings = nfs()
    assert {OK} == {level for level, _ in findings}
    assert "cannot be seen from here" in findings[-1][1]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"more": ("soft",)}, "soft"),
        ({"vers": "3"}, "vers=3"),
        ({"vers": "4.0"}, "vers=4.0"),
        ({"more": ("hard", "noac")}, "noac"),
    ],
)
def test_options_that_are_worth_a_warning(change, word):
    warnings = [text for level, text in nfs(**change) if level == WARNING]
    assert 1 == len(warnings)
    assert word in warnings[0]


def test_a_read_only_mount_is_an_error():
    assert ERROR in {level for level, _ in nfs(options=("ro", "relatime"))}


@pytest.mark.parametrize(("kind", "level"), [("ext4", OK), ("tmpfs", WARNING), ("fuse.sshfs", WARNING), ("lustre", OK)])
def test_other_file_systems(kind, level):
    mount = FileSystem(kind=kind, options=("rw",))
    assert [level] == [finding.level for finding in doctor.look_at_mount(mount)]


# --- the command


def test_doctor_finds_a_new_spool_in_order(spool, capsys, state):
    assert 0 == doctor.doctor(["--spool", spool.root])
    out = capsys.readouterr().out
    assert "error " not in out
    assert "race: 4 processes, 50 names: each has exactly one winner" in out
    assert "no node has ever served" in out
    assert not state.exists(), "a machine that only submits needs no journal"


def test_what_is_no_spool_is_an_error_with_a_remedy(tmp_path, capsys):
    assert 1 == doctor.doctor(["--spool", str(tmp_path), "--json"])
    findings = value(capsys.readouterr().out)
    assert ("error", "spool") == (findings[0]["level"], findings[0]["what"])
    assert findings[0]["remedy"]


def test_a_newer_format_is_an_error(spool, capsys):
    with open(f"{spool.root}/spool.toml", "w") as file:
        file.write('format = 99\nuuid = "x"\nname = "y"\n')
    assert 1 == doctor.doctor(["--spool", spool.root])
    assert "format 99" in capsys.readouterr().out


def test_a_missing_directory_is_an_error(spool):
    os.rmdir(f"{spool.root}/held")
    assert ERROR == by_what(doctor.examine(spool.root))["directories"].level


def test_a_full_spool_is_an_error(spool):
    assert ERROR == by_what(doctor.look_at_space(spool.root, 1e12))["space"].level


def test_a_state_directory_that_others_may_write_is_an_error(spool, state):
    state.mkdir()
    state.chmod(0o777)
    assert ERROR == by_what(doctor.examine(spool.root))["local state"].level


def test_too_little_room_for_the_state_directory_is_a_warning(spool, state, monkeypatch):
    """A node would start and claim nothing; seen on machines with a small local disk."""
    state.mkdir(mode=0o700)
    monkeypatch.setattr(fsops, "free_mb", lambda path: 40 if path == str(state) else 4000)
    found = by_what(doctor.examine(spool.root))["local state"]
    assert (WARNING, True) == (found.level, "64 MB" in found.remedy)


def test_nodes_that_are_gone_are_warnings(spool):
    node_json(spool, "dead", **here(), pid=DEAD_PID)
    node_json(spool, "silent")
    silence(spool, "silent", 900)
    run(spool, put(spool), "dead")
    found = by_what(doctor.examine(spool.root))
    assert WARNING == found["node silent"].level
    assert "with 1 job in running/dead" in found["node dead"].text


# --- init and config


def test_init_makes_a_spool_that_is_then_in_order(tmp_path, capsys):
    path = str(tmp_path / "new")
    assert 0 == doctor.init([path, "--name", "lab"])
    assert path == capsys.readouterr().out.strip()
    assert 0o700 == os.stat(path).st_mode & 0o777
    assert 'name = "lab"' in Spool(path).text
    assert 0 == doctor.doctor(["--spool", path])


def test_init_takes_the_spool_option_and_an_empty_directory(tmp_path):
    (tmp_path / "x").mkdir()
    assert 0 == doctor.init(["--spool", str(tmp_path / "x")])
    assert Spool(str(tmp_path / "x"))


def test_two_spools_have_two_uuids(tmp_path):
    for name in ("a", "b"):
        doctor.init([str(tmp_path / name)])
    uuids = [next(x for x in Spool(str(tmp_path / n)).text.splitlines() if "uuid" in x) for n in ("a", "b")]
    assert uuids[0] != uuids[1]


def test_init_refuses_a_spool_and_what_is_not_empty(spool, tmp_path):
    text = Spool(spool.root).text
    with pytest.raises(SpoolqError, match="is a spool already"):
        doctor.init([spool.root])
    assert text == Spool(spool.root).text
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(SpoolqError, match="not empty"):
        doctor.init([str(tmp_path / "full")])
    with pytest.raises(SpoolqError, match="no directory"):
        doctor.init([str(tmp_path / "full" / "thesis.tex")])
    assert ["thesis.tex"] == os.listdir(tmp_path / "full")


def test_init_refuses_a_name_that_is_none(tmp_path):
    with pytest.raises(UsageError):
        doctor.init([str(tmp_path / "x"), "--name", "a\nb"])
    assert not (tmp_path / "x").exists()


def test_next_steps_name_the_spool_unless_it_is_the_default():
    assert "SPOOLQ_DIR=/a" in establish.next_steps("/a", "/b")
    assert "SPOOLQ_DIR" not in establish.next_steps("/a", "/a")


def test_config_says_where_each_value_comes_from(spool, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    with open(f"{spool.root}/spool.toml", "a") as file:
        file.write("[limits]\ngrace_s = 7\n")
    assert 0 == doctor.config(["--spool", spool.root, "--json"])
    rows = {row["key"]: row for row in value(capsys.readouterr().out)}
    assert ("7", f"{spool.root}/spool.toml:5") == (rows["limits.grace_s"]["value"], rows["limits.grace_s"]["origin"])
    assert "default" == rows["limits.beat_s"]["origin"]
    assert "--spool" == rows["spool"]["origin"]
    assert 0 == doctor.config(["--spool", spool.root])
    assert "limits.grace_s" in capsys.readouterr().out


# --- completion


def test_completion_knows_every_command_and_alias():
    from spoolq.__main__ import ALIASES, COMMANDS

    commands = completion.gather()
    assert {*COMMANDS, *ALIASES} == {command.name for command in commands}
    options = {flag.name for command in commands if command.name == "sub" for flag in command.flags}
    assert {"cpus", "mem", "wrap"} <= options


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_one_that_its_shell_accepts(shell, tmp_path, capsys):
    assert 0 == doctor.completion([shell])
    script = capsys.readouterr().out
    for word in ("requeue", "signal", "USR1"):
        assert word in script
    if not shutil.which(shell):
        pytest.skip(f"no {shell} here")
    path = tmp_path / "script"
    path.write_text(script)
    subprocess.run([shell, "-n", str(path)], check=True)


def test_bash_completes_commands_options_and_values(tmp_path, capsys):
    if not shutil.which("bash"):
        pytest.skip("no bash here")
    doctor.completion(["bash"])
    path = tmp_path / "script"
    path.write_text(capsys.readouterr().out)

    def complete(*words):
        line = " ".join(f"'{word}'" for word in words)
        code = f'source {path}; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _spoolq; echo "${{COMPREPLY[*]}}"'
        return subprocess.run(["bash", "-c", code], check=True, capture_output=True, text=True).stdout.split()

    assert ["requeue"] == complete("spoolq", "req")
    assert ["--signal"] == complete("spoolq", "kill", "--sig")
    assert ["USR1", "USR2"] == complete("spoolq", "kill", "-s", "USR")
    assert ["pending"] == complete("spoolq", "-S", "/x", "stat", "--state", "pen")


def test_an_unknown_shell_is_refused():
    with pytest.raises(UsageError):
        doctor.completion(["tcsh"])


@pytest.mark.parametrize("command", ["doctor", "init", "config", "completion"])
def test_every_command_has_help(command, capsys):
    assert 0 == getattr(doctor, command)(["--help"])
    assert f"usage: spoolq {command}" in capsys.readouterr().out
