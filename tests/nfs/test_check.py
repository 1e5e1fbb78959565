"""The checker of the NFS lane sees what it is for; on facts made by hand, without a lab."""

import json

import pytest

from tests.nfs import __main__ as rig
from tests.nfs import capabilities
from tests.nfs.check import Expected, Truth, Verdict, check
from tests.nfs.scenarios import Scenario


class World:
    """One job, 7, that ran well as attempt 1; tests spoil one thing of it."""

    def __init__(self):
        self.expected = Expected()
        self.expected.acknowledged.update([7])
        self.lines = ["7.1 start 10.0", "7.1 end 12.0"]
        self.entries = [["done/0", "500.7.2.1~exit2,c1~sh"]]
        self.result = {"id": 7, "attempt": 1, "exit_code": 2, "state": "FAILED", "reason": None}
        self.home = {"stdout": "early 7.1\nlate 7.1\n", "late": []}
        self.history = [[7, 2]]

    def look(self):
        home = self.home | {"result": json.dumps(self.result) if self.result else None}
        spool = {"entries": self.entries, "homes": {"7": home}, "history": self.history, "silly": []}
        return check(self.expected, Truth.read(self.lines), spool)

    def again(self):
        """Its node died, and it ran again."""
        self.expected.reruns = True
        self.expected.struck = {7}
        self.lines = ["7.1 start 10.0", "7.1 tick 11.0", "7.2 start 20.0", "7.2 end 21.0"]
        self.entries = [["done/0", "500.7.4.2~exit2,c1~sh"]]
        self.result["attempt"] = 2
        self.home["stdout"] = "early 7.1\nearly 7.2\nlate 7.2\n"
        self.history = [[7, 4]]


@pytest.fixture
def world():
    return World()


def test_a_job_that_ran_once_and_says_so_is_good(world):
    assert world.look().good


def test_a_job_that_ran_again_after_its_node_died_is_recovered(world):
    world.again()
    verdict = world.look()

    assert verdict.good, verdict
    assert 1 == verdict.recovered
    assert 1 == verdict.notes["reruns"]


@pytest.mark.parametrize(
    ("spoil", "value"),
    [
        ("entries", []),
        ("entries", [["queue/500.1", "500.7.0.1~c1~sh"]]),
        ("result", None),
        ("history", [[7, 1]]),
    ],
)
def test_what_is_missing_is_lost(world, spoil, value):
    setattr(world, spoil, value)
    assert world.look().lost


@pytest.mark.parametrize(
    ("spoil", "value"),
    [
        ("entries", [["done/0", "500.7.2.1~exit2~sh"], ["queue/500.1", "500.7.0.1~~sh"]]),
        ("lines", ["7.1 start 10.0", "7.1 start 10.5", "7.1 end 12.0"]),
        ("lines", ["7.1 start 10.0", "7.1 end 12.0", "7.2 start 13.0"]),
    ],
)
def test_what_is_or_ran_twice_is_duplicated(world, spoil, value):
    setattr(world, spoil, value)
    assert world.look().duplicated


def test_an_attempt_beside_another_is_duplicated(world):
    world.again()
    world.lines.append("7.1 tick 20.5")
    assert ["7: attempt 1 still ran 0.5 s into attempt 2"] == world.look().duplicated


def test_a_job_that_must_never_run_again_and_did_is_duplicated(world):
    world.again()
    world.expected.rules[7] = "never"
    assert world.look().duplicated


@pytest.mark.parametrize(
    ("spoil", "value"),
    [
        ("entries", [["done/0", "500.7.2.1~nodefail~sh"]]),
        ("entries", [["done/0", "500.7.2.1~cancelled~sh"]]),
        ("entries", [["done/0", "500.7.2.1~exit0~sh"]]),
        ("lines", ["7.1 start 10.0"]),
        ("lines", []),
        ("home", {"stdout": "early 8.1\nlate 8.1\n", "late": []}),
        ("result", {"id": 8, "attempt": 1, "exit_code": 2}),
    ],
)
def test_an_end_or_an_output_that_is_not_its_own_is_unexpected(world, spoil, value):
    setattr(world, spoil, value)
    assert world.look().unexpected


def test_a_job_that_nobody_submitted_is_unexpected_unless_a_submission_was_cut(world):
    world.expected.acknowledged.clear()
    assert world.look().unexpected
    world.expected.cut = 1
    assert world.look().good


