"""
What was learned of commands, in small files beside the history: nodes write them, a submission reads one.

`history/learned/<00..63>.tsv` holds the newest runs of the commands that fall into it (see `learn`). A
node keeps what ended in memory and adds it at most once a minute, one read and one rename a file, never
while a job starts or ends. A submission that leaves memory or cpus open reads one file of some KB.
Invariant: a view: what is lost (a crash, two nodes that write at once) makes an estimate a run older,
nothing else depends on it, and whatever cannot be read says nothing.
"""

from typing import TYPE_CHECKING

from spoolq import fsops, learn
from spoolq.job import Job
from spoolq.learn import Run
from spoolq.resources import CPUS, MEM

if TYPE_CHECKING:
    from spoolq.config import Policy
    from spoolq.deliver import Finished

LEARN_S = 60.0  # between additions
MOST_FILES = 8  # written in one turn; the rest waits for the next
LARGEST = 1 << 18  # bytes of a file that are read


class Notes:
    """What ended on this node and is not in the files yet."""

    def __init__(self) -> None:
        """Nothing yet."""
        self.fresh: dict[str, dict[str, list[Run]]] = {}

    def take(self, item: "Finished") -> None:
        """One attempt that ended, if something can be learned from it."""
        job, ended = item.job, item.ended
        if job is None or item.late or item.requeue or ended.get("exit_code") != 0 or ended.get("reason"):
            return
        facts = {**(ended.get("rusage") or {}), "wall_s": ended.get("wall_s"), "state": "COMPLETED"}
        run = learn.run_of(facts, day=learn.day_of(ended.get("ended")), peak_mb=item.peak_mb)
        if run is None:
            return
        name = learn.key(job.user, learn.of_job(job))
        runs = self.fresh.setdefault(learn.bucket(name), {}).setdefault(name, [])
        runs.insert(0, run)
        del runs[learn.NEWEST :]

    def write(self, root: str) -> None:
        """
        Add it to the files.

        Raises:
            OSError: the spool refuses; what was not written is kept for the next time.
        """
        for number in list(self.fresh)[:MOST_FILES]:
            path = path_of(root, number)
            known = learn.merged(read(root, number), self.fresh[number])
            try:
                fsops.publish(path, learn.form(known), sync=False)
            except FileNotFoundError:
                fsops.make_directory(f"{root}/history/learned")
                fsops.publish(path, learn.form(known), sync=False)
            del self.fresh[number]


def path_of(root: str, number: str) -> str:
    """The file of a bucket."""
    return f"{root}/history/learned/{number}.tsv"


def read(root: str, number: str, only: str = "") -> learn.Known:
    """What a file says (of one key); nothing if there is none or it cannot be read."""
    try:
        return learn.parse(fsops.read(path_of(root, number), LARGEST) or b"", only)
    except OSError:
        return {}


def estimated(job: Job, root: str, policy: "Policy") -> Job:
    """The job with what its command needed before where it asks for nothing; see `learn.fill`."""
    if not policy.learn or job.declared >= {MEM, CPUS}:
        return job
    name = learn.key(job.user, learn.of_job(job))
    found = learn.estimate(read(root, learn.bucket(name), name).get(name, ()))
    return learn.fill(job, found, policy.default_mem if policy.enforce_default_mem else 0)
