"""
The one checker: what jobs wrote on their nodes' own disks, against what the spool says of them.

Invariants checked, for every job that was acknowledged or that ran:
it has one entry, in done/; its result and a line of history agree with it; it ended as the job itself
says that it ended; no attempt ran twice, and no attempt ran beside another; an attempt is repeated only where a fault and the
job's rule allow it; the output that its user sees is that of the attempt that counts.
"""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from spoolq.entry import RERUN_WORDS, Entry, parse_name

CODES = 5  # a job exits with its id modulo this, see lab/job.sh
Unit = int | str  # a job's id, or `42_7`: a task of an array, which is as good as a job


@dataclass
class Expected:
    """What a scenario may do to its jobs; ids of jobs where it is not the same for all."""

    acknowledged: Counter[Unit] = field(default_factory=Counter)
    rules: dict[Unit, str] = field(default_factory=dict)  # default certain
    cancelled: set[Unit] = field(default_factory=set)  # may end so, or as if nobody had said anything
    timeout: set[Unit] = field(default_factory=set)  # must end so
    struck: set[Unit] = field(default_factory=set)  # running when a fault came
    again: set[Unit] = field(default_factory=set)  # somebody asked for another attempt
    codes: dict[Unit, int] = field(default_factory=dict)  # exit codes of those that were told one
    cut: int = 0  # submissions whose answer nobody heard: their jobs may run without being acknowledged
    reruns: bool = False  # a node lost its running jobs
    sigterm: bool = False  # a machine was shut down, which signals everything
    output_lost: bool = False  # the export was full


@dataclass
class Verdict:
    """Lines that say what is wrong, and counts."""

    lost: list[str] = field(default_factory=list)
    duplicated: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)
    recovered: int = 0

    @property
    def good(self) -> bool:
        """Nothing is wrong."""
        return not (self.lost or self.duplicated or self.unexpected)


@dataclass
class Truth:
    """What the jobs themselves wrote, of all nodes: (id, attempt) -> times."""

    starts: dict[tuple[Unit, int], list[float]] = field(default_factory=dict)
    ticks: dict[tuple[Unit, int], list[float]] = field(default_factory=dict)
    ends: dict[tuple[Unit, int], list[float]] = field(default_factory=dict)

    @classmethod
    def read(cls, lines: Iterable[str]) -> "Truth":
        """From the lines of job.sh."""
        made = cls()
        kinds = {"start": made.starts, "tick": made.ticks, "end": made.ends}
        for line in lines:
            key, kind, time = line.split()
            job, attempt = key.split(".")
            kinds[kind].setdefault((int(job) if job.isdigit() else job, int(attempt)), []).append(float(time))
        return made

    def attempts(self, job: Unit) -> list[int]:
        """Which attempts of a job ran."""
        return sorted(attempt for known, attempt in self.starts if known == job)


def check(expected: Expected, truth: Truth, spool: dict[str, Any]) -> Verdict:
    """
    Compare.

    Args:
        spool: what lab/collect.py says.
    """
    verdict = Verdict()
    found: dict[Unit, list[tuple[str, Entry]]] = {}
    for folder, name in spool["entries"]:
        entry = parse_name(name)
        if entry is None:
            verdict.unexpected.append(f"no name of an entry: {folder}/{name}")
        else:
            found.setdefault(entry.unit, []).append((folder, entry))
    ran = {job for job, _ in truth.starts}
    for job in sorted(expected.acknowledged.keys() | ran | found.keys(), key=str):
        bad = len(verdict.lost) + len(verdict.duplicated) + len(verdict.unexpected)
        _one(verdict, expected, truth, spool, job, found.get(job, []))
        if job in expected.struck and bad == len(verdict.lost) + len(verdict.duplicated) + len(verdict.unexpected):
            verdict.recovered += 1
    if unheard := len((ran | found.keys()) - expected.acknowledged.keys()):
        verdict.notes["unacknowledged"] = unheard
        if not expected.cut:
            verdict.unexpected.append(f"{unheard} jobs that nobody submitted")
    verdict.notes[".nfs files"] = len(spool["silly"])
    return verdict


