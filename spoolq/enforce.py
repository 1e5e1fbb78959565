"""
Do something to the whole tree of a job: end it, stop it, measure it, clear up what it left behind.

Where the job has a control group that is exact. Elsewhere the tree is its first process's session and
group, all descendants, and orphans that came to the family and bear the job's marker in their environment.
Invariant: processes of the family and of other jobs are never touched; what is killed is stopped first
until two looks show nothing new.
Looking through /proc takes some ms: it is done for what is rare, never for each job.
"""

import os
import resource
import signal
from collections.abc import Callable, Collection, Iterable

from spoolq import cgroup, process
from spoolq.kin import Kin
from spoolq.runs import Act, Run

LINGER_S = 1.0  # what outlives its job, such as a `tee` it wrote to, has this long to finish
_KB_PER_MB = 1024
_MARKER = (b"SPOOLQ_FAMILY", b"SPOOLQ_JOB_ID", b"SPOOLQ_ATTEMPT")  # set by `spawn`
Marker = tuple[str, str, str]


class Enforcer:
    """Acts for one runner."""

    def __init__(self, kin: Kin) -> None:
        self.kin = kin
        self._groups: dict[str, float] = {}  # control groups of ended jobs, and when to clear them
        self._orphans: dict[tuple[int, int], tuple[float, frozenset[Marker]]] = {}
        self._ended_s = 0.0

    # --- trees

    def members(self, run: Run) -> dict[int, int]:
        """The living processes of a job's tree: birth ticks by pid."""
        if run.cgroup and (inside := cgroup.tree_of(run.cgroup)):
            return {pid: birth for pid in inside if (birth := process.born(pid)) >= 0}
        stats = process.scan()
        return {pid: stats[pid].born for pid in self._tree(run, stats) if pid in stats and stats[pid].state != "Z"}

    def _tree(self, run: Run, stats: dict[int, process.Stat]) -> set[int]:
        reapers = {os.getpid(), *self.kin.ancestors()}
        root = stats.get(run.pid)
        if root is None or not run.earliest <= root.born <= run.latest:
            # the number is free or another's: only the marker counts
            found = {p for p, s in stats.items() if s.born >= run.earliest and p not in reapers and self.bears(p, run)}
            below: dict[int, list[int]] = {}
            for stat in stats.values():
                below.setdefault(stat.parent, []).append(stat.pid)
            return process.with_descendants(found, below) - reapers
        if root.parent not in reapers:
            reapers.add(root.parent)  # its family died; orphans went where it went
        return process.tree(stats, run.pid, run.earliest, lambda pid: self.bears(pid, run), reapers)

    def _trees(self, runs: Iterable[Run], stats: dict[int, process.Stat]) -> list[tuple[Run, list[int]]]:
        """The trees of many jobs in one pass: a hundred jobs must not cost a hundred looks at every process."""
        runs = list(runs)
        roots = {r.pid: r for r in runs if r.pid in stats and r.earliest <= stats[r.pid].born <= r.latest}
        bearing = {(self.kin.state_dir, str(run.id), str(run.attempt)): run for run in runs}
        reapers = {os.getpid(), *self.kin.ancestors()} | {stats[pid].parent for pid in roots}
        owner: dict[int, Run | None] = dict.fromkeys(reapers)
        owner |= roots
        for stat in stats.values():
            chain = []
            pid = stat.pid
            while pid not in owner:
                chain.append(pid)
                one = stats.get(pid)
                named = (roots.get(one.session) or roots.get(one.group)) if one else None
                if one is None or named or one.parent in reapers:
                    orphan = one is not None and not named and one.session != self.kin.session
                    owner[pid] = named or (bearing.get(marker_of(pid) or ("", "", "")) if orphan else None)
                    break
                pid = one.parent
            for link in chain:
                owner[link] = owner[pid]
        trees: dict[int, list[int]] = {id(run): [] for run in runs}
        for pid, run in owner.items():
            if run is not None and pid in stats and stats[pid].born >= run.earliest:
                trees[id(run)].append(pid)
        return [
            (run, trees[id(run)] if run.pid in roots else [p for p in self._tree(run, stats) if p in stats])
            for run in runs
        ]

    def bears(self, pid: int, run: Run) -> bool:
        """Whether a process has the marker of a job in its environment."""
        return marker_of(pid) == (self.kin.state_dir, str(run.id), str(run.attempt))

    def act(self, run: Run, what: Act) -> None:
        """Carry out what `runs.happen` answered."""
        if what is Act.KILL:
            if not (run.cgroup and cgroup.populated(run.cgroup) and cgroup.kill(run.cgroup, _send)):
                process.kill_all(lambda: self.members(run))
        elif what is Act.WARN and run.warn:
            number, _, first = run.warn
            birth = process.born(run.pid)
            if not first:
                self.signal(run, number)
            elif run.earliest <= birth <= run.latest:
                process.send(run.pid, birth, number)
        elif what is Act.STOP:
            if not (run.cgroup and cgroup.populated(run.cgroup) and cgroup.freeze(run.cgroup, True)):
                process.stop_all(lambda: self.members(run))
        else:
            if run.cgroup:
                cgroup.freeze(run.cgroup, False)
            self.signal(run, signal.SIGCONT)
            if what is Act.TERM:
                self.signal(run, signal.SIGTERM)

    def signal(self, run: Run, number: int) -> None:
        """Send a signal to the whole tree once."""
        for pid, birth in self.members(run).items():
            process.send(pid, birth, number)

    # --- memory and use

    def over_memory(self, runs: Iterable[Run]) -> list[tuple[Run, str]]:
        """
        Jobs that hold more memory than their limit, with the figures.

        The sum of resident sizes counts shared pages once per process, so it only acquits; who is
        above it is measured by what would be free without the job (`process.proportional_kb`).
        """
        found = []
        stats = process.scan()
        for run, pids in self._trees(runs, stats):
            limit = (run.mem_mb or 0) * _KB_PER_MB
            if sum(stats[pid].rss_kb for pid in pids) <= limit:
                continue
            held = process.proportional_kb(pids)
            if held > limit:
                word = f"held {held / _KB_PER_MB:.0f} MB in {len(pids)} processes, limit {run.mem_mb} MB (sampled)"
                found.append((run, word))
        return found

    def usage(self, runs: Iterable[Run]) -> tuple[dict[str, dict[str, float]], float]:
        """What living jobs use, by `id.attempt`, and the CPU seconds of the family itself."""
        stats = process.scan()
        jobs = {}
        for run, pids in self._trees(runs, stats):
            kb = sum(stats[pid].rss_kb for pid in pids)
            ticks = sum(stats[pid].cpu for pid in pids)
            if run.cgroup:
                kb = cgroup.memory_kb(run.cgroup) or kb
            jobs[f"{run.id}.{run.attempt}"] = {"rss_mb": kb // _KB_PER_MB, "cpu_s": ticks / process.TICK}
        own = resource.getrusage(resource.RUSAGE_SELF)
        spent = own.ru_utime + own.ru_stime
        for pid in self.kin.ancestors():
            if stat := stats.get(pid):
                # without the children they waited for, which are counted as jobs
                spent += own_cpu_s(stat.pid)
        return jobs, spent

    # --- what ended jobs leave

    def ended(self, run: Run, now: float) -> None:
        """A job's first process has ended; the rest of its tree has LINGER_S."""
        self._ended_s = now
        if run.cgroup and not cgroup.remove(run.cgroup):
            self._groups[run.cgroup] = now + LINGER_S

    def sweep(self, now: float, running: Collection[Run]) -> bool:
        """
        Kill orphans of jobs that ended and remove their groups.

        An orphan without marker or known session is spared until every job has ended that ran when
        it was first seen.

        Returns:
            Whether something is left for another sweep.
        """
        for group, when in list(self._groups.items()):
            if now >= when:
                cgroup.kill(group, _send)
            if cgroup.remove(group):
                del self._groups[group]
        live = frozenset((self.kin.state_dir, str(run.id), str(run.attempt)) for run in running)
        sessions = {run.pid for run in running}
        family = {os.getpid(), *self.kin.ancestors()}
        seen: dict[tuple[int, int], tuple[float, frozenset[Marker]]] = {}
        doomed = set()
        for parent in family:
            for pid in process.children(parent):
                if pid in family or pid in sessions:
                    continue
                stat = process.read_stat(pid)
                if stat is None or stat.state == "Z" or stat.session in sessions or stat.session == self.kin.session:
                    continue
                marker = marker_of(pid)
                if marker in live:
                    continue
                who = (pid, stat.born)
                first, witnesses = self._orphans.get(who, (now, live if marker is None else frozenset()))
                seen[who] = (first, witnesses)
                if now - max(first, self._ended_s if not live else first) >= LINGER_S and not witnesses & live:
                    doomed.add(pid)
        self._orphans = seen
        if doomed:
            process.kill_all(self._below(doomed, sessions | family))
        return bool(seen or self._groups)

    def _below(self, roots: Collection[int], spared: Collection[int]) -> "Callable[[], dict[int, int]]":
        born = {pid: process.born(pid) for pid in roots}

        def find() -> dict[int, int]:
            stats = process.scan()
            below: dict[int, list[int]] = {}
            for stat in stats.values():
                below.setdefault(stat.parent, []).append(stat.pid)
            present = [pid for pid in roots if pid in stats and stats[pid].born == born[pid]]
            found = process.with_descendants(present, below) - set(spared)
            return {pid: stats[pid].born for pid in found if pid in stats and stats[pid].state != "Z"}

        return find


def marker_of(pid: int) -> Marker | None:
    """
    (family, id, attempt) of the job of which a process says in its environment that it is, or None.

    The family is the state directory of its node: other nodes and spools on this machine have jobs of the same ids.
    """
    variables = process.environment(pid)
    if not all(name in variables for name in _MARKER):
        return None
    family, job_id, attempt = (os.fsdecode(variables[name]) for name in _MARKER)
    return family, job_id, attempt


def own_cpu_s(pid: int) -> float:
    """CPU seconds of a process without its children."""
    try:
        with open(f"/proc/{pid}/schedstat", "rb", buffering=0) as file:
            return int(file.read(100).split()[0]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


def _send(pid: int, number: int) -> None:
    process.send(pid, process.born(pid), number)
