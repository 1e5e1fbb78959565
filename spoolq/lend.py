"""
The node's part in nested jobs: a job that waits for others holds no cpus, and of its memory what it uses.

Which jobs wait is read off the requests in `nodes/<me>/control/` at every look (`nested` leaves one for as
long as a command waits), so it is the same after a restart. What a job gets back when it goes on may be in use:
then the node runs more than it has until something ends; nothing is suspended for that.
Its name says so too (`L`), by a rename when it begins and when it ends to wait.
Invariant: what is lent is a job's own cpus and memory, never its devices or licences, nor anything of another.
"""

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from spoolq import deliver, host, recover
from spoolq.entry import LENDS, fitting
from spoolq.fsops import Answer
from spoolq.live import Live
from spoolq.resources import Amounts

if TYPE_CHECKING:
    from spoolq.daemon import Daemon

log = logging.getLogger("spoolq")

MEASURE_S = 5.0  # between questions what those use that wait


def waits(request: dict[str, Any]) -> bool:
    """Whether the process that left a request still waits: on this machine, since this boot."""
    pid, start = request.get("pid"), request.get("start")
    if type(pid) is not int or pid <= 0 or request.get("boot") != host.boot_id():
        return False
    return start is not None and host.process_identity(pid) == start


def here(daemon: "Daemon", request: dict[str, Any]) -> bool:
    """Whether the job or task that a request is about runs here."""
    wanted = (request.get("id"), request.get("task"), request.get("attempt"))
    return any(_key(daemon, live) == wanted for live in daemon.live.values())


def _key(daemon: "Daemon", live: Live) -> tuple[int, int | None, int]:
    entry, of_array = live.at.entry, daemon.chunks.get(live.at.entry.unit)
    if of_array is None:
        return entry.id, None, entry.attempt
    return entry.id, -1 if of_array.current is None else of_array.current, entry.attempt


def count(daemon: "Daemon", requests: Iterable[dict[str, Any]]) -> None:
    """Who waits now, of the requests just listed; what they do not need is lent at once, what they need again not."""
    asked = [r for r in requests if r["verb"] == "lend"]
    keys = {(r.get("id"), r.get("task"), r.get("attempt")) for r in asked if waits(r)}
    changed = False
    for live in daemon.live.values():
        entry = live.at.entry
        lends = bool(keys) and _key(daemon, live) in keys
        if lends != live.lends:
            log.info("job=%s %s", entry.unit, "waits for jobs of its own and lends" if lends else "goes on")
            live.lends, changed = lends, True
        if lends != (LENDS in entry.other):
            show(daemon, live)
    if keys and (changed or daemon.due("lent", host.boottime(), MEASURE_S)):
        daemon.family.send({"op": "usage"})
    if changed:
        daemon.candidates = []
        daemon.set_due("queue", 0.0)
        daemon.part("node.json", daemon.publish, daemon.presence.state)


def show(daemon: "Daemon", live: Live) -> None:
    """Say it in the entry's name, for those who count what users run; what fails is done at the next look."""
    rest = tuple(fact for fact in live.at.entry.other if fact != LENDS)
    other = (*rest, LENDS) if live.lends else rest
    with recover.spared(live.at):
        if live.at.entry.chunk:  # between two tasks nothing but this record says that none runs
            daemon.claims.add(fitting(live.at.entry.next(other=other)).name)
        answer, placed = daemon.spool.edit(live.at, other=other)
        if answer is Answer.WON:
            live.at = placed
        elif answer is Answer.LOST:
            live.at = deliver.renamed(daemon.spool, live.at) or live.at


def given(lives: Iterable[Live]) -> dict[str, Amounts]:
    """Job id -> what it has asked for and does not hold now, thousandths; for node.json."""
    found: dict[str, Amounts] = {}
    for live in lives:
        if live.lends:
            wants, holds = live.at.entry.wants, live.holds
            found[str(live.at.entry.unit)] = {
                name: wants[name] - holds[name] for name in wants if wants[name] > holds[name]
            }
    return found
