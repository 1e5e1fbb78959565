"""
What is measured, each in one function that returns records.

A record is flat: which measure, which peer, under what conditions, and figures as `Stats`. Nothing
is judged here; `report` sets figures beside aims. Repetitions go round the peers, not peer by peer,
so that a machine that slows down slows them all.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from kit import MARK, TRUE, Family, Memory, Stats, floor, mean_cost, memory, name_of, said, timed, until
from peers import At, Nq, Parallel, Peer, Tsp
from place import Scratch, filesystem_of
from spoolq_peer import Spoolq, instant

Record = dict[str, str | int | float | Stats]
ALL: Mapping[str, type[Nq] | type[Tsp] | type[Parallel] | type[At] | type[Spoolq]] = {
    "spoolq": Spoolq,
    "tsp": Tsp,
    "nq": Nq,
    "parallel": Parallel,
    "at": At,
}
STAMP_BY_SHELL = '#!/bin/sh\ndate +%s.%N >"$1.new" && mv "$1.new" "$1"\n'


@dataclass(frozen=True, slots=True)
class Bench:
    """One run: who is measured, where, and how thoroughly."""

    peers: Sequence[str]
    media: Mapping[str, Scratch]  # label -> directories; "tmpfs" is where everything but throughput is measured
    quick: bool
    absent: dict[str, str] = field(default_factory=dict)  # peer -> why it is skipped
    families: list[Family] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)  # "measure of peer" -> what went wrong

    def take(self, full: int, quick: int) -> int:
        """Choose a size or a number of repetitions."""
        return quick if self.quick else full

    def make(self, name: str, medium: str = "tmpfs") -> Peer:
        """Make one peer."""
        peer: Peer = ALL[name](self.media[medium])
        self.families.append(peer.home.family)
        return peer

    def all(self, *without: str, medium: str = "tmpfs") -> list[Peer]:
        """Make the peers that can be measured here, but for some that a measure makes no sense for."""
        return [self.make(name, medium) for name in self.peers if name not in self.absent and name not in without]

    @contextlib.contextmanager
    def attempt(self, measure: str, peer: Peer) -> Iterator[None]:
        """Take one repetition and end the peer after it; one peer's failure costs its own figures only."""
        try:
            yield
        except (OSError, RuntimeError, ValueError, subprocess.SubprocessError) as error:
            last = str(error).strip().rpartition("\n")[2]  # of a traceback what it says, not whose files it names
            self.failures[f"{measure} of {peer.name}"] = last[:200]
            print(f"bench: FAILED {measure} of {peer.name}: {error}", file=sys.stderr)
        finally:
            peer.down()


def submit(bench: Bench) -> list[Record]:
    """Submit jobs one at a time, by the peer's own command, while nothing can start."""
    n, repetitions = bench.take(20, 10), bench.take(5, 2)
    peers = bench.all()
    figures: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for _ in range(repetitions):
        for peer in peers:
            with bench.attempt("submit", peer):
                peer.up(1, held=peer.can_hold)
                before, cpu_s = floor(), peer.home.family.cpu_s()
                wall_s = peer.home.sh(f"i=0; while [ $i -lt {n} ]; do {peer.submit(TRUE)} || exit 9; i=$((i+1)); done")
                time.sleep(0.3)  # a daemon's part of the work
                spent_s = peer.home.family.cpu_s() - cpu_s
                bare = mean_cost(before, floor())
                mine = figures[peer.name]
                mine["wall_s"].append(wall_s / n)
                mine["cpu_s"].append(spent_s / n)
                mine["spawns"].append(spent_s / n / bare.cpu_s)
    records = [_record("submit", peer, figures[peer.name], n=n, version=peer.version()) for peer in peers]
    return records + _submit_own(bench)


def _submit_own(bench: Bench) -> list[Record]:
    """What only spoolq is asked: `sub` beside a bare interpreter with its imports, and a list of many jobs."""
    if "spoolq" not in bench.peers or "spoolq" in bench.absent:
        return []
    peer, records = Spoolq(bench.media["tmpfs"]), list[Record]()
    bench.families.append(peer.home.family)
    with bench.attempt("submit", peer):
        peer.up(1, held=True)
        records.append(_beside_reference(peer, bench.take(30, 10)))
    n, figures = bench.take(10_000, 2_000), defaultdict[str, list[float]](list)
    for _ in range(bench.take(3, 1)):
        with bench.attempt("submit", peer):
            peer.up(1, held=True)
            before, cpu_s, start = floor(), peer.home.family.cpu_s(), time.perf_counter()
            peer.queue(n, TRUE)
            figures["wall_s"].append((time.perf_counter() - start) / n)
            figures["cpu_s"].append((peer.home.family.cpu_s() - cpu_s) / n)
            figures["spawns"].append(figures["cpu_s"][-1] / mean_cost(before, floor()).cpu_s)
    return [*records, _record("submit-lines", peer, figures, n=n)]


