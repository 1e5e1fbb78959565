"""
A hundred clusters a run of the suite, thousands with -m slow; and what the simulator is worth: it is the same
each time, its checker sees each kind of violation, and it misses no guard that is taken out.
"""

import hashlib
import json
import os
import subprocess
import sys

import pytest

from spoolq import daemon, fsops, host
from tests.sim import __main__ as command
from tests.sim import world
from tests.sim.check import check
from tests.sim.entries import token_of
from tests.sim.guards import GUARDS, seeds_until_seen, without

BLOCK = 40
QUICK = (
    "gen",
    "lease is needed",
    "finds claimed",
    "earlier boot",
    "forgets before",
    "not released",
    "all rules",
    "children again",
    "has a result",
    "counts the tasks",
)


def run_block(first: int, count: int) -> None:
    """Seeds that must all hold."""
    bad, acknowledged = [], 0
    for seed in range(first, first + count):
        found = command.outcome(seed)
        acknowledged += found.numbers["acknowledged"]
        bad += [f"seed {seed}: {violation}" for violation in found.violations[:1]]
    assert acknowledged > count, "nobody can submit: the simulation is empty"
    assert [] == bad, f"python -m tests.sim --seeds 1 --shrink --from {bad[0].split()[1].rstrip(':')}"


@pytest.mark.parametrize(
    "first", [*range(0, 120, BLOCK), *(pytest.param(first, marks=pytest.mark.more) for first in range(120, 240, BLOCK))]
)
def test_every_invariant_holds_whatever_goes_wrong(first):
    run_block(first, BLOCK)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1000, 11000, 500))
def test_every_invariant_holds_in_thousands_of_clusters(first):
    run_block(first, 500)


def test_faults_of_every_kind_are_injected_within_the_seeds_of_this_suite():
    from tests.sim.faults import AT_TIME, ON_REQUEST

    planned = {fault.what for seed in range(240) for fault in world.World(seed, None).plan.faults}
    assert {*ON_REQUEST, *AT_TIME} == planned


def digest(seed: int) -> str:
    """Of a whole trace but for how long it took."""
    events = [event for event in world.run(seed).trace if event[1] != "took"]
    return hashlib.sha256(repr(events).encode()).hexdigest()


def test_one_seed_is_one_run_also_in_another_process():
    code = "from tests.sim.test_sim import digest; print(*[digest(seed) for seed in range(3, 9)])"
    env = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)}
    other = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert other.stdout.split() == [digest(seed) for seed in range(3, 9)]


def test_everything_is_as_before_after_a_run():
    before = (fsops.os, daemon.Family, host.boottime, daemon.select)
    world.run(1)
    assert before == (fsops.os, daemon.Family, host.boottime, daemon.select)


@pytest.mark.parametrize("guard", [g for g in GUARDS if any(w in g.name for w in QUICK)], ids=lambda g: g.name)
def test_a_guard_that_is_taken_out_is_missed(guard):
    count, _ = seeds_until_seen(guard, guard.most)
    assert count, f"{guard.name}: no violation in {guard.most} seeds"


@pytest.mark.slow
@pytest.mark.parametrize("guard", GUARDS, ids=lambda g: g.name)
def test_every_guard_that_is_taken_out_is_missed(guard):
    test_a_guard_that_is_taken_out_is_missed(guard)


def test_shrinking_leaves_only_faults_that_are_needed():
    guard = next(g for g in GUARDS if "lease is needed" in g.name)
    only = frozenset(guard.faults.split())
    with without(guard):
        seed = seeds_until_seen(guard, guard.most)[0] - 1
    with without(guard):
        faults = command.shrink(seed, "I9", only)
        assert faults
        assert any(v.rule == "I9" for v in command.outcome(seed, only, faults).violations)
        for left_out in range(len(faults)):
            fewer = faults[:left_out] + faults[left_out + 1 :]
            assert not any(v.rule == "I9" for v in command.outcome(seed, only, fewer).violations)
    assert [] == command.outcome(seed, only, faults).violations


def test_the_command_says_what_it_did_and_exits_1_at_a_violation(capsys):
    assert 0 == command.main(["--seeds", "3", "--from", "3", "--jobs", "1"])
    assert "3 seeds, 0 with a violation" in capsys.readouterr().out
    with without(GUARDS[0]):
        assert 1 == command.main(["--seeds", "3", "--jobs", "1"])
    out = capsys.readouterr().out
    assert "history of job" in out
    assert "gen must rise" in out


# --- the checker: each kind of violation in a trace made by hand

QUEUE, RUNNING, DONE = "queue/500.000000001", "running/n1", "done/0"


