"""
The policy of users and sites over jobs that are submitted here: `profile.py` and `[[rule]]` tables, found and applied.

They lie in ~/.config/spoolq and /etc/spoolq; rules also in spool.toml. The user's come first and the site's
last, so that of defaults the user's hold, and of everything else the site's. A profile runs in a child process
(`judge`) with a time limit, so that one that hangs keeps no submission and no node.
Invariant: what goes wrong in a profile refuses the job and says so; without any, a submission lists two local
directories and no more.
"""

import contextlib
import errno
import functools
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from spoolq import where
from spoolq.config import Policy, parse_rules
from spoolq.errors import JobFileError, Misconfigured, UsageError
from spoolq.job import Job
from spoolq.options import Pair
from spoolq.script import SHELL

if TYPE_CHECKING:
    import subprocess

    from spoolq.rules import Facts, Make, Rule, Ruled

PROFILE, CONFIG = "profile.py", "config.toml"
PLUGINS = "spoolq.profile"  # the group of entry points, and the name that `judge` takes for them
START_S = 30.0  # for the interpreter to come up: the machine may be busy, and that is not the profile's fault
MOST_INPUTS = 1000  # words of a command that are looked at for being files


def load(policy: Policy, *, plugins: bool) -> "Rulebook | None":
    """
    What rules submissions here; None if nothing does.

    Args:
        plugins: whether installed plugins are asked too; looking for them costs tens of ms.

    Raises:
        Misconfigured: a file cannot be read or has a wrong rule.
    """
    site, user = (os.path.dirname(file) for file in where.files())
    steps: list[tuple[Rule, ...] | Judge] = [*_steps(user, policy), *([policy.rules] if policy.rules else [])]
    if plugins:
        steps.append(Judge(PLUGINS, policy.profile_s))
    if site != user:
        steps += _steps(site, policy)
    return Rulebook(steps) if steps else None


def _steps(directory: str, policy: Policy) -> "list[tuple[Rule, ...] | Judge]":
    try:
        names = os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        if error.errno == errno.EACCES:
            return []
        raise Misconfigured(f"{directory}: {error.strerror}") from error
    steps: list[tuple[Rule, ...] | Judge] = []
    if PROFILE in names:
        steps.append(Judge(os.path.join(directory, PROFILE), policy.profile_s))
    if CONFIG in names and (rules := _rules_in(os.path.join(directory, CONFIG))):
        steps.append(rules)
    return steps


def _rules_in(file: str) -> "tuple[Rule, ...]":
    try:
        with open(file, "rb") as stream:
            data = stream.read(where.MOST + 1)
    except OSError as error:
        raise Misconfigured(f"{file}: {error.strerror}") from error
    return parse_rules(data, file) if b"rule" in data else ()  # parsing costs more than looking


class Rulebook:
    """All rules and profiles, in the order in which they act."""

    def __init__(self, steps: "Sequence[tuple[Rule, ...] | Judge]") -> None:
        """See `load`."""
        self.steps = steps

    def rule(
        self, pairs: Sequence[Pair], make: "Make", words: Sequence[str], script: bytes | None, name: str
    ) -> "Ruled":
        """
        What becomes of a job.

        Args:
            pairs: its options, the weakest first. `make`: the job of some options.
            words: its command; of a script the arguments. `name`: of the script, if it is one.

        Raises:
            UsageError, JobFileError: refused, or a profile failed or took too long.
        """
        from spoolq import rules

        job = make(pairs)
        facts = _facts(job, job.command if job.if_stale else words or job.command, script, name)
        said = list(pairs)
        notes: list[str] = []
        for step in self.steps:
            some = step.ask(make(said), said, facts) if isinstance(step, Judge) else step
            ruled = rules.apply(some, said, make, facts)
            said = ruled.pairs
            notes += ruled.notes
        return rules.Ruled(said, tuple(notes))

    def close(self) -> None:
        """End the children."""
        for step in self.steps:
            if isinstance(step, Judge):
                step.close()


def _facts(job: Job, words: Sequence[str], script: bytes | None, name: str) -> "Facts":
    from spoolq import rules

    line = " ".join([name, *words] if script is not None else words)
    program = name if script is not None else words[0]
    if script is None and len(words) == 3 and tuple(words[:2]) == SHELL:
        line, words = words[2], _split(words[2])
        program = words[0] if words else ""
    text = (script or b"").decode("utf-8", "replace")
    return rules.Facts(program, line, text, functools.cache(lambda: inputs(job.chdir, [*job.inputs, *words])))


def _split(line: str) -> list[str]:
    """The words of a line for the shell, as far as they can be told without one."""
    import shlex

    try:
        return list(shlex.shlex(line, posix=True, punctuation_chars=True))
    except ValueError:
        return line.split()


