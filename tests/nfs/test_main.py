"""What the NFS lane says fails a check; what the machine is too weak for does not. Without a lab."""

import sys

import pytest

from tests.nfs import __main__ as lane
from tests.nfs.check import Expected, Verdict
from tests.nfs.lab import Trouble
from tests.nfs.scenarios import Scenario


class Lab:
    """All machines are well until one is `off`."""

    off = ""
    boots = True

    def __init__(self, vers, **_):
        if not self.boots:
            raise Trouble("n2 does not boot")
        self.vers = vers

    def trouble(self):
        return self.off

    def close(self):
        pass


class Site:
    """A spool on it, and what became of its jobs."""

    lost = ()

    def __init__(self, lab, *_, **__):
        self.lab, self.expected = lab, Expected()

    def verdict(self):
        return Verdict(lost=list(self.lost))

    def close(self):
        pass


def stuck(*_):
    raise AssertionError("not within 900 s")


def powerless(site, _):
    site.lab.off = "n1 went off by itself"
    stuck()


def no_power_again(*_):
    raise Trouble("server does not boot")


@pytest.fixture
def main(monkeypatch, capsys):
    def run(act, lost=(), boots=True, off=""):
        monkeypatch.setattr(Lab, "boots", boots)
        monkeypatch.setattr(Lab, "off", off)
        monkeypatch.setattr(Site, "lost", lost)
        for name in {name for _, name, _ in lane.SHORT}:
            monkeypatch.setitem(lane.SCENARIOS, name, Scenario(act, 1, {}, (), user=False))
        monkeypatch.setattr(lane, "missing", lambda: "")
        monkeypatch.setattr(lane, "undo", lambda _: None)
        monkeypatch.setattr(lane.signal, "signal", lambda *_: None)
        monkeypatch.setattr(sys, "argv", ["tests.nfs", "--short"])
        monkeypatch.setattr(lane, "Lab", Lab)
        monkeypatch.setattr(lane, "Site", Site)
        return lane.main(), capsys.readouterr().err

    return run


def test_all_well_is_0(main):
    assert (0, "") == main(lambda *_: 0)


def test_what_is_lost_fails(main):
    code, said = main(lambda *_: 0, lost=["7: no entry"])
    assert 1 == code
    assert "lost: 7: no entry" in said


def test_what_does_not_come_to_its_end_twice_fails_if_the_machines_are_well(main):
    code, said = main(stuck)
    assert 1 == code
    assert "once more" in said


@pytest.mark.parametrize(
    ("act", "facts", "why"),
    [
        (stuck, {"boots": False}, "n2 does not boot"),
        (stuck, {"off": "n1 needs more than 20 s to start Python"}, "n1 needs more"),
        (powerless, {}, "n1 went off by itself"),
        (no_power_again, {}, "server does not boot"),
    ],
)
def test_what_the_machine_cannot_do_is_skipped_and_said(main, act, facts, why):
    code, said = main(act, **facts)
    assert 77 == code
    assert "real NFS was NOT tested: race (4.2), power_loss_open_files (4.2)" in said
    assert why in said


def test_what_was_lost_before_the_machine_failed_fails(main):
    acts = [lambda *_: 0, powerless]
    code, said = main(lambda *words: acts.pop(0)(*words), lost=["7: no entry"])
    assert 1 == code
    assert "NOT tested: power_loss_open_files (4.2)" in said


def test_the_short_form_begins_nothing_more_when_it_took_too_long(main, monkeypatch):
    monkeypatch.setattr(lane, "SHORT_S", -1)
    code, said = main(lambda *_: 0)
    assert 77 == code
    assert "the others took more than" in said
