"""
The checker: one pure function over the trace of a run. Imports nothing of the package.

Invariants, numbered as in the reliability notes:
I1 one entry per job, I2 legal moves by those entitled, I3 fresh names and gen + 1, I4 acknowledged is
durable, I5 nothing lost, I6 completed once, I7 one runner at a time, I8 rerun rule, I9 started only with
a lease that was good when the claim was sent, I10 cpus within the capacity, I11 what is visible is whole,
I12 results are true, I15 no growth, I16 children wait for their parents, I17 results of tasks are there and true,
I18 no more tasks of an array and I19 no more jobs of a user at once than may be; V1 to V6 in the calm at the end.
Not seen here: I13 (whose processes) and I14 (a daemon of root) are rules about system users, which a
simulation has none of: `tests/test_run_real.py`, `tests/test_hostile*.py`. I10 for memory that jobs really
use: `tests/test_supervise.py`. I12 for output bytes and rusage: `tests/test_end_to_end.py`.
"""

import re
from typing import Any, NamedTuple

from tests.sim import arrays
from tests.sim.children import Ends, children
from tests.sim.entries import Violation, entries, job_of, numbers_of, runs_of, token_of, whole
from tests.sim.liveness import liveness

Event = tuple[Any, ...]


class Report(NamedTuple):
    """The result; `numbers` are those of Jepsen's total-queue."""

    violations: list[Violation]
    numbers: dict[str, int]


def check(trace: list[Event]) -> Report:
    """All violations, in the order in which they were found, and the numbers."""
    trace = arrays.expand(trace)
    found: list[Violation] = []
    found += entries(trace)
    found += children(trace)
    found += executions(trace)
    found += ends(trace)
    found += arrays.again(trace)
    found += arrays.results(trace)
    found += arrays.limits(trace)
    found += liveness(trace)
    found += [Violation("X", e[0], 0, f"{e[2]}: the daemon broke: {e[3]}\n{e[4]}") for e in trace if e[1] == "broken"]
    found.sort(key=lambda violation: violation.t)
    return Report(found, numbers(trace, found))


# --- I7 to I10


class _Job:
    """What is known of one job's executions."""

    def __init__(self) -> None:
        self.running: Event | None = None
        self.last: Event | None = None
        self.starts: dict[int, int] = {}
        self.excuses = 0  # requeues asked for by users, and retries of failures
        self.retries = self.disasters = 0
        self.cpus, self.rule, self.began = 0.0, "C", 0.0
        self.claimed: dict[int, Event] = {}


def executions(trace: list[Event]) -> list[Violation]:
    """What really ran, by the words of the runners."""
    found: list[Violation] = []
    jobs: dict[int | str, _Job] = {}
    beats: dict[str, list[float]] = {}
    disasters: dict[str, float] = {}
    stopped: dict[str, float] = {}  # runners that could not fence: suspended, or killed with all their family
    capacity: dict[str, float] = {}
    fence_s, ops = 0.0, []
    for event in trace:
        kind = event[1]
        if kind == "op":
            ops.append(event)
        elif kind == "rollback":
            undone, ops = ops[len(ops) - event[2] :], ops[: len(ops) - event[2]]
            _forgive(undone, jobs)
        if kind == "policy":
            fence_s = event[2]["fence_s"]
        elif kind == "node":
            capacity[event[2]] = event[3]["cpus"]
        elif kind == "op" and event[3] == "rename":
            if event[5].endswith("/heartbeat"):
                beats.setdefault(event[2], []).append(event[0])
            elif token := token_of(event[5]):
                for key in runs_of(token.id):
                    job = jobs.setdefault(key, _Job())
                    job.cpus, job.rule, job.retries = token.cpus, token.rule, token.retries
                    if event[5].startswith("running/") and event[4].startswith("queue/"):
                        job.claimed[token.attempt] = event
        elif kind == "asks" and event[3] == "requeue":
            meant = [key for key in jobs if event[4] in (key, job_of(key))]
            for key in meant or [event[4]]:
                jobs.setdefault(key, _Job()).excuses += 1
        if kind == "fault" and event[3] in ("suspend_machine", "kill_family", "runner_dies_at_start"):
            stopped[event[2]] = event[0]
        if (kind == "power" and event[3] == "off") or (
            kind == "fault" and (event[3] == "kill_family" or "whole" in str(event[9]))
        ):
            disasters[event[2]] = event[0]
        if kind == "start":
            job = jobs.setdefault(event[3], _Job())
            found += _start(event, job, disasters, stopped)
            found += _lease(event, job, beats.get(event[2], []), fence_s)
            used = sum(j.cpus for j in jobs.values() if j.running and j.running[2] == event[2])
            if used > capacity.get(event[2], 0):
                found.append(Violation("I10", event[0], event[3], f"{event[2]} runs {used / 1000:g} cpus' worth"))
        elif kind == "end":
            job = jobs.setdefault(event[3], _Job())
            if job.running is not None and job.running[4] == event[4]:
                job.running, job.last = None, event
                failed = event[5]["code"] != 0 and event[5]["reason"] in ("", "timeout")
                job.excuses += failed and event[4] <= job.retries
    return found


