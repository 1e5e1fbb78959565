"""
What happens in a case: who is watched, what a user does meanwhile, and how each job must end.

A scene is played once without a fault, which gives its points, and then once for each point.
"""

import os
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from spoolq import spool
from tests.crash import tracer
from tests.crash.check import Expected, Verdict, check
from tests.crash.stage import NODE, UUID, HangsError, Stage, mark_script
from tests.crash.tracer import Plan, Point, Trace

POLICY = f'format = 1\nuuid = "{UUID}"\nname = "crash"\n\n[limits]\ngrace_s = 1\nsettle_s = 0\nmin_free_mb = 1\n'
MUCH = b"0123456789abcde\n" * 512
PRINT_MUCH = "i=0; while [ $i -lt 512 ]; do echo 0123456789abcde; i=$((i+1)); done; echo note >&2; finish 0"

# (options, what it does, how it ends); the ids are 1, 2, ... in this order
CANCELLED, PAUSED, HELD = 5, 6, 7
JOBS: tuple[tuple[tuple[str, ...], str, Expected], ...] = (
    ((), "echo hello; finish 0", Expected(("exit0",), b"hello\n")),
    ((), "finish 7", Expected(("exit7",))),
    ((), "kill -TERM $$; sleep 1000", Expected(("signal15",))),
    ((), PRINT_MUCH, Expected(("exit0",), MUCH)),
    ((), "exec sleep 1000", Expected(("cancelled",))),
    ((), 'while [ ! -e "$base/go" ]; do sleep 0.02; done; echo on; finish 0', Expected(("exit0",), b"on\n")),
    (("--hold",), "echo held; finish 0", Expected(("exit0",), b"held\n")),
    (("--no-requeue",), "echo once; finish 0", Expected(("exit0",), b"once\n")),
    (("--requeue",), "echo often; finish 4", Expected(("exit4",), b"often\n")),
)
STOP_S = 3.0  # that a family may take to end before a daemon is sent after it; after the last it has all the time
_OUTPUT = re.compile(r"S/jobs/0/(\d+)/std(?:out|err)$")
_DROPPED_FILE = re.compile(r"(?:openat|read) S/(?:drop|nodes/n1/admit)/[^ ]*nightly.sh$")
DROPPED = Expected(("exit3",), b"dropped\n")


@dataclass
class Outcome:
    """What came of one case."""

    trace: Trace
    verdict: Verdict
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Scene:
    """
    One way in which things go.

    Args:
        prepare: fills the template.
        play: runs one case.
    """

    name: str
    prepare: Callable[[Stage], None]
    play: Callable[[Stage, Point | None], Outcome]


def roots(stage: Stage) -> dict[str, str]:
    """What a point may be about."""
    return {"S": stage.root, "L": stage.node_state}


# --- a node and its processes


def prepare_node(stage: Stage) -> None:
    """Jobs of all kinds wait, one file was dropped."""
    spool.initialise(stage.root, POLICY)
    for options, body, _ in JOBS:
        submit(stage, body, *options)
    with open(f"{stage.root}/drop/nightly.sh", "w", encoding="ascii") as file:
        file.write(mark_script("echo dropped; finish 3") + "#SPOOLQ end\n")


def submit(stage: Stage, body: str, *options: str) -> None:
    """As a user does."""
    with open(f"{stage.base}/job.sh", "w", encoding="ascii") as file:
        file.write(mark_script(body))
    os.chmod(f"{stage.base}/job.sh", 0o755)
    if stage.command("sub", "-D", "/", "-J", "t", "--export", "none", *options, f"{stage.base}/job.sh"):
        raise AssertionError(stage.log("commands.log"))


class User:
    """Who cancels, holds and lets go, and looks until all has ended."""

    def __init__(self, stage: Stage, point: Point | None = None) -> None:
        self.stage, self.done = stage, set[str]()
        # a dropped file that this user may not read is refused, with a reason
        self.refusable = bool(point and point.fault == "EACCES" and _DROPPED_FILE.match(point.call.site))

    def once(self, what: str, *, when: bool) -> bool:
        """Give a command the first time that it makes sense."""
        if when and what not in self.done:
            self.done.add(what)
            self.stage.command(*what.split())
            return True
        return False

    def two_run(self) -> bool:
        """Whether the jobs that do not end by themselves have begun."""
        return self.stage.started(CANCELLED) and self.stage.started(PAUSED)

    def act(self) -> None:
        """Whatever can be done now."""
        stage = self.stage
        two = self.two_run()
        self.once(f"kill {CANCELLED}", when=two)
        self.once(f"release {HELD}", when=two)
        self.once(f"suspend {PAUSED}", when=two)
        if f"suspend {PAUSED}" in self.done and "go" not in self.done:
            top, entry = stage.entry(PAUSED)
            if top == "running" and entry.suspended:
                self.once(f"resume {PAUSED}", when=True)
            elif f"resume {PAUSED}" in self.done and top == "running":
                self.done.add("go")
                with open(f"{stage.base}/go", "w", encoding="ascii"):
                    pass

    def all_over(self) -> bool:
        """Every job is in done/ with its result, and the dropped file is one."""
        entries = self.stage.entries()
        if any(entries[top] for top in ("queue", "held", "running", "reaping")):
            return False
        if len(entries["done"]) <= len(JOBS) - (self.refusable and refused(self.stage)):
            return False
        results = [f"{self.stage.root}/jobs/0/{entry.id}/result.json" for entry in entries["done"]]
        return all(os.path.exists(path) for path in results) and not self.pending()

    def pending(self) -> bool:
        """Whether a request waits."""
        return any(name[0] != "." for name in os.listdir(f"{self.stage.root}/nodes/{NODE}/control"))


