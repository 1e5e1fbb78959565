"""
Make a waiting job ready to start on this node: read its home, find its directory and program, open its outputs.

What can be known before the claim is looked at before it (the working directory must exist here), so
that a job that cannot start here stays where it is, with the reason. What the runner gets are words
and open descriptors: the runner itself never opens a path of the spool.
"""

import contextlib
import errno
import os
import pwd
import signal
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from spoolq import devices, elbow, environment, fsops, home, host, paths, script, ship, stored, tasks
from spoolq.config import Policy
from spoolq.devices import Held, Kinds
from spoolq.entry import Entry
from spoolq.errors import JobFileError
from spoolq.job import Job
from spoolq.ship import Target
from spoolq.spool import Spool
from spoolq.values import parse_warning

# the spool or the machine is short of something: the job waits, here or for another node
NOT_THE_JOBS_FAULT = frozenset(
    (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EROFS, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE)
)
REMEMBER = 256  # prepared jobs kept; a waiting job's files do not change
NO_KINDS: Kinds = MappingProxyType({})
LOOK_AGAIN_S = 10.0  # a directory or program that was missing may have come


@dataclass(frozen=True, slots=True)
class Prepared:
    """
    A job with its environment, as its home says.

    `search` is the job's PATH, `interpreter` what runs its script.
    `problem` is empty, or why it can never start (its files are gone or broken): it is then claimed
    and ended as FAILED, since waiting would not help. `missing` is empty, or the working directory
    that does not exist on this node: the job stays for another.
    """

    job: Job
    env: environment.Shared
    search: str = ""
    interpreter: tuple[str, ...] = ()
    problem: str = ""
    missing: str = ""


def _hopeless(problem: str) -> Prepared:
    return Prepared(Job(command=("?",)), environment.Shared((), (), True), problem=problem)


