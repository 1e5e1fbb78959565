"""
Dependencies between jobs: what `-d afterok:1:2,afterany:3` says, and whether it is fulfilled.

The words are Slurm's. All conditions must hold at the same moment, so a parent that runs again before its
child was let go is waited for anew. What became of a parent is asked of a function, so the rule is the same
for submitters, nodes and `why`, for jobs and for tasks of arrays.
Invariant: `judge` is a function of its arguments; it never says READY on a fate that is not known.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from typing import NamedTuple

from spoolq.errors import UsageError
from spoolq.state import State

OK, ANY, NOT_OK, STARTED = "afterok", "afterany", "afternotok", "after"
# what each waits for its parent to do
KINDS = {OK: "to complete", ANY: "to end", NOT_OK: "to fail", STARTED: "to start"}
NEVER_WORD = "DependencyNeverSatisfied"  # Slurm's reason
MOST = 1000  # parents of one job

_PARENT = re.compile(r"[1-9]\d{0,11}(?:_\d{1,9})?|[1-9]\d{0,11}-[1-9]\d{0,11}|last|@[^\s:,]{1,80}")
_SETTLED = re.compile(r"(afterok|afterany|afternotok|after):([1-9]\d{0,11})(?:_(\d{1,9}))?")
_EXAMPLES = "examples: 42, afterok:1:2,afterany:3, afternotok:last, afterok:@name, afterok:42_7"


class Answer(Enum):
    """What becomes of a job that depends on others."""

    READY = "ready"
    WAITS = "waits"
    NEVER = "never"


class Condition(NamedTuple):
    """One thing to wait for: `parent` as the user named it, or an id, or a task of an array as `42_7`."""

    kind: str
    parent: str

    def __str__(self) -> str:
        """`afterok:42`; `parse` reads it back."""
        return f"{self.kind}:{self.parent}"


class Fate(NamedTuple):
    """
    What is known of a parent.

    `state` is None if it is gone and nothing tells how it ended; `started`: some attempt of it has begun.
    `where` is its node while it runs; `ending` the word in its name when it has ended.
    """

    state: State | None
    started: bool = False
    where: str = ""
    ending: str = ""


class Verdict(NamedTuple):
    """The answer for a whole list of conditions, and why, in words, of the first that is not READY."""

    answer: Answer
    text: str = ""


def parse(text: str) -> tuple[Condition, ...]:
    """
    The conditions in `afterok:1:2,afterany:3`; a parent without a kind means afterok.

    Raises:
        UsageError: a word that is neither a kind nor a parent.
    """
    found: dict[Condition, None] = {}
    if "?" in text:
        raise UsageError("depend: '?' (one of several) is not known: all conditions must hold, parted by ','")
    for part in text.split(","):
        kind, *parents = [word.strip() for word in part.split(":")]
        if kind not in KINDS:
            kind, parents = OK, [kind, *parents]
        if not parents:
            raise UsageError(f"depend: {part[:60]!r} names no job ({_EXAMPLES})")
        for parent in parents:
            if not _PARENT.fullmatch(parent):
                raise UsageError(f"depend: {parent[:60]!r} is no job and no kind of dependency ({_EXAMPLES})")
            found[Condition(kind, parent)] = None
    if len(found) > MOST:
        raise UsageError(f"depend: {len(found)} parents; at most {MOST} (let one job wait for them, and this for it)")
    return tuple(found)


def settled(words: Iterable[str]) -> tuple[Condition, ...]:
    """The conditions of a stored job, whose parents are ids or tasks; UsageError for anything else."""
    found = []
    for word in words:
        if not (match := _SETTLED.fullmatch(word)):
            raise UsageError(f"depend: {word[:60]!r} is not valid")
        found.append(Condition(match[1], word.partition(":")[2]))
    return tuple(found)


def id_of(parent: str) -> int:
    """The job's id in `42` and `42_7`."""
    return int(parent.partition("_")[0])


def judge(conditions: Sequence[Condition], fate_of: Callable[[Condition], Fate]) -> Verdict:
    """
    Whether all conditions hold, some do not yet, or one never can.

    One that can never hold outweighs any that does not hold yet.
    """
    waits = ""
    for condition in conditions:
        fate = fate_of(condition)
        holds = _holds(condition.kind, fate)
        if holds is False:
            return Verdict(Answer.NEVER, f"{describe(condition, fate)}, and {condition} wants it {_want(condition)}")
        if holds is None and not waits:
            waits = f"waits for {describe(condition, fate)} {_want(condition)}"
    return Verdict(Answer.WAITS, waits) if waits else Verdict(Answer.READY)


def _want(condition: Condition) -> str:
    return KINDS[condition.kind]


def _holds(kind: str, fate: Fate) -> bool | None:
    """Whether one condition holds; None if that is still open."""
    if fate.state is None:
        return kind in (ANY, STARTED)
    if kind == STARTED:
        return True if fate.started or fate.state.ended else None
    if not fate.state.ended:
        return None
    return kind == ANY or (fate.state is State.COMPLETED) == (kind == OK)


def describe(condition: Condition, fate: Fate) -> str:
    """`job 1 (RUNNING on n1)`, or `job 1 ended as FAILED (exit3)`."""
    name = f"job {condition.parent}"
    if fate.state is None:
        return f"{name} is gone and nothing tells how it ended"
    if fate.state.ended:
        return f"{name} ended as {fate.state.name}" + (f" ({fate.ending})" if fate.ending else "")
    return f"{name} ({fate.state.name}{f' on {fate.where}' if fate.where else ''})"