def name(gen: int, facts: str = "c1", attempt: int = 1) -> str:
    """An entry of job 1."""
    return f"500.1.{gen}.{attempt}~{facts}~t"


def op(t: float, client: str, source: str, target: str, text: str = "", what: str = "rename", ino: int = 5) -> tuple:
    """One applied change."""
    return (t, "op", client, what, source, target, ino, text, t)


def begin() -> list[tuple]:
    """A cluster of two nodes and a job that was acknowledged."""
    policy = {"fence_s": 12.0, "dead_s": 64.0}
    return [
        (0.0, "policy", policy),
        (0.0, "node", "n1", {"cpus": 2000, "rate": 1.0}),
        (0.0, "node", "n2", {"cpus": 2000, "rate": 1.0}),
        op(0.5, "n1", "nodes/n1/.t", "nodes/n1/heartbeat", "1 a\n", ino=9),
        op(0.5, "n2", "nodes/n2/.t", "nodes/n2/heartbeat", "1 b\n", ino=8),
        op(1.0, "u1", "jobs/0/1/.entry", f"{QUEUE}/{name(0)}"),
        (1.1, "ack", "u1", 1, "certain"),
    ]


def life(until: float = 3.0) -> list[tuple]:
    """The same, and it ran and ended."""
    return [
        *begin(),
        op(2.0, "n1", f"{QUEUE}/{name(0)}", f"{RUNNING}/{name(1)}"),
        (2.1, "start", "n1", 1, 1, {"rate": 1.0}),
        (until, "end", "n1", 1, 1, {"reason": "", "code": 0}),
        op(until + 0.1, "n1", f"{RUNNING}/{name(1)}", f"{DONE}/{name(2, 'exit0,c1')}"),
    ]


def rest(record: dict | None = None, raw: str | None = "{}", ending: str = "exit0", attempt: int = 1) -> list[tuple]:
    """All came to rest."""
    record = {"attempt": 1, "exit_code": 0} if record is None else record
    return [(20.0, "calm"), (30.0, "drained"), (31.0, "final", 1, attempt, ending, record, raw), (32.0, "left", [])]


def rules(trace: list[tuple]) -> set[str]:
    """The rules that are broken."""
    return {violation.rule for violation in check(trace).violations}


def test_a_life_without_trouble_breaks_nothing():
    report = check(life() + rest())
    assert [] == report.violations
    numbers = {"acknowledged": 1, "lost": 0, "duplicated": 0, "unexpected": 0, "recovered": 0, "tasks": 0}
    assert report.numbers == numbers


