"""
Model one node's daemon: claim, start, finish, give back, and take over from the dead.

Everything a restarted daemon does is the same step that a running one would do: both look
at the listing and the journal, so there is no recovery code apart from this table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .rules import (
    ACTIVE,
    ASKED,
    BACK,
    CLAIM,
    CLAIMING,
    COMMIT,
    DISPOSE,
    DOWN,
    ENDED,
    ERROR,
    EXITED,
    EXPIRED,
    FAILED,
    GIVE,
    GO,
    GONE,
    IDLE,
    JUDGED,
    KILLED,
    QUEUE,
    REAP,
    REAPED,
    REAPING,
    RUNNING,
    STARTED,
    TRUE,
    VALID,
    WON,
    Node,
    State,
    attempt_of,
    directory_of,
    gen_of,
    leased,
    name,
    with_node,
)

if TYPE_CHECKING:
    from .life import Life, Steps

FALSE_LOST = "own rename taken for lost"


def node_steps(life: Life, state: State, n: int, node: Node, out: Steps) -> None:
    """Add what the daemon of node n can do next."""
    if node.pc == DOWN:
        return
    if node.rpc:
        _call(life, state, n, node, out)
    elif node.pc == IDLE:
        _look_around(life, state, n, node, out)
    elif node.pc == WON:
        _start(life, state, n, node, out)
    elif node.pc == ACTIVE:
        _follow(life, state, n, node, out)
    elif node.pc == REAPED:
        _dispose(life, state, n, node, out)
    elif node.pc == JUDGED:
        _take(state, n, node, state.loc, out, owner=node.src)
        out.append((f"n{n} takes nothing", with_node(state, n, node._replace(pc=IDLE, src=0))))


def _ask(state: State, n: int, node: Node, pc: int, src: int, dst: int) -> State:
    return with_node(state, n, node._replace(pc=pc, src=src, dst=dst, rpc=ASKED))


# One rename, from the client's side.


def _call(life: Life, state: State, n: int, node: Node, out: Steps) -> None:
    """Add the steps of a rename: execution, reply or none, and the fresh looks that tell them apart."""
    if node.rpc == ASKED:
        _execute(life, state, n, node, out)
    elif node.rpc == TRUE:
        _conclude(state, n, node, out, won=True)
    elif node.rpc == ERROR:
        look = life.rules.look
        if look == "none" or look == "unknown-lost":
            _conclude(state, n, node, out, won=False, own=life.same(state.loc, node.dst))
        if look == "unknown-won":
            _conclude(state, n, node, out, won=True)
        if look != "none":
            _look(life, state, n, node, out, first=node.src if look != "target-first" else node.dst)
    else:
        _look(life, state, n, node, out, first=0)


def _execute(life: Life, state: State, n: int, node: Node, out: Steps) -> None:
    pair = (node.src, node.dst)
    errored = node._replace(rpc=ERROR)
    if state.budget.late:
        spent = state.budget._replace(late=state.budget.late - 1)
        early = with_node(state, n, errored, spent)._replace(late=life.late(state, state.loc, pair))
        if early.late != state.late:
            out.append((f"n{n} rename times out, in flight", early))
    if not life.same(state.loc, node.src):
        out.append((f"n{n} rename: ENOENT", with_node(state, n, errored)))
        return
    loc = life.moved(state.loc, *pair)
    late = life.late(state, loc)
    for label, after in (("done", node._replace(rpc=TRUE)), ("done, reply lost", errored)):
        moved = with_node(state, n, after)._replace(loc=loc, late=late)
        out.append((f"n{n} rename {label}", moved))
        more = life.late(state, loc, pair)
        if state.budget.late and more != late:
            spent = state.budget._replace(late=state.budget.late - 1)
            out.append((f"n{n} rename {label}, duplicate in flight", moved._replace(late=more, budget=spent)))


def _look(life: Life, state: State, n: int, node: Node, out: Steps, *, first: int) -> None:
    """Look freshly at one name; two names are never seen in one instant."""
    second = node.dst if life.rules.look != "target-first" else node.src
    at = first or second
    there = life.same(state.loc, at)
    if there and at == node.src:
        out.append((f"n{n} sees source, retries", with_node(state, n, node._replace(rpc=ASKED))))
    elif there:
        _conclude(state, n, node, out, won=True)
    elif first:
        out.append((f"n{n} sees first name gone", with_node(state, n, node._replace(rpc=GONE))))
    else:
        _conclude(state, n, node, out, won=False, own=life.same(state.loc, node.dst))


def _conclude(state: State, n: int, node: Node, out: Steps, *, won: bool, own: bool = False) -> None:
    """Go on with a rename that was won or lost; `own`: the target is there all the same."""
    quiet = node._replace(src=0, dst=0, rpc=0)
    if not won:
        idle = quiet._replace(pc=IDLE, jn=0, jl=0)
        out.append((f"n{n} LOST", with_node(state, n, idle)._replace(bad=FALSE_LOST if own else "")))
    elif node.pc in (CLAIM, REAP):
        kept = quiet._replace(pc=WON if node.pc == CLAIM else REAPED, src=node.dst)
        if node.pc == REAP:
            kept = kept._replace(jn=0, jl=0)
        out.append((f"n{n} WON", with_node(state, n, kept)))
    else:
        idle = quiet._replace(pc=IDLE, jn=0, jl=0)
        wins = state.wins + (directory_of(node.dst) in (EXITED, FAILED))
        out.append((f"n{n} WON", with_node(state, n, idle)._replace(wins=wins)))


# What to do about what is listed.


def _look_around(life: Life, state: State, n: int, node: Node, out: Steps) -> None:
    """Claim what waits, explain what lies in the own directories, take over from the dead."""
    rules, loc = life.rules, state.loc
    where, gen, attempt = directory_of(loc), gen_of(loc), attempt_of(loc)
    if where == QUEUE and node.jl <= CLAIMING and node.lease == VALID and not node.run and node.msg <= 0:
        dst = name(RUNNING + n, gen + 1, attempt)
        record = node._replace(jn=dst, jl=CLAIMING, gap=0)
        out.append((f"n{n} claims", _ask(state, n, record, CLAIM, loc, dst)))
    mine = node.jn != 0 and life.same(loc, node.jn)
    if not mine and node.jl > CLAIMING and not node.run and node.msg <= 0:
        late = state
        if node.jl == ENDED:
            late = _published(life, state, attempt_of(node.jn), gen_of(node.jn) + 1, state.results)
        out.append((f"n{n} keeps a late result", with_node(late, n, node._replace(jn=0, jl=0))))
    if where == RUNNING + n and rules.ghosts:
        if mine:
            fresh = node.jl == CLAIMING and node.msg <= 0 and rules.restart == "start"
            pc = WON if fresh else ACTIVE
            out.append((f"n{n} finds its entry", with_node(state, n, node._replace(pc=pc, src=loc))))
        elif rules.reboot == "not-started":
            found = node._replace(pc=ACTIVE, src=loc, jn=loc, jl=CLAIMING)
            out.append((f"n{n} finds an entry without record", with_node(state, n, found)))
        else:
            out.append((f"n{n} reaps its own", _ask(state, n, node, REAP, loc, name(REAPING + n, gen + 1, attempt))))
    elif where == REAPING + n:
        out.append((f"n{n} finds a reaped entry", with_node(state, n, node._replace(pc=REAPED, src=loc))))
    elif node.lease == VALID and not node.run:
        for owner, other in enumerate(state.nodes):
            decided = where == REAPING + owner and other.lease == EXPIRED  # nothing runs that is in reaping/
            if owner != n and (decided or _dead(life, state, other)):
                if rules.judge == "before":
                    judged = node._replace(pc=JUDGED, src=owner)
                    out.append((f"n{n} judges n{owner} dead", with_node(state, n, judged)))
                else:
                    _take(state, n, node, loc, out, owner=owner)


def _dead(life: Life, state: State, other: Node) -> bool:
    """Tell whether the job's rule lets a node take over from the other one now."""
    silent = life.rules.rerun == "yes" and other.lease == EXPIRED
    if life.rules.proof == "boot-id":
        return silent or state.budget.powers < life.scope.budget.powers
    return silent or not other.up