def inputs(directory: str, words: Sequence[str]) -> dict[str, int]:
    """Paths of the words of a command that are files here, with their sizes in bytes."""
    paths = dict.fromkeys(os.path.join(directory, word) for word in words[:MOST_INPUTS] if word)
    return {path: os.stat(path).st_size for path in paths if os.path.isfile(path)}


class Judge:
    """A profile, or all plugins, and the child that asks it; started when first asked."""

    def __init__(self, path: str, limit_s: float) -> None:
        """
        Start nothing yet.

        Args:
            path: of the profile, or PLUGINS.
            limit_s: seconds that it may take for one job.
        """
        self.path, self.limit_s = path, limit_s
        self._child: subprocess.Popen[bytes] | None = None

    def ask(self, job: Job, pairs: Sequence[Pair], facts: "Facts") -> "list[Rule]":
        """What it wants of a job, as rules; JobFileError if it fails."""
        from spoolq import rules

        answer = self._converse(_view(job, pairs, facts))
        if "asked" not in answer:
            message = f"{answer.get('error')}: so the job is refused (correct the profile)"
            raise JobFileError(message, file=answer.get("file"), line=answer.get("line"))
        asked = []
        for verb, what, place in answer["asked"]:
            try:
                changes = () if verb == "refuse" else rules.changes_of({verb: what})
            except UsageError as error:
                raise JobFileError(str(error), file=place) from None
            asked.append(rules.Rule((), changes, what if verb == "refuse" else "", place))
        return asked

    def close(self) -> None:
        """End the child, whatever it does, and all that it started."""
        child, self._child = self._child, None
        if child is None:
            return
        for stream in (child.stdin, child.stdout):
            if stream:
                stream.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()

    def _converse(self, view: dict[str, Any]) -> dict[str, Any]:
        line = json.dumps(view).encode("utf-8", "surrogateescape") + b"\n"
        try:
            if self._child is None:
                self._start()
            answer = self._exchange(line, self.limit_s)
            return dict(json.loads(answer))
        except TimeoutError:
            self.close()
            what = f"took longer than {self.limit_s:g} s (limits.profile_s in spool.toml)"
        except (OSError, ValueError, EOFError):
            self.close()
            what = "ended without an answer"
        raise JobFileError(f"{what}: so the job is refused (correct the profile)", file=self.path)

    def _start(self) -> None:
        import subprocess

        from spoolq import judge

        words = [sys.executable, "-P", "-X", "utf8", judge.__file__, self.path]
        self._child = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, bufsize=0
        )
        for stream in (self._child.stdin, self._child.stdout):
            if stream:
                os.set_blocking(stream.fileno(), False)
        if self._exchange(b"", START_S) != judge.READY:
            raise EOFError

    def _exchange(self, line: bytes, limit_s: float) -> bytes:
        """Send a line and take one; TimeoutError, or EOFError if the child ended."""
        import select

        if self._child is None or self._child.stdin is None or self._child.stdout is None:
            raise EOFError
        to, of = self._child.stdin.fileno(), self._child.stdout.fileno()
        until, view, got = time.monotonic() + limit_s, memoryview(line), b""
        poller = select.poll()  # a node with many jobs has more descriptors than select() takes
        poller.register(of, select.POLLIN)
        if view:
            poller.register(to, select.POLLOUT)
        while not got.endswith(b"\n"):
            left = until - time.monotonic()
            ready = dict(poller.poll(max(0.0, left) * 1000))
            if left <= 0 or not ready:
                raise TimeoutError
            if to in ready:
                view = view[os.write(to, view) :]
                if not view:
                    poller.unregister(to)
            if of in ready:
                part = os.read(of, 1 << 16)
                if not part:
                    raise EOFError
                got += part
        return got


def _view(job: Job, pairs: Sequence[Pair], facts: "Facts") -> dict[str, Any]:
    """What a profile sees: see `judge.Job`."""
    from spoolq.resources import CPUS, MEM, UNIT

    found = facts.inputs()
    return {
        "command": list(job.command),
        "line": facts.line,
        "program": facts.program,
        "script": facts.script,
        "options": {pair.name: pair.value for pair in pairs},
        "name": job.name,
        "user": job.user,
        "host": job.submit_host,
        "chdir": job.chdir,
        "cpus": job.wants[CPUS] / UNIT,
        "mem_mb": job.wants[MEM] / UNIT,
        "time_s": job.limit_s,
        "gres": {name: amount / UNIT for name, amount in job.wants.items() if name not in (CPUS, MEM)},
        "inputs": list(found),
        "input_mb": sum(found.values()) / (1 << 20),
    }


def say(notes: Sequence[str], write: Callable[[str], object]) -> None:
    """Tell the user what was changed, a line each."""
    for note in notes:
        write(f"spoolq: {''.join(c if c.isprintable() else repr(c)[1:-1] for c in note)}\n")