CLAIM = op(2.0, "n1", f"{QUEUE}/{name(0)}", f"{RUNNING}/{name(1)}")
START = (2.1, "start", "n1", 1, 1, {"rate": 1.0})
END = (3.0, "end", "n1", 1, 1, {"reason": "", "code": 0})
HEAVY = [
    op(1.0, "u1", "jobs/0/2/.entry", f"{QUEUE}/500.2.0.1~c2~t", ino=6),
    op(1.2, "n1", f"{QUEUE}/500.2.0.1~c2~t", f"{RUNNING}/500.2.1.1~c2~t", ino=6),
    (1.3, "start", "n1", 2, 1, {"rate": 1.0}),
]
BROKEN = {
    "I1 two entries": ("I1", [*begin(), op(2.0, "u2", "jobs/0/7/.entry", f"{QUEUE}/{name(3)}", ino=7)]),
    "I2 no such move": ("I2", [*begin(), op(2.0, "n1", f"{QUEUE}/{name(0)}", f"reaping/n1/{name(1)}")]),
    "I2 not entitled": ("I2", [*begin(), op(2.0, "n2", f"{QUEUE}/{name(0)}", f"{RUNNING}/{name(1)}")]),
    "I2 taken from the living": ("I2", [*begin(), CLAIM, op(9, "n2", f"{RUNNING}/{name(1)}", f"reaping/n2/{name(2)}")]),
    "I2 removed": ("I2", [*begin(), op(2.0, "n2", f"{QUEUE}/{name(0)}", "", what="unlink")]),
    "I3 gen stands still": ("I3", [*begin(), op(2.0, "n1", f"{QUEUE}/{name(0)}", f"{RUNNING}/{name(0)}")]),
    "I4 gone": ("I4", [*begin(), op(2.0, "n2", f"{QUEUE}/{name(0)}", "trash/x")]),
    "I4 never there": ("I4", [(1.1, "ack", "u1", 1, "certain")]),
    "I4 lost with the power": ("I4", [*begin(), (2.0, "rollback", 1)]),
    "I5 not among what ended": ("I5", [*begin(), (20.0, "calm"), (30.0, "drained")]),
    "I5 no result": ("I5", life() + rest(raw=None)),
    "I5 nobody knows": ("I5", life() + rest({"error": "no"})),
    "I5 dropped and lost": ("I5", [*life(), (4.0, "dropped", "u1", "a.sh", 77), *rest()]),
    "I6 ended twice": ("I6", [*life(), op(5, "n1", "jobs/0/1/x", f"{DONE}/{name(4, 'exit1,c1')}", ino=7)]),
    "I7 two at once": ("I7", [*begin(), CLAIM, START, (2.5, "start", "n2", 1, 2, {"rate": 1.0})]),
    "I7 the same twice": ("I7", [*begin(), CLAIM, START, END, (4.0, "start", "n1", 1, 1, {"rate": 1.0})]),
    "I8 certain": ("I8", [*life(), (9.0, "start", "n1", 1, 2, {"rate": 1.0})]),
    "I9 no claim": ("I9", [*begin(), START]),
    "I9 old lease": ("I9", [*begin(), CLAIM, (14.0, "start", "n1", 1, 1, {"rate": 1.0})]),
    "I10 too much": ("I10", [*begin(), *HEAVY, CLAIM, START]),
    "I11 a torn heartbeat": ("I11", [*begin(), op(2.0, "n1", "nodes/n1/.t", "nodes/n1/heartbeat", "2 ", ino=9)]),
    "I11 a torn result": ("I11", [*begin(), op(2.0, "n1", "jobs/0/1/.t", "jobs/0/1/result.json", '{"a', ino=10)]),
    "I11 no name": ("I11", [*begin(), op(2.0, "n1", "jobs/0/2/.entry", f"{QUEUE}/hello", ino=11)]),
    "I12 another code": ("I12", life() + rest({"attempt": 1, "exit_code": 7})),
    "I12 another attempt": ("I12", life() + rest({"attempt": 2, "exit_code": 0})),
    "I12 never ran": ("I12", [*begin(), *rest()]),
    "I12 cancelled by nobody": ("I12", life() + rest(ending="cancelled")),
    "I15 a segment": ("I15", [*life(), *rest()[:-1], (32.0, "left", ["queue/500.000000001/"])]),
    "I15 a private entry": ("I15", [*life(), *rest()[:-1], (32.0, "left", ["jobs/0/2/.entry"])]),
    "V1 nobody claims": ("V1", [*begin(), (20.0, "calm"), (200.0, "stuck", [])]),
    "V2 not started": ("V2", [*begin(), CLAIM, (20.0, "calm"), (200.0, "stuck", [])]),
    "V3 not decided": (
        "V3",
        [
            *begin(),
            CLAIM,
            START,
            (5.0, "power", "n1", "off"),
            (6.0, "buried", "n1"),
            (20.0, "calm"),
            (200.0, "stuck", []),
        ],
    ),
    "V4 not delivered": ("V4", [*begin(), CLAIM, START, END, (20.0, "calm"), (400.0, "stuck", [])]),
    "X broken": ("X", [(1.0, "broken", "n1", "KeyError", "")]),
}


@pytest.mark.parametrize("case", BROKEN)
def test_the_checker_sees(case):
    rule, trace = BROKEN[case]
    assert rule in rules(trace)


# --- arrays, in the same way: job 2 has the tasks 1 to 3 in two parts


def part(gen: int, chunk: str, attempt: int = 1, ending: str = "", more: str = "") -> str:
    """An entry of it."""
    facts = ",".join(fact for fact in (ending, "c1", more, chunk) if fact)
    return f"500.2.{gen}.{attempt}~{facts}~r0"


def lines(t: float, chunk: str, *results: tuple[int, str]) -> tuple:
    """A file of results."""
    found = [
        {"task": number, "attempt": 1, "state": state, "started": "1", "exit_code": 0} for number, state in results
    ]
    text = "".join(json.dumps(line) + "\n" for line in found)
    return (t, "lines", f"/spool/jobs/0/2/tasks/{chunk}.1.n1.jsonl", text, True)


def of_task(t: float, what: str, number: int, attempt: int = 1, code: int = 0) -> tuple:
    """A task starts or ends."""
    return (t, what, "n1", f"2_{number}", attempt, {"rate": 1.0} if what == "start" else {"reason": "", "code": code})


