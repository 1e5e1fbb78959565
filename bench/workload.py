"""
Real work on real input: two nodes on one spool digest and compress every file of a tree.

    python3 bench/workload.py [TREE] [--spool-in DIR] [--most N] [--cpus N]

Every job is told apart three ways, and all must agree: its one entry in done/, its result.json, and
a line that it appended itself, as its first act, to a file outside the spool, which cannot be wrong
about how often it ran. Its output must equal that of the same line run serially without spoolq.
Exits 0 if all that holds, 1 and the differences if not.
"""

import argparse
import hashlib
import os
import shlex
import subprocess
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kit import Running, until
from place import Scratch, filesystem_of
from spoolq_peer import Spoolq, instant

NODES = ("north", "south")
ORDER = "sha256sum -- {file} && gzip -9 -n -c -- {file} >{out}"


@dataclass(frozen=True, slots=True)
class Work:
    """n files, and where each result of one way of running goes: line k makes `out`/k.gz."""

    files: Sequence[str]
    out: str

    def line(self, k: int) -> str:
        """Return the shell line for file k."""
        return ORDER.format(file=shlex.quote(self.files[k]), out=shlex.quote(f"{self.out}/{k}.gz"))

    def compressed(self) -> list[str]:
        """Return the digest of every compressed file, or what is wrong with it."""
        return [_digest(f"{self.out}/{k}.gz") for k in range(len(self.files))]


def main() -> int:
    """Run the command line: 0 if everything agrees."""
    options = arguments()
    files = list(_files(options.tree))[: options.most]
    scratch = Scratch(options.spool_in)
    peer = Spoolq(scratch)
    if reason := peer.missing():
        print(f"workload: {reason}", file=sys.stderr)
        return 1
    try:
        return run(peer, files, options)
    finally:
        peer.down()
        peer.home.family.remove()
        scratch.remove()


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "tree", nargs="?", default=sysconfig.get_path("stdlib"), help="files to work on (default: Python's own library)"
    )
    parser.add_argument(
        "--spool-in", default="/dev/shm", help="where spool and outputs are made (default: %(default)s)"
    )
    parser.add_argument("--most", type=int, default=3000, help="at most this many files (default: %(default)s)")
    parser.add_argument("--cpus", type=int, default=1, help="cpus of each of the two nodes (default: %(default)s)")
    return parser.parse_args()


def run(peer: Spoolq, files: Sequence[str], options: argparse.Namespace) -> int:
    """Do the work twice, compare, report: 0 if everything agrees."""
    peer.up(options.cpus, held=True)
    base = peer.home.dir
    serial, spooled = (Work(files, f"{base}/{way}") for way in ("serial", "spooled"))
    for work in (serial, spooled):
        os.makedirs(work.out)
    size_mib = sum(os.path.getsize(path) for path in files) / 2**20
    print(f"{len(files):,} files, {size_mib:.0f} MiB, two nodes of {options.cpus} cpus, on {filesystem_of(base)}")

    start = time.perf_counter()
    printed = [_serially(serial.line(k)) for k in range(len(files))]
    serial_s = time.perf_counter() - start
    truth = f"{base}/truth"
    start = time.perf_counter()
    ids = _submit(peer, spooled, truth)
    submit_s = time.perf_counter() - start
    start, nodes = time.perf_counter(), _nodes(peer)
    until(lambda: len(peer.done()) >= len(files), 60 + len(files), "workload: jobs not done", 0.1)
    spooled_s = time.perf_counter() - start
    for node in nodes:
        node.end(120)

    wrong = [*_misran(peer, ids, truth), *_differs(peer, ids, printed, serial, spooled)]
    _tell(peer, len(files), serial_s, submit_s, spooled_s)
    for text in wrong[:20]:
        print(f"DIFFERENCE: {text}")
    print(f"{len(wrong)} differences" if wrong else "every job ran once, every digest agrees")
    return 1 if wrong else 0


def _files(tree: str) -> Iterator[str]:
    """Yield the readable regular files below a directory, in an order that is the same every time."""
    for directory, below, names in os.walk(tree):
        below.sort()
        for name in sorted(names):
            path = f"{directory}/{name}"
            if os.path.isfile(path) and not os.path.islink(path) and os.access(path, os.R_OK) and "\n" not in path:
                yield path


