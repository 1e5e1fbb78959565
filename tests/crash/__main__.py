"""
Kill and fail real processes at every system call on spool and journal, recover, check: `python -m tests.crash`.

Prints a table and the four numbers; exits 1 at any violation, with the command that repeats that one point.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tests.crash import commands, scenes, tracer
from tests.crash import stage as stage_room
from tests.crash.check import VIOLATIONS
from tests.crash.scenes import Scene
from tests.crash.stage import Stage
from tests.crash.tracer import Call, Point

SCENES: dict[str, Scene] = scenes.SCENES | commands.SCENES
ROLES: dict[str, str] = scenes.ROLES | {name: name for name in commands.SCENES}  # role -> scene
GROUPS = {
    "daemon": ("daemon", "successor"),
    "runner": ("founder", "runner", "heir"),
    "watcher": ("watcher", "keeper"),
    "submitter": ("sub", "lines", "run"),
    "user": ("hold", "release", "kill", "edit", "requeue"),
}
FAULTS = (*tracer.DEATHS, *tracer.ERRORS)
PLACES = {"tmpfs": "/dev/shm", "disk": "/var/tmp"}


@dataclass
class Result:
    """Of one case."""

    point: Point | None
    reached: bool = False
    found: list[tuple[str, str]] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    seconds: float = 0.0


def play(scene: Scene, point: Point | None, base: str, template: str, *, execute: bool) -> Result:
    """One case, in this process; what is left of it is killed."""
    began, result = time.monotonic(), Result(point)
    stage = Stage(base, template, execute=execute)
    try:
        outcome = scene.play(stage, point)
        result.reached, result.calls = bool(outcome.trace.hit), outcome.trace.calls
        result.found = outcome.verdict.found
    except Exception as problem:  # of the case, so that the others go on
        text = "".join(traceback.format_exception(problem)[-2:])
        with contextlib.suppress(Exception):
            text += stage.tell()
        result.reached = True
        result.found.append(("unexpected", text))
    left = stage.close()
    if left and not result.found:
        result.found.append(("unexpected", f"left behind: {left}"))
    result.seconds = time.monotonic() - began
    return result


def fork_case(scene: Scene, point: Point | None, base: str, template: str, *, execute: bool) -> int:
    """The same in a process of its own, which writes what it found to `base.json`, and ends with this one."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            stage_room.end_with_parent()
            stage_room.alone()
            result = play(scene, point, base, template, execute=execute)
            calls = [(c.role, c.site, c.number) for c in result.calls]
            with open(f"{base}.json", "w", encoding="utf-8") as file:
                json.dump([result.reached, result.found, calls, result.seconds], file)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


def read_case(point: Point | None, base: str) -> Result:
    """What it wrote."""
    try:
        with open(f"{base}.json", encoding="utf-8") as file:
            reached, found, calls, seconds = json.load(file)
    except OSError:
        return Result(point, True, [("unexpected", "the case itself failed")])
    os.unlink(f"{base}.json")
    return Result(point, reached, [(kind, text) for kind, text in found], [Call(*call) for call in calls], seconds)


class Rig:
    """
    All cases of some scenes, several at a time.

    Args:
        keep: whether directories of cases with violations stay.
    """

    def __init__(self, top: str, *, jobs: int, keep: bool = False, execute: bool = False) -> None:
        self.top, self.jobs, self.keep, self.execute, self.number = top, jobs, keep, execute, 0
        self.until = float("inf")
        self.templates: dict[str, str] = {}

    def template(self, scene: Scene) -> str:
        """Made once; in a process of its own, since it takes in orphans."""
        key = scene.prepare.__module__
        if key not in self.templates:
            path = self.templates[key] = f"{self.top}/{key.rpartition('.')[2]}"
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    os.mkdir(path, 0o700)
                    stage = Stage(path)
                    scene.prepare(stage)
                    shutil.rmtree(stage.state)
                    os.unlink(f"{path}/commands.log")
                    code = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(code)
            if os.waitpid(pid, 0)[1]:
                raise SystemExit(f"scene {scene.name} could not be prepared")
        return self.templates[key]

    def run(self, cases: Sequence[tuple[Scene, Point | None]]) -> Iterator[Result]:
        """Results in the order in which they come; none is begun after the attribute `until` (time.monotonic)."""
        todo, running = list(reversed(cases)), dict[int, tuple[Point | None, str]]()
        while todo or running:
            while todo and len(running) < self.jobs and time.monotonic() < self.until:
                scene, point = todo.pop()
                template, base = self.template(scene), f"{self.top}/{self.number}"
                self.number += 1
                os.mkdir(base, 0o700)
                running[fork_case(scene, point, base, template, execute=self.execute)] = (point, base)
            if not running:
                return
            pid, _ = os.waitpid(-1, 0)  # PEP 475: also after a signal
            if pid in running:
                point, base = running.pop(pid)
                result = read_case(point, base)
                if not (result.found and self.keep):
                    shutil.rmtree(base, ignore_errors=True)
                yield result

    def calls(self, names: Sequence[str]) -> list[Call]:
        """All calls of the scenes, each played once without a fault."""
        found: list[Call] = []
        for result in self.run([(SCENES[name], None) for name in names]):
            if result.found:
                raise SystemExit(f"without any fault: {result.found}")
            found += result.calls
        return found


