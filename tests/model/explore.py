"""
Search every state of a small model, and say what breaks and in how few steps.

A model is a set of atomic steps; nothing is drawn at random, so "no violation" means
that no order of the steps within the scope breaks a property. Breadth first, so a
counterexample is a shortest one. It knows nothing of spools: states are hashable values.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

S = TypeVar("S", bound=Hashable)

STUCK = "stuck"
LIMIT = "limit"


class Model(Protocol[S]):
    """What the search needs of a protocol."""

    def initial(self) -> S:
        """Return the only first state."""

    def steps(self, state: S) -> Iterable[tuple[str, S]]:
        """Return every label and state that can follow."""

    def violated(self, state: S) -> str:
        """Name the property that this state breaks; empty if none."""

    def settled(self, state: S) -> bool:
        """Tell whether nothing more is owed to anybody in this state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """
    What a search found.

    Attributes:
        states: distinct states visited (count).
        edges: steps followed (count).
        violation: property broken, `stuck`, `limit`, or empty.
        trace: labels of a shortest way to the violation.
        seconds: wall time (s).
    """

    states: int
    edges: int
    violation: str
    trace: tuple[str, ...]
    seconds: float


class Explorer(Generic[S]):
    """One breadth-first search; keeps parents for traces and edges for progress."""

    def __init__(self, model: Model[S], limit: int) -> None:
        self._model = model
        self._limit = limit
        self._order: list[S] = []
        self._parent = array("l")
        self._from = array("l")
        self._to = array("l")

    def run(self) -> Outcome:
        """Visit everything, or stop at the first violation."""
        began = time.perf_counter()
        violation, at = self._visit()
        if not violation:
            violation, at = self._find_stuck()
        return Outcome(
            states=len(self._order),
            edges=len(self._to),
            violation=violation,
            trace=self._trace(at),
            seconds=time.perf_counter() - began,
        )

    def _visit(self) -> tuple[str, int]:
        model, order, parent = self._model, self._order, self._parent
        first = model.initial()
        seen: dict[S, int] = {first: 0}
        order.append(first)
        parent.append(-1)
        here = 0
        while here < len(order):
            if here >= self._limit:
                return LIMIT, here
            for _, after in model.steps(order[here]):
                there = seen.get(after)
                if there is None:
                    there = seen[after] = len(order)
                    order.append(after)
                    parent.append(here)
                    broken = model.violated(after)
                    if broken:
                        return broken, there
                self._from.append(here)
                self._to.append(there)
            here += 1
        return "", 0

    def _find_stuck(self) -> tuple[str, int]:
        """Find a state from which no settled state can be reached, earliest first."""
        good = bytearray(self._model.settled(state) for state in self._order)
        pairs = range(len(self._to) - 1, -1, -1)
        grew = True
        while grew:  # edges mostly lead onwards, so a few backward sweeps suffice
            grew = False
            for i in pairs:
                if good[self._to[i]] and not good[self._from[i]]:
                    good[self._from[i]] = 1
                    grew = True
        at = good.find(0)
        return (STUCK, at) if at >= 0 else ("", 0)

    def _trace(self, at: int) -> tuple[str, ...]:
        labels: list[str] = []
        while at > 0:
            before = self._parent[at]
            target = self._order[at]
            steps = self._model.steps(self._order[before])
            labels.append(next(label for label, after in steps if after == target))
            at = before
        return tuple(reversed(labels))


def explore(model: Model[S], *, limit: int = 5_000_000) -> Outcome:
    """
    Search a model exhaustively.

    Args:
        model: the protocol and its scope.
        limit: give up after this many states (count); the violation is then `limit`.

    Returns:
        Counts, and the first property broken with a shortest trace.
    """
    return Explorer(model, limit).run()
