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
from typing import TYPE_CHECKING, Any

from spoolq import deliver, fsops, home, host, result
from spoolq.deliver import Finished
from spoolq.errors import NotFound
from spoolq.fsops import Answer
from spoolq.spool import Placed

if TYPE_CHECKING:
    from spoolq.daemon import Daemon

log = logging.getLogger("spoolq")

FULL = (errno.ENOSPC, errno.EDQUOT)
FULL_S = 5.0  # between looks, at start, whether a full spool takes a heartbeat


def come_up(daemon: "Daemon") -> None:
    """Enter the spool and beat; one that is full is asked until it is not, since jobs run and their ends wait here."""
    while not daemon.stopping:
        try:
            daemon.spool.enter_node(daemon.node)
            daemon.presence.beat()
            return
        except OSError as error:
            if error.errno not in FULL:
                raise
            log.warning("spool error=%s: waiting for room", error.strerror)
        poller = select.poll()
        poller.register(daemon.wake.fileno(), select.POLLIN)
        poller.poll(FULL_S * 1000)
        daemon.wake.clear()


def reconcile(daemon: "Daemon", jobs: list[dict[str, Any]]) -> None:
    """
    Compare the entries on this node with what the runner knows, and act on every difference.

    Args:
        jobs: the runner's `known` message.
    """
    known = {(job["id"], job["attempt"]): job for job in jobs}
    recorded = deliver.recorded_lines(daemon.spool, daemon.node)
    for at in daemon.spool.on_node(daemon.node, "reaping"):
        decide(daemon, at, recorded)
    here = set()
    for at in daemon.spool.on_node(daemon.node):
        key = (at.entry.id, at.entry.attempt)
        here.add(key)
        if not is_pending(daemon, at.entry.id):
            take_over(daemon, at, known.get(key), recorded)
    gone = [key for key, job in known.items() if key not in here and job["state"] == "ended"]
    for job_id, attempt in gone:
        complete_result(daemon, job_id, known[job_id, attempt])
    daemon.family.send({"op": "forget", "jobs": [list(key) for key in gone]})
    if not journal_of_this_boot(daemon.state_dir):
        repair_results(daemon, recorded)
        mark_boot(daemon.state_dir)


def complete_result(daemon: "Daemon", job_id: int, job: dict[str, Any]) -> None:
    """An end whose entry is not here any more: committed, and perhaps we died before its result.json."""
    with contextlib.suppress(NotFound):
        at = daemon.spool.find(job_id)
        ended_here = at.top == "done" and at.entry.attempt == job["attempt"]
        if ended_here and home.read_result(daemon.spool.root, job_id) is None:
            item = Finished(at, job["ended"], deliver.read_job(daemon.spool, job_id))
            deliver.prepare(item, daemon.node)
            home.publish_result(daemon.spool.root, job_id, item.result, sync=False)


def is_pending(daemon: "Daemon", job_id: int) -> bool:
    """Whether its end is already known and on its way into the spool."""
    return any(item.at.entry.id == job_id for item in daemon.ended)


def take_over(
    daemon: "Daemon",
    at: Placed,
    job: dict[str, Any] | None,
    recorded: dict[tuple[int, int], dict[str, Any]],
) -> None:
    """One entry in running/<me>: adopt, deliver, give back or decide."""
    from spoolq.daemon import Live

    entry = at.entry
    key = (entry.id, entry.attempt)
    if job is not None and job["state"] in ("running", "ended"):
        if entry.id not in daemon.live:
            outputs = home.reopen_outputs(daemon.spool.root, entry.id)
            known = deliver.read_job(daemon.spool, entry.id)
            daemon.live[entry.id] = Live(at, known, outputs, scratch=job.get("scratch") or "")
            log.info("adopted job=%d attempt=%d %s", entry.id, entry.attempt, job["state"])
        if job["state"] == "ended":
            if detail := read_lost(daemon.state_dir).get(f"{entry.id}.{entry.attempt}"):
                deliver.mark_lost(job["ended"], detail)
            daemon.take_end(entry.id, entry.attempt, job["ended"])
    elif key in recorded:
        finish_recorded(daemon, at, recorded[key])
    elif job is None and entry.name in daemon.claims:
        if live := daemon.live.get(entry.id):
            daemon.drop_live(live)
        log.info("gave back job=%d attempt=%d: it had not started", entry.id, entry.attempt)
        daemon.spool.give_back(at)
    else:
        if live := daemon.live.get(entry.id):
            daemon.drop_live(live)
        answer, taken = daemon.spool.reap(at, daemon.node)
        if answer is Answer.WON:
            decide(daemon, taken, recorded)


def decide(daemon: "Daemon", at: Placed, recorded: dict[tuple[int, int], dict[str, Any]]) -> None:
    """An entry in reaping/<me> of an attempt that may have started and will never end by itself."""
    entry = at.entry
    if record := recorded.get((entry.id, entry.attempt)):
        finish_recorded(daemon, at, record)
    elif entry.rerun == "N":
        detail = f"node {daemon.node} went down while it ran or was about to; its user said never to run it again"
        answer, _ = daemon.spool.finish(at, "nodefail")
        if answer is Answer.WON:
            deliver.write_unstarted(daemon.spool, entry, "nodefail", detail, daemon.node)
        log.warning("node fail job=%d attempt=%d", entry.id, entry.attempt)
    else:
        run_again(daemon, at)


