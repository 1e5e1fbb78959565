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
import random
import time
from typing import TYPE_CHECKING

from spoolq import chunk, elbow, home, host, lend, measure, rerun, schedule
from spoolq.channel import Gone
from spoolq.devices import NONE_HELD, Held, Stock
from spoolq.entry import Entry, fitting, released
from spoolq.errors import SpoolqError
from spoolq.fsops import Answer
from spoolq.launch import NOT_THE_JOBS_FAULT, Prepared
from spoolq.lease import may_start
from spoolq.live import Live
from spoolq.queue import SCAN_LIMIT
from spoolq.resources import CPUS, MEM, UNIT, Amounts, add
from spoolq.spool import Placed

if TYPE_CHECKING:
    from spoolq.daemon import Daemon

log = logging.getLogger("spoolq")

BUSY_POLL_S, IDLE_POLL_S = 0.05, 1.0  # between looks at the queue: after recent work, growing to idle
AHEAD = 8  # jobs whose homes are read before their turn
WINDOW = 16  # of them considered first: with many alike, what fits is found there
REASONS = 20  # blocked jobs that get a why file in one pass
EXPLAIN_S, FULL_EXPLAIN_S, WHY_S = 1.0, 10.0, 60.0  # between passes that explain; between changes of a why file


def start_jobs(daemon: "Daemon", now: float) -> None:
    """Claim and start what fits, in order; the listing is kept while it is young and lasts."""
    if not has_room(daemon):
        if daemon.due("explain", now, FULL_EXPLAIN_S):  # also a node that has no room says so
            waiting = daemon.queue.look(REASONS)
            daemon.pending.look(waiting, now)
            explain(daemon, admit(daemon, waiting, REASONS, whole=False), now)
            daemon.looked = daemon.looked or not waiting
        return
    if now >= daemon.due_at("queue"):
        daemon.candidates = daemon.queue.look()
        if daemon.candidates:
            daemon.placement.look(now)
            daemon.pending.look(daemon.candidates, now)
        daemon.poll_s = IDLE_POLL_S if daemon.candidates else min(daemon.poll_s * 1.5, IDLE_POLL_S)
        daemon.set_due("queue", now + daemon.poll_s)
    while daemon.candidates and has_room(daemon):
        looked_at = daemon.candidates[:WINDOW]
        whole = len(looked_at) == len(daemon.candidates)
        plan = admit(daemon, looked_at, 0, whole=whole)
        if not plan.start:
            looked_at = daemon.candidates
            plan = admit(daemon, looked_at, REASONS if daemon.due("explain", now, EXPLAIN_S) else 0, whole=True)
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
    lives = daemon.live.values()
    unused = sum(max(0, live.holds.get(MEM, 0) - live.rss_mb * UNIT) for live in lives)
    found = _lendable(daemon, [*holdings(daemon).values()], measure.left(daemon), unused, stock(daemon))
    return {**found, **daemon.pending.left()}


def usable(daemon: "Daemon") -> Amounts:
    """What could be lent if none of its jobs ran: what it has without what others use."""
    left = measure.left(daemon)
    if MEM in left:
        left[MEM] += sum(live.rss_mb for live in daemon.live.values()) * UNIT
    return _lendable(daemon, [], left, 0, daemon.bench.stock([]) if daemon.bench.kinds else None)


def _lendable(
    daemon: "Daemon", held: list[Amounts], measured: Amounts, unused: int, devices: Stock | None
) -> dict[str, int]:
    found = schedule.effective_free(daemon.capacity, held, measured, unused, round(daemon.policy.idle_load * UNIT))
    if devices:
        found |= {name: min(found.get(name, 0), devices.total(name)) for name in devices.free}
    return found


def holdings(daemon: "Daemon") -> dict[int | str, Amounts]:
    """What each job of this node holds, also one that is claimed and not certain to start."""
    pending = {item.at.entry.unit: item.at.entry.wants for item in daemon.pending.items}
    return {job_id: live.holds for job_id, live in daemon.live.items()} | pending


def stock(daemon: "Daemon") -> Stock | None:
    """What is free of each device, where some are told apart."""
    bench = daemon.bench
    pending = [item.devices for item in daemon.pending.items]
    return bench.stock([*pending, *(live.devices for live in daemon.live.values())]) if bench.kinds else None


def facts(daemon: "Daemon") -> dict[str, Amounts | dict[str, Amounts]]:
    """For node.json: what jobs hold, what those lend that wait for others, and what may be lent now."""
    lives = daemon.live.values()
    held = add(*(live.holds for live in lives))
    return {"allocated": held, "lent": lend.given(lives), "free": free(daemon), "usable": usable(daemon)}


