"""
Messages between the daemon and its node family, and the daemon's end of them.

A message is a 4-byte big-endian length and that many bytes of UTF-8 JSON on a unix stream socket.
Descriptors ride on the first byte of their message, which says in `fds` how many it takes.
Invariant: neither side ever waits for the other; what cannot be sent now is kept and sent later, its
descriptors duplicated, so that the caller may close its own at once.
It never reads or writes anything but the socket, and starts nothing but the family.
"""

import array
import contextlib
import errno
import json
import os
import socket
import sys
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

from spoolq.errors import TryAgain

SOCKET = "runner.sock"
LARGEST = 64 << 20  # bytes of one message: no argument list or environment comes near
_CHUNK = 1 << 18
_MOST_FDS = 253  # SCM_MAX_FD, descriptors of one sendmsg
_ANCILLARY = socket.CMSG_SPACE(_MOST_FDS * 4)

Message = dict[str, Any]
encode = json.JSONEncoder(ensure_ascii=True, separators=(",", ":")).encode  # lone surrogates survive as \\udcXX


quote = json.encoder.encode_basestring_ascii  # one text, as `encode` would


PROGRAM = "program"  # in the state directory: where the program of the family lies


class Gone(ConnectionError):
    """The other end has closed, died or talked nonsense: connect anew and ask what is known."""


class Channel:
    """One end of a connection; both ends are the same."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._received = bytearray()
        self._descriptors: deque[int] = deque()
        self._unsent: deque[tuple[bytes, Sequence[int]]] = deque()
        self._gone = ""

    def fileno(self) -> int:
        """For poll; -1 when closed."""
        return self.sock.fileno()

    @property
    def waiting(self) -> bool:
        """Whether something is still to be sent: poll for writing, then `flush`."""
        return bool(self._unsent)

    def post(self, text: str, fds: Sequence[int] = ()) -> None:
        """
        Send one message of JSON text, or keep it.

        Raises:
            Gone: the other end is; nothing is kept.
        """
        body = text.encode()
        self.write(len(body).to_bytes(4, "big") + body, fds)

    def post_all(self, texts: Iterable[str]) -> None:
        """Send messages without descriptors in one call; raises like `post`."""
        bodies = [text.encode() for text in texts]
        self.write(b"".join([len(body).to_bytes(4, "big") + body for body in bodies]))

    def write(self, frame: bytes, fds: Sequence[int] = ()) -> None:
        """Send whole messages already framed; raises like `post`."""
        if self._unsent:
            self.flush()
        if not self._unsent:
            sent = self._send(frame, fds)
            if sent == len(frame):
                return
            frame, fds = frame[sent:], () if sent else fds
        self._unsent.append((frame, [os.dup(fd) for fd in fds]))

    def flush(self) -> None:
        """Send what was kept, as far as it goes now; raises like `post`."""
        while self._unsent:
            frame, fds = self._unsent.popleft()
            sent = self._send(frame, fds)
            if sent:
                _close_all(fds)
            if sent < len(frame):
                self._unsent.appendleft((frame[sent:], () if sent else fds))
                return

    def _send(self, frame: bytes, fds: Sequence[int]) -> int:
        try:
            if fds:
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
                return self.sock.sendmsg([frame], rights, socket.MSG_NOSIGNAL)
            return self.sock.send(frame, socket.MSG_NOSIGNAL)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            if error.errno in (errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS):
                return 0  # the machine is short of something now; the next flush tries again
            raise Gone(str(error)) from error

    def receive(self, most: int = 256) -> list[tuple[Message, list[int]]]:
        """
        What has come, in order, with its descriptors (close on exec), which the caller must close.

        Args:
            most: calls of recvmsg; the rest stays for the next time, so that a flood cannot hold the loop.

        Raises:
            Gone: the other end closed and everything it said was given out.
        """
        found: list[tuple[Message, list[int]]] = []
        for _ in range(0 if self._gone else most):
            try:
                part, ancillary, flags, _ = self.sock.recvmsg(_CHUNK, _ANCILLARY, socket.MSG_CMSG_CLOEXEC)
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:
                self._gone = str(error)
                break
            for _, _, rights in ancillary:
                self._descriptors.extend(array.array("i", rights[: len(rights) // 4 * 4]))
            if flags & socket.MSG_CTRUNC:
                self._gone = "too many open files here"
                break
            if not part:
                self._gone = "closed by the other end"
                break
            self._received += part
            self._cut(found)
        if self._gone and not found:
            raise Gone(self._gone)
        return found

    def _cut(self, found: list[tuple[Message, list[int]]]) -> None:
        data, at = self._received, 0
        while len(data) - at >= 4:
            length = int.from_bytes(data[at : at + 4], "big")
            if length > LARGEST:
                raise Gone(f"a message of {length} bytes")
            if len(data) - at - 4 < length:
                break
            try:
                message = json.loads(data[at + 4 : at + 4 + length].decode())
                fds = [self._descriptors.popleft() for _ in range(message.get("fds") or 0)]
            except (ValueError, AttributeError, TypeError, IndexError) as error:
                raise Gone(f"no message: {error}") from error
            found.append((message, fds))
            at += 4 + length
        del data[:at]

    def close(self) -> None:
        """Close, with all descriptors that nobody took."""
        _close_all(self._descriptors)
        for _, fds in self._unsent:
            _close_all(fds)
        self._unsent.clear()
        self._descriptors.clear()
        self.sock.close()


def _close_all(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)


class Place:
    """A directory whose sockets can be named however long its path is (108 bytes are all that a socket takes)."""

    def __init__(self, directory: str) -> None:
        self._fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def __enter__(self) -> "Place":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def path(self, name: str) -> str:
        """A short path of `name` in the directory, while this is open."""
        return f"/proc/self/fd/{self._fd}/{name}"


def connect(state_dir: str) -> Channel | None:
    """A channel to the family that answers in a state directory; None if none does."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.setblocking(False)  # a unix socket connects at once or says EAGAIN
    with Place(state_dir) as place:
        try:
            sock.connect(place.path(SOCKET))
        except OSError as error:
            sock.close()
            if error.errno in (errno.ENOENT, errno.ECONNREFUSED, errno.EAGAIN):
                return None
            raise
    return Channel(sock)


