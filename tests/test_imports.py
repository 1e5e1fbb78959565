"""
The house: which room may know which. The table is data; a new import is a decision that shows in a diff.

`python -m tests.test_imports` prints the table as the code has it.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "spoolq"

# values in, values out: no disk, no clock, no processes, no log
PURE = frozenset(
    [
        "advice",
        "agenda",
        "array",
        "begin",
        "constraint",
        "depend",
        "devices",
        "elbow",
        "entry",
        "environment",
        "errors",
        "fair",
        "history",
        "job",
        "jobfile",
        "keys",
        "learn",
        "lease",
        "nodelist",
        "options",
        "overload",
        "pack",
        "paths",
        "pools",
        "reason",
        "report",
        "reserve",
        "resources",
        "result",
        "rules",
        "runs",
        "schedule",
        "script",
        "smooth",
        "state",
        "stored",
        "toml",
        "values",
    ]
)
FORBIDDEN_IN_PURE = frozenset(
    ["os", "time", "random", "socket", "subprocess", "logging", "shutil", "select", "signal", "pathlib", "tempfile"]
)
# the runner and those who watch it: they must work while the spool hangs
FAMILY = frozenset(
    ["adopted", "ending", "enforce", "kin", "orders", "runner", "runs", "spawn", "supervise", "takeover", "watch"]
)
# only these make system calls on the spool, through fsops
TOUCH_THE_SPOOL = frozenset(
    [
        "afresh",
        "amend",
        "chunk",
        "around",
        "claim",
        "deliver",
        "descent",
        "doctor",
        "due",
        "home",
        "intake",
        "launch",
        "lend",
        "nested",
        "notice",
        "lessons",
        "parents",
        "part",
        "peers",
        "placement",
        "presence",
        "queue",
        "recover",
        "regain",
        "rerun",
        "ship",
        "show",
        "spool",
        "steer",
        "tasks",
        "trial",
        "unique",
    ]
)


def imports(path: Path) -> tuple[set[str], set[str]]:
    """(rooms, other modules) that a room imports, without those for type checkers only."""
    tree = ast.parse(path.read_text())
    ignored = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    rooms: set[str] = set()
    others: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in ignored:
            continue
        if isinstance(node, ast.ImportFrom):
            if node.module == "spoolq":
                rooms |= {alias.name for alias in node.names} - {"__version__"}
            elif node.module and node.module.startswith("spoolq."):
                rooms.add(node.module.split(".")[1])
            else:
                others.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.Import):
            others |= {alias.name.split(".")[0] for alias in node.names} - {"spoolq"}
    return rooms, others


ROOMS = {path.stem: imports(path) for path in sorted(PACKAGE.glob("*.py"))}


def table() -> str:
    """The import table as text."""
    return "\n".join(f"{room}: {' '.join(sorted(known))}".rstrip() for room, (known, _) in ROOMS.items())


def reached(room: str) -> set[str]:
    """All rooms that a room reaches, itself included."""
    found: set[str] = set()
    ahead = [room]
    while ahead:
        if (name := ahead.pop()) not in found:
            found.add(name)
            ahead += ROOMS[name][0]
    return found


def test_the_import_table_is_the_agreed_one():
    agreed = (Path(__file__).parent / "imports.txt").read_text().strip()
    assert agreed == table(), "a new import? python -m tests.test_imports > tests/imports.txt"


@pytest.mark.parametrize("room", sorted(PURE))
def test_pure_rooms_reach_only_pure_rooms(room):
    assert set() == reached(room) - PURE - {"config"}


@pytest.mark.parametrize("room", sorted(PURE))
def test_pure_rooms_know_nothing_of_the_machine(room):
    assert set() == ROOMS[room][1] & FORBIDDEN_IN_PURE


@pytest.mark.parametrize("room", sorted(FAMILY))
def test_the_runner_family_never_reaches_the_spool(room):
    assert set() == reached(room) & {"spool", "home", "launch", "deliver", "daemon"}


def test_only_few_rooms_make_calls_on_the_spool():
    assert {room for room, (known, _) in ROOMS.items() if "fsops" in known} - {"journal", "control"} <= TOUCH_THE_SPOOL


def test_only_fsops_renames_links_or_syncs_on_the_spool():
    """`os.rename` and its kin elsewhere are about node-local files, or users' own, only."""
    local = {
        "channel",
        "claims",
        "hook",
        "recover",
        "journal",
        "kin",
        "presence",
        "shepherd",
        "stale",
        "staging",
        "takeover",
    }
    for path in PACKAGE.glob("*.py"):
        calls = {
            node.func.attr
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and ast.unparse(node.func.value) == "os"
        }
        made = calls & {"rename", "replace", "link", "symlink", "fsync"}
        assert path.stem in local | {"fsops", "trial"} or not made, (path.stem, made)


HEAVY = frozenset(
    ["argparse", "asyncio", "dataclasses", "filelock", "psutil", "rich", "subprocess", "tomllib", "watchdog"]
)


@pytest.mark.parametrize("command", ["sub", "wait"])
def test_the_path_of_a_submission_imports_nothing_heavy(command):
    code = f"import sys; sys.path.insert(0, {str(PACKAGE.parent)!r}); from spoolq.__main__ import COMMANDS; import importlib"
    code += f"; importlib.import_module('spoolq.' + COMMANDS[{command!r}][0]); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    bare = subprocess.run(
        [sys.executable, "-I", "-c", "import sys; print(*sys.modules)"], capture_output=True, text=True
    )
    assert set() == HEAVY & (set(done.stdout.split()) - set(bare.stdout.split()))


if __name__ == "__main__":
    print(table())
