"""
Choose, claim and start: the part of a daemon's turn that takes work from the queue.

`schedule` decides from names alone; here the queue is listed, the claim is recorded and made by one
rename, and the job goes to the runner. A claim is tried once: a second try would find the target of
the first and believe that it won.
Invariant: nothing is started on a lease younger than its claim (model: "lease good now, not since
the claim"), and nothing is claimed that an earlier attempt on this node still holds.
"""

import contextlib
import functools
import logging
import time
from typing import TYPE_CHECKING

from spoolq import chunk, home, host, rerun, schedule
from spoolq.channel import Gone
from spoolq.entry import Entry, fitting
from spoolq.errors import SpoolqError
from spoolq.fsops import Answer
from spoolq.launch import NOT_THE_JOBS_FAULT, Prepared
from spoolq.lease import may_start
from spoolq.live import Live
from spoolq.resources import CPUS, MEM, UNIT, Amounts, free_of
from spoolq.spool import Placed
from spoolq.throttle import Throttle

if TYPE_CHECKING:
    from spoolq.daemon import Daemon

log = logging.getLogger("spoolq")

BUSY_POLL_S, IDLE_POLL_S = 0.05, 1.0  # between looks at the queue: after recent work, growing to idle
SCAN_LIMIT = 1000  # waiting entries looked at in one pass
AHEAD = 8  # jobs whose homes are read before their turn
WINDOW = 16  # of them considered first: with many alike, what fits is found there
REASONS = 20  # blocked jobs that get a why file in one pass
EXPLAIN_S, FULL_EXPLAIN_S, WHY_S = 1.0, 10.0, 60.0  # between passes that explain; between changes of a why file


def start_jobs(daemon: "Daemon", now: float) -> None:
    """Claim and start what fits, in order; the listing is kept while it is young and lasts."""
    if not has_room(daemon):
        if daemon.due("explain", now, FULL_EXPLAIN_S):  # also a node that has no room says so
            waiting = look_at_queue(daemon, REASONS)
            explain(daemon, admit(daemon, waiting, REASONS), now)
            daemon.looked = daemon.looked or not waiting
        return
    if now >= daemon.due_at("queue"):
        daemon.candidates = look_at_queue(daemon)
        daemon.poll_s = IDLE_POLL_S if daemon.candidates else min(daemon.poll_s * 1.5, IDLE_POLL_S)
        daemon.set_due("queue", now + daemon.poll_s)
    while daemon.candidates and has_room(daemon):
        looked_at = daemon.candidates[:WINDOW]
        plan = admit(daemon, looked_at, 0)
        if not plan.start:
            looked_at = daemon.candidates
            plan = admit(daemon, looked_at, REASONS if daemon.due("explain", now, EXPLAIN_S) else 0)
            explain(daemon, plan, now)
        if not plan.start:
            daemon.looked = daemon.limits.once or not any(could_ever(daemon, at) for at in looked_at)
            daemon.candidates = []  # nothing of this listing fits: look again at the next poll
            return
        start = {(entry.id, entry.chunk) for entry in plan.start}
        # taken out first, so that also after an error no claim is tried twice
        left = [at for at in looked_at if (at.entry.id, at.entry.chunk) not in start]
        daemon.candidates = left + daemon.candidates[len(looked_at) :]
        for at in looked_at:
            if (at.entry.id, at.entry.chunk) in start:
                daemon.last_work = now
                if start_one(daemon, at) is Answer.UNKNOWN:
                    return
    daemon.looked = daemon.looked or not daemon.candidates


def has_room(daemon: "Daemon") -> bool:
    """Whether it makes sense to look at the queue at all."""
    away = daemon.presence.draining or daemon.presence.full or daemon.presence.twin
    if daemon.stopping or away or (daemon.limits.once and daemon.looked):
        return False
    return free(daemon).get(CPUS, 0) > 0


def free(daemon: "Daemon") -> Amounts:
    """What may be lent now: declared and measured, see `schedule.effective_free`."""
    held = [live.at.entry.wants for live in daemon.live.values()]
    if not daemon.measured:
        return free_of(daemon.capacity, held)
    unused = sum(max(0, live.at.entry.wants.get(MEM, 0) - live.rss_mb * UNIT) for live in daemon.live.values())
    return schedule.effective_free(daemon.capacity, held, daemon.meter.measured(), unused)


def view(daemon: "Daemon") -> schedule.NodeView:
    """This node as `schedule` sees it."""
    return schedule.NodeView(
        name=daemon.node,
        capacity=daemon.capacity,
        free=free(daemon),
        held={live.at.entry.unit: live.at.entry.wants for live in daemon.live.values()},
        full=daemon.presence.full,
        draining=daemon.presence.draining,
    )


def could_ever(daemon: "Daemon", at: Placed) -> bool:
    """Whether a job could start here if nothing else used this machine; if so, `--idle-exit` waits for it."""
    idle = schedule.NodeView(name=daemon.node, capacity=daemon.capacity, free=daemon.capacity)
    return schedule.explain(at.entry, idle, conditions(daemon, at.entry)) is None


def conditions(daemon: "Daemon", entry: Entry) -> schedule.Conditions | None:
    """What the name does not say: node patterns, and whether the working directory exists here; None if unreadable."""
    try:
        ready = daemon.launcher.prepare(entry)
    except (OSError, SpoolqError):  # perhaps this home alone: the job stays, and stops no other
        return None
    return schedule.Conditions(nodelist=ready.job.nodelist, exclude=ready.job.exclude, missing=ready.missing)


