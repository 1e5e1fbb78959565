"""I1 to I4, I6, I11: what the entries did, as a pure function of the trace; see `check`."""

import json
import re
from typing import Any, NamedTuple

Event = tuple[Any, ...]
NAME = re.compile(r"(\d{3})\.(\d+)\.(\d+)\.(\d+)~([^~]*)~([^~]*)")
TOPS = ("queue", "held", "running", "reaping", "done")
MOVES = frozenset(
    "jobs>queue jobs>held nodes>queue nodes>held queue>queue held>held queue>held held>queue queue>running queue>done "
    "held>done running>running running>done running>queue running>reaping reaping>queue reaping>held reaping>done "
    "reaping>reaping done>queue done>held".split()
)
NEXT_ATTEMPT = frozenset(["reaping>queue", "reaping>held", "done>queue", "done>held"])


class Violation(NamedTuple):
    """What was broken, when, and by which job (0: none)."""

    rule: str
    t: float
    id: int | str
    text: str

    def __str__(self) -> str:
        return f"{self.rule} at {self.t:.3f} s, job {self.id}: {self.text}"


class Token(NamedTuple):
    """An entry's name; the `id` of an array's chunk is `42_1-3`, or `42_7` of one task."""

    rank: int
    id: int | str
    gen: int
    attempt: int
    facts: tuple[str, ...]
    label: str

    @property
    def retries(self) -> int:
        """How often a failure is tried again: the simulated users say so in the label."""
        return int(self.label[1:]) if re.fullmatch(r"r\d", self.label) else 0

    @property
    def cpus(self) -> float:
        """In thousandths."""
        return next((float(f[1:]) * 1000 for f in self.facts if re.fullmatch(r"c[\d.]+", f)), 0.0)

    @property
    def turn(self) -> tuple[int, int, int]:
        """Whose turn it is before whom."""
        return self.rank, job_of(self.id), numbers_of(self.id)[0]

    @property
    def most(self) -> int:
        """How many tasks of its array may run at once; 0: any number."""
        return next((int(f[1:]) for f in self.facts if re.fullmatch(r"x\d+", f)), 0)

    @property
    def owner(self) -> str:
        """Whose it is, or empty."""
        return next((f[1:] for f in self.facts if f.startswith("@")), "")

    @property
    def limited(self) -> bool:
        """Whether it has a time limit."""
        return any(re.fullmatch(r"t[\d.]+", f) for f in self.facts)

    @property
    def kept(self) -> str:
        """The node that keeps a place for it, or empty."""
        return next((f[2:] for f in self.facts if f.startswith("R=")), "")

    @property
    def rule(self) -> str:
        """N, C or Y."""
        return next((f[1] for f in self.facts if f in ("rN", "rY")), "C")

    @property
    def ending(self) -> str:
        """Or empty."""
        pattern = r"exit\d+|signal\d+|timeout|oom|cancelled|nodefail"
        return next((f for f in self.facts if re.fullmatch(pattern, f)), "")


def token_of(path: str) -> Token | None:
    """The entry that a path is, if it lies where entries lie."""
    parts = path.split("/")
    match = NAME.fullmatch(parts[-1]) if len(parts) == 3 and parts[0] in TOPS else None
    if not match:
        return None
    rank, job_id, gen, attempt, text, label = match.groups()
    facts = tuple(text.split(","))
    chunk = next((f[1:] for f in facts if re.fullmatch(r"a\d+(-\d+)?", f)), "")
    unit = f"{job_id}_{chunk}" if chunk else int(job_id)
    return Token(int(rank), unit, int(gen), int(attempt), facts, label)


def job_of(unit: int | str) -> int:
    """42 of `42_1-3` and of 42."""
    return int(str(unit).partition("_")[0])


def numbers_of(unit: int | str) -> range:
    """The tasks of `42_1-3` or `42_7`; of a job 0 alone. Those of the simulated users are without gaps."""
    first, _, last = str(unit).partition("_")[2].partition("-")
    return range(int(first or 0), int(last or first or 0) + 1)


