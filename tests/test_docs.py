"""
What the documents say of the code is made from the code.

`python -m tests.test_docs` writes the blocks anew; the tests fail when a document has drifted.
"""

import ast
import re
import sys
from pathlib import Path

import pytest

from spoolq import options, state
from spoolq.__main__ import ALIASES, COMMANDS

TOP = Path(__file__).parent.parent
README, INTERNALS = TOP / "README.md", TOP / "docs" / "internals.md"


def states() -> str:
    """The life cycle."""
    rows = [f"| `{old}/` | `{new}/` | {name} |" for (old, new), name in state.TRANSITIONS.items()]
    return "\n".join(["| from | to | transition |", "|---|---|---|", *rows])


def rooms() -> str:
    """Every module with the first line of its docstring."""
    rows = []
    for path in sorted((TOP / "spoolq").glob("*.py")):
        doc = ast.get_docstring(ast.parse(path.read_text())) or ""
        rows.append(f"| `{path.stem}` | {' '.join(doc.split(chr(10) + chr(10))[0].split())} |")
    return "\n".join(["| room | what it is |", "|---|---|", *rows])


BLOCKS = {
    (INTERNALS, "states"): states,
    (INTERNALS, "rooms"): rooms,
    (README, "options"): options.readme_table,
}


def block(path: Path, name: str) -> re.Match[str]:
    """The text between `<!-- name: ... -->` and `<!-- /name -->`."""
    found = re.search(rf"(<!-- {name}:[^\n]*-->\n)(.*?)(<!-- /{name} -->)", path.read_text(), re.DOTALL)
    assert found, f"{path.name} has no block {name}"
    return found


@pytest.mark.parametrize(("path", "name"), BLOCKS, ids=lambda x: x if isinstance(x, str) else x.stem)
def test_the_block_is_what_the_code_says(path, name):
    assert BLOCKS[path, name]().strip() == block(path, name)[2].strip(), "run: python -m tests.test_docs"


def test_every_command_and_alias_is_in_the_readme():
    table = block(README, "commands")[2]
    missing = [name for name in (*COMMANDS, *ALIASES) if f"`{name}`" not in table]
    assert [] == missing


def test_the_readme_names_no_command_that_is_none():
    table = block(README, "commands")[2]
    named = {name for row in re.findall(r"^\| (.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
    assert set() == named - {*COMMANDS, *ALIASES}


@pytest.mark.parametrize("path", [README, *sorted((TOP / "docs").glob("*.md"))], ids=lambda p: p.name)
def test_links_lead_somewhere(path):
    links = re.findall(r"\]\(([^)#:]+)\)", path.read_text())
    assert [] == [link for link in links if not (path.parent / link).exists()]


@pytest.mark.parametrize("path", [README, *sorted((TOP / "docs").glob("*.md"))], ids=lambda p: p.name)
def test_tests_that_are_named_exist(path):
    named = set(re.findall(r"`(tests/[\w./]+)`", path.read_text()))
    assert [] == sorted(name for name in named if not (TOP / name).exists())


def write() -> None:
    """Write all blocks anew."""
    for (path, name), make in BLOCKS.items():
        found = block(path, name)
        text = path.read_text()
        path.write_text(text[: found.start(2)] + make().strip() + "\n" + text[found.end(2) :])


if __name__ == "__main__":
    write()
    sys.exit(0)
