"""
What a node measures while it serves, and what it does about it: load, memory, devices, overload.

The runner says what jobs use, /proc what all use; the rest is foreign (`host.Meter`). Devices that
others use are looked for by `busy`. Where the site wants it (`overload_suspend`) a job steps aside
while others take its cpus or the memory: by the same order to the runner and the same rename as after a user's
`suspend`, with `SO` in the entry's name instead of `S`.
Invariant: the entry's name says who is suspended and why, so that whoever serves this node next knows;
nothing here is on the way of a job that starts or ends.
"""

import logging
import math
import os
from typing import TYPE_CHECKING, Any

from spoolq import busy, chunk, control, host, overload
from spoolq.control import Verdict
from spoolq.live import Live
from spoolq.overload import Holder, Hysteresis, Step
from spoolq.resources import CPUS, UNIT

if TYPE_CHECKING:
    from spoolq.daemon import Daemon

log = logging.getLogger("spoolq")

MEASURE_S = 5.0
DEVICES_S = 10.0  # between looks at who has devices open: some ms on a machine with a thousand processes
IDLE_S = 10.0  # between samples where no job runs


class Gauge:
    """What is measured on one node."""

    def __init__(self, hold_s: float) -> None:
        """Nothing yet; `hold_s` as in `overload`."""
        self.meter = host.Meter(os.environ.get("SPOOLQ_TEST_ROOT", ""))
        self.busy: dict[str, set[int]] = {}
        self.hysteresis = Hysteresis(hold_s)


def step(daemon: "Daemon", now: float) -> None:
    """Ask the runner what the jobs use (the answer comes as a message), and look who uses devices, each in its time."""
    policy = daemon.policy
    often_s = max(0.2, min(MEASURE_S, policy.overload_s / 4)) if policy.overload_suspend else MEASURE_S
    if daemon.due("measure", now, often_s) and daemon.measured and (daemon.live or daemon.due("idle", now, IDLE_S)):
        daemon.family.send({"op": "usage"})
    devices(daemon, now)


def devices(daemon: "Daemon", now: float) -> None:
    """Look who uses devices; also before the first claim."""
    files = {name: path for name, path in daemon.device_files.items() if name in daemon.capacity}
    if files and daemon.due("devices", now, DEVICES_S):
        daemon.gauge.busy = found = busy.busy(files, daemon.state_dir)
        daemon.bench.busy = {name: frozenset(map(str, numbers)) for name, numbers in found.items()}


def left(daemon: "Daemon") -> dict[str, int]:
    """What others leave of cpus, memory and devices, as far as that is measured; thousandths."""
    # where devices are told apart, `Bench.stock` knows which are both lent and used by others
    found = busy.left(daemon.capacity, {n: ids for n, ids in daemon.gauge.busy.items() if n not in daemon.bench.kinds})
    if daemon.measured:
        found |= daemon.gauge.meter.measured(sum(live.rss_mb for live in daemon.live.values()))
    return found


def take(daemon: "Daemon", message: dict[str, Any]) -> None:
    """What the family and its jobs have used; the rest of the machine's load is foreign."""
    times, jobs = os.times(), message["jobs"]
    daemon.gauge.meter.sample(message["cpu_s"] + times.user + times.system, sum(u["rss_mb"] for u in jobs.values()))
    for key, used in jobs.items():
        unit, _, attempt = key.rpartition(".")
        if live := chunk.live_of(daemon, int(unit) if unit.isdigit() else unit, int(attempt)):
            live.rss_mb = int(used["rss_mb"])
            live.peak_mb = max(live.peak_mb, live.rss_mb)
    relieve(daemon, host.boottime())


def relieve(daemon: "Daemon", now: float) -> None:
    """Let a job step aside, or one that did go on, if the load says so for long enough."""
    aside = [live for live in daemon.live.values() if live.at.entry.aside]
    if not daemon.policy.overload_suspend:
        for live in aside:  # the site has turned it off since
            carry_out(daemon, live, Step("resume", live.at.entry.unit), "overload_suspend is off")
        return
    meter = daemon.gauge.meter
    if meter.foreign_cpus is None:
        return
    foreign = round(meter.foreign_cpus * UNIT)
    jobs = [holder(live) for live in daemon.live.values()]
    guard, idle = daemon.policy.overload_mem_mb, round(daemon.policy.idle_load * UNIT)
    spare = meter.available_mb / guard if guard else math.inf
    found = daemon.gauge.hysteresis.feed(now, overload.wanted(jobs, meter.cpus, foreign, idle, spare))
    if found:
        carry_out(daemon, daemon.live[found.id], found, overload.figures(foreign, meter.cpus, meter.available_mb))


def holder(live: Live) -> Holder:
    """A job as `overload` sees it."""
    entry = live.at.entry
    return Holder(entry.unit, entry.rank, live.holds.get(CPUS, 0), entry.suspended, entry.aside)


def carry_out(daemon: "Daemon", live: Live, step: Step, why: str) -> None:
    """
    One step: the rename that everybody sees, and the order to the runner.

    If the rename is not certain nothing is said to the runner: the next look finds whatever became of it,
    and a daemon that comes after this one makes the runner agree with the name.
    """
    entry, stop = live.at.entry, step.verb == "suspend"
    try:
        verdict = control.rename(daemon, live, suspended=stop, aside=stop)
    except OSError as error:
        daemon.trouble("overload", error)
        return
    if verdict is Verdict.DONE and live.at.entry.suspended == stop:
        log.info("overload %s job=%s: %s", step.verb, entry.unit, why)
        control.tell(daemon, live, step.verb)


def facts(daemon: "Daemon") -> dict[str, Any] | None:
    """For people and node.json; None where the node lends more than the machine has."""
    if not daemon.measured:
        return None
    return {**daemon.gauge.meter.facts(), "idle_load": daemon.policy.idle_load}
