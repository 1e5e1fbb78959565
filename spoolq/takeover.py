"""
What a new runner makes of what an earlier one wrote: which jobs run, which ended, which never started.

Each start is written before (`go`) and after (`started`), and the next `go` only after that, so at most
one `go` is without its pid. Its process is found by the marker in its environment, or as the one
leader of a session that was born since and that nobody else claims. A daemon that the job left behind
looks the same: of two the elder is the job, and where only one is left of a family that died whole its
end counts as not known.
Invariant: "never started" is said only if a member of the family has lived through: then a process that
was started is its descendant, or its end is in a watcher's file.
"""

import os
import time
from collections.abc import Iterable, Mapping
from typing import Any

from spoolq import enforce, journal, process, runs
from spoolq.channel import encode, quote
from spoolq.kin import Kin
from spoolq.runs import Run, Stage

_UNBORN_S = 2.0  # a child between vfork and exec does not show its environment yet


def text_of(go: Mapping[str, Any]) -> str:
    """What every line about a job begins with."""
    job_id, attempt, gen = go["id"], go["attempt"], go.get("gen", 0)
    if not type(job_id) is type(attempt) is type(gen) is int:
        job_id, attempt, gen = encode(job_id), encode(attempt), encode(gen)
    return f'"id":{job_id},"attempt":{attempt},"gen":{gen}'


class Takeover:
    """
    The state that a new runner begins with.

    Attributes:
        runs: by key. Those that live have `own` or a `handle`; those that have neither ended unseen,
            unless a watcher still tells.
        never: starts that were not carried out.
        exits: ends that watchers wrote down, by pid.
    """

    def __init__(self, kin: Kin) -> None:
        self.kin = kin
        self.book = journal.load(kin.state_dir, kin.boot)
        self.runs: dict[journal.Key, Run] = {}
        self.never: list[Run] = []
        unplaced: list[tuple[Run, float]] = []
        for key, job in self.book.jobs.items():
            run = _run_of(job)
            self.runs[key] = run
            if run.stage is Stage.DOUBTFUL:
                run.own = False
            if not run.live:
                continue
            if run.pid:
                self._hold(run)
            else:
                unplaced.append((run, float(job["go"]["t"])))
        for run, since in unplaced:
            self._place(run, since)
        self.exits: dict[int, list[dict[str, Any]]] = {}
        for record in self.book.exits:
            self.exits.setdefault(record["pid"], []).append(record)

    def _hold(self, run: Run) -> None:
        stat = process.read_stat(run.pid)
        run.own = bool(stat and stat.parent == os.getpid() and run.earliest <= stat.born <= run.latest)
        if not run.own:
            run.handle = process.Handle.open(run.pid, run.earliest, run.latest)

    def _place(self, run: Run, since: float) -> None:
        """Find the process of a start of which only the intention was written."""
        earliest = process.ticks(since)
        known = {other.pid for other in self.runs.values() if other.pid}
        pid, birth = self._find_living(run, earliest, known)
        # the watchers may have seen its end since the files were read
        self.book.exits = journal.load(self.kin.state_dir, self.kin.boot).exits
        ends = {(e["pid"], e["born"]) for e in self.book.exits if e["leader"] and e["born"] >= earliest}
        # what lives may be a daemon that the job left behind: the job itself was born before it
        ends = {end for end in ends if end[0] not in known and (not pid or (end[1], end[0]) < (birth, pid))}
        if len(ends) == 1:
            pid, birth = ends.pop()
        elif pid:
            run.unsure = bool(ends) or self.alone()
        elif ends or self.alone():
            run.stage, run.own = Stage.DOUBTFUL, False
            return
        if not pid:
            del self.runs[run.key]
            self.never.append(run)
            return
        run.pid, run.earliest, run.latest = pid, birth, birth
        run.since, run.started = since_monotonic(birth), time.time() - (process.boottime() - birth / process.TICK)
        self._hold(run)

    def _find_living(self, run: Run, earliest: int, known: Iterable[int]) -> tuple[int, int]:
        """
        (pid, birth) of the process with the marker, or of the only zombie it can be; else (0, 0).

        A child that hangs before its exec, or in it, is the job too: it may yet begin, so it did not "never start". And
        so is one that ends while it is looked at, whose environment is gone before a watcher has written down its end.
        """
        give_up = time.monotonic() + _UNBORN_S
        family = {os.getpid(), *self.kin.ancestors()}
        marker = (self.kin.state_dir, str(run.id), str(run.attempt))
        while True:
            living, unborn, zombies = (0, 0), (0, 0), []
            for stat in self._candidates(family):
                if stat.born < earliest or stat.pid in known or stat.pid in family:
                    continue
                # asked first: what has its words has its environment
                begins = stat.parent in family and (process.same_program(stat.pid) or process.in_exec(stat.pid))
                if enforce.marker_of(stat.pid) == marker and stat.session == stat.pid:
                    living = living if living[0] else (stat.pid, stat.born)
                    continue
                now = process.read_stat(stat.pid)  # of one that is gone by now a watcher has written down the end
                if now and now.state == "Z":
                    if now.session == now.pid:
                        zombies.append((now.pid, now.born))
                elif begins:
                    unborn = (stat.pid, stat.born)
            if living[0]:  # perhaps a daemon that the job left behind
                elder = [(pid, birth) for pid, birth in zombies if (birth, pid) < (living[1], living[0])]
                return elder[0] if len(elder) == 1 else living
            if unborn[0] and time.monotonic() < give_up:
                time.sleep(0.01)
                continue
            if unborn[0] and (process.unborn(unborn[0]) or process.in_exec(unborn[0])):
                return unborn
            return zombies[0] if len(zombies) == 1 else (0, 0)

    def alone(self) -> bool:
        """Whether nobody has lived through: no family was found, or whoever forked us was killed after all."""
        return self.kin.alone or not self.kin.ancestors()

    def _candidates(self, family: Iterable[int]) -> list[process.Stat]:
        # not `process.children`: while others of them end the kernel may leave some out (proc(5)), and a job that is
        # missed here counts as never started, and is started again
        found = process.scan().values()
        return [stat for stat in found if self.alone() or stat.parent in family]