def _forgive(undone: list[Event], jobs: dict[int | str, _Job]) -> None:
    """A local disk lost the claim together with its power: that attempt starts again, in the place of the first."""
    for op in undone:
        token = token_of(op[5]) if op[3] == "rename" and op[4].startswith("queue/") else None
        for key in runs_of(token.id) if token else ():
            if key in jobs and jobs[key].starts.get(token.attempt):
                jobs[key].starts[token.attempt] -= 1


def _start(event: Event, job: _Job, disasters: dict[str, float], stopped: dict[str, float]) -> list[Violation]:
    t, _, node, job_id, attempt, _facts = event
    found = []
    # a job of rule yes on a machine that was suspended is killed as soon as it wakes, not before
    if job.running is not None and not (job.rule == "Y" and stopped.get(job.running[2], -1.0) >= 0):
        other = job.running
        text = f"attempt {attempt} starts on {node} while attempt {other[4]} runs on {other[2]} since {other[0]:.3f} s"
        found.append(Violation("I7", t, job_id, text))
    job.starts[attempt] = job.starts.get(attempt, 0) + 1
    if job.starts[attempt] > 1:
        found.append(Violation("I7", t, job_id, f"attempt {attempt} was started twice, now on {node}"))
    again = sum(job.starts.values()) - 1
    if job.rule == "N" and again > job.excuses:
        found.append(Violation("I8", t, job_id, f"rule never, and start number {again + 1}"))
    if job.rule == "C" and job.last is not None:
        before = job.last[2]
        job.disasters += disasters.get(before, -1.0) >= job.began
        if again > job.excuses + job.disasters:
            found.append(Violation("I8", t, job_id, f"rule certain, run again, and nothing happened to {before}"))
    job.running, job.began = event, t
    return found


def _lease(event: Event, job: _Job, beats: list[float], fence_s: float) -> list[Violation]:
    t, _, node, job_id, attempt, facts = event
    claim = job.claimed.get(attempt)
    if claim is None:
        return [Violation("I9", t, job_id, f"attempt {attempt} was started on {node} without a claim")]
    if claim[2] != node:
        return [Violation("I9", t, job_id, f"attempt {attempt} was claimed by {claim[2]} and started on {node}")]
    sent = claim[8]
    good = [beat for beat in beats if beat <= sent]
    if isinstance(job_id, str):  # of an array: later beats are good too, as long as the chunk was never without one
        for beat in beats:
            if good and good[-1] < beat <= t and (beat - good[-1]) * facts["rate"] <= 2 * fence_s:
                good.append(beat)
    age_s = (t - good[-1]) * facts["rate"] if good else float("inf")
    if age_s > fence_s:
        text = f"started on {node} {age_s:.1f} s after the last beat before its claim; the fence is {fence_s:g} s"
        return [Violation("I9", t, job_id, text)]
    return []


# --- I5, I12, I15


def ends(trace: list[Event]) -> list[Violation]:
    """What is known at the end, against the truth."""
    found: list[Violation] = []
    if not any(event[1] == "drained" for event in trace):
        return found
    truth = {(e[3], e[4]): e[5] for e in trace if e[1] == "end"}
    kills = {e[4] for e in trace if e[1] == "asks" and e[3] == "kill"}
    requeues = {e[4] for e in trace if e[1] == "asks" and e[3] == "requeue"}  # one refused has set it aside
    finals = {e[2]: e for e in trace if e[1] == "final"}
    parts = dict.fromkeys(e[2] for e in trace if e[1] == "chunk")
    found += [
        Violation("I5", event[0], event[3], "acknowledged and not among what ended")
        for event in trace
        if event[1] == "ack" and event[3] not in finals | parts
    ]
    torn = any(event[1] == "rollback" for event in trace)  # a local disk lost power: words of a command may be torn
    last: dict[int, str] = {}
    for event in trace:
        if event[1] == "op" and event[3] in ("rename", "link"):
            last[event[6]] = event[5] or event[4]
    found += [
        Violation("I5", event[0], 0, f"dropped as {event[3]}, and now {last.get(event[4])}")
        for event in trace
        if event[1] == "dropped" and not torn and not last.get(event[4], "").startswith(("done/", "rejected/"))
    ]
    off = {event[2]: event[3] == "off" for event in trace if event[1] == "power"}
    gone = any(off.values())  # who is gone may have been about to write a result; history has it
    ended = Ends()
    for event in trace:
        ended.see(event)
    told = {e[3] for e in trace if e[1] == "ack"}
    unheard = arrays.ended_unheard(trace) - told  # children that nobody was told of
    orphans = unheard | {e[3] for e in trace if e[1] == "depends" and ended.never(e[4], str(e[5]))}
    for event in finals.values():
        t, _, job_id, attempt, ending, record, raw = event
        found += [Violation(rule, t, job_id, why) for rule, why in _result(attempt, ending, record, raw, torn=torn)]
        if raw is None and ending not in ("cancelled", "nodefail") and job_id not in requeues and not gone:
            found.append(Violation("I5", t, job_id, f"ended with {ending} and has no result.json"))
        launched = not str((record or {}).get("reason")).startswith("launch")
        if launched or (job_id, attempt) in truth:
            may = kills | orphans | _hopeless(job_id, record, ended)
            found += [Violation("I12", t, job_id, why) for why in _truth(job_id, attempt, ending, truth, may)]
    return found + growth(trace)


