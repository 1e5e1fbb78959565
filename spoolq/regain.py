"""
What a daemon makes of the chunks of arrays that it finds on its node: after a restart, a new runner, a reboot.

The runner knows what of a chunk runs and what ended; all that ended is recorded before the chunk goes anywhere. What
runs goes on, and after it the rest is given back and claimed anew: a daemon starts no task of a chunk that it did not
claim itself, just as it starts no job that it finds.
Invariant: a task that may have run and whose end nobody knows is run again only by the rule of its user.
"""

import logging
from typing import TYPE_CHECKING, Any

from spoolq import array, deliver, devices, home, rerun, ship, tasks
from spoolq import chunk as chunks
from spoolq.deliver import Finished
from spoolq.entry import Entry
from spoolq.errors import SpoolqError
from spoolq.fsops import Answer
from spoolq.live import Live
from spoolq.rerun import Key, Known
from spoolq.spool import Placed
from spoolq.state import State

if TYPE_CHECKING:
    from spoolq.daemon import Daemon

log = logging.getLogger("spoolq")


def keys_of(known: Known, entry: Entry) -> dict[int, Key]:
    """The tasks of a chunk's attempt that the runner knows, by number."""
    found = {}
    for unit, attempt in known.jobs:
        number = number_of(unit, entry)
        if number is not None and attempt == entry.attempt:
            found[number] = (unit, attempt)
    return found


def number_of(unit: int | str, entry: Entry) -> int | None:
    """The task that the runner calls so, if it is one of a chunk."""
    if not isinstance(unit, str):
        return None
    job_id, _, number = unit.partition("_")
    mine = job_id == str(entry.id) and home.is_number(number) and array.holds(entry.chunk, int(number))
    return int(number) if mine else None


def compare(daemon: "Daemon", at: Placed, known: Known) -> None:
    """A chunk in running/<me>, and what the runner knows of its tasks: adopt it, record ends, or give it back."""
    entry, keys = at.entry, keys_of(known, at.entry)
    chunk = daemon.chunks.get(entry.unit)
    if chunk is not None and chunk.entry.attempt != entry.attempt:
        chunks.drop(daemon, chunk)
        chunk = None
    states = {known.state(key) for key in keys.values()}
    if chunk is None and not states & {"running", "ended"} and (states or entry.name not in daemon.claims):
        answer, taken = daemon.spool.reap(at, daemon.node)
        if answer is Answer.WON and rerun.decide(daemon, taken, known) is not Answer.UNKNOWN:
            for key in keys.values():
                rerun.forget(daemon, key)
        return
    if chunk is None:
        live = daemon.live[entry.unit] = Live(at, deliver.read_job(daemon.spool, entry.id))
        chunk = daemon.chunks[entry.unit] = chunks.Chunk(live, lease=daemon.presence.began, stale=True)
        chunk.doubt = "running" not in states and entry.name not in daemon.claims
        log.info("adopted job=%s attempt=%d tasks=%s", entry.unit, entry.attempt, array.ranges(keys) or "-")
    chunk.live.at, chunk.live.asked = at, False
    if chunk.current is not None and chunks.run_key(entry, chunk.current) not in known.jobs:
        chunks.unstarted(daemon, chunk)
    waiting = {array.bounds(item.at.entry.chunk)[0] for other, item in daemon.task_ends if other is chunk}
    for number, key in sorted(keys.items()):
        if known.state(key) == "ended" and number not in waiting:
            line = chunk.known.get(number, {})
            if line.get("attempt") == entry.attempt and line.get("state") != State.PENDING.name:
                rerun.forget(daemon, key)
                continue
            if chunk.current not in (None, number):
                continue
            chunk.current = number
            chunk.live.outputs = chunk.live.outputs or _outputs(daemon, chunk, number)
            chunk.live.scratch = chunk.live.scratch or known.jobs[key].get("scratch") or ""
            chunks.take_end(daemon, *key, known.jobs[key]["ended"])
        elif known.state(key) == "doubtful":
            if chunk.current == number:
                chunks.unstarted(daemon, chunk)  # or it would be waited for for ever (simulation: seed 700056)
            chunk.doubt = chunk.stale = True
    for number, key in keys.items():
        if known.state(key) == "running" and chunk.current is None:
            _adopt(daemon, chunk, number, known.jobs[key])


def _adopt(daemon: "Daemon", chunk: chunks.Chunk, number: int, job: dict[str, Any]) -> None:
    chunk.current, live = number, chunk.live
    live.devices = devices.sound(job["devices"]) if job.get("devices") else live.devices
    live.scratch = job.get("scratch") or ""
    key = chunks.run_key(chunk.entry, number)
    live.outputs = _outputs(daemon, chunk, number)
    if job.get("stage") == {True: "running", False: "paused"}[chunk.entry.suspended]:
        verb = "suspend" if chunk.entry.suspended else "resume"
        daemon.family.send({"op": verb, "id": key[0], "attempt": key[1]})


def _outputs(daemon: "Daemon", chunk: chunks.Chunk, number: int) -> tuple[int, ...]:
    key = chunks.run_key(chunk.entry, number)
    if ship.kept(daemon.state_dir, key):
        return ship.reopen(daemon.state_dir, key)
    return home.reopen_outputs(daemon.spool.root, array.task_entry(chunk.entry, number))


def complete(daemon: "Daemon", key: Key, known: Known) -> None:
    """
    A task whose chunk is not here any more: what it came to is kept; whether it counts is read off all lines.

    Of one of which nobody knows the end, since it was fenced or its family was killed, nothing: who took its chunk over
    decided by the rule of its user (simulation: with the rule yes it ended as NODE_FAIL before its next attempt ran).
    """
    if known.state(key) == "running":
        return
    job_id, _, number = str(key[0]).partition("_")
    if known.state(key) == "ended" and known.jobs[key]["ended"].get("reason") != "lost":
        try:
            job = deliver.read_job(daemon.spool, int(job_id))
            entry = Entry(rank=0, id=int(job_id), attempt=key[1], gen=known.jobs[key]["gen"], chunk=f"a{number}")
            entry = entry._replace(wants=job.wants if job else {})
            item = Finished(Placed("", entry), known.jobs[key]["ended"], job)
            deliver.prepare(item, daemon.node)
            tasks.record(daemon.spool.root, entry, daemon.node, [item.result])
        except (OSError, SpoolqError) as error:
            if rerun.is_away(daemon) or not isinstance(error, FileNotFoundError):
                log.warning("not completed job=%s attempt=%d error=%s", *key, error)
                daemon.incomplete = True
                return
    rerun.forget(daemon, key)
