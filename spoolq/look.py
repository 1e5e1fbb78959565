"""
The commands that look: stat, nodes, hist; and the doors to `show`, `explain` (why) and `past` (hist).

Tables for people and JSON for programs come from the same rows. `stat` reads directory listings and
the few files of the nodes, and opens no job; so it costs the same seconds whether a hundred or a
hundred thousand jobs wait, but for their names.
Invariant: changes nothing.
"""

import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from spoolq import arguments, array, outlook, report, roster, selector
from spoolq.arguments import Command, Flag
from spoolq.entry import order
from spoolq.report import JobRow, NodeRow
from spoolq.resources import UNIT, Amounts
from spoolq.roster import Seen
from spoolq.selector import Filter
from spoolq.spool import Placed, Spool
from spoolq.state import ENDED, State

NEWEST = 50  # finished jobs that are shown if nothing else is said
ON_TERMINAL = 200  # waiting jobs that a terminal is shown; everything goes into a pipe
MOST_RANGES = 4  # of an array in one line
MOST_SINCE = 500  # running jobs whose time is looked up

STAT = Command(
    "stat",
    "[JOB..]",
    "Jobs that wait and run: what runs where, what waits and why.",
    (
        Flag("all", "a", "", f"finished jobs too, the newest {NEWEST}"),
        Flag("newest", "n", "N", "at most so many waiting, and so many finished jobs; or all"),
        *selector.FILTER_FLAGS,
    ),
    "job",
    f"{selector.HELP_WORDS}\nStates: PD pending, H held, R running, S suspended, CG completing; CD completed,\n"
    "F failed, CA cancelled, TO timeout, OOM out of memory, NF node failed.\n"
    "Plain files: ls SPOOL/queue/* SPOOL/held/* SPOOL/running/*",
)
NODES = Command(
    "nodes",
    "[NODE..]",
    "Nodes, their state, and what is free on them.",
    (),
    "node",
    "up, draining, drained, full; stopped: by a person; dead: its program is gone; silent: no heartbeat.\n"
    "Plain files: cat SPOOL/nodes/*/node.json; touch SPOOL/nodes/NODE/drain",
)
COMMANDS = {c.name: c for c in (STAT, NODES)}


# --- stat


def stat(argv: list[str]) -> int:
    """`stat [JOB..]`."""
    given = arguments.parse(STAT, argv)
    if given.has("help"):
        return arguments.show_help(STAT)
    filters = selector.filter_of(given)
    spool = arguments.open_spool(given)
    live = spool.live()
    nodes = roster.look(spool)
    view = outlook.Outlook(spool, nodes, live)
    code = 0
    if given.words:
        chosen = selector.select(spool, given.words, _anybody(filters))
        for message in chosen.missing:
            arguments.complain(message)
        jobs, code = chosen.jobs, 1 if chosen.missing else 0
        if chosen.tasks:
            from spoolq import overview

            return overview.stat(spool, chosen, as_json="json" in given.values) or code
    else:
        jobs = [placed for placed in live if filters.passes(placed)] if filters else live
        if given.has("all") or filters.states & ENDED:
            jobs = [*jobs, *newest_done(spool, filters, given.count("newest", NEWEST))]
    jobs = sorted(jobs, key=_order)
    since = running_since(spool, jobs)
    if given.has("json"):
        arguments.print_json("jobs", [as_json(placed, view, since) for placed in jobs])
        return code
    limit = given.count("newest", ON_TERMINAL if sys.stdout.isatty() else sys.maxsize)
    show_jobs(jobs, view, since, limit)
    arguments.talk(summary(live, nodes))
    return code


def _anybody(filters: Filter) -> Filter:
    # to look at somebody else's job needs no --user
    from dataclasses import replace

    return filters if filters.users else replace(filters, everybody=True)


def _order(placed: Placed) -> tuple[int, int, int]:
    place = {"running": 0, "reaping": 1, "queue": 2, "held": 3, "done": 4}[placed.top]
    return place, placed.entry.rank if 1 < place < 4 else 0, placed.entry.id