def runs_of(unit: int | str) -> list[int | str]:
    """What the runner calls what runs of an entry: a job by its id, tasks as `42_7`."""
    return [unit] if isinstance(unit, int) else [f"{job_of(unit)}_{number}" for number in numbers_of(unit)]


class Tree:
    """Where entries lie, after each applied change."""

    def __init__(self) -> None:
        self.ops: list[Event] = []
        self.clear()

    def clear(self) -> None:
        self.at: dict[int | str, set[str]] = {}
        self.inos: dict[int, str] = {}
        self.used: set[str] = set()
        self.ended: dict[tuple[int | str, int], str] = {}

    def apply(self, op: Event) -> None:
        """One change."""
        self.ops.append(op)
        self._do(op)

    def _do(self, op: Event) -> None:
        _, _, _, what, path, path2, ino, *_ = op
        old = token_of(path) if what in ("rename", "unlink") else None
        if old:
            self.at.get(old.id, set()).discard(path)
        target = path2 if what == "rename" else path
        new = token_of(target) if what in ("rename", "create", "symlink", "link") else None
        if what in ("rename", "create", "symlink", "link"):
            self.inos[ino] = target
        if new:
            self.at.setdefault(new.id, set()).add(target)
            self.used.add(target)
            if target.startswith("done/"):
                self.ended.setdefault((new.id, new.attempt), target)

    def rollback(self, count: int) -> None:
        """The server lost its last changes."""
        kept = self.ops[: len(self.ops) - count]
        self.ops = []
        self.clear()
        for op in kept:
            self.apply(op)


class Silence:
    """Who has been silent for how long, by the server's order of things."""

    def __init__(self) -> None:
        self.dead_s = 0.0
        self.beats: dict[str, float] = {}  # the last
        self.gaps: dict[str, float] = {}  # when the latest long silence ended
        self.buried: set[str] = set()
        self.arrived: dict[str, float] = {}

    def see(self, event: Event) -> None:
        """One event."""
        if event[1] == "policy":
            self.dead_s = event[2]["dead_s"] * 0.97  # clocks differ in rate
            return
        t, _, _, what, path, path2, *_ = event
        if what == "rename" and path2.endswith("/heartbeat"):
            node = path2.split("/")[1]
            if t - self.beats.get(node, t) >= self.dead_s:
                self.gaps[node] = t
            self.beats[node] = t
        elif what == "rename" and path2.startswith("nodes/") and path2.endswith("/dead"):
            self.buried.add(path2.split("/")[1])
        elif what == "rename" and path2.startswith(("running/", "reaping/")):
            self.arrived[path2] = t

    def dead(self, node: str) -> bool:
        """Whether an operator has said so, who is never wrong here."""
        return node in self.buried

    def long(self, node: str, path: str, now: float) -> bool:
        """Whether it was silent for dead_s while the entry lay there, or before, not heard of since."""
        return now - self.beats.get(node, now) >= self.dead_s or self.gaps.get(node, -1.0) > self.arrived.get(path, 0.0)


def entries(trace: list[Event]) -> list[Violation]:
    """What the entries did."""
    found: list[Violation] = []
    tree, acknowledged, silence = Tree(), set(), Silence()
    for event in trace:
        if event[1] in ("policy", "op"):
            silence.see(event)
        if event[1] == "ack":
            acknowledged.add(event[3])
            if not tree.at.get(event[3]):
                found.append(Violation("I4", event[0], event[3], "acknowledged, and not there"))
        elif event[1] == "rollback":
            tree.rollback(event[2])
            lost = [job_id for job_id in sorted(acknowledged, key=str) if not tree.at.get(job_id)]
            found += [
                Violation("I4", event[0], job_id, "acknowledged, lost with the server's power") for job_id in lost
            ]
        elif event[1] == "op":
            found += _move(tree, silence, event)
            tree.apply(event)
            for path in event[4:6]:
                token = token_of(path) if path else None
                if token:
                    found += _one(tree, event, token.id, acknowledged)
    return found


