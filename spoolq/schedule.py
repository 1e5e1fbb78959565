"""
Decide which waiting jobs may start on one node, and say why the others may not.

Every node runs this on its own view of the queue, with nobody to arbitrate, so the answer must depend
on the arguments alone: no clock, no disk, no random numbers. Order comes from outside (`in_order`,
`fair`), so another policy is another order, not another `admit`.
Invariants: what is started fits into what is free, in every dimension; every job is in exactly one of
start, blocked, rest; whoever is blocked can be told why, in words and figures.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from spoolq.constraint import Labels, mismatch
from spoolq.devices import Stock
from spoolq.entry import HELD, Entry, order
from spoolq.nodelist import matches
from spoolq.reason import Reason
from spoolq.resources import CPUS, MEM, UNIT, Amounts, add, fits, free_of, lacking, show_amount

IDLE_LOAD = 300  # thousandths of a cpu: an idle machine's own bustle, unless `idle_load` in spool.toml says more
POOL_KEPT = "what it wants of a shared pool is kept for a job that comes first"
HOLDERS = 3  # named in a reason


_HELD_TEXT = {
    "HU": "held by its user until `spoolq release`",
    "HA": "held by an operator until an operator releases it",
    "HD": "waits for other jobs to end",
    "HB": "waits for its begin time",
    "HR": "waits before it is tried again",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """
    What a job's entry does not say.

    `nodelist` and `exclude` are patterns (see `matches`), empty for any node and for none.
    `constraint` is about the labels of the node (see `constraint`), or empty.
    `missing` is the working directory that does not exist on this node, or empty.
    `time_factor`: by which it may outlast its time limit, if that is not the same for all; else 0.
    """

    nodelist: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    constraint: str = ""
    missing: str = ""
    time_factor: float = 0.0


ANYWHERE = Conditions()
NO_LABELS: Mapping[str, Labels] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView:
    """
    One node, as its daemon knows it now or as node.json said.

    Args:
        free: what may be lent, see `effective_free`; thousandths, like `capacity` and `held`.
        held: what each running or claimed job holds, by id.
        full: whether the spool or the local disk is.
        note: why it drains or what is full, in words, or empty.
        busy: numbers of the devices that processes outside spoolq use, by resource.
        idle_load: what others may use of the cpus without keeping a job waiting, thousandths.
        labels: what constraints are asked of.
        devices: what is free of each device, where some are told apart.
        pools: names of what all nodes share; `free` is what is left in all.
        usable: what it could lend if none of its jobs ran; None if that is its capacity.
    """

    name: str
    capacity: Amounts
    free: Amounts
    held: Mapping[int | str, Amounts] = field(default_factory=dict)
    full: bool = False
    draining: bool = False
    note: str = ""
    busy: Mapping[str, Sequence[int]] = field(default_factory=dict)
    idle_load: int = IDLE_LOAD
    labels: Labels = field(default_factory=dict)
    devices: Stock | None = None
    pools: frozenset[str] = frozenset()
    usable: Amounts | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """
    A queue split in three, each in queue order: who starts, who does not and why, and the rest.

    `rest` was looked at as thoroughly as `blocked`; only its reasons were not put into words.
    """

    start: tuple[Entry, ...]
    blocked: tuple[tuple[Entry, Reason], ...]
    rest: tuple[Entry, ...] = ()


def in_order(entries: Iterable[Entry]) -> list[Entry]:
    """The one order on all nodes: rank, then id, then the place in an array."""
    return sorted(entries, key=order)


def admit(
    waiting: Sequence[Entry],
    free: Amounts,
    node: NodeView,
    conditions: Callable[[Entry], Conditions | None] = lambda _entry: ANYWHERE,
    reasons: int = 20,
) -> Plan:
    """
    First fit in the order given.

    Args:
        waiting: n entries, best first.
        free: what the node may lend now, thousandths.
        conditions: asked once for each entry that fits, and for those with `more` among the
            explained; None means that they cannot be read, and the job stays.
        reasons: of so many blocked jobs the reason is put into words (some 10 us each).
    """
    left = dict(free)
    start: list[Entry] = []
    stay: list[tuple[Entry, int, Reason | None]] = []  # with the number of those that start before it
    if node.draining or node.full:
        stay, waiting = [(entry, 0, None) for entry in waiting], ()
    room = left.get
    stock = node.devices.copy() if node.devices else None
    for entry in waiting:
        wants = entry.wants
        for name, amount in wants.items():  # `fits`, without a call for each of thousands
            if amount > room(name, 0):
                stay.append((entry, len(start), None))
                if name in node.pools and _could_ever(entry, node, conditions):
                    left[name] = 0  # kept for it: others that want less would keep it waiting for ever
                break
        else:
            reason = _unsuitable(entry, node, conditions(entry))
            if stock and not reason and stock.lend(wants) is None:
                reason = _no_device(wants, node) or Reason("Priority", "its devices go to jobs that come first")
            if reason:
                stay.append((entry, len(start), reason))
                continue
            start.append(entry)
            for name, amount in wants.items():
                left[name] = room(name, 0) - amount
    told: dict[object, Reason] = {}
    blocked = []
    for entry, ahead, found in stay[:reasons]:
        key = (ahead, *entry.wants.items())
        reason = found or (None if entry.more or entry.held else told.get(key))
        if reason is None:
            reason = _why(entry, node, free, start[:ahead], conditions(entry) if entry.more else ANYWHERE)
            if not entry.more and not entry.held:  # the same for all that want the same
                told[key] = reason
        blocked.append((entry, reason))
    return Plan(start=tuple(start), blocked=tuple(blocked), rest=tuple(entry for entry, _, _ in stay[reasons:]))


def _could_ever(entry: Entry, node: NodeView, conditions: Callable[[Entry], Conditions | None]) -> bool:
    return fits(entry.wants, node.capacity) and not _unsuitable(entry, node, conditions(entry))


def _why(entry: Entry, node: NodeView, free: Amounts, before: list[Entry], terms: Conditions | None) -> Reason:
    if reason := explain(entry, node, terms, free):
        return reason
    left = free_of(free, [other.wants for other in before])
    short = lacking(entry.wants, left)
    if not short:
        return Reason("Priority", POOL_KEPT)
    takers = {other.unit: other.wants for other in before}
    parts = [f"{_needs(entry.wants, name)}, {_figure(name, left.get(name, 0))} left" for name in short]
    return Reason("Priority", f"{'; '.join(parts)} after jobs that come first; {_holders(short, takers, 'takes')}")


def explain(
    entry: Entry, node: NodeView, conditions: Conditions | None = ANYWHERE, free: Amounts | None = None
) -> Reason | None:
    """
    Why a job does not start on a node, looked at alone; None if nothing here prevents it.

    Args:
        conditions: None if they cannot be read.
        free: what may be lent, if not `node.free`.
    """
    if entry.held:
        return Reason(HELD[entry.held], _HELD_TEXT[entry.held])
    if node.draining:
        return Reason("NodeDrained", f"{node.name} takes no new jobs" + (f": {node.note}" if node.note else ""))
    if node.full:
        return Reason("SpoolFull", node.note or f"the spool or the local disk of {node.name} has too little room left")
    reason = _unsuitable(entry, node, conditions)
    if reason and reason.word != "CwdMissing":
        return reason
    return _too_big(entry.wants, node, node.free if free is None else free) or _no_device(entry.wants, node) or reason


def _unsuitable(entry: Entry, node: NodeView, conditions: Conditions | None) -> Reason | None:
    """What no amount of free resources would change."""
    if entry.held:
        return Reason(HELD[entry.held], _HELD_TEXT[entry.held])
    if conditions is None:
        return Reason("ReqNodeNotAvail", "its job file, which says where it may run, cannot be read here")
    if conditions is ANYWHERE:
        return None
    if conditions.nodelist and not matches(conditions.nodelist, node.name):
        return Reason("ReqNodeNotAvail", f"asks for {','.join(conditions.nodelist)}, and this is {node.name}")
    if matches(conditions.exclude, node.name):
        return Reason("ReqNodeNotAvail", f"excludes {','.join(conditions.exclude)}, and this is {node.name}")
    if conditions.constraint and (differs := mismatch(conditions.constraint, node.labels)):
        return Reason("BadConstraints", f"asks for {conditions.constraint}, and on {node.name} {differs}")
    if conditions.missing:
        return Reason("CwdMissing", f"its directory {conditions.missing} does not exist on {node.name}")
    return None


def _no_device(wants: Amounts, node: NodeView) -> Reason | None:
    """Enough in sum, and yet not to be lent: a part of a job's share is never of two devices."""
    if not node.devices or not (text := node.devices.why(wants)):
        return None
    names = [name for name in node.devices.free if name in wants]
    return Reason("Resources", f"{text}; {_holders(names, node.held, 'holds')}")


