"""Every search finds what its row in `variants` says, and the searches are not empty."""

from __future__ import annotations

import pytest

from .explore import explore
from .life import Life
from .rules import CANCELLED, EXITED, FAILED, Budget, Rules, Scope, State, directory_of
from .variants import ENTRANCES, FAMILIES, PROTOCOL, UNGUARDED, UNNEEDED, Variant


def _params(variants: list[Variant]) -> list[object]:
    marks = {True: [pytest.mark.slow], False: []}
    return [pytest.param(v, id=f"{i}: {v.name}", marks=marks[v.slow]) for i, v in enumerate(variants)]


def _check(variant: Variant) -> None:
    found = explore(variant.model)
    print(f"{variant.name}: {found.states} states, {found.violation or 'no violation'} in {len(found.trace)} steps")
    assert (variant.breaks, variant.name) == (found.violation, variant.name), "\n".join(found.trace)


@pytest.mark.parametrize("variant", _params(PROTOCOL))
def test_the_protocol_keeps_every_property(variant: Variant) -> None:
    assert not variant.breaks
    _check(variant)


@pytest.mark.parametrize("variant", _params(UNGUARDED))
def test_a_job_without_one_guard_breaks_the_named_property(variant: Variant) -> None:
    _check(variant)


@pytest.mark.parametrize("variant", _params(UNNEEDED))
def test_what_the_model_does_not_need_is_known(variant: Variant) -> None:
    _check(variant)


@pytest.mark.parametrize("variant", _params(ENTRANCES))
def test_submission_and_admission_break_as_named(variant: Variant) -> None:
    _check(variant)


@pytest.mark.parametrize("variant", _params(FAMILIES))
def test_dependencies_break_as_named(variant: Variant) -> None:
    _check(variant)


def _reach(model: Life) -> tuple[set[str], set[State]]:
    """Collect every label and every state; the search must not be empty of what it is about."""
    seen = {model.initial()}
    todo = list(seen)
    labels = set()
    while todo:
        for label, after in model.steps(todo.pop()):
            labels.add(label)
            if after not in seen:
                seen.add(after)
                todo.append(after)
    return labels, seen


def test_every_kind_of_step_and_every_end_is_reached() -> None:
    """A property that holds because nothing happens would be worth nothing."""
    labels, states = _reach(Life(Rules(), Scope(budget=Budget(leases=1, daemons=1, late=1))))
    more, others = _reach(Life(Rules(rerun="never"), Scope(budget=Budget(powers=1, runners=1, users=1))))
    kinds = {label.split(" ", 1)[1] for label in labels | more if label[0] == "n" and label[1].isdigit()}
    wanted = {
        "claims",
        "EXEC",
        "job ends",
        "publishes, commits",
        "WON",
        "LOST",
        "sees source, retries",
        "rename times out, in flight",
        "rename done, reply lost",
        "daemon killed, rename in flight",
        "finds its entry",
        "gives back",
        "lease broken",
        "runner refuses",
        "requeues after its fence",
        "takes over from n0",
        "disposes",
        "keeps a late result",
        "finds a reaped entry",
        "reaps its own",
        "loses power, journal kept",
        "runner killed",
    }
    assert set() == wanted - kinds
    assert "late rename executed" in labels
    assert {EXITED, FAILED, CANCELLED} <= {directory_of(state.loc) for state in states | others}
    assert max(state.starts for state in states) == 2
