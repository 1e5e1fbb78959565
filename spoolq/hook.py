"""
Hooks: programs of a site that are told when a job was submitted, started, ended or failed.

`[hooks]` in config.toml names one for each event, and plugins of the group `spoolq.hook` hear of all. A hook runs
beside the work, in a session of its own, as the user of the command or node, with the facts in variables and its
output in a log; when its time is over `timeout` kills it. Nothing waits for it and nothing depends on it.
Whoever ends a job tells of it: its node, the node that ended it unstarted, or the command (`notice`).
Invariant: at most once: whoever made the change starts the hook after it, and a crash in between loses it.
"""

import contextlib
import logging
import os
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from spoolq import plugin
from spoolq.state import of_ending

if TYPE_CHECKING:
    from spoolq.config import Settings
    from spoolq.entry import Entry
    from spoolq.job import Job

log = logging.getLogger("spoolq")

SUBMIT, START, END, FAIL = "submit", "start", "end", "fail"
AT_ONCE = 8  # hooks that run at the same time on a node
MOST_WAITING = 10_000  # more are dropped, with a line in the log
LOG_BYTES = 1 << 20  # then the log becomes `hooks.log.1`
_NOT_FAILED = ("COMPLETED", "CANCELLED")


class Hooks:
    """The hooks of one node, or of one submission."""

    def __init__(self, settings: "Settings", root: str, log_path: str, *, plugins: bool) -> None:
        """
        Find out what is to be told; nothing is started.

        Args:
            root: of the spool.
            log_path: where what hooks print goes.
            plugins: whether installed plugins are told too.
        """
        self.root, self.log_path, self.limit_s = root, log_path, settings.hook_s
        self.words = {
            SUBMIT: settings.on_submit,
            START: settings.on_start,
            END: settings.on_end,
            FAIL: settings.on_fail,
        }
        self.plugins = plugins and bool(plugin.names(plugin.HOOK))
        self._waiting: deque[tuple[Sequence[str], dict[str, str]]] = deque()
        self._running: set[int] = set()

    def wants(self, event: str) -> bool:
        """Whether anybody is to be told."""
        return bool(self.words[event] or self.plugins)

    @property
    def busy(self) -> bool:
        """Whether one runs or waits."""
        return bool(self._running or self._waiting)

    @property
    def full(self) -> bool:
        """Whether some wait, since as many run as may."""
        return bool(self._waiting)

    def tell(self, event: str, facts: Mapping[str, Any]) -> None:
        """
        Start the hooks of an event, or let them wait while many run.

        Args:
            facts: by the rest of the variable's name: `JOB_ID`, ...; None is left out.
        """
        said = {f"SPOOLQ_{name}": str(value) for name, value in facts.items() if value is not None}
        said |= {"SPOOLQ_EVENT": event, "SPOOLQ_SPOOL": self.root, "SPOOLQ_DIR": self.root}
        for words in (self.words[event], plugin.words("tell_hooks") if self.plugins else ()):
            if words and len(self._waiting) < MOST_WAITING:
                self._waiting.append((words, said))
            elif words:
                log.warning("hook not run event=%s job=%s: too many wait", event, facts.get("JOB_ID"))
        self.step()

    def step(self) -> None:
        """Take in those that ended, and start others."""
        for pid in list(self._running):
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(pid, os.WNOHANG)[0] == 0:
                    continue
            self._running.discard(pid)
        while self._waiting and len(self._running) < AT_ONCE:
            words, said = self._waiting.popleft()
            try:
                self._running.add(self._start(words, said))
            except OSError as error:
                log.warning("hook %s: %s", words[0], error.strerror)

    def _start(self, words: Sequence[str], said: Mapping[str, str]) -> int:
        os.makedirs(os.path.dirname(self.log_path), mode=0o700, exist_ok=True)
        with contextlib.suppress(OSError):
            if os.stat(self.log_path).st_size > LOG_BYTES:
                os.replace(self.log_path, f"{self.log_path}.1")
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, self.log_path, flags, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ]
        env = {**os.environ, **said}
        limited = ["timeout", "-k", "5", f"{self.limit_s:g}", *words]
        return os.posix_spawnp("timeout", limited, env, file_actions=actions, setsid=True, setsigmask=())


def of_job(entry: "Entry", job: "Job | None") -> dict[str, Any]:
    """What every event says of a job."""
    known = {"JOB_NAME": job.name, "SUBMIT_USER": job.user, "JOB_CHDIR": job.chdir} if job else {}
    return {"JOB_ID": entry.unit, "ATTEMPT": entry.attempt, "JOB_NAME": entry.label, **known}


def of_end(entry: "Entry", job: "Job | None", ending: str, ended: Mapping[str, Any]) -> dict[str, Any]:
    """
    What the events of an end say.

    Args:
        ending: as in names. ended: what is known of it beside that.
    """
    facts = {**of_job(entry, job), "STATE": of_ending(ending).name, "SIGNAL": ended.get("signal")}
    return {**facts, "EXIT_CODE": ended.get("exit_code"), "REASON": ended.get("detail") or None}


def failed(state: str) -> bool:
    """Whether an end is a failure, for `on_fail`: not what was cancelled."""
    return state not in _NOT_FAILED
