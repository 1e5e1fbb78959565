"""
A sample of `python -m tests.crash`: calls of every process, each with a fault.

It is the same sample each time, so that what fails has been changed; SPOOLQ_CRASH_SEED=N takes another, and -m slow
takes one that nobody has seen, and the whole set. What fails is printed with the command that repeats it.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter

import pytest

from spoolq import spool
from tests.crash import __main__ as rig
from tests.crash import commands, scenes, stage, tracer
from tests.crash.stage import Stage
from tests.crash.tracer import Point

WHY_NOT = tracer.unavailable()
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=f"NOTHING WAS KILLED: {WHY_NOT}")
SEED = int(os.environ.get("SPOOLQ_CRASH_SEED", "20"))
SAMPLES = {"daemon": 28, "runner": 14, "watcher": 8, "submitter": 16, "user": 12}  # 90 s on two cores

# points at which something went wrong once
ONCE = (
    "daemon|read S/nodes/n1/admit/*~nightly.sh|2|EIO",
    "founder|flock L/family.lock|1|ESTALE",
    "runner|close S/jobs/0/1/stdout|1|ENOSPC",
    "heir|read L/runner.1.jsonl|1|EIO",
    "daemon|close S/nodes/n1/admit/*~nightly.sh|1|EACCES",
    "heir|accept4|1|after",
    "heir|pidfd_send_signal|5|after",
)


def explore(points: list[Point], capsys: pytest.CaptureFixture[str]) -> rig.Tally:
    """Play them; fail with all that was violated."""
    tally = rig.Tally()
    with rig.directory("tmpfs" if os.path.isdir("/dev/shm") else "disk") as top:
        cases = [(rig.SCENES[rig.ROLES[point.call.role]], point) for point in points]
        for result in rig.Rig(top, jobs=stage.side_by_side()).run(cases):
            tally.add(result)
    with capsys.disabled():
        print(f"\n{tally.table()}")
    assert not tally.violations, tally.report("tmpfs")
    return tally


def calls_of(who: str) -> list[tracer.Call]:
    """All calls of a group of processes."""
    roles = rig.chosen([who])
    with rig.directory("tmpfs" if os.path.isdir("/dev/shm") else "disk") as top:
        found = rig.Rig(top, jobs=stage.side_by_side()).calls(list(dict.fromkeys(rig.ROLES[role] for role in roles)))
    return [call for call in found if call.role in roles]


@pytest.mark.parametrize("who", SAMPLES)
def test_a_death_or_an_error_at_a_call_loses_nothing_and_repeats_nothing(who, capsys):
    play_sample(who, SEED, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("who", SAMPLES)
def test_a_sample_that_nobody_has_seen(who, capsys):
    play_sample(who, time.time_ns(), capsys)


def play_sample(who, seed, capsys):
    points = rig.sample(calls_of(who), seed, most=SAMPLES[who])
    tally = explore(points, capsys)
    assert sum(tally.explored.values()) >= len(points) // 2, "most points of one run are reached in the next"


def test_points_at_which_something_went_wrong_once(capsys):
    explore([Point.parse(text) for text in ONCE], capsys)


@pytest.mark.slow
@pytest.mark.parametrize("who", rig.GROUPS)
def test_every_death_and_every_error_at_every_call(who, capsys):
    explore(rig.every(calls_of(who)), capsys)


def test_the_tracer_sees_what_strace_sees(short_dir):
    """A second witness of how many calls there are."""
    if not shutil.which("strace"):
        pytest.skip("strace is not installed")
    pid = os.fork()  # a stage takes in the orphans of its process
    if pid == 0:
        code = 1
        try:
            compare(f"{short_dir}/a", f"{short_dir}/b")
            code = 0
        except BaseException as problem:
            print(problem, file=sys.stderr)
        finally:
            os._exit(code)
    assert 0 == os.waitpid(pid, 0)[1]


def compare(one: str, other: str) -> None:
    """The same command, once under each, in two equal spools."""
    names = ("openat", "rename", "mkdir", "link", "unlink", "symlink", "write", "fsync", "close")
    seen = []
    for base in (one, other):
        os.mkdir(base, 0o700)
        made = Stage(base, execute=True)
        spool.initialise(made.root, scenes.POLICY)
        words = made.python("sub", "--export", "none", "true")
        if base == one:
            plan = tracer.Plan(scenes.roots(made), lambda _: "sub")
            commands.run_traced(made, words, plan)
            seen.append(Counter(call.name for call in made.traced().calls if call.name in names))
        else:
            scenes.roots(made)
            strace = ["strace", "-f", "-yy", "-e", f"trace={','.join(names)}", "-o", f"{base}/log", *words]
            subprocess.run(strace, env=made.env, cwd=base, check=True, capture_output=True)
            lines = [line for line in made.log("log").splitlines() if f"{made.root}" in line or made.state in line]
            seen.append(Counter(re.match(r"\d+ +(\w+)", line)[1] for line in lines))
    assert seen[0] == seen[1], seen
    assert seen[0]["rename"] >= 1, seen
