"""The command: every scheduler on one workload, as a Markdown table."""

import argparse
import statistics
import sys
import time
from collections.abc import Callable

from bench.schedule import workload
from bench.schedule.central import Central
from bench.schedule.nodes import Cluster
from bench.schedule.outcome import Outcome, outcome
from bench.schedule.workload import Job

HELP = """\
The workload is a file in the Standard Workload Format. lublin_256.swf, the Lublin-Feitelson model with 10,000 jobs, is in
the repository of RLScheduler (github.com/DIR-LAB/deep-batch-scheduler, data/); recorded ones are in the Parallel Workloads
Archive (www.cs.huji.ac.il/labs/parallel/workload). Mapped for a scheduler without MPI: a job of p processors
asks for ceil(p / NODES) cpus of one node. That leaves a light load, so the same jobs are also submitted faster.
"""

LIMITS: dict[str, float | None] = {"1x": 1.0, "2x": 2.0, "unknown": None}
Rule = Callable[[list[Job], int, int, int], Outcome]


def fcfs(jobs: list[Job], nodes: int, cpus: int, _seed: int) -> Outcome:
    """First come, first served."""
    return outcome(Central(jobs, nodes, cpus, easy=False).run(), nodes, cpus)


def easy(jobs: list[Job], nodes: int, cpus: int, _seed: int) -> Outcome:
    """EASY backfill."""
    return outcome(Central(jobs, nodes, cpus, easy=True).run(), nodes, cpus)


def alone(jobs: list[Job], nodes: int, cpus: int, seed: int) -> Outcome:
    """The nodes, by `schedule.admit` only."""
    cluster = Cluster(jobs, nodes, cpus, seed, reserve=False)
    return outcome(cluster.run(), nodes, cpus, cluster.lost)


def spoolq(jobs: list[Job], nodes: int, cpus: int, seed: int) -> Outcome:
    """The nodes, by all rules."""
    cluster = Cluster(jobs, nodes, cpus, seed, reserve=True)
    return outcome(cluster.run(), nodes, cpus, cluster.lost)


RULES: dict[str, Rule] = {
    "FCFS, central": fcfs,
    "EASY, central": easy,
    "spoolq without reservations": alone,
    "spoolq": spoolq,
}


def show(figures: list[float], form: str) -> str:
    """The median, and the spread where there is one."""
    low, middle, high = (format(f, form) for f in (min(figures), statistics.median(figures), max(figures)))
    return middle if low == high else f"{middle} ({low}–{high})"


def table(jobs: list[Job], args: argparse.Namespace) -> None:
    """Print the rows of one load."""
    print(
        "| limits | scheduler | mean bounded slowdown | its mean to EASY's | mean wait, s | longest, s | wide jobs' wait, s ",
        end="",
    )
    print("| utilisation | packing | lost claims a job |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for limit in args.limits.split(","):
        given = workload.limited(jobs, LIMITS[limit])
        shaken = [workload.shaken(given, seed) for seed in range(args.seeds)]
        base = 0.0
        for name, rule in RULES.items():
            if args.only and args.only not in name:
                continue
            began = time.monotonic()
            found = [rule(given, args.nodes, args.cpus, seed) for seed, given in enumerate(shaken)]
            mean = statistics.fmean(one.slowdown for one in found)
            if rule is easy:
                base = mean
            ratio = f"{mean / base:.3f}" if base else ""
            cells = [
                show([one.slowdown for one in found], ".3f"),
                ratio,
                show([one.wait for one in found], ".1f"),
                show([one.longest for one in found], ".0f"),
                show([one.wide_wait for one in found], ".0f"),
                show([one.used for one in found], ".4f"),
                show([one.packing for one in found], ".3f"),
                "" if "central" in name else show([one.lost for one in found], ".3f"),
            ]
            print(f"| {limit} | {name} | " + " | ".join(cells) + " |", flush=True)
            print(f"{name}, {limit}: {time.monotonic() - began:.0f} s", file=sys.stderr)


def main() -> None:
    """Read, run, print."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.schedule", description=__doc__, epilog=HELP, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("workload", help="a file in the Standard Workload Format")
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--cpus", type=int, default=32, help="of each node")
    parser.add_argument("--jobs", type=int, default=10_000, help="the first so many of the file")
    parser.add_argument("--loads", default="given,0.8", help="`given`, or the share of all cpus that is asked for")
    parser.add_argument("--limits", default="1x,2x,unknown", help="time limits, in run times")
    parser.add_argument(
        "--seeds",
        type=int,
        default=10,
        help="so many runs, with other phases of the nodes and\nthe submissions shaken by up to a minute; the median and the spread are shown",
    )
    parser.add_argument("--only", default="", help="only schedulers with this in their name")
    args = parser.parse_args()
    jobs = workload.read(args.workload, args.nodes, args.cpus, args.jobs)
    if not jobs:
        sys.exit(f"no jobs in {args.workload}")
    for wanted in args.loads.split(","):
        given = jobs if wanted == "given" else workload.at_load(jobs, args.nodes * args.cpus, float(wanted))
        offered = workload.load(given, args.nodes * args.cpus)
        note = " (as in the file)" if wanted == "given" else ""
        print(f"\n{len(given)} jobs on {args.nodes} nodes of {args.cpus} cpus, offered load {offered:.2f}{note}\n")
        table(given, args)


if __name__ == "__main__":
    main()
