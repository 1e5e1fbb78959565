"""
Why a job does not start: one word for each kind, and a text with figures for people.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

# one word for each reason, from the most to the least hopeful; Slurm's where it has one
_WORDS = (
    "Priority Resources MeasuredLoad DeviceBusyOutside UserLimit ArrayTaskLimit SpoolFull NodeDrained RetryBackoff "
    "BeginTime Dependency DependencyNeverSatisfied CwdMissing JobHeldUser JobHeldAdmin ReqNodeNotAvail BadConstraints "
    "NoNodeAlive"
)
WORDS = tuple(_WORDS.split())
_LINE = re.compile(r"(?:(\S+) )?([A-Z][A-Za-z]+): (.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a job does not start: a word of WORDS, and a text with figures."""

    word: str
    text: str

    def __post_init__(self) -> None:
        """Reject an unknown word."""
        assert self.word in WORDS, self.word

    def __str__(self) -> str:
        """`Resources: needs 4 cpus, ...`; `parse_reason` reads it back."""
        return f"{self.word}: {self.text}"


def overall(reasons: Mapping[str, Reason]) -> Reason:
    """The one reason to show for a job: of what the nodes say (by name), the most hopeful."""
    if not reasons:
        return Reason("NoNodeAlive", "no node is alive; start one with `spoolq node`")
    name = min(reasons, key=lambda node: (WORDS.index(reasons[node].word), node))
    return Reason(reasons[name].word, f"{name}: {reasons[name].text}")


def parse_reason(line: str) -> tuple[str, Reason] | None:
    """(node or empty, reason) from `n3 Resources: needs ...`, the line of a why file; None if it is none."""
    match = _LINE.fullmatch(line.strip())
    return (match[1] or "", Reason(match[2], match[3])) if match and match[2] in WORDS else None
