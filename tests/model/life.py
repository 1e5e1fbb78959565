"""
Model the life of one acknowledged job: the spool, its users and faults; the nodes act in `node`.

The server holds one entry and executes renames; an RPC may be executed without its reply
arriving, or be executed after its client was told of an error or died. Every property of
the protocol is named here.
"""

from __future__ import annotations

from .node import node_steps
from .rules import (
    ASKED,
    CANCELLED,
    DOWN,
    ENDED,
    EXITED,
    EXPIRED,
    FAILED,
    FENCED,
    HELD,
    IDLE,
    KILLED,
    QUEUE,
    STARTED,
    VALID,
    Budget,
    Node,
    Rules,
    Scope,
    State,
    attempt_of,
    directory_of,
    gen_of,
    leased,
    name,
    seen_as,
    with_node,
)

TWO_RUNNERS = "two runners"
TWO_COMPLETIONS = "two completions"
TWO_STARTS = "started twice against its rule"
RUNS_AFTER_END = "runs after its end, or while held"
WRONG_RESULT = "result of another attempt"
WRONG_HISTORY = "history counts another attempt"
GIVEN_UP = "given up though certainly not started"

Steps = list[tuple[str, State]]


class Life:
    """One job, n nodes, users, and a budget of faults."""

    def __init__(self, rules: Rules, scope: Scope) -> None:
        self.rules = rules
        self.scope = scope
        self.exact = rules.names == "gen" and rules.targets == "own"

    def initial(self) -> State:
        nodes = tuple(Node() for _ in range(self.scope.nodes))
        return State(name(QUEUE, 0, 1), nodes, budget=self.scope.budget)

    def settled(self, state: State) -> bool:
        return directory_of(state.loc) in (HELD, EXITED, FAILED, CANCELLED)

    def violated(self, state: State) -> str:
        """Name the first broken property."""
        if state.bad and state.bad != self.scope.allowed:
            return state.bad
        running = sum(node.run != 0 for node in state.nodes)
        if running > 1:
            return TWO_RUNNERS
        if state.wins > 1:
            return TWO_COMPLETIONS
        proven = state.budget.powers < self.scope.budget.powers
        if state.starts > 1 and (self.rules.rerun == "never" or (self.rules.rerun == "certain" and not proven)):
            return TWO_STARTS
        if not self.settled(state):
            return ""
        return RUNS_AFTER_END if running else self._wrong_end(state, proven)

    def _wrong_end(self, state: State, proven: bool) -> str:
        """Check what was written about a job that has ended."""
        end, attempt, rules = directory_of(state.loc), attempt_of(state.loc), self.rules
        if end == EXITED:
            right = state.results == attempt if rules.result == "job" else state.results >> attempt & 1
            if not right:
                return WRONG_RESULT
        if end in (EXITED, FAILED) and rules.names == "gen":
            wanted = gen_of(state.loc) if rules.history == "gen" else 1 << attempt
            if state.history != wanted:
                return WRONG_HISTORY
        thrifty = rules.rerun == "never" and not proven and self.scope.allowed != GIVEN_UP
        return GIVEN_UP if end == FAILED and thrifty and not state.starts else ""

    # The server.

    def same(self, one: int, other: int) -> bool:
        """Tell whether two names are the same name on the disk."""
        return one == other or (not self.exact and seen_as(one, self.rules) == seen_as(other, self.rules))

    def moved(self, loc: int, src: int, dst: int) -> int:
        """Execute a rename whose source is there; hidden fields follow the entry, not the caller."""
        attempt = max(1, attempt_of(loc) + attempt_of(dst) - attempt_of(src))
        after = name(directory_of(dst), gen_of(loc) + 1, attempt)
        assert not self.exact or after == dst
        return after

    def late(self, state: State, loc: int, extra: tuple[int, int] | None = None) -> tuple[tuple[int, int], ...]:
        """
        List the renames that may still be executed.

        With names that never recur, one whose source is not there never finds it again.
        """
        pending = state.late if extra is None else tuple(sorted((*state.late, extra)))
        return tuple(pair for pair in pending if pair[0] == loc) if self.exact else pending

    def steps(self, state: State) -> Steps:
        """List every step of anybody."""
        out: Steps = []
        for i, (src, dst) in enumerate(state.late):
            if i and state.late[i - 1] == state.late[i]:
                continue
            rest = state._replace(late=state.late[:i] + state.late[i + 1 :])
            if self.same(state.loc, src):
                loc = self.moved(state.loc, src, dst)
                out.append(("late rename executed", rest._replace(loc=loc, late=self.late(rest, loc))))
            else:
                out.append(("late rename misses", rest))
        self._users(state, out)
        for n, node in enumerate(state.nodes):
            self._faults(state, n, node, out)
            self._runner(state, n, node, out)
            if node.up:
                node_steps(self, state, n, node, out)
        return out

    def _users(self, state: State, out: Steps) -> None:
        """Add renames by user processes, which act on no reply: each is executed at any later time or never."""
        where = directory_of(state.loc)
        if not state.budget.users or where not in (QUEUE, HELD):
            return
        budget = state.budget._replace(users=state.budget.users - 1)
        targets = [("cancel", CANCELLED), ("hold", HELD), ("edit", QUEUE)]
        if where == HELD:
            targets = [("cancel", CANCELLED), ("release", QUEUE)]
        for label, directory in targets:
            dst = name(directory, gen_of(state.loc) + 1, attempt_of(state.loc))
            late = self.late(state, state.loc, (state.loc, dst))
            out.append((f"user asks to {label}", state._replace(budget=budget, late=late)))

    # Time, power and kills.

    def _faults(self, state: State, n: int, node: Node, out: Steps) -> None:
        budget = state.budget
        if node.lease == VALID and budget.leases:
            after = node._replace(lease=FENCED, gap=1)
            fencer = self.rules.fence == "family" or (self.rules.fence == "runner" and node.runner)
            if node.run and self.rules.rerun == "yes" and fencer:
                after = after._replace(run=0, jl=KILLED)
            out.append(
                (f"n{n} fence time passes", with_node(state, n, after, budget._replace(leases=budget.leases - 1)))
            )
        elif node.lease == FENCED:
            out.append((f"n{n} silent for dead_after", with_node(state, n, node._replace(lease=EXPIRED))))
        if node.lease != VALID and node.up and node.pc != DOWN:
            out.append((f"n{n} beats again", with_node(state, n, node._replace(lease=VALID))))
        if node.up and budget.powers:
            self._power_off(state, n, node, budget._replace(powers=budget.powers - 1), out)
        if not node.up:
            out.append((f"n{n} boots", with_node(state, n, node._replace(up=1, runner=1, pc=IDLE))))
            return
        if node.pc != DOWN and budget.daemons:
            dead = node._replace(pc=DOWN, src=0, dst=0, rpc=0, msg=-abs(node.msg))
            spent = budget._replace(daemons=budget.daemons - 1)
            self._with_orphan(state, node, f"n{n} daemon killed", with_node(state, n, dead, spent), out)
        if node.pc == DOWN:
            msg = 0 if self.rules.hello else node.msg
            out.append((f"n{n} daemon starts", with_node(state, n, node._replace(pc=IDLE, msg=msg))))

    def _power_off(self, state: State, n: int, node: Node, budget: Budget, out: Steps) -> None:
        """Lose every process and any unsynced tail of the journal; records of the old boot count only if ended."""
        off = node._replace(pc=DOWN, up=0, runner=0, src=0, dst=0, rpc=0, msg=0, run=0, jn=0, jl=0)
        self._with_orphan(state, node, f"n{n} loses power", with_node(state, n, off, budget), out)
        if node.jl == ENDED:
            kept = off._replace(jn=node.jn, jl=ENDED)
            self._with_orphan(state, node, f"n{n} loses power, journal kept", with_node(state, n, kept, budget), out)

    def _with_orphan(self, before: State, node: Node, label: str, after: State, out: Steps) -> None:
        """Add a death, with the rename in flight lost or still to be executed."""
        out.append((label, after))
        if node.rpc == ASKED:
            late = self.late(before, before.loc, (node.src, node.dst))
            if late != after.late:
                out.append((f"{label}, rename in flight", after._replace(late=late)))

    def _runner(self, state: State, n: int, node: Node, out: Steps) -> None:
        """Add what the runner, and the subreaper after its death, can do without the daemon."""
        if node.run:
            ended = node._replace(run=0, jl=ENDED, jn=node.run)
            out.append((f"n{n} job ends", with_node(state, n, ended)))
        if not node.up:
            return
        if not node.runner:
            out.append((f"n{n} runner starts", with_node(state, n, node._replace(runner=1))))
            return
        if state.budget.runners:
            spent = state.budget._replace(runners=state.budget.runners - 1)
            out.append((f"n{n} runner killed", with_node(state, n, node._replace(runner=0, msg=0), spent)))
        if not node.msg:
            return
        asked = abs(node.msg)
        if not leased(node, self.rules) or (self.rules.once and node.jn == asked and node.jl >= STARTED):
            level = min(node.jl, 1) if node.jl < STARTED else node.jl
            out.append((f"n{n} runner refuses", with_node(state, n, node._replace(msg=0, jl=level))))
            return
        began = node._replace(msg=0, run=asked, jn=asked, jl=STARTED)
        bad = TWO_RUNNERS if node.run else ""
        started = with_node(state, n, began)
        out.append((f"n{n} EXEC", started._replace(starts=min(2, state.starts + 1), bad=bad)))
