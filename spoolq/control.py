"""
Carry out what users ask of jobs that run on this node: requests are files under nodes/<me>/control/.

A request is removed only after it was carried out, so a crash in between carries it out again: each is
therefore harmless when repeated. A kill or requeue is carried out when the job has ended, and stays until
then: whoever comes after this daemon, or after the runner, says it again. One about an attempt that is
not here any more follows it, back into the queue or to another node, or is dropped if that is over.
Invariant: requests about one job take effect in the order of their names; a bad one stops no other.
"""

import contextlib
import logging
import re
from enum import Enum
from typing import TYPE_CHECKING, Any

from spoolq import array, chunk, deliver, elbow, home, host, lend, ship, tasks
from spoolq.channel import Gone
from spoolq.entry import HOMES, Entry, fitting
from spoolq.errors import NotFound, SpoolqError
from spoolq.fsops import Answer
from spoolq.live import Live
from spoolq.rerun import Key
from spoolq.resources import MEM, UNIT
from spoolq.spool import Placed

if TYPE_CHECKING:
    from spoolq.daemon import Daemon

log = logging.getLogger("spoolq")

FOLLOWED_S = 25.0  # that a request to follow holds; followers repeat theirs every `tail.ASK_S`
Request = dict[str, Any]
CHUNK = re.compile(r"\d{1,9}(-\d{1,9})?")
_MOST = {"id": 10**12, "task": 10**9, "attempt": 10**6, "signal": 64, "limit_s": 10**9, "mem_mb": 10**9}


class Verdict(Enum):
    """What becomes of a request."""

    DONE = "done"
    STAYS = "stays"  # until the job has ended; others about it go on
    AGAIN = "again"  # at the next look, before any later one about the same job


def sound(request: Request) -> bool:
    """Whether it can be carried out at all: anybody may have written it."""
    numbers = {key: request[key] for key in _MOST if request.get(key) is not None}
    chunk = request.get("chunk", "")
    if not isinstance(chunk, str) or not (chunk == "" or CHUNK.fullmatch(chunk)):
        return False
    whole = all(type(number) is int and 0 <= number <= _MOST[key] for key, number in numbers.items())
    return whole and "id" in numbers and isinstance(request.get("verb"), str)


def wishes(daemon: "Daemon", node: str) -> dict[Key, str]:
    """
    (id, attempt) -> `kill` or `requeue`, whichever a node was asked for last and has not carried out yet.

    Attempt 0 stands for a request that says none, as an empty file does: see `Known.wish`.
    """
    asked = [request for _, request in daemon.spool.requests(node) if sound(request)]
    asked = [request for request in asked if request["verb"] in ("kill", "requeue") and "task" not in request]
    return {(unit_of(r), r.get("attempt") or 0): r["verb"] for r in asked}


def unit_of(request: Request) -> int | str:
    """What the entry is called that a request is about: a job, or a chunk of an array."""
    chunk = request.get("chunk")
    return f"{request['id']}_{chunk}" if chunk else request["id"]


def obey(daemon: "Daemon") -> None:
    """One look at the requests of this node."""
    requests = daemon.spool.requests(daemon.node)
    lend.count(daemon, [request for _, request in requests if sound(request)])
    daemon.carried_out &= {name for name, _ in requests}
    again: set[int | str] = set()
    over: dict[int, set[Key]] = {}
    for name, request in requests:
        verdict = Verdict.DONE
        try:
            if name not in daemon.carried_out and sound(request):
                verdict = Verdict.AGAIN if unit_of(request) in again else handle(daemon, name, request, over)
            if verdict is Verdict.DONE:
                daemon.carried_out.add(name)  # if it cannot be removed, it is not carried out again
                daemon.spool.answered(daemon.node, name)
        except Gone:
            raise
        except (OSError, SpoolqError) as error:
            log.debug("request name=%s error=%s", name, error)
            verdict = Verdict.AGAIN
        if verdict is Verdict.AGAIN and name not in daemon.carried_out:
            again.add(unit_of(request))


