"""Print what every search finds, as a table for the documents: `python -m tests.model [--slow] [--trace]`."""

from __future__ import annotations

import argparse

from .explore import explore
from .variants import ALL


def main() -> int:
    """Run the searches; 1 if one of them does not find what it must."""
    parser = argparse.ArgumentParser(prog="python -m tests.model", description=__doc__)
    parser.add_argument("--slow", action="store_true", help="the larger scopes, too")
    parser.add_argument("--trace", action="store_true", help="print each counterexample")
    parser.add_argument("--only", default="", help="only variants whose name contains this")
    args = parser.parse_args()
    print("| variant | states | edges | violation (steps) | s |")
    print("|---|--:|--:|---|--:|")
    wrong = 0
    for variant in ALL:
        if (variant.slow and not args.slow) or args.only not in variant.name:
            continue
        found = explore(variant.model)
        verdict = f"{found.violation} ({len(found.trace)})" if found.violation else "none"
        if found.violation != variant.breaks:
            wrong += 1
            verdict += f" -- EXPECTED {variant.breaks or 'none'}"
        print(f"| {variant.name} | {found.states:,} | {found.edges:,} | {verdict} | {found.seconds:.1f} |", flush=True)
        if args.trace and found.violation:
            print("\n" + "\n".join(f"  {i}. {step}" for i, step in enumerate(found.trace, 1)) + "\n")
    return 1 if wrong else 0


raise SystemExit(main())