def _take(state: State, n: int, node: Node, loc: int, out: Steps, *, owner: int) -> None:
    if directory_of(loc) in (RUNNING + owner, REAPING + owner):
        dst = name(REAPING + n, gen_of(loc) + 1, attempt_of(loc))
        out.append((f"n{n} takes over from n{owner}", _ask(state, n, node, REAP, loc, dst)))


def _start(life: Life, state: State, n: int, node: Node, out: Steps) -> None:
    """Check the lease, write "go" if that is the daemon's part, and tell the runner."""
    if not leased(node, life.rules):
        out.append((f"n{n} lease broken", with_node(state, n, node._replace(pc=ACTIVE))))
    elif node.runner:
        level = GO if life.rules.go == "daemon" else CLAIMING
        told = node._replace(pc=ACTIVE, msg=node.src, jn=node.src, jl=max(level, node.jl))
        out.append((f"n{n} tells its runner", with_node(state, n, told)))


def _follow(life: Life, state: State, n: int, node: Node, out: Steps) -> None:
    """Act on what the journal says of the attempt."""
    own, gen, attempt = node.src, gen_of(node.src) + 1, attempt_of(node.src)
    if node.jl == ENDED:
        dst = name(EXITED, gen, attempt)
        published = _published(life, state, attempt, gen, state.results)
        out.append((f"n{n} publishes, commits", _ask(published, n, node, COMMIT, own, dst)))
    elif node.jl == KILLED:
        if node.lease == VALID:
            again = attempt < life.scope.attempts
            dst = name(QUEUE, gen, attempt + 1) if again else name(FAILED, gen, attempt)
            asked = _ask(state, n, node, BACK, own, dst)
            if not again:
                asked = _logged(life, asked, attempt, gen)
            out.append((f"n{n} requeues after its fence", asked))
    elif node.run or node.msg > 0 or node.jl == STARTED:
        return
    elif node.jl == GO:
        dst = name(REAPING + n, gen, attempt)
        out.append((f"n{n} reaps its own", _ask(state, n, node, REAP, own, dst)))
    else:
        dst = name(QUEUE, gen, attempt)
        out.append((f"n{n} gives back", _ask(state, n, node, GIVE, own, dst)))


