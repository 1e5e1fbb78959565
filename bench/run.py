"""
Measure spoolq and its peers in one run: python3 bench/run.py [measure...] [--peers ...] [--quick].

A full run writes RESULTS.md and results.jsonl beside this file. A part of one, or a quick one,
prints its tables and leaves those files alone unless told `--write`: figures of two runs must not
stand in one table.
"""

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

import measures
from calls import calls
from kit import Stats, floor, said
from measures import ALL, Bench, Record
from place import Scratch, filesystem_of
from report import markdown
from spoolq_peer import CHECKOUT, found

HERE = os.path.dirname(os.path.abspath(__file__))
MEASURES: Mapping[str, Callable[[Bench], list[Record]]] = {
    "submit": measures.submit,
    "throughput": measures.throughput,
    "latency": measures.latency,
    "idle": measures.idle,
    "running": measures.running,
    "calls": calls,
}


def main() -> int:
    """Run the command line: 0 if every measure that was asked for was taken, else 1."""
    options = arguments()
    media = {"tmpfs": Scratch(options.tmpfs), "disk": Scratch(options.disk)}
    bench = Bench(peers=options.peers, media=media, quick=options.quick)
    absent(bench)
    records: list[Record] = []
    began = time.gmtime()
    try:
        for name in options.measures:
            print(f"{name}:", file=sys.stderr, flush=True)
            with said(f"{name} in all"):
                records += MEASURES[name](bench)
        facts = conditions(bench, began) | {f"**{name} failed**": why for name, why in bench.failures.items()}
    finally:
        for family in bench.families:
            family.remove()
        for scratch in media.values():
            scratch.remove()
    text = markdown(records, facts, {name: command(name, options) for name in MEASURES})
    publish(text, records, write=options.write or (not options.quick and set(options.measures) == set(MEASURES)))
    return 1 if bench.failures else 0


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measures", nargs="*", metavar="measure", help=f"of {', '.join(MEASURES)} (default: all)")
    parser.add_argument("--peers", type=lambda text: text.split(","), default=list(ALL), help=f"of {','.join(ALL)}")
    parser.add_argument("--quick", action="store_true", help="small sizes, one or two repetitions: under two minutes")
    parser.add_argument("--tmpfs", default="/dev/shm", help="where scratch space in memory is (default: %(default)s)")
    parser.add_argument("--disk", default="/var/tmp", help="where scratch space on disk is (default: %(default)s)")
    parser.add_argument("--write", action="store_true", help="write RESULTS.md even from a part or a quick run")
    options = parser.parse_args()
    options.measures = options.measures or list(MEASURES)
    for wrong in [name for name in options.measures if name not in MEASURES]:
        parser.error(f"no measure `{wrong}` (there are {', '.join(MEASURES)})")
    for wrong in [name for name in options.peers if name not in ALL]:
        parser.error(f"no peer `{wrong}` (there are {', '.join(ALL)})")
    return options


def absent(bench: Bench) -> None:
    """Find out who cannot be measured here, and say so loudly."""
    for name in bench.peers:
        peer = bench.make(name)
        if reason := peer.missing():
            bench.absent[name] = reason
            print(f"bench: SKIPPED {name}: {reason}", file=sys.stderr)


def conditions(bench: Bench, began: time.struct_time) -> dict[str, str]:
    """Describe the machine and the run, without a word that would tell whose machine it is."""
    with open("/proc/meminfo", encoding="ascii") as file:
        total_kib = int(file.readline().split()[1])
    bare = floor()
    media = [f"{label} = {filesystem_of(scratch.root)}" for label, scratch in bench.media.items()]
    kernel = f"Linux {platform.release().split('-')[0]} {platform.machine()}"
    facts = {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", began),
        "machine": f"{os.cpu_count()} cores, {total_kib / 2**20:.0f} GiB, {kernel}",
        "Python": platform.python_version(),
        "spoolq": f"{revision()}, run as {how()}",
        "file systems": ", ".join(media),
        "CPU counted by": " and ".join(sorted({family.accounting for family in bench.families})),
        "floor at the end": f"{bare.wall_s * 1e6:.0f} µs wall, {bare.cpu_s * 1e6:.0f} µs CPU for one bare spawn",
        "load at the end": f"{os.getloadavg()[0]:.1f} over one minute, the run's own included",
    }
    return facts | {f"**skipped {name}**": reason for name, reason in bench.absent.items()}


def revision() -> str:
    """Name the commit that was measured, and whether the tree differs from it."""
    asked = subprocess.run(
        ["git", "-C", CHECKOUT, "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return f"commit {asked.stdout.strip()}" if asked.stdout.strip() else "not committed yet"


def how() -> str:
    """Say how spoolq is run, without its path."""
    if os.environ.get("SPOOLQ"):
        return "$SPOOLQ"
    return "the installed command" if len(found()[0]) == 1 else "python -m spoolq"


def command(measure: str, options: argparse.Namespace) -> str:
    """Give the command that repeats one table."""
    words = ["python3", "bench/run.py", measure]
    words += ["--quick"] if options.quick else []
    words += ["--peers", ",".join(options.peers)] if options.peers != list(ALL) else []
    return shlex.join(words)


def publish(text: str, records: Sequence[Record], *, write: bool) -> None:
    """Write the results whole or not at all, or print them."""
    if not write:
        print(text)
        return
    lines = "".join(json.dumps({key: _plain(value) for key, value in row.items()}) + "\n" for row in records)
    for name, contents in (("RESULTS.md", text), ("results.jsonl", lines)):
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=HERE, delete=False) as file:
            file.write(contents)
        os.chmod(file.name, 0o644)
        os.replace(file.name, f"{HERE}/{name}")
    print(f"wrote {len(records)} records", file=sys.stderr)


def _plain(value: str | float | Stats) -> str | float | dict[str, float]:
    return asdict(value) if isinstance(value, Stats) else value


if __name__ == "__main__":
    sys.exit(main())
