"""
Soak a spool: random real work, random real faults, for as long as asked; exits 1 if anything is wrong.

    python -m tests.soak --minutes 5 --nodes 3 --seed 7
"""

import argparse
import sys

from tests.soak.drive import Options, names, soak


def main() -> int:
    """From the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__.split("\n")[1])
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1, help="what happens follows from it; when it happens does not")
    parser.add_argument(
        "--spool", default="", metavar="DIR", help="make the spool in this directory (a real NFS mount)"
    )
    parser.add_argument(
        "--faults", default="", metavar="A,B", help="only these; 'none' for none; default all that are possible"
    )
    parser.add_argument("--rate", type=float, default=3.0, metavar="J", help="jobs a second, about")
    parser.add_argument("--gap", type=float, default=3.0, metavar="S", help="seconds between faults, on average")
    parser.add_argument("--plain", action="store_true", help="no containers, even where they are possible")
    parser.add_argument("--directory", default="", help="of the run; default a new one in /tmp")
    parser.add_argument("--keep", action="store_true", help="keep the directory although all is well")
    given = parser.parse_args()
    options = Options(
        seconds=given.minutes * 60, nodes=given.nodes, seed=given.seed, spool=given.spool, faults=tuple(names(given.faults)),
        rate=given.rate, gap_s=given.gap, directory=given.directory, contained=not given.plain, keep=given.keep,
    )  # fmt: skip
    return 1 if soak(options).wrong else 0


if __name__ == "__main__":
    sys.exit(main())
