"""Which jobs a command means."""

import pytest

from spoolq import home, selector
from spoolq.errors import NotFound, UsageError
from spoolq.selector import Filter
from spoolq.state import State
from tests.desk import end, put, run


def ids(spool, words, filters=None, **options):
    return [placed.entry.id for placed in selector.select(spool, words, filters, **options).jobs]


def test_single_ids_ranges_and_lists_are_found_in_the_order_of_the_words(spool):
    for _ in range(6):
        put(spool)
    assert [5, 1, 2, 3] == ids(spool, ["5", "1-3"])
    assert [2, 4] == ids(spool, ["2,4", "4"])


def test_missing_ids_are_reported_and_do_not_stop_the_rest(spool):
    put(spool)
    chosen = selector.select(spool, ["7", "1", "90-99"])
    assert [1] == [placed.entry.id for placed in chosen.jobs]
    assert 2 == len(chosen.missing)
    assert "job 7: no such job" in chosen.missing[0]


def test_many_ids_are_answered_from_one_listing_like_few(spool):
    for _ in range(12):
        put(spool)
    end(spool, run(spool, spool.find(5)))
    words = [str(n) for n in range(1, 14)]
    assert list(range(1, 13)) == ids(spool, words)
    assert 1 == len(selector.select(spool, words).missing)


def test_a_job_that_has_ended_is_found_by_id_but_not_by_range_where_only_live_ones_count(spool):
    put(spool)
    end(spool, run(spool, put(spool)))
    assert [1, 2] == ids(spool, ["1-2"])
    assert [1] == ids(spool, ["1-2"], ended=False)
    assert [2] == ids(spool, ["2"], ended=False)


def test_last_is_the_newest_job_of_the_user(spool):
    put(spool)
    put(spool)
    put(spool, user="somebody")
    home.allocate(spool.root)  # a submission that was never finished
    assert [2] == selector.resolve(spool, ["last"])
    assert [3] == ids(spool, ["last"], Filter(users=("somebody",)))


def test_last_looks_far_back_when_others_submit_much(spool, monkeypatch):
    monkeypatch.setattr(selector, "BACK", 2)
    put(spool)
    end(spool, run(spool, put(spool)))
    for _ in range(4):
        put(spool, user="somebody")
    assert [2] == selector.resolve(spool, ["last"])


def test_last_without_a_job_says_so(spool):
    with pytest.raises(NotFound, match="no job of"):
        selector.resolve(spool, ["last"])


def test_names_mean_live_jobs_and_else_the_newest_finished_one(spool):
    put(spool, name="align")
    put(spool, name="align")
    put(spool, name="align", user="somebody")
    assert [1, 2] == selector.resolve(spool, ["@align"])
    for n in (1, 2):
        end(spool, run(spool, spool.find(n)))
    assert [2] == ids(spool, ["@ali*"])
    assert ["@align: no job of that name that has not ended"] == selector.select(spool, ["@align"], ended=False).missing


def test_all_is_everything_of_mine_that_has_not_ended(spool):
    put(spool)
    put(spool, held="HU")
    run(spool, put(spool))
    end(spool, run(spool, put(spool)))
    put(spool, user="somebody")
    assert [1, 2, 3] == ids(spool, ["all"])
    assert [1, 2, 3, 5] == ids(spool, ["all"], Filter(everybody=True))


def test_a_filter_alone_selects_and_with_words_it_narrows(spool):
    put(spool)
    put(spool, held="HU")
    run(spool, put(spool), "n2")
    assert [2] == ids(spool, [], Filter(states=frozenset((State.HELD,))))
    assert [3] == ids(spool, ["1-3"], Filter(nodes=("n*",)))
    assert [] == ids(spool, [])


def test_finished_jobs_are_selected_by_their_state(spool):
    end(spool, run(spool, put(spool)), 1)
    end(spool, run(spool, put(spool)), 0)
    assert [1] == ids(spool, [], Filter(states=frozenset((State.FAILED,))))


@pytest.mark.parametrize("word", ["0", "-1", "4-2", "1-", "x", "1-99999999999", "../1", "1e3", "٣"])
def test_what_is_no_selector_is_refused(spool, word):
    with pytest.raises(UsageError):
        selector.resolve(spool, [word])


def test_states_are_understood_in_any_case_by_word_and_code():
    assert frozenset((State.FAILED,)) == selector.parse_states("f") == selector.parse_states("Failed")
    assert State.RUNNING in selector.parse_states("live")
    with pytest.raises(UsageError, match="no state"):
        selector.parse_states("happy")