def prepare_ahead(daemon: "Daemon") -> None:
    """Read the homes of the jobs that come next, while there is nothing else to do; nothing is claimed."""
    for at in daemon.candidates[:AHEAD]:
        with contextlib.suppress(OSError, SpoolqError):
            daemon.launcher.prepare(at.entry)


def admit(daemon: "Daemon", candidates: list[Placed], reasons: int) -> schedule.Plan:
    """What of some candidates may start now."""
    node = view(daemon)
    entries = [at.entry for at in candidates]
    return schedule.admit(entries, node.free, node, functools.partial(conditions, daemon), reasons)


def look_at_queue(daemon: "Daemon", most: int = SCAN_LIMIT) -> list[Placed]:
    """A fresh listing of the first waiting entries."""
    found = []
    ours = {item.at.entry.unit for item in daemon.ended} | {at.entry.unit for at, _ in daemon.unsettled}
    ours |= daemon.live.keys()  # an earlier attempt or claim of these may still be
    throttle = Throttle(daemon)
    for at in daemon.spool.waiting():
        if at.entry.unit not in ours and (not at.entry.chunk or throttle.lets(at.entry)):
            found.append(at)
        if len(found) >= most:
            break
    return found


def start_one(daemon: "Daemon", at: Placed) -> Answer:
    """Claim one entry and hand it to the runner; the lease held before the claim is the one that counts."""
    ready = daemon.launcher.prepare(at.entry)
    began = daemon.presence.began
    daemon.claims.add(fitting(at.entry.next()).name)
    answer, claimed = daemon.spool.claim(at, daemon.node)
    if answer is Answer.UNKNOWN:
        daemon.unsettled.append((at, claimed))
    if answer is Answer.WON:
        if ready.problem:  # the spool may have been away when its home was read; it is there now
            ready = daemon.launcher.prepare(at.entry)
        launch(daemon, claimed, ready, began)
    return answer


def launch(daemon: "Daemon", at: Placed, ready: Prepared, began: float) -> None:
    """Start a claimed entry: lease, outputs, runner. What cannot start ends as FAILED with the reason."""
    if not at.entry.chunk:  # of an array there is more to come
        daemon.launcher.forget(at.entry.id)
    if not may_start(host.boottime(), began, daemon.policy.fence_s):
        rerun.give_back(daemon, at)
        return
    if at.entry.chunk:
        chunk.begin(daemon, at, ready, began)
        return
    live = daemon.live[at.entry.id] = Live(at, ready.job if not ready.problem else None)
    if ready.problem:
        fail(daemon, live, ready.problem)
        return
    try:
        live.outputs = tuple(daemon.launcher.open_outputs(at.entry, ready.job))
    except OSError as error:
        if error.errno in NOT_THE_JOBS_FAULT or rerun.is_away(daemon):
            release(daemon, live, f"outputs: {error.strerror}")
        else:
            fail(daemon, live, f"cannot open output {error.filename}: {error.strerror}")
        return
    try:
        if at.entry.rerun == "N":  # the disk may be ours: a claim that a power loss undid would be made again
            daemon.spool.make_durable([at])
        live.scratch = daemon.scratch.take()
        message = daemon.launcher.message(at.entry, ready, live.scratch, daemon.policy)
        message["until"] = began + daemon.policy.fence_s
        daemon.family.send(message, live.outputs)
    except Gone:
        raise  # the next runner will say that it does not know it
    except OSError as error:
        release(daemon, live, f"scratch directory, descriptors or spool: {error.strerror}")


def release(daemon: "Daemon", live: Live, why: str) -> None:
    """Give a claim back that this node cannot start for reasons of its own, and claim no more until the next beat."""
    log.warning("gave back job=%s why=%s", live.at.entry.unit, why)
    daemon.presence.full = True
    daemon.drop_live(live)
    rerun.give_back(daemon, live.at)


def fail(daemon: "Daemon", live: Live, why: str) -> None:
    """End a job that cannot be started, without the runner."""
    ended = {"exit_code": 126, "signal": None, "reason": "launch", "detail": why, "ended": time.time()}
    daemon.take_end(live.at.entry.id, live.at.entry.attempt, ended)


def explain(daemon: "Daemon", plan: schedule.Plan, now: float) -> None:
    """Write why jobs do not start here: a line each, only when it changed, not more than once a minute."""
    for entry, reason in plan.blocked:
        when, text = daemon.whys.get(entry.id, (0.0, ""))
        line = f"{daemon.node} {reason}"
        if text == line or (text and now - when < WHY_S):
            continue
        if len(daemon.whys) > SCAN_LIMIT:
            daemon.whys.clear()
        daemon.whys[entry.id] = (now, line)
        with contextlib.suppress(OSError):  # a view: it is written again
            home.write_why(daemon.spool.root, entry.id, daemon.node, line)


def settle_claims(daemon: "Daemon") -> None:
    """Ask again about claims whose outcome was unknown."""
    for pair in list(daemon.unsettled):
        at, claimed = pair
        answer = daemon.spool.settle(at, claimed)
        if answer is Answer.UNKNOWN:
            continue
        daemon.unsettled.remove(pair)
        if answer is Answer.WON:  # the lease of its claim is not known any more: give it back and claim it anew
            rerun.give_back(daemon, claimed)