def serve(stage: Stage, user: User, pid: int, verdict: Verdict, until: Callable[[], bool]) -> int:
    """Let the user act until something is so; a daemon that ends is followed by another. Returns the daemon's pid."""
    while True:
        stage.until(lambda: user.act() or until() or stage.dead(pid), "all jobs end")
        if not stage.dead(pid):
            return pid
        judge_exit(stage, pid, verdict)
        if len(stage.daemons) > 4:
            raise HangsError(f"daemons die one after the other: {stage.log('node.log')[-500:]}")
        pid = stage.daemon()


def judge_exit(stage: Stage, pid: int, verdict: Verdict) -> None:
    """A daemon may be killed, or refuse with a line and a code."""
    code, said = stage.code(pid), stage.log("node.log").strip().splitlines()
    if code == -signal.SIGKILL:
        return
    last = said[-1] if said else ""
    if code not in (1, 75, 78) or not last.startswith("spoolq: "):
        verdict.add("unexpected", f"a daemon ended with {code} and said {last!r}")


def finish(stage: Stage, user: User, pid: int, verdict: Verdict) -> None:
    """Nothing is left to do: descriptors, the way out of all processes."""
    own = (pid, stage.member("spoolq-runner"))
    held: list[str] = []

    def none_open() -> bool:
        held[:] = [path for one in own if one for path in open_files(one) if path.startswith(f"{stage.root}/jobs/")]
        return not held

    try:
        stage.until(lambda: none_open() or stage.dead(pid), "outputs are closed")
    except HangsError:
        verdict.add("unexpected", f"descriptors stay open: {held}")
    os.kill(pid, signal.SIGTERM)
    stage.until(lambda: stage.dead(pid), "the daemon stops")
    if stage.code(pid) != 0:
        judge_exit(stage, pid, verdict)
    # the fault may have hit on the way out, of the daemon or of the family
    for stop_s in (STOP_S, STOP_S, float("inf")):
        with_patience = time.monotonic() + stop_s
        stage.until(lambda: not stage.children() or time.monotonic() > with_patience, "the family ends")  # noqa: B023
        if stage.code(pid) == 0 and not stage.children():
            break
        pid = stage.daemon("--idle-exit", "0")
        stage.until(lambda: stage.dead(pid), "the last daemon ends")  # noqa: B023
        if stage.code(pid) != 0:
            judge_exit(stage, pid, verdict)
    if stage.children():
        verdict.add("unexpected", f"processes stay: {[tracer.name_of(one) for one in stage.children()]}")


def open_files(pid: int) -> list[str]:
    """What a process has open."""
    found = []
    try:
        for number in os.listdir(f"/proc/{pid}/fd"):
            found += [os.readlink(f"/proc/{pid}/fd/{number}")]
    except OSError:
        pass
    return found


def outcome(
    stage: Stage, point: Point | None, verdict: Verdict, expected: dict[int, Expected], kills: int = 0
) -> Outcome:
    """The end of a case."""
    trace = stage.traced() if stage.tracer[0] else Trace()
    if point and point.fault in tracer.ERRORS and (about := _OUTPUT.search(point.call.site)):
        job_id = int(about[1])
        expected[job_id] = replace(expected[job_id], lost=True)
        if point.fault == "EACCES" and point.call.name == "openat":  # its user named a file that may not be written
            expected[job_id] = replace(expected[job_id], endings=(*expected[job_id].endings, "exit126"), opens=False)
    found = check(stage, expected, deaths=kills + 1)
    found.found[:0] = verdict.found
    return Outcome(trace, found)


def node_expected() -> dict[int, Expected]:
    """By id; the dropped file is the last."""
    return {number: job[2] for number, job in enumerate((*JOBS, ((), "", DROPPED)), 1)}


