"""
An array, or one of its tasks, in the words of `stat`, `show` and `why`.

Invariant: changes nothing; text of users is never printed unescaped (by who prints what comes from here).
"""

import shlex
import sys
from collections.abc import Iterator
from typing import Any

from spoolq import arguments, array, devices, explain, home, report, resources, show
from spoolq.entry import RERUN_WORDS
from spoolq.outlook import Scene
from spoolq.report import JobRow
from spoolq.selector import Selected
from spoolq.spool import Placed, Spool
from spoolq.state import State
from spoolq.tally import Tally

MOST_RANGES = 8


def subjects(spool: Spool, chosen: Selected) -> Iterator[tuple[Tally, list[int]]]:
    """The arrays among some jobs, and which of their tasks are meant; none stands for the whole."""
    by_id: dict[int, list[Placed]] = {}
    for placed in chosen.jobs:
        if placed.entry.chunk:
            by_id.setdefault(placed.entry.id, []).append(placed)
    for job_id, chunks in by_id.items():
        known = Tally(spool, job_id, chunks)
        parts = [chosen.tasks.get(at.entry.unit) for at in chunks]
        if known.complete and not any(parts):
            yield known, []
        else:
            mine = (p or array.tasks_of(known.spec, at.entry.chunk) for p, at in zip(parts, chunks, strict=True))
            yield known, sorted(number for some in mine for number in some)


# --- stat


def stat(spool: Spool, chosen: Selected, *, as_json: bool) -> int:
    """The tasks that were asked for, a line each."""
    rows = [JobRow(entry=at.entry, state=at.state, node=at.node) for at in chosen.jobs if not at.entry.chunk]
    for known, numbers in subjects(spool, chosen):
        rows += [
            _row(known, number) for number in numbers or sorted(n for some in known.by_state().values() for n in some)
        ]
    if as_json:
        arguments.print_json("jobs", [report.job_json(row) for row in rows])
    else:
        width, colour = arguments.style()
        sys.stdout.write("\n".join(report.job_lines(rows, width, colour=colour)) + "\n")
    return 0


def _row(known: Tally, number: int) -> JobRow:
    at = known.chunk_of(number)
    assert at is not None
    entry = array.task_entry(at.entry, number)._replace(ending=known.ended(number) or None)
    node = str((known.known.get(number) or {}).get("node") or "") if entry.ending else at.node
    return JobRow(entry=entry, state=known.state(number), node=node)


# --- show, why


def rows(kind: str, scene: Scene, chosen: Selected) -> list[dict[str, Any]]:
    """Arrays and tasks for programs."""
    found = []
    for known, numbers in subjects(scene.spool, chosen):
        found += [_task_json(known, number) for number in numbers] or [_array_json(known)]
        if kind == "why":
            texts_ = [_why_task(scene, known, number) for number in numbers] or [_why_array(scene, known)]
            for row, lines in zip(found[-len(texts_) :], texts_, strict=True):
                row["lines"] = lines
    return found


def texts(kind: str, scene: Scene, chosen: Selected) -> list[list[str]]:
    """Arrays and tasks for people, a block of lines each."""
    found = []
    for known, numbers in subjects(scene.spool, chosen):
        if kind == "why":
            found += [_why_task(scene, known, number) for number in numbers] or [_why_array(scene, known)]
        else:
            found += [_show_task(known, number) for number in numbers] or [_show_array(known)]
    return found


def _array_json(known: Tally) -> dict[str, Any]:
    states = known.by_state()
    return {
        "id": known.id,
        "array": known.job.array if known.job else None,
        "tasks": known.spec.size,
        "states": {state.name: array.ranges(numbers) for state, numbers in states.items()},
        "counts": {state.name: len(numbers) for state, numbers in states.items()},
        "home": home.path_of(known.spool.root, known.id),
        "job": show.job_json(known.job) if known.job else None,
        "entries": [at.path for at in known.chunks],
    }


def _task_json(known: Tally, number: int) -> dict[str, Any]:
    at = known.chunk_of(number)
    assert at is not None
    entry = array.task_entry(at.entry, number)
    line = known.known.get(number)
    state = known.state(number)
    return {
        "id": known.id,
        "task": number,
        "unit": entry.unit,
        "state": state.name,
        "attempt": entry.attempt,
        "node": (line or {}).get("node") if state.ended else at.node or None,
        "outputs": _outputs(known, at, number),
        "devices": _devices(known, at, state),
        "result": dict(line) if line and state.ended else None,
        "entry": at.path,
    }


