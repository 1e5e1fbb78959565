"""The whole stays readable in an afternoon: modules of at most 400 lines, functions of at most 60."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "spoolq"
MODULES = sorted(PACKAGE.glob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_module_has_at_most_400_lines(path):
    assert len(path.read_text().splitlines()) <= 400


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_functions_have_at_most_60_lines(path):
    long = [
        f"{node.name}: {(node.end_lineno or 0) - node.lineno + 1}"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno + 1 > 60
    ]
    assert [] == long


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_modules_say_why_they_exist(path):
    doc = ast.get_docstring(ast.parse(path.read_text()))
    assert doc is not None
    assert len(doc) > 20
