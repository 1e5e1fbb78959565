"""
What a daemon does about what an earlier one left: after a crash, a restart, a new runner, a reboot.

Every entry in running/<me> falls into one case. The runner knows it: adopt it, or deliver its end.
The runner does not know it and its claim is on record in this boot: it certainly never started, so it
is given back, never started from here (a give-back of an earlier daemon may still be on its way: model,
"restarted daemon starts an old claim"). No record, since the machine was rebooted or the journal is
gone: it may have started, and what then happens is its user's rule (never, certain, yes); our own
reboot is certain death. Each case is read off the entry's place, the journal and the history.
"""

import contextlib
import errno
import json
import logging
import os
import select
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from spoolq import __version__, control, deliver, devices, elbow, fsops, home, host, regain, result, ship
from spoolq.channel import Gone, say_program
from spoolq.deliver import Finished
from spoolq.errors import NotFound, SpoolqError
from spoolq.fsops import Answer
from spoolq.live import Live
from spoolq.rerun import Known, decide, finish_recorded, forget, give_back, is_away
from spoolq.spool import Placed

if TYPE_CHECKING:
    from spoolq.daemon import Daemon

log = logging.getLogger("spoolq")

REPAIR = 1000  # newest results that a power loss may have torn
PASSES = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOENT)
FULL_S, TWIN_S = 5.0, 1.0  # between looks, at start: whether a full spool takes a heartbeat, whether a twin beats


@contextlib.contextmanager
def spared(at: Placed) -> Iterator[None]:
    """What one entry meets stops no other; it stays as it is, and is looked at again with the next beat."""
    try:
        yield
    except Gone:
        raise
    except (OSError, SpoolqError) as error:
        log.warning("not recovered job=%s attempt=%d error=%s", at.entry.unit, at.entry.attempt, error)


def come_up(daemon: "Daemon") -> None:
    """
    Enter the spool and beat, once it is certain that no other machine serves as this node.

    A spool that is full, read-only or away is asked until it is not, since jobs run and their ends wait here.
    """
    while not daemon.stopping:
        wait_s = TWIN_S
        try:
            daemon.spool.enter_node(daemon.node)
            if daemon.presence.arrive():
                daemon.presence.beat()
                return
        except OSError as error:
            if error.errno not in PASSES:
                raise
            log.warning("spool error=%s: waiting for it", error.strerror)
            wait_s = FULL_S
        poller = select.poll()
        poller.register(daemon.wake.fileno(), select.POLLIN)
        poller.poll(wait_s * 1000)
        daemon.wake.clear()


def compare_notes(daemon: "Daemon") -> None:
    """Ask the runner what it knows, and compare that with what lies on this node; nothing is started meanwhile."""
    daemon.sure = False
    until = daemon.presence.began + daemon.policy.fence_s
    daemon.family.hello(version=__version__, lease=until, fence=until)
    while not (daemon.sure or daemon.stopping):
        for message in daemon.family.receive():  # ends may follow in the same breath
            if message["op"] == "known":
                reconcile(daemon, message["jobs"])
                renew(daemon, message["version"])
                daemon.sure = True
            else:
                daemon.take(message)
        if not daemon.sure:
            daemon.pause(1.0)


def renew(daemon: "Daemon", version: str) -> None:
    """After an upgrade: the family executes the new program in place; its jobs stay its children."""
    if version != __version__ and not daemon.renewed:
        log.info("renewing the runner from=%s to=%s", version, __version__)
        daemon.renewed = True
        say_program(daemon.state_dir)
        daemon.family.send({"op": "reexec"})