def command(state_dir: str, *options: str) -> list[str]:
    """
    The words that run the family's program: where the daemon of this state directory said it lies.

    A family outlives its daemons, and a newer one may be installed elsewhere.
    """
    python, root = sys.executable, os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    with contextlib.suppress(OSError, ValueError), open(os.path.join(state_dir, PROGRAM), encoding="utf-8") as file:
        said = json.load(file)
        if os.access(said["python"], os.X_OK) and os.path.isdir(f"{said['root']}/spoolq"):
            python, root = said["python"], said["root"]
    program = f"import sys; sys.path[:0]=[{root!r}]; from spoolq.supervise import main; main()"
    return [python, "-I", "-X", "utf8", "-c", program, os.path.abspath(state_dir), *options]


def say_program(state_dir: str) -> None:
    """Let the family execute, from now on, what this process runs."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    path = os.path.join(state_dir, PROGRAM)
    with open(path + ".new", "w", encoding="utf-8") as file:
        json.dump({"python": sys.executable, "root": root}, file)
    os.replace(path + ".new", path)


def start_family(state_dir: str, *, idle_s: float) -> int:
    """Start the family, detached and in a session of its own; returns the pid of a starter, which exits soon."""
    say_program(state_dir)
    log = os.path.join(state_dir, "family.log")
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    words = command(state_dir, f"--idle={idle_s}")
    return os.posix_spawn(words[0], words, os.environ, file_actions=actions, setsid=True, setsigmask=[])


class Family:
    """
    The daemon's end.

    Messages are in the docstring of `runner`. When `receive` or `send` raises Gone, `connect` again
    and say hello: what is `known` then is the truth; a start that is not in it did not happen.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    @classmethod
    def connect(cls, state_dir: str, *, timeout_s: float = 15.0, idle_s: float = 60.0) -> "Family":
        """
        A connection to the family, which is started if none answers.

        Args:
            idle_s: seconds after which the started family exits when it has no daemon and no job.

        Raises:
            TryAgain: none came up within timeout_s seconds; `family.log` in the directory says why.
        """
        os.makedirs(state_dir, mode=0o700, exist_ok=True)
        give_up, started, starter = time.monotonic() + timeout_s, 0.0, 0
        while True:
            channel = connect(state_dir)
            if starter:  # it ends as soon as the family is on its own
                with contextlib.suppress(ChildProcessError):
                    starter = 0 if os.waitpid(starter, 0 if channel else os.WNOHANG)[0] else starter
            if channel is not None:
                return cls(channel)
            now = time.monotonic()
            if now > give_up:
                raise TryAgain(f"the runner does not answer ({os.path.join(state_dir, 'family.log')} may say why)")
            if not starter and now - started > 0.5:
                starter, started = start_family(state_dir, idle_s=idle_s), now
            time.sleep(0.01)

    def fileno(self) -> int:
        """For poll."""
        return self._channel.fileno()

    @property
    def waiting(self) -> bool:
        """Whether `flush` is due as soon as the socket takes more."""
        return self._channel.waiting

    def hello(self, *, version: str, lease: float | None = None, fence: float | None = None) -> None:
        """Ask what is known; `lease` and `fence` as in `lease`. The answer comes by `receive`: op `known`."""
        self.send({"op": "hello", "version": version, "boottime_lease": lease, "fence": fence})

    def lease(self, until: float, *, fence: float | None = None) -> None:
        """Allow starts until, and if `fence` end jobs of rule Y after, these seconds of CLOCK_BOOTTIME."""
        self.send({"op": "lease", "until": until, "fence": fence})

    def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Send or keep a message; never blocks, and the caller may close `fds` at once. Raises Gone."""
        if fds:
            message = {**message, "fds": len(fds)}
        self._channel.post(encode(message), fds)

    def flush(self) -> None:
        """Send what was kept; raises Gone."""
        self._channel.flush()

    def receive(self) -> list[Message]:
        """All messages that have come, possibly none. Raises Gone when the family (or this connection) ended."""
        with_fds = self._channel.receive()
        for _, fds in with_fds:
            _close_all(fds)
        return [message for message, _ in with_fds]

    def close(self) -> None:
        """Leave; the family and its jobs go on."""
        self._channel.close()
