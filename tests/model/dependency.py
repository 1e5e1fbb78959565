"""
Model a child that waits for one parent: its submitter, who ends the parent, a node that looks, and a user.

Everybody may look before and act after anything else. A look is a step, and what it saw may be old when
it is acted upon, by one rename from the name that was seen. The node's look repeats; the others' do not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

EARLY = "released before its parent completed"
WRONG_END = "ended though its parent did not fail"
LET_GO = "released though its user holds it"

NONE, HELD, USER, QUEUED, ENDED = range(5)  # the child: not there, HD, HU, in the queue, cancelled
RUNS, COMPLETED, FAILED = range(3)  # the parent
COMMIT, LOOK, ACT, END = range(4)
Seen = tuple[int, int]  # (gen of the child's name, state of the parent)


class Family(NamedTuple):
    """The child, its parent, and what everybody has seen and is about to do."""

    child: int = NONE
    gen: int = 0
    parent: int = RUNS
    ever: tuple[int, ...] = ()  # how the parent has ended so far
    submitter: int = COMMIT
    sub_saw: Seen | None = None
    finisher: int = COMMIT
    fin_saw: Seen | None = None
    node_saw: Seen | None = None
    late: tuple[Seen, ...] = ()  # renames that the server may still carry out, by (gen, what for)
    broken: str = ""
    kills: int = 0
    lates: int = 0
    users: int = 0


Steps = list[tuple[str, Family]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dependency:
    """
    One child, one parent.

    Attributes:
        kills: of the submitter after its commit, or of the finisher after the parent's end (count).
        lates: renames executed after their sender gave up (count).
        users: hold, release, and letting the parent run again (count).
        submitter: looks at the parent after the commit, before it, or never.
        finisher: looks for children after the parent's end, before it, or never.
        node: looks at held/ again and again, or never.
        names: with gen, or the same again after hold and release.
    """

    kills: int = 1
    lates: int = 0
    users: int = 0
    submitter: Literal["after", "before", "never"] = "after"
    finisher: Literal["after", "before", "never"] = "after"
    node: Literal["again", "never"] = "again"
    names: Literal["gen", "same"] = "gen"

    def initial(self) -> Family:
        first = LOOK if self.submitter == "before" else COMMIT
        return Family(
            submitter=first,
            finisher=LOOK if self.finisher == "before" else COMMIT,
            kills=self.kills,
            lates=self.lates,
            users=self.users,
        )

    def settled(self, s: Family) -> bool:
        """Released, ended, held by its user, or never submitted."""
        return s.child in (QUEUED, ENDED, USER) or (s.child == NONE and s.submitter == END)

    def violated(self, s: Family) -> str:
        return s.broken

    def steps(self, s: Family) -> Steps:
        out: Steps = []
        self._submitter(s, out)
        self._finisher(s, out)
        if self.node == "again":
            if s.node_saw is None and s.child == HELD:
                out.append(("node lists held/, then done/", s._replace(node_saw=(s.gen, s.parent))))
            elif s.node_saw is not None:
                self._act(s._replace(node_saw=None), s.node_saw, "node", out)
        for i, seen in enumerate(s.late):
            rest = s._replace(late=s.late[:i] + s.late[i + 1 :])
            out.append(("a late rename is carried out", self._rename(rest, seen)))
        self._user(s, out)
        return out

    def _submitter(self, s: Family, out: Steps) -> None:
        before = self.submitter == "before"
        if s.submitter == COMMIT:
            # what was seen before the commit decides where it goes
            direct = before and s.sub_saw is not None and s.sub_saw[1] != RUNS
            child = HELD if not direct else QUEUED if s.sub_saw and s.sub_saw[1] == COMPLETED else ENDED
            following = LOOK if self.submitter == "after" else END
            out.append(("submitter commits", s._replace(child=child, submitter=following, sub_saw=None)))
        elif s.submitter == LOOK:
            saw = (0, s.parent)  # by the name that it committed
            out.append(("submitter looks", s._replace(sub_saw=saw, submitter=COMMIT if before else ACT)))
        elif s.submitter == ACT and s.sub_saw is not None:
            self._act(s._replace(submitter=END, sub_saw=None), s.sub_saw, "submitter", out)
        if s.kills and s.submitter in (LOOK, ACT):
            out.append(("submitter killed", s._replace(submitter=END, sub_saw=None, kills=s.kills - 1)))

    def _finisher(self, s: Family, out: Steps) -> None:
        before = self.finisher == "before"
        if s.finisher == COMMIT and s.parent == RUNS:
            following = {"after": LOOK, "before": ACT, "never": END}[self.finisher]
            for end in (COMPLETED, FAILED):
                saw = (s.fin_saw[0], end) if before and s.fin_saw else None
                ever = tuple(sorted({*s.ever, end}))
                after = s._replace(parent=end, ever=ever, finisher=following, fin_saw=saw)
                out.append((f"parent ends as {('', 'COMPLETED', 'FAILED')[end]}", after))
        elif s.finisher == LOOK:
            saw = (s.gen, s.parent) if s.child == HELD else None
            out.append(("finisher looks", s._replace(fin_saw=saw, finisher=COMMIT if before else ACT)))
        elif s.finisher == ACT:
            if s.fin_saw is None:
                out.append(("finisher knows no child", s._replace(finisher=END)))
            else:
                self._act(s._replace(finisher=END, fin_saw=None), s.fin_saw, "finisher", out)
        if s.kills and s.finisher in (LOOK, ACT):
            out.append(("finisher killed", s._replace(finisher=END, fin_saw=None, kills=s.kills - 1)))

    def _act(self, s: Family, saw: Seen, who: str, out: Steps) -> None:
        """Release or end the child as it was seen; one rename, which may be late."""
        if saw[1] == RUNS:
            out.append((f"{who} lets it wait", s))
            return
        out.append((f"{who} renames it", self._rename(s, saw)))
        if s.lates:
            out.append((f"{who}'s rename is on its way", s._replace(late=(*s.late, saw), lates=s.lates - 1)))

    def _rename(self, s: Family, saw: Seen) -> Family:
        there = s.child in (HELD, USER) and (self.names == "same" or s.gen == saw[0])
        if not there:
            return s
        broken = s.broken
        if saw[1] not in s.ever:
            broken = EARLY if saw[1] == COMPLETED else WRONG_END
        elif s.child == USER:
            broken = LET_GO
        return s._replace(child=QUEUED if saw[1] == COMPLETED else ENDED, gen=s.gen + 1, broken=broken)

    def _user(self, s: Family, out: Steps) -> None:
        if s.child == USER:  # a user who holds it releases it some time
            out.append(("user releases it", s._replace(child=HELD, gen=s.gen + 1)))
        if not s.users:
            return
        left = s._replace(users=s.users - 1)
        if s.child == HELD:
            out.append(("user holds it", left._replace(child=USER, gen=s.gen + 1)))
        if s.parent != RUNS and s.finisher == END:
            finisher = LOOK if self.finisher == "before" else COMMIT
            out.append(("parent runs again", left._replace(parent=RUNS, finisher=finisher)))