def reconcile(daemon: "Daemon", jobs: list[dict[str, Any]]) -> None:
    """
    Compare the entries on this node with what the runner knows, and act on every difference.

    Args:
        jobs: the runner's `known` message, and nothing was started since it was written.
    """
    by_key = {(job["id"], job["attempt"]): job for job in jobs}
    for unit, detail in read_lost(daemon.state_dir).items():
        name, _, attempt = unit.rpartition(".")
        found = by_key.get((name if "_" in name else int(name), int(attempt)))
        if found and found["ended"]:
            deliver.mark_lost(found["ended"], detail)
    daemon.pending.items.clear()  # what the runner does not know is given back below
    known = Known(daemon, by_key, control.wishes(daemon, daemon.node), daemon.node)
    running = daemon.spool.on_node(daemon.node, lasting=True)
    reaping = daemon.spool.on_node(daemon.node, "reaping", lasting=True)
    here = {key for at in running if at.entry.chunk for key in regain.keys_of(known, at.entry).values()}
    daemon.bench.strays = {}
    elsewhere = {key for key in by_key if isinstance(key[0], str)} - here
    for key in sorted(elsewhere):
        regain.complete(daemon, key, known)  # before its chunk is given to anybody
    if reaping:  # perhaps of another node that died: what is known of it lies with that node's things
        wishes = {key: wish for node in daemon.spool.nodes() for key, wish in control.wishes(daemon, node).items()}
        anybody = Known(daemon, by_key, {**wishes, **known.wishes}, "")
    for at in reaping:
        here.add((at.entry.unit, at.entry.attempt))
        if not is_pending(daemon, at.entry.id) or at.entry.chunk:
            with spared(at):
                settle(daemon, at, anybody)
    for at in running:
        here.add((at.entry.unit, at.entry.attempt))
        if at.entry.chunk or not is_pending(daemon, at.entry.id):
            with spared(at):
                (regain.compare if at.entry.chunk else take_over)(daemon, at, known)
    for live in list(daemon.live.values()):
        key = (live.at.entry.unit, live.at.entry.attempt)
        chunk = daemon.chunks.get(key[0])
        if key not in here and known.state(chunk.key if chunk else key) != "running":
            daemon.drop_live(live)  # somebody took the entry away, and nothing runs
    for key in known.jobs.keys() - here:
        if known.state(key) == "running" and known.jobs[key].get("devices"):
            daemon.bench.strays[key] = devices.sound(known.jobs[key]["devices"])
        if key not in elsewhere:
            complete_result(daemon, (int(key[0]), key[1]), known)
    kept = {key for key in known.jobs if known.state(key) == "running"}
    placed = [live.at.entry for live in daemon.live.values()]
    placed += [item.at.entry for item in (*daemon.ended, *(item for _, item in daemon.task_ends))]
    kept |= {(entry.unit, entry.attempt) for entry in placed}
    ship.tidy(daemon.spool, daemon.state_dir, daemon.node, kept)
    if not journal_of_this_boot(daemon.state_dir):
        repair_results(daemon, known.recorded)
        if not daemon.incomplete:
            mark_boot(daemon.state_dir)


def complete_result(daemon: "Daemon", key: tuple[int, int], known: Known) -> None:
    """
    An attempt whose entry is not here any more.

    Either we committed its end, and perhaps died before its result.json; or somebody else took it over
    or we queued it again: then what it came to is kept as late.
    """
    if known.state(key) == "running":
        return
    try:
        at = daemon.spool.find(key[0])
        if known.state(key) == "ended":
            entry, record = at.entry._replace(attempt=key[1], gen=known.jobs[key]["gen"]), known.recorded.get(key)
            item = Finished(at._replace(entry=entry), known.jobs[key]["ended"], deliver.read_job(daemon.spool, key[0]))
            ours = at.top == "done" and at.entry.attempt == key[1] and record and record["gen"] == at.entry.gen
            item.record = record if ours else None  # it may know more: that an output was lost is told only once
            deliver.prepare(item, daemon.node)
            if not ours:
                if not record:
                    daemon.spool.record(deliver.today(), daemon.node, [item.line])
                home.keep_late(daemon.spool.root, *key, item.result)
            elif home.read_result(daemon.spool.root, key[0]) is None:
                home.publish_result(daemon.spool.root, key[0], item.result, sync=False)
    except (NotFound, OSError) as error:
        swept = isinstance(error, NotFound | FileNotFoundError) and not is_away(daemon)  # the job, or its home
        if not swept:
            log.warning("not completed job=%d attempt=%d error=%s", *key, error)
            daemon.incomplete = True
            return
    forget(daemon, key)


