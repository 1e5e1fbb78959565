"""
The command `show`: one job in full.

What it asked for, where it is, where its files are, its attempts, what became of it, and what nodes
said of it. The same facts as JSON are for programs that want everything at once.
Invariant: changes nothing; text of users is never printed unescaped.
"""

import os
import shlex
import signal
from collections.abc import Callable, Iterator
from typing import Any

from spoolq import arguments, deliver, devices, fsops, home, learn, look, outlook, report, resources, selector
from spoolq.arguments import Command
from spoolq.entry import RERUN_WORDS
from spoolq.errors import UsageError
from spoolq.job import Job
from spoolq.outlook import Scene
from spoolq.resources import UNIT
from spoolq.spool import Placed, Spool

SHOW = Command(
    "show",
    "JOB..",
    "One job in full: state, request, places of its files, attempts, result.",
    (),
    "job",
    f"{selector.HELP_WORDS}\nPlain files: ls SPOOL/jobs/0/42; cat SPOOL/jobs/0/42/job SPOOL/jobs/0/42/result.json",
)
COMMANDS = {"show": SHOW}


def show(argv: list[str]) -> int:
    """`show JOB..`."""
    return each(SHOW, argv, "job", shown, lambda scene, placed: list(show_lines(scene, placed)))


def each(
    command: Command,
    argv: list[str],
    kind: str,
    as_json: Callable[[Scene, Placed], dict[str, Any]],
    as_lines: Callable[[Scene, Placed], list[str]],
) -> int:
    """A command that says something about each of some jobs; exit 1 if a word stands for none."""
    given = arguments.parse(command, argv)
    if given.has("help"):
        return arguments.show_help(command)
    if not given.words:
        raise UsageError(f"{command.name}: which job? ({selector.HELP_WORDS})")
    spool = arguments.open_spool(given)
    chosen = selector.select(spool, given.words, selector.Filter(everybody=True))
    for message in chosen.missing:
        arguments.complain(message)
    scene = Scene(spool)
    jobs = [placed for placed in chosen.jobs if not placed.entry.chunk]
    rows, texts = [as_json(scene, at) for at in jobs if given.has("json")], []
    if len(jobs) < len(chosen.jobs):
        from spoolq import overview

        rows, texts = [*rows, *overview.rows(kind, scene, chosen)], overview.texts(kind, scene, chosen)
    if given.has("json"):
        arguments.print_json(kind, rows)
    else:
        blocks = ["\n".join(map(report.show, lines)) for lines in (*(as_lines(scene, at) for at in jobs), *texts)]
        if blocks:
            print("\n\n".join(blocks))
    return 1 if chosen.missing else 0


def output_paths(spool: Spool, placed: Placed, job: Job | None, node: str) -> dict[str, str]:
    """`stdout` and `stderr` -> where they are; a `%N` not known yet stays."""
    entry = placed.entry
    if job is None:
        return {s: home.output_path(spool.root, entry, None, s, {}, "") for s in ("stdout", "stderr")}
    names = home.fill_in(entry, job.name, job.user) | ({"N": node} if node else {})
    out = home.output_path(spool.root, entry, job.output, "stdout", names, job.chdir)
    if job.error is None and job.output is not None:
        return {"stdout": out, "stderr": out}
    return {"stdout": out, "stderr": home.output_path(spool.root, entry, job.error, "stderr", names, job.chdir)}


def shown(scene: Scene, placed: Placed) -> dict[str, Any]:
    """Everything about one job, for programs."""
    spool, job_id = scene.spool, placed.entry.id
    job = deliver.read_job(spool, job_id)
    result = deliver.read_ending(spool, job_id) if placed.state.ended else None
    facts = look.as_json(placed, scene.outlook, look.running_since(spool, [placed]))
    facts["node"] = facts["node"] or (result or {}).get("node")
    path = home.path_of(spool.root, job_id)
    facts |= {"home": path, "home_is_there": fsops.look(path) is not None}
    facts["outputs"] = output_paths(spool, placed, job, facts["node"] or "")
    facts["job"] = None if job is None else job_json(job)
    facts["result"] = result
    running = placed.top == "running"
    facts["devices"] = devices.said(scene.node(placed.node).facts).get(job_id, {}) if running else {}
    facts["earlier"] = earlier(path)
    facts["why"] = outlook.quiet_whys(spool, job_id)
    return facts


def job_json(job: Job) -> dict[str, Any]:
    """A job as it was submitted, for programs."""
    return {
        "command": list(job.command),
        "script": job.script,
        "name": job.name,
        "chdir": job.chdir,
        "umask": f"{job.umask:04o}",
        "nodelist": list(job.nodelist),
        "exclude": list(job.exclude),
        "depend": list(job.depend),
        "constraint": job.constraint or None,
        "unique": job.unique or None,
        "parent": int(job.parent) if job.parent.isdigit() else job.parent if job.parent_id else None,
        "output": job.output,
        "error": job.error,
        "open_mode": job.open_mode,
        "output_mode": job.output_mode,
        "export": job.export,
        "in": list(job.inputs),
        "out": list(job.targets),
        "if_stale": job.if_stale,
        "stage_in": list(job.stage_in),
        "stage_out": list(job.stage_out),
        "estimate": list(job.estimate),
        "declared": sorted(job.declared),
        "policy": list(job.policy),
        "user": job.user,
        "submitted": job.submitted or None,
        "submit_host": job.submit_host or None,
    }