def view(daemon: "Daemon") -> schedule.NodeView:
    """This node as `schedule` sees it."""
    return schedule.NodeView(
        name=daemon.node,
        capacity=daemon.capacity,
        free=free(daemon),
        held={**daemon.pending.others(), **holdings(daemon)},
        pools=frozenset(daemon.policy.pools),
        labels=daemon.labels,
        devices=stock(daemon),
        full=daemon.presence.full,
        draining=daemon.presence.draining,
        busy={name: sorted(numbers) for name, numbers in daemon.gauge.busy.items()},
        idle_load=round(daemon.policy.idle_load * UNIT),
        usable=usable(daemon),
    )


def could_ever(daemon: "Daemon", at: Placed) -> bool:
    """Whether a job could start here if nothing else used this machine; if so, `--idle-exit` waits for it."""
    lent = daemon.capacity
    whole = Stock(daemon.bench.kinds)
    idle = schedule.NodeView(name=daemon.node, capacity=lent, free=lent, labels=daemon.labels, devices=whole)
    return schedule.explain(at.entry, idle, conditions(daemon, at.entry)) is None


def conditions(daemon: "Daemon", entry: Entry) -> schedule.Conditions | None:
    """What the name does not say: node patterns, and whether the working directory exists here; None if unreadable."""
    try:
        ready = daemon.launcher.prepare(entry)
    except (OSError, SpoolqError):  # perhaps this home alone: the job stays, and stops no other
        return None
    job = ready.job
    return schedule.Conditions(
        nodelist=job.nodelist,
        exclude=job.exclude,
        constraint=job.constraint,
        missing=ready.missing,
        time_factor=elbow.time_factor(job, daemon.policy) if job.time_factor else 0.0,
    )


def prepare_ahead(daemon: "Daemon") -> None:
    """Read the homes of the jobs that come next, while there is nothing else to do; nothing is claimed."""
    for at in daemon.candidates[:AHEAD]:
        with contextlib.suppress(OSError, SpoolqError):
            daemon.launcher.prepare(at.entry)


def admit(daemon: "Daemon", candidates: list[Placed], reasons: int, *, whole: bool) -> schedule.Plan:
    """What of some candidates may start now; `whole`: they are all that are known."""
    node, asked = view(daemon), functools.partial(conditions, daemon)
    allowed, barred = daemon.queue.allowed(candidates)
    plan = daemon.placement.admit(allowed, node, asked, whole=whole, reasons=reasons)
    return daemon.queue.trimmed(plan, barred, reasons)


def start_one(daemon: "Daemon", at: Placed) -> Answer:
    """Claim one entry and hand it to the runner; the lease held before the claim is the one that counts."""
    ready = daemon.launcher.prepare(at.entry)
    left = stock(daemon)
    held = left.lend(at.entry.wants) if left else NONE_HELD
    if held is None:
        return Answer.LOST  # not tried: what was free when it was chosen is busy now
    named, shared = fitting(released(at.entry).next()), daemon.pending.concerns(at.entry.wants)
    if shared and named.wants != at.entry.wants:
        return Answer.LOST  # a name too long to say what it holds: not for this node to start
    began = daemon.presence.began
    daemon.claims.add(named.name)
    answer, claimed = daemon.spool.claim(at, daemon.node)
    if answer is Answer.UNKNOWN:
        daemon.unsettled.append((at, claimed))
    if answer is Answer.WON:
        if daemon.queue.too_many(claimed.entry):
            rerun.give_back(daemon, claimed)
            daemon.set_due("queue", host.boottime() + random.uniform(0.5, 1.5) * IDLE_POLL_S)  # noqa: S311  # jitter
            return answer
        if ready.problem:  # the spool may have been away when its home was read; it is there now
            ready = daemon.launcher.prepare(at.entry)
        if shared and not ready.problem:
            daemon.pending.add(claimed, ready, began, held)
        else:
            launch(daemon, claimed, ready, began, held)
    return answer


def launch(daemon: "Daemon", at: Placed, ready: Prepared, began: float, held: Held = NONE_HELD) -> None:
    """Start a claimed entry: lease, outputs, runner. What cannot start ends as FAILED with the reason."""
    if not at.entry.chunk:  # of an array there is more to come
        daemon.launcher.forget(at.entry.id)
    if not may_start(host.boottime(), began, daemon.policy.fence_s):
        rerun.give_back(daemon, at)
        return
    if at.entry.chunk:
        chunk.begin(daemon, at, ready, began, held)
        return
    job = ready.job if not ready.problem else None
    live = daemon.live[at.entry.id] = Live(at, job, since=host.boottime(), devices=held)
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
        message = daemon.launcher.message(at.entry, ready, live.scratch, daemon.policy, held)
        message["until"] = began + daemon.policy.fence_s
        daemon.around.wrap(at.entry, ready.job, message)
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
