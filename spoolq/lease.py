"""
Who is alive: may this node start jobs, and what is known of another node?

Judged by counters that the other raises and by the observer's own clock; two machines' clocks are never
compared. Time counts only between own successful reads that follow each other closely, so an outage of
the server, or of the observer, makes nobody look dead.
Invariants: unknown is not dead; without proof nobody is dead, only silent; a node that cannot beat
starts nothing.
"""

from collections.abc import Container, Iterable
from dataclasses import dataclass
from enum import Enum

ABSENT = -1  # the counter of a node whose heartbeat was looked for and is not there
GAP = 2  # intervals that may lie between two reads for the time between them to count
LATE = 3  # intervals without a beat after which a node is no longer called alive
STILL = 3  # intervals during which an old instance's counter must stand still to prove its death
SUCCESSORS = 3  # each node watches so many others, so that the cost is N and not N * N


class Life(Enum):
    """What an observer knows; DEAD only with proof."""

    ALIVE = "alive"
    UNKNOWN = "unknown"
    SILENT = "silent"
    DEAD = "dead"


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One life of a machine: its identity, and the id that changes with every boot; empty = not known."""

    machine: str
    boot: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """
    What one observer has seen of one node; make it with `observe`.

    `read_s` is when the counter was last read (s, own clock), `still_s` for how long it is known to
    have stood still, `moved` whether it was ever seen to change.
    """

    counter: int
    read_s: float
    still_s: float = 0.0
    moved: bool = False


def may_start(now: float, last_beat_began: float | None, fence_s: float) -> bool:
    """
    Whether this node's lease holds: its last good beat began less than `fence_s` ago.

    Args:
        now, last_beat_began: s of one clock of this machine that goes on during suspension
            (CLOCK_BOOTTIME); None or 0 if no beat succeeded yet. The beginning counts, since the
            others may have seen it then.
    """
    return bool(last_beat_began) and last_beat_began is not None and 0 <= now - last_beat_began < fence_s


def observe(watch: Watch | None, *, now: float, counter: int | None, interval_s: float) -> Watch | None:
    """
    What is known after one more look.

    Args:
        now: own clock, s.
        counter: as read; ABSENT if the server answered that there is none; None if the read failed
            or may not be fresh, which teaches nothing.
        interval_s: between beats, as the watched node says.
    """
    if counter is None:
        return watch
    if watch is None:
        return Watch(counter=counter, read_s=now)
    if counter != watch.counter:
        return Watch(counter=counter, read_s=now, moved=True)
    gap = now - watch.read_s
    still_s = watch.still_s + gap if 0 <= gap <= GAP * interval_s else 0.0
    return Watch(counter=counter, read_s=now, still_s=still_s, moved=watch.moved)


def judge(watch: Watch | None, *, now: float, interval_s: float, dead_after_s: float, proof: bool = False) -> Life:
    """
    What is known of a node now.

    Args:
        dead_after_s: of silence; larger than the fence time of the nodes, which `config` checks.
        proof: `proves_death`, or an operator's word.
    """
    if proof:
        return Life.DEAD
    if watch is None or not 0 <= now - watch.read_s <= GAP * interval_s:
        return Life.UNKNOWN
    if watch.still_s >= dead_after_s:
        return Life.SILENT
    return Life.ALIVE if watch.moved and watch.still_s <= LATE * interval_s else Life.UNKNOWN


def proves_death(old: Instance, new: Instance, watch: Watch | None, *, interval_s: float) -> bool:
    """
    Whether a machine seen under a new boot id proves that its old life has ended.

    The old counter must also have stood still for STILL intervals: a cloned disk image shares the
    machine's identity, and a living clone goes on beating.

    Args:
        watch: what was seen of the old instance's heartbeat since the new one is up.
    """
    same_machine = bool(old.machine) and old.machine == new.machine
    other_boot = bool(old.boot) and bool(new.boot) and old.boot != new.boot
    return same_machine and other_boot and watch is not None and watch.still_s >= STILL * interval_s


def successors(node: str, names: Iterable[str], gone: Container[str] = (), count: int = SUCCESSORS) -> list[str]:
    """
    The nodes that this one watches: the next ones on the ring of sorted names.

    Args:
        gone: silent or dead ones, which are watched too but do not count, since they watch nobody: however
            many neighbours die together, each keeps an observer.
    """
    ring = sorted(set(names) - {node})
    later = [name for name in ring if name > node]
    found: list[str] = []
    for name in later + ring[: len(ring) - len(later)]:
        if count <= 0:
            break
        found.append(name)
        count -= name not in gone
    return found
