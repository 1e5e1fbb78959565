"""
What the runner knows of one job, and what each event makes of it: a table of stage and event.

Stages: running, paused, ending (asked to end, SIGKILL after the grace), killing (SIGKILL sent), over.
Every "what if it is told to pause while it ends?" has a cell or is without effect.
Invariant: the first reason for which a job is ended stays its reason; suspended time does not count
against the time limit. Times are seconds of CLOCK_MONOTONIC, which all processes of a boot share.
Nothing here looks at a clock or sends a signal: actions are words that the runner carries out.
"""

from collections.abc import Mapping
from enum import Enum
from typing import Any

KILL_AGAIN_S = 2.0  # a tree that was killed and still lives is killed again; it may have forked or sit in D state


class Stage(Enum):
    """How far a job is."""

    RUNNING = "running"
    PAUSED = "paused"
    ENDING = "ending"
    KILLING = "killing"
    OVER = "over"
    DOUBTFUL = "doubtful"


class Event(Enum):
    """What can happen to a job."""

    CANCEL = "cancelled"
    LIMIT = "timeout"
    WARN = "warn"
    MEMORY = "oom"
    FENCE = "lost"
    GRACE = "grace"
    PAUSE = "pause"
    RESUME = "resume"


class Act(Enum):
    """What the runner does about it, to the whole tree."""

    TERM = "term"
    KILL = "kill"
    STOP = "stop"
    CONT = "cont"
    WARN = "warn"


_TABLE: dict[tuple[Stage, Event], tuple[Stage, Act]] = {
    (Stage.RUNNING, Event.CANCEL): (Stage.ENDING, Act.TERM),
    (Stage.RUNNING, Event.LIMIT): (Stage.ENDING, Act.TERM),
    (Stage.RUNNING, Event.WARN): (Stage.RUNNING, Act.WARN),
    (Stage.RUNNING, Event.MEMORY): (Stage.KILLING, Act.KILL),
    (Stage.RUNNING, Event.FENCE): (Stage.KILLING, Act.KILL),
    (Stage.RUNNING, Event.PAUSE): (Stage.PAUSED, Act.STOP),
    (Stage.PAUSED, Event.CANCEL): (Stage.ENDING, Act.TERM),
    (Stage.PAUSED, Event.MEMORY): (Stage.KILLING, Act.KILL),
    (Stage.PAUSED, Event.FENCE): (Stage.KILLING, Act.KILL),
    (Stage.PAUSED, Event.RESUME): (Stage.RUNNING, Act.CONT),
    (Stage.ENDING, Event.CANCEL): (Stage.ENDING, Act.TERM),  # asked again, perhaps with less patience
    (Stage.ENDING, Event.MEMORY): (Stage.KILLING, Act.KILL),
    (Stage.ENDING, Event.FENCE): (Stage.KILLING, Act.KILL),
    (Stage.ENDING, Event.GRACE): (Stage.KILLING, Act.KILL),
    (Stage.KILLING, Event.GRACE): (Stage.KILLING, Act.KILL),
}
_REASONS = (Event.CANCEL, Event.LIMIT, Event.MEMORY, Event.FENCE)
# what a change may touch, and so what the journal holds of it
_CHANGING = ("stage", "reason", "detail", "limit_s", "grace_s", "mem_mb", "deadline", "paused_at", "paused_s", "warned")


