"""
The checker: what jobs wrote themselves against what the spool says, and what was left behind.

It knows nothing of faults: after recovery every case must look the same.
"""

import contextlib
import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from spoolq import deliver
from spoolq.spool import Spool
from tests.crash.stage import NODE, Stage

VIOLATIONS = ("lost", "duplicated", "unexpected")


@dataclass(frozen=True)
class Expected:
    """
    How a job ends when all is well.

    Args:
        endings: as in the entry's name; any of them is right.
        stdout: exactly, where the job ended by itself.
        runs: how often it may start at most.
        lost: whether its output may be said to be lost, since the system said so; that is never a success.
        told: whether its id was printed or its file accepted: it must not be lost.
        file: whether there must be a result.json; else what is made of history will do.
        opens: whether its outputs can be opened.
    """

    endings: tuple[str, ...]
    stdout: bytes = b""
    runs: int = 1
    told: bool = True
    file: bool = True
    opens: bool = True
    lost: bool = False


@dataclass
class Verdict:
    """What is wrong, in words, by kind."""

    found: list[tuple[str, str]] = field(default_factory=list)

    def add(self, kind: str, text: str) -> None:
        """One violation."""
        assert kind in VIOLATIONS
        self.found.append((kind, text))


def check(stage: Stage, expected: Mapping[int, Expected], *, deaths: int = 0) -> Verdict:
    """
    After everything has come to rest.

    Args:
        expected: by id; a job that is not in it must not exist.
        deaths: of processes, each of which may leave one temporary file.
    """
    verdict = Verdict()
    _check_runs(stage, expected, verdict)
    entries = stage.entries()
    for top in ("queue", "held", "running", "reaping"):
        for entry in entries[top]:
            verdict.add("unexpected", f"job {entry.id} is left in {top}/")
    done = Counter(entry.id for entry in entries["done"])
    for job_id, count in done.items():
        if count > 1:
            verdict.add("duplicated", f"job {job_id} has {count} entries in done/")
        if job_id not in expected:
            verdict.add("unexpected", f"job {job_id} exists")
    for job_id, wanted in expected.items():
        if job_id not in done:
            if wanted.told and not any(entry.id == job_id for top in entries.values() for entry in top):
                verdict.add("lost", f"job {job_id} has no entry")
            continue
        entry = next(entry for entry in entries["done"] if entry.id == job_id)
        _check_end(stage, entry, wanted, verdict)
    _check_leftovers(stage, verdict, deaths)
    return verdict


def _check_runs(stage: Stage, expected: Mapping[int, Expected], verdict: Verdict) -> None:
    starts = Counter(mark[:2] for mark in stage.marks() if mark[2] == "start")
    for (job_id, attempt), count in starts.items():
        if count > 1:
            verdict.add("duplicated", f"attempt {attempt} of job {job_id} started {count} times")
        if job_id not in expected:
            verdict.add("unexpected", f"job {job_id} ran")
    for job_id, wanted in expected.items():
        count = sum(number for key, number in starts.items() if key[0] == job_id)
        if count > wanted.runs:
            verdict.add("duplicated", f"job {job_id} started {count} times")


def _check_end(stage: Stage, entry: Any, wanted: Expected, verdict: Verdict) -> None:
    home, job_id = f"{stage.root}/jobs/{entry.id // 1000}/{entry.id}", entry.id
    result = deliver.read_ending(Spool(stage.root), job_id) or {}  # as every command reads it
    ran = [mark[2] for mark in stage.marks() if mark[:2] == (job_id, entry.attempt)]
    only_words = entry.ending == "cancelled" and not ran  # then its name says it all, and the rest may be missing
    if not result or not (only_words or not wanted.file or os.path.exists(f"{home}/result.json")):
        verdict.add("lost", f"job {job_id} has no result")
        return
    lost = wanted.lost and str(result["reason"]).startswith("output")
    if entry.ending not in wanted.endings and not (lost and entry.ending != "exit0"):
        verdict.add("unexpected", f"job {job_id} ended as {entry.ending}, not {' or '.join(wanted.endings)}")
    if (result["id"], result["attempt"]) != (job_id, entry.attempt):
        verdict.add("unexpected", f"job {job_id}: the result is of {result['id']}, attempt {result['attempt']}")
    by_name = f"exit{result['exit_code']}" if result["signal"] is None else f"signal{result['signal']}"
    if entry.ending.startswith(("exit", "signal")) and by_name != entry.ending:
        verdict.add("unexpected", f"job {job_id}: {entry.ending} in its name, {by_name} in its result")
    if entry.ending == "nodefail" and not result["reason"]:
        verdict.add("unexpected", f"job {job_id} is said to have failed with its node, for no reason")
    if entry.ending == "exit126" and not wanted.opens and not ran:
        return
    if entry.ending.startswith("exit"):
        if ran != ["start", "end"]:
            verdict.add("unexpected", f"job {job_id} ended as {entry.ending}, but did {ran or 'nothing'}")
        try:
            with open(f"{home}/stdout", "rb") as file:
                data = file.read()
        except FileNotFoundError:
            data = b""
        starts = sum(mark[0] == job_id and mark[2] == "start" for mark in stage.marks())
        if data not in (wanted.stdout, wanted.stdout * starts):  # a later attempt appends
            verdict.add(
                "unexpected", f"job {job_id}: stdout has {len(data)} bytes, not {len(wanted.stdout)}, or others"
            )
    gens = [line.get("gen") for line in _history(stage) if line.get("id") == job_id]
    if entry.gen not in gens and not only_words:
        verdict.add("lost", f"job {job_id}: no line of history about its end")


def _history(stage: Stage) -> list[dict[str, Any]]:
    found = []
    for name in os.listdir(f"{stage.root}/history"):
        for line in stage.log(f"spool/history/{name}").splitlines():
            with contextlib.suppress(ValueError):  # torn; what is missing shows
                found.append(json.loads(line))
    return [line for line in found if isinstance(line, dict)]


def _check_leftovers(stage: Stage, verdict: Verdict, deaths: int) -> None:
    temporary = []
    for directory, _, names in os.walk(stage.base):
        temporary += [os.path.join(directory, name) for name in names if name.startswith(".t.")]
    if len(temporary) > deaths:
        verdict.add("unexpected", f"{len(temporary)} temporary files after {deaths} deaths: {temporary}")
    for name in ("control", "admit"):
        with contextlib.suppress(FileNotFoundError):
            for left in os.listdir(f"{stage.root}/nodes/{NODE}/{name}"):
                if not left.startswith("."):
                    verdict.add("unexpected", f"{name}/{left} is left")
    for left in os.listdir(f"{stage.root}/drop"):
        if not left.endswith(".id") and not left.endswith(".why") and not left.startswith("."):
            verdict.add("unexpected", f"drop/{left} is left")
    said = {log: stage.log(log) for log in ("node.log", "commands.log", "traced.err")} | {
        "family.log": stage.family_log()
    }
    for log, text in said.items():
        if "Traceback" in text:
            verdict.add("unexpected", f"a traceback in {log}: {text[-1500:]}")
