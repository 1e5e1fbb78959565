"""
Reservations and backfill: a big job gets its turn, and no node stands idle for it longer than it must.

The first job in order that fits no node now, but fits one without other jobs, is kept a place on the node
where it can start first. That node, and only that one, starts other jobs only if they end before by their
time limits, or leave what is kept. So the job starts no later than it would if nothing else were started
there, and all other nodes work on. A job that lacks what is used outside spoolq is kept no place: nobody
knows until when, and the node would stand idle meanwhile.

A reservation is a fact in the name of the waiting entry, `R=n3`, put there by one rename: the first who
renames wins, every listing of the queue shows it, a person sees it with `ls`, and it goes when the job
goes, so that nothing is left to sweep. Any node that looks at the queue may write it, also for another.
Invariants: no two clocks meet here, only durations, each as its own node counted it; who reads old news
may reserve badly, never start wrongly.

How a daemon uses it (see `pack` for the whole turn):
1. read: the names of the queue, and of each other node node.json, where it says for each of its jobs what
   it holds and how long until its limit (`Task`); as old as its last beat or change.
2. `pack.share` names the entry to reserve and the node. Write: rename `queue/S/E` -> `queue/S/E'`, where E' is
   `reserving(E, node)`: the transition that `edit` makes. LOST: somebody else claimed, reserved or changed
   it: look again at the next poll. UNKNOWN: the same, since the name of E' is no promise to anybody.
   Crash before: nothing happened. Crash after: the reservation stands; every node heeds it.
3. the claim drops the fact: rename `queue/S/E'` -> `running/<me>/E''` with E'' = `released(E').next()`, on whichever
   node the job fits first. Forgotten, it would do no harm: it is void in every directory but `queue/`.
4. a reservation on a node that drains, is full, silent or gone, or can never take the job, is void: who looks
   next reserves anew, by the same rename. Nobody has to clean up.
"""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from spoolq.constraint import Labels, sound
from spoolq.entry import MAX_NAME, RESERVED, Entry, fitting, format_name, released
from spoolq.resources import Amounts, add, free_of

MOVE_S, MOVE_SHARE = 60.0, 0.25  # a reservation moves to a node that is free so much sooner; less is not worth a rename
MOST_TASKS = 100  # of a node, in node.json


class Task(NamedTuple):
    """
    A job on a node, as the scheduling of others sees it.

    `left_s`: until its time limit, None if it has none. `young`: started since the reservation on its
    node was first seen there, so in the room that the reserved job leaves.
    """

    wants: Amounts
    left_s: float | None = None
    young: bool = False


class Node(NamedTuple):
    """
    One node that takes jobs, thousandths: what it has, what it may lend now, what it runs, and its labels.

    `usable`: what it could lend if none of its jobs ran, since others use the rest; None: all that it has.
    """

    name: str
    capacity: Amounts
    free: Amounts
    tasks: tuple[Task, ...] = ()
    labels: Labels = MappingProxyType({})
    usable: Amounts | None = None


class Opening(NamedTuple):
    """
    When a job can start on a node, if nothing else were started there.

    `in_s`: seconds from now, None if that hangs on a job without a time limit. `spare`: what would then
    be left, and may be lent until then and after.
    """

    in_s: float | None
    spare: Amounts


def holder(entry: Entry) -> str:
    """The node on which a waiting job has its place kept, or an empty text."""
    return next((fact[len(RESERVED) :] for fact in entry.other if fact.startswith(RESERVED)), "")


def reserving(entry: Entry, node: str) -> Entry | None:
    """The entry after the rename that reserves for it; None if no name can hold that."""
    plain = released(entry)
    reserved = fitting(plain._replace(other=(*plain.other, RESERVED + node)).next())
    try:
        return reserved if len(format_name(reserved)) <= MAX_NAME and reserved.wants == entry.wants else None
    except ValueError:
        return None