def is_pending(daemon: "Daemon", job_id: int) -> bool:
    """Whether its end is already known and on its way into the spool."""
    return any(item.at.entry.id == job_id for item in daemon.ended)


def take_over(daemon: "Daemon", at: Placed, known: Known) -> None:
    """One entry in running/<me>: adopt, deliver, give back or decide."""
    entry = at.entry
    key = (entry.id, entry.attempt)
    if known.state(key) in ("running", "ended"):
        adopt(daemon, at, known)
        return
    if live := daemon.live.get(entry.unit):
        daemon.drop_live(live)
    if not known.state(key) and entry.name in daemon.claims:
        log.info("giving back job=%d attempt=%d: it had not started", *key)
        give_back(daemon, at)
    elif record := deliver.proof(known.recorded, entry):
        finish_recorded(daemon, at, record)
    else:
        ship.ship(daemon.spool, daemon.state_dir, at.place, key)
        answer, taken = daemon.spool.reap(at, daemon.node)
        if answer is Answer.WON:
            settle(daemon, taken, known)


def settle(daemon: "Daemon", at: Placed, known: Known) -> None:
    """Decide about an entry in reaping/<me>; the runner need not keep what is decided."""
    mine = {(at.entry.unit, at.entry.attempt), *(regain.keys_of(known, at.entry).values() if at.entry.chunk else ())}
    if decide(daemon, at, known) is not Answer.UNKNOWN:
        for key in sorted(mine & known.jobs.keys(), key=str):
            forget(daemon, key)


def adopt(daemon: "Daemon", at: Placed, known: Known) -> None:
    """A job that the runner has: it goes on, or its end is delivered."""
    key = (at.entry.id, at.entry.attempt)
    job = known.jobs[key]
    live = daemon.live.get(key[0])
    if live is not None and live.at.entry.attempt != key[1]:
        daemon.drop_live(live)
        live = None
    if live is None:
        local = ship.kept(daemon.state_dir, key)
        outputs = ship.reopen(daemon.state_dir, key) if local else home.reopen_outputs(daemon.spool.root, at.entry)
        read = deliver.read_job(daemon.spool, key[0])
        ran_s = max(0.0, time.time() - (job.get("started") or time.time()))
        live = daemon.live[key[0]] = Live(at, read, outputs, job.get("scratch") or "", host.boottime() - ran_s)
        live.devices = devices.sound(job.get("devices"))
        log.info("adopted job=%d attempt=%d %s", *key, job["state"])
    live.at, live.asked = at, False
    if wish := known.wish(key):
        live.requeue = wish == "requeue"
    if job["state"] == "ended":
        daemon.take_end(*key, job["ended"])
        return
    conform(daemon, live, job)


def conform(daemon: "Daemon", live: Live, job: dict[str, Any]) -> None:
    """Whatever its entry's name says and the runner does not: who was told so did not live to do it."""
    entry = live.at.entry
    message = {"id": entry.id, "attempt": entry.attempt}
    if job.get("stage") == {True: "running", False: "paused"}[entry.suspended]:
        daemon.family.send(message | {"op": "suspend" if entry.suspended else "resume"})
    if live.job and "limit_s" in job:
        wanted = elbow.enforced(entry, live.job, daemon.policy)._asdict()
        limits = {name: limit for name, limit in wanted.items() if job[name] != limit}
        if limits.get("mem_mb", 0) is None:  # of a job that did not ask for any; an edit may have set just that
            del limits["mem_mb"]
        if limits:
            daemon.family.send(message | limits | {"op": "limits"})