def _result(
    attempt: int, ending: str, record: dict[str, Any] | None, raw: str | None, *, torn: bool
) -> list[tuple[str, str]]:
    if not record or "error" in record:
        return [("I5", f"has no result: {record}")]
    found = []
    if record.get("attempt") != attempt:
        found.append(("I12", f"attempt {attempt} ended, the result is of attempt {record.get('attempt')}"))
    code = re.fullmatch(r"exit(\d+)", ending)
    if code and record.get("exit_code") != int(code[1]):
        found.append(("I12", f"ended with {ending}, the result says {record.get('exit_code')}"))
    if raw is not None and not whole(raw) and not (torn and ending in ("cancelled", "nodefail")):
        found.append(("I11", f"a torn result.json: {raw[:60]!r}"))
    return found


def _hopeless(job_id: int, record: dict[str, Any] | None, ended: Ends) -> set[int]:
    """The job, if its result says that its parent ended as it must not, and it did; of an unacknowledged child too."""
    said = re.search(r"DependencyNeverSatisfied: .* and (\w+):(\d+(?:_\d+)?) wants", str((record or {}).get("reason")))
    return {job_id} if said and ended.never(said[1], said[2]) else set()


def _truth(job_id: int, attempt: int, ending: str, truth: dict[tuple[int, int], Any], kills: set[int]) -> list[str]:
    real = truth.get((job_id, attempt))
    if ending == "nodefail":
        return []
    if ending == "cancelled":
        return [] if job_id in kills else ["cancelled, and nobody asked for that"]
    if real is None:
        return [f"ended with {ending} and never ran"]
    expected = (
        "timeout" if real["reason"] == "timeout" else f"exit{real['code']}" if not real["reason"] else real["reason"]
    )
    return [] if expected == ending else [f"ended with {ending}, in truth with {expected}"]


def growth(trace: list[Event]) -> list[Violation]:
    """What lies about after everything has ended and was swept."""
    left = next((event for event in trace if event[1] == "left"), (0.0, "left", []))
    # whoever is cut off leaves what it was about: a private file, the `.entry` of a submission that nobody heard of
    clean = not any(event[1] == "fault" or (event[1] == "power" and event[3] == "off") for event in trace)
    off = {event[2]: event[3] == "off" for event in trace if event[1] == "power"}
    bad = []
    # what daemons were just writing when the run was looked at, such as a heartbeat
    fresh = {event[4] for event in trace if event[1] == "op" and event[3] == "create" and left[0] - event[0] < 1.0}
    for path in sorted(set(left[2]) - fresh):
        if path.startswith("nodes/") and off.get(path.split("/")[1]):
            continue  # what was asked of a node that is gone
        top, _, rest = path.partition("/")
        if (top in ("queue", "held", "running", "reaping") and rest.strip("/") and not path.endswith("/")) or (
            top in ("queue", "held") and rest.count("/") == 1
        ):
            bad.append(path)
        if re.search(r"/(control|admit)/[^/]+$", path) and not re.search(r"/\.t\.[^/]+$", path):
            bad.append(path)
        if clean and re.search(r"/\.t\.[^/]+$|/\.entry(/|$)", path):
            bad.append(path)
    return [Violation("I15", left[0], 0, f"left behind: {bad[:5]}")] if bad else []


def numbers(trace: list[Event], found: list[Violation]) -> dict[str, int]:
    """Jepsen's total-queue, for jobs: what was put in, and what became of it; and the tasks among what ended."""
    acknowledged = {job_of(event[3]) for event in trace if event[1] == "ack"}
    finals = {job_of(event[2]) for event in trace if event[1] in ("final", "chunk")}
    drained = any(event[1] == "drained" for event in trace)
    committed = {
        job_of(token.id)
        for event in trace
        if event[1] == "op"
        and event[3] == "rename"
        and event[4].startswith(("jobs/", "nodes/"))
        and (token := token_of(event[5]))
    }
    return {
        "acknowledged": len(acknowledged),
        "lost": len(acknowledged - finals) if drained else 0,
        "duplicated": len({job_of(v.id) for v in found if v.rule in ("I1", "I6", "I7")}),
        "unexpected": len(finals - committed),
        "recovered": len((finals & committed) - acknowledged),
        "tasks": sum(len(numbers_of(event[2])) for event in trace if event[1] == "chunk"),
    }
