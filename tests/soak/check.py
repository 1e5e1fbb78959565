"""
The judge: from what was asked, what the jobs themselves say, and what lies in the spool, to what is wrong.

One pure function over plain values. It knows the rules that users are promised, and nothing of how they are
kept; it reads no file and no clock. All times are seconds of one clock of one machine.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

SLACK_S = 20.0  # what a fault leaves behind may show so long after it
REFUSED = (2, 75, 78)  # exit codes of a command that made no job
LAST_S = 1.0  # from the last word of a job to its end, as its parent sees it
FAMILY = 3  # processes of a node family: so many killed and nobody saw how a job ended
SPOOL_FAULTS = frozenset(["full", "readonly", "away", "partition"])
DEATHS = frozenset(["power", "blackout", "death"])


class Plan(NamedTuple):
    """A job as its user wants it; `rule` is the letter N, C or Y; a negative `code` is a signal."""

    token: str
    how: str
    rule: str = "C"
    code: int = 0
    limit_s: float | None = None
    retries: int = 0


class Ack(NamedTuple):
    """The user was told that the job is in; `id` is None where no id was told (a dropped file)."""

    token: str
    id: int | None
    at: float


class Told(NamedTuple):
    """What `spoolq run` came to for its user: its exit code, and the sha256 of what it printed."""

    token: str
    code: int
    sha: str
    at: float


class Line(NamedTuple):
    """
    What a job says of itself; `kind` is start, alive, end, or over: what it said of its end is on the disk.

    `born` is when its process was made, which may be long before its first word.
    """

    kind: str
    at: float
    id: int
    attempt: int
    node: str
    token: str
    overlap: bool = False
    code: int | None = None
    signal: int | None = None
    size: int = 0
    sha: str = ""
    torn: str = ""
    born: float = 0.0


class Asked(NamedTuple):
    """A request of a user about a job, and what the command answered (empty: it failed, or was killed)."""

    verb: str
    id: int
    since: float
    until: float
    answer: str = ""


class Fault(NamedTuple):
    """What was done to a node, or to all (`node` empty); `killed`: how many processes of runner and watchers."""

    kind: str
    node: str
    since: float
    until: float
    killed: int = 0


class Output(NamedTuple):
    """A job's stdout: its bytes, and the sha256 of as many of the last ones as the job wants to have written."""

    size: int
    sha: str


class Place(NamedTuple):
    """An entry: `top` is queue, held, running, reaping or done."""

    top: str
    id: int
    gen: int
    attempt: int
    ending: str = ""


@dataclass
class World:
    """
    Everything that is known at the end; `tokens`, `results` and `outputs` are by id.

    `private`: files that were on their way to a name; of `killed` daemons and commands each may have left one.
    """

    plans: dict[str, Plan] = field(default_factory=dict)
    acks: list[Ack] = field(default_factory=list)
    told: list[Told] = field(default_factory=list)
    truth: list[Line] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)
    tokens: dict[int, str] = field(default_factory=dict)
    results: dict[int, dict[str, Any]] = field(default_factory=dict)
    outputs: dict[int, Output] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    late: list[int] = field(default_factory=list)
    rejected: set[str] = field(default_factory=set)
    left: list[str] = field(default_factory=list)
    private: list[str] = field(default_factory=list)
    killed: int = 0
    crashes: list[str] = field(default_factory=list)


class Wrong(NamedTuple):
    """One violation; `id` is None where it is about no job."""

    kind: str  # lost, duplicated, unexpected, untrue, left
    id: int | None
    text: str


@dataclass
class Verdict:
    """What is wrong, and how much was looked at."""

    wrong: list[Wrong] = field(default_factory=list)
    acknowledged: int = 0
    recovered: int = 0
    starts: int = 0
    done: int = 0
    endings: Counter[str] = field(default_factory=Counter)

    def count(self, kind: str) -> int:
        """How many violations of a kind."""
        return sum(wrong.kind == kind for wrong in self.wrong)


Run = tuple[int, int]  # id, attempt