def outside(wants: Amounts, usable: Amounts | None) -> list[str]:
    """
    What would be short even if no job ran there, since others use it.

    Nobody knows when these let go of it, so no place is kept for a job that waits for them: the node
    would stand idle for as long as they like.

    Args:
        usable: as in `NodeView`.
    """
    return [] if usable is None else lacking(wants, usable)


def _unkept(wants: Amounts, node: NodeView) -> list[str]:
    if not (short := outside(wants, node.usable)):
        return []
    most = [_of(name, (node.usable or {}).get(name, 0), node.capacity) + f" {name}" for name in short]
    return [f"no place is kept for it while others leave {node.name} no more than {', '.join(most)}"]


def _too_big(wants: Amounts, node: NodeView, free: Amounts) -> Reason | None:
    if short := lacking(wants, node.capacity):
        parts = [f"{_needs(wants, name)}, {_figure(name, node.capacity.get(name, 0))} in all" for name in short]
        return Reason("BadConstraints", f"{'; '.join(parts)}: {node.name} can never run it")
    if fits(wants, free):
        return None
    declared = free_of(node.capacity, node.held.values())
    if short := lacking(wants, declared):
        # of two limits the tighter is shown, so that the figure is the one to wait for
        left = {name: min(declared.get(name, 0), free.get(name, 0)) for name in short}
        parts = [f"{_needs(wants, name)}, {_of(name, left[name], node.capacity)} free" for name in short]
        shared = [f"all nodes share {' and '.join(names)}"] if (names := sorted(node.pools & {*short})) else []
        parts += [*shared, _holders(short, node.held, "holds"), *_unkept(wants, node)]
        return Reason("Resources", "; ".join(parts))
    short = lacking(wants, free)
    parts = [f"{_needs(wants, name)}, {_of(name, free.get(name, 0), node.capacity)} free as measured" for name in short]
    if node.devices and all(name in node.devices.busy for name in short):
        busy = [f"{name} {','.join(node.devices.busy[name])}" for name in short]
        parts += [f"{' and '.join(busy)} used outside spoolq", *_unkept(wants, node)]
        return Reason("DeviceBusyOutside", "; ".join(parts))
    parts += [f"{_figure(name, declared.get(name, 0))} not held by jobs" for name in short]
    if used := [f"{name} {number}" for name in short for number in sorted(node.busy.get(name, ()))]:
        parts += [f"{', '.join(used)} used outside spoolq", *_unkept(wants, node)]
        return Reason("DeviceBusyOutside", "; ".join(parts))
    remedy = ""
    if CPUS in short:  # what an idle machine uses of itself must not keep a job waiting for ever
        enough = math.ceil((node.idle_load + wants[CPUS] - free.get(CPUS, 0)) / 100) / 10
        remedy = f" (if that is usual there, idle_load = {enough:g} in spool.toml lets it start)"
    parts += [f"the rest is used outside spoolq{remedy}", *_unkept(wants, node)]
    return Reason("MeasuredLoad", "; ".join(parts))


