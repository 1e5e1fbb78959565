"""
See every system call of a process that touches the spool or the node's state, and interfere with one of them.

ptrace(2), without a compiler: the tracer stops the process at the entry and at the exit of each call, reads paths and
descriptors as the kernel will see them, and at one chosen call kills the process before or after it, or lets
it fail. What strace can do and this cannot is nothing that is needed here; what this can do and strace cannot:
count by path and not by number alone (so that a point is the same one in the next run), and kill *after* a call.

x86-64 Linux only: numbers of calls and registers.
"""

import contextlib
import ctypes
import errno
import json
import os
import re
import signal
import struct
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_libc = ctypes.CDLL(None, use_errno=True)
_ptrace = _libc.ptrace
_ptrace.restype = ctypes.c_long
_ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]

_POKEUSER, _SYSCALL, _LISTEN, _SEIZE, _INTERRUPT, _INFO = 6, 24, 0x4208, 0x4206, 0x4207, 0x420E
_SYSGOOD, _FORKS, _CLONES, _EXECS = 1, 2, 8, 0x10
_SET_PDEATHSIG, _SET_PTRACER = 1, 0x59616D61
_EVENT_STOP, _EVENT_EXEC = 128, 4
_WALL = 0x40000000
_RAX, _ORIG_RAX = 80, 120  # offsets in struct user
_info = ctypes.create_string_buffer(88)
_entry = struct.Struct("=B3xIQQ7Q").unpack_from

ERRORS = {name: getattr(errno, name) for name in ("ENOSPC", "EIO", "ESTALE", "EACCES")}
DEATHS = ("before", "after")

# how to find the names: f descriptor, p path (relative to cwd), d a descriptor and the path after it, - skipped
FILES = {
    0: ("read", "f"), 1: ("write", "f"), 2: ("open", "p"), 3: ("close", "f"), 4: ("stat", "p"), 5: ("fstat", "f"),
    6: ("lstat", "p"), 8: ("lseek", "f"), 17: ("pread", "f"), 18: ("pwrite", "f"), 20: ("writev", "f"),
    21: ("access", "p"), 32: ("dup", "f"), 33: ("dup2", "f"), 72: ("fcntl", "f"), 73: ("flock", "f"), 74: ("fsync", "f"),
    75: ("fdatasync", "f"), 76: ("truncate", "p"), 77: ("ftruncate", "f"), 80: ("chdir", "p"), 81: ("fchdir", "f"),
    82: ("rename", "pp"), 83: ("mkdir", "p"), 84: ("rmdir", "p"), 85: ("creat", "p"), 86: ("link", "pp"),
    87: ("unlink", "p"), 88: ("symlink", "-p"), 89: ("readlink", "p"), 90: ("chmod", "p"), 91: ("fchmod", "f"),
    92: ("chown", "p"), 93: ("fchown", "f"), 137: ("statfs", "p"), 138: ("fstatfs", "f"), 217: ("getdents", "f"),
    235: ("utimes", "p"), 254: ("inotify_add_watch", "-p"), 257: ("openat", "d"), 258: ("mkdirat", "d"),
    259: ("mknodat", "d"), 262: ("newfstatat", "d"), 263: ("unlinkat", "d"), 264: ("renameat", "dd"),
    265: ("linkat", "dd"), 266: ("symlinkat", "-d"), 267: ("readlinkat", "d"), 268: ("fchmodat", "d"),
    269: ("faccessat", "d"), 280: ("utimensat", "d"), 285: ("fallocate", "f"), 292: ("dup3", "f"),
    316: ("renameat2", "dd"), 332: ("statx", "d"), 439: ("faccessat2", "d"),
}  # fmt: skip
# what the processes of a node say to each other and do to each other: only deaths make sense here
TALK = {41: "socket", 42: "connect", 43: "accept", 44: "send", 45: "recv", 46: "sendmsg", 47: "recvmsg", 49: "bind"}
TALK |= {50: "listen", 53: "socketpair", 288: "accept4"}
BEGET = {56: "clone", 57: "fork", 58: "vfork", 61: "wait4", 62: "kill", 247: "waitid", 424: "pidfd_send_signal"}
BEGET |= {434: "pidfd_open", 435: "clone3"}
# a death after these leaves nothing that a death before the next call does not leave
LOOKS = frozenset(
    "read close stat fstat lstat lseek pread access fcntl readlink statfs fstatfs getdents newfstatat readlinkat statx "
    "faccessat faccessat2 inotify_add_watch chdir fchdir dup dup2 dup3 socket socketpair recv recvmsg pidfd_open".split()
)
_NEVER_SKIPPED = frozenset(("close",))  # Linux frees the descriptor also when it says EIO

