"""drain, undrain, node-dead: what an operator says of nodes."""

import os

import pytest

from spoolq import mark
from spoolq.spool import Spool


@pytest.fixture
def call(spool):
    def run(command: str, *words: str) -> int:
        return getattr(mark, command.replace("-", "_"))(["--spool", spool.root, *words])

    return run


def beaten(spool: Spool, name: str, *, age_s: float) -> None:
    """A node that beat so long ago, by the server's clock."""
    spool.enter_node(name)
    spool.write_node(name, {"format": 1, "node": name, "state": "up", "beat_s": 1.0, "capacity": {"cpus": 1000}})
    spool.beat(name, 7, f"boot-{name}")
    path = f"{spool.root}/nodes/{name}/heartbeat"
    before = os.stat(path).st_mtime - age_s
    os.utime(path, (before, before))


def test_drain_is_a_file_with_the_reason(spool, call):
    spool.enter_node("n1")
    spool.enter_node("n2")
    assert 0 == call("drain", "n1", "-r", "new disk")
    assert {"drain": "new disk"} == spool.node_marks("n1")
    assert {} == spool.node_marks("n2")
    assert 0 == call("undrain", "n*")
    assert {} == spool.node_marks("n1")


def test_a_file_made_by_hand_drains_and_undrain_removes_it(spool, call):
    spool.enter_node("n1")
    with open(f"{spool.root}/nodes/n1/drain", "w"):
        pass
    assert 0 == call("undrain", "n1")
    assert not os.path.exists(f"{spool.root}/nodes/n1/drain")


def test_drain_of_an_unknown_node_is_an_error_and_the_others_are_drained(spool, call, capsys):
    spool.enter_node("n1")
    assert 1 == call("drain", "n7", "n1")
    assert "n7: no such node" in capsys.readouterr().err
    assert "drain" in spool.node_marks("n1")


def test_a_node_is_declared_dead_only_with_certainty(spool, call, capsys):
    beaten(spool, "n1", age_s=600)
    assert 1 == call("node-dead", "n1")
    assert "--certain" in capsys.readouterr().err
    assert {} == spool.node_marks("n1")

    assert 0 == call("node-dead", "n1", "--certain")
    assert {"dead": "boot-n1"} == spool.node_marks("n1")


def test_a_node_that_beats_is_not_declared_dead(spool, call, capsys):
    beaten(spool, "n1", age_s=1)
    assert 1 == call("node-dead", "n1", "--certain")
    assert "n1 lives" in capsys.readouterr().err
    assert {} == spool.node_marks("n1")


def test_a_node_that_never_beat_has_nothing_to_decide(spool, call, capsys):
    spool.enter_node("n1")
    assert 1 == call("node-dead", "n1", "--certain")
    assert "never served" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(mark.COMMANDS))
def test_every_command_has_help(name, call, capsys):
    assert 0 == call(name, "--help")
    assert f"usage: spoolq {name}" in capsys.readouterr().out