def handle(daemon: "Daemon", name: str, request: Request, over: dict[int, set[Key]]) -> Verdict:
    """One request, wherever its job is; `over`: what has ended, of the groups of ids that were looked at."""
    job_id, attempt = unit_of(request), request.get("attempt")
    live = daemon.live.get(job_id)
    if request["verb"] == "lend":  # counted by `lend`; it stays for as long as its sender waits
        return Verdict.STAYS if lend.here(daemon, request) and lend.waits(request) else Verdict.DONE
    if live and attempt in (None, live.at.entry.attempt):
        return carry_out(daemon, live, request)
    mine = [one.live for one in daemon.chunks.values() if one.entry.id == job_id]  # a file without words: of all of it
    if mine := [live for live in mine if attempt in (None, live.at.entry.attempt)]:
        verdicts = [carry_out(daemon, live, request) for live in mine]
        return Verdict.STAYS if Verdict.STAYS in verdicts else Verdict.DONE
    if any(item.at.entry.id == job_id for item in daemon.ended):
        return Verdict.STAYS  # its end is on its way into the spool, and this may say where to
    group = request["id"] // HOMES
    if group not in over:
        over[group] = {(at.entry.unit, at.entry.attempt) for at in daemon.spool.done(group)}
    if any(key[0] == job_id and attempt in (None, key[1]) for key in over[group]):
        return Verdict.DONE
    try:
        at = daemon.spool.find(job_id)
    except NotFound:
        return Verdict.DONE
    if at.top == "done" or attempt not in (None, at.entry.attempt):
        log.info("request dropped name=%s: that attempt is over", name)
        return Verdict.DONE
    return follow(daemon, at, name, request)


def follow(daemon: "Daemon", at: Placed, name: str, request: Request) -> Verdict:
    """The job is not here (any more): it was given back, and perhaps another node has it."""
    verb = request["verb"]
    if at.node == daemon.node:
        return Verdict.AGAIN  # ours, and not looked at yet
    log.info("request job=%s verb=%s follows it to %s", at.entry.unit, verb, at.place)
    if at.node:
        rest = {key: value for key, value in request.items() if key not in ("verb", "id")}
        daemon.spool.request(at.node, verb, at.entry.id, rest, name.partition(".")[0] or "0")
        return Verdict.DONE
    answer = Answer.WON
    if verb == "kill" and "task" in request:
        return follow_task(daemon, at, request["task"])
    if verb == "kill":
        answer = daemon.around.end(daemon, at, "cancelled", "cancelled by its user")
    elif verb == "suspend" and at.top == "queue":
        answer, _ = daemon.spool.hold(at)
    elif verb == "edit" and (changes := changes_of(at.entry, request)):
        answer, _ = daemon.spool.edit(at, **changes)
    return Verdict.DONE if answer is Answer.WON else Verdict.AGAIN


def follow_task(daemon: "Daemon", at: Placed, number: int) -> Verdict:
    """One task of a chunk that waits again is to be killed: the line first, and whoever claims the chunk reads it."""
    entry, job = at.entry, deliver.read_job(daemon.spool, at.entry.id)
    if job is None:
        return Verdict.DONE  # nothing of it can run
    known = array.latest(tasks.of_tasks(tasks.read(daemon.spool.root, entry.id, entry.chunk)))
    if number not in array.due(entry, array.parse(job.array), known, job.retries):
        return Verdict.DONE
    of_task = array.task_entry(entry, number)
    deliver.write_unstarted(daemon.spool, of_task, "cancelled", "cancelled by its user", daemon.node)
    now = daemon.spool.find(entry.unit)  # claimed meanwhile, perhaps before that was written: told there too
    return Verdict.DONE if now.entry.gen == entry.gen else Verdict.AGAIN


def carry_out(daemon: "Daemon", live: Live, request: Request) -> Verdict:
    """One request about a job that runs here."""
    entry, verb = live.at.entry, request["verb"]
    of_array = daemon.chunks.get(entry.unit)
    if of_array and verb in ("kill", "requeue"):
        return stop_chunk(daemon, of_array, request)
    if verb == "follow":  # somebody on another machine reads the outputs, see `sync_followed`
        live.followed_until = host.boottime() + FOLLOWED_S
        return Verdict.DONE
    if verb in ("kill", "requeue"):
        live.requeue = verb == "requeue"
        if not live.asked:
            log.info("request job=%s verb=%s", entry.unit, verb)
            tell(daemon, live, "kill", reason="cancelled", grace_s=daemon.policy.grace_s)
            live.asked = True
        return Verdict.STAYS
    log.info("request job=%s verb=%s", entry.unit, verb)
    match verb:
        case "signal":
            if not of_array or request.get("task") in (None, of_array.current):
                tell(daemon, live, "signal", signal=request.get("signal") or 15)
        case "suspend" | "resume":
            tell(daemon, live, verb)
            if entry.suspended != (verb == "suspend") or entry.aside:  # from now on it is the user's word
                return rename(daemon, live, suspended=verb == "suspend", aside=False)
        case "edit":
            return edit(daemon, live, request)
        case _:
            log.warning("request unknown verb=%r", verb)
    return Verdict.DONE


