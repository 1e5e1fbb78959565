"""
The command: many seeds, one line a violation, and the shortest list of faults that still shows it.

    python -m tests.sim --seeds 1000000 --jobs 2
    python -m tests.sim --from 104 --seeds 1 --trace --shrink
"""

import argparse
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

from tests.sim import world
from tests.sim.check import Report, Violation, check
from tests.sim.entries import job_of
from tests.sim.faults import AT_TIME, ON_REQUEST, Fault


class Outcome(NamedTuple):
    """Of one seed."""

    seed: int
    violations: list[Violation]
    numbers: dict[str, int]
    injected: dict[str, int]
    node_hours: float
    actions: int


def outcome(seed: int, only: frozenset[str] = frozenset(), given: list[Fault] | None = None) -> Outcome:
    """Run and check one seed."""
    try:
        ran = world.run(seed, given, only)
    except Exception as error:
        raise RuntimeError(f"seed {seed}: {type(error).__name__}: {error}") from error
    report: Report = check(ran.trace)
    hours = next((event[2] for event in ran.trace if event[1] == "end of run"), 0.0)
    changes = sum(event[1] == "op" for event in ran.trace)
    return Outcome(seed, report.violations, report.numbers, dict(ran.plan.injected), hours, changes)


def shrink(seed: int, rule: str, only: frozenset[str] = frozenset()) -> list[Fault]:
    """Fewer faults with a violation of the same rule: halves are left out, then single ones."""
    faults = world.World(seed, None, only).plan.faults

    def still(some: list[Fault]) -> bool:
        try:
            return any(violation.rule == rule for violation in outcome(seed, given=some).violations)
        except RuntimeError:
            return False

    size = max(1, len(faults) // 2)
    while size:
        at = 0
        while at < len(faults):
            fewer = faults[:at] + faults[at + size :]
            if still(fewer):
                faults = fewer
            else:
                at += size
        size //= 2
    return faults


def about(trace: list[Any], unit: int | str) -> Iterator[str]:
    """The history of one job or array, and all faults."""
    job_id = job_of(unit)
    told = 0  # of a daemon that breaks at each start
    for event in trace:
        kind = event[1]
        mine = kind in ("ack", "start", "end", "depends") and job_of(event[3]) == job_id
        mine = mine or (kind in ("asks", "told") and job_of(event[4]) == job_id)
        mine = mine or (kind in ("final", "chunk") and job_of(event[2]) == job_id)
        mine = mine or (kind == "lines" and f"/{job_id}/" in event[2])
        if kind == "op" and job_id:
            paths = [f"{path}/" for path in event[4:6]]
            mine = any(f"/{job_id}/" in path or f".{job_id}." in path for path in paths)
        told += kind == "broken"
        if kind == "broken" and told > 1:
            continue
        if mine or kind in ("fault", "power", "calm", "drained", "stuck", "broken", "rollback", "daemon", "dropped"):
            yield f"    {event[0]:10.3f} " + " ".join(str(part)[:110].replace("\n", " ") for part in event[1:])


def explain(found: Outcome, only: frozenset[str], *, shrunk: bool) -> None:
    """One violation for people."""
    first = found.violations[0]
    print(f"seed {found.seed}: {first}")
    given = None
    if shrunk:
        given = shrink(found.seed, first.rule, only)
        print(f"  {len(given)} faults are enough:")
        for fault in given:
            print(f"    {fault}")
    ran = world.run(found.seed, given, only)
    again = [violation for violation in check(ran.trace).violations if violation.rule == first.rule]
    print(f"  history of job {(again or [first])[0].id}: {(again or [first])[0].text}")
    for line in about(ran.trace, (again or [first])[0].id):
        print(line)


def _work(item: tuple[int, frozenset[str]]) -> Outcome:
    return outcome(*item)


def main(argv: list[str]) -> int:
    """Run seeds; 1 if anything was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__.split("\n\n")[0])
    parser.add_argument("--seeds", type=int, default=1000, help="how many")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--trace", action="store_true", help="print the whole trace of each seed")
    parser.add_argument("--shrink", action="store_true", help="leave out faults that are not needed")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first violation")
    parser.add_argument("--only-faults", nargs="*", default=[], metavar="FAULT", choices=(*ON_REQUEST, *AT_TIME))
    given = parser.parse_args(argv)
    only = frozenset(given.only_faults)
    items = [(seed, only) for seed in range(given.first, given.first + given.seeds)]
    began, bad, done = time.monotonic(), 0, 0
    injected: Counter[str] = Counter()
    numbers: Counter[str] = Counter()
    hours = 0.0
    if given.trace:
        for item in items:
            for event in world.run(item[0], None, only).trace:
                print(f"{item[0]} {event}")
    with multiprocessing.Pool(given.jobs) if given.jobs > 1 and len(items) > 1 else _Alone() as pool:
        for found in pool.imap_unordered(_work, items, chunksize=min(50, max(1, len(items) // given.jobs // 4))):
            injected.update(found.injected)
            numbers.update(found.numbers)
            hours += found.node_hours
            done += 1
            if found.violations:
                bad += 1
                explain(found, only, shrunk=given.shrink)
                if not given.keep_going:
                    break
    took = time.monotonic() - began
    print(f"{done} seeds, {bad} with a violation, {hours:.1f} node-hours, {done / took:.1f} seeds/s")
    print("jobs: " + ", ".join(f"{name} {numbers[name]}" for name in numbers))
    print("faults: " + ", ".join(f"{what} {count}" for what, count in sorted(injected.items())))
    return 1 if bad else 0


class _Alone:
    """A pool of this process."""

    def __enter__(self) -> "_Alone":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def imap_unordered(self, work: Any, items: Any, chunksize: int = 1) -> Any:
        return map(work, items)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