def newest_done(spool: Spool, filters: Filter, most: int) -> list[Placed]:
    """The newest finished jobs that pass, by id."""
    found: list[Placed] = []
    for group in spool.done_groups():
        if len(found) >= most:
            break
        passing = [placed for placed in spool.done(group) if filters.passes(placed)]
        found += sorted(passing, key=lambda placed: placed.entry.id, reverse=True)
    return found[:most]


def running_since(spool: Spool, jobs: Sequence[Placed]) -> dict[int | str, float]:
    """
    Job -> for how many seconds it has been running.

    Since the last rename of its entry, by the file server's clock: the claim, or a later suspension or
    change of its limits.
    """
    running = [placed for placed in jobs if placed.top == "running"][:MOST_SINCE]
    now = roster.server_time(spool) if running else None
    if now is None:
        return {}
    since: dict[int | str, float] = {}
    for placed in running:
        try:
            changed = os.lstat(f"{spool.root}/{placed.path}").st_ctime
        except OSError:
            continue  # moved on meanwhile
        since[placed.entry.unit] = max(0.0, now - changed)
    return since


def row_of(placed: Placed, view: outlook.Outlook, since: dict[int | str, float], part: str = "") -> JobRow:
    """One job, or the part of an array that it stands for; only of a waiting one it is asked why."""
    waits = placed.top in ("queue", "held")
    return JobRow(
        entry=placed.entry,
        state=placed.state,
        node=placed.node,
        reason=view.reason(placed) if waits else None,
        elapsed_s=since.get(placed.entry.unit),
        part=part,
    )


def as_json(placed: Placed, view: outlook.Outlook, since: dict[int | str, float]) -> dict[str, Any]:
    """One job for programs."""
    return {**report.job_json(row_of(placed, view, since)), "place": placed.path}


def show_jobs(jobs: Sequence[Placed], view: outlook.Outlook, since: dict[int | str, float], limit: int) -> None:
    """The table; of the waiting jobs those that start first."""
    rest = alike(placed for placed in jobs if placed.top not in ("queue", "held"))
    waiting = alike(placed for placed in jobs if placed.top in ("queue", "held"))
    if len(waiting) > limit:
        waiting.sort(key=lambda some: (some[0].top == "held", *order(some[0].entry)))
    rows = [row_of(some[0], view, since, part_of(some)) for some in (*rest, *waiting[:limit])]
    if rows:
        width, colour = arguments.style()
        sys.stdout.write("\n".join(report.job_lines(rows, width, colour=colour)) + "\n")
    if len(waiting) > limit:
        arguments.talk(f"... and {len(waiting) - limit} more that wait (-n all shows them)")


def alike(jobs: Iterable[Placed]) -> list[list[Placed]]:
    """Jobs, and together those chunks of an array of which there is nothing different to say."""
    found: dict[object, list[Placed]] = {}
    for placed in jobs:
        entry = placed.entry
        key = (entry.id, placed.place, placed.state, entry.held, *entry.wants.items(), entry.limit_s)
        if entry.chunk:  # those that came back from a node lie in another segment
            key = (entry.id, placed.top, placed.node, *key[2:])
        found.setdefault(key if entry.chunk else entry.id, []).append(placed)
    return list(found.values())


def part_of(some: Sequence[Placed]) -> str:
    """`1-20,25`: which tasks some chunks of an array are; empty for one entry."""
    if len(some) == 1:
        return ""
    found: list[list[int]] = []
    for low, high in sorted(array.bounds(placed.entry.chunk) for placed in some):
        if found and low == found[-1][1] + 1:
            found[-1][1] = high
        else:
            found.append([low, high])
    words = [f"{low}-{high}" if high > low else str(low) for low, high in found[:MOST_RANGES]]
    return ",".join(words) + (",..." if len(found) > MOST_RANGES else "")