def run_again(daemon: "Daemon", at: Placed) -> None:
    """Back into the queue as the next attempt, at its old place in line."""
    home.set_aside(daemon.spool.root, at.entry.id, at.entry.attempt)
    daemon.spool.requeue(at)
    daemon.spool.committed([])
    log.info("requeued job=%d attempt=%d", at.entry.id, at.entry.attempt + 1)


def finish_recorded(daemon: "Daemon", at: Placed, record: dict[str, Any]) -> None:
    """Its end is in the history already: only the last rename is missing."""
    reason = str(record.get("reason") or "").partition(":")[0]
    item = Finished(at, {**record, "reason": reason}, None, recorded=True, result=result.rebuild(record))
    daemon.ended.append(item)


def note_lost(daemon: "Daemon") -> None:
    """
    Keep on the local disk whose output was lost, until that is delivered.

    The error is told once, to the descriptor that we had: a daemon that is restarted while the spool
    is full would find an end without it, and report success (seen on real NFS).
    """
    lost = {
        f"{item.at.entry.id}.{item.at.entry.attempt}": item.ended["detail"]
        for item in daemon.ended
        if item.ended.get("reason") == deliver.OUTPUT_LOST
    }
    if lost == read_lost(daemon.state_dir):
        return
    path = os.path.join(daemon.state_dir, "lost")
    with open(path + ".new", "w", encoding="utf-8") as file:
        json.dump(lost, file)
    os.replace(path + ".new", path)


def read_lost(state_dir: str) -> dict[str, str]:
    """`id.attempt` -> what is known of its lost output."""
    with contextlib.suppress(OSError, ValueError), open(os.path.join(state_dir, "lost"), encoding="utf-8") as file:
        return dict(json.load(file))
    return {}


def requeue_ended(daemon: "Daemon", item: Finished) -> bool:
    """A job killed in order to run again: through reaping/<me>, as after a node failure."""
    if item.at.top == "running":
        answer, taken = daemon.spool.reap(item.at, daemon.node)
        if answer is Answer.UNKNOWN:
            return False
        if answer is Answer.LOST:
            return True
        item.at = taken
    for fd in item.outputs:
        fsops.close(fd)
    item.outputs = ()
    run_again(daemon, item.at)
    return True


def journal_of_this_boot(state_dir: str) -> bool:
    """Whether the journal here has seen everything since this machine booted."""
    with contextlib.suppress(OSError), open(os.path.join(state_dir, "boot"), encoding="ascii") as file:
        return file.read().strip() == host.boot_id()
    return False


def mark_boot(state_dir: str) -> None:
    """From now on the journal is complete for this boot."""
    path = os.path.join(state_dir, "boot")
    with open(path + ".new", "w", encoding="ascii") as file:
        file.write(host.boot_id() + "\n")
    os.replace(path + ".new", path)


def repair_results(daemon: "Daemon", recorded: dict[tuple[int, int], dict[str, Any]]) -> None:
    """After a reboot: results that a power loss of a local disk tore are written again from history."""
    newest: dict[int, dict[str, Any]] = {}
    for (job_id, attempt), record in recorded.items():
        if job_id not in newest or newest[job_id]["attempt"] < attempt:
            newest[job_id] = record
    for job_id, record in newest.items():
        path = home.path_of(daemon.spool.root, job_id)
        if fsops.look(path) is None:
            continue
        data = home.read_result(daemon.spool.root, job_id)
        if data is not None and result.parse(data) is None:
            home.publish_result(daemon.spool.root, job_id, result.rebuild(record), sync=True)
            log.warning("repaired result job=%d", job_id)


def look_for_ghosts(daemon: "Daemon") -> None:
    """An entry here that nobody here knows: a claim given up on that the server carried out later."""
    if daemon.claims.long:
        needed = [live.at for live in daemon.live.values()] + [claimed for _, claimed in daemon.unsettled]
        daemon.claims.keep({at.entry.name for at in needed})
    unsettled = {claimed.entry.id for _, claimed in daemon.unsettled}
    for at in daemon.spool.on_node(daemon.node):
        entry = at.entry
        if entry.id in daemon.live or entry.id in unsettled or is_pending(daemon, entry.id):
            continue
        log.warning("ghost job=%d attempt=%d", entry.id, entry.attempt)
        take_over(daemon, at, None, {})


def capacities(daemon: "Daemon") -> dict[str, Any]:
    """What the other nodes have to lend, as they say."""
    facts = {node: daemon.spool.read_node(node) for node in daemon.spool.nodes() if node != daemon.node}
    return {node: known["capacity"] for node, known in facts.items() if "capacity" in known}


def sweep(daemon: "Daemon") -> None:
    """What any idle node may clean up; done again by the next if interrupted."""
    daemon.spool.sweep_segments()