class Run:
    """
    One attempt of one job.

    Args:
        text: `"id":..,"attempt":..,"gen":..` as JSON, made once, for every line about it.
        go: the start message, or the journal's `go` record: limits, cgroup, rerun rule.

    Attributes:
        pid: 0 until started. It was born between the ticks `earliest` and `latest`.
        own: whether it is a child of this very process; else `handle` holds it (a `process.Handle`).
        started: wall clock, for people; `since`: the same on CLOCK_MONOTONIC.
        devices: which ones it holds, as the daemon said; kept for the next daemon.
        cpu_s: what it used, once it is over.
        line: the `ended` message once it is over, journal and wire alike.
        deadline: when the grace is over; only while ending or killing.
        warn: the signal before the time limit (number, seconds before, to the first process alone), or None.
        warned: whether it was sent, or was about to be.
        sampled: whether its memory is sampled, since no cgroup enforces the limit.
        unsure: `pid` is of the job, but perhaps not its first process: its end is not the job's.
    """

    __slots__ = (
        "attempt", "cgroup", "cpu_s", "deadline", "detail", "devices", "earliest", "gen", "grace_s", "handle", "id",
        "latest", "limit_s", "line", "mem_mb", "own", "paused_at", "paused_s", "pid", "reason", "rerun", "sampled",
        "scratch", "since", "stage", "started", "text", "trampoline", "unsure", "warn", "warned",
    )  # fmt: skip

    def __init__(self, text: str, go: Mapping[str, Any]) -> None:
        self.text = text
        self.id, self.attempt, self.gen = go["id"], go["attempt"], go.get("gen", 0)
        self.limit_s: float | None = None if go.get("limit_s") is None else float(go["limit_s"])
        self.grace_s = float(go.get("grace_s") or 0.0)
        self.mem_mb: int | None = None if go.get("mem_mb") is None else int(go["mem_mb"])
        self.cgroup: str = go.get("cgroup") or ""
        self.rerun: str = go.get("rerun") or "C"
        self.scratch: str = go.get("scratch") or ""
        self.devices: dict[str, Any] = go.get("devices") or {}
        self.trampoline = bool(go.get("remote") or self.cgroup)
        self.pid = self.earliest = self.latest = 0
        self.own, self.unsure = True, False
        self.handle: Any = None  # the pure rooms do not know processes
        self.started = self.since = 0.0
        self.stage, self.reason, self.detail = Stage.RUNNING, "", ""
        self.deadline: float | None = None
        self.paused_at: float | None = None
        self.paused_s = 0.0
        self.sampled = self.warned = False
        self.warn: tuple[int, float, bool] | None = None
        if warn := go.get("warn"):
            self.warn = (int(warn[0]), float(warn[1]), bool(warn[2]))
        self.line, self.cpu_s = "", 0.0

    @property
    def key(self) -> tuple[Any, Any]:
        """(id, attempt)."""
        return (self.id, self.attempt)

    @property
    def live(self) -> bool:
        """Whether its main process has not been seen to end."""
        return self.stage is not Stage.OVER and self.stage is not Stage.DOUBTFUL

    def change(self) -> dict[str, Any]:
        """What may have changed since `go`, for the journal."""
        fields = {name: getattr(self, name) for name in _CHANGING}
        return fields | {"stage": self.stage.value}

    def take_change(self, fields: Mapping[str, Any]) -> None:
        """The reverse of `change`; names of other versions are passed over."""
        for name in _CHANGING:
            if name in fields:
                setattr(self, name, Stage(fields[name]) if name == "stage" else fields[name])


def happen(run: Run, event: Event, now: float, detail: str = "", grace_s: float | None = None) -> Act | None:
    """
    Let an event happen to a job.

    Args:
        now: CLOCK_MONOTONIC, s.
        detail: the reason in words.
        grace_s: seconds between SIGTERM and SIGKILL, if not the job's own.

    Returns:
        What is to be done to its tree, or None: then nothing changed.
    """
    cell = _TABLE.get((run.stage, event))
    if cell is None:
        return None
    if run.paused_at is not None:
        run.paused_s += now - run.paused_at
        run.paused_at = None
    run.stage, act = cell
    run.warned = run.warned or event is Event.WARN
    if event in _REASONS and not run.reason:
        run.reason, run.detail = event.value, detail
    if act is Act.TERM:
        patience = now + (run.grace_s if grace_s is None else grace_s)
        run.deadline = patience if run.deadline is None else min(run.deadline, patience)
    elif act is Act.KILL:
        run.deadline = now + KILL_AGAIN_S
    elif act is Act.STOP:
        run.paused_at = now
    return act


def rewarn(run: Run, now: float) -> None:
    """After a change of the time limit: one signal before each end, unless its time is over."""
    if run.warn and run.warned and run.limit_s is not None:
        run.warned = run.since + run.paused_s + run.limit_s - run.warn[1] <= now


def unfinished(run: Run) -> Act | None:
    """
    What a runner that was killed may have left half done to the tree, by what it wrote down before it began.

    Each is harmless when repeated: a tree that is stopped, continued or told to end for a second time.
    """
    if run.stage is Stage.RUNNING:
        return Act.CONT if run.paused_s else None
    return {Stage.PAUSED: Act.STOP, Stage.ENDING: Act.TERM, Stage.KILLING: Act.KILL}.get(run.stage)


def due_at(run: Run) -> float | None:
    """When the next event by time is due, or None."""
    if run.stage is Stage.RUNNING and run.limit_s is not None:
        before_s = run.warn[1] if run.warn and not run.warned else 0.0
        return run.since + run.paused_s + run.limit_s - before_s
    return run.deadline if run.stage in (Stage.ENDING, Stage.KILLING) else None


def due(run: Run) -> Event:
    """Which event it is."""
    if run.stage is Stage.RUNNING and run.warn and not run.warned:
        return Event.WARN
    return Event.LIMIT if run.stage is Stage.RUNNING else Event.GRACE
