"""
The command `why`: in words, why a job does not start, or why it ended as it did.

Answers from the spool alone, so it works when no node is alive and for jobs long ended: the entry's
place and name, what the nodes said of themselves and of the job (why/<node>), the result, and the
same questions to `schedule` that the nodes ask.
Invariant: changes nothing; text of users is never printed unescaped.
"""

from typing import Any

from spoolq import deliver, depend, look, outlook, parents, resources, selector, show
from spoolq.arguments import Command
from spoolq.outlook import Scene
from spoolq.reason import parse_reason
from spoolq.resources import CPUS, MEM
from spoolq.schedule import ANYWHERE
from spoolq.spool import Placed
from spoolq.state import State

WHY = Command(
    "why",
    "JOB..",
    "Why a job does not start, or why it ended as it did, in words; also when no node is alive.",
    (),
    "job",
    f"{selector.HELP_WORDS}\nPlain files: cat SPOOL/jobs/0/42/why/*",
)
COMMANDS = {"why": WHY}
_RERUN_TEXT = {
    "N": "it will not be run again (rerun never); it ends when the node is back, or by an operator's node-dead",
    "C": "it is run again only after proof: the node's reboot, or an operator's node-dead (rerun certain)",
    "Y": "it is run again after the node has been silent for long enough (rerun yes)",
}


def why(argv: list[str]) -> int:
    """`why JOB..`."""

    def as_json(scene: Scene, placed: Placed) -> dict[str, Any]:
        lines = why_lines(scene, placed)
        reason = scene.outlook.reason(placed) if placed.top in ("queue", "held") else None
        return {
            "id": placed.entry.id,
            "state": placed.state.name,
            "reason": reason.word if reason else None,
            "reason_text": reason.text if reason else None,
            "lines": lines,
            "said": outlook.quiet_whys(scene.spool, placed.entry.id),
        }

    return show.each(WHY, argv, "why", as_json, why_lines)


# --- why


def why_lines(scene: Scene, placed: Placed) -> list[str]:
    """The explanation: the answer first, what it rests on after it."""
    match placed.top:
        case "done":
            return _why_ended(scene, placed)
        case "running":
            return _why_running(scene, placed)
        case "reaping":
            text = f"node {placed.node} took it over from a node that is gone and decides what becomes of it."
            return [f"job {placed.entry.id} is being taken over: {text}"]
        case _:
            return _why_waiting(scene, placed)


def _why_ended(scene: Scene, placed: Placed) -> list[str]:
    entry = placed.entry
    result = deliver.read_ending(scene.spool, entry.id) or {}
    where = f" on {result['node']}" if result.get("node") else ""
    when = f" at {result['ended']}" if result.get("ended") else ""
    lines = [f"job {entry.unit} ended{where}{when}: {placed.state.name}, {ended_because(placed, result)}."]
    if result.get("reason"):
        lines.append(f"  reason: {result['reason']}")
    if not result:
        lines.append("  Its result is gone; only its name still says how it ended.")
    if placed.state in (State.FAILED, State.TIMEOUT, State.OUT_OF_MEMORY) and result.get("node"):
        lines.append(f"  What it wrote: spoolq out {entry.unit} (-e: its stderr). Again: spoolq requeue {entry.unit}")
    return lines


def ended_because(placed: Placed, result: dict[str, Any]) -> str:
    """How it ended, in words."""
    entry, ending = placed.entry, placed.entry.ending or ""
    limit = resources.show_seconds(entry.limit_s)
    memory = resources.show_mb(entry.wants.get(MEM, 0))
    if ending.startswith("exit"):
        code = int(ending[4:])
        if code == 0:
            return "its command exited with 0"
        hint = {126: " (cannot be executed)", 127: " (not found)"}.get(code, "")
        if code > 128:
            hint = (
                f" (128 + {code - 128}: a signal{show.signal_name(code - 128)} as a shell reports it, or its own code)"
            )
        return f"its command exited with {code}{hint}"
    if ending.startswith("signal"):
        number = int(ending[6:])
        return f"its command was killed by signal {number}{show.signal_name(number)}"
    match placed.state:
        case State.TIMEOUT:
            return (
                f"it was still running at its time limit of {limit} (edit {entry.unit} time=...; requeue {entry.unit})"
            )
        case State.OUT_OF_MEMORY:
            used = f"; it used {show.memory_used(result)}" if result.get("max_rss_kb") else ""
            return f"it took more memory than its {memory}{used} (requeue {entry.unit}; edit {entry.unit} mem=...)"
        case State.CANCELLED:
            return "it was cancelled"
        case _:
            return f"its node was lost while it ran; {_RERUN_TEXT[entry.rerun]}"


