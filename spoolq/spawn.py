"""
Start the program of a job: posix_spawn, and nothing of ours in what it sees.

Fork is never used: it costs three times a spawn. What lies on a network file system, or must first
enter a cgroup, is started through a trampoline, a few words of shell: posix_spawn holds its caller
until the exec, and a hung mount may hang the job but never the runner. The trampoline writes where it
is into its process name, which also a zombie keeps; so a launch that failed in it can be told from a
program that exited with 126 or 127.
Invariant: a job inherits descriptors 0, 1, 2, the given umask and directory, default signals and the
given environment, and nothing else.
"""

import contextlib
import errno
import os
import resource
import signal
from collections.abc import Mapping, Sequence
from typing import Any

_SHELL = "/bin/sh"
_LANDING = "spoolq-"  # how the process name of a trampoline begins until the exec
_TRAMPOLINE = """\
printf %s spoolq-cgroup 2>/dev/null >/proc/self/comm
if [ -n "$1" ]; then echo $$ >"$1" || exit 126; fi
printf %s spoolq-cd 2>/dev/null >/proc/self/comm
if [ -n "$2" ]; then cd -- "$2" || exit 126; fi
shift 2
printf %s spoolq-exec 2>/dev/null >/proc/self/comm
exec "$@"
"""
# no fault of the job: the machine is short of something, nothing was started, it may work later or elsewhere
_SHORT = frozenset((errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EINTR))


class LaunchError(Exception):
    """A program that could not be started: `exit_code` as a shell gives it, and the reason in words."""

    def __init__(self, exit_code: int, detail: str) -> None:
        self.exit_code, self.detail = exit_code, detail
        super().__init__(detail)


class NoRoomError(Exception):
    """Nothing was started, for want of processes, memory or descriptors."""


class Spawner:
    """Starts programs; holds what all starts share."""

    def __init__(self, family: str) -> None:
        """`family`: the state directory of the node, by which its jobs are told from those of other nodes here."""
        self._family = family
        self._null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        self._defaults = [s for s in signal.valid_signals() if signal.getsignal(s) is signal.SIG_IGN]
        self._umask: int | None = None
        self._away = False

    def start(self, message: Mapping[str, Any], fds: Sequence[int], procs: str) -> int:
        """
        Start what a start message describes (see `runner`).

        Args:
            fds: stdout, stderr (missing ones are /dev/null), and the directory if `cwdfd` is set.
            procs: `cgroup.procs` of the group to enter, or empty.

        Returns:
            The pid, leader of its own session.

        Raises:
            LaunchError: the program or its directory is at fault.
            NoRoomError: the machine is.
        """
        outputs = list(fds[:-1] if message.get("cwdfd") else fds)
        argv = [str(word) for word in message["argv"]]
        environment = _environment(message, self._family)
        chdir, remote = message.get("chdir"), bool(message.get("remote"))
        program = message.get("program")
        if program is None and not remote:
            program = _find(argv[0], environment.get("PATH", os.defpath))
        if message["umask"] != self._umask:
            self._umask = message["umask"]
            os.umask(self._umask & 0o777)
        if remote or procs:
            inside = chdir if remote and not message.get("cwdfd") and chdir else ""
            argv = [_SHELL, "-c", _TRAMPOLINE, "spoolq", procs, inside, program or argv[0], *argv[1:]]
            program = _SHELL
        self._enter(fds[-1] if message.get("cwdfd") else -1, None if remote else chdir)
        null = self._null
        out, err = (*outputs, null, null)[:2]
        actions = ((os.POSIX_SPAWN_DUP2, null, 0), (os.POSIX_SPAWN_DUP2, out, 1), (os.POSIX_SPAWN_DUP2, err, 2))
        try:
            return self._spawn(str(program), argv, environment, actions)
        except OSError as error:
            if error.errno in _SHORT:
                raise NoRoomError(os.strerror(error.errno or 0)) from error
            raise _launch_error(error, str(program)) from error
        except ValueError as error:
            raise LaunchError(126, f"cannot execute {str(program)!r}: {error}") from error

    def _spawn(self, program: str, argv: list[str], environment: Mapping[str, str], actions: Any) -> int:
        try:
            return os.posix_spawn(
                program,
                argv,
                environment,
                file_actions=actions,
                setsid=True,
                setsigmask=(),
                setsigdef=self._defaults,
            )
        except OSError as error:
            # a text without #! is for the shell, as all shells hold it
            if error.errno != errno.ENOEXEC or not _is_text(program):
                raise
        return self._spawn(_SHELL, [_SHELL, program, *argv[1:]], environment, actions)

    def _enter(self, fd: int, path: str | None) -> None:
        try:
            if fd >= 0:
                os.fchdir(fd)
            else:
                os.chdir(path or "/")
            self._away = True
        except (OSError, ValueError) as error:
            where = path or "the working directory"
            raise LaunchError(126, f"cannot enter {where}: {getattr(error, 'strerror', error)}") from error

    def close(self) -> None:
        """Start no more."""
        os.close(self._null)

    def leave(self) -> None:
        """Step out of the last job's directory, so that its file system can be unmounted."""
        if self._away:
            os.chdir("/")
            self._away = False


def _environment(message: Mapping[str, Any], family: str) -> dict[str, str]:
    environment = {}
    for line in message["env"]:
        name, equals, value = line.partition("=")
        if name and equals:
            environment[name] = value
    # the marker by which orphans are told to be of this job
    environment.setdefault("SPOOLQ_JOB_ID", str(message["id"]))
    environment.setdefault("SPOOLQ_ATTEMPT", str(message["attempt"]))
    environment["SPOOLQ_FAMILY"] = family
    return environment


def _find(word: str, search: str) -> str:
    if "/" in word:
        return word
    denied = None
    for directory in search.split(":"):
        path = os.path.join(directory or ".", word)
        if os.path.isfile(path):
            if os.access(path, os.X_OK):
                return path
            denied = denied or path
    return denied or word


def _is_text(program: str) -> bool:
    try:
        with open(program, "rb", buffering=0) as file:
            return b"\0" not in file.read(128)
    except OSError:
        return False


def _launch_error(error: OSError, program: str) -> LaunchError:
    missing = error.errno in (errno.ENOENT, errno.ENOTDIR)
    text = f"cannot execute {program}: {error.strerror}"
    if missing and os.path.exists(program):
        text += " (its interpreter after #! is missing)"
    return LaunchError(127 if missing else 126, text)


def landing(comm: str, exit_code: int | None) -> str:
    """What went wrong in a trampoline, in words, by the name and exit code of the ended process; or empty."""
    if exit_code not in (126, 127) or not comm.startswith(_LANDING):
        return ""
    place = comm.removeprefix(_LANDING)
    if place == "exec":
        return "cannot execute the program: " + ("not found" if exit_code == 127 else "permission denied or no program")
    return {"cd": "cannot enter the working directory", "cgroup": "cannot enter the control group"}.get(place, "")


def limit_data(pid: int, mem_mb: int) -> None:
    """A backstop behind the sampling of memory: RLIMIT_DATA of 4 times the limit and 1 GiB; best effort."""
    most = (4 * mem_mb + 1024) << 20
    with contextlib.suppress(OSError, ValueError):
        resource.prlimit(pid, resource.RLIMIT_DATA, (most, most))
