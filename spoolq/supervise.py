"""
The program of the node family: starts jobs, waits for them, and survives the death of any of its processes.

    daemon ──socket── runner ──┬─ job      The watchers wait for the runner and for jobs whose runner
                        ▲      ├─ job      was killed; `kin` says how the chain renews itself.
             watcher ─ watcher └─ job      The daemon may come and go; jobs do not notice.

It ends by itself when the daemon says so and nothing is left, or when for some time there was neither
daemon nor job: results that were not delivered stay in the journal, and the next family has them.
Signals that end other programs are ignored, since a terminal or a service manager must not take jobs
with it. It never touches the spool, and cannot: it does not import the room that does.
"""

import contextlib
import os
import sys
from typing import NoReturn

from spoolq.channel import SOCKET
from spoolq.kin import Kin
from spoolq.runner import Runner
from spoolq.watch import Watcher

OWN_OOM_SCORE = b"-900"  # needs privilege; else the jobs' higher score must do


def main() -> None:
    """`STATE_DIR [--idle=S]`, and after executing anew `--role= --fds= --child=`."""
    options = dict(word[2:].partition("=")[::2] for word in sys.argv[2:])
    state_dir, idle_s = os.path.abspath(sys.argv[1]), float(options.get("idle", "60"))
    os.umask(0o077)
    if "fds" in options:
        kin = Kin.resume(state_dir, idle_s, [int(fd) for fd in options["fds"].split(",")])
        kin.child = int(options["child"])
        role = options["role"]
        kin.arrive(role)
        kin.pass_on_renewal()
    else:
        if os.fork():  # the daemon must not become the parent of jobs' parents
            os._exit(0)
        for name in os.listdir("/proc/self/fd"):
            if int(name) > 2:  # what the daemon's own parent left open is nobody's here
                with contextlib.suppress(OSError):
                    os.close(int(name))
        try:
            begun = Kin.begin(state_dir, idle_s)
        except OSError as error:
            give_up("cannot begin", error)
        if begun is None:
            return
        kin, role = begun, "runner"
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "wb", buffering=0) as file:
            file.write(OWN_OOM_SCORE)
    os.chdir("/")
    live(kin, role)


def live(kin: Kin, role: str) -> None:
    """Be what the chain needs, until the family ends."""
    while True:
        try:
            if role == "runner":
                role = Runner(kin).serve()
            else:
                kin.arrive("watch")
                role = Watcher(kin).serve()
        except OSError as error:
            give_up(role, error)
        if role == "end":
            with contextlib.suppress(OSError):
                if not kin.ancestors():
                    os.unlink(os.path.join(kin.state_dir, SOCKET))
            sys.stdout.flush()
            os._exit(0)


def give_up(what: str, error: OSError) -> NoReturn:
    """The local disk refuses to be read: end as if killed, which the others of the family make good."""
    print(f"spoolq: {what}: {error}", file=sys.stderr, flush=True)
    os._exit(1)


if __name__ == "__main__":
    main()
