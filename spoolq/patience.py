"""
How long a program waits for a spool that does not answer: a second thread, which sees what the first is stuck in.

A call on a mount whose file server is gone returns when the server is back, perhaps never, and meanwhile no
signal handler runs. So a thread looks at /proc once a second. State D is how the kernel shows a wait for a
file system, never one for a terminal, a pipe, a child or a clock; D at every look, in one and the same call, is
a call without an answer. A command then says so in one line and ends with the code for "try again", which it
can since such waits are killable; one that waits on purpose says so and goes on, as jobs do.
A slow disk is no hang: the call changes, or the kernel wakes the thread again and again for parts of it.
Not seen: FUSE, which waits in state S, and what keeps the interpreter's lock (its own files on such a mount).
"""

import _thread
import contextlib
import os
import sys
import time
from collections.abc import Callable
from typing import Any

PATIENCE_S = 5.0  # from the first look that found it stuck; $SPOOLQ_PATIENCE says otherwise, 0: for ever
LOOK_S = 1.0  # between looks, at most
WAKES = 2  # a second that a call without an answer may cause: a lost connection is tried anew now and then
SAY_S = 1.0  # for a line to stderr, which may lie on the same mount
VARIABLE = "SPOOLQ_PATIENCE"
TRY_AGAIN = 75  # as errors.TryAgain
_DEADLY = {1: "SIGHUP", 2: "SIGINT", 15: "SIGTERM"}


class Care:
    """What becomes of a hang: this one is a command's."""

    def __init__(self) -> None:
        """Any command: it ends, and what it did is what its name says."""
        self.spool = ""
        self.outcome: Callable[[], str] = str  # added to the line: what has become of the user's wish so far
        self.endures = False
        self.until, self.code = float("inf"), TRY_AGAIN

    @property
    def silent(self) -> str:
        """What does not answer."""
        return f"the spool {self.spool} does not answer" if self.spool else "a file system does not answer"

    def hung(self, waited_s: float) -> None:
        """Patience is over; called once a hang."""
        if self.endures:
            say(f"{self.silent}; still waiting")
        else:
            why = f"(waited {waited_s:g} s: its file server is down, or the network is)"
            self.leave(TRY_AGAIN, f"{self.silent} {why}")

    def back(self) -> None:
        """The call has returned after all."""
        say(f"the spool {self.spool} answers again" if self.spool else "the file system answers again")

    def still(self, waited_s: float) -> None:
        """In state D at this look, and in one call for so long."""
        if waited_s > 0 and time.monotonic() >= self.until:
            self.leave(self.code, f"{self.silent}; time is over")

    def told(self, number: int) -> None:
        """A signal wants to end us, and the main thread cannot hear it."""
        self.leave(128 + number, f"{self.silent}; ended by {_DEADLY[number]}")

    def leave(self, code: int, text: str) -> None:
        """End the process with one line."""
        with contextlib.suppress(Exception):  # made from what the main thread was just changing
            if outcome := self.outcome():
                text += f": {outcome}"
        say(text)
        os._exit(code)


class Watch:
    """The thread, and the care it takes; one a process."""

    def __init__(self) -> None:
        """Nothing is watched yet."""
        self.care = Care()

    def begin(self) -> None:
        """Watch the thread that calls this."""
        _thread.start_new_thread(self._watch, (_thread.get_ident(), os.getpid()))

    def _watch(self, main: int, pid: int) -> None:
        # what this thread took, the main thread would not be seen to have missed; the module is part of the interpreter
        signals = sys.modules["_signal"]
        signals.pthread_sigmask(signals.SIG_BLOCK, _DEADLY)
        patience_s = _patience()
        pause_s = min(LOOK_S, patience_s / 2)
        looks = slept = 0  # looks in a row that found it in one call; how often it had slept at the first
        said = False
        before: tuple[Any, int] = (None, 0)
        while True:
            time.sleep(pause_s)
            try:
                stuck, sleeps, pending = look(pid)
            except (OSError, ValueError, KeyError):  # no /proc here
                return
            frame = sys._current_frames().get(main)  # noqa: SLF001  # the only way to see that it is one call
            call = (frame, frame.f_lasti if frame else 0)
            same = stuck and looks > 0 and call[0] is before[0] and call[1] == before[1]
            if same and sleeps - slept <= WAKES * max(1.0, looks * pause_s):
                looks += 1
            else:
                looks, slept = int(stuck), sleeps
                if said:
                    said = False
                    self.care.back()
            before = call if stuck else (None, 0)
            waited_s = (looks - 1) * pause_s
            if stuck:
                self.care.still(waited_s)
            if looks > 1 and pending:
                self.care.told(pending)
            if waited_s >= patience_s and not said:
                said = True
                self.care.hung(waited_s)


watch = Watch()


def _patience() -> float:
    try:
        seconds = float(os.environ.get(VARIABLE) or PATIENCE_S)
    except ValueError:
        return PATIENCE_S
    return seconds if seconds > 0 else float("inf")


def look(thread: int) -> tuple[bool, int, int]:
    """Of a thread of this process: whether it is in state D, how often it has slept, a deadly signal that it missed."""
    fd = os.open(f"/proc/self/task/{thread}/status", os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = os.read(fd, 1 << 16).decode("ascii", "replace")
    finally:
        os.close(fd)
    words = dict([line.split(":", 1) for line in text.splitlines() if ":" in line])
    mask = int(words["SigPnd"], 16) | int(words["ShdPnd"], 16)
    pending = next((number for number in _DEADLY if mask >> number - 1 & 1), 0)
    return words["State"].strip()[:1] == "D", int(words["voluntary_ctxt_switches"]), pending


def say(text: str) -> None:
    """A line to stderr, which may be on a mount that does not answer either: then it is given up."""
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text).encode(errors="backslashreplace")
    said: list[bool] = []

    def write() -> None:
        with contextlib.suppress(OSError):
            os.write(2, b"spoolq: " + shown + b"\n")
        said.append(True)

    _thread.start_new_thread(write, ())
    end = time.monotonic() + SAY_S
    while not said and time.monotonic() < end:
        time.sleep(0.005)


def endure(until: float = float("inf"), code: int = TRY_AGAIN) -> None:
    """
    From now on this command waits on purpose: a hang is told, and waited out.

    Args:
        until: seconds of the monotonic clock after which it ends all the same, with `code`.
    """
    care = watch.care
    care.endures, care.until, care.code = True, until, code


def concerns(spool: str) -> None:
    """Which spool this process is about."""
    watch.care.spool = spool


def so_far(outcome: Callable[[], str]) -> None:
    """What to say of the user's wish if the spool stops answering from here on."""
    watch.care.outcome = outcome