def _beside_reference(peer: Spoolq, n: int) -> Record:
    """Compare n single submissions with the least that a Python program with options costs."""
    pairs = peer.submit_pair(n)
    medians = {label: [Stats.of([pair[which] for pair in taken]) for which in (0, 1)] for label, taken in pairs.items()}
    figures: dict[str, list[float]] = defaultdict(list)
    for own, reference in zip(pairs["sub"], pairs["reference"], strict=True):
        figures["wall_ratio"].append(own[0] / reference[0])
        figures["cpu_ratio"].append(own[1] / reference[1])
    pair = _record("submit-pair", peer, figures)
    pair |= {"wall_s": medians["sub"][0], "cpu_s": medians["sub"][1]}
    pair |= {"reference_wall_s": medians["reference"][0], "reference_cpu_s": medians["reference"][1]}
    return pair


def throughput(bench: Bench) -> list[Record]:
    """Run many jobs that do nothing: out of a full queue (drain), and submitted to a running system (live)."""
    records: list[Record] = []
    for medium, scratch in bench.media.items():
        peers = bench.all(*(["at"] if medium == "tmpfs" else []), medium=medium)
        for slots in (2, 8):
            for mode in ("drain", "live"):
                figures: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
                able = [peer for peer in peers if mode == "live" or peer.can_hold]
                for _ in range(bench.take(5 if medium == "tmpfs" else 3, 1)):
                    for peer in able:
                        _throughput_once(bench, peer, mode, slots, figures[peer.name])
                records += [
                    _record(
                        "throughput", peer, figures[peer.name], medium=medium, mode=mode, slots=slots,
                        filesystem=filesystem_of(scratch.root), n=_jobs(bench, peer), records=peer.records,
                    )
                    for peer in able
                ]  # fmt: skip
    return records


def _jobs(bench: Bench, peer: Peer) -> int:
    """How many jobs a repetition runs: enough for some seconds, within what the peer can hold."""
    full, quick = {"spoolq": (2000, 400), "parallel": (400, 120), "at": (200, 60)}.get(peer.name, (800, 300))
    return min(bench.take(full, quick), peer.most_queued)


def _throughput_once(bench: Bench, peer: Peer, mode: str, slots: int, figures: dict[str, list[float]]) -> None:
    """Take one repetition; its CPU and `whole_share` include submission in both modes, its wall in `live` only."""
    n = _jobs(bench, peer)
    with bench.attempt("throughput", peer):
        peer.up(slots, held=mode == "drain")
        with said(f"throughput {mode} {slots} slots: {n} jobs through {peer.name}"):
            before, cpu_s, start = floor(), peer.home.family.cpu_s(), time.time()
            peer.queue(n, TRUE)
            queued_s = time.time() - start
            if mode == "live":
                wall_s, inner_s, queued_s = peer.wait(n) - start, None, 0.0
            else:
                time.sleep(0.5)  # let queued clients come to rest
                drained = peer.drain(n)
                wall_s, inner_s = drained.wall_s, drained.inner_s
            spent_s = peer.home.family.cpu_s() - cpu_s
            bare = mean_cost(before, floor())
        figures["floor_per_s"].append(1 / bare.wall_s)
        figures["jobs_per_s"].append(n / wall_s)
        figures["share"].append(n / wall_s * bare.wall_s)
        figures["whole_share"].append(n / (queued_s + wall_s) * bare.wall_s)
        figures["cpu_s"].append(spent_s / n)
        figures["spawns"].append(spent_s / n / bare.cpu_s)
        if inner_s is not None:
            figures["inner_per_s"].append(n / inner_s)
            figures["inner_share"].append(n / inner_s * bare.wall_s)


def latency(bench: Bench) -> list[Record]:
    """Submit one job to an idle system and see when its first instruction runs."""
    records = []
    stamp = _stamp(bench.media["tmpfs"])
    for peer in bench.all():
        with bench.attempt("latency", peer):
            peer.up(2, held=False)
            figures: dict[str, list[float]] = defaultdict(list)
            stamps = []
            env = {**peer.home.env, MARK: peer.home.family.mark}
            for turn in range(bench.take(40, 12)):
                path, start = f"{peer.home.dir}/out/stamp{turn}", time.time()
                returned = timed(["/bin/sh", "-c", f"cd {peer.home.dir} && {peer.submit(f'{stamp} {path}')}"], env)
                until(partial(os.path.exists, path), 30, f"{peer.name}: job did not start", 0.002)
                with open(path, encoding="ascii") as file:
                    stamps.append(float(file.read()))
                figures["first_s"].append(stamps[-1] - start)
                figures["returns_s"].append(returned.wall_s)
                time.sleep(0.15)
            if isinstance(peer, Spoolq):
                peer.wait(len(stamps))
                ordered = sorted(peer.results(), key=lambda result: int(result["id"]))[peer.before :]
                for result, at in zip(ordered, stamps, strict=True):
                    figures["after_commit_s"].append(at - instant(result["submitted"]))
                    figures["to_start_s"].append(instant(result["started"]) - instant(result["submitted"]))
            records.append(_record("latency", peer, figures, n=len(stamps)))
    return records