def tell(daemon: "Daemon", live: Live, op: str, **facts: Any) -> None:
    """Say something to the runner about what runs of a job; of a chunk between two tasks that is nothing."""
    entry, of_array = live.at.entry, daemon.chunks.get(live.at.entry.unit)
    unit = of_array.key[0] if of_array else entry.unit
    if unit:
        daemon.family.send({"op": op, "id": unit, "attempt": entry.attempt, **facts})


def stop_chunk(daemon: "Daemon", of_array: chunk.Chunk, request: Request) -> Verdict:
    """Kill or requeue a chunk of an array, or kill one of its tasks, which may run or be still to come."""
    number, verb, live = request.get("task"), request["verb"], of_array.live
    if number is not None and number != of_array.current:
        if number in of_array.due:
            deliver.write_unstarted(
                daemon.spool,
                array.task_entry(of_array.entry, number),
                "cancelled",
                "cancelled by its user",
                daemon.node,
            )
            of_array.due.remove(number)
        return Verdict.DONE
    if number is None:
        of_array.stop, of_array.why, live.requeue = verb, "cancelled by its user", verb == "requeue"
    if of_array.current is not None and not live.asked:
        log.info("request job=%s verb=%s", of_array.key[0], verb)
        tell(daemon, live, "kill", reason="cancelled", grace_s=daemon.policy.grace_s)
        live.asked = True
    return Verdict.STAYS  # until that has ended, since neither we nor the runner need live to do it


def sync_followed(daemon: "Daemon", now: float) -> None:
    """Sync outputs that somebody follows: on NFS, unsynced ones reach other machines about 30 s late."""
    root = daemon.spool.root
    for live in daemon.live.values():
        if now >= live.followed_until:
            continue
        at, of_array = live.at, daemon.chunks.get(live.at.entry.unit)
        if of_array and (of_array.current is None or live.job is None):
            continue
        if of_array and of_array.current is not None:
            at = at._replace(entry=array.task_entry(at.entry, of_array.current))
        if live.job and live.job.output_mode == "local":
            with contextlib.suppress(OSError):  # all of it is shipped when the job ends
                ship.increment(daemon.state_dir, at)
        elif of_array and live.job:
            home.sync_files(tasks.output_paths(root, at.entry, live.job, daemon.node))
        else:
            home.sync_outputs(root, at.entry.id)


def changes_of(entry: Entry, request: Request) -> dict[str, Any]:
    """What an `edit` changes in the entry's name."""
    changes: dict[str, Any] = {}
    if "limit_s" in request:
        changes["limit_s"] = request["limit_s"]
    if request.get("mem_mb") is not None:
        changes["wants"] = {**entry.wants, MEM: request["mem_mb"] * UNIT}
    return changes


def edit(daemon: "Daemon", live: Live, request: Request) -> Verdict:
    """New limits of a running job: in the runner, which enforces, and in the name, which everybody sees."""
    changes = changes_of(live.at.entry, request)
    limits: dict[str, Any] = {}
    if "limit_s" in changes:
        limit = changes["limit_s"]
        limits["limit_s"] = None if limit is None else limit * elbow.time_factor(live.job, daemon.policy)
    if "wants" in changes:
        limits["mem_mb"] = int(request["mem_mb"] * elbow.mem_factor(live.job, daemon.policy))
    tell(daemon, live, "limits", **limits)
    return rename(daemon, live, **changes) if changes else Verdict.DONE


def rename(daemon: "Daemon", live: Live, **changes: Any) -> Verdict:
    """Show a change in the entry's name."""
    if live.at.entry.chunk:  # between two tasks nothing but this record says that none runs
        daemon.claims.add(fitting(live.at.entry.next(**changes)).name)
    answer, placed = daemon.spool.edit(live.at, **changes)
    if answer is Answer.WON:
        live.at = placed
        return Verdict.DONE
    if answer is Answer.LOST and (newer := deliver.renamed(daemon.spool, live.at)):
        live.at = newer
        return Verdict.AGAIN
    return Verdict.AGAIN if answer is Answer.UNKNOWN else Verdict.DONE