def digest(tasks: Sequence[Task], most: int = MOST_TASKS) -> list[Task]:
    """
    The same for who plans with it, in at most `most` tasks, so that node.json stays small.

    Those without a limit are one, which says as much; of very many with one, neighbours in time end
    together with the last of them: then a place may seem to come later, never sooner.
    """
    ends = sorted((task for task in tasks if task.left_s is not None), key=lambda task: task.left_s or 0.0)
    size = -(-len(ends) // (most - 1)) or 1
    groups = [ends[first : first + size] for first in range(0, len(ends), size)]
    found = [Task(add(*(task.wants for task in group)), group[-1].left_s) for group in groups]
    rest = [task.wants for task in tasks if task.left_s is None]
    return found + ([Task(add(*rest))] if rest else [])


def said(name: str, facts: Mapping[str, Any], age_s: float = 0.0) -> Node:
    """
    A node as its node.json describes it; anybody may have written that.

    Args:
        age_s: how long it has said so: what its jobs have left is less by that.
    """
    tasks = []
    for task in facts["tasks"] if isinstance(facts.get("tasks"), list) else ():
        if isinstance(task, list) and len(task) == 2 and isinstance(task[0], dict):
            left_s = max(0.0, task[1] - age_s) if type(task[1]) in (int, float) else None
            tasks.append(Task(_amounts(task[0]), left_s))
    labels = sound(facts.get("labels"))
    usable = _amounts(facts["usable"]) if isinstance(facts.get("usable"), dict) else None
    return Node(name, _amounts(facts.get("capacity")), _amounts(facts.get("free")), tuple(tasks), labels, usable)


def _amounts(value: Any) -> dict[str, int]:
    if not isinstance(value, dict):
        return {}
    return {name: amount for name, amount in value.items() if type(amount) is int and amount >= 0}


def opening(wants: Amounts, node: Node, more: Iterable[Task] = (), free: Amounts | None = None) -> Opening:
    """
    When a job can start on a node that it fits when empty, and what it leaves.

    Args:
        more: tasks that will be there, beside `node.tasks`.
        free: what is free with them there, if not `node.free`.
    """
    left = node.free if free is None else free
    need = {name: amount - left.get(name, 0) for name, amount in wants.items() if amount > left.get(name, 0)}
    if not need:
        return Opening(0.0, free_of(left, (wants,)))
    tasks = [*node.tasks, *more]
    ends = sorted((task.left_s, index) for index, task in enumerate(tasks) if task.left_s is not None)
    for place, (left_s, index) in enumerate(ends):
        for name in need:
            need[name] -= tasks[index].wants.get(name, 0)
        together = place + 1 < len(ends) and ends[place + 1][0] == left_s
        if not together and max(need.values()) <= 0:
            left = add(left, *(tasks[index].wants for _, index in ends[: place + 1]))
            return Opening(left_s, free_of(left, (wants,)))
    # a job without a limit must end first, nobody knows when: so only what fits beside the reserved job
    # for ever may start, and counts against that room as long as it runs
    left = add(left, *(task.wants for task in tasks))
    return Opening(None, free_of(left, (wants, *(task.wants for task in tasks if task.young))))


def sooner(wants: Amounts, node: Node, seen: Opening, free: Amounts) -> tuple[bool, float, float, str]:
    """The key by which nodes compete for a reservation: soonest first, else where the least is missing."""
    short = sum(
        max(0, amount - free.get(name, 0)) / node.capacity[name] for name, amount in wants.items() if amount > 0
    )
    return (seen.in_s is None, seen.in_s or 0.0, short, node.name)


def worth_moving(there: Opening, here: Opening) -> bool:
    """Whether a reservation should move from here to there."""
    if there.in_s is None or here.in_s is None:
        return there.in_s is not None and here.in_s is None
    return there.in_s + MOVE_S + MOVE_SHARE * here.in_s < here.in_s


class Window:
    """What a node that keeps a place for a job may still start; what it lends is subtracted as it goes."""

    def __init__(self, entry: Entry, seen: Opening) -> None:
        """Keep a place for `entry`, which can start at `seen`."""
        self.entry, self.in_s = entry, seen.in_s
        self._spare = {name: seen.spare.get(name, 0) for name, amount in entry.wants.items() if amount > 0}

    def lets(self, entry: Entry, elbow: float = 1.0) -> bool:
        """
        Whether a job may start now.

        Args:
            elbow: the factor by which time limits are exceeded before they are enforced.
        """
        return self._ends_before(entry, elbow) or all(
            entry.wants.get(name, 0) <= spare for name, spare in self._spare.items()
        )

    def take(self, entry: Entry, elbow: float = 1.0) -> None:
        """It starts."""
        if not self._ends_before(entry, elbow):
            for name in self._spare:
                self._spare[name] = max(0, self._spare[name] - entry.wants.get(name, 0))

    def _ends_before(self, entry: Entry, elbow: float) -> bool:
        return entry.limit_s is not None and self.in_s is not None and entry.limit_s * elbow <= self.in_s
