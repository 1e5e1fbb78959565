"""
Arrays and limits in a trace: I17 results of tasks, I18 throttles, I19 limits of users. Pure, like `check`.

An entry of an array is a chunk of it (`42_1-3`), what runs is a task (`42_2`). The commit of an array is one
rename of a directory; `expand` makes of it a rename of each entry, so that all other rules hold for chunks
as for jobs, and those about what runs for tasks: never two runs of one task, or one attempt twice.
"""

import json
import re
from typing import Any

from tests.sim.entries import Violation, job_of, numbers_of, runs_of, token_of

Event = tuple[Any, ...]
Line = dict[str, Any]
_PRIVATE = re.compile(r"(jobs/\d+/\d+/\.entry)/([^/]+)")
WORDS = {"timeout": "TIMEOUT", "oom": "OUT_OF_MEMORY", "cancelled": "CANCELLED"}


def expand(trace: list[Event]) -> list[Event]:
    """The trace with an array's commit as a rename of each of its entries, and its `ack` as one for each."""
    found: list[Event] = []
    inside: dict[str, dict[str, int]] = {}  # what lies in the private directory of an array
    raw: list[tuple[Event, int]] = []  # changes so far, and how many they are now
    units: dict[int, list[int | str]] = {}
    for event in trace:
        kind = event[1]
        if kind == "rollback":
            undone, raw = raw[len(raw) - event[2] :], raw[: len(raw) - event[2]]
            for op, _ in undone:
                if op[3] == "symlink" and (match := _PRIVATE.fullmatch(op[4])):
                    inside.get(match[1], {}).pop(match[2], None)
            found.append((event[0], "rollback", sum(count for _, count in undone)))
            continue
        if kind == "ack":
            found += [(*event[:3], unit, *event[4:]) for unit in units.get(event[3], [event[3]])]
            continue
        if kind != "op":
            found.append(event)
            continue
        some = [event]
        if event[3] == "symlink" and (match := _PRIVATE.fullmatch(event[4])):
            inside.setdefault(match[1], {})[match[2]] = event[6]
        elif event[3] == "rename" and event[5].startswith(("queue/", "held/")) and inside.get(event[4]):
            some = [
                (*event[:4], f"{event[4]}/{name}", f"{event[5]}/{name}", ino, *event[7:])
                for name, ino in inside.pop(event[4]).items()
            ]
            tokens = [token_of(op[5]) for op in some]
            units[job_of(tokens[0].id) if tokens[0] else 0] = [token.id for token in tokens if token]
        raw.append((event, len(some)))
        found += some
    return found


def lines_in(event: Event) -> list[Line]:
    """The results of tasks in an event `lines`."""
    found = []
    for text in event[3].split("\n"):
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and type(line.get("task")) is int and type(line.get("attempt")) is int:
            found.append(line)
    return found


def key_of(path: str, line: Line) -> str:
    """`42_7`, whose result a line in a file is."""
    return f"{path.split('/tasks/')[0].rpartition('/')[2]}_{line['task']}"


# --- I8 for what has a result


def again(trace: list[Event]) -> list[Violation]:
    """A task that has a durable result is not run again, unless somebody asked or a failure is to be tried again."""
    found: list[Violation] = []
    results: dict[str, tuple[float, Line]] = {}
    claimed: dict[str, float] = {}
    retries: dict[int, int] = {}
    asked: set[int] = set()
    for event in trace:
        t, kind = event[:2]
        if kind == "lines" and event[4]:
            for line in lines_in(event):
                known = results.get(key := key_of(event[2], line))
                if line.get("state") != "PENDING" and (known is None or known[1]["attempt"] < line["attempt"]):
                    results[key] = t, line
        elif kind == "asks" and event[3] == "requeue":
            asked.add(job_of(event[4]))
        elif kind == "op" and event[3] == "rename" and (token := token_of(event[5])):
            retries[job_of(token.id)] = token.retries
            if event[5].startswith("running/") and event[4].startswith("queue/"):
                claimed |= {str(key): t for key in runs_of(token.id)}
        elif kind == "start" and isinstance(event[3], str) and event[3] in results:
            key, attempt = event[3], event[4]
            since, line = results[key]
            tried = line["state"] not in ("COMPLETED", "CANCELLED", "NODE_FAIL")
            tried = tried and line["attempt"] < attempt and line["attempt"] <= retries.get(job_of(key), 0)
            if since < claimed.get(key, 0.0) and job_of(key) not in asked and not tried:
                text = f"attempt {attempt} starts, and it ended {line['state']} in attempt {line['attempt']}"
                found.append(Violation("I8", t, key, text))
    return found


# --- I17


def ended_unheard(trace: list[Event]) -> set[int]:
    """Jobs that waited for others, and were ended while they did."""
    renames = [e for e in trace if e[1] == "op" and e[3] == "rename" and e[4].startswith("held/")]
    found = [token for e in renames if e[5].startswith("done/") and (token := token_of(e[4]))]
    return {job_of(token.id) for token in found if "HD" in token.facts}


