"""
Overload: when others take the cpus that jobs were promised, or memory runs out, which job steps aside, and till when.

The job of lowest priority steps aside, of equals the youngest; never the last one that runs. The first
to go on is the one of highest priority, as soon as its cpus are there again beside what runs. Between
the two lies a margin, and each must be so for `hold_s` without a break, so that no job is stopped and
continued with every gust of load. Source: grun's automatic suspend, which never worked.
Memory runs out when others and jobs together leave less than a guard of what the node has. A job that steps
aside keeps what it has, which the kernel may swap out, and takes no more; it goes on when twice the guard is there.
Invariant: a job that its user suspended is never chosen, and none of ours stays behind: what stepped
aside is resumed, at the latest when nothing else runs here, or when the site turns this off.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from spoolq.resources import UNIT

AGAIN = 2.0  # times the guard must be available before a job goes on: between the two nothing is done
MARGIN = 4  # overload is a lack of more than a quarter of the machine, and at least twice the load tolerated as idle


class Holder(NamedTuple):
    """A job on the node: its rank (lower is better), cpus in thousandths, and whether it is suspended, and by whom."""

    id: int | str
    rank: int
    cpus: int
    suspended: bool = False
    aside: bool = False


class Step(NamedTuple):
    """What is to be done: `suspend` or `resume`, and which job."""

    verb: str
    id: int | str


def lack(jobs: Sequence[Holder], cpus: int, foreign: int) -> int:
    """Thousandths of cpus that running jobs and others want beyond what the machine has; below 0: to spare."""
    return sum(job.cpus for job in jobs if not job.suspended) + foreign - cpus


def wanted(jobs: Sequence[Holder], cpus: int, foreign: int, idle_load: int, spare: float = math.inf) -> Step | None:
    """
    The next step, if the present load lasts.

    Args:
        cpus: of the machine, thousandths; `foreign`: busy for others; `idle_load`: of these tolerated.
        spare: memory that is available, as a multiple of the guard.
    """
    running = [job for job in jobs if not job.suspended]
    short = lack(jobs, cpus, foreign)
    if len(running) > 1 and (spare < 1 or short > max(cpus // MARGIN, 2 * idle_load)):
        return Step("suspend", max(running, key=lambda job: (job.rank, job.id)).id)
    aside = [job for job in jobs if job.suspended and job.aside]
    if aside:
        first = min(aside, key=lambda job: (job.rank, job.id))
        if (spare >= AGAIN and short + first.cpus <= idle_load) or not running:
            return Step("resume", first.id)
    return None


class Hysteresis:
    """Lets a step through that was wanted for so long without a break."""

    def __init__(self, hold_s: float) -> None:
        """Nothing is wanted yet."""
        self.hold_s = hold_s
        self._verb, self._since = "", 0.0

    def feed(self, now: float, step: Step | None) -> Step | None:
        """
        One look; the step, if it is time for it, after which the next must last as long again.

        Args:
            now: seconds on any clock that does not jump.
        """
        verb = step.verb if step else ""
        if verb != self._verb:
            self._verb, self._since = verb, now
        if step is None or now - self._since < self.hold_s:
            return None
        self._since = now
        return step


def figures(foreign: int, cpus: int, available_mb: int) -> str:
    """`2.3 of 4 cpus are in use outside spoolq, 150 MB are available`: for people."""
    return f"{foreign / UNIT:.1f} of {cpus / UNIT:g} cpus are in use outside spoolq, {available_mb} MB are available"
