"""
A spool that does not answer, without NFS: `python -m tests.hang COMMAND ...` is `spoolq COMMAND ...` on one.

While a child made by vfork has not executed, its parent waits in state D and can be killed: just as on a hard
NFS mount whose server is gone. The child made here opens a FIFO that nobody writes, so the parent hangs until
somebody does. Every call of `os` with a path below the spool hangs so, while the FIFO is there.
"""

import contextlib
import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FIFO = "SPOOLQ_TEST_HANG"  # its path
CALLS = "SPOOLQ_TEST_HANG_CALLS"  # names of the calls that hang, or of all
REPO = str(Path(__file__).parent.parent)
ALL = "open listdir scandir stat lstat rename mkdir rmdir unlink statvfs readlink symlink link utime"


class Hang:
    """Makes a spool hang for those who are started with `env`."""

    def __init__(self, base: str) -> None:
        self.fifo = f"{base}/hung"
        self.env = {FIFO: self.fifo, "PYTHONPATH": REPO}

    def begin(self) -> None:
        """From now on nothing below the spool answers."""
        os.mkfifo(self.fifo)

    def end(self) -> None:
        """It answers again, also to those who wait."""
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(self.fifo, os.O_RDWR | os.O_NONBLOCK)
            os.unlink(self.fifo)
            os.close(fd)

    @contextlib.contextmanager
    def lasting(self) -> Iterator[None]:
        """For a while."""
        self.begin()
        try:
            yield
        finally:
            self.end()


def start(env: dict[str, str], *words: str, **kwargs: Any) -> "subprocess.Popen[str]":
    """A command on the spool that may hang."""
    kwargs = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **kwargs}
    return subprocess.Popen([sys.executable, "-m", "tests.hang", *words], env=env, **kwargs)


def stuck(pid: int) -> bool:
    """Whether the first thread of a process is in state D."""
    with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
        return file.read().rpartition(")")[2].split()[0] == "D"


def resting(pid: int) -> bool:
    """Whether a process has hardly done anything for half a second but sleep: it has begun, and waits for something."""
    first, asleep = _spent(pid)[1], 0
    for _ in range(10):
        time.sleep(0.05)
        state, ticks = _spent(pid)
        asleep += state == "S"
    return asleep >= 8 and ticks - first <= 3


def _spent(pid: int) -> tuple[str, int]:
    """Its state and the ticks (1/100 s) for which it ran."""
    with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
        words = file.read().rpartition(")")[2].split()
    return words[0], int(words[11]) + int(words[12])


def wait_for_writer(fifo: str) -> None:
    """Wait in state D until somebody opens the FIFO for writing; at once if it is not there."""
    libc = ctypes.CDLL(None)
    actions = ctypes.create_string_buffer(256)
    libc.posix_spawn_file_actions_init(actions)
    libc.posix_spawn_file_actions_addclosefrom_np(actions, 0)  # nobody shall wait for the child because of them
    libc.posix_spawn_file_actions_addopen(actions, 0, os.fsencode(fifo), os.O_RDONLY, 0)
    pid, words = ctypes.c_int(), (ctypes.c_char_p * 2)(b"/bin/true", None)
    if libc.posix_spawn(ctypes.byref(pid), b"/bin/true", actions, None, words, words) == 0:
        os.waitpid(pid.value, 0)


def install() -> None:
    """Let the calls of this process hang."""
    fifo, root = os.environ[FIFO], os.environ["SPOOLQ_DIR"] + "/"
    lstat = os.lstat
    for name in (os.environ.get(CALLS) or ALL).split():

        def call(path: Any, *args: Any, real: Any = getattr(os, name), **kwargs: Any) -> Any:
            if isinstance(path, str) and (path + "/").startswith(root):
                with contextlib.suppress(FileNotFoundError):
                    lstat(fifo)
                    wait_for_writer(fifo)
            return real(path, *args, **kwargs)

        setattr(os, name, call)


if __name__ == "__main__":
    install()
    from spoolq.__main__ import main

    sys.exit(main())