def array(more: str = "") -> list[tuple]:
    """It was acknowledged, and both parts are claimed."""
    queue = f"{QUEUE}a"
    made = [
        op(1.2, "u1", f"jobs/0/2/.entry/{part(0, c, more=more)}", "", what="symlink", ino=i)
        for i, c in ((31, "a1-2"), (32, "a3"))
    ]
    return [
        *begin()[:-2],
        *made,
        op(1.3, "u1", "jobs/0/2/.entry", queue, ino=30),
        (1.4, "ack", "u1", 2, "certain"),
        op(2.0, "n1", f"{queue}/{part(0, 'a1-2', more=more)}", f"{RUNNING}/{part(1, 'a1-2', more=more)}", ino=31),
        op(2.0, "n1", f"{queue}/{part(0, 'a3', more=more)}", f"{RUNNING}/{part(1, 'a3', more=more)}", ino=32),
    ]


RAN = [of_task(2.1, "start", 1), of_task(2.2, "end", 1), of_task(2.3, "start", 2), of_task(2.4, "end", 2)]
RAN += [of_task(2.5, "start", 3), of_task(2.6, "end", 3)]
WELL = {number: json.loads(lines(0, "a1-3", (number, "COMPLETED"))[3]) for number in (1, 2, 3)}
OVER = [
    op(3.0, "n1", f"{RUNNING}/{part(1, 'a1-2')}", f"{DONE}/{part(2, 'a1-2', ending='exit0')}", ino=31),
    op(3.0, "n1", f"{RUNNING}/{part(1, 'a3')}", f"{DONE}/{part(2, 'a3', ending='exit0')}", ino=32),
]


def at_rest(known: dict | None = None, ending: str = "exit0") -> list[tuple]:
    """All came to rest; `known` is what the results of the first part say."""
    known = {1: WELL[1], 2: WELL[2]} if known is None else known
    first, second = (31.0, "chunk", "2_1-2", 1, ending, known), (31.0, "chunk", "2_3", 1, "exit0", {3: WELL[3]})
    return [(20.0, "calm"), (30.0, "drained"), first, second, (32.0, "left", [])]


FAILED = {**WELL[2], "state": "FAILED", "exit_code": 1}
AGAIN = [
    op(4.0, "n1", f"{RUNNING}/{part(1, 'a1-2')}", f"{QUEUE}/{part(2, 'a1-2')}", ino=31),
    op(5.0, "n1", f"{QUEUE}/{part(2, 'a1-2')}", f"{RUNNING}/{part(3, 'a1-2')}", ino=31),
]
OF_ARRAYS = {
    "I7 a task twice": ("I7", [*array(), *RAN, *AGAIN, of_task(6.0, "start", 1)]),
    "I7 two at once": ("I7", [*array(), of_task(2.1, "start", 1), of_task(2.2, "start", 1, 2)]),
    "I8 with a result": (
        "I8",
        [*array(), *RAN[:2], lines(2.3, "a1-2", (1, "COMPLETED")), *AGAIN, of_task(6.0, "start", 1, 2)],
    ),
    "I9 after a gap": ("I9", [*array(), of_task(2.1, "start", 1), of_task(50.0, "end", 1), of_task(51.0, "start", 2)]),
    "I4 a part is gone": ("I4", [*array(), op(4.0, "n1", f"{RUNNING}/{part(1, 'a3')}", "trash/x", ino=32)]),
    "I5 a part is not there": ("I5", [*array(), *RAN, *OVER, *[e for e in at_rest() if e[2:3] != ("2_3",)]]),
    "I6 twice": ("I6", [*array(), *RAN, *OVER, op(5.0, "n1", "jobs/0/2/x", f"{DONE}/{part(7, 'a3', ending='exit1')}")]),
    "I17 no result": ("I17", [*array(), *RAN, *OVER, *at_rest({1: WELL[1]})]),
    "I17 another end": ("I17", [*array(), *RAN, *OVER, *at_rest({1: WELL[1], 2: FAILED}, "exit1")]),
    "I17 a part that says more": ("I17", [*array(), *RAN, *OVER, *at_rest(ending="exit1")]),
    "I17 never ran": ("I17", [*array(), *RAN[:2], *RAN[4:], *OVER, *at_rest()]),
    "I17 cancelled by nobody": ("I17", [*array(), *RAN, *OVER, *at_rest(ending="cancelled")]),
    "I17 of an earlier attempt": ("I17", [*array(), *RAN, of_task(2.7, "start", 2, 2), *OVER, *at_rest()]),
    "I17 still to run": ("I17", [*array(), *RAN, *OVER, *at_rest({1: WELL[1], 2: {**WELL[2], "state": "PENDING"}})]),
    "I18 too many": ("I18", [*array("x1"), of_task(2.1, "start", 1), of_task(2.2, "start", 3)]),
    "I19 too many": (
        "I19",
        [(0.0, "policy", {"fence_s": 12.0, "dead_s": 64.0, "most": 1}), *array("@u1")[1:], RAN[0], RAN[4]],
    ),
    "V2 no task runs": ("V2", [*array(), (20.0, "calm"), (200.0, "stuck", [])]),
}


