"""
Count file-system calls per job, so that what a network file system would be asked is known, not guessed.

Counts do not depend on how busy the machine is, so they are the figures to compare between two
commits. Each text is traced at two sizes; the slope between them is what one more job costs, free
of start-up. What /bin/true itself calls is known by tracing it alone, and is all outside the
peer's directory.
"""

import re
import shutil
from collections import Counter
from collections.abc import Iterator

from kit import said
from measures import Bench, Record
from peers import Peer

SMALL, LARGE = 20, 80
# By name, as strace's class %file leaves out what goes by descriptor.
FILE_CALLS = frozenset(
    """
    access chdir chmod chown close copy_file_range creat dup faccessat faccessat2 fallocate fchmod fchmodat fchown
    fchownat fcntl fdatasync flock fstat fsync ftruncate getdents getdents64 getxattr inotify_add_watch link linkat
    listxattr lseek lstat mkdir mkdirat newfstatat open openat pread64 pwrite64 read readlink readlinkat readv
    rename renameat renameat2 rmdir setxattr stat statfs statx symlink symlinkat sync_file_range truncate unlink
    unlinkat utimensat write writev
    """.split()  # noqa: SIM905 - a list of quoted words fills a page
)
LINE = re.compile(r"^\d+ +([a-z_0-9]+)\((.*)$")
# What stands in quotes after their descriptor is contents, which may name any path.
CONTENTS = frozenset({"read", "write", "readv", "writev", "pread64", "pwrite64", "getdents", "getdents64"})
CLOSES = frozenset({"close", "dup", "fcntl", "lseek"})  # answered without the file system (close: NFS may write back)


def calls(bench: Bench) -> list[Record]:
    """Trace each peer and divide: calls per job by name, inside the peer's directory and anywhere."""
    if not shutil.which("strace"):
        bench.absent["calls"] = "no `strace` on the PATH"
        return []
    records: list[Record] = []
    for peer in bench.all("at"):  # atd starts jobs from a daemon of its own choosing: nothing to divide by
        counted: dict[int, dict[str, dict[str, Counter[str]]]] = {}
        for n in (SMALL, LARGE):
            with bench.attempt("calls", peer):
                counted[n] = _traced(peer, n)
        for label in counted[SMALL] if len(counted) == 2 else ():
            slope = {
                where: _slope(counted[SMALL][label][where], counted[LARGE][label][where])
                for where in ("spool", "own", "all")
            }
            record: Record = {"measure": "calls", "peer": peer.name, "part": label}
            record |= {f"{where}_calls": round(sum(slope[where].values()), 2) for where in slope}
            asked = {name: times for name, times in slope["spool"].items() if name not in CLOSES}
            record["asked"] = round(sum(asked.values()), 2)
            record["by_name"] = ", ".join(
                f"{name} {times:g}" for name, times in sorted(asked.items(), key=lambda item: (-item[1], item[0]))
            )
            records.append(record)
    return records


def _slope(small: "Counter[str]", large: "Counter[str]") -> dict[str, float]:
    """Calls per further job, names that cost nothing left out."""
    per_job = {name: (large[name] - small[name]) / (LARGE - SMALL) for name in small | large}
    return {name: round(times, 2) for name, times in per_job.items() if abs(times) >= 0.02}


def _traced(peer: Peer, n: int) -> dict[str, dict[str, "Counter[str]"]]:
    """Run a peer's texts under strace: by label and place, how often each call was made."""
    counted = {}
    scripts = peer.traced(n)
    # Peers without a spool of their own keep everything in their directory.
    spool = f"{peer.home.dir}/spool" if peer.name == "spoolq" else peer.home.dir
    for number, (label, script) in enumerate(scripts.items()):
        trace = f"{peer.home.dir}/trace{number}"
        with said(f"calls: {peer.name}, {label}, {n} jobs"):
            peer.home.family.run(
                ["strace", "-f", "-y", "-qq", "-s", "4096", "-e", "signal=none", "-o", trace, "sh", "-c", script],
                env=peer.home.env,
                cwd=peer.home.dir,
                log=peer.home.log,
            )
        places: dict[str, Counter[str]] = {"spool": Counter(), "own": Counter(), "all": Counter()}
        for name, arguments in _calls_in(trace):
            places["all"][name] += 1
            if spool in arguments:
                places["spool"][name] += 1
            elif peer.home.dir in arguments:
                places["own"][name] += 1
        counted[label] = places
    return counted


def _calls_in(trace: str) -> Iterator[tuple[str, str]]:
    """Yield the file calls of a trace: name and printed arguments; a resumed line is the same call's second half."""
    with open(trace, encoding="utf-8", errors="replace") as file:
        for line in file:
            found = LINE.match(line)
            if found and found[1] in FILE_CALLS:
                yield found[1], found[2].partition('"')[0] if found[1] in CONTENTS else found[2]
