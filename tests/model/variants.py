"""
List every search that is run: the protocol in several scopes, and the protocol without one guard.

One row is one claim: what is searched, and the property that must break, or none. The
tests assert the rows and `python -m tests.model` prints them, so documents and tests
cannot differ.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product
from typing import Any, Literal

from . import admission, submission
from .admission import Admission
from .dependency import LET_GO, Dependency
from .drop import OVERWRITTEN, Dropping
from .explore import STUCK, Model
from .life import (
    GIVEN_UP,
    RUNS_AFTER_END,
    TWO_COMPLETIONS,
    TWO_RUNNERS,
    TWO_STARTS,
    WRONG_HISTORY,
    WRONG_RESULT,
    Life,
)
from .node import FALSE_LOST
from .rules import Budget, Rules, Scope
from .submission import Submission


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One search: its name, its model, the property that must break (empty: none), and whether it takes long."""

    name: str
    model: Model[Any]  # states of different models are never mixed
    breaks: str = ""
    slow: bool = field(default=False)


def _life(name: str, breaks: str, rules: Rules, *, allow: str = "", **faults: int) -> Variant:
    scope = Scope(budget=Budget(**faults), allowed=allow)
    return Variant(name=name, model=Life(rules, scope), breaks=breaks)


Rerun = Literal["never", "certain", "yes"]
RERUNS: tuple[Rerun, ...] = ("never", "certain", "yes")
QUICK = (
    {"leases": 1, "powers": 1},
    {"leases": 1, "daemons": 1, "late": 1},
    {"daemons": 1, "runners": 1, "users": 1},
    {"powers": 1, "late": 2, "users": 1},
    {"leases": 1, "users": 2},
)
LARGE = (
    {"leases": 2, "late": 2},
    {"powers": 2, "late": 2},
    {"daemons": 2, "late": 2, "users": 2},
    {"leases": 1, "daemons": 1, "runners": 1, "late": 1},
    {"leases": 1, "daemons": 1, "powers": 1},
)


