"""
What goes wrong in a run: a list of values made from the seed, so that a run is replayed and its list shrunk.

A fault either hits the n-th request of a machine (of one class of operations), or happens at a time.
"""

import errno
import random
from collections.abc import Callable
from typing import Any, NamedTuple

from tests.sim.kernel import rng

CHANGES = ("rename", "create", "mkdir", "unlink", "rmdir", "symlink", "link", "write")
CODES = (errno.ENOSPC, errno.EIO, errno.ESTALE, errno.EACCES, errno.EDQUOT, errno.ETIMEDOUT)
ON_REQUEST = ("lost", "lost_nocache", "dup", "late", "done_error", "error", "slow", "die", "die_after", "die_late")
AT_TIME = (
    "kill_daemon",
    "kill_runner",
    "kill_family",
    "runner_dies_at_start",
    "power",
    "gone",
    "stop_daemon",
    "suspend_machine",
    "partition",
    "outage",
    "server_down",
    "full",
    "clock_jump",
)
LOCAL_REQUEST = ("die", "die_after", "error", "slow")


class Fault(NamedTuple):
    """
    One fault.

    Args:
        what: of ON_REQUEST or AT_TIME.
        where: a machine.
        on: `rename`, another change, `change` for any, or `read`; empty for AT_TIME.
        at: number of the request from 0, or the time in s.
        delay: of what is late or slow, or how long it lasts, s.
        code: errno.
        word: what else it needs.
    """

    what: str
    where: str
    on: str = ""
    at: float = 0
    delay: float = 0.0
    code: int = 0
    word: str = ""


class Plan:
    """The faults of a run, as the machines ask for them."""

    def __init__(self, faults: list[Fault], log: Callable[[tuple[Any, ...]], None], clock: Callable[[], float]) -> None:
        self.faults, self.log, self.clock = faults, log, clock
        self.calm = True  # nothing happens yet, or any more
        self.injected: dict[str, int] = {}

    def happened(self, fault: Fault) -> None:
        """Count it and write it down."""
        self.injected[fault.what] = self.injected.get(fault.what, 0) + 1
        self.log((self.clock(), "fault", fault.where, *fault))

    def injector(self, machine: str) -> Callable[[str], Fault | None]:
        """What the client of a machine asks before each request."""
        mine: dict[tuple[str, int], Fault] = {
            (f.on, int(f.at)): f for f in self.faults if f.where == machine and f.what in ON_REQUEST
        }
        if not mine:
            return lambda _: None
        counts = dict.fromkeys((*CHANGES, "change", "read", "utime"), -1)

        def ask(kind: str) -> Fault | None:
            if self.calm:
                return None
            counts[kind] = number = counts[kind] + 1
            found = mine.get((kind, number))
            if kind != "read":
                counts["change"] = total = counts["change"] + 1
                found = found or mine.get(("change", total))
            if found is not None:
                self.happened(found)
            return found

        return ask


def _delay(chance: random.Random) -> float:
    return chance.choice([0.02, 0.3, 2.0, 8.0, 30.0]) * chance.uniform(0.5, 1.5)


def make(
    seed: int, nodes: list[str], users: list[str], *, busy_s: float, local: bool, only: frozenset[str]
) -> list[Fault]:
    """The faults of a seed."""
    chance = rng(seed, "faults")
    on_request = [what for what in (LOCAL_REQUEST if local else ON_REQUEST) if not only or what in only]
    at_time = [what for what in AT_TIME if not only or what in only]
    if local:
        at_time = [what for what in at_time if what not in ("partition", "outage", "server_down", "gone")]
    count = chance.choice([0, 2, 4, 8, 16]) if on_request else 0
    found = [_on_request(chance, chance.choice(on_request), nodes, users) for _ in range(count)]
    for _ in range(chance.choice([0, 1, 2, 4, 6]) if at_time else 0):
        what, where = chance.choice(at_time), chance.choice(nodes)
        lasts = {
            "power": chance.uniform(3, 30),
            "full": chance.uniform(2, 40),
            "outage": chance.choice([0.3, 2, 10]),
            "server_down": chance.uniform(1, 60),
        }
        delay = lasts.get(what, chance.choice([1.0, 10.0, 40.0, 120.0, 200.0]) * chance.uniform(0.5, 1.5))
        word = (
            chance.choice(["before", "after", "before whole", "after whole"]) if what == "runner_dies_at_start" else ""
        )
        if what == "clock_jump":
            delay = chance.choice([-1, 1]) * chance.choice([3600.0, 3e8])
        found.append(Fault(what, where, at=round(chance.uniform(0.5, busy_s), 3), delay=round(delay, 3), word=word))
    return found


def _on_request(chance: random.Random, what: str, nodes: list[str], users: list[str]) -> Fault:
    where = chance.choice(nodes * 2 + users)
    on = chance.choice(["rename", "rename", "change", "change", "change", "read"])
    if on == "read" and what in ("lost", "lost_nocache", "dup", "late", "done_error"):
        on = "rename"
    most = {"rename": 60, "change": 150, "read": 400}[on]
    at = min(chance.randrange(most), chance.randrange(most))
    code = chance.choice(CODES) if what == "error" else chance.choice([errno.EIO, errno.ETIMEDOUT])
    if on == "read" and what == "error":
        code = chance.choice([errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
    return Fault(what, where, on, at, round(_delay(chance), 3), code)