def summary(live: Sequence[Placed], nodes: Sequence[Seen]) -> str:
    """`2 running, 14 waiting; 3 nodes: 2 up, 1 silent`."""
    counts: dict[State, int] = {}
    for placed in live:
        counts[placed.state] = counts.get(placed.state, 0) + 1
    words = [f"{number} {state.name.lower()}" for state, number in counts.items()]
    states: dict[str, int] = {}
    for node in nodes:
        states[node.state] = states.get(node.state, 0) + 1
    known = ", ".join(f"{number} {state}" for state, number in sorted(states.items(), key=lambda pair: -pair[1]))
    return f"{', '.join(words) or 'nothing waits or runs'}; nodes: {known or 'none yet (spoolq node starts one)'}"


# --- nodes


def nodes(argv: list[str]) -> int:
    """`nodes [NODE..]`."""
    from fnmatch import fnmatchcase

    given = arguments.parse(NODES, argv)
    if given.has("help"):
        return arguments.show_help(NODES)
    spool = arguments.open_spool(given)
    found = roster.look(spool)
    code = 0
    if given.words:
        for word in given.words:
            if not any(fnmatchcase(node.name, word) for node in found):
                arguments.complain(f"{word}: no such node in {spool.root}")
                code = 1
        found = [node for node in found if any(fnmatchcase(node.name, word) for word in given.words)]
    running = {node.name: spool.on_node(node.name) for node in found}
    shared = outlook.pools_of(spool, found)
    if given.has("json"):
        arguments.print_json("nodes", [_node_json(node, running[node.name], shared) for node in found])
        return code
    if found:
        width, colour = arguments.style()
        rows = [_node_row(node, running[node.name]) for node in found]
        sys.stdout.write("\n".join(report.node_lines(rows, width, colour=colour)) + "\n")
        for node in found:
            if trouble := node.facts.get("trouble"):
                sys.stdout.write(f"{node.name}: {report.show(str(trouble))}; what it read before still holds there\n")
        if shared:
            sys.stdout.write(f"pools: {report.others(*shared)}\n")
    elif not given.words:
        arguments.talk("no node has ever served this spool; start one with `spoolq node`")
    return code


def _node_json(node: Seen, running: Sequence[Placed], shared: tuple[Amounts, Amounts] | None) -> dict[str, Any]:
    view, (taken, size) = outlook.view_of(node, running), shared or ({}, {})
    age = node.beat_age_s
    return {
        "node": node.name,
        "state": node.state,
        "alive": node.alive,
        "beat_age_s": None if age is None else round(age, 1),
        "drain": node.drain,
        "jobs": [placed.entry.id for placed in running],
        "capacity": {name: amount / UNIT for name, amount in view.capacity.items() if name not in view.pools},
        "free": {name: amount / UNIT for name, amount in view.free.items() if name not in view.pools},
        "pools": {name: {"taken": taken[name] / UNIT, "size": size[name] / UNIT} for name in sorted(view.pools)},
        "load": node.facts.get("load"),
        "host": node.facts.get("host"),
        "version": node.facts.get("version"),
        "labels": node.facts.get("labels", {}),
        "measured": node.facts.get("measured"),
        "trouble": node.facts.get("trouble"),
    }


def _node_row(node: Seen, running: Sequence[Placed]) -> NodeRow:
    load = node.facts.get("load")
    first = load[0] if isinstance(load, list) and load else None
    return NodeRow(
        view=outlook.view_of(node, running),
        state=node.state,
        load=float(first) if isinstance(first, int | float) else None,
        beat_age_s=node.beat_age_s,
    )


# --- doors


def show(argv: list[str]) -> int:
    """`show JOB..`: see `show`."""
    from spoolq import show as room

    return room.show(argv)


def why(argv: list[str]) -> int:
    """`why JOB..`: see `explain`."""
    from spoolq import explain

    return explain.why(argv)


def hist(argv: list[str]) -> int:
    """`hist`: see `past`."""
    from spoolq import past

    return past.hist(argv)