def _one(
    verdict: Verdict, expected: Expected, truth: Truth, spool: dict[str, Any], job: Unit, at: list[tuple[str, Entry]]
) -> None:
    if expected.acknowledged[job] > 1:
        verdict.duplicated.append(f"{job}: acknowledged twice")
    attempts = truth.attempts(job)
    if at:  # of a submission that nobody heard the end of, the name says it
        expected.rules.setdefault(job, RERUN_WORDS[at[0][1].rerun])
    _runs(verdict, expected, truth, job, attempts)
    if len(at) > 1:
        verdict.duplicated.append(f"{job}: entries {[f'{folder}/{entry.name}' for folder, entry in at]}")
        return
    if not at:
        verdict.lost.append(f"{job}: no entry (ran: {attempts})")
        return
    folder, entry = at[0]
    if not folder.startswith("done"):
        verdict.lost.append(f"{job}: still {folder}/{entry.name}")
        return
    if attempts and attempts[-1] > entry.attempt:
        verdict.duplicated.append(f"{job}: attempt {attempts[-1]} ran, {entry.name} counts")
    verdict.notes["reruns"] += entry.attempt > 1
    home = spool["homes"].get(str(job)) or {}
    verdict.notes["late results"] += len(home.get("late", []))
    if not entry.chunk and [job, entry.gen] not in spool["history"]:  # of a task its line in the home is what counts
        verdict.lost.append(f"{job}: no line of history for {entry.name}")
    if not home.get("result"):
        verdict.lost.append(f"{job}: no result.json for {entry.name}")
        return
    result = json.loads(home["result"])
    of = f"{result['id']}_{result['task']}" if entry.chunk else result["id"]
    if (of, result["attempt"]) != (job, entry.attempt):
        verdict.unexpected.append(f"{job}: result is of {of}.{result['attempt']}, entry is {entry.name}")
        return
    if problem := _ending(verdict, expected, truth, entry, result, home.get("stdout")):
        verdict.unexpected.append(f"{job}: {entry.name}: {problem}")


def _runs(verdict: Verdict, expected: Expected, truth: Truth, job: Unit, attempts: list[int]) -> None:
    for attempt in attempts:
        key = (job, attempt)
        if len(truth.starts[key]) > 1 or len(truth.ends.get(key, [])) > 1:
            verdict.duplicated.append(f"{job}: attempt {attempt} ran {len(truth.starts[key])} times")
    for one, other in zip(attempts, attempts[1:], strict=False):
        said = [truth.starts, truth.ticks, truth.ends]
        last = max(time for kind in said for time in kind.get((job, one), []))
        if last > truth.starts[job, other][0]:
            late = last - truth.starts[job, other][0]
            verdict.duplicated.append(f"{job}: attempt {one} still ran {late:.1f} s into attempt {other}")
        verdict.notes["ended and run again"] += (job, one) in truth.ends
    allowed = job in expected.again or (expected.reruns and expected.rules.get(job) != "never")
    if len(attempts) > 1 and not allowed:
        verdict.duplicated.append(f"{job}: attempts {attempts}, rule {expected.rules.get(job, 'certain')}")


def _ending(
    verdict: Verdict, expected: Expected, truth: Truth, entry: Entry, result: dict[str, Any], stdout: str | None
) -> str:
    """What is wrong with the end of a job, or nothing."""
    job, word = entry.unit, entry.ending or ""
    key = (job, entry.attempt)
    began, ended = key in truth.starts, key in truth.ends
    if word == "cancelled":
        return "" if job in expected.cancelled and not ended else f"was not to be cancelled, ended: {ended}"
    if (word == "timeout") != (job in expected.timeout):
        return "time limit"
    if word == "timeout":
        return "" if began and not ended else "did not run, or to its end"
    if word == "nodefail":
        verdict.notes["node fail"] += 1
        return "" if expected.reruns and expected.rules.get(job) == "never" else "without cause"
    if expected.sigterm and word == "signal15" and began and not ended:
        verdict.notes["ended by the shutdown's SIGTERM"] += 1
        return ""
    if not ended:
        return f"did not run to its end; {result.get('reason')}"
    if expected.output_lost and str(result.get("reason")).startswith("output"):
        verdict.notes["output lost"] += 1
        return "" if result["state"] != "COMPLETED" else "success without its output"
    code = expected.codes.get(job, int(str(job).rpartition("_")[2]) % CODES)
    if (word, result["exit_code"]) != (f"exit{code}", code):
        return f"ended with {code}, result says {result['exit_code']}, {result.get('reason')}"
    return _output(key, stdout or "")


def _output(key: tuple[Unit, int], stdout: str) -> str:
    """What is wrong with the output: that of the attempt that counts, after what earlier ones came to write."""
    said = f"early {key[0]}.{key[1]}\nlate {key[0]}.{key[1]}\n"
    earlier = {f"{word} {key[0]}.{attempt}" for word in ("early", "late") for attempt in range(1, key[1])}
    if not stdout.endswith(said) or not set(stdout.removesuffix(said).splitlines()) <= earlier:
        return f"stdout {stdout!r:.120}, which should end with {said!r}"
    return ""