def results(trace: list[Event]) -> list[Violation]:
    """At the end every task has a result, which is true, and its chunk says no more and no less."""
    found: list[Violation] = []
    if not any(event[1] == "drained" for event in trace):
        return found
    truth = {(e[3], e[4]): e[5] for e in trace if e[1] == "end"}
    last: dict[Any, int] = {}
    for event in trace:
        if event[1] == "start":
            last[event[3]] = max(last.get(event[3], 0), event[4])
    asks = [(e[3], job_of(e[4]), e[4]) for e in trace if e[1] == "asks"]
    killed = {target for verb, _, target in asks if verb == "kill"}
    asked = {target for verb, _, target in asks if verb == "requeue"}
    made = [event[4] for event in trace if event[1] == "op" and event[3] == "create"]
    bounded = {int(path.split("/")[2]) for path in made if re.match(r"jobs/\d+/\d+/failed/", path)}  # --max-fails
    told = {job_of(event[3]) for event in trace if event[1] == "ack"}
    children = {event[3] for event in trace if event[1] == "depends"} | ended_unheard(trace) - told
    for event in trace:
        if event[1] != "chunk":
            continue
        t, _, unit, attempt, ending, lines = event
        job_id = job_of(unit)
        may_end = bool({job_id, unit} & killed) or job_id in bounded or job_id in children
        if ending == "cancelled" and not may_end and not any(key in killed for key in runs_of(unit)):
            found.append(Violation("I17", t, unit, "cancelled, and nobody asked for that"))
        whole = ending not in ("cancelled", "nodefail")
        bad = [number for number, line in lines.items() if line.get("state") != "COMPLETED"]
        if whole and (ending == "exit0") != (not bad):
            found.append(Violation("I17", t, unit, f"ended with {ending}, of its tasks {sorted(bad)} did not end well"))
        for number in numbers_of(unit):
            key, line = f"{job_id}_{number}", lines.get(number)
            why = _untrue(line, last.get(key, 0), truth, key, whole=whole)
            if line and line.get("state") == "PENDING" and {job_id, key} & asked and not whole:
                why = ""  # asked for again, and then all of it was cancelled
            if line and not why and line.get("state") == "CANCELLED" and not (may_end or key in killed):
                why = "cancelled, and nobody asked for that"
            if why:
                found.append(Violation("I17", t, key, f"{why}; its chunk ended as {attempt}, {ending}"))
    return found


def _untrue(line: Line | None, last: int, truth: dict[Any, Line], key: str, *, whole: bool) -> str:
    """What is wrong with the result of a task; `last`: its last attempt that started."""
    if line is None:
        return "has no result" if whole else ""
    attempt, state = line["attempt"], line.get("state")
    if state == "PENDING":
        return "is to run again, and does not"
    if whole and attempt < last:
        return f"attempt {last} was started, and the result is of {attempt}"
    if not line.get("started"):
        launch = state == "FAILED" and line.get("exit_code") == 126  # its output could not be opened
        return "" if launch or state in ("CANCELLED", "NODE_FAIL") else f"{state}, and never ran"
    real = truth.get((key, attempt))
    if real is None:
        return f"{state} as attempt {attempt}, which never ended"
    expected = WORDS.get(real["reason"], "COMPLETED" if real["code"] == 0 else "FAILED")
    if real["reason"] in ("lost", "power") or state == "NODE_FAIL":
        return ""
    return "" if expected == state else f"{state}, in truth {expected}"


# --- I18, I19


def limits(trace: list[Event]) -> list[Violation]:
    """Never more tasks of an array, or jobs of a user, at once than may be."""
    found: list[Violation] = []
    facts: dict[Any, tuple[int, str, str]] = {}  # of what runs: tasks of its array at once, owner, rerun rule
    running: dict[Any, str] = {}
    off: set[str] = set()  # machines that could not fence: what runs there is killed when they wake
    most = 0
    for event in trace:
        t, kind = event[:2]
        if kind == "policy":
            most = event[2].get("most", 0)
        elif kind == "op" and event[3] == "rename" and (token := token_of(event[5])):
            facts |= dict.fromkeys(runs_of(token.id), (token.most, token.owner, token.rule))
        elif kind == "fault" and event[3] in ("suspend_machine", "kill_family", "runner_dies_at_start"):
            off.add(event[2])
        elif kind == "end":
            running.pop(event[3], None)
        elif kind == "start" and event[3] in facts:
            key, (array, owner, _) = event[3], facts[event[3]]
            running[key] = event[2]
            here = [k for k, node in running.items() if k in facts and not (facts[k][2] == "Y" and node in off)]
            alike = [k for k in here if job_of(k) == job_of(key)]
            if array and len(alike) > array:
                found.append(Violation("I18", t, key, f"starts as one of {sorted(alike)}, and {array} may run at once"))
            theirs = [k for k in here if facts[k][1] == owner]
            if most and owner and len(theirs) > most:
                text = f"starts as one of {sorted(map(str, theirs))} of {owner}, who may run {most}"
                found.append(Violation("I19", t, key, text))
    return found