def sample(calls: Sequence[Call], seed: int, *, most: int = 0) -> list[Point]:
    """
    Each kind of call once, with a fault and an occurrence that the seed chooses.

    Args:
        most: so many of them, also chosen by the seed, those that change something three times as likely as others.
    """
    kinds: dict[str, list[Call]] = defaultdict(list)
    for call in calls:
        kinds[call.kind].append(call)
    dice, points = random.Random(seed), []
    for kind in sorted(kinds):
        pairs = [Point(call, fault) for call in kinds[kind] for fault in call.faults()]
        points.append(dice.choice(pairs))
    points.sort(key=lambda point: dice.random() * (3 if point.call.name in tracer.LOOKS else 1))
    return points[: most or None]


def every(calls: Sequence[Call], seed: int = 0) -> list[Point]:
    """
    All points, so ordered that a run that is cut short has seen the most.

    First a death and an error at each kind of call, then what is left at calls that change something, then the rest:
    a death before a call that only looks leaves what a death after the last change leaves.
    """
    dice = random.Random(seed)
    points = [Point(call, fault) for call in calls for fault in call.faults()]
    dice.shuffle(points)
    seen: set[tuple[str, bool]] = set()
    ranks = []
    for point in points:
        death, looks = point.fault in tracer.DEATHS, point.call.name in tracer.LOOKS
        kind = (point.call.kind, death)
        ranks.append((kind in seen or (death and looks), looks, death and looks))
        seen.add(kind)
    order = sorted(range(len(points)), key=lambda number: ranks[number])
    return [points[number] for number in order]


class Tally:
    """What was explored and found."""

    def __init__(self) -> None:
        self.explored: Counter[tuple[str, str]] = Counter()
        self.missed = self.recovered = 0
        self.violations: list[Result] = []
        self.slowest = Result(None)

    def add(self, result: Result) -> None:
        """One result of a point."""
        assert result.point is not None
        if result.found:
            self.violations.append(result)
        if not result.reached:
            self.missed += 1
            return
        self.explored[result.point.call.role, result.point.fault] += 1
        self.recovered += not result.found
        self.slowest = max(self.slowest, result, key=lambda r: r.seconds)

    def table(self) -> str:
        """By process and fault, and the four numbers."""
        roles = [role for role in ROLES if any(key[0] == role for key in self.explored)]
        lines = [f"{'process':<10}{'points':>8}" + "".join(f"{fault:>8}" for fault in FAULTS)]
        for role in (*roles, "all"):
            row = [
                sum(n for (r, f), n in self.explored.items() if role in (r, "all") and f == fault) for fault in FAULTS
            ]
            lines.append(f"{role:<10}{sum(row):>8}" + "".join(f"{number:>8}" for number in row))
        kinds = Counter(kind for result in self.violations for kind in {kind for kind, _ in result.found})
        numbers = "  ".join(f"{kind} {kinds[kind]}" for kind in VIOLATIONS)
        lines.append(f"{numbers}  recovered {self.recovered}   (planned and not reached: {self.missed})")
        return "\n".join(lines)

    def report(self, on: str) -> str:
        """Each violation with the way to see it again."""
        lines = []
        for result in self.violations:
            for kind, text in result.found:
                lines.append(f"{kind}: {result.point}: {text}")
            lines.append(f"  python -m tests.crash --on {on} --point '{result.point}'\n")
        return "\n".join(lines)


def read_log(path: str | None) -> dict[str, Result]:
    """What was explored earlier, by point."""
    found: dict[str, Result] = {}
    if path and os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            for line in file:
                text, reached, violations, seconds = json.loads(line)
                found[text] = Result(Point.parse(text), reached, [(kind, what) for kind, what in violations])
                found[text].seconds = seconds
    return found