_ENTRY_NAME = re.compile(r"(?<=/)\d{3}\.(\d+)\.\d+\.\d+~[^/]*")
_UNSTEADY = (
    (re.compile(r"\.t\.\d+\.\d+\."), ".t.*."),
    (re.compile(r"(history/)\d{4}-\d\d-\d\d"), r"\1DATE"),
    (re.compile(r"(control/)[^/]+"), r"\1*"),
    (re.compile(r"(admit/)[^/]*~"), r"\1*~"),
)


@dataclass(frozen=True, slots=True)
class Call:
    """
    One call of one process: the n-th (from 1) of its kind by that role.

    Args:
        site: the call and its names, `rename S/queue/E5 -> S/running/n1/E5`; S is the spool, L the node's state.
    """

    role: str
    site: str
    number: int

    @property
    def name(self) -> str:
        """Of the call."""
        return self.site.partition(" ")[0]

    @property
    def kind(self) -> str:
        """The site without what tells one job from another: where in the program it is, roughly."""
        return f"{self.role} {re.sub(r'[0-9]+', 'N', self.site)}"

    @property
    def on_files(self) -> bool:
        """Whether it can fail with an error of a file system."""
        return " " in self.site and not self.site.startswith(tuple(f"{n} " for n in (*TALK.values(), *BEGET.values())))

    def faults(self, *, all_deaths: bool = False) -> list[str]:
        """What may happen here."""
        found = ["before"] + ["after"] * (all_deaths or self.name not in LOOKS)
        return found + list(ERRORS) * self.on_files

    def __str__(self) -> str:
        return f"{self.role}|{self.site}|{self.number}"


@dataclass(frozen=True, slots=True)
class Point:
    """A call, and what happens there: `before`, `after` or the name of an error."""

    call: Call
    fault: str

    def __str__(self) -> str:
        return f"{self.call}|{self.fault}"

    @classmethod
    def parse(cls, text: str) -> "Point":
        """As `str` gives it."""
        role, site, number, fault = text.split("|")
        return cls(Call(role, site, int(number)), fault)


@dataclass
class Plan:
    """
    What to watch and what to do.

    Args:
        roots: `S` and `L` -> directory.
        role: of a process by its name (comm) and pid; empty: not of interest.
        talk: whether sockets and processes count too.
        forks: whether children made by fork are followed (those of a spawn never are: they are jobs).
        point: where to interfere, or None to list all calls.
        armed: counting begins when this says so.
    """

    roots: Mapping[str, str]
    role: Callable[[int], str]
    talk: bool = False
    forks: bool = False
    point: Point | None = None
    armed: Callable[[], bool] = lambda: True


@dataclass
class Trace:
    """What came of it."""

    calls: list[Call] = field(default_factory=list)
    hit: int = 0  # pid of the process in which it happened
    died: bool = False

    def dump(self) -> bytes:
        """For the pipe to the rig."""
        calls = [(c.role, c.site, c.number) for c in self.calls]
        return json.dumps({"calls": calls, "hit": self.hit, "died": self.died}).encode()

    @classmethod
    def load(cls, data: bytes) -> "Trace":
        """The other end."""
        found = json.loads(data)
        return cls([Call(*call) for call in found["calls"]], found["hit"], found["died"])


def ptrace(request: int, pid: int, address: int = 0, data: Any = 0) -> int:
    """One request; OSError if it fails, so ESRCH for a process that was killed meanwhile."""
    done = int(_ptrace(request, pid, address, data))
    if done == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return done


