"""Nodes that watch each other: who is silent, who is dead, and what others may take over then."""

import json
import os
import time

import pytest

from spoolq import daemon, deliver, history, home, host
from spoolq.spool import Spool
from tests.fake_family import FakeFamily, FakeRunner
from tests.world import World

BEAT_S, DEAD_S = 20.0, 1200.0  # the defaults


class Site(World):
    """A world of two machines, each with a runner and a clock of its own."""

    def __init__(self, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(path, monkeypatch, ends=False)
        self.now = 1000.0
        self.runners: dict[str, FakeRunner] = {}
        monkeypatch.setattr(daemon, "Family", self)
        monkeypatch.setattr(host, "boottime", lambda: self.now)

    def connect(self, state_dir: str, **_: object) -> FakeFamily:
        """As `Family.connect`."""
        return self.runners.setdefault(state_dir, FakeRunner(ends=False)).connect(state_dir)

    def node(self, name: str):
        """A daemon on a machine of its own."""
        return self.up(name, state=f"{self.root}.{name}", idle_exit_s=None)

    def starts(self, name: str) -> list[tuple[int, int]]:
        return self.runners[f"{self.root}.{name}"].starts

    def pass_time(self, seconds: float, *nodes, step_s: float = BEAT_S) -> None:
        """Let these nodes live on; the others are silent."""
        end = self.now + seconds
        while self.now < end:
            self.now += step_s
            for node in nodes:
                self.turn(node, "queue", "control", "beat")


@pytest.fixture
def site(tmp_path, monkeypatch):
    world = Site(str(tmp_path), monkeypatch)
    yield world
    world.close()


def lost_node(site, **facts):
    """Jobs that run on n2, whose node then says nothing more; n1 watches it."""
    n2 = site.node("n2")
    site.submit(**facts)
    site.turn(n2)
    n1 = site.node("n1")
    assert ("running", None, 1) == site.where(1)
    return n1, n2


def declare(site, name):
    """As `spoolq node-dead NAME --certain`."""
    spool = Spool(site.root)
    spool.mark_node(name, "dead", on=True, text=spool.read_beat(name)[1])


def test_a_job_of_rule_yes_runs_elsewhere_after_silence_and_not_before(site):
    n1, _ = lost_node(site, rerun="yes")
    site.pass_time(DEAD_S - 2 * BEAT_S, n1)
    assert ("running", None, 1) == site.where(1)
    assert [] == site.starts("n1")
    site.pass_time(4 * BEAT_S, n1)
    assert [(1, 2)] == site.starts("n1")


@pytest.mark.parametrize("rerun", ["certain", "never"])
def test_other_jobs_of_a_silent_node_wait_for_certainty(site, rerun):
    n1, _ = lost_node(site, rerun=rerun)
    site.pass_time(3 * DEAD_S, n1)
    assert ("running", None, 1) == site.where(1)


def test_after_an_operators_word_a_job_runs_elsewhere_within_some_beats(site):
    n1, _ = lost_node(site, rerun="certain")
    declare(site, "n2")
    site.pass_time(8 * BEAT_S, n1)
    assert [(1, 2)] == site.starts("n1")


def test_after_an_operators_word_a_job_of_rule_never_ends_as_node_fail_with_the_reason(site):
    n1, _ = lost_node(site, rerun="never")
    declare(site, "n2")
    site.pass_time(8 * BEAT_S, n1)
    assert ("done", "nodefail", 1) == site.where(1)
    assert "node n2 went down" in deliver.read_ending(Spool(site.root), 1)["reason"]


def test_an_operators_word_about_a_node_that_still_beats_is_not_heeded(site):
    n1, n2 = lost_node(site, rerun="certain")
    declare(site, "n2")
    site.pass_time(DEAD_S, n1, n2)
    assert ("running", None, 1) == site.where(1)


def test_an_operators_word_ends_when_the_node_is_back(site):
    n1, _ = lost_node(site, rerun="certain")
    declare(site, "n2")
    site.runners[f"{site.root}.n2"].ends = False
    site.node("n2")
    assert {} == Spool(site.root).node_marks("n2")
    site.pass_time(8 * BEAT_S, n1)
    assert ("running", None, 1) == site.where(1)


def test_time_in_which_the_observer_could_not_look_does_not_count(site):
    n1, _ = lost_node(site, rerun="yes")
    site.pass_time(DEAD_S / 2, n1)
    site.now += 10 * DEAD_S
    site.pass_time(DEAD_S / 2, n1)
    assert ("running", None, 1) == site.where(1)


def test_a_node_that_beats_between_the_listing_and_the_look_keeps_its_jobs(site, monkeypatch):
    n1, n2 = lost_node(site, rerun="yes")
    site.pass_time(DEAD_S - 2 * BEAT_S, n1)
    left_by, beaten = n1.intake.left_by, []

    def listed(name):
        if n1.peers.watches["n2"].still_s >= DEAD_S and not beaten:  # it counts as silent, and comes back just now
            beaten.append(site.spool.beat("n2", 99, n2.presence.instance))
        return left_by(name)

    monkeypatch.setattr(n1.intake, "left_by", listed)
    site.pass_time(10 * BEAT_S, n1)
    assert beaten
    assert ("running", None, 1) == site.where(1)


def test_an_operators_word_about_an_earlier_daemon_is_void(site):
    n1, _ = lost_node(site, rerun="certain")
    site.spool.mark_node("n2", "dead", on=True, text="an-earlier-daemon")
    site.pass_time(8 * BEAT_S, n1)
    assert ("running", None, 1) == site.where(1)


def test_a_rename_of_a_lost_node_that_comes_late_is_found(site):
    """A claim that the server carries out long after its node was found to have left nothing."""
    site.node("n2")
    n1 = site.node("n1")
    site.pass_time(DEAD_S + 4 * BEAT_S, n1)
    site.turn(n1)
    n1.presence.draining = True
    site.submit(rerun="yes")
    site.spool.claim(site.at(1), "n2")
    site.pass_time(40 * BEAT_S, n1)
    assert [(1, 2)] == site.starts("n1")


def test_an_end_that_the_lost_node_recorded_counts(site):
    n1, n2 = lost_node(site, rerun="yes")
    site.runners[f"{site.root}.n2"].end((1, 1), 7)
    n2.hear()
    (item,) = n2.ended
    deliver.prepare(item, "n2")
    n2.spool.record(deliver.today(), "n2", [item.line])  # and then the power went
    site.pass_time(DEAD_S + 4 * BEAT_S, n1)
    assert ("done", "exit7", 1) == site.where(1)
    assert 7 == deliver.read_ending(Spool(site.root), 1)["exit_code"]


def test_a_result_that_the_lost_node_had_committed_and_not_written_is_written(site, monkeypatch):
    """Found by simulation: it died in between, and never came back."""
    n1, n2 = lost_node(site, rerun="certain")
    site.runners[f"{site.root}.n2"].end((1, 1), 7)
    with monkeypatch.context() as patched:
        patched.setattr(home, "publish_result", refuse)
        site.turn(n2, "deliver")
    assert ("done", "exit7", 1) == site.where(1)
    assert home.read_result(site.root, 1) is None
    site.pass_time(DEAD_S + 4 * BEAT_S, n1)
    assert b'"exit_code": 7' in home.read_result(site.root, 1)


def test_a_kill_that_the_lost_node_did_not_hear_is_heeded(site):
    n1, _ = lost_node(site, rerun="yes")
    site.spool.request("n2", "kill", 1, {"attempt": 1}, "me")
    site.pass_time(DEAD_S + 4 * BEAT_S, n1)
    assert ("done", "cancelled", 1) == site.where(1)


def test_what_a_dead_reaper_was_deciding_about_is_decided(site):
    n1, n2 = lost_node(site, rerun="certain")
    n2.spool.reap(site.at(1), "n2")
    site.pass_time(DEAD_S + 4 * BEAT_S, n1)
    assert [(1, 2)] == site.starts("n1")


def test_a_file_that_a_silent_node_was_admitting_becomes_one_job(site):
    n2 = site.node("n2")
    with open(f"{site.root}/nodes/n2/admit/1a~hello.sh", "w", encoding="ascii") as file:
        file.write("#!/bin/sh\necho hello\n#SPOOLQ end\n")
    n1 = site.node("n1")
    site.pass_time(DEAD_S + 4 * BEAT_S, n1)
    site.turn(n1, "drop")
    site.turn(n1, "queue")
    assert [(1, 1)] == site.starts("n1")
    assert [] == os.listdir(f"{site.root}/nodes/n2/admit")
    site.turn(n2, "drop")
    assert 1 == len(site.placed())


def test_the_result_of_a_node_that_comes_back_late_is_kept_as_late(site):
    n1, n2 = lost_node(site, rerun="yes")
    site.pass_time(DEAD_S + 4 * BEAT_S, n1)
    site.runners[f"{site.root}.n1"].end((1, 2), 0)
    site.pass_time(2 * BEAT_S, n1)
    assert ("done", "exit0", 2) == site.where(1)
    site.runners[f"{site.root}.n2"].end((1, 1), 5)
    site.pass_time(2 * BEAT_S, n2)
    assert ("done", "exit0", 2) == site.where(1)
    with open(f"{site.root}/jobs/0/1/result.1.late.json", encoding="ascii") as file:
        assert 5 == json.load(file)["exit_code"]
    assert 0 == deliver.read_ending(Spool(site.root), 1)["exit_code"]


def test_what_came_of_a_copy_that_was_fenced_is_kept_as_late(site):
    """Found on real NFS: a node was cut off for longer than dead_s."""
    n1, n2 = lost_node(site, rerun="yes")
    site.runners[f"{site.root}.n2"].end((1, 1), None, "lost")
    site.pass_time(DEAD_S + 4 * BEAT_S, n1)
    site.runners[f"{site.root}.n1"].end((1, 2), 0)
    site.pass_time(2 * BEAT_S, n1)
    held = n2.live[1].outputs
    site.pass_time(2 * BEAT_S, n2)
    assert ("done", "exit0", 2) == site.where(1)
    with open(f"{site.root}/jobs/0/1/result.1.late.json", encoding="ascii") as file:
        assert "NODE_FAIL" == json.load(file)["state"]
    assert held
    assert not {f"/proc/self/fd/{fd}" for fd in held if os.path.exists(f"/proc/self/fd/{fd}")}, "outputs left open"


def test_the_late_result_is_kept_also_by_a_daemon_that_was_started_since(site):
    n1, _ = lost_node(site, rerun="yes")
    site.pass_time(DEAD_S + 4 * BEAT_S, n1)
    site.runners[f"{site.root}.n2"].end((1, 1), 5)
    site.node("n2")
    with open(f"{site.root}/jobs/0/1/result.1.late.json", encoding="ascii") as file:
        assert 5 == json.load(file)["exit_code"]
    assert {} == site.runners[f"{site.root}.n2"].jobs
    records = [r for name in site.spool.history_files() for r in history.parse(site.spool.read_history(name))]
    assert [(1, 5)] == [(r["attempt"], r["exit_code"]) for r in records]


def test_a_job_that_takes_down_its_nodes_is_given_up(site, monkeypatch):
    n1, _ = lost_node(site, rerun="certain")
    n1.policy = n1.policy._replace(max_attempts=1)
    declare(site, "n2")
    site.pass_time(8 * BEAT_S, n1)
    assert ("done", "nodefail", 1) == site.where(1)
    assert "max_attempts is 1" in deliver.read_ending(Spool(site.root), 1)["reason"]


# --- retries


def failing(site, retries, *codes):
    """A job that fails so on one node, each end seen; then the node."""
    n1 = site.node("n1")
    site.submit(retries=retries)
    for attempt, code in enumerate(codes, 1):
        site.pass_time(3600.0 if attempt > 1 else BEAT_S, n1, step_s=300.0 if attempt > 1 else BEAT_S)
        site.runners[f"{site.root}.n1"].end((1, attempt), code)
        site.turn(n1, "deliver")
    return n1


def test_a_failure_waits_in_held_and_is_tried_again(site):
    n1 = failing(site, 2, 3)
    assert ("held", "HR", 2) == (site.where(1)[0], site.at(1).entry.held, site.at(1).entry.attempt)
    site.turn(n1, "queue")
    assert [(1, 1)] == site.starts("n1")
    site.now += 11.0
    site.turn(n1, "queue")
    site.turn(n1, "queue")
    assert [(1, 1), (1, 2)] == site.starts("n1")
    with open(f"{site.root}/jobs/0/1/result.1.json", encoding="ascii") as file:
        assert 3 == json.load(file)["exit_code"]


def test_it_ends_with_the_last_attempt_and_history_has_each(site):
    failing(site, 2, 3, 4, 5)
    assert ("done", "exit5", 3) == site.where(1)
    records = [r for name in site.spool.history_files() for r in history.parse(site.spool.read_history(name))]
    assert [(1, 3), (2, 4), (3, 5)] == sorted((r["attempt"], r["exit_code"]) for r in records)
    assert 5 == deliver.read_ending(Spool(site.root), 1)["exit_code"]


def test_success_is_not_tried_again(site):
    failing(site, 5, 3, 0)
    assert ("done", "exit0", 2) == site.where(1)


def test_a_retry_whose_node_is_gone_is_released_by_another(site):
    failing(site, 1, 3)
    n2 = site.node("n2")
    site.pass_time(31 * BEAT_S, n2)
    site.pass_time(31 * BEAT_S, n2)
    assert [(1, 2)] == site.starts("n2")


def test_the_history_of_a_failed_attempt_is_written_when_the_spool_takes_it_again(site, monkeypatch):
    """Found by soak: the spool was full when a job was queued again."""
    with monkeypatch.context() as patched:
        patched.setattr(deliver, "write_attempt", refuse)
        n1 = failing(site, 1, 3)
        assert ("held", None, 2) == site.where(1)
    site.pass_time(120.0, n1)
    records = [r for name in site.spool.history_files() for r in history.parse(site.spool.read_history(name))]
    assert [(1, 3)] == [(r["attempt"], r["exit_code"]) for r in records]
    assert (1, 1) not in site.runners[f"{site.root}.n1"].jobs


def test_a_daemon_that_dies_between_the_retry_and_its_history_line_leaves_it_to_the_next(site, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(deliver, "write_attempt", refuse)
        failing(site, 1, 3)
    site.runners[f"{site.root}.n1"].jobs[1, 1] = {
        "id": 1,
        "attempt": 1,
        "gen": 1,
        "state": "ended",
        "stage": "over",
        "ended": {"exit_code": 3, "signal": None, "reason": "", "started": time.time(), "ended": time.time()},
        "scratch": "",
    }
    site.node("n1")
    records = [r for name in site.spool.history_files() for r in history.parse(site.spool.read_history(name))]
    assert [(1, 3)] == [(r["attempt"], r["exit_code"]) for r in records]


def refuse(*_, **__):
    raise OSError(5, "no")
