"""
What a command can know about the nodes of a spool: their own words, their marks, and whether they live.

A node says what it is in node.json; a person marks it (drain); whether it lives is proved for a node
of this machine (process and boot id), and otherwise only seen: the age of its heartbeat by the file
server's clock, which stamps the heartbeat and a private file of ours alike.
Invariant: for people only. No machine's clock is compared with another's, and nothing here ever
decides about a job: that is `lease`, on the observer's own clock.
"""

import contextlib
import os
import time
from dataclasses import dataclass, field
from typing import Any

from spoolq.resources import UNIT, Amounts
from spoolq.schedule import IDLE_LOAD
from spoolq.spool import Spool

SILENT_BEATS = 4  # missed heartbeats after which a node is called silent


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """
    One node as seen now.

    `alive` is True or False where it is proved, None where it can only be guessed from `beat_age_s`
    (by the server's clock; None if unknown). `declared`: an operator says that it is off for certain.
    `state`: up, draining, drained, full, stopped, dead, silent, new.
    """

    name: str
    state: str
    alive: bool | None = None
    beat_age_s: float | None = None
    drain: str | None = None
    declared: bool = False
    facts: dict[str, Any] = field(default_factory=dict)

    def amounts(self, key: str) -> Amounts:
        """`capacity`, `allocated` or `free`, thousandths."""
        found = self.facts.get(key)
        return {k: v for k, v in found.items() if isinstance(v, int)} if isinstance(found, dict) else {}

    @property
    def busy(self) -> dict[str, list[int]]:
        """Numbers of the devices that others use, by resource."""
        said = self.facts.get("busy")
        pairs = said.items() if isinstance(said, dict) else ()
        return {name: [n for n in found if type(n) is int] for name, found in pairs if isinstance(found, list)}

    @property
    def idle_load(self) -> int:
        """What others may use of the cpus without keeping a job waiting, thousandths."""
        measured = self.facts.get("measured")
        said = measured.get("idle_load") if isinstance(measured, dict) else None
        return round(said * UNIT) if isinstance(said, int | float) and 0 <= said < 1e6 else IDLE_LOAD


def look(spool: Spool) -> list[Seen]:
    """All nodes ever seen, by name."""
    names = spool.nodes()
    now = server_time(spool) if names else None
    return [look_at(spool, name, now) for name in names]


def look_at(spool: Spool, name: str, now: float | None) -> Seen:
    """
    One node.

    Args:
        now: s, the file server's clock (see `server_time`), or None.
    """
    facts, marks = spool.read_node(name), spool.node_marks(name)
    stamp = beat_time(spool, name)
    age = max(0.0, now - stamp) if now is not None and stamp is not None else None
    alive = alive_here(facts)
    state = _state(facts, alive=alive, age=age)
    if "drain" in marks and state in ("up", "full", "draining"):
        # the mark and the entries count at once; what the node says of both is as old as its last beat
        state = "draining" if spool.entries(f"running/{name}") else "drained"
    declared = bool(marks.get("dead")) and marks["dead"] == facts.get("instance") and not alive
    state = "dead" if declared else state
    return Seen(
        name=name,
        state=state,
        alive=alive,
        beat_age_s=age,
        drain=marks.get("drain"),
        declared=declared,
        facts=facts,
    )


def _state(facts: dict[str, Any], *, alive: bool | None, age: float | None) -> str:
    said = str(facts.get("state", ""))
    if not facts:
        return "new"
    if said == "stopped" or alive is False:
        return "stopped" if said == "stopped" else "dead"
    if alive is None and age is not None and age > SILENT_BEATS * _number(facts.get("beat_s"), 20.0):
        return "silent"
    return said if said in ("up", "full") else "up"


def _number(value: Any, default: float) -> float:
    return float(value) if isinstance(value, int | float) else default


def alive_here(facts: dict[str, Any]) -> bool | None:
    """
    Whether the daemon that wrote a node.json lives, if that was on this machine; else None.

    The host's name must be the same too: containers of one image share a machine id and a boot.
    """
    from spoolq import host

    mine = host.machine_id()
    if not mine or facts.get("machine") != mine or facts.get("host") != host.host_name():
        return None
    if facts.get("boot") != host.boot_id():
        return False
    pid = facts.get("pid")
    return isinstance(pid, int) and host.process_identity(pid) == facts.get("starttime")


def beat_time(spool: Spool, node: str) -> float | None:
    """When a heartbeat was written, by the server's clock; opened first, since a stat alone may be a minute old."""
    try:
        fd = os.open(f"{spool.root}/nodes/{node}/heartbeat", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.fstat(fd).st_mtime
    finally:
        os.close(fd)


def server_time(spool: Spool) -> float | None:
    """The file server's clock (s since the epoch), from the time stamp of a new private file; None if read-only."""
    path = f"{spool.root}/nodes/.clock.{os.getpid()}.{time.monotonic_ns()}"
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError:
        return None
    try:
        return os.fstat(fd).st_mtime
    finally:
        os.close(fd)
        with contextlib.suppress(OSError):
            os.unlink(path)


def waits_note(seen: Seen) -> str:
    """Why a request to a node will have to wait, or an empty text."""
    match seen.state:
        case "stopped":
            return f"node {seen.name} is stopped: the request waits until `spoolq node` runs there again"
        case "dead":
            return f"the daemon of node {seen.name} is not running: the request waits until it is started again"
        case "silent":
            return f"node {seen.name} has been silent for {int(seen.beat_age_s or 0)} s: the request waits for it"
        case _:
            return ""
