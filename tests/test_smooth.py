"""One rule for everything that is smoothed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spoolq.smooth import SMOOTH_S, smoothed

values = st.floats(-1e6, 1e6)
spans = st.floats(0, 1e4)


@given(values, values, spans)
def test_the_average_lies_between(known, new, span):
    found = smoothed(known, new, span)
    assert min(known, new) - 1e-6 <= found <= max(known, new) + 1e-6


@given(values, values, spans, spans)
def test_how_often_is_sampled_does_not_matter(known, new, first, second):
    twice = smoothed(smoothed(known, new, first), new, second)
    assert pytest.approx(smoothed(known, new, first + second), abs=1e-3, rel=1e-6) == twice


def test_the_first_sample_counts_whole_and_a_step_for_63_percent():
    assert 5.0 == smoothed(None, 5.0, 0.0)
    assert pytest.approx(0.632, abs=0.001) == smoothed(0.0, 1.0, SMOOTH_S)