def earlier(path: str) -> list[str]:
    """The results of earlier and late attempts in a home: names like `result.1.json`."""
    return sorted(n for n in fsops.names(path) if n.startswith("result.") and n != "result.json")


def show_lines(scene: Scene, placed: Placed) -> Iterator[str]:
    """Everything about one job, for people."""
    facts = shown(scene, placed)
    entry, job, result = placed.entry, facts["job"], facts["result"]
    yield f"job {entry.id}{f' ({entry.label})' if entry.label else ''}: {placed.state.name}"
    pairs: list[tuple[str, str]] = []
    if facts["reason"]:
        pairs.append(("reason", f"{facts['reason']}: {facts['reason_text']}"))
    if job:
        words = [*(["(script)"] if job["script"] else []), shlex.join(job["command"])]
        pairs += [("command", " ".join(words).strip()), ("directory", job["chdir"])]
        submitter = f"{job['user']} on {job['submit_host'] or '?'}, {job['submitted'] or '?'}"
        pairs.append(("submitted", submitter))
    else:
        pairs.append(("job file", "cannot be read any more"))
    pairs.append(("request", _request(placed)))
    pairs += [("made from", ", ".join(job["in"]))] if job and job["in"] else []
    pairs += [("makes", ", ".join(job["out"]))] if job and job["out"] else []
    pairs += [("stage in", ", ".join(job["stage_in"]))] if job and job["stage_in"] else []
    pairs += [("stage out", ", ".join(job["stage_out"]))] if job and job["stage_out"] else []
    pairs += [("policy", note) for note in job["policy"]] if job else []
    if job and (job["nodelist"] or job["exclude"]):
        only = ",".join(job["nodelist"]) or "any"
        pairs.append(("nodes", only + (f" except {','.join(job['exclude'])}" if job["exclude"] else "")))
    if job and job["estimate"]:
        pairs.append(("estimated", learn.told(job["estimate"])))
    if entry.aside:
        pairs.append(("suspended", "by its node, while others take the cpus or memory (overload_suspend)"))
    if job and job["depend"]:
        pairs.append(("depends on", " ".join(job["depend"])))
    if job and job["constraint"]:
        pairs.append(("constraint", job["constraint"]))
    ran = f", for {resources.show_seconds(facts['elapsed_s'])}" if facts["elapsed_s"] is not None else ""
    pairs += [("attempt", str(entry.attempt)), ("node", f"{facts['node'] or '-'}{ran}")]
    if facts["devices"]:
        pairs.append(("devices", devices.show(facts["devices"])))
    if placed.top == "running" and (lent := outlook.lends(scene.node(placed.node), entry)):
        pairs.append(("lends", f"{resources.show(lent)}, while it waits for jobs of its own"))
    if entry.parent:
        parent = (facts["job"] or {}).get("parent") or entry.parent
        pairs.append(("parent", f"job {parent}, and ends with it"))
    for stream, path in facts["outputs"].items():
        pairs.append((stream, f"{path}{_size(path)}"))
    pairs += result_pairs(result)
    pairs += [("earlier", name) for name in facts["earlier"]]
    pairs += [("said", line) for line in facts["why"].values()] if not placed.state.ended else []
    pairs += [("home", facts["home"] + ("" if facts["home_is_there"] else " (removed)")), ("entry", placed.path)]
    for key, value in pairs:
        yield f"  {key:<10} {value}"


def _request(placed: Placed) -> str:
    entry = placed.entry
    limit = resources.show_seconds(entry.limit_s)
    return f"{resources.show(entry.wants)}, time {limit}, priority {entry.priority}, rerun {RERUN_WORDS[entry.rerun]}"


def _size(path: str) -> str:
    try:
        size = os.stat(path).st_size
    except OSError:
        return " (nothing written)"
    return f" ({size} bytes)"


def result_pairs(result: dict[str, Any] | None) -> list[tuple[str, str]]:
    """What a result says, as lines of `show`."""
    if not result:
        return []
    pairs = [("ended", f"{result['state']}, {_ending_text(result)}")]
    if result.get("reason"):
        pairs.append(("because", str(result["reason"])))
    if result.get("started"):
        pairs.append(("started", str(result["started"])))
    if result.get("ended"):
        pairs.append(("at", str(result["ended"])))
    wall = result.get("wall_s")
    if wall is not None and result.get("user_s") is not None:
        cpu = result["user_s"] + (result.get("system_s") or 0.0)
        share = f", {100 * cpu / (wall * result['cpus']):.0f} % of its cpus" if wall >= 1 and result.get("cpus") else ""
        pairs.append(("used", f"{wall:.3f} s, {cpu:.3f} s cpu{share}, {memory_used(result)}"))
    return pairs


def memory_used(result: dict[str, Any]) -> str:
    """`12.5M memory of 1G`."""
    kb = result.get("max_rss_kb")
    if kb is None:
        return "memory not measured"
    mb = result.get("mem_mb")
    return f"{kb / 1024:.1f}M memory" + (f" of {resources.show_mb(round(mb * UNIT))}" if mb else "")


def _ending_text(result: dict[str, Any]) -> str:
    if result.get("signal") is not None:
        return f"signal {result['signal']}{signal_name(result['signal'])}"
    return f"exit code {result['exit_code']}" if result.get("exit_code") is not None else "no exit code"


def signal_name(number: int) -> str:
    """` (SIGKILL)`, or empty for a number without a name."""
    try:
        return f" ({signal.Signals(number).name})"
    except ValueError:
        return ""
