"""
Take out one guard after the other, run every rig on what is left, and say which of them notice.

    python -m tests.mutations [--only TEXT] [--rig NAME] [--list]

Works on copies of the package, never on the checkout; exits with 1 if a guard goes unnoticed.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .guards import GUARDS, Guard
from .rigs import RIGS

CHECKOUT = Path(__file__).resolve().parents[2]
PATIENCE_S = 1200.0
COPIED = ("spoolq", "tests", "contrib", "docs", "pyproject.toml", "README.md")


def copy_without(guard: Guard | None, target: Path) -> None:
    """A checkout without one guard."""
    for name in COPIED:
        source = CHECKOUT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target / name)
    for change in guard.changes if guard else ():
        path = target / "spoolq" / change.file
        path.write_text(path.read_text(encoding="utf-8").replace(change.old, change.new), encoding="utf-8")


def notices(rig: str, checkout: Path) -> tuple[bool, str]:
    """Whether a rig fails on a checkout, and its last words."""
    env = dict(os.environ, PYTHONPATH=str(checkout), PYTHONDONTWRITEBYTECODE="1")
    with tempfile.TemporaryDirectory(prefix="sq-m", dir="/tmp") as scratch:
        try:
            done = subprocess.run(
                [sys.executable, *RIGS[rig]],
                cwd=checkout,
                env=env | {"TMPDIR": scratch},
                capture_output=True,
                text=True,
                timeout=PATIENCE_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return True, "does not come to an end"
    words = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    return done.returncode != 0, words[-1][:120] if words else ""


def main() -> int:
    """Run it; see the module."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description=__doc__.split("\n\n")[0].strip())
    parser.add_argument("--only", default="", help="guards whose name has this text")
    parser.add_argument("--rig", action="append", choices=sorted(RIGS), help="only this rig; may be repeated")
    parser.add_argument("--part", default="1/1", help="1/2: every second guard, from the first")
    parser.add_argument("--list", action="store_true", help="only print the guards")
    given = parser.parse_args()
    part, parts = map(int, given.part.split("/"))
    guards = [guard for guard in GUARDS if given.only in guard.name][part - 1 :: parts]
    if given.list:
        for guard in guards:
            print(f"{guard.name}: {guard.without}")
        return 0
    rigs = given.rig or list(RIGS)
    for rig in rigs:
        with tempfile.TemporaryDirectory(prefix="sq-w", dir="/tmp") as name:
            copy_without(None, Path(name))
            failed, words = notices(rig, Path(name))
            if failed:
                print(f"{rig} fails with every guard in its place: {words}")
                return 1
    unnoticed = []
    print(f"| guard taken out | {' | '.join(rigs)} |\n|---|{'---|' * len(rigs)}", flush=True)
    for guard in guards:
        cells = []
        for rig in rigs:
            with tempfile.TemporaryDirectory(prefix="sq-w", dir="/tmp") as name:
                copy_without(guard, Path(name))
                began = time.monotonic()
                failed, words = notices(rig, Path(name))
                cells.append(f"fails ({time.monotonic() - began:.0f} s)" if failed else "-")
                print(f"  {guard.name} / {rig}: {words}", file=sys.stderr, flush=True)
        print(f"| {guard.name} | {' | '.join(cells)} |", flush=True)
        if not any(cell != "-" for cell in cells):
            unnoticed.append(guard.name)
    print(f"{len(guards)} guards, {len(unnoticed)} unnoticed{': ' + ', '.join(unnoticed) if unnoticed else ''}")
    return 1 if unnoticed else 0


if __name__ == "__main__":
    sys.exit(main())