def refused(stage: Stage) -> bool:
    """Whether the dropped file lies in rejected/, with a reason."""
    found = os.listdir(f"{stage.root}/rejected")
    return len(found) == 2 and any(name.endswith(".why") for name in found)


def dropped_elsewhere(stage: Stage) -> dict[int, Expected]:
    """An admission that was interrupted leaves an unused number: the dropped file may have a later one."""
    expected = node_expected()
    if refused(stage):
        del expected[len(JOBS) + 1]
    ids = [entry.id for entry in stage.entries()["done"] if entry.id > len(JOBS)]
    if len(ids) == 1:
        expected.pop(len(JOBS) + 1, None)
        expected[ids[0]] = DROPPED
    return expected


def play_daemon(stage: Stage, point: Point | None) -> Outcome:
    """The daemon is watched, from its first call to its last."""
    verdict, user = Verdict(), User(stage, point)
    pid = stage.daemon(plan=Plan(roots(stage), lambda _: "daemon", talk=True, point=point))
    pid = serve(stage, user, pid, verdict, user.all_over)
    finish(stage, user, pid, verdict)
    return outcome(stage, point, verdict, dropped_elsewhere(stage))


def play_successor(stage: Stage, point: Point | None) -> Outcome:
    """The daemon that follows one that was killed while jobs ran, ended and waited is watched."""
    verdict, user = Verdict(), User(stage, point)
    first = stage.daemon()
    stage.until(lambda: user.two_run() or stage.dead(first), "two jobs run")
    os.kill(first, signal.SIGKILL)
    stage.until(lambda: stage.dead(first), "the first daemon dies")
    stage.command("suspend", str(PAUSED))  # requests that nobody has read yet
    user.done.add(f"suspend {PAUSED}")
    user.once(f"kill {CANCELLED}", when=True)
    pid = stage.daemon(plan=Plan(roots(stage), lambda _: "successor", talk=True, point=point))
    pid = serve(stage, user, pid, verdict, user.all_over)
    finish(stage, user, pid, verdict)
    return outcome(stage, point, verdict, dropped_elsewhere(stage), kills=1)


FAMILY = {"spoolq-runner": "runner", "spoolq-watch": "watcher"}
HEIRS = {"spoolq-runner": "heir", "spoolq-watch": "keeper"}


def play_family(stage: Stage, point: Point | None) -> Outcome:
    """The runner, its watchers and what they were before are watched."""
    verdict, user = Verdict(), User(stage, point)

    def role(pid: int) -> str:
        name = tracer.name_of(pid)
        return FAMILY.get(name, "founder" if name.startswith("python") else "")

    found_family(stage, Plan(roots(stage), role, talk=True, forks=True, point=point), point)
    pid = stage.daemon()
    pid = serve(stage, user, pid, verdict, user.all_over)
    finish(stage, user, pid, verdict)
    return outcome(stage, point, verdict, dropped_elsewhere(stage))


def found_family(stage: Stage, plan: Plan, point: Point | None) -> None:
    """Before any daemon; if it dies of the fault, the daemon will found another."""
    try:
        stage.family(plan)
    except HangsError:
        if point is None:
            raise


def play_heirs(stage: Stage, point: Point | None) -> Outcome:
    """The runner is killed while jobs run; what follows it, and the watchers that wait for its jobs, are watched."""
    verdict, user = Verdict(), User(stage, point)
    flag = f"{stage.base}/armed"
    plan = Plan(
        roots(stage),
        lambda pid: HEIRS.get(tracer.name_of(pid), ""),
        talk=True,
        forks=True,
        point=point,
        armed=lambda: os.path.exists(flag),
    )
    stage.family(plan)
    pid = stage.daemon()
    stage.until(lambda: user.two_run() or stage.dead(pid), "two jobs run")
    stage.until(stage.whole, "a runner and two watchers")  # until then the first by its name is not the runner
    runner = stage.member("spoolq-runner")
    with open(flag, "w", encoding="ascii"):
        pass
    os.kill(runner, signal.SIGKILL)
    pid = serve(stage, user, pid, verdict, user.all_over)
    finish(stage, user, pid, verdict)
    return outcome(stage, point, verdict, dropped_elsewhere(stage), kills=1)


SCENES = {
    scene.name: scene
    for scene in (
        Scene("daemon", prepare_node, play_daemon),
        Scene("successor", prepare_node, play_successor),
        Scene("family", prepare_node, play_family),
        Scene("heirs", prepare_node, play_heirs),
    )
}
ROLES = {"daemon": "daemon", "successor": "successor", "founder": "family", "runner": "family", "watcher": "family"}
ROLES |= {"heir": "heirs", "keeper": "heirs"}