def _one(tree: Tree, event: Event, job_id: int | str, acknowledged: set[int | str]) -> list[Violation]:
    here = tree.at.get(job_id, set())
    if len(here) > 1:
        return [Violation("I1", event[0], job_id, f"two entries: {sorted(here)}")]
    if not here and job_id in acknowledged:
        return [Violation("I4", event[0], job_id, f"its entry is gone: {event[3]} {event[4]} by {event[2]}")]
    return []


def _move(tree: Tree, silence: Silence, event: Event) -> list[Violation]:
    t, _, client, what, path, path2, _, text, *_ = event
    if what != "rename":
        token = token_of(path)
        bad = token is not None and what in ("unlink", "create", "symlink", "link")
        return [Violation("I2", t, token.id, f"{what} of an entry by {client}: {path}")] if bad and token else []
    found = []
    old, new = token_of(path), token_of(path2)
    if path2.split("/")[0] in TOPS and new is None:
        found.append(Violation("I11", t, 0, f"no entry's name: {path2}"))
    if old and new is None:
        found.append(Violation("I2", t, old.id, f"an entry was moved out of its life: {path} -> {path2}"))
    if new:
        found += [Violation(rule, t, new.id, why) for rule, why in _illegal(tree, path, path2, old, new)]
        found += [Violation("I2", t, new.id, why) for why in _not_entitled(silence, event, new)]
    last = path2.rpartition("/")[2]
    if last in ("result.json", "node.json") and not whole(text):
        found.append(Violation("I11", t, 0, f"{path2} was published torn: {text[:80]!r}"))
    if last == "heartbeat" and not re.fullmatch(r"\d+ \S+\n", text):
        found.append(Violation("I11", t, 0, f"{path2} was published torn: {text[:80]!r}"))
    return found


def _not_entitled(silence: Silence, event: Event, token: Token) -> list[str]:
    """Only a node itself moves what it has, and those who may take over from it."""
    _, _, client, _, path, path2, *_ = event
    top, top2 = path.split("/")[0], path2.split("/")[0]
    if top2 in ("running", "reaping") and path2.split("/")[1] != client:
        return [f"{client} is not entitled to {path2}"]
    owner = path.split("/")[1] if top in ("running", "reaping") else client
    if owner == client:
        return []
    if top2 != "reaping":
        return [f"{client} took {path} away to {path2}"]
    if silence.dead(owner) or ((token.rule == "Y" or top == "reaping") and silence.long(owner, path, event[8])):
        return []
    return [f"{client} took over {path}, and {owner} was neither silent for long enough nor declared dead"]


def _illegal(tree: Tree, path: str, path2: str, old: Token | None, new: Token) -> list[tuple[str, str]]:
    found = []
    top, top2 = path.split("/")[0], path2.split("/")[0]
    kind = f"{top}>{top2}"
    if kind not in MOVES:
        found.append(("I2", f"{kind} is no move: {path} -> {path2}"))
    if path2 in tree.used:
        found.append(("I3", f"a name for the second time: {path2}"))
    if old:
        attempts = 1 if kind in NEXT_ATTEMPT else 0
        if new.gen != old.gen + 1 or new.attempt != old.attempt + attempts or new.id != old.id:
            found.append(("I3", f"{path} -> {path2}: gen must rise by 1, attempt by {attempts}"))
    if top2 == "done":
        if (new.id, new.attempt) in tree.ended:
            found.append(("I6", f"attempt {new.attempt} ended twice: {tree.ended[new.id, new.attempt]}, {path2}"))
        if not new.ending:
            found.append(("I6", f"without an ending: {path2}"))
    return found


def whole(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False
