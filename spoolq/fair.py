"""
Whose turn it is: ageing, fair share among users, and how much one user may run.

All of it from names: who waits, who runs, since when a job is in line (`Q=`, if the site wants ageing).
Invariants: nodes that list the same order the same; of one user and rank the lower id comes first; a job
that was promised a place (`reserve`) keeps its turn, so that no stream of others, however little
they use, overtakes it for ever; with one user and no ageing the order is rank, then id.
"""

import heapq
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from spoolq.entry import IN_LINE, LENDS, Entry
from spoolq.reason import Reason
from spoolq.reserve import holder
from spoolq.resources import CPUS, show_amount


class Use(NamedTuple):
    """What one user runs on all nodes: jobs, and thousandths of cpus."""

    jobs: int = 0
    cpus: int = 0

    def plus(self, entry: Entry) -> "Use":
        """With one job more."""
        return Use(self.jobs + 1, self.cpus + entry.wants.get(CPUS, 0))


NOTHING = Use()


class Most(NamedTuple):
    """What each user may run at most on all nodes; None for no limit. `cpus` in thousandths."""

    jobs: int | None = None
    cpus: int | None = None


def used(running: Iterable[Entry]) -> dict[str, Use]:
    """Owner -> what they run; a job that waits for jobs of its own does not count, or it could wait for ever."""
    found: dict[str, Use] = {}
    for entry in running:
        if LENDS in entry.other:
            continue
        found[entry.owner] = found.get(entry.owner, NOTHING).plus(entry)
    return found


def together(parts: Iterable[Mapping[str, Use]]) -> dict[str, Use]:
    """The sum over nodes."""
    found: dict[str, Use] = {}
    for part in parts:
        for owner, use in part.items():
            has = found.get(owner, NOTHING)
            found[owner] = Use(has.jobs + use.jobs, has.cpus + use.cpus)
    return found


# --- order


def rank(entry: Entry, now: float, ageing_s: float) -> int:
    """The rank that counts now: one better for each `ageing_s` (s, 0: never) in line."""
    if ageing_s:
        for fact in entry.other:
            if fact.startswith(IN_LINE) and fact[2:].isdigit() and len(fact) < 14:
                return max(0, entry.rank - int(max(0.0, now - int(fact[2:])) / ageing_s))
    return entry.rank


def owners(waiting: Iterable[Entry]) -> set[str]:
    """Who waits."""
    return {entry.owner for entry in waiting}


def order(
    waiting: Sequence[Entry], use: Mapping[str, Use] | None = None, *, now: float = 0.0, ageing_s: float = 0.0
) -> list[int]:
    """
    The places of the entries in the order in which they have their turn.

    Args:
        waiting: n entries.
        use: what their users run now, if users of equal rank take turns: next is always whoever would
            then have the fewest cpus in use. None for the order of ids.
        now: s since the epoch, for ageing.
    """
    ranks = [rank(entry, now, ageing_s) for entry in waiting]
    plain = sorted(range(len(waiting)), key=lambda i: (ranks[i], waiting[i].id, waiting[i].chunk))
    if use is None:
        return plain
    found: list[int] = []
    first = 0
    for place in range(1, len(plain) + 1):
        if place == len(plain) or ranks[plain[place]] != ranks[plain[first]]:
            found += _turns(waiting, plain[first:place], use)
            first = place
    return found


def _turns(waiting: Sequence[Entry], equals: list[int], use: Mapping[str, Use]) -> list[int]:
    """Users of one rank take turns; who was promised a place comes first."""
    found = [i for i in equals if holder(waiting[i])]
    lines: dict[str, list[int]] = {}
    for i in reversed(equals):
        if not holder(waiting[i]):
            lines.setdefault(waiting[i].owner, []).append(i)
    if len(lines) < 2:
        return found + [i for line in lines.values() for i in reversed(line)]
    cpus = {owner: use.get(owner, NOTHING).cpus for owner in lines}
    heap = [(cpus[owner], waiting[line[-1]].id, owner) for owner, line in lines.items()]
    heapq.heapify(heap)
    while heap:
        _, _, owner = heapq.heappop(heap)
        i = lines[owner].pop()
        found.append(i)
        cpus[owner] += waiting[i].wants.get(CPUS, 0)
        if lines[owner]:
            heapq.heappush(heap, (cpus[owner], waiting[lines[owner][-1]].id, owner))
    return found


# --- limits


def over(entry: Entry, use: Use, most: Most) -> Reason | None:
    """Why a job may not start beside what its user runs; None if it may."""
    who = entry.owner or "its user"
    if most.jobs is not None and use.jobs + 1 > most.jobs:
        return Reason("UserLimit", f"{who} runs {use.jobs} jobs on all nodes, and max_running is {most.jobs} a user")
    wants = entry.wants.get(CPUS, 0)
    if most.cpus is not None and use.cpus + wants > most.cpus:
        text = f"needs {show_amount(wants)} cpus, {who} uses {show_amount(use.cpus)} on all nodes"
        return Reason("UserLimit", f"{text}, and max_cpus is {show_amount(most.cpus)} a user")
    return None


def within(
    chosen: Sequence[Entry], use: Mapping[str, Use], most: Most
) -> tuple[list[Entry], list[tuple[Entry, Reason]]]:
    """Those of some entries, in order, that may start together, and why the others may not."""
    now = dict(use)
    may: list[Entry] = []
    not_now: list[tuple[Entry, Reason]] = []
    for entry in chosen:
        if reason := over(entry, now.get(entry.owner, NOTHING), most):
            not_now.append((entry, reason))
        else:
            may.append(entry)
            now[entry.owner] = now.get(entry.owner, NOTHING).plus(entry)
    return may, not_now


def turn_text(entry: Entry, use: Mapping[str, Use], waiting: Iterable[Entry]) -> str:
    """For people: how the users that wait with one of equal rank stand; empty if it waits with nobody else's."""
    who = sorted(owners(other for other in waiting if other.rank == entry.rank))
    if len(who) < 2:
        return ""
    stand = [f"{owner or '-'} {show_amount(use.get(owner, NOTHING).cpus)}" for owner in who[:8]]
    return f"users of equal priority take turns, the fewest cpus in use first: {', '.join(stand)}"