class Launcher:
    """Prepares jobs of one spool for one node."""

    def __init__(
        self,
        spool: Spool,
        node: str,
        *,
        state_dir: str,
        groups: str | None = None,
        kinds: Kinds = NO_KINDS,
    ) -> None:
        """
        Nothing is read yet.

        Args:
            state_dir: the node's own directory, for outputs in mode `local`.
            groups: a delegated cgroup v2 directory in which each job gets a group of its own, or None.
            kinds: the devices of this node that are told apart.
        """
        self.spool, self.node, self.state_dir, self.groups, self.kinds = spool, node, state_dir, groups, kinds
        self.path_map: Mapping[str, str] = {}  # paths that are called otherwise on this node
        self.remote_spool = host.file_system(spool.root).remote
        self._prepared: OrderedDict[int, tuple[float, Prepared]] = OrderedDict()
        self._programs: dict[tuple[str, str, str], tuple[float, str | None]] = {}
        self._remote: dict[str, bool] = {}
        self._base = tuple(base_environment().items())

    def prepare(self, entry: Entry) -> Prepared:
        """What the home says; remembered, except for what may change."""
        now = time.monotonic()
        known = self._prepared.get(entry.id)
        if known and (not known[1].missing or now - known[0] < LOOK_AGAIN_S):
            return known[1]
        ready = self._read(entry)
        if ready.problem:
            self.spool.check_same()  # away, or not a spool's fault
            return ready
        self._prepared[entry.id] = (now, ready)
        while len(self._prepared) > REMEMBER:
            self._prepared.popitem(last=False)
        return ready

    def forget(self, job_id: int) -> None:
        """Its entry is gone or changed."""
        self._prepared.pop(job_id, None)

    def _read(self, entry: Entry) -> Prepared:
        try:
            data = home.read_job(self.spool.root, entry.id)
            job = stored.read_job(data, f"{home.path_of(self.spool.root, entry.id)}/job")
            packed = home.read_env(self.spool.root, entry.id)
            env = environment.shared(packed or b"", () if packed else self._base)
            # the interpreter is run on the copy, so that a spool mounted noexec does not matter
            interpreter = script.interpreter(home.read_script(self.spool.root, entry.id)) if job.script else ()
        except JobFileError as error:
            return _hopeless(str(error))
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EFBIG):
                raise
            return _hopeless(f"{error.filename}: {error.strerror}")
        job = paths.job_here(job, self.path_map, self.spool.root)
        missing = "" if os.path.isdir(job.chdir) else job.chdir
        search = next((line[5:] for line in env.lines if line.startswith("PATH=")), "")
        return Prepared(job, env, search, tuple(interpreter), missing=missing)

    def open_outputs(self, entry: Entry, job: Job) -> list[int]:
        """
        Descriptors for stdout and stderr; one and the same file if only --output was given.

        In output mode `local` they are local files, and the real ones are opened to see that it can be done.

        Raises:
            OSError: naming the file that cannot be written.
        """
        again = entry.attempt > 1 or job.open_mode == "append"
        targets = self._open(entry, job, again=again)
        fds = [target.fd for target in targets]
        if job.output_mode == "local":
            fds = ship.begin(self.state_dir, entry, targets, again=again)
        try:
            return fds if len(fds) > 1 else [fds[0], os.dup(fds[0])]
        except OSError:
            fsops.close(fds[0])
            raise

    def _open(self, entry: Entry, job: Job, *, again: bool) -> list[Target]:
        names = home.fill_in(entry, job.name, job.user) | {"N": self.node}
        opened: list[Target] = []
        for stream, pattern in (("stdout", job.output), ("stderr", job.error)):
            if opened and job.output is not None and pattern in (None, job.output):
                break  # one file for both
            path = home.output_path(self.spool.root, entry, pattern, stream, names, job.chdir)
            shared = entry.chunk and pattern is not None and not home.tells_tasks(pattern)  # all tasks write into it
            try:
                fd = self._open_one(path, append_to=again or bool(shared), make=bool(entry.chunk and pattern is None))
            except OSError:
                for target in opened:
                    fsops.close(target.fd)
                raise
            opened.append(Target(stream, path, pattern is None, fd))
            if pattern is not None and not entry.chunk:
                self._leave_link(entry.id, stream, path)
        return opened

    def _open_one(self, path: str, *, append_to: bool, make: bool) -> int:
        try:
            return fsops.open_output(path, append_to=append_to)
        except FileNotFoundError:
            if not make:
                raise
        tasks.make_room(path)
        return fsops.open_output(path, append_to=append_to)

    def _leave_link(self, job_id: int, stream: str, path: str) -> None:
        with contextlib.suppress(OSError):
            fsops.symlink(path, f"{home.path_of(self.spool.root, job_id)}/{stream}")

    def message(self, entry: Entry, ready: Prepared, scratch: str, policy: Policy, held: Held) -> dict[str, Any]:
        """The start message without descriptors; see `channel`."""
        job = ready.job
        path = home.path_of(self.spool.root, entry.id)
        argv = [*ready.interpreter, f"{path}/script", *job.command] if job.script else [*job.command]
        env = environment.for_job(ready.env, entry, job, node=self.node, spool=self.spool.root, tmpdir=scratch)
        if self.kinds:
            env = devices.lines(env, self.kinds, held)
        program = self._program(argv[0], job.chdir, ready.search)
        message = ({"devices": held} if held else {}) | {
            "op": "start",
            "id": entry.unit,
            "attempt": entry.attempt,
            "gen": entry.gen,
            "argv": argv,
            "program": program,
            "env": env,
            "umask": job.umask,
            "chdir": job.chdir,
            "remote": self.remote_spool or self._is_remote(job.chdir),
            "grace_s": policy.grace_s,
            "rerun": entry.rerun,
            "scratch": scratch,
            "cgroup": f"{self.groups}/{self.node}-{entry.unit}.{entry.attempt}" if self.groups else "",
            **elbow.enforced(entry, job, policy)._asdict(),
        }
        if job.signal:
            word, before_s, first = parse_warning(job.signal)
            number = int(word) if word.isdigit() else signal.Signals["SIG" + word].value
            message["warn"] = [number, before_s, int(first)]
        return message

    def _is_remote(self, path: str) -> bool:
        if path not in self._remote:
            if len(self._remote) > REMEMBER:
                self._remote.clear()
            self._remote[path] = host.file_system(path).remote
        return self._remote[path]

    def _program(self, word: str, chdir: str, search: str) -> str | None:
        """The absolute path of a program, or None; looked for as a shell would, in the job's PATH."""
        key = (word, chdir if "/" in word else "", search)
        now = time.monotonic()
        known = self._programs.get(key)
        if known and now - known[0] < LOOK_AGAIN_S:
            return known[1]
        candidates = [os.path.join(chdir, word)] if "/" in word else [f"{d}/{word}" for d in search.split(":") if d]
        found = next((c for c in candidates if os.path.isfile(c) and os.access(c, os.X_OK)), None)
        if found is None:  # let exec say what is wrong with it
            found = next((c for c in candidates if os.path.exists(c)), None)
        if len(self._programs) > REMEMBER:
            self._programs.clear()
        self._programs[key] = (now, found)
        return found


def base_environment() -> dict[str, str]:
    """What a dropped job starts with: as after a login, nothing of the daemon's own."""
    name, directory, shell = str(os.getuid()), "/", ""
    with contextlib.suppress(KeyError):  # a user without an entry, as in containers
        known = pwd.getpwuid(os.getuid())
        name, directory, shell = known.pw_name, known.pw_dir, known.pw_shell
    return {
        "HOME": directory,
        "USER": name,
        "LOGNAME": name,
        "SHELL": shell or "/bin/sh",
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "LANG": os.environ.get("LANG", "C.UTF-8"),
    }