def _figure(name: str, amount: int) -> str:
    # memory in whole MB as it was asked for: 64000M, where 62.5G would have to be computed back
    if name == MEM:
        return f"{amount // UNIT}M {name}"
    return "1 cpu" if name == CPUS and amount == UNIT else f"{show_amount(amount)} {name}"


def _needs(wants: Amounts, name: str) -> str:
    return f"needs {_figure(name, wants[name])}"


def _of(name: str, amount: int, capacity: Amounts) -> str:
    return " of ".join(_figure(name, part).partition(" ")[0] for part in (amount, capacity.get(name, 0)))


def _holders(names: Sequence[str], held: Mapping[int | str, Amounts], verb: str) -> str:
    """Who has most of what is short: `job 412 holds 32000M mem, 2 more`."""
    most = [([-has.get(name, 0) for name in names], job_id) for job_id, has in held.items()]
    found = sorted((item for item in most if any(item[0])), key=lambda item: (item[0], str(item[1]).zfill(12)))
    words = []
    for minus, job_id in found[:HOLDERS]:
        has = " and ".join(_figure(name, -less) for name, less in zip(names, minus, strict=True) if less)
        words.append(f"job {job_id} {verb} {has}")
    more = [f"{len(found) - HOLDERS} more"] if len(found) > HOLDERS else []
    return ", ".join(words + more) or "no job holds any"


