"""
What this node does around a job's command: prolog, epilog, wrapper, hooks; the daemon's side of `shepherd`.

A node or job that has none starts as ever. Else the start message names the shepherd instead of the command,
and a plan on the local disk says what that is to do. When the job has ended the shepherd's last words are
read, and what it left undone, being killed, is finished in a process of its own.
Invariants: a job is delivered only after its epilog; nothing here waits. A crash of the daemon loses no step:
plan and last words lie on the disk, and the next daemon finds them by their names.
"""

import contextlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from spoolq import array, deliver, hook, tasks
from spoolq.config import Settings
from spoolq.fsops import Answer
from spoolq.local import KEPT
from spoolq.resources import UNIT

if TYPE_CHECKING:
    from spoolq.daemon import Daemon
    from spoolq.deliver import Finished
    from spoolq.entry import Entry
    from spoolq.job import Job
    from spoolq.live import Live
    from spoolq.spool import Placed

log = logging.getLogger("spoolq")

Key = tuple[int | str, int]  # of an attempt: `entry.unit`, and its number
SHEPHERD_MB = 16  # memory of the shepherd itself, beside the job's limit
_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_PROGRAM = f"import sys; sys.path[:0]=[{_ROOT!r}]; from spoolq.shepherd import main; main()"


class Around:
    """All of one node's."""

    def __init__(self, root: str, node: str, state_dir: str, settings: Settings) -> None:
        """What an earlier daemon left is known by its names; `root` is the spool's."""
        self.settings, self.node, self.top = settings, node, f"{state_dir}/steps"
        self.hooks = hook.Hooks(settings, root, f"{state_dir}/hooks.log", plugins=True)
        self.keys: set[Key] = set()
        self.drain = ""  # why this node must start no more, until that is in the spool
        self._finishing: dict[Key, tuple[int, dict[str, Any]]] = {}  # -> process, end of the job
        # directories of jobs where the site wants them, told from those of other nodes and users
        self._scratches = f"{os.path.expanduser(settings.scratch)}/spoolq-{os.getuid()}-{os.path.basename(state_dir)}-"
        if settings.wrapper:
            self._wrapper = shutil.which(settings.wrapper[0]) or settings.wrapper[0]
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(self.top):
                job_id, _, attempt = name.partition(".")
                if job_id.replace("_", "", 1).isdigit() and attempt.isdigit():
                    self.keys.add((job_id if "_" in job_id else int(job_id), int(attempt)))

    def path(self, key: Key) -> str:
        """The directory of an attempt."""
        return f"{self.top}/{key[0]}.{key[1]}"

    # --- before

    def wrap(self, entry: "Entry", job: "Job", message: dict[str, Any]) -> None:
        """
        Change a start message where this node or the job has something around the command.

        Raises:
            OSError: the local disk refuses.
        """
        settings = self.settings
        if settings.wrapper:
            message["argv"] = [*settings.wrapper, *message["argv"]]
            message["program"] = self._wrapper
        stages = job.stage_in or job.stage_out
        if not (settings.prolog or settings.epilog or job.targets or stages):
            return
        key = (entry.unit, entry.attempt)
        self.forget(key)
        scratch = message["scratch"]
        if settings.scratch and stages:
            scratch = f"{self._scratches}{entry.unit}.{entry.attempt}"
            message["env"] = [*message["env"], f"SPOOLQ_SCRATCH={scratch}"]
        plan = {
            "argv": message["argv"],
            "program": message["program"],
            "env": message["env"],
            "chdir": message["chdir"],
            "prolog": settings.prolog,
            "epilog": settings.epilog,
            "prolog_s": settings.prolog_s,
            "epilog_s": settings.epilog_s,
            "node": self.node,
            "scratch": scratch,
            "own_scratch": scratch != message["scratch"],
            "kept": f"spoolq-job-{entry.unit}.{entry.attempt}{KEPT}",
            # the number of a signal that comes to the first process alone, which is the shepherd
            "first": message["warn"][0] if message.get("warn") and message["warn"][2] else 0,
            "stage_in": tasks.of_task(entry, job, job.stage_in),
            "cache": self._cache(message["scratch"]),
            "stage_out": tasks.of_task(entry, job, job.stage_out),
            "inputs": tasks.of_task(entry, job, job.inputs),
            "targets": tasks.of_task(entry, job, job.targets),
            # a later attempt finds what an earlier one may have left half made
            "if_stale": job.if_stale and entry.attempt == 1,
        }
        os.makedirs(self.path(key), mode=0o700)
        self.keys.add(key)
        with open(f"{self.path(key)}/plan", "w", encoding="utf-8", errors="surrogateescape") as file:
            os.fchmod(file.fileno(), 0o600)  # it has the environment
            json.dump(plan, file)
        message["argv"], message["program"] = command(self.path(key)), sys.executable
        if message["mem_mb"] is not None:
            message["mem_mb"] += SHEPHERD_MB

    def _cache(self, scratch: str) -> tuple[str, int] | None:
        """Where copies of staged files stay, and how many bytes; None if the site wants none."""
        size = (self.settings.stage_cache or 0) // UNIT << 20
        top = os.path.expanduser(self.settings.scratch) or os.path.dirname(os.path.dirname(scratch))
        return (f"{top}/spoolq-cache-{os.getuid()}", size) if size else None

    # --- after

    def unfinished(self, key: Key, ended: dict[str, Any]) -> bool:
        """Whether something around a job that ended is still to be done; it is being done then."""
        if key not in self.keys or key in self._finishing:
            return key in self._finishing
        if self._said(key).get("phase") in (None, "over"):
            return False
        # of a job that may run elsewhere by now, what is left concerns this node alone
        words = [*command(self.path(key)), "finish", *(["here"] if ended.get("reason") == "lost" else [])]
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            actions = [(os.POSIX_SPAWN_DUP2, null, 0), (os.POSIX_SPAWN_DUP2, 2, 1)]
            pid = os.posix_spawn(words[0], words, os.environ, file_actions=actions, setsid=True, setsigmask=())
        finally:
            os.close(null)
        log.info("finishing job=%s attempt=%d: it was killed before its epilog", *key)
        self._finishing[key] = (pid, ended)
        return True

    def step(self, daemon: "Daemon") -> None:
        """
        Take in what was finished, hooks too; and let no more jobs start here after a step of the node's own failed.

        Raises:
            OSError: the spool does not take the mark; to be done again.
        """
        self.hooks.step()
        for key, (pid, ended) in list(self._finishing.items()):
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(pid, os.WNOHANG)[0] == 0:
                    continue
            del self._finishing[key]
            if self._said(key).get("phase") != "over":  # it was killed too: not for ever
                log.warning("not finished job=%s attempt=%d: what its node does after it", *key)
                self.forget(key)
            daemon.take_end(*key, ended)
        if self.drain:
            daemon.presence.draining = True
            daemon.spool.mark_node(daemon.node, "drain", on=True, text=self.drain)
            log.error("draining node=%s: %s", daemon.node, self.drain)
            self.drain = ""

    @property
    def busy(self) -> bool:
        """Whether something is being finished, or a hook runs."""
        return bool(self._finishing) or self.hooks.busy

    def judge(self, key: Key, ended: dict[str, Any]) -> bool:
        """
        Put into the end of a job what the shepherd said of it; whether the job is to run again.

        A node whose prolog or epilog failed starts no more until somebody has looked (`drain`), as Slurm does.
        """
        if key not in self.keys:
            return False
        said = self._said(key)
        if said.get("epilog"):
            self.drain = f"{said['epilog']} (job {key[0]})"
        reason, detail = str(said.get("reason") or ""), str(said.get("detail") or "")
        if ended.get("reason") and detail:  # ended for another reason, and that is to be known too
            ended["detail"] = "; ".join(filter(None, (ended.get("detail"), detail)))
        if ended.get("reason") or not (reason or detail):
            return False
        if reason == "prolog":
            self.drain = f"{detail} (job {key[0]})"
            ended |= {"reason": reason, "detail": detail}
            return True
        ended |= {"reason": reason.partition("-")[0] if reason == "prolog-job" else reason, "detail": detail}
        return False

    def forget(self, key: Key) -> None:
        """The job is delivered."""
        if key in self.keys:
            self.keys.discard(key)
            shutil.rmtree(self.path(key), ignore_errors=True)

    def tidy(self, daemon: "Daemon") -> None:
        """Forget attempts that nobody here knows of."""
        placed = [*(live.at.entry for live in daemon.live.values()), *(item.at.entry for item in daemon.ended)]
        placed += [item.at.entry for _, item in daemon.task_ends]
        for one in daemon.chunks.values():
            placed += [array.task_entry(one.entry, one.current)] if one.current is not None else []
        for key in self.keys.difference((entry.unit, entry.attempt) for entry in placed):
            self.forget(key)
        if self.settings.scratch:
            used = {f"{self._scratches}{entry.unit}.{entry.attempt}" for entry in placed}
            top, prefix = os.path.split(self._scratches)
            for name in os.listdir(top) if os.path.isdir(top) else ():
                if name.startswith(prefix) and f"{top}/{name}" not in used:
                    shutil.rmtree(f"{top}/{name}", ignore_errors=True)

    def told(self, message: dict[str, Any], live: "Live | None") -> None:
        """The runner says that an attempt began."""
        if live and live.at.entry.attempt == message["attempt"] and self.hooks.wants(hook.START):
            facts = {**hook.of_job(live.at.entry, live.job), "JOB_ID": message["id"], "NODE": self.node}
            self.hooks.tell(hook.START, facts)

    def submitted(self, entry: "Entry", job: "Job") -> None:
        """A dropped file became a job."""
        if self.hooks.wants(hook.SUBMIT):
            self.hooks.tell(hook.SUBMIT, {**hook.of_job(entry, job), "JOB_IDS": entry.id})

    def through(self, item: "Finished") -> None:
        """An attempt is delivered."""
        entry = item.at.entry
        self.forget((entry.unit, entry.attempt))
        if not (item.requeue or item.late):
            self.announce(entry, item.job, item.ending, item.ended)

    def end(self, daemon: "Daemon", at: "Placed", ending: str, detail: str) -> Answer:
        """End a job that does not run, or whose end nobody saw; see `deliver.finish_unstarted`."""
        answer = deliver.finish_unstarted(daemon.spool, at, ending, detail, daemon.node)
        if answer is Answer.WON and (self.hooks.wants(hook.END) or self.hooks.wants(hook.FAIL)):
            self.announce(at.entry, deliver.read_job(daemon.spool, at.entry.id), ending, {"detail": detail})
        return answer

    def announce(self, entry: "Entry", job: "Job | None", ending: str, ended: Mapping[str, Any]) -> None:
        """Tell the hooks of an end."""
        if not (self.hooks.wants(hook.END) or self.hooks.wants(hook.FAIL)):
            return
        facts = {**hook.of_end(entry, job, ending, ended), "NODE": self.node}
        self.hooks.tell(hook.END, facts)
        if hook.failed(facts["STATE"]):
            self.hooks.tell(hook.FAIL, facts)

    def _said(self, key: Key) -> dict[str, Any]:
        with contextlib.suppress(OSError, ValueError), open(f"{self.path(key)}/said", encoding="utf-8") as file:
            return dict(json.load(file))
        return {}


def command(directory: str) -> list[str]:
    """The words that run the shepherd: without what users set for Python, and without looking for packages."""
    return [sys.executable, "-I", "-S", "-X", "utf8", "-c", _PROGRAM, directory]
