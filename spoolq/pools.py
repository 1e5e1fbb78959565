"""
Pools: what all nodes share, as the licences of a program, and nobody counts but the directories themselves.

An entry in running/ or reaping/ that wants something of a pool holds it; so a claim takes, and whatever moves
the entry on gives back, with no other file or counter to be left behind. Nodes do not ask each other: a
node *claims first*, then lists all that is held, its own claim with it, and starts the job only if that is
within the pool. Of any jobs that run, the one that was claimed last was listed after all others had been
claimed, and none of them can have been missed: so the pool is never exceeded (`tests/test_pools.py` searches
all interleavings of a small world, with listings as old as they may be). Too many at once give back, but for
those whom the pool has room for in the order of the queue: they look again, so that one of them gets it.
Invariant: without a listing that shows its own claim, nothing is started.
"""

from collections.abc import Collection, Iterable, Mapping
from enum import Enum

from spoolq.entry import Entry
from spoolq.resources import Amounts

Key = tuple[int, str]  # the id of a job, and its chunk


class Verdict(Enum):
    """What becomes of a claim."""

    START = "start"
    WAIT = "look again"
    BACK = "give back"


def key_of(entry: Entry) -> Key:
    """What stays the same however an entry is renamed."""
    return entry.id, entry.chunk


def concerns(wants: Amounts, pools: Amounts) -> bool:
    """Whether a job takes anything of a pool."""
    return bool(pools) and not pools.keys().isdisjoint(wants)


def holders(entries: Iterable[Entry], pools: Amounts) -> dict[Key, Entry]:
    """Who holds something of a pool; of one that is seen twice, since it moved on meanwhile, the later."""
    found: dict[Key, Entry] = {}
    for entry in entries:
        if concerns(entry.wants, pools):
            key = key_of(entry)
            if key not in found or found[key].gen < entry.gen:
                found[key] = entry
    return found


def taken(found: Iterable[Entry], pools: Amounts) -> dict[str, int]:
    """How much of each pool they hold, thousandths."""
    total = dict.fromkeys(pools, 0)
    for entry in found:
        for name in pools.keys() & entry.wants.keys():
            total[name] += entry.wants[name]
    return total


def judge(pools: Amounts, own: Entry, before: Collection[Key], now: Mapping[Key, Entry]) -> Verdict:
    """
    What becomes of a claim.

    Args:
        own: the claimed entry.
        before: who was seen to hold something before the claim was sent, and may long run.
        now: the holders by a listing that began after the claim was won.
    """
    mine = key_of(own)
    seen = now.get(mine)
    if seen is None or (seen.gen, seen.attempt) != (own.gen, own.attempt):
        return Verdict.WAIT  # not the listing that is needed: not mounted, or older than the claim
    mine_first = (own.rank, own.id, own.chunk)
    verdict = Verdict.START
    for name in pools.keys() & own.wants.keys():
        if taken(now.values(), pools)[name] <= pools[name]:
            continue
        ahead = [
            entry
            for key, entry in now.items()
            if key != mine and (key in before or (entry.rank, entry.id, entry.chunk) < mine_first)
        ]
        if taken([own, *ahead], pools)[name] > pools[name]:
            return Verdict.BACK
        verdict = Verdict.WAIT
    return verdict
