"""Every guard still stands in the source as the check expects it; the check itself is `python -m tests.mutations`."""

import ast

import pytest

from .__main__ import CHECKOUT, copy_without
from .guards import GUARDS


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.name)
def test_a_guard_is_where_the_check_takes_it_out(guard, tmp_path):
    assert guard.changes
    for change in guard.changes:
        text = (CHECKOUT / "spoolq" / change.file).read_text(encoding="utf-8")
        assert 1 == text.count(change.old), f"{change.file}: {change.old!r}"
    copy_without(guard, tmp_path)
    for change in guard.changes:
        text = (tmp_path / "spoolq" / change.file).read_text(encoding="utf-8")
        ast.parse(text)
        assert change.old not in text