class Judge:
    """The world, by job."""

    def __init__(self, world: World) -> None:
        self.world, self.verdict = world, Verdict()
        self.by_run: dict[Run, list[Line]] = defaultdict(list)
        self.starts: dict[int, list[Line]] = defaultdict(list)
        self.entries: dict[int, list[Place]] = defaultdict(list)
        self.asked: dict[int, list[Asked]] = defaultdict(list)
        for line in sorted(world.truth, key=lambda line: line.at):
            self.by_run[line.id, line.attempt].append(line)
            if line.kind == "start":
                self.starts[line.id].append(line)
        for place in world.places:
            self.entries[place.id].append(place)
        for asked in world.asked:
            self.asked[asked.id].append(asked)

    def say(self, kind: str, job: int | None, text: str) -> None:
        self.verdict.wrong.append(Wrong(kind, job, text))

    def plan(self, job: int) -> Plan | None:
        return self.world.plans.get(self.world.tokens.get(job, ""))

    def was_asked(self, job: int, verbs: Iterable[str], since: float, until: float) -> bool:
        wanted = set(verbs)
        return any(a.verb in wanted and a.since <= until and a.until >= since for a in self.asked[job])

    def faults(self, node: str | None, since: float, until: float) -> list[Fault]:
        """Those that may have touched a node (None: any) between two times."""
        return [
            f
            for f in self.world.faults
            if (node is None or f.node in ("", node)) and f.since <= until and f.until + SLACK_S >= since
        ]

    # --- lost

    def lost(self) -> None:
        """What was acknowledged is there, once, has ended, and has a result."""
        world = self.world
        ids_of = defaultdict(list)
        for job, token in world.tokens.items():
            if self.entries[job]:
                ids_of[token].append(job)
        for ack in world.acks:
            found = ids_of.get(ack.token, [])
            if ack.id is not None and ack.id not in found:
                self.say("lost", ack.id, f"{ack.token} was acknowledged as {ack.id}, which is not there")
            elif not found:
                why = "rejected" if ack.token in world.rejected else "not there"
                self.say("lost", None, f"{ack.token} was dropped whole and is {why}")
        for token, ids in sorted(ids_of.items()):
            if len(ids) > 1:
                self.say("duplicated", ids[1], f"{token} was submitted once and is {ids}")
            if token not in world.plans:
                self.say("unexpected", ids[0], f"{token or 'a job that nobody planned'} is there as {ids}")
        for job, places in sorted(self.entries.items()):
            if len(places) > 1:
                self.say("duplicated", job, f"has {len(places)} entries: {places}")
            for place in places:
                if place.top != "done":
                    self.say("lost", job, f"has not ended: it is still in {place.top}/")
                elif job not in world.results:
                    self.say("lost", job, "is in done/ without a result")
                self.verdict.done += place.top == "done"

    # --- twice

    def twice(self) -> None:
        """Each attempt starts and ends at most once, and the next begins by the rule and after the last is gone."""
        for (job, attempt), lines in sorted(self.by_run.items()):
            for kind in ("start", "end"):
                if (count := sum(line.kind == kind for line in lines)) > 1:
                    self.say("duplicated", job, f"attempt {attempt} has {count} {kind}s")
        for job, starts in sorted(self.starts.items()):
            for line in starts:
                if line.overlap:
                    self.say("duplicated", job, f"attempt {line.attempt} began while something of another still ran")
            for before, after in zip(starts, starts[1:], strict=False):
                later = [line for line in self.by_run[job, before.attempt] if line.at > after.at]
                if later and before.attempt != after.attempt:
                    text = f"attempt {before.attempt} still ran when attempt {after.attempt} began"
                    self.say("duplicated", job, text)
                if not self.may_follow(job, before, after):
                    text = f"attempt {after.attempt} began after attempt {before.attempt} had, and no rule allows it"
                    self.say("duplicated", job, text)

    def may_follow(self, job: int, before: Line, after: Line) -> bool:
        """Whether a second start had a cause that its user allowed."""
        if self.was_asked(job, ["requeue"], before.at - SLACK_S, after.at):
            return True
        plan = self.plan(job)
        rule = plan.rule if plan else "N"
        if plan and before.attempt <= plan.retries and self.failed(job, before.attempt):
            return True
        seen = self.faults(before.node, before.at - SLACK_S, after.at)
        died = any(fault.kind in DEATHS for fault in seen)
        # of a family that dies whole while it starts a job nobody knows whether it did: by its rule, as after a death
        born = before.born or before.at
        died |= sum(fault.killed for fault in seen if fault.since - LAST_S <= born <= fault.until) >= FAMILY
        return (rule != "N" and died) or (rule == "Y" and bool(seen))

    def failed(self, job: int, attempt: int) -> bool:
        """Whether an attempt ended as a failure, by what was written of it, or by its own word."""
        lines = self.by_run.get((job, attempt), [])
        return any(line.kind == "end" and (line.code or line.signal) for line in lines) or any(
            record["id"] == job and record["attempt"] == attempt and record["state"] in ("FAILED", "TIMEOUT")
            for record in self.world.history
        )

    # --- from nowhere

    def unexpected(self) -> None:
        """Nothing runs that was not submitted, and nothing after its cancellation was acknowledged."""
        for job, starts in sorted(self.starts.items()):
            token = self.world.tokens.get(job)
            for line in starts:
                if line.token != token or line.token not in self.world.plans:
                    self.say("unexpected", job, f"{line.token} ran as {job}, which is {token or 'not there'}")
                cancels = [a for a in self.asked[job] if a.verb == "kill" and a.answer == "cancelled"]
                before = [a for a in cancels if a.until < line.at]
                if before and not self.was_asked(job, ["requeue"], 0.0, line.at):
                    self.say("unexpected", job, f"attempt {line.attempt} began after its cancellation was acknowledged")

    # --- the truth

    def true(self) -> None:
        """Every result says what the job says; where it says something else there was a cause."""
        results = [result for _, result in sorted(self.world.results.items())]
        for result in results:
            self.compare(result)
            self.output(result)
        decided = {(r["id"], r["attempt"]) for r in results}
        for record in self.world.history:
            if (record["id"], record["attempt"]) not in decided and record["id"] in self.entries:
                self.compare(record)
        for result in results:
            places = self.entries[result["id"]]
            if len(places) == 1 and places[0].top == "done" and places[0].attempt != result["attempt"]:
                text = f"the result is of attempt {result['attempt']}, the entry of {places[0].attempt}"
                self.say("untrue", result["id"], text)

    def compare(self, result: dict[str, Any]) -> None:
        """One result, or line of history."""
        job, attempt, state = result["id"], result["attempt"], result["state"]
        self.verdict.endings[state] += 1
        lines = self.by_run.get((job, attempt), [])
        start = next((line for line in lines if line.kind == "start"), None)
        end = next((line for line in lines if line.kind == "end"), None)
        last = next((line for line in lines if line.kind == "over"), None)
        said = f"attempt {attempt} is {state}, exit code {result['exit_code']}, signal {result['signal']}, "
        said += f"reason {result['reason']!r}; the job says " + (
            f"exit code {end.code}, signal {end.signal}" if end else "that it began" if start else "nothing"
        )
        # without its last word it did not come to its end: something else ended it, nobody knows when
        until = last.at + LAST_S if last else float("inf")
        if not self.explained(result, start, end, until):
            self.say("untrue", job, said)

    def explained(self, result: dict[str, Any], start: Line | None, end: Line | None, until: float) -> bool:
        """Whether a result is the truth, or what was done to the job explains it; `until`: its parent saw its end."""
        job, state, reason = result["id"], result["state"], result["reason"] or ""
        since = start.at if start else 0.0
        node = start.node if start else result["node"]
        faults = self.faults(node, since - SLACK_S, until)
        plan = self.plan(job)
        if state == "CANCELLED":
            again = any(place.attempt > result["attempt"] for place in self.entries[job])
            return self.was_asked(job, ["kill", "requeue"] if again else ["kill"], 0.0, float("inf"))
        if state == "TIMEOUT":
            return plan is not None and plan.limit_s is not None
        if state == "NODE_FAIL":
            died = any(fault.kind in DEATHS for fault in faults)
            fenced = reason.startswith("lost: this node") and plan is not None and plan.rule == "Y"
            if fenced and faults:
                return True
            killed = sum(fault.killed for fault in faults)  # with a full disk the runner alone knew
            return died or killed >= FAMILY or (killed > 0 and any(fault.kind == "disk" for fault in faults))
        if reason.startswith("output"):
            return any(fault.kind in SPOOL_FAULTS for fault in faults)
        if state not in ("COMPLETED", "FAILED"):
            return False
        if end and (end.code, end.signal) == (result["exit_code"], result["signal"]):
            planned = plan is None or plan.code == (end.code if end.signal is None else -end.signal)
            return planned or (bool(end.torn) and any(fault.kind in SPOOL_FAULTS for fault in faults))
        signalled = self.was_asked(job, ["signal"], since - SLACK_S, until + SLACK_S)
        return signalled and state == "FAILED" and result["signal"] is not None  # perhaps before its first word

    def output(self, result: dict[str, Any]) -> None:
        """What the job wrote is what lies there; a later attempt appends to what the earlier ones wrote."""
        job = result["id"]
        end = next((line for line in self.by_run.get((job, result["attempt"]), []) if line.kind == "end"), None)
        whole = result["state"] in ("COMPLETED", "FAILED") and not (result["reason"] or "").startswith("output")
        if not whole or not end or end.torn:
            return
        there = self.world.outputs.get(job, Output(0, ""))
        if there.sha != end.sha:
            self.say("untrue", job, f"stdout of attempt {end.attempt} is not what the job wrote")
        runs = [self.by_run[job, start.attempt] for start in self.starts[job]]
        most = sum(run[0].size for run in runs)
        least = sum(line.size for run in runs for line in run if line.kind == "end" and not line.torn)
        if not least <= there.size <= most:
            self.say("untrue", job, f"stdout has {there.size} bytes; the job wrote {least} to {most} in all attempts")

    def told(self) -> None:
        """Who waited at a terminal was told the same."""
        job_of = {token: job for job, token in self.world.tokens.items() if self.entries[job]}
        for told in self.world.told:
            job = job_of.get(told.token)
            result = self.world.results.get(job or 0)
            if told.code in REFUSED and (job is None or told.code == REFUSED[1]):
                continue
            if job is None or result is None:
                self.say("lost", job, f"`run` of {told.token} ended with {told.code}, and there is no result")
                continue
            if self.asked[job] or result["attempt"] > 1:
                continue
            wanted = {"TIMEOUT": 124, "CANCELLED": 130, "NODE_FAIL": 1}.get(result["state"], result["exit_code"])
            wanted = 128 + result["signal"] if wanted is None else wanted
            if told.code != wanted:
                self.say("untrue", job, f"`run` ended with {told.code}, and the result says {wanted}")
            ends = [line for line in self.by_run[job, 1] if line.kind == "end" and not line.torn]
            if ends and result["state"] in ("COMPLETED", "FAILED") and told.sha != ends[0].sha:
                self.say("untrue", job, "`run` did not print what the job wrote")

    # --- the counts

    def count(self) -> None:
        """What was looked at."""
        told = {ack.token for ack in self.world.acks}
        verdict = self.verdict
        verdict.acknowledged = len(self.world.acks)
        verdict.starts = sum(len(starts) for starts in self.starts.values())
        untold = {token for job, token in self.world.tokens.items() if self.entries[job]} - told
        again = sum(len(starts) > 1 for starts in self.starts.values())
        verdict.recovered = len(untold) + len(self.world.late) + again


def check(world: World) -> Verdict:
    """What is wrong with the world."""
    judge = Judge(world)
    judge.lost()
    judge.twice()
    judge.unexpected()
    judge.true()
    judge.told()
    judge.count()
    for text in world.left + (world.private if len(world.private) > world.killed else []):
        judge.say("left", None, text)
    for text in world.crashes:
        judge.say("untrue", None, text)
    return judge.verdict
