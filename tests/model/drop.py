"""
Model the first rename of a dropped file, whose name is chosen by people and so recurs.

Everywhere else a name is the source or target of one rename only. Here a second file may
be dropped under the name of the first while the first is on its way, and a rename onto a
name that exists replaces it without a word.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from .rules import ASKED, ERROR, GONE, TRUE

OVERWRITTEN = "dropped file overwritten"


class Drop(NamedTuple):
    """drop/x, the files in the node's own directory by tag, the node's rename, what has become a job."""

    slot: int = 1
    unborn: int = 1  # files still to be dropped under the same name
    own: tuple[tuple[int, int], ...] = ()  # (tag, file)
    tag: int = 0
    rpc: int = 0
    jobs: frozenset[int] = frozenset()
    late: tuple[int, ...] = ()
    lates: int = 0
    losses: int = 0
    bad: str = ""


Steps = list[tuple[str, Drop]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropping:
    """
    One node and two files of one name.

    Attributes:
        retry: after a failure with the source there, the same target again, or a fresh one.
        look: at the source first, or at the target first.
        lates: renames executed twice (count). losses: replies lost (count).
    """

    retry: Literal["fresh", "same"] = "fresh"
    look: Literal["source", "target"] = "source"
    lates: int = 0
    losses: int = 2

    def initial(self) -> Drop:
        return Drop(lates=self.lates, losses=self.losses)

    def settled(self, s: Drop) -> bool:
        return len(s.jobs) == 2

    def violated(self, s: Drop) -> str:
        return s.bad

    def steps(self, s: Drop) -> Steps:
        out: Steps = []
        for i, tag in enumerate(s.late):
            out.append(("late rename executed", moved(s._replace(late=s.late[:i] + s.late[i + 1 :]), tag)))
        if s.unborn and not s.slot:
            out.append(("a second x is dropped", s._replace(slot=2, unborn=0)))
        if s.rpc:
            self._call(s, out)
            return out
        if s.own:
            (_, file), *rest = s.own
            out.append((f"file {file} becomes a job", s._replace(own=tuple(rest), jobs=s.jobs | {file})))
        elif s.slot:
            out.append(("takes x", s._replace(rpc=ASKED, tag=s.tag + 1)))
        return out

    def _call(self, s: Drop, out: Steps) -> None:
        if s.rpc == ASKED:
            if not s.slot:
                out.append(("rename: ENOENT", s._replace(rpc=ERROR)))
                return
            done = moved(s, s.tag)
            out.append(("rename done", done._replace(rpc=TRUE)))
            if s.losses:
                out.append(("rename done, reply lost", done._replace(rpc=ERROR, losses=s.losses - 1)))
            if s.lates:
                twice = done._replace(rpc=TRUE, late=(*s.late, s.tag), lates=s.lates - 1)
                out.append(("rename done, duplicate in flight", twice))
        elif s.rpc == TRUE:
            out.append(("WON", s._replace(rpc=0)))
        else:
            self._look(s, out)

    def _look(self, s: Drop, out: Steps) -> None:
        """Look at one name, then at the other; whatever lies in the own directory is found later anyhow."""
        at_source = (s.rpc == ERROR) == (self.look == "source")
        there = bool(s.slot) if at_source else any(tag == s.tag for tag, _ in s.own)
        if there and at_source:
            tag = s.tag + (self.retry == "fresh")
            out.append(("sees x, retries", s._replace(rpc=ASKED, tag=tag)))
        elif there:
            out.append(("WON", s._replace(rpc=0)))
        else:
            out.append(("sees one name gone", s._replace(rpc=GONE if s.rpc == ERROR else 0)))


def moved(s: Drop, tag: int) -> Drop:
    """Rename drop/x to a name in the node's directory, replacing what is there."""
    if not s.slot:
        return s
    bad = OVERWRITTEN if any(other == tag for other, _ in s.own) else s.bad
    own = tuple(sorted((*(pair for pair in s.own if pair[0] != tag), (tag, s.slot))))
    return s._replace(slot=0, own=own, bad=bad)
