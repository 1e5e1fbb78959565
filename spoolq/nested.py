"""
A command inside a job: whose child it submits, and what its node is told while it waits.

A job that waits for jobs of its own uses no cpu, and would keep them from the very job it waits for. So
`run`, `sub -W` and `wait` leave a file in `nodes/<node>/control/` for as long as they wait, and the node
lends the job's cpus and unused memory meanwhile (`lend`). The file names this process, so a command that is
killed lends nothing any more.
Invariant: a command outside a job, or on another spool than the job's, does and reads nothing of this.
"""

import contextlib
import os
import time
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from spoolq import fsops, home, host
from spoolq.errors import SpoolqError, UsageError
from spoolq.job import Job
from spoolq.spool import Spool

CHILDREN = "children"  # in the home of a job: an empty file for each job that it has submitted
NONE = "none"  # the parent of a job that is to outlive the one that submits it


class Outer(NamedTuple):
    """The job that this command runs in, or the task of an array."""

    id: int
    attempt: int
    node: str
    priority: int
    task: int | None = None

    @property
    def unit(self) -> int | str:
        """What it is called: 42, or `42_7`."""
        return self.id if self.task is None else f"{self.id}_{self.task}"


def outer(spool: Spool) -> Outer | None:
    """The job of this spool in which this process runs, or None."""
    get = os.environ.get
    job_id, dash, task = get("SPOOLQ_JOB_ID", "").partition("_")
    attempt = get("SPOOLQ_ATTEMPT", "")
    if dash and not home.is_number(task):
        return None
    if not (home.is_number(job_id) and home.is_number(attempt)) or not get("SPOOLQ_NODE"):
        return None
    if os.path.realpath(get("SPOOLQ_SPOOL", "")) != os.path.realpath(spool.root):
        return None
    priority = get("SPOOLQ_PRIORITY", "0")
    number = int(priority) if _whole(priority) else 0
    return Outer(int(job_id), int(attempt), get("SPOOLQ_NODE", ""), number, int(task) if dash else None)


def _whole(text: str) -> bool:
    return home.is_number(text.removeprefix("-"))


def base(spool: Spool) -> dict[str, Any]:
    """Fields of a job that is submitted here and does not say: the outer job's priority, and whose child it is."""
    found = outer(spool)
    return {"priority": found.priority, "parent": str(found.unit)} if found else {}


def record(spool: Spool, job: Job, job_id: int) -> None:
    """Before a child's commit: let whoever ends the parent find it."""
    directory = children_of(spool.root, job.parent)
    with contextlib.suppress(FileNotFoundError):  # the parent's home was removed: nobody ends it any more
        if "_" in job.parent:
            fsops.make_directory(os.path.dirname(directory))
        fsops.make_directory(directory)
        fsops.create(f"{directory}/{job_id}", b"")


def children_of(root: str, parent: int | str) -> str:
    """Where the names of the children of a job lie; those of `42_7` have a directory of their own."""
    job_id, _, task = str(parent).partition("_")
    return f"{home.path_of(root, int(job_id))}/{CHILDREN}" + (f"/{task}" if task else "")


def refuse_own(spool: Spool, ids: Collection[int | str]) -> None:
    """UsageError if the outer job is among those that are waited for, or a task that runs only after it."""
    if not (found := outer(spool)):
        return
    if found.id in ids or found.unit in ids:
        raise UsageError(f"job {found.unit} would wait for its own end")
    others = [unit for unit in ids if str(unit).partition("_")[0] == str(found.id)]
    if others and found.task is not None:
        from spoolq import array

        chunks = [at.entry.chunk for at in spool.on_node(found.node) if at.entry.id == found.id]
        mine = next((chunk for chunk in chunks if array.holds(chunk, found.task)), "")
        behind = [unit for unit in others if mine and array.holds(mine, int(str(unit).partition("_")[2]))]
        if behind:
            both = f"job {found.unit} and {behind[0]} are of one entry ({mine[1:]}), whose tasks run one after another"
            raise UsageError(f"{both}: it would wait for ever")


@contextlib.contextmanager
def waiting(spool: Spool) -> Iterator[None]:
    """While this lasts, the outer job needs no cpus; outside a job it does nothing."""
    name = ask(spool, found) if (found := outer(spool)) else ""
    try:
        yield
    finally:
        if found and name:
            with contextlib.suppress(OSError, SpoolqError):  # the node finds this process gone
                spool.answered(found.node, name)
                fsops.ring(f"{spool.root}/queue")


def ask(spool: Spool, found: Outer) -> str:
    """Tell the node; the name of the request, or empty: to lend is a favour, and to wait works without."""
    pid = os.getpid()
    tag = f"{time.time_ns():x}.{pid:x}"
    facts = {"attempt": found.attempt, "pid": pid, "start": host.process_identity(pid), "boot": host.boot_id()}
    try:
        facts |= {"task": found.task} if found.task is not None else {}
        spool.request(found.node, "lend", found.id, facts, tag)
        fsops.ring(f"{spool.root}/queue")
    except (OSError, SpoolqError):
        return ""
    return f"{tag}.a{found.attempt}.{found.unit}.lend"  # as `Spool.request` names it
