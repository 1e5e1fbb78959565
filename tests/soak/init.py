"""
The first process of a node: starts the daemon, and starts it again when it has died, as systemd would.

    python -m tests.soak.init DIRECTORY -- ARGUMENTS OF `spoolq node`

In a namespace of its own it is process 1 and takes in orphans. SIGTERM: the daemon is told to stop; when the
last process of the node is gone it exits 0, and after PATIENCE_S with what is left in `DIRECTORY/left`.
`DIRECTORY/program` holds the directory of the package to start, so that a node can be upgraded.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time

RESTART_S = 0.4
PATIENCE_S = 20.0
stopping = False


def stop(_number: int, _frame: object) -> None:
    """From now on nothing is started."""
    global stopping
    stopping = True


def daemon(directory: str, words: list[str]) -> subprocess.Popen[bytes]:
    """The next daemon."""
    with open(f"{directory}/program", encoding="utf-8") as file:
        program = file.read().strip()
    with open(f"{directory}/log", "ab") as log:
        log.write(f"--- start of {program} at {time.time():.3f}\n".encode())
        return subprocess.Popen(
            [sys.executable, "-m", "spoolq", "node", *words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=directory,
            env=os.environ | {"PYTHONPATH": program},
        )


def reap(child: subprocess.Popen[bytes]) -> bool:
    """Take every ended child, orphans too; whether the daemon was among them."""
    gone = child.poll() is not None
    with contextlib.suppress(ChildProcessError):
        while True:
            # the daemon's own end must reach Popen, so it is only looked at
            end = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if end is None:
                break
            if end.si_pid == child.pid:
                gone = child.poll() is not None
            else:
                os.waitpid(end.si_pid, 0)
    return gone


def others() -> list[str]:
    """All other processes of this pid namespace; nothing where process 1 is not ours."""
    if os.getpid() != 1:
        return []
    found = []
    for pid in os.listdir("/proc"):
        if pid.isdigit() and pid != "1":
            with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
                words = file.read().replace(b"\0", b" ").decode("utf-8", "replace")
                if words:
                    found.append(f"{pid} {words}")
    return found


def main() -> int:
    """Serve until told to stop."""
    directory, _, *words = sys.argv[1:]
    signal.signal(signal.SIGTERM, stop)
    child = daemon(directory, words)
    told = False
    while True:
        if reap(child):
            if stopping:
                break
            time.sleep(RESTART_S)
            child = daemon(directory, words)
        if stopping and not told:
            child.terminate()
            told = True
        time.sleep(0.05)
    end = time.monotonic() + PATIENCE_S
    while (left := others()) and time.monotonic() < end:
        reap(child)
        time.sleep(0.1)
    with open(f"{directory}/left", "w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in left)
    return 0


if __name__ == "__main__":
    sys.exit(main())