def _why_running(scene: Scene, placed: Placed) -> list[str]:
    entry, node = placed.entry, scene.node(placed.node)
    since = look.running_since(scene.spool, [placed]).get(entry.unit)
    ran = f" for {resources.show_seconds(since)}" if since is not None else ""
    limit = "no time limit" if entry.limit_s is None else f"time limit {resources.show_seconds(entry.limit_s)}"
    if entry.aside:
        text = "while others take the cpus or memory of its node (overload_suspend); it goes on when both are there"
        lines = [f"job {entry.unit} steps aside on {placed.node} {text}, or after: spoolq resume {entry.unit}"]
    elif placed.state is State.SUSPENDED:
        lines = [f"job {entry.unit} is suspended on {placed.node}; it goes on after: spoolq resume {entry.unit}"]
    else:
        lines = [f"job {entry.unit} runs on {placed.node}{ran} (attempt {entry.attempt}, {limit})."]
    if lent := outlook.lends(node, entry):
        lines.append(f"  It waits for jobs of its own, and lends {resources.show(lent)} meanwhile.")
    if node.declared:
        lines.append(f"  {placed.node} was declared dead: the nodes that watch it decide about its jobs now.")
    elif node.state in ("dead", "stopped"):
        text = "its daemon does not run" if node.state == "dead" else "it was stopped"
        lines.append(f"  {placed.node}: {text}; the job goes on, and its result comes when the daemon is back.")
    if node.state == "silent":
        lines.append(f"  {placed.node} has been silent for {node.beat_age_s or 0:.0f} s. If it is lost:")
        lines.append(f"  {_RERUN_TEXT[entry.rerun]}.")
    return lines


def _why_waiting(scene: Scene, placed: Placed) -> list[str]:
    entry = placed.entry
    reason = scene.outlook.reason(placed)
    lines = [f"job {entry.unit} waits: {reason}"]
    if entry.attempt > 1:
        lines.append(f"  It is attempt {entry.attempt}; see spoolq show {entry.unit}.")
    if placed.top == "held":
        how = {
            "HU": f"spoolq release {entry.unit}",
            "HA": "an operator's spoolq release",
            "HB": f"that time, or spoolq release {entry.unit}",
            "HR": f"time, or spoolq release {entry.unit}",
            "HD": f"its parents, or spoolq edit {entry.unit} depend=none",
        }
        lines += [f"  {line}" for line in parent_lines(scene, entry.id)]
        return [*lines, f"  It goes on after: {how.get(entry.held, 'what it waits for')}"]
    before = scene.ahead(entry)
    if before:
        lines.append(f"  {before} job{'s' * (before != 1)} of higher or equal rank before it.")
    else:
        lines.append("  It is the first in the queue.")
    lines.append(f"  It needs {resources.show(entry.wants)}.")
    lines += [
        f"  {line}" for line in (scene.outlook.precedence.place(entry), scene.outlook.precedence.turns(entry)) if line
    ]
    terms = outlook.conditions_of(scene.spool, entry.id) if entry.more else ANYWHERE
    if impossible := scene.outlook.impossible(entry.wants, terms or ANYWHERE):
        lines.append(f"  No node ever seen here could run it: {impossible}")
        lines.append(f"  Ask for less: spoolq edit {entry.unit} {_example(entry.wants)}")
    lines += [f"  {line}" for line in _per_node(scene, placed)]
    return lines


def parent_lines(scene: Scene, job_id: int) -> list[str]:
    """The parents of a job, each with its state."""
    job = deliver.read_job(scene.spool, job_id)
    look = parents.Parents(scene.spool)
    conditions = parents.of_job(job) if job else ()
    return [f"{condition}: {depend.describe(condition, look.fate(condition))}" for condition in conditions]


def _example(wants: resources.Amounts) -> str:
    return " ".join(f"{name}=..." for name in wants if name in (CPUS, MEM)) or "gres=..."


def _per_node(scene: Scene, placed: Placed) -> list[str]:
    """What each node would say now, what it said last where that differs, and who is away."""
    now = scene.outlook.each(placed.entry)
    said = outlook.quiet_whys(scene.spool, placed.entry.id)
    lines = []
    for node in scene.nodes:
        if node.name not in now:
            age = f", last beat {node.beat_age_s:.0f} s ago" if node.beat_age_s is not None else ""
            lines.append(f"{node.name}: {node.state}{age}; takes no jobs")
        else:
            reason = now[node.name]
            lines.append(f"{node.name}: {reason or 'has room; the job starts when its turn comes'}")
        last = parse_reason(said.pop(node.name, ""))
        if last and (node.name not in now or str(last[1]) != str(now[node.name])):
            lines.append(f"  it wrote: {last[1]}")
    return lines + [f"{name} wrote: {line}" for name, line in sorted(said.items()) if line]