def _outputs(known: Tally, at: Placed, number: int) -> dict[str, str]:
    line = known.known.get(number) or {}
    entry = array.task_entry(at.entry, number)._replace(attempt=line.get("attempt") or at.entry.attempt)
    return show.output_paths(known.spool, at._replace(entry=entry), known.job, str(line.get("node") or at.node))


def _devices(known: Tally, at: Placed, state: State) -> dict[str, dict[str, int]]:
    """Which devices a task holds that runs, as its node says."""
    runs = state in (State.RUNNING, State.SUSPENDED)
    return devices.said(known.spool.read_node(at.node)).get(at.entry.unit, {}) if runs else {}


def _counts(known: Tally) -> list[str]:
    found = known.by_state().items()
    return [f"{len(numbers)} {state.name} ({array.ranges(numbers, MOST_RANGES)})" for state, numbers in found]


def _show_array(known: Tally) -> list[str]:
    entry, job = known.chunks[0].entry, known.job
    label = f" ({entry.label})" if entry.label else ""
    lines = [f"job {known.id}{label}: an array of {known.spec.size} tasks, {array.show(known.spec)}"]
    pairs = [("tasks", text) for text in _counts(known)]
    if job:
        words = [*(["(script)"] if job.script else []), shlex.join(job.command)]
        pairs += [("command", " ".join(words).strip()), ("directory", job.chdir)]
        pairs.append(("submitted", f"{job.user} on {job.submit_host or '?'}, {job.submitted or '?'}"))
        if job.max_fails:
            pairs.append(("max-fails", str(job.max_fails)))
    limit = resources.show_seconds(entry.limit_s)
    rest = f"time {limit}, priority {entry.priority}, rerun {RERUN_WORDS[entry.rerun]}"
    pairs.append(("each", f"{resources.show(entry.wants)}, {rest}"))
    if why := known.why_cancelled():
        pairs.append(("because", why))
    pairs += [("home", home.path_of(known.spool.root, known.id)), ("entries", str(len(known.chunks)))]
    return lines + [f"  {key:<10} {value}" for key, value in pairs]


def _show_task(known: Tally, number: int) -> list[str]:
    at = known.chunk_of(number)
    assert at is not None
    state, line = known.state(number), known.known.get(number)
    pairs = [("array", f"{known.spec.size} tasks, {array.show(known.spec)}")]
    pairs += [("command", shlex.join(known.job.command))] if known.job else []
    pairs += [("attempt", str(at.entry.attempt)), ("node", str((line or {}).get("node") or at.node or "-"))]
    pairs += list(_outputs(known, at, number).items())
    pairs += show.result_pairs(dict(line)) if line and state.ended else []
    if held := _devices(known, at, state):
        pairs.append(("devices", devices.show(held)))
    pairs.append(("entry", at.path))
    return [f"job {known.id}_{number}: {state.name}", *(f"  {key:<10} {value}" for key, value in pairs)]


def _why_array(scene: Scene, known: Tally) -> list[str]:
    lines = [f"job {known.id} is an array of {known.spec.size} tasks: {'; '.join(_counts(known))}."]
    if why := known.why_cancelled():
        lines.append(f"  reason: {why}")
    waiting = [at for at in known.chunks if at.top in ("queue", "held")]
    if waiting:
        lines += explain.why_lines(scene, waiting[0])
    bad = [n for state, some in known.by_state().items() if state is not State.COMPLETED for n in some]
    if bad and all(at.top == "done" for at in known.chunks):
        lines.append(f"  What one wrote: spoolq out {known.id}_{bad[0]}. Again: spoolq requeue {known.id} --failed")
    return lines


def _why_task(scene: Scene, known: Tally, number: int) -> list[str]:
    at = known.chunk_of(number)
    assert at is not None
    state, line = known.state(number), known.known.get(number) or {}
    name = f"job {known.id}_{number}"
    if not state.ended:
        lines = explain.why_lines(scene, at)
        if state is State.PENDING and at.top == "running":
            return [f"{name} waits: others of {at.entry.unit} run before it on {at.node}, one after another."]
        return [f"{name} is one of {at.entry.unit}:", *lines] if at.entry.unit != f"{known.id}_{number}" else lines
    where = f" on {line['node']}" if line.get("node") else ""
    because = explain.ended_because(at._replace(entry=at.entry._replace(ending=known.ended(number))), dict(line))
    lines = [f"{name} ended{where}: {state.name}, {because}."]
    reason = line.get("reason") or ("" if line else known.why_cancelled())
    return [*lines, *([f"  reason: {reason}"] if reason else [])]
