"""What tests of commands share: jobs put into a spool in any state, and commands called as the shell would."""

import json
import os
from typing import Any

from spoolq import deliver, home, host, stored
from spoolq.fsops import Answer
from spoolq.job import Job
from spoolq.selector import me
from spoolq.spool import Placed, Spool

DEAD_PID = 2**22 + 5  # above any pid


def put(spool: Spool, **facts: Any) -> Placed:
    """Submit a job of this user."""
    job = Job(**{"command": ("true",), "name": "t", "user": me(), "submitted": "2025-01-01T00:00:00Z", **facts})
    job_id = home.allocate(spool.root)
    home.fill(spool.root, job_id, stored.format_job(job))
    return spool.submit(job_id, job.entry(job_id))


def run(spool: Spool, placed: Placed, node: str = "n1") -> Placed:
    """Let a node claim it."""
    spool.enter_node(node)
    answer, placed = spool.claim(placed, node)
    assert answer is Answer.WON
    return placed


def end(spool: Spool, placed: Placed, code: int = 0, **ended: Any) -> Placed:
    """Let it end on its node, with result and history."""
    node = placed.node or "n1"
    facts = {"exit_code": code, "signal": None, "reason": "", "detail": "", "started": 1e9, "ended": 1e9 + 5}
    facts |= {"wall_s": 5.0, "rusage": {"user_s": 1.0, "system_s": 0.5, "max_rss_kb": 2048}, "measured_by": "wait4"}
    item = deliver.Finished(placed, {**facts, **ended}, deliver.read_job(spool, placed.entry.id))
    assert deliver.deliver(spool, node, [item])
    return spool.find(placed.entry.id)


def node_json(spool: Spool, name: str = "n1", **facts: Any) -> None:
    """Let a node say what it is; of a machine that is not this one, unless told otherwise."""
    spool.enter_node(name)
    cpus, mem = facts.pop("cpus", 4), facts.pop("mem", 8000)
    said = {"format": 1, "node": name, "host": "there", "machine": "elsewhere", "boot": "x", "pid": 1, "starttime": "1"}
    said |= {
        "version": "0",
        "state": "up",
        "capacity": {"cpus": cpus * 1000, "mem": mem * 1000},
        "jobs": 0,
        "beat_s": 20,
    }
    said |= {"allocated": {}, "free": {"cpus": cpus * 1000, "mem": mem * 1000}, "load": [0.5, 0.4, 0.3]}
    spool.write_node(name, {**said, **facts})
    spool.beat(name, 1, "i1")


def here() -> dict[str, Any]:
    """What a node of this machine says of itself."""
    return {"host": host.host_name(), "machine": host.machine_id(), "boot": host.boot_id()}


def silence(spool: Spool, name: str, seconds: float) -> None:
    """Make a node's heartbeat old."""
    path = f"{spool.root}/nodes/{name}/heartbeat"
    then = os.stat(path).st_mtime - seconds
    os.utime(path, (then, then))


def value(text: str) -> Any:
    """What a --json answer holds beside its envelope."""
    document = json.loads(text)
    assert isinstance(document["format"], int)
    rest = [key for key in document if key not in ("format", "kind")]
    return document[rest[0]] if len(rest) == 1 else document