def _serially(line: str) -> str:
    """Run one line without spoolq: what it printed."""
    return subprocess.run(["/bin/sh", "-c", line], capture_output=True, text=True, check=True).stdout


def _submit(peer: Spoolq, work: Work, truth: str) -> list[int]:
    """Submit one job a file: their ids, in the files' order."""
    lines = f"{peer.home.dir}/lines"
    # One write of one short line with O_APPEND: never mixed with another job's.
    texts = [f'echo "$SPOOLQ_JOB_ID {k}" >>{truth}; {work.line(k)}\n' for k in range(len(work.files))]
    with open(lines, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.writelines(texts)
    with open(truth, "x", encoding="ascii"):
        pass
    argv = shlex.split(peer.shell("sub", "-c", "1", "-m", "200", "--each-line", lines))
    said = subprocess.run(argv, env=peer.home.env, cwd=peer.home.dir, capture_output=True, text=True, check=True).stdout
    return [job for text in said.split() for job in _ids(text)]


def _ids(text: str) -> range:
    """Read `7` or `7-12`."""
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def _nodes(peer: Spoolq) -> list[Running]:
    """Start both nodes; each ends by itself once nothing waits or runs."""
    return [peer.home.background(f"exec {peer.node(idle_exit_s=2, name=name)}") for name in NODES]


def _misran(peer: Spoolq, ids: Sequence[int], truth: str) -> Iterator[str]:
    """Yield what does not show exactly one run of every job, in its first attempt, ending well."""
    entries: dict[int, list[str]] = {job: [] for job in ids}
    for name in peer.done():
        entries.setdefault(int(name.split(".")[1]), []).append(name)
    for job, names in entries.items():
        fields = names[0].split("~") if names else [""]
        if len(names) != 1 or fields[0].split(".")[3] != "1" or not f"{fields[1]},".startswith("exit0,"):
            yield f"job {job}: done/ has {names or 'nothing'}"
    with open(truth, encoding="ascii") as file:
        runs = Counter(line.strip() for line in file)
    expected = Counter(f"{job} {k}" for k, job in enumerate(ids))
    for line in sorted((expected - runs) + (runs - expected)):
        yield f"job and file {line}: ran {runs[line]} times by its own account, expected {expected[line]}"


def _differs(peer: Spoolq, ids: Sequence[int], printed: Sequence[str], serial: Work, spooled: Work) -> Iterator[str]:
    """Yield what differs between the two ways of running, and results that do not say a plain success."""
    expected, made = serial.compressed(), spooled.compressed()
    for k, job in enumerate(ids):
        if _text(f"{peer.spool}/jobs/{job // 1000}/{job}/stdout") != printed[k]:
            yield f"job {job}: its stdout is not what {serial.files[k]} gives serially"
        if made[k] != expected[k]:
            yield f"job {job}: compressed {serial.files[k]} differs: {made[k]}, serially {expected[k]}"
    results = {int(result["id"]): result for result in peer.results()}
    for job in ids:
        result = results.get(job, {})
        told = [str(result.get(key)) for key in ("state", "exit_code", "attempt")]
        if told != ["COMPLETED", "0", "1"]:
            yield f"job {job}: result.json has state, exit code, attempt {told}"


def _tell(peer: Spoolq, n: int, serial_s: float, submit_s: float, spooled_s: float) -> None:
    """Print rates and each node's share."""
    results = list(peer.results())
    shares = Counter(str(result["node"]) for result in results)
    inner_s = max(instant(result["ended"]) for result in results) - min(
        instant(result["started"]) for result in results
    )
    print(f"serially without spoolq: {serial_s:.1f} s, {n / serial_s:.0f} jobs/s")
    print(f"submitted in {submit_s:.2f} s; run in {spooled_s:.1f} s with the nodes' start, {n / spooled_s:.0f} jobs/s;")
    print(f"from first start to last end {inner_s:.1f} s, {n / inner_s:.0f} jobs/s")
    for node, jobs in sorted(shares.items()):
        print(f"node {node}: {jobs:,} jobs, {jobs / n:.0%}")


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError as error:
        return f"unreadable: {error}"


def _digest(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return f"unreadable: {error.strerror}"


if __name__ == "__main__":
    sys.exit(main())
