"""
Carry out what users ask of jobs that run on this node: requests are files under nodes/<me>/control/.

A request is removed only after it was carried out, so a crash in between carries it out again: each is
therefore harmless when repeated. One about a job that is no longer here is dropped.
"""

import logging
from signal import NSIG
from typing import TYPE_CHECKING, Any

from spoolq import home, host
from spoolq.fsops import Answer
from spoolq.resources import MEM, UNIT

if TYPE_CHECKING:
    from spoolq.daemon import Daemon, Live

MOST = 1 << 40  # no id, MB or second is as large

log = logging.getLogger("spoolq")

FOLLOWED_S = 25.0  # that a request to follow holds; followers repeat theirs every `tail.ASK_S`


def obey(daemon: "Daemon") -> None:
    """One look at the requests of this node."""
    for name, request in daemon.spool.requests(daemon.node):
        if not sound(request):
            log.warning("request dropped name=%s: makes no sense", name)
            daemon.spool.answered(daemon.node, name)
            continue
        live = daemon.live.get(request.get("id", 0))
        if live is None or request.get("attempt", live.at.entry.attempt) != live.at.entry.attempt:
            if request.get("verb") != "follow":
                log.warning("request dropped name=%s: no such attempt here", name)
        elif not carry_out(daemon, live, request):
            continue  # not yet: it stays and is tried again
        daemon.spool.answered(daemon.node, name)


def sound(request: dict[str, Any]) -> bool:
    """Whether its numbers are such as commands write; anybody may put a file there."""
    numbers = [request.get(key, 0) for key in ("id", "attempt", "signal", "mem_mb", "limit_s")]
    if request.get("limit_s", 0) is None:
        numbers.pop()  # unlimited
    return all(type(number) is int and 0 <= number < MOST for number in numbers) and request.get("signal", 0) < NSIG


def carry_out(daemon: "Daemon", live: "Live", request: dict[str, Any]) -> bool:
    """One request; False if it has to be tried again."""
    entry = live.at.entry
    message: dict[str, Any] = {"id": entry.id, "attempt": entry.attempt}
    verb = request.get("verb")
    if verb == "follow":  # somebody on another machine reads the outputs, see `sync_followed`
        live.followed_until = host.boottime() + FOLLOWED_S
        return True
    log.info("request job=%d verb=%s", entry.id, verb)
    match verb:
        case "kill" | "requeue":
            live.requeue = verb == "requeue"
            daemon.family.send(message | {"op": "kill", "reason": "cancelled", "grace_s": daemon.policy.grace_s})
        case "signal":
            daemon.family.send(message | {"op": "signal", "signal": int(request.get("signal", 15))})
        case "suspend" | "resume":
            daemon.family.send(message | {"op": verb})
            if entry.suspended != (verb == "suspend"):
                return rename(daemon, live, suspended=verb == "suspend")
        case "edit":
            return edit(daemon, live, request, message)
        case _:
            log.warning("request unknown verb=%r", verb)
    return True


def sync_followed(daemon: "Daemon", now: float) -> None:
    """Sync outputs that somebody follows: on NFS, unsynced ones reach other machines about 30 s late."""
    for live in daemon.live.values():
        if now < live.followed_until:
            home.sync_outputs(daemon.spool.root, live.at.entry.id)


def edit(daemon: "Daemon", live: "Live", request: dict[str, Any], message: dict[str, Any]) -> bool:
    """New limits of a running job: in the runner, which enforces, and in the name, which everybody sees."""
    changes: dict[str, Any] = {}
    limits = dict(message, op="limits")
    if "limit_s" in request:
        limit = request["limit_s"]
        changes["limit_s"] = limit
        limits["limit_s"] = None if limit is None else limit * daemon.policy.time_factor
    if "mem_mb" in request:
        changes["wants"] = {**live.at.entry.wants, MEM: int(request["mem_mb"]) * UNIT}
        limits["mem_mb"] = int(request["mem_mb"] * daemon.policy.mem_factor)
    daemon.family.send(limits)
    return rename(daemon, live, **changes) if changes else True


def rename(daemon: "Daemon", live: "Live", **changes: Any) -> bool:
    """Show a change in the entry's name."""
    answer, placed = daemon.spool.edit(live.at, **changes)
    if answer is Answer.WON:
        live.at = placed
    return answer is not Answer.UNKNOWN