def idle(bench: Bench) -> list[Record]:
    """Watch a family that has nothing to do, with an empty queue and with jobs that wait for a slot."""
    records = []
    seconds = bench.take(30, 8)
    for depth in (0, bench.take(1000, 0))[: bench.take(2, 1)]:
        for peer in bench.all("at", "parallel"):  # parallel lives only as long as its list; at queues nothing
            if peer.name == "nq" and not depth:
                continue  # no queue, no process
            if isinstance(peer, Spoolq):
                peer.measuring = True  # part of what an idle node does
            with bench.attempt("idle", peer):
                peer.up(1, held=False)
                if depth:
                    peer.queue(1, "/bin/sleep 3600")
                    peer.queue(min(depth, peer.most_queued), TRUE)
                time.sleep(bench.take(6, 3))
                with said(f"idle: {peer.name} with {depth} queued"):
                    cpu_s = peer.home.family.cpu_s()
                    time.sleep(seconds)
                    spent_s = peer.home.family.cpu_s() - cpu_s
                used = memory(_without_jobs(peer))
                figures = {"cpu_s_per_minute": [spent_s * 60 / seconds], "pss_mib": [used.pss_kib / 1024]}
                figures |= {"rss_mib": [used.rss_kib / 1024], "processes": [float(used.processes)]}
                records.append(_record("idle", peer, figures, queued=min(depth, peer.most_queued), seconds=seconds))
    return records


def running(bench: Bench) -> list[Record]:
    """Let many jobs sleep at a time: memory of everything that is not a job, per job, and CPU meanwhile."""
    jobs, seconds, records = bench.take(100, 30), bench.take(20, 5), []
    for peer in bench.all("at"):
        if isinstance(peer, Spoolq):
            peer.share = 0.25
        with bench.attempt("running", peer):
            peer.up(jobs, held=False)
            time.sleep(1)
            empty = memory(_without_jobs(peer))
            peer.queue(jobs, "/bin/sleep 600")
            with said(f"running: {jobs} jobs under {peer.name}"):
                until(partial(_asleep, peer, jobs), 60, f"{peer.name}: jobs do not run", 0.2)
                time.sleep(3)
                cpu_s = peer.home.family.cpu_s()
                time.sleep(seconds)
                spent_s = peer.home.family.cpu_s() - cpu_s
            full = memory(_without_jobs(peer))
            records.append(_record("running", peer, _per_job(empty, full, jobs, spent_s * 60 / seconds), n=jobs))
    return records


def _per_job(empty: Memory, full: Memory, jobs: int, cpu_s_per_minute: float) -> dict[str, list[float]]:
    return {
        "processes": [(full.processes - empty.processes) / jobs],
        "pss_kib": [(full.pss_kib - empty.pss_kib) / jobs],
        "rss_kib": [(full.rss_kib - empty.rss_kib) / jobs],
        "family_pss_mib": [full.pss_kib / 1024],
        "cpu_s_per_minute": [cpu_s_per_minute],
    }


def _without_jobs(peer: Peer) -> list[int]:
    return [pid for pid in peer.home.family.members() if name_of(pid) != "sleep"]


def _asleep(peer: Peer, jobs: int) -> bool:
    return sum(name_of(pid) == "sleep" for pid in peer.home.family.members()) >= jobs


def _stamp(scratch: Scratch) -> str:
    """Make the stamping job: compiled where that is possible, else a shell script (some ms slower, for all)."""
    path = f"{scratch.root}/stamp"
    source = os.path.join(os.path.dirname(os.path.abspath(__file__)), "stamp.c")
    if shutil.which("cc"):
        subprocess.run(["cc", "-O2", "-o", path, source], check=True)
    else:
        with open(path, "w", encoding="ascii") as file:
            file.write(STAMP_BY_SHELL)
        os.chmod(path, 0o700)
    return path


def _record(measure: str, peer: Peer, figures: Mapping[str, Sequence[float]], **facts: str | float) -> Record:
    return {"measure": measure, "peer": peer.name, **facts} | {k: Stats.of(v) for k, v in figures.items() if v}
