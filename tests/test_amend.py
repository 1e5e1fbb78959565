"""The command edit."""

import pytest

from spoolq import amend, steer
from spoolq.errors import UsageError
from spoolq.state import State
from tests.desk import end, node_json, put, run


@pytest.fixture
def edit(spool):
    """Call it on the spool."""
    return lambda *words: steer.edit(["--spool", spool.root, *words])


def test_all_changes_of_a_waiting_job_are_one_rename(spool, edit):
    put(spool, priority=2)
    assert 0 == edit(
        "1", "cpus=0.5", "mem=3G", "time=2h", "prio=10", "name=other job", "rerun=never", "gres=gpu:2,license"
    )
    entry = spool.find(1).entry
    assert {"cpus": 500, "mem": 3072_000, "gpu": 2000, "license": 1000} == entry.wants
    assert (7200, 10, "other_job", "N", 1) == (entry.limit_s, entry.priority, entry.label, entry.rerun, entry.gen)


def test_what_is_not_named_stays(spool, edit):
    put(spool, limit_s=60, wants={"cpus": 2000, "mem": 500_000, "gpu": 1000})
    assert 0 == edit("1", "mem=1G")
    entry = spool.find(1).entry
    assert ({"cpus": 2000, "mem": 1024_000, "gpu": 1000}, 60) == (entry.wants, entry.limit_s)


def test_a_resource_and_a_limit_can_be_given_up(spool, edit):
    put(spool, limit_s=60, wants={"cpus": 1000, "mem": 1000_000, "gpu": 1000, "license": 2000})
    assert 0 == edit("1", "gpus=0", "gres=license:0", "time=unlimited")
    entry = spool.find(1).entry
    assert ({"cpus": 1000, "mem": 1000_000}, None) == (entry.wants, entry.limit_s)


def test_a_held_job_stays_held(spool, edit):
    put(spool, held="HU")
    assert 0 == edit("1", "priority=5")
    assert State.HELD is spool.find(1).state


def test_nothing_new_needs_no_rename(spool, edit):
    put(spool)
    assert 0 == edit("1", "cpus=1")
    assert 0 == spool.find(1).entry.gen


def test_time_and_memory_of_a_running_job_are_asked_of_its_node(spool, edit, capsys):
    run(spool, put(spool))
    assert 0 == edit("1", "time=90s", "mem=3G")
    [(_, request)] = spool.requests("n1")
    assert ("edit", 90, 3072) == (request["verb"], request["limit_s"], request["mem_mb"])
    assert 1 == edit("1", "cpus=2", "time=1")
    assert "cpus cannot change any more" in capsys.readouterr().err
    assert 1 == len(spool.requests("n1"))


def test_an_ended_job_cannot_be_edited(spool, edit, capsys):
    end(spool, run(spool, put(spool)))
    assert 1 == edit("1", "cpus=2")
    assert "has already ended" in capsys.readouterr().err


@pytest.mark.parametrize(
    "word", ["cpus=x", "mem=0", "colour=red", "n=1", "=3", "time=soon", "priority=9999", "gres=GPU:1", "gres=cpus:0"]
)
def test_a_wrong_change_is_refused_before_anything_is_touched(spool, edit, word):
    put(spool)
    with pytest.raises(UsageError):
        edit("1", word)
    assert 0 == spool.find(1).entry.gen


@pytest.mark.parametrize(
    ("name", "key"),
    [("m", "mem"), ("memory", "mem"), ("c", "cpus"), ("prio", "priority"), ("T", "time"), ("label", "name")],
)
def test_keys_may_be_shortened(name, key):
    assert key == amend.find_key(name)


def test_an_entry_whose_name_would_be_too_long_stays(spool, edit, capsys):
    put(spool)
    many = ",".join(f"resource_number_{n}_of_many:123456" for n in range(8))
    assert 1 == edit("1", f"gres={many}")
    assert "too much" in capsys.readouterr().err


def test_what_no_node_could_ever_run_is_refused_as_by_sub(spool, edit, capsys):
    put(spool)
    node_json(spool, cpus=4)
    assert 1 == edit("1", "cpus=9")
    assert "no node could ever run it so: needs 9 cpus" in capsys.readouterr().err
    assert 0 == edit("1", "cpus=4")


def test_without_changes_and_terminal_it_says_what_it_wants(spool, edit):
    put(spool)
    with pytest.raises(UsageError, match="what is to change"):
        edit("1")


def test_the_form_reads_back_as_no_change(spool):
    placed = put(spool, limit_s=100, wants={"cpus": 1500, "mem": 500_500, "gpu": 1000, "license": 500}, name="x")
    assert {} == amend.read_form(placed, amend.form_text(placed).encode())
    assert {} == amend.read_form(placed, b"")


def test_changes_in_the_form_are_found(spool):
    placed = put(spool, wants={"cpus": 1000, "mem": 1000_000, "gpu": 1000})
    text = (
        amend.form_text(placed).replace('mem = "1000M"', "mem = 2000").replace('gres = "gpu:1"', 'gres = "license:1"')
    )
    changes = amend.read_form(placed, text.encode())
    assert {"mem": "2000", "gres": "license:1,gpu:0"} == changes


def test_an_editor_is_called_until_its_text_is_right(spool, monkeypatch, tmp_path):
    put(spool)
    script = tmp_path / "editor"
    script.write_text(
        '#!/bin/sh\nif [ -e "$0.once" ]; then echo "cpus = 3" >"$1"; else touch "$0.once"; echo "cpus = x" >"$1"; fi\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("VISUAL", str(script))
    monkeypatch.setattr("builtins.input", lambda _: "y")
    assert {"cpus": "3"} == amend.by_editor(spool, "1")


def test_an_editor_that_fails_changes_nothing(spool, monkeypatch):
    put(spool)
    monkeypatch.setenv("VISUAL", "false")
    with pytest.raises(UsageError, match="nothing was changed"):
        amend.by_editor(spool, "1")