def _faults(budget: dict[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in budget.items())


def _protocol() -> list[Variant]:
    """Search the protocol as it is to be built."""
    out = []
    for rerun, budget in product(RERUNS, QUICK):
        scope = Scope(budget=Budget(**budget))
        out.append(Variant(name=f"life {rerun}: {_faults(budget)}", model=Life(Rules(rerun=rerun), scope)))
    for rerun, budget in product(RERUNS, LARGE):
        scope = Scope(budget=Budget(**budget))
        name = f"life {rerun}: {_faults(budget)}"
        out.append(Variant(name=name, model=Life(Rules(rerun=rerun), scope), slow=True))
    for rerun, budget in product(
        RERUNS, ({"powers": 2, "late": 2}, {"leases": 1, "late": 1}, {"daemons": 1, "late": 1})
    ):
        scope = Scope(nodes=3, budget=Budget(**budget))
        name = f"life {rerun}, 3 nodes: {_faults(budget)}"
        out.append(Variant(name=name, model=Life(Rules(rerun=rerun), scope), slow=True))
    scope = Scope(attempts=3, budget=Budget(leases=1, powers=1))
    out.append(Variant(name="life yes, 3 attempts: 1 leases, 1 powers", model=Life(Rules(), scope), slow=True))
    out.append(Variant(name="submission: 1 late, 1 kill", model=Submission()))
    for lates in (1, 3):
        name = f"admission, the file is the entry: {lates} late, 2 kills"
        out.append(Variant(name=name, model=Admission(lates=lates), slow=lates > 1))
    return out


def _unguarded() -> list[Variant]:
    """Take one guard away from the life of a job; each must break."""
    return [
        _life("no gen in names (attempt kept), yes", TWO_COMPLETIONS, Rules(names="attempt"), leases=1, late=1),
        _life(
            "no gen in names (attempt kept), never", GIVEN_UP, Rules(rerun="never", names="attempt"), leases=1, late=1
        ),
        _life("neither gen nor attempt in names", WRONG_RESULT, Rules(names="none"), leases=1, late=1),
        _life("one target directory for all claimers", TWO_RUNNERS, Rules(rerun="never", targets="shared")),
        _life("ENOENT is LOST, no look", FALSE_LOST, Rules(look="none")),
        _life("the same, and no ghost listing", STUCK, Rules(look="none", ghosts=False), allow=FALSE_LOST),
        _life("look at target first, then source", FALSE_LOST, Rules(look="target-first"), late=1),
        _life("UNKNOWN is LOST", FALSE_LOST, Rules(look="unknown-lost")),
        _life("the same, and no ghost listing", STUCK, Rules(look="unknown-lost", ghosts=False), allow=FALSE_LOST),
        _life("UNKNOWN is WON", TWO_RUNNERS, Rules(rerun="never", look="unknown-won"), late=1),
        _life("no listing of own running/", STUCK, Rules(ghosts=False), daemons=1),
        _life("no lease check before exec", TWO_RUNNERS, Rules(lease="none"), leases=1),
        _life("lease good now, not since the claim", TWO_RUNNERS, Rules(lease="now"), leases=1),
        _life("no self-fence", TWO_RUNNERS, Rules(fence="none"), leases=1),
        _life("only the runner fences, and it is killed", TWO_RUNNERS, Rules(fence="runner"), leases=1, runners=1),
        _life("judged dead before listed, yes", TWO_RUNNERS, Rules(judge="before"), leases=1),
        _life("judged dead before listed, never", RUNS_AFTER_END, Rules(rerun="never", judge="before"), powers=1),
        _life("others take over on a new boot id", TWO_RUNNERS, Rules(rerun="certain", proof="boot-id"), powers=1),
        _life("no record after reboot = not started", TWO_STARTS, Rules(rerun="never", reboot="not-started"), powers=1),
        _life(
            "restarted daemon starts an old claim",
            TWO_RUNNERS,
            Rules(rerun="never", restart="start"),
            daemons=1,
            runners=1,
        ),
        _life("no hello-drop, never", TWO_RUNNERS, Rules(rerun="never", hello=False), daemons=1),
        _life(
            "no hello-drop, daemon writes go",
            RUNS_AFTER_END,
            Rules(rerun="never", hello=False, go="daemon"),
            allow=GIVEN_UP,
            daemons=1,
        ),
        _life(
            "second start taken, no hello-drop, old claim started",
            TWO_RUNNERS,
            Rules(rerun="never", hello=False, once=False, restart="start"),
            daemons=1,
        ),
        _life("one result.json, written before the commit", WRONG_RESULT, Rules(result="job"), leases=1),
        _life("the same, certain", WRONG_RESULT, Rules(rerun="certain", result="job"), powers=1),
        _life("history read by (id, attempt)", WRONG_HISTORY, Rules(history="attempt"), leases=1),
    ]


def _unneeded() -> list[Variant]:
    """Take away what the model does not need: stated plainly, and explained in README.md."""
    return [
        _life(
            "not needed alone: runner takes a start twice", "", Rules(rerun="never", once=False), daemons=2, runners=1
        ),
        _life("not needed: a reaper ignores a published result", "", Rules(reaped="ignore"), leases=1, powers=1),
        _life("not needed: ENOENT is LOST, ghosts listed", "", Rules(look="none"), allow=FALSE_LOST, late=1),
        _life("other choice: daemon writes go, yes", "", Rules(go="daemon"), leases=1, daemons=1),
        _life(
            "other choice: daemon writes go, never",
            "",
            Rules(rerun="never", go="daemon"),
            allow=GIVEN_UP,
            daemons=1,
            runners=1,
            late=1,
        ),
        _life("the same: a job is given up that never started", GIVEN_UP, Rules(rerun="never", go="daemon"), daemons=1),
        _life("the same, runner killed", GIVEN_UP, Rules(rerun="never", go="daemon"), runners=1),
    ]


def _entrances() -> list[Variant]:
    """Search the ways into the queue without one guard."""
    two, lost, empty = admission.TWO_JOBS, admission.FILE_LOST, admission.EMPTY
    sub = submission
    return [
        Variant(name="sub: id printed before the commit", model=Submission(ack="before"), breaks=sub.ACK_LOST),
        Variant(
            name="sub: entry committed before the job file", model=Submission(order="entry-first"), breaks=sub.EMPTY
        ),
        Variant(name="sub: target not in queue = LOST", model=Submission(gone="target", kills=0), breaks=sub.DENIED),
        Variant(name="sub: janitor looks, then removes", model=Submission(janitor="look"), breaks=sub.EMPTY),
        Variant(name="sub: .entry by symlink, none executed twice", model=Submission(made="created", lates=0)),
        Variant(
            name="sub: .entry by symlink, executed twice",
            model=Submission(made="created", janitor="none"),
            breaks=sub.TWO_ENTRIES,
        ),
        Variant(name="sub: .t renamed to .entry, 2 late", model=Submission(lates=2), breaks=sub.EMPTY),
        Variant(
            name="admit: intent, as planned", model=Admission(plan="intent", takeover="certain", lates=0), breaks=empty
        ),
        Variant(name="admit: intent, job file redone", model=Admission(plan="patched", takeover="certain", lates=0)),
        Variant(name="the same, taken over from the silent", model=Admission(plan="patched", lates=0), breaks=two),
        Variant(
            name="the same, symlink executed twice", model=Admission(plan="patched", takeover="certain"), breaks=two
        ),
        Variant(name="admit: .entry before intent", model=Admission(plan="entry-before-intent", lates=0)),
        Variant(name="the same, symlink executed twice", model=Admission(plan="entry-before-intent"), breaks=two),
        Variant(name="admit: no intent", model=Admission(plan="no-intent", takeover="certain", lates=0), breaks=two),
        Variant(
            name="admit: job file before .entry",
            model=Admission(plan="job-before-entry", takeover="certain", lates=0),
            breaks=lost,
        ),
        Variant(name="drop: retry to a fresh target", model=Dropping()),
        Variant(name="drop: retry to the same target", model=Dropping(retry="same"), breaks=OVERWRITTEN),
        Variant(name="the same, target looked at first", model=Dropping(retry="same", look="target")),
        Variant(name="drop: fresh target, rename executed twice", model=Dropping(lates=1), breaks=OVERWRITTEN),
    ]


def _families() -> list[Variant]:
    """Search children that wait for a parent, without one guard or with what might seem enough."""
    alone = Dependency(submitter="never", finisher="never")
    return [
        Variant(name="depend: all look, 2 kills, 2 users", model=Dependency(kills=2, users=2)),
        Variant(name="depend: all look, 2 late, 1 user", model=Dependency(lates=2, users=1)),
        Variant(name="depend: the node's look alone is enough", model=alone),
        Variant(name="depend: submitter and finisher alone", model=Dependency(node="never", kills=0)),
        Variant(name="the same, one of them killed", model=Dependency(node="never"), breaks=STUCK),
        Variant(
            name="the same, the submitter looks before its commit",
            model=Dependency(node="never", submitter="before", kills=0),
            breaks=STUCK,
        ),
        Variant(
            name="the same, the finisher looks before the end",
            model=Dependency(node="never", submitter="never", finisher="before", kills=0),
            breaks=STUCK,
        ),
        Variant(
            name="the same, a user holds and releases",
            model=Dependency(node="never", kills=0, users=1),
            breaks=STUCK,
        ),
        Variant(
            name="depend: names recur, 1 late, 1 user", model=Dependency(names="same", lates=1, users=1), breaks=LET_GO
        ),
    ]


PROTOCOL = _protocol()
UNGUARDED = _unguarded()
UNNEEDED = _unneeded()
ENTRANCES = _entrances()
FAMILIES = _families()
ALL = [*PROTOCOL, *UNGUARDED, *UNNEEDED, *ENTRANCES, *FAMILIES]
