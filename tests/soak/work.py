"""
The program of every job: does what its words say, and tells the truth about it in a file outside the spool.

    work.py TRUTH TOKEN SECONDS CODE BYTES FLAGS

CODE below 0 is a signal that it sends itself. FLAGS: f forks, d is deaf to SIGTERM, l leaves a child behind,
e writes to stderr too. TRUTH is a directory: `truth.jsonl` gets one line at the start, one about every half
second, one before the end, and a last one when that is on the disk, which may take its time; `locks/TOKEN` is
locked as long as anything of the job's tree lives, so that the kernel itself says whether two executions
overlapped.
Uses the standard library only and no package, since it starts thousands of times.
"""

import fcntl
import hashlib
import json
import os
import resource
import signal
import sys
import time

TORN = 90  # the exit code if the output could not be written
LEFT_S = 45.0  # how long a child that is left behind would live
PIECE = 1 << 16


def lines(token: str, size: int) -> bytes:
    """What a job writes to stdout: text of `size` bytes that only it writes."""
    line = f"{token} says the same again and again\n".encode()
    return (line * (size // len(line) + 1))[:size]


class Truth:
    """The file that is believed."""

    def __init__(self, directory: str, token: str) -> None:
        self.directory, self.token, self.lock = directory, token, -1
        self.fd = os.open(f"{directory}/truth.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.facts = {
            "id": int(os.environ["SPOOLQ_JOB_ID"]),
            "attempt": int(os.environ["SPOOLQ_ATTEMPT"]),
            "node": os.environ["SPOOLQ_NODE"],
            "token": token,
            "pid": os.getpid(),
            "host": os.uname().nodename,
        }

    def tell(self, kind: str, *, sync: bool = True, **more: object) -> None:
        """One line, whole: a single append."""
        line = json.dumps({"kind": kind, "at": time.time(), **self.facts, **more}) + "\n"
        os.write(self.fd, line.encode())
        if sync:
            os.fsync(self.fd)

    def born(self) -> float:
        """When this process was made, before it became this program."""
        with open("/proc/self/stat", encoding="ascii", errors="replace") as file:
            ticks = int(file.read().rpartition(")")[2].split()[19])
        return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / os.sysconf("SC_CLK_TCK")

    def overlaps(self) -> bool:
        """Whether something of another execution lives; the lock is ours and our children's from now on."""
        self.lock = os.open(f"{self.directory}/locks/{self.token}", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def pause(truth: Truth, seconds: float) -> None:
    """Let time pass, and say now and then that it still runs."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, 0.5))
        if left > 0.5:
            truth.tell("alive", sync=False)


def write(data: bytes) -> None:
    """All of it to stdout."""
    for start in range(0, len(data), PIECE):
        piece = data[start : start + PIECE]
        while piece:
            piece = piece[os.write(1, piece) :]


def children(flags: str, seconds: float, lock: int) -> list[int]:
    """Fork what the flags say; the pids of those to wait for."""
    if "l" in flags and os.fork() == 0:
        os.close(lock)  # what daemonises has some seconds after its job, also into the job's next attempt
        os.setsid()
        time.sleep(LEFT_S)
        os._exit(0)
    found = []
    for _ in range(2 if "f" in flags else 0):
        if (pid := os.fork()) == 0:
            time.sleep(seconds)
            os._exit(0)
        found.append(pid)
    return found


def main(directory: str, token: str, seconds: float, code: int, size: int, flags: str) -> int:
    """Do it; the exit code."""
    if "d" in flags:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    truth = Truth(directory, token)
    truth.tell("start", overlap=truth.overlaps(), size=size, born=truth.born())
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pids = children(flags, seconds, truth.lock)
    text = lines(token, size)
    try:
        write(text[: size // 2])
        if "e" in flags:
            os.write(2, f"{token} to stderr\n".encode())
        pause(truth, seconds)
        write(text[size // 2 :])
    except OSError as error:
        truth.tell("end", code=TORN, signal=None, sha="", size=size, torn=error.strerror)
        truth.tell("over", sync=False)
        return TORN
    for pid in pids:
        os.waitpid(pid, 0)
    number = -code if code < 0 else None
    sha = hashlib.sha256(text).hexdigest()
    truth.tell("end", code=None if number else code, signal=number, sha=sha, size=size, torn="")
    truth.tell("over", sync=False)
    if number:
        signal.signal(number, signal.SIG_DFL) if number != signal.SIGKILL else None
        os.kill(os.getpid(), number)
        time.sleep(5)
    return code


if __name__ == "__main__":
    _, where, word, how_long, exit_code, how_much, *rest = sys.argv
    sys.exit(main(where, word, float(how_long), int(exit_code), int(how_much), "".join(rest)))
