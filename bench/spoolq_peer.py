"""
spoolq itself behind the verbs of `peers.Peer`, and the few things that only it can be asked.

Speaks to it only by its command line and by the plain files of its spool, as a user would.
"""

import contextlib
import glob
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import datetime

from kit import TRUE, timed, until
from peers import UNBOUNDED, Drained
from place import Home, Scratch

CHECKOUT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# A node that lends more memory than the machine has does not let other processes' load keep jobs from
# starting. No peer looks at that load, so for all that is set beside them it has to be so.
LENT_MEM = 2 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20
# Asked for by every job: little, so that a hundred fit on any machine.
JOB_MEM_MB = 20


class Spoolq:
    """One node on one spool. Queued by `sub --each-line`; held means that no node runs yet."""

    name = "spoolq"
    records = "stdout and stderr files; result.json with state, exit, times and full rusage; a history line"
    most_queued = UNBOUNDED
    can_hold = True

    def __init__(self, scratch: Scratch) -> None:
        """Nothing is made yet: `up` does that."""
        self.home, self.slots, self.before = Home(self.name, scratch), 1, 0
        self.share = 1.0  # cpus that every job asks for
        self.measuring = False  # whether the node looks at the load of the machine, as it does by default
        self.command, self.environment = found()

    def missing(self) -> str:
        for command in ("init", "sub", "node"):
            tried = subprocess.run(
                [*self.command, command, "--help"],
                env={**os.environ, **self.environment},
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            if tried.returncode:
                return f"`{command} --help` fails: {tried.stderr.strip().rpartition(chr(10))[2][-200:]}"
        return ""

    def version(self) -> str:
        code = "import spoolq; print(spoolq.__version__)"
        env = {**os.environ, "PYTHONPATH": CHECKOUT}
        asked = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
        return asked.stdout.strip() or "unknown"

    @property
    def spool(self) -> str:
        """Return the spool of the present repetition."""
        return f"{self.home.dir}/spool"

    def up(self, slots: int, *, held: bool) -> None:
        self.home.fresh()
        # The journal belongs with the repetition, and on the same file system as the spool.
        self.home.env.update(self.environment, SPOOLQ_STATE_DIR=f"{self.home.dir}/state")
        self.slots, self.before = slots, 0
        self.home.sh(self.shell("init"))
        if not held:
            self.home.background(f"exec {self.node(idle_exit_s=3600)}")
            self.home.sh(self.submit(TRUE))  # its end shows that the node is ready
            self.wait(1)
            self.before = 1

    def submit(self, job: str) -> str:
        return f"{self.shell('sub')} {self._asks()} {job} >/dev/null"

    def queue(self, n: int, job: str) -> None:
        lines = f"{self.home.dir}/list"
        with open(lines, "w", encoding="ascii") as file:
            file.write(f"{job}\n" * n)
        self.home.sh(f"{self.shell('sub')} {self._asks()} --each-line {lines} >/dev/null")

    def wait(self, n: int) -> float:
        until(lambda: len(self.done()) >= self.before + n, 60 + n, "spoolq: jobs not done")
        return self.last_commit()

    def drain(self, n: int) -> Drained:
        node = self.home.background(f"exec {self.node(idle_exit_s=0)}")
        node.end(60 + n)
        if len(self.done()) != n:
            raise RuntimeError(f"spoolq: {len(self.done())} of {n} done")
        results = list(self.results())
        first = min(instant(result["started"]) for result in results)
        last = max(instant(result["ended"]) for result in results)
        return Drained(self.last_commit() - node.since, last - first)

    def traced(self, n: int) -> dict[str, str]:
        self.up(1, held=True)
        single = f"i=0; while [ $i -lt {n} ]; do {self.submit(TRUE)}; i=$((i+1)); done"
        lines = f"seq {n} | sed 's:.*:{TRUE}:' >lines; {self.shell('sub')} {self._asks()} --each-line lines"
        return {
            "sub, one at a time": single,
            "node runs those": self.node(idle_exit_s=0),
            "sub --each-line": lines,
            "node runs the lines": self.node(idle_exit_s=0),
        }

    def down(self) -> None:
        self.home.clear()

    def shell(self, *words: str) -> str:
        """Return shell text for one spoolq command on this spool."""
        return shlex.join([*self.command, "--spool", self.spool, *words])

    def node(self, *, idle_exit_s: float, name: str = "n1") -> str:
        """Return shell text for one node's program."""
        lent = [] if self.measuring else ["--mem", str(LENT_MEM)]
        words = ["--name", name, "--cpus", str(self.slots), *lent, "--idle-exit", f"{idle_exit_s:g}"]
        return self.shell("node", *words)

    def done(self) -> list[str]:
        """List the finished entries (names)."""
        parts = _names(f"{self.spool}/done")
        return [name for part in parts for name in _names(f"{self.spool}/done/{part}")]

    def last_commit(self) -> float:
        """
        Return when the last entry came into done/ (s since the epoch).

        A rename sets the entry's ctime on the local file systems that this runs on; nothing has to
        poll while the phase is being timed.
        """
        return max(os.lstat(path).st_ctime_ns for path in glob.iglob(f"{self.spool}/done/*/*")) / 1e9

    def results(self) -> Iterator[Mapping[str, str]]:
        """Read the result of every finished job."""
        for path in glob.iglob(f"{self.spool}/jobs/*/*/result.json"):
            with open(path, encoding="utf-8") as file:
                yield json.load(file)

    def submit_pair(self, n: int) -> dict[str, list[tuple[float, float]]]:
        """
        Run `sub` and the least a Python program with options costs, turn by turn.

        Returns:
            By label n pairs of wall and CPU (s), both from one rusage: no shell, no daemon in it.
        """
        reference = [self.interpreter(), "-c", "import argparse, json"]
        own = [*self.command, "--spool", self.spool, "sub", *shlex.split(self._asks()), TRUE]
        pairs: dict[str, list[tuple[float, float]]] = {"sub": [], "reference": []}
        with contextlib.chdir(self.home.dir):  # `python -m` would import the package of a checkout it stands in
            for _ in range(n):
                for label, argv in (("sub", own), ("reference", reference)):
                    cost = timed(argv, self.home.env)
                    pairs[label].append((cost.wall_s, cost.cpu_s))
        return pairs

    def interpreter(self) -> str:
        """Return the Python that runs spoolq: its program's first line, or the one that runs this."""
        path = shutil.which(self.command[0]) or self.command[0]
        with open(path, "rb") as file:
            first = file.readline(300)
        named = re.match(rb"#!\s*(\S*python\S*)", first)
        return named[1].decode() if named else path if "python" in os.path.basename(path) else sys.executable

    def _asks(self) -> str:
        return f"-c {self.share:g} -m {JOB_MEM_MB}"


def found() -> tuple[list[str], dict[str, str]]:
    """
    Find the spoolq to measure: its command and what the environment needs for it.

    `$SPOOLQ` wins; then the entry point installed beside this interpreter; then this checkout's
    package run by this interpreter. Whichever it is stands in the results.
    """
    if said := os.environ.get("SPOOLQ"):
        return shlex.split(said), {}
    beside = os.path.join(os.path.dirname(sys.executable), "spoolq")
    if os.access(beside, os.X_OK):
        return [beside], {}
    return [sys.executable, "-m", "spoolq"], {"PYTHONPATH": CHECKOUT}


def instant(text: str) -> float:
    """Turn a result's UTC time into seconds since the epoch."""
    return datetime.fromisoformat(text).timestamp()


def _names(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except FileNotFoundError:
        return []