# --- what is said of a lab that does not work


class FakeLab:
    """Starts nothing; each scenario ends as `fates` says."""

    def __init__(self, vers, lease_s=90):
        self.vers = vers

    def close(self):
        pass


@pytest.mark.parametrize(
    ("fates", "code", "said"),
    [
        (["good"] * 4, 0, ""),
        (["good", "unfit"], rig.SKIPPED, "NOT tested to the end, version 4.2: n2 does not boot"),
        (["bad", "good", "unfit"], 1, "lost: job 7"),
        (["good", "bad", "good", "good"], 1, "lost: job 7"),
        (["none"], rig.SKIPPED, "NOT tested, version 4.2: no network namespace"),
    ],
)
def test_a_lab_that_does_not_work_is_no_fault_and_a_lost_job_is_one(monkeypatch, capsys, fates, code, said):
    left = iter(fates)

    def run(lab, name, jobs=None):
        fate = next(left)
        if fate == "unfit":
            raise rig.Unfit("n2 does not boot")
        return rig.Row(name, lab.vers, 1, 0, 0, 1.0, Verdict(lost=["job 7"] if fate == "bad" else []), "")

    def lab(vers, lease_s):
        if fates == ["none"]:
            raise rig.Unfit("no network namespace")
        return FakeLab(vers)

    monkeypatch.setattr(rig, "missing", lambda: "")
    monkeypatch.setattr(rig, "Lab", lab)
    monkeypatch.setattr(rig, "run", run)
    monkeypatch.setattr(rig.signal, "signal", lambda *_: None)
    monkeypatch.setattr("sys.argv", ["nfs", "--short"])
    assert code == rig.main()
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("lost", [[], ["job 7"]])
def test_what_was_lost_counts_also_if_the_lab_cannot_be_set_right(monkeypatch, lost):
    class Site:
        def __init__(self, *_, **__):
            self.expected = Expected()

        def verdict(self):
            return Verdict(lost=lost)

    def undo(_):
        raise OSError("n2 is gone")

    monkeypatch.setattr(rig, "Site", Site)
    monkeypatch.setattr(rig, "undo", undo)
    monkeypatch.setitem(rig.SCENARIOS, "race", Scenario(lambda *_: 0, 1, {}, (), user=False))
    if lost:
        assert not rig.run(FakeLab("3"), "race").good
    else:
        with pytest.raises(rig.Unfit, match="n2 is gone"):
            rig.run(FakeLab("3"), "race")


# --- tasks of arrays, and who ran beside whom


def test_tasks_of_an_array_are_checked_like_jobs(world):
    world.expected.acknowledged.clear()
    world.expected.acknowledged.update(["7_8", "7_9"])
    world.expected.codes = {"7_9": 0}
    world.lines = ["7_8.1 start 10.0", "7_8.1 end 12.0", "7_9.1 start 10.0", "7_9.1 end 12.0"]
    world.entries = [["done/0", "500.7.2.1~exit3,c1,a8~sh"], ["done/0", "500.7.2.1~exit0,c1,a9~sh"]]
    homes = {}
    for number, code in ((8, 3), (9, 0)):
        result = {"id": 7, "task": number, "attempt": 1, "exit_code": code, "state": "", "reason": None}
        homes[f"7_{number}"] = {"result": json.dumps(result), "stdout": f"early 7_{number}.1\nlate 7_{number}.1\n"}
    spool = {"entries": world.entries, "homes": homes, "history": [], "silly": []}

    def look():
        return check(world.expected, Truth.read(world.lines), spool)

    assert look().good, look()
    world.lines += ["7_9.2 start 13.0", "7_9.2 end 14.0"]
    assert look().duplicated
    spool["entries"] = world.entries[:1]
    assert ["7_9: no entry (ran: [1, 2])"] == look().lost


def test_what_ran_at_once_is_counted():
    spans = {(1, 1): (0.0, 2.0), (2, 1): (1.0, 3.0), ("7_1", 1): (2.0, 9.0), (4, 1): (8.0, float("inf"))}
    assert 2 == capabilities.most(spans)
    assert 3 == capabilities.most(spans, {1: 1, 2: 1, "7_1": 2})
    assert 0 == capabilities.most({})
