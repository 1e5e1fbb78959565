"""
Model one submission: home, job file, private entry, one rename, and only then the id.

The source of the commit is private to the submitter and to the janitor, and a committed
entry may be claimed before the submitter has looked. So a missing target says nothing
here; what decides is whether the janitor has set the private entry aside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from .rules import ASKED, ERROR, GONE, TRUE

ACK_LOST = "acknowledged job lost"
DENIED = "committed job reported as failed"
EMPTY = "entry without a job file"
TWO_ENTRIES = "two entries of one job"

WRITE, LINK, NAME, COMMIT, END, DEAD = range(6)


class Home(NamedTuple):
    """The home, the entries in state directories, the submitter, the janitor, what may still happen."""

    pc: int = WRITE
    rpc: int = 0
    job: int = 0
    spare: int = 0  # `.t`, where the entry is made under another name first
    private: int = 0  # `.entry`
    aside: int = 0  # `.abandoned`
    queued: int = 0
    moved: int = 0  # entries that have left queue/ under a higher gen
    told: str = ""
    late: tuple[str, ...] = ()
    janitor: int = 0
    lates: int = 0
    kills: int = 0


Steps = list[tuple[str, Home]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """
    One submitter, one janitor, and a cluster that claims at once.

    Attributes:
        lates: RPCs executed late or twice (count). kills: of the submitter (count).
        order: job file before the entry, or after its commit.
        ack: the id is printed after the commit, or before it.
        gone: with the source gone, look for what the janitor left, or for the target.
        janitor: sets `.entry` aside by a rename and then removes, or looks and then removes, or is not there.
        made: `.entry` is created under its name, or created as `.t` and renamed.
    """

    lates: int = 1
    kills: int = 1
    order: Literal["job-first", "entry-first"] = "job-first"
    ack: Literal["after", "before"] = "after"
    gone: Literal["aside", "target"] = "aside"
    janitor: Literal["rename", "look", "none"] = "rename"
    made: Literal["renamed", "created"] = "renamed"

    def initial(self) -> Home:
        first = WRITE if self.order == "job-first" else LINK
        return Home(pc=first, lates=self.lates, kills=self.kills)

    def settled(self, s: Home) -> bool:
        return s.pc in (END, DEAD)

    def violated(self, s: Home) -> str:
        committed = s.queued + s.moved
        if committed > 1:
            return TWO_ENTRIES
        if committed and not s.job:
            return EMPTY
        if s.told == "id" and not committed and s.pc in (END, DEAD):
            return ACK_LOST
        return DENIED if s.told == "failed" and committed else ""

    def steps(self, s: Home) -> Steps:
        out: Steps = []
        for i, rpc in enumerate(s.late):
            out.append((f"late {rpc} executed", effect(s._replace(late=s.late[:i] + s.late[i + 1 :]), rpc)))
        if s.queued:
            out.append(("a node claims", s._replace(queued=0, moved=s.moved + 1)))
        self._janitor(s, out)
        if s.pc in (END, DEAD):
            return out
        if s.kills:
            dead = s._replace(pc=DEAD, rpc=0, kills=s.kills - 1)
            out.append(("submitter killed", dead))
            if s.pc == COMMIT and s.rpc == ASKED:
                out.append(("submitter killed, commit in flight", dead._replace(late=(*s.late, "commit"))))
        self._submitter(s, out)
        return out

    def _submitter(self, s: Home, out: Steps) -> None:
        made = "create entry" if self.made == "created" else "create spare"
        if s.pc == WRITE:
            done = LINK if self.order == "job-first" else END
            out.append(("writes job file", s._replace(job=1, pc=done)))
        elif s.pc == LINK:
            self._once(s, made, COMMIT if self.made == "created" else NAME, out)
        elif s.pc == NAME:
            self._once(s, "name entry", COMMIT, out)
        elif s.rpc:
            self._commit(s, out)
        else:
            told = "id" if self.ack == "before" else ""
            out.append(("asks to commit", s._replace(rpc=ASKED, told=told)))

    def _once(self, s: Home, rpc: str, following: int, out: Steps) -> None:
        after = effect(s, rpc)._replace(pc=following)
        out.append((rpc, after))
        if s.lates:
            out.append((f"{rpc}, duplicate in flight", after._replace(late=(*s.late, rpc), lates=s.lates - 1)))

    def _commit(self, s: Home, out: Steps) -> None:
        if s.rpc == ASKED:
            if s.lates:
                early = s._replace(rpc=ERROR, late=(*s.late, "commit"), lates=s.lates - 1)
                out.append(("commit times out, in flight", early))
            after = effect(s, "commit")
            if s.private:
                out.append(("commit done", after._replace(rpc=TRUE)))
                out.append(("commit done, reply lost", after._replace(rpc=ERROR)))
            else:
                out.append(("commit: ENOENT", s._replace(rpc=ERROR)))
        elif s.rpc == TRUE:
            out.append(("WON", self._won(s)))
        elif s.rpc == ERROR:
            after = s._replace(rpc=ASKED) if s.private else s._replace(rpc=GONE)
            out.append(("looks for the source", after))
        else:
            won = bool(s.queued) if self.gone == "target" else not s.aside
            lost = s._replace(pc=END, rpc=0, told="failed")
            out.append(("looks what became of it", self._won(s) if won else lost))

    def _won(self, s: Home) -> Home:
        return s._replace(pc=END if self.order == "job-first" else WRITE, rpc=0, told="id")

    def _janitor(self, s: Home, out: Steps) -> None:
        """Add the removal of a home that looks forgotten, at the worst of times."""
        if self.janitor == "none":
            return
        if self.janitor == "rename":
            if s.private and not s.janitor:
                out.append(("janitor sets entry aside", s._replace(private=0, aside=1, janitor=1)))
            elif s.janitor == 1 and not (s.queued or s.moved):
                out.append(("janitor removes files", s._replace(job=0, janitor=2)))
        elif s.private and not s.janitor:
            out.append(("janitor sees an uncommitted home", s._replace(janitor=1)))
        elif s.janitor == 1:
            out.append(("janitor removes files", s._replace(job=0, private=0, janitor=2)))


def effect(s: Home, rpc: str) -> Home:
    """Execute one RPC on the server; one whose source is gone does nothing."""
    if rpc == "create entry":
        return s._replace(private=1)
    if rpc == "create spare":
        return s._replace(spare=1)
    if rpc == "name entry" and s.spare:
        return s._replace(spare=0, private=1)
    if rpc == "commit" and s.private:
        return s._replace(private=0, queued=1)
    return s
