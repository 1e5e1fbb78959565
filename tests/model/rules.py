"""
Name the guards of the protocol, the size of a search, and the words of a state.

Each guard is a switch, so that a test can take one away and show what it is for. The
defaults are the protocol to be built. No step is defined here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

QUEUE, HELD, EXITED, FAILED, CANCELLED = range(5)
RUNNING, REAPING = 8, 16  # + node number
VALID, FENCED, EXPIRED = range(3)
IDLE, CLAIM, WON, ACTIVE, COMMIT, GIVE, BACK, REAP, REAPED, DISPOSE, DOWN, JUDGED = range(12)
ASKED, TRUE, ERROR, GONE = range(1, 5)  # an RPC: sent; reply true on its way; failed; failed and source seen gone
CLAIMING, GO, STARTED, ENDED, KILLED = range(1, 6)  # how far the journal's latest record says an attempt came

Pair = tuple[int, int]


class Node(NamedTuple):
    """One machine: daemon (pc, rpc), lease, runner (alive, message, job) and local journal (jn, jl)."""

    pc: int = IDLE
    lease: int = VALID
    gap: int = 0  # the fence fired since the claim was asked for
    up: int = 1
    runner: int = 1
    src: int = 0
    dst: int = 0
    rpc: int = 0
    msg: int = 0  # start message not yet read by the runner; negative: of a dead daemon, so unknown to the next
    run: int = 0  # running/<me> name under which the job was started and still runs
    jn: int = 0  # running/<me> name of the journal's latest record
    jl: int = 0


class Budget(NamedTuple):
    """How many of each fault may still happen (count)."""

    leases: int = 0
    daemons: int = 0
    runners: int = 0
    powers: int = 0
    late: int = 0
    users: int = 0


class State(NamedTuple):
    """The spool, the nodes, and what has been seen happening."""

    loc: int
    nodes: tuple[Node, ...]
    late: tuple[Pair, ...] = ()
    budget: Budget = Budget()
    starts: int = 0
    wins: int = 0  # commits that a node was told it won
    results: int = 0  # set of attempts with a published result, or the attempt in the only result file
    history: int = 0  # highest gen with a history line, or set of attempts with one
    bad: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """
    The protocol; every field but `rerun` and `go` is a guard whose default is the right one.

    Attributes:
        rerun: the job's rerun rule.
        go: who writes the journal's "go".
        names: what makes a name unique: gen and attempt, attempt only, or nothing.
        targets: claims go to a directory of the claimer's own, or to one for all.
        look: what a failed rename leads to: the source first and then the target, the other order,
            no look at all, or the wrong reading of a look that failed.
        lease: checked before exec: never broken since the claim was asked for, good now, or not at all.
        restart: what a daemon does after a restart with a claim that has no "go".
        reboot: an entry without a record of this boot may have started, or counts as not started.
        judge: the other node is judged after its directory was listed, or before.
        proof: what certain death of another node rests on: power off (operator), or a new boot id.
        fence: who kills at the fence time: runner and subreaper, the runner alone, nobody.
        hello: a new daemon makes the runner drop unread messages of the old one.
        once: the runner refuses a second start of one name.
        ghosts: the daemon lists running/<me> for entries it does not know.
        result: one result file for each attempt, or one for the job.
        history: readers believe the line with the highest gen, or one line for each attempt.
        reaped: what is done with a reaped entry: a published result is honoured, or not.
    """

    rerun: Literal["never", "certain", "yes"] = "yes"
    go: Literal["daemon", "runner"] = "runner"
    names: Literal["gen", "attempt", "none"] = "gen"
    targets: Literal["own", "shared"] = "own"
    look: Literal["source-first", "target-first", "none", "unknown-lost", "unknown-won"] = "source-first"
    lease: Literal["since", "now", "none"] = "since"
    restart: Literal["give", "start"] = "give"
    reboot: Literal["may-have-started", "not-started"] = "may-have-started"
    judge: Literal["after", "before"] = "after"
    proof: Literal["power", "boot-id"] = "power"
    fence: Literal["family", "runner", "none"] = "family"
    hello: bool = True
    once: bool = True
    ghosts: bool = True
    result: Literal["attempt", "job"] = "attempt"
    history: Literal["gen", "attempt"] = "gen"
    reaped: Literal["honour", "ignore"] = "honour"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """
    Size of a search.

    Attributes:
        nodes: machines (count).
        attempts: starts that the rerun rule may give the job (count).
        budget: how many faults may happen in all.
        allowed: a property that may break, to see what else comes of it.
    """

    nodes: int = 2
    attempts: int = 2
    budget: Budget = Budget()
    allowed: str = ""


def name(directory: int, gen: int, attempt: int) -> int:
    """Pack an entry name; gen and attempt are also its ghost fields where a variant hides them."""
    assert gen < 64
    assert attempt < 8
    return directory << 9 | gen << 3 | attempt


def directory_of(entry: int) -> int:
    return entry >> 9


def gen_of(entry: int) -> int:
    return entry >> 3 & 63


def attempt_of(entry: int) -> int:
    return entry & 7


def seen_as(entry: int, rules: Rules) -> int:
    """Tell what of a name is visible on the disk under the rules."""
    directory = directory_of(entry)
    if rules.targets == "shared" and RUNNING <= directory < REAPING:
        directory = RUNNING
    gen = gen_of(entry) if rules.names == "gen" else 0
    attempt = 0 if rules.names == "none" else attempt_of(entry)
    return name(directory, gen, attempt)


def leased(node: Node, rules: Rules) -> bool:
    """Tell whether the lease check before exec passes."""
    if rules.lease == "none":
        return True
    return node.lease == VALID and not (rules.lease == "since" and node.gap)


def with_node(state: State, n: int, node: Node, budget: Budget | None = None) -> State:
    """Return the state with one node, and perhaps the budget, replaced."""
    nodes = (*state.nodes[:n], node, *state.nodes[n + 1 :])
    return State(
        state.loc,
        nodes,
        state.late,
        state.budget if budget is None else budget,
        state.starts,
        state.wins,
        state.results,
        state.history,
        state.bad,
    )