def effective_free(
    capacity: Amounts,
    allocations: Iterable[Amounts],
    measured: Amounts | None,
    unused_reservation: int = 0,
    idle_load: int = IDLE_LOAD,
) -> dict[str, int]:
    """
    What a node may lend: min(capacity - declared, what the machine really has), thousandths.

    Args:
        allocations: what each running or claimed job declared.
        measured: `cpus` that processes outside spoolq leave (jobs of spoolq not counted as use) and
            `mem` available now, each optional; and what others leave of devices that they use.
        unused_reservation: memory that running jobs declared and do not use yet, thousandths of MB:
            it is still free as measured, and spoken for.
        idle_load: what others may use of the cpus without counting, thousandths.
    """
    declared = add(*allocations)
    free = free_of(capacity, (declared,))
    for name, amount in (measured or {}).items():
        if name in free:
            spoken_for = unused_reservation if name == MEM else declared.get(name, 0)
            tolerated = idle_load if name == CPUS else 0
            free[name] = max(0, min(free[name], amount + tolerated - spoken_for))
    return free


def could_take(
    wants: Amounts,
    nodes: Mapping[str, Amounts],
    conditions: Conditions = ANYWHERE,
    labels: Mapping[str, Labels] = NO_LABELS,
) -> list[str]:
    """
    The names of the nodes, given their capacities, that could run it when empty; sorted.

    Args:
        labels: by node; of one that is not there nothing is known, and a constraint does not count.
    """
    able = (name for name in nodes if _allowed(name, conditions) and fits(wants, nodes[name]))
    return sorted(name for name in able if not _differs(name, conditions, labels))


def _differs(name: str, conditions: Conditions, labels: Mapping[str, Labels]) -> str:
    return mismatch(conditions.constraint, labels[name]) if conditions.constraint and name in labels else ""


def _allowed(name: str, conditions: Conditions) -> bool:
    return (not conditions.nodelist or matches(conditions.nodelist, name)) and not matches(conditions.exclude, name)


def impossible(
    wants: Amounts,
    nodes: Mapping[str, Amounts],
    conditions: Conditions = ANYWHERE,
    labels: Mapping[str, Labels] = NO_LABELS,
) -> str | None:
    """
    Why none of the known nodes could ever run it, even empty; None if one could or none is known.

    Args:
        nodes: name -> capacity, thousandths.
        labels: as for `could_take`.
    """
    if not nodes or could_take(wants, nodes, conditions, labels):
        return None
    allowed = {name: capacity for name, capacity in nodes.items() if _allowed(name, conditions)}
    if not allowed:
        asked = ",".join(conditions.nodelist) or "any node"
        but = f" except {','.join(conditions.exclude)}" if conditions.exclude else ""
        return f"asks for {asked}{but}, and no known node is that (known: {_some(sorted(nodes))})"
    differ = {name: differs for name in sorted(allowed) if (differs := _differs(name, conditions, labels))}
    if len(differ) == len(allowed):
        parts = [f"on {name} {differs}" for name, differs in differ.items()]
        return f"asks for {conditions.constraint}, and no known node is so: {_some(parts)}"
    allowed = {name: capacity for name, capacity in allowed.items() if name not in differ}
    best = {name: max(capacity.get(name, 0) for capacity in allowed.values()) for name in wants}
    if short := lacking(wants, best):
        parts = [f"{_needs(wants, name)}, and no node has more than {_figure(name, best[name])}" for name in short]
        return "; ".join(parts)
    parts = [f"{name} lacks {', '.join(lacking(wants, allowed[name]))}" for name in sorted(allowed)]
    return f"no node has all of it at once: {_some(parts)}"


def _some(words: Sequence[str], most: int = 5) -> str:
    return ", ".join(words[:most]) + (f", {len(words) - most} more" if len(words) > most else "")