def unavailable() -> str:
    """Why processes cannot be traced here, or empty: tried for real."""
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        return f"the tracer knows x86-64 Linux only, this is {sys.platform} on {os.uname().machine}"
    child = start(["/bin/true"], {})
    try:
        ptrace(_SEIZE, child.pid, 0, _SYSGOOD)
        ptrace(_INTERRUPT, child.pid)
        os.waitpid(child.pid, _WALL)
        ptrace(_SYSCALL, child.pid)
        child.go()
        os.waitpid(child.pid, _WALL)
        ptrace(_INFO, child.pid, len(_info), ctypes.addressof(_info))
    except OSError as error:
        return f"ptrace is not allowed here: {error.strerror}"
    finally:
        child.go()
        with contextlib.suppress(OSError):
            os.kill(child.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while not os.WIFSIGNALED(os.waitpid(child.pid, _WALL)[1]):
                pass
    return ""


@dataclass
class Stub:
    """A process that waits to be let go and then becomes a program."""

    pid: int
    gate: int

    def go(self) -> None:
        """Let it."""
        if self.gate >= 0:
            os.close(self.gate)
            self.gate = -1


def start(
    words: Sequence[str],
    env: Mapping[str, str],
    files: Sequence[int] = (),
    cwd: str = "/",
    inside: Callable[[Sequence[str]], int] | None = None,
) -> Stub:
    """
    Fork a process that will execute some words, once `go` is said.

    Args:
        files: descriptors for 0, 1, 2; the rest are closed.
        inside: what the words mean, called in the forked process instead of executing them; gives the exit code.
    """
    hold, gate = os.pipe()
    pid = os.fork()
    if pid:
        os.close(hold)
        return Stub(pid, gate)
    code = 127
    try:
        os.close(gate)
        _libc.prctl(_SET_PDEATHSIG, 0, 0, 0, 0)
        _libc.prctl(_SET_PTRACER, ctypes.c_ulong(-1), 0, 0, 0)  # by anybody, where Yama asks
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.read(hold, 1)
        for number, fd in enumerate(files):
            os.dup2(fd, number)
        os.closerange(3, 1024)
        os.setsid()
        os.chdir(cwd)
        if inside is None:
            os.execve(words[0], list(words), dict(env))
        os.environ.clear()
        os.environ.update(env)
        sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
        code = inside(words)
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        os._exit(code)


def trace_apart(stub: Stub, plan: Plan) -> tuple[int, int]:
    """Trace in a process of its own, which alone may; returns its pid and a descriptor of what it finds."""
    out, into = os.pipe()
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(out)
            os.close(ready)
            tracer = Tracer(stub.pid, plan)
            os.close(tell)
            stub.go()
            tracer.run()
            with open(into, "wb") as file:
                file.write(tracer.trace.dump())
            code = 0
        finally:
            os._exit(code)
    os.close(into)
    os.close(tell)
    os.read(ready, 1)
    os.close(ready)
    stub.go()
    return pid, out


class Tracer:
    """Of one process, its threads, and if asked for its forked children."""

    def __init__(self, pid: int, plan: Plan) -> None:
        self.plan, self.trace = plan, Trace()
        self.counts: dict[tuple[str, str], int] = {}
        self.inside: dict[int, tuple[str, Call | None]] = {}  # thread -> what to do at the exit of its call
        self.memory: dict[int, int] = {}
        self.prefixes = [(os.path.realpath(path), letter) for letter, path in plan.roots.items()]
        ptrace(_SEIZE, pid, 0, _SYSGOOD | _CLONES | _EXECS | (_FORKS if plan.forks else 0))
        ptrace(_INTERRUPT, pid)

    def run(self) -> None:
        """Until nothing is left to trace, or the fault has happened."""
        while not self.trace.hit:
            try:
                tid, status = os.waitpid(-1, _WALL)
            except ChildProcessError:
                return
            if not os.WIFSTOPPED(status):
                self.inside.pop(tid, None)
                self.close_memory(tid)
                continue
            with contextlib.suppress(ProcessLookupError):
                self.stopped(tid, status)
        with contextlib.suppress(ChildProcessError):
            while self.trace.died:  # take its death, and that of its threads, so that its parent is told
                tid, status = os.waitpid(-1, _WALL)
                if tid == self.trace.hit and not os.WIFSTOPPED(status):
                    return

    def stopped(self, tid: int, status: int) -> None:
        """One stop of one thread; it goes on."""
        number, event = os.WSTOPSIG(status), status >> 16
        if number == signal.SIGTRAP | 0x80:
            ptrace(_INFO, tid, len(_info), ctypes.addressof(_info))
            words = _entry(_info)
            if words[0] == 1:
                self.enters(tid, words[4], words[5:11])
            elif tid in self.inside:
                self.leaves(tid, *self.inside.pop(tid))
            if not self.trace.hit or not self.trace.died:
                ptrace(_SYSCALL, tid)
        elif event == _EVENT_STOP and number in (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU):
            ptrace(_LISTEN, tid)
        elif event:
            if event == _EVENT_EXEC:
                self.close_memory(tid)
            ptrace(_SYSCALL, tid)
        else:
            ptrace(_SYSCALL, tid, 0, number)

    def enters(self, tid: int, number: int, arguments: Sequence[int]) -> None:
        """A call begins."""
        site = self.site(tid, number, arguments)
        if not site or not self.plan.armed():
            return
        role = self.plan.role(tid)
        if not role:
            return
        count = self.counts[role, site] = self.counts.get((role, site), 0) + 1
        call, point = Call(role, site, count), self.plan.point
        if point is None:
            self.trace.calls.append(call)
        elif call == point.call:
            if point.fault == "before":
                self.kill(tid, skip=True)
            else:
                self.inside[tid] = (point.fault, call)
                if point.fault != "after" and call.name not in _NEVER_SKIPPED:
                    ptrace(_POKEUSER, tid, _ORIG_RAX, ctypes.c_void_p(-1))

    def leaves(self, tid: int, fault: str, _call: Call | None) -> None:
        """The chosen call has ended."""
        if fault == "after":
            self.kill(tid)
        else:
            ptrace(_POKEUSER, tid, _RAX, ctypes.c_void_p(-ERRORS[fault]))
            self.trace.hit = group_of(tid)

    def kill(self, tid: int, *, skip: bool = False) -> None:
        """The whole process, here; `skip`: certainly without the call that it is about to make."""
        if skip:
            ptrace(_POKEUSER, tid, _ORIG_RAX, ctypes.c_void_p(-1))
        self.trace.hit, self.trace.died = group_of(tid), True
        os.kill(self.trace.hit, signal.SIGKILL)

    # --- reading

    def site(self, tid: int, number: int, arguments: Sequence[int]) -> str:
        """The call in words, or empty if it touches nothing of ours."""
        if number in FILES:
            name, kinds = FILES[number]
            paths = self.paths(tid, kinds, arguments)
            if any(paths):
                return f"{name} {' -> '.join(path or 'elsewhere' for path in paths)}"
        elif self.plan.talk and number in TALK:
            return TALK[number]
        elif self.plan.talk and number in BEGET and not (number == 56 and arguments[0] & 0x10000):  # CLONE_THREAD
            return BEGET[number]
        return ""

    def paths(self, tid: int, kinds: str, arguments: Sequence[int]) -> list[str]:
        """The names among the arguments, those of ours as `S/...` or `L/...`, others empty."""
        found, at = [], 0
        for kind in kinds:
            if kind == "f":
                found.append(self.of_fd(tid, arguments[at]))
            elif kind == "p":
                found.append(self.of_path(tid, -100, arguments[at]))
            elif kind == "d":
                found.append(self.of_path(tid, ctypes.c_int(arguments[at]).value, arguments[at + 1]))
                at += 1
            at += 1
        return found

    def of_fd(self, tid: int, fd: int) -> str:
        """What a descriptor is open on."""
        try:
            return self.ours(os.readlink(f"/proc/{tid}/fd/{fd}").removesuffix(" (deleted)"))
        except OSError:
            return ""

    def of_path(self, tid: int, directory: int, address: int) -> str:
        """A path, relative to a directory or to where the process is."""
        text = self.text(tid, address)
        if not text and directory != -100:
            return self.of_fd(tid, directory)
        if not text.startswith("/"):
            try:
                base = os.readlink(f"/proc/{tid}/cwd" if directory == -100 else f"/proc/{tid}/fd/{directory}")
            except OSError:
                return ""
            text = f"{base}/{text}"
        return self.ours(os.path.normpath(text))

    def ours(self, path: str) -> str:
        """As it is shown, without what differs from run to run; empty if it is not ours."""
        for prefix, letter in self.prefixes:
            if path == prefix or path.startswith(prefix + "/"):
                path = _ENTRY_NAME.sub(r"E\1", letter + path[len(prefix) :])
                for pattern, steady in _UNSTEADY:
                    path = pattern.sub(steady, path)
                return path
        return ""

    def text(self, tid: int, address: int) -> str:
        """The string at an address of the process."""
        if not address:
            return ""
        fd = self.memory.get(tid)
        if fd is None:
            fd = self.memory[tid] = os.open(f"/proc/{tid}/mem", os.O_RDONLY)
        data = b""
        while b"\0" not in data and len(data) < 4096:
            at = address + len(data)
            try:
                part = os.pread(fd, 4096 - at % 4096, at)
            except OSError:
                return ""
            if not part:
                return ""
            data += part
        return data.partition(b"\0")[0].decode("utf-8", "surrogateescape")

    def close_memory(self, tid: int) -> None:
        """After an exec or the end of a thread."""
        if tid in self.memory:
            os.close(self.memory.pop(tid))


def group_of(tid: int) -> int:
    """The process of a thread."""
    with open(f"/proc/{tid}/status", encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("Tgid:"):
                return int(line.split()[1])
    return tid


def name_of(pid: int) -> str:
    """As `ps` shows it, or empty."""
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().rstrip("\n")
    except OSError:
        return ""