def note_lost(daemon: "Daemon") -> None:
    """
    Keep on the local disk whose output was lost, until that is delivered.

    The error is told once, to the descriptor that we had: a daemon that is restarted while the spool
    is full would find an end without it, and report success (seen on real NFS).
    """
    lost = {
        f"{item.at.entry.unit}.{item.at.entry.attempt}": item.ended["detail"]
        for item in (*daemon.ended, *(item for _, item in daemon.task_ends))
        if item.ended.get("reason") == deliver.OUTPUT_LOST
    }
    if lost == read_lost(daemon.state_dir):
        return
    fsops.publish(os.path.join(daemon.state_dir, "lost"), json.dumps(lost).encode(), mode=0o600, sync=False)


def read_lost(state_dir: str) -> dict[str, str]:
    """`id.attempt` -> what is known of its lost output."""
    with contextlib.suppress(OSError, ValueError), open(os.path.join(state_dir, "lost"), encoding="utf-8") as file:
        return dict(json.load(file))
    return {}


def journal_of_this_boot(state_dir: str) -> bool:
    """Whether the journal here has seen everything since this machine booted."""
    with contextlib.suppress(OSError), open(os.path.join(state_dir, "boot"), encoding="ascii") as file:
        return file.read().strip() == host.boot_id()
    return False


def mark_boot(state_dir: str) -> None:
    """From now on the journal is complete for this boot."""
    fsops.publish(os.path.join(state_dir, "boot"), f"{host.boot_id()}\n".encode(), mode=0o600, sync=False)


def repair_results(daemon: "Daemon", recorded: dict[tuple[int, int], dict[str, Any]], most: int = 0) -> None:
    """After a reboot: results that a power loss tore, or that nobody was left to write, are made from history."""
    newest = {job_id: record for (job_id, _), record in list(recorded.items())[-(most or REPAIR) :]}
    for job_id, record in newest.items():
        try:
            data = home.read_result(daemon.spool.root, job_id)
            if data is None:
                at = daemon.spool.lookup("done", job_id)
                bad = at is not None and at.entry.gen == record.get("gen")
            else:
                bad = result.parse(data) is None
            if bad:
                home.publish_result(daemon.spool.root, job_id, result.rebuild(record), sync=True)
                log.warning("repaired result job=%d", job_id)
        except SpoolqError:
            continue  # of a newer version
        except OSError as error:
            log.warning("not repaired result job=%d error=%s", job_id, error)
            daemon.incomplete = True


def look_for_ghosts(daemon: "Daemon") -> None:
    """
    An entry here that this daemon does not handle: a claim given up on that the server carried out later.

    Whether it runs is not told from memory: the runner is asked, and everything compared anew.
    """
    running = daemon.spool.on_node(daemon.node, lasting=True)
    unsettled = {claimed.entry.unit for _, claimed in daemon.unsettled} | daemon.pending.ids()
    if daemon.claims.long:
        needed = [*running, *(claimed for _, claimed in daemon.unsettled)]
        with contextlib.suppress(OSError):  # the local disk is full
            daemon.claims.keep({at.entry.name for at in needed})
    for at in (*running, *daemon.spool.on_node(daemon.node, "reaping")):
        entry = at.entry
        live = daemon.live.get(entry.unit)
        if live and at.top == "running" and live.at.entry.attempt == entry.attempt:
            live.at = at if entry.gen > live.at.entry.gen else live.at  # an edit that seemed to fail
            continue
        if entry.unit in unsettled or (not entry.chunk and is_pending(daemon, entry.id)):
            continue
        log.warning("ghost job=%s attempt=%d in=%s", entry.unit, entry.attempt, at.top)
        daemon.sure = False
    if daemon.incomplete:
        daemon.incomplete = daemon.sure = False


def sweep(daemon: "Daemon") -> None:
    """What any idle node may clean up; done again by the next if interrupted."""
    daemon.spool.sweep_segments()