def test_a_life_of_an_array_without_trouble_breaks_nothing():
    assert set() == rules([*array("x2,@u1"), *RAN])
    report = check([*array(), *RAN, lines(2.7, "a1-2", (1, "COMPLETED"), (2, "COMPLETED")), *OVER, *at_rest()])
    assert [] == report.violations
    assert (report.numbers["acknowledged"], report.numbers["lost"], report.numbers["tasks"]) == (1, 0, 3)


@pytest.mark.parametrize("case", OF_ARRAYS)
def test_the_checker_sees_of_arrays(case):
    rule, trace = OF_ARRAYS[case]
    assert rule in rules(trace)


def test_a_commit_of_an_array_that_the_power_undid_is_undone_whole():
    trace = array()
    undone = [*trace[:-2], (2.5, "rollback", 1)]
    assert {"I4"} == rules(undone)
    assert set() == rules([event for event in undone if event[1] != "ack"])


def test_what_a_power_loss_cuts_off_may_leave_its_private_files():
    off = (5.0, "power", "n1", "off")
    trace = [*life(), off, *rest()[:-1], (32.0, "left", ["jobs/0/2/.entry", "jobs/0/2/.t.1.2.job"])]
    assert "I15" not in rules(trace)
    assert "I15" in rules([*trace[:-1], (32.0, "left", ["queue/500.000000001/"])])


def test_the_checker_sees_a_rule_never_that_is_run_again():
    trace = [
        event
        if event[1] != "op"
        else (*event[:4], *[path.replace("~c1~", "~c1,rN~") for path in event[4:6]], *event[6:])
        for event in [
            *begin(),
            CLAIM,
            START,
            END,
            (4.0, "power", "n1", "off"),
            (9.0, "start", "n1", 1, 2, {"rate": 1.0}),
        ]
    ]
    assert "I8" in rules(trace)


def test_the_checker_sees_who_is_overtaken():
    trace = [*begin(), (20.0, "calm")]
    for number in range(2, 15):
        t = 60.0 + number
        trace.append(op(t, "u1", f"jobs/0/{number}/.entry", f"{QUEUE}/500.{number}.0.1~c1~t", ino=20 + number))
        trace.append(op(t, "n1", f"{QUEUE}/500.{number}.0.1~c1~t", f"{RUNNING}/500.{number}.1.1~c1~t", ino=20 + number))
        trace.append(
            op(t, "n1", f"{RUNNING}/500.{number}.1.1~c1~t", f"{DONE}/500.{number}.2.1~exit0,c1~t", ino=20 + number)
        )
    assert "V5" in rules(trace)


def test_the_checker_sees_who_takes_what_is_kept_for_another():
    kept = f"{QUEUE}/500.1.1.1~c1,R=n1~t"
    trace = [*begin(), op(2.0, "n1", f"{QUEUE}/{name(0)}", kept), (20.0, "calm")]
    trace.append(op(60.0, "u1", "jobs/0/2/.entry", f"{QUEUE}/500.2.0.1~c2~t", ino=22))
    assert set() == rules([*trace, op(61.0, "n1", f"{QUEUE}/500.2.0.1~c2~t", f"{QUEUE}/500.2.1.1~c2,t1~t", ino=22)])
    assert "V6" in rules([*trace, op(61.0, "n1", f"{QUEUE}/500.2.0.1~c2~t", f"{RUNNING}/500.2.1.1~c2~t", ino=22)])


def test_a_takeover_from_a_node_that_was_silent_for_long_enough_is_legal():
    yes = [
        event
        if event[1] != "op"
        else (*event[:4], *[path.replace("~c1~", "~c1,rY~") for path in event[4:6]], *event[6:])
        for event in [*begin(), CLAIM, op(70.0, "n2", f"{RUNNING}/{name(1)}", f"reaping/n2/{name(2)}")]
    ]
    assert set() == rules(yes)


def test_names_are_read_without_the_package():
    token = token_of("done/0/490.12.3.2~timeout,c1.5,m500,t5,rY,@anna,gpu=1~r2")
    assert token is not None
    assert (490, 12, 3, 2, 1500.0, "Y", "timeout", 2) == (
        *token[:4],
        token.cpus,
        token.rule,
        token.ending,
        token.retries,
    )
    assert token_of("jobs/0/1/result.json") is None