def _dispose(life: Life, state: State, n: int, node: Node, out: Steps) -> None:
    """Decide about a reaped entry, whose processes are certainly dead or fenced."""
    own, gen, attempt = node.src, gen_of(node.src) + 1, attempt_of(node.src)
    has = state.results == attempt if life.rules.result == "job" else state.results >> attempt & 1
    if has and life.rules.reaped == "honour":
        dst = name(EXITED, gen, attempt)
    elif life.rules.rerun != "never" and attempt < life.scope.attempts:
        dst = name(QUEUE, gen, attempt + 1)
    else:
        dst = name(FAILED, gen, attempt)
    asked = _ask(state, n, node, DISPOSE, own, dst)
    if directory_of(dst) != QUEUE:
        asked = _logged(life, asked, attempt, gen)
    out.append((f"n{n} disposes", asked))


def _published(life: Life, state: State, attempt: int, gen: int, results: int) -> State:
    """Write the result and the history line of an attempt, as done before its commit."""
    results = attempt if life.rules.result == "job" else results | 1 << attempt
    return _logged(life, state._replace(results=results), attempt, gen)


def _logged(life: Life, state: State, attempt: int, gen: int) -> State:
    """Write a history line that names the gen of the intended commit."""
    history = state.history
    history = max(history, gen) if life.rules.history == "gen" else history | 1 << attempt
    return state._replace(history=history)
