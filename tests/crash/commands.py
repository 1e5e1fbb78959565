"""Scenes in which a user's command is watched: submitting, and what is done to waiting jobs."""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace

from spoolq import spool
from tests.crash.check import Expected, Verdict
from tests.crash.scenes import POLICY, Outcome, Scene, User, finish, outcome, roots, serve, submit
from tests.crash.stage import Stage
from tests.crash.tracer import Plan, Point

DONE, WAITING, HELD = 1, 2, 4
BEFORE = {number: Expected(("exit0",), b"hello\n") for number in (DONE, WAITING, 3, HELD)}
NEW = Expected(("exit0",), b"hello\n", told=False)


@dataclass(frozen=True)
class Command:
    """
    What is typed, and what it may lead to.

    Args:
        words: of the command; BASE stands for the directory of the case.
        job: the one that it is about, or 0.
        achieved: whether it has done its work, asked after it said so and before anything else happens.
        done, undone: how the job must end if the command succeeded, or did not.
        node: whether a node serves meanwhile.
        code: of success.
    """

    words: tuple[str, ...]
    job: int = 0
    achieved: Callable[[Stage], bool] = lambda _: True
    done: Expected = BEFORE[WAITING]
    undone: Expected = BEFORE[WAITING]
    node: bool = False
    code: int = 0


def _in(top: str, job_id: int) -> Callable[[Stage], bool]:
    return lambda stage: stage.entry(job_id)[0] == top


SUBMIT = ("-D", "/", "-J", "t", "--export", "none")
COMMANDS = {
    "sub": Command(("sub", *SUBMIT, "BASE/job.sh")),
    "lines": Command(("sub", *SUBMIT, "--each-line", "BASE/lines")),
    "run": Command(("run", "BASE/job.sh"), node=True),
    "hold": Command(("hold", str(WAITING)), WAITING, _in("held", WAITING)),
    "release": Command(("release", str(HELD)), HELD, _in("queue", HELD)),
    "kill": Command(
        ("kill", str(WAITING)),
        WAITING,
        _in("done", WAITING),
        done=Expected(("cancelled",), runs=0),
        undone=Expected(("cancelled", "exit0"), b"hello\n"),
    ),
    "edit": Command(
        ("edit", str(WAITING), "--priority", "10"),
        WAITING,
        lambda stage: stage.entry(WAITING)[1].rank == 490,
    ),
    "requeue": Command(
        ("requeue", str(DONE)),
        DONE,
        _in("queue", DONE),
        done=replace(BEFORE[DONE], runs=2),
        undone=replace(BEFORE[DONE], runs=2, file=False),  # it dies between setting the result aside and the commit
    ),
}


def prepare(stage: Stage) -> None:
    """One job has ended, two wait, one is held."""
    spool.initialise(stage.root, POLICY)
    submit(stage, "echo hello; finish 0")
    serve_all(stage, Verdict())
    submit(stage, "echo hello; finish 0")
    submit(stage, "echo hello; finish 0")
    submit(stage, "echo hello; finish 0", "--hold")
    with open(f"{stage.base}/lines", "w", encoding="ascii") as file:
        file.write('"$SPOOLQ_DIR/../job.sh"\n' * 3)


def serve_all(stage: Stage, verdict: Verdict) -> None:
    """A node until nothing is left to do."""
    pid = stage.daemon("--idle-exit", "0")
    stage.until(lambda: stage.dead(pid), "a node serves and ends")
    if stage.code(pid) != 0:
        verdict.add("unexpected", f"the node ended with {stage.code(pid)}")
    stage.until(lambda: not stage.children(), "all processes end")


class Onlooker(User):
    """A user who does nothing more."""

    def act(self) -> None:
        """Nothing."""

    def all_over(self) -> bool:
        """Nothing waits or runs."""
        entries = self.stage.entries()
        return not any(entries[top] for top in ("queue", "running", "reaping"))


def play(name: str) -> Callable[[Stage, Point | None], Outcome]:
    """The scene of one command."""
    command = COMMANDS[name]

    def act(stage: Stage, point: Point | None) -> Outcome:
        verdict, user = Verdict(), Onlooker(stage)
        node = 0
        if command.node:
            node = stage.daemon()
            stage.until(lambda: os.path.exists(f"{stage.root}/nodes/n1/node.json") and user.all_over(), "a node is up")
        words = stage.python(*(word.replace("BASE", stage.base) for word in command.words))
        pid = run_traced(stage, words, Plan(roots(stage), lambda _: name, point=point))
        code = stage.code(pid)
        judge_command(stage, command, code, verdict)
        expected = dict(BEFORE)
        if command.job:
            expected[command.job] = command.done if code == command.code else command.undone
        told = [int(line) for line in stage.log("traced.out").split() if line.isdigit()]
        if node:
            serve(stage, user, node, verdict, user.all_over)
            for at in stage.entries()["held"]:
                stage.command("release", str(at.id))
            node = serve(stage, user, node, verdict, user.all_over)
            finish(stage, user, node, verdict)
        else:
            for at in stage.entries()["held"]:
                stage.command("release", str(at.id))
            serve_all(stage, verdict)
        for at in stage.entries()["done"]:
            expected.setdefault(at.id, NEW)
        for job_id in told:
            expected[job_id] = replace(NEW, told=True)
        if code == command.code and not command.job and len(expected) == len(BEFORE):
            verdict.add("lost", "the command said that it had submitted")
        return outcome(stage, point, verdict, expected)

    return act


def run_traced(stage: Stage, words: list[str], plan: Plan) -> int:
    """Run a command under the eyes of a tracer; its pid, once it has ended."""
    with (
        open(os.devnull, "rb") as null,
        open(f"{stage.base}/traced.out", "wb") as out,
        open(f"{stage.base}/traced.err", "wb") as err,
    ):
        stub = stage.start(words, (null.fileno(), out.fileno(), err.fileno()))
    stage.trace(stub, plan)
    stage.until(lambda: stage.dead(stub.pid), f"{words[2:]} ends")
    return stub.pid


def judge_command(stage: Stage, command: Command, code: int, verdict: Verdict) -> None:
    """It was killed, or did what it says, or failed with clear words."""
    said = stage.log("traced.err").splitlines()
    if code == -signal.SIGKILL:
        return
    if any(not line.startswith("spoolq: ") for line in said):
        verdict.add("unexpected", f"{command.words[0]} said {said}")
    if code != command.code and (code not in (1, 2, 75, 78) or not said):
        verdict.add("unexpected", f"{command.words[0]} ended with {code} and said {said}")
    if code == command.code and not command.achieved(stage):
        verdict.add("unexpected", f"{command.words[0]} ended with {code}, but did not do its work")


SCENES = {name: Scene(name, prepare, play(name)) for name in COMMANDS}
