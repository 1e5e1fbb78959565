"""The rule of dependencies: what is read, and when a child may go, must wait, or never can."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spoolq import depend
from spoolq.depend import KINDS, Answer, Condition, Fate, judge
from spoolq.errors import UsageError
from spoolq.state import State

FATES = st.builds(Fate, st.sampled_from([*State, None]), st.booleans())


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("42", "afterok:42"),
        ("1:2", "afterok:1 afterok:2"),
        ("1,2", "afterok:1 afterok:2"),
        ("afterok:1:2,afterany:3", "afterok:1 afterok:2 afterany:3"),
        (" afternotok:last , after:@align ", "afternotok:last after:@align"),
        ("afterok:42_7", "afterok:42_7"),
        ("40-45", "afterok:40-45"),
        ("1,1,afterok:1", "afterok:1"),
    ],
)
def test_what_is_read(text, found):
    assert found == " ".join(map(str, depend.parse(text)))


@pytest.mark.parametrize(
    "text",
    ["", "foo:1", "afterok", "afterok:", "0", "afterok:1?afterok:2", "1+5", "../1", "singleton", "1:afterok", "42_"],
)
def test_what_is_refused(text):
    with pytest.raises(UsageError, match="depend"):
        depend.parse(text)


def test_more_parents_than_a_job_may_have_are_refused():
    with pytest.raises(UsageError, match="1000"):
        depend.parse(",".join(map(str, range(1, 1002))))


@given(st.lists(st.builds(Condition, st.sampled_from(list(KINDS)), st.integers(1, 10**11).map(str)), max_size=5))
def test_what_is_stored_is_read_back(conditions):
    assert tuple(conditions) == depend.settled(map(str, conditions))


@pytest.mark.parametrize("word", ["afterok:last", "1", "afterok:@a", "afterok:1:2", "", "x:1"])
def test_stored_conditions_name_ids(word):
    with pytest.raises(UsageError):
        depend.settled([word])


@pytest.mark.parametrize(
    ("kind", "state", "started", "answer"),
    [
        ("afterok", State.COMPLETED, True, Answer.READY),
        ("afterok", State.FAILED, True, Answer.NEVER),
        ("afterok", State.CANCELLED, False, Answer.NEVER),
        ("afterok", State.RUNNING, True, Answer.WAITS),
        ("afterok", None, False, Answer.NEVER),
        ("afternotok", State.COMPLETED, True, Answer.NEVER),
        ("afternotok", State.TIMEOUT, True, Answer.READY),
        ("afternotok", State.NODE_FAIL, True, Answer.READY),
        ("afternotok", State.HELD, False, Answer.WAITS),
        ("afterany", State.FAILED, True, Answer.READY),
        ("afterany", State.COMPLETED, True, Answer.READY),
        ("afterany", None, False, Answer.READY),
        ("afterany", State.SUSPENDED, True, Answer.WAITS),
        ("after", State.PENDING, False, Answer.WAITS),
        ("after", State.RUNNING, True, Answer.READY),
        ("after", State.PENDING, True, Answer.READY),
        ("after", State.CANCELLED, False, Answer.READY),
    ],
)
def test_one_condition(kind, state, started, answer):
    verdict = judge([Condition(kind, "7")], lambda _: Fate(state, started))
    assert answer is verdict.answer
    assert (answer is Answer.READY) == (verdict.text == "")


@given(st.lists(st.tuples(st.sampled_from(list(KINDS)), FATES), max_size=6))
def test_all_must_hold_and_one_that_never_can_outweighs_the_rest(parts):
    conditions = [Condition(kind, str(number)) for number, (kind, _) in enumerate(parts, 1)]
    fates = {str(number): fate for number, (_, fate) in enumerate(parts, 1)}
    each = {judge([condition], lambda c: fates[c.parent]).answer for condition in conditions}
    worst = next((a for a in (Answer.NEVER, Answer.WAITS) if a in each), Answer.READY)
    assert worst is judge(conditions, lambda c: fates[c.parent]).answer


@given(st.sampled_from(list(KINDS)), FATES)
def test_who_has_not_ended_lets_nobody_go_but_those_who_wait_for_its_start(kind, fate):
    answer = judge([Condition(kind, "1")], lambda _: fate).answer
    if fate.state is not None and not fate.state.ended and kind != "after":
        assert answer is Answer.WAITS
    if fate.state is not None and fate.state.ended:
        assert answer is not Answer.WAITS


def test_words_name_the_parent_its_state_and_what_is_wanted():
    fate = Fate(State.FAILED, True, "", "exit3")
    assert (
        "job 7 ended as FAILED (exit3), and afterok:7 wants it to complete"
        == judge([Condition("afterok", "7")], lambda _: fate).text
    )
    running = Fate(State.RUNNING, True, "n1")
    assert "waits for job 7 (RUNNING on n1) to end" == judge([Condition("afterany", "7")], lambda _: running).text
