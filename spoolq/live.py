"""What a daemon holds in memory of each job that it has claimed, and how long it runs itself."""

from dataclasses import dataclass, field

from spoolq.devices import Held
from spoolq.job import Job
from spoolq.resources import CPUS, MEM, UNIT, Amounts
from spoolq.spool import Placed


@dataclass(slots=True)
class Live:
    """
    A job that this node has claimed: where its entry is, what it holds, and what it is doing.

    `devices`: which ones it holds, where they are told apart.
    `asked`: the present runner was told to end it; `requeue`: it is to run again then.
    """

    at: Placed
    job: Job | None
    outputs: tuple[int, ...] = ()
    scratch: str = ""
    since: float = 0.0  # it began, s of CLOCK_BOOTTIME
    requeue: bool = False
    asked: bool = False
    rss_mb: int = 0
    peak_mb: int = 0
    followed_until: float = 0.0  # s of CLOCK_BOOTTIME
    devices: Held = field(default_factory=dict)
    lends: bool = False  # it waits for jobs of its own, see `lend`

    @property
    def holds(self) -> Amounts:
        """What counts as taken: what it asked for; of one that lends no cpus, and memory as measured."""
        wants = self.at.entry.wants
        if not self.lends:
            return wants
        mem = wants.get(MEM, 0)
        used = min(mem, self.rss_mb * UNIT) if self.rss_mb else mem  # until it is measured, all of it
        return {**wants, CPUS: 0, **({MEM: used} if MEM in wants else {})}


@dataclass(slots=True, kw_only=True)
class Limits:
    """How long the daemon runs: `--once`, `--idle-exit`."""

    once: bool = False
    idle_exit_s: float | None = None
