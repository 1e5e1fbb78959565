"""
The states of a job and the life cycle: which directory may follow which.

State is derived from where an entry lies and what its name says, nothing else. The words and the
two-letter codes are Slurm's. The diagram in docs/internals.md is generated from TRANSITIONS.
Invariant: deriving is total: every legal entry in every directory has exactly one state.
"""

from enum import Enum

from spoolq.entry import Entry


class State(Enum):
    """What a user is told; the value is the two-letter code of tables."""

    PENDING = "PD"
    HELD = "H"
    RUNNING = "R"
    SUSPENDED = "S"
    COMPLETING = "CG"
    COMPLETED = "CD"
    FAILED = "F"
    CANCELLED = "CA"
    TIMEOUT = "TO"
    OUT_OF_MEMORY = "OOM"
    NODE_FAIL = "NF"

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen unless somebody asks for it."""
        return self in ENDED


ENDED = frozenset((State.COMPLETED, State.FAILED, State.CANCELLED, State.TIMEOUT, State.OUT_OF_MEMORY, State.NODE_FAIL))

# directory -> directories that one rename may lead to, and what that rename is called
TRANSITIONS: dict[tuple[str, str], str] = {
    ("jobs", "queue"): "submit",
    ("jobs", "held"): "submit held",
    ("queue", "queue"): "edit, reserve",
    ("held", "held"): "edit",
    ("queue", "held"): "hold",
    ("held", "queue"): "release",
    ("queue", "running"): "claim",
    ("queue", "done"): "cancel",
    ("held", "done"): "cancel",
    ("running", "running"): "suspend, resume, edit",
    ("running", "done"): "finish",
    ("running", "queue"): "give back",
    ("running", "reaping"): "reap",
    ("reaping", "queue"): "requeue",
    ("reaping", "held"): "requeue, backing off",
    ("reaping", "done"): "node fail, or finish for a dead node",
    ("reaping", "reaping"): "reap from a dead reaper",
    ("done", "queue"): "requeue",
    ("done", "held"): "requeue, waiting for other jobs",
}

_ENDINGS = {
    "exit0": State.COMPLETED,
    "timeout": State.TIMEOUT,
    "oom": State.OUT_OF_MEMORY,
    "cancelled": State.CANCELLED,
    "nodefail": State.NODE_FAIL,
}


def of_ending(ending: str) -> State:
    """The state that an ending word means; `exit1`, `signal9` and the like are FAILED."""
    return _ENDINGS.get(ending, State.FAILED)


def of_entry(place: str, entry: Entry) -> State:
    """
    The state of an entry.

    Args:
        place: the entry's directory relative to the spool, `queue/500.000000001`, `done/0`, ...
    """
    top = place.partition("/")[0]
    if top == "done":
        return of_ending(entry.ending or "")
    if top == "queue":
        return State.PENDING
    if top == "held":
        return State.HELD
    if top == "reaping":
        return State.COMPLETING
    return State.SUSPENDED if entry.suspended else State.RUNNING


def ending_of(*, exit_code: int | None, signal: int | None, reason: str) -> str:
    """
    The ending word of a process that ran.

    Args:
        exit_code: of the process, 0..255, or None if a signal ended it.
        signal: that ended it, or None.
        reason: `timeout`, `oom`, `cancelled` where spoolq ended it, else empty.
    """
    if reason in ("timeout", "oom", "cancelled"):
        return reason
    return f"signal{signal}" if signal is not None else f"exit{exit_code or 0}"


def shell_code(ending: str | None) -> int:
    """
    The exit code a shell would see: the job's own, 128+n, 124 for the time limit, 137 for memory.

    A job that never ran or was lost gives 1; a cancelled one 130, as after Ctrl-C.
    """
    word = ending or ""
    if word.startswith("exit"):
        return int(word[4:])
    if word.startswith("signal"):
        return 128 + int(word[6:])
    return {"timeout": 124, "oom": 137, "cancelled": 130}.get(word, 1)