def append_log(path: str | None, result: Result) -> None:
    """One line a result."""
    if path:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps([str(result.point), result.reached, result.found, result.seconds]) + "\n")


@contextlib.contextmanager
def directory(on: str, *, keep: bool = False) -> Iterator[str]:
    """A short one, on a file system of this kind."""
    path = tempfile.mkdtemp(prefix="sqc-", dir=PLACES.get(on, on))
    try:
        yield path
    finally:
        if keep and os.listdir(path):
            print(f"kept in {path}")
        else:
            shutil.rmtree(path, ignore_errors=True)


def chosen(who: Sequence[str]) -> list[str]:
    """Roles of the words given, or all."""
    roles = [role for word in who for role in GROUPS.get(word, (word,))] or list(ROLES)
    for role in roles:
        if role not in ROLES:
            raise SystemExit(f"--who {role}: not one of {', '.join((*GROUPS, *ROLES))}")
    return roles


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=(__doc__ or "").strip())
    parser.add_argument(
        "--who", action="append", default=[], help=f"of {', '.join((*GROUPS, *ROLES))}; may be repeated"
    )
    parser.add_argument("--quick", action="store_true", help="each kind of call once, with a fault chosen by --seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--on", default="tmpfs", help="tmpfs, disk, or a directory")
    parser.add_argument("--point", action="append", default=[], help="this one only, as printed; may be repeated")
    parser.add_argument("--part", default="1/1", help="k/n: every n-th point from the k-th, to split a run")
    parser.add_argument("--faults", default=",".join(FAULTS), help="only these")
    parser.add_argument("--log", help="a file of what was explored; what is in it already is not explored again")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no case after this time")
    parser.add_argument("--list", action="store_true", help="print the points, play none")
    parser.add_argument("--exec", action="store_true", help="start each program from nothing, not from a fork: slower")
    parser.add_argument("--keep", action="store_true", help="leave the directories of violations")
    parser.add_argument("-j", "--jobs", type=int, default=stage_room.side_by_side(), help="cases at a time")
    return parser.parse_args()


def main() -> int:
    """The command."""
    given = arguments()
    if why := tracer.unavailable():
        print(f"nothing was explored: {why}", file=sys.stderr)
        return 2
    roles = chosen(given.who)
    began, tally = time.monotonic(), Tally()
    with directory(given.on, keep=given.keep) as top:
        rig = Rig(top, jobs=given.jobs, keep=given.keep, execute=given.exec)
        if given.point:
            points = [Point.parse(text) for text in given.point]
        else:
            calls = [c for c in rig.calls(list(dict.fromkeys(ROLES[role] for role in roles))) if c.role in roles]
            points = sample(calls, given.seed) if given.quick else every(calls, given.seed)
            first, _, step = given.part.partition("/")
            points = [point for point in points if point.fault in given.faults.split(",")][int(first) - 1 :: int(step)]
            print(f"{len(calls)} calls, {len({c.kind for c in calls})} kinds, {len(points)} points", flush=True)
        earlier = read_log(given.log)
        points = [point for point in points if str(point) not in earlier]
        for result in earlier.values():
            tally.add(result)
        if given.list:
            print("\n".join(str(point) for point in points))
            return 0
        cases = [(SCENES[ROLES[point.call.role]], point) for point in points]
        rig.until = began + given.minutes * 60
        signal.signal(signal.SIGINT, lambda *_: setattr(rig, "until", 0.0))  # those that run come to their end
        missing = len(points)
        for number, result in enumerate(rig.run(cases), 1):
            tally.add(result)
            append_log(given.log, result)
            if result.found:
                print(f"violation at {result.point}: {result.found[0][1][:300]}", flush=True)
            if number % 200 == 0:
                print(f"{number} of {len(points)}, {time.monotonic() - began:.0f} s", flush=True)
            missing = len(points) - number
        for path in rig.templates.values():
            shutil.rmtree(path, ignore_errors=True)
    print(tally.report(given.on), end="")
    print(tally.table())
    print(
        f"{time.monotonic() - began:.0f} s on {given.on}; slowest {tally.slowest.seconds:.1f} s at {tally.slowest.point}"
    )
    if missing:
        print(f"{missing} points were left out for want of time")
    return 1 if tally.violations else 0


if __name__ == "__main__":
    sys.exit(main())