def _run_of(job: Mapping[str, Any]) -> Run:
    go = job.get("go") or job.get("ended") or job.get("started") or {}
    run = Run(text_of(go), go)
    started = job.get("started")
    if started:
        run.pid, run.since, run.started = started["pid"], started["since"], started["at"]
        run.earliest, run.latest = started["born"]
        run.unsure = bool(started.get("unsure"))
    run.take_change(job.get("change", {}))
    run.sampled = bool(go.get("sampled")) and run.mem_mb is not None
    if ended := job.get("ended"):
        run.stage, run.line = Stage.OVER, encode(ended)
        run.cpu_s = journal.cpu_of(ended)
    return run


def since_monotonic(birth: int) -> float:
    """The tick of a birth on CLOCK_MONOTONIC (as if the machine had not slept since)."""
    return time.monotonic() - (process.boottime() - birth / process.TICK)


def snapshot(table: Mapping[journal.Key, Run]) -> list[str]:
    """The lines from which `Takeover` makes the same state again."""
    lines = []
    for run in table.values():
        lines.append(go_line(run, 0.0))
        if run.pid:
            lines.append(started_line(run))
        if run.line:
            lines.append(run.line)
        elif run.stage is not runs.Stage.RUNNING or run.paused_s or run.warned:
            lines.append(change_line(run))
    return lines


def go_line(run: Run, now: float) -> str:
    """The intention to start; `now`: CLOCK_BOOTTIME, s."""
    limit = "null" if run.limit_s is None else repr(run.limit_s)
    memory = "null" if run.mem_mb is None else repr(run.mem_mb)
    rest = f',"warn":{encode(run.warn)}' if run.warn else ""
    rest += f',"devices":{encode(run.devices)}' if run.devices else ""
    # by hand: one encoder less in the life of each job
    return (
        f'{{"op":"go",{run.text},"t":{now!r},"limit_s":{limit},"grace_s":{run.grace_s!r},"mem_mb":{memory},'
        f'"cgroup":{quote(run.cgroup)},"rerun":{quote(run.rerun)},"scratch":{quote(run.scratch)},'
        f'"sampled":{int(run.sampled)},"remote":{int(run.trampoline)}{rest}}}'
    )


def started_line(run: Run) -> str:
    """It runs; the daemon gets the same line."""
    born = f"[{run.earliest},{run.latest}]" + ',"unsure":1' * run.unsure
    return f'{{"op":"started",{run.text},"pid":{run.pid},"born":{born},"since":{run.since!r},"at":{run.started!r}}}'


def change_line(run: Run) -> str:
    """What has changed since it was started."""
    return f'{{"op":"change",{run.text},{encode(run.change())[1:]}'
