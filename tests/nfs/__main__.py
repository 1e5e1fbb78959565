"""
`python -m tests.nfs`: faults on real kernel NFS, and a table of what became of the jobs.

Exit: 0 nothing lost, duplicated or unexpected; 1 something; 77 real NFS cannot run here.
"""

import argparse
import signal
import sys
import time
import traceback
from typing import NamedTuple

from tests.nfs import capabilities  # noqa: F401  # registers its scenarios
from tests.nfs.check import Verdict
from tests.nfs.lab import Lab, Unfit, missing
from tests.nfs.scenarios import SCENARIOS, undo
from tests.nfs.site import Site

# (version, scenario, jobs): what fits into .ci/run
SHORT = (("4.2", "race", 48), ("4.2", "power_loss_open_files", 12), ("4.2", "server_crash", 24), ("3", "race", 48))
SHORT_LEASE_S = 20
SHORT_MOST_S = 2400  # then what is left is not begun: the machine is too slow for it
SKIPPED = 77  # the exit code that test drivers know for it
HEAD = ("scenario", "vers", "jobs", "faults", "lost", "dupl", "unexp", "struck", "recov", "wall s", "notes")
LINE = "{:<22}{:<5}{:>6}{:>7}{:>5}{:>5}{:>6}{:>7}{:>6}{:>7}  {}"


class Row(NamedTuple):
    """One scenario that was run; `problem` is a traceback where it did not come to its end."""

    name: str
    vers: str
    jobs: int
    faults: int
    struck: int
    wall_s: float
    verdict: Verdict
    problem: str

    @property
    def good(self) -> bool:
        """Whether everything was as it must be."""
        return not self.problem and self.verdict.good

    def line(self) -> str:
        """Of the table."""
        v = self.verdict
        notes = ", ".join(f"{count} {what}" for what, count in v.notes.items() if count) + (
            "" if self.good else " FAILED"
        )
        counts = (self.faults, len(v.lost), len(v.duplicated), len(v.unexpected), self.struck, v.recovered)
        return LINE.format(self.name, self.vers, self.jobs, *counts, f"{self.wall_s:.0f}", notes)

    def wrong(self) -> str:
        """All that was wrong, in words."""
        v = self.verdict
        kinds = (("lost", v.lost), ("duplicated", v.duplicated), ("unexpected", v.unexpected))
        return "\n".join([*(f"{kind}: {line}" for kind, lines in kinds for line in lines), self.problem])


def run(lab: Lab, name: str, jobs: int | None = None) -> Row:
    """
    One scenario on a new spool; the lab is as before afterwards.

    Raises:
        Unfit: a machine does not come up any more, or died though nobody switched it off.
    """
    wanted = SCENARIOS[name]
    began, faults, problem, verdict = time.monotonic(), 0, "", Verdict()
    site = None
    try:
        site = Site(lab, f"{name}-{int(time.time())}", wanted.limits, wanted.serve, user=wanted.user)
        faults = wanted.act(site, jobs or wanted.jobs)
        verdict = site.verdict()
    except Unfit:
        raise
    except Exception as error:
        if died := lab.died():
            raise Unfit(f"{' '.join(died)} died by itself") from error
        problem = traceback.format_exc()
    wall_s = time.monotonic() - began
    try:
        if site:
            undo(site)
            site.close()
    except Exception as error:  # what was seen before counts all the same
        if verdict.good:
            raise Unfit(f"the lab cannot be set right after {name}: {error!r}") from error
    expected = site.expected if site else None
    asked = len(expected.acknowledged) if expected else 0
    return Row(name, lab.vers, asked, faults, len(expected.struck) if expected else 0, wall_s, verdict, problem)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.nfs", description="Faults on real kernel NFS.")
    parser.add_argument("--vers", default="4.2,3", help="of NFS, in this order [4.2,3]")
    parser.add_argument("--only", action="append", choices=sorted(SCENARIOS), help="may be said more than once")
    parser.add_argument("--jobs", type=int, help="for each scenario, instead of its own number")
    parser.add_argument("--lease", type=int, default=90, help="of the server, seconds [90, as servers come]")
    parser.add_argument("--short", action="store_true", help="what continuous integration runs, about six minutes")
    given = parser.parse_args()
    if reason := missing():
        print(f"real NFS was NOT tested: {reason}", file=sys.stderr)
        return SKIPPED
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the machines are switched off on the way out
    names = given.only or list(SCENARIOS)
    plan = [(vers, name, given.jobs) for vers in given.vers.split(",") for name in names]
    if given.short:
        plan = list(SHORT)
    good, began = True, time.monotonic()
    print(LINE.format(*HEAD), flush=True)
    for vers in dict.fromkeys(vers for vers, _, _ in plan):
        try:
            lab = Lab(vers, lease_s=SHORT_LEASE_S if given.short else given.lease)
        except Exception as error:
            print(f"real NFS was NOT tested, version {vers}: {error}", file=sys.stderr)
            return SKIPPED if good else 1
        try:
            for _, name, jobs in [one for one in plan if one[0] == vers]:
                if given.short and time.monotonic() - began > SHORT_MOST_S:
                    raise Unfit(f"{SHORT_MOST_S} s are over before {name}")
                row = run(lab, name, jobs)
                if row.problem and given.short:  # it did not come to its end; what is lost or doubled is told at once
                    print(f"{row.line()}\n{row.wrong()}\nonce more:", file=sys.stderr, flush=True)
                    row = run(lab, name, jobs)
                print(row.line(), flush=True)
                if not row.good:
                    good = False
                    print(row.wrong(), file=sys.stderr, flush=True)
        except Unfit as error:
            print(f"real NFS was NOT tested to the end, version {vers}: {error}", file=sys.stderr)
            return SKIPPED if good else 1
        finally:
            lab.close()
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
