"""One spool on the lab, a daemon on each node, and load: for scenarios."""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import spoolq
from spoolq.entry import parse_name
from tests.nfs.check import Expected, Truth, Unit, Verdict, check
from tests.nfs.lab import HERE, Lab, seen_inside

PYTHON = seen_inside(sys.executable)
CHECKOUT = str(Path(spoolq.__file__).parent.parent)
PATIENCE_S = 900  # emulated machines, perhaps beside other load: nothing is judged by how long it takes
NODES = ("n1", "n2", "n3")
LAB = "1777"  # the user lab, by number: no group of that name is on the machines
AS_LAB = ("setpriv", f"--reuid={LAB}", f"--regid={LAB}", "--clear-groups")
# the Python that runs this may lie in a directory of root's; to a file server this is no more than any user
AS_LAB += ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")


class Site:
    """
    A new spool.

    Args:
        limits: of spool.toml; a value that is a dict is a table of its own, as `policy`.
        serve: the nodes that get a daemon.
        user: whether spool and daemons belong to the user lab instead of root.
    """

    def __init__(self, lab: Lab, name: str, limits: dict[str, Any], serve: Iterable[str], *, user: bool) -> None:
        self.lab, self.expected = lab, Expected()
        self.root, self.here = f"/spool/{name}/spool", f"/persist/{name}"
        self.as_user = AS_LAB if user else ()
        self.env = {"PYTHONPATH": seen_inside(CHECKOUT), "SPOOLQ_DIR": self.root, "PYTHONDONTWRITEBYTECODE": "1"}
        self.env |= {"SPOOLQ_STATE_DIR": f"{self.here}/state", "HOME": self.here}
        self.serving: set[str] = set()
        self.dropped: set[str] = set()
        self.lock = threading.Lock()
        owner = LAB if user else "0"
        make = ("install", "-d", "-o", owner, "-g", owner)
        self.marks = f"{os.path.dirname(self.root)}/marks"
        made = [lab.run("server", *make, os.path.dirname(self.root), self.marks)]
        made += [lab.run(node, *make, "-m", "700", self.here, f"{self.here}/state") for node in NODES]
        assert not any(done["code"] for done in made), made
        self.ok("n1", "init", self.root)
        own = {key: value for key, value in limits.items() if isinstance(value, dict)}
        own["limits"] = {"settle_s": 1} | {key: value for key, value in limits.items() if key not in own}
        lines = [[f"[{table}]", *(f"{key} = {value}" for key, value in own[table].items())] for table in own]
        text = "".join(f"{line}\n" for table in lines for line in table)
        policy = f"cd {self.root} && sed -i '/^.policy.$/,$d' spool.toml && cat >> spool.toml"
        done = lab.run("server", "sh", "-c", policy, stdin=text)
        assert done["code"] == 0, done
        self.serve(*serve)

    # --- commands and daemons

    def spoolq(self, node: str, *words: str, stdin: str = "", patient: bool = False, **more: Any) -> Any:
        """
        A command on a node: {code, out, err}, or {pid}.

        Args:
            patient: it waits for a server that is gone; `hung_mount` looks at those who need not.
        """
        env = self.env | ({"SPOOLQ_PATIENCE": "0"} if patient else {})
        words = (*self.as_user, PYTHON, "-m", "spoolq", *words)
        return self.lab.run(node, *words, stdin=stdin, **({"timeout": PATIENCE_S} | more), **env)

    def ok(self, node: str, *words: str, stdin: str = "") -> str:
        """A command that must succeed: its stdout."""
        done = self.spoolq(node, *words, stdin=stdin, patient=True)
        assert done["code"] == 0, (words, done)
        return done["out"]

    def serve(self, *nodes: str, cpus: int = 4) -> None:
        """Start daemons, and wait until each says that it serves."""
        before = {node: self._ups(node) for node in nodes}
        for node in nodes:
            command = f"{' '.join(self.as_user)} {PYTHON} -m spoolq node --cpus {cpus} --mem 8G"
            # what systemd does: another one, however it ended
            loop = f"while :; do {command} & echo $! > pid; wait $!; echo daemon exited $?; sleep 2; done"
            self.lab.run(node, "sh", "-c", f"cd {self.here} && {{ {loop}; }} >> log 2>&1", background=True, **self.env)
            self.serving.add(node)
        for node in nodes:
            self.until(f"{node} serves", lambda node=node: self._ups(node) > before[node])

    def _ups(self, node: str) -> int:
        return self.log(node, 4000).count("up node=")

    def kill_daemon(self, node: str) -> None:
        """kill -9 of the daemon alone; another one comes."""
        before = self._ups(node)
        done = self.lab.run(node, "sh", "-c", f"kill -9 $(cat {self.here}/pid)")
        assert done["code"] == 0, done
        self.until(f"{node} serves again", lambda: self._ups(node) > before)

    def log(self, node: str, lines: int = 40) -> str:
        """The end of what a node's daemon said."""
        return self.lab.run(node, "sh", "-c", f"tail -n {lines} {self.here}/log 2>/dev/null; true")["out"]

    def close(self) -> None:
        """End everything that runs for this spool."""
        for node in NODES:
            self.lab.end_all(node)

    # --- jobs

    def job(self, seconds: float, *, ticks: bool = False) -> str:
        """The command line of a job that writes truth, see lab/job.sh."""
        return f"sh {seen_inside(HERE)}/job.sh {self.here}/ran {seconds:g} {'ticks' if ticks else ''}".strip()

    def marked(self, seconds: float, code: str = "") -> str:
        """
        The same, which also tells by the server's clock when it ran, see `spans`.

        Args:
            code: its exit code instead of its own, also a calculation of the shell's.
        """
        told = f"LAB_CODE=$(({code})) " if code else ""
        return f"LAB_MARKS={self.marks} {told}{self.job(seconds)}"

    def sub(self, node: str, line: str, *options: str) -> int:
        """Submit one job, or one array: the id. An array's tasks are acknowledged by who knows their numbers."""
        job = int(self.ok(node, "sub", "--parsable", "-D", "/", *options, "sh", "-c", line))
        if "-a" not in options:
            with self.lock:
                self.expected.acknowledged[job] += 1
        return job

    def submit(self, node: str, count: int, line: str, *options: str, rule: str = "certain") -> list[int]:
        """Submit so many jobs; the ids that were printed are acknowledged, whatever came after."""
        words = ("sub", "--rerun", rule, "--chdir", "/", *options, "--each-line", "-")
        try:
            done = self.spoolq(node, *words, stdin=f"{line}\n" * count, patient=True)
        except (OSError, ValueError):  # the node lost power
            with self.lock:
                self.expected.cut += 1
            return []
        ids = [int(word) for word in done["out"].split()]
        assert done["code"] == 0, (words, done)
        assert len(ids) == count, (words, done)
        with self.lock:
            self.expected.acknowledged.update(ids)
            self.expected.rules.update(dict.fromkeys(ids, rule))
        return ids

    def load(self, jobs: int, line: str, *, chunk: int = 5, nodes: Iterable[str] = NODES, rules=("certain",)) -> "Load":
        """Submit jobs in chunks from several nodes at once, in the background, a rule for each chunk in turn."""
        sizes = [min(chunk, jobs - first) for first in range(0, jobs, chunk)]
        todo = [(size, rules[number % len(rules)]) for number, size in enumerate(sizes)]
        return Load(self, nodes, todo, line)

    def drop(self, node: str, name: str, line: str) -> None:
        """Drop a file that is a job."""
        text = f"#!/bin/sh\n#SPOOLQ -D /\n{line}\n#SPOOLQ end\n"
        done = self.lab.run(node, *self.as_user, "sh", "-c", f"cat > {self.root}/drop/{name}", stdin=text)
        assert done["code"] == 0, done
        self.dropped.add(name)

    # --- looking

    def until(self, what: str, true: Callable[[], Any], patience_s: float = PATIENCE_S) -> None:
        """Wait for something."""
        end = time.monotonic() + patience_s
        while not true():
            if time.monotonic() > end:
                logs = "".join(f"--- {node}\n{self.log(node)}" for node in self.serving if node in self.lab.machines)
                raise AssertionError(f"not within {patience_s} s: {what}\n{self.tree()}\n{logs}")
            time.sleep(0.5)

    def ran(self, nodes: Iterable[str] = NODES) -> Truth:
        """What jobs wrote on these nodes."""
        lines: list[str] = []
        for node in nodes:
            if node in self.lab.machines:
                lines += self.lab.run(node, "sh", "-c", f"cat {self.here}/ran 2>/dev/null")["out"].splitlines()
        return Truth.read(lines)

    def spans(self) -> dict[tuple[Unit, int], tuple[float, float]]:
        """
        When each attempt of marked jobs ran, by the server's clock alone, whatever the clocks of the nodes say.

        The first mark is made after the job began, the second before it ends (infinity: not yet, or never): what
        overlaps by these times did overlap.
        """
        done = self.lab.run("server", "find", self.marks, "-type", "f", "-printf", "%f %C@\n")
        assert done["code"] == 0, done
        said: dict[tuple[Unit, int], dict[str, float]] = {}
        for line in done["out"].splitlines():
            name, time_ = line.split()
            job, attempt, kind = name.split(".")
            said.setdefault((int(job) if job.isdigit() else job, int(attempt)), {})[kind] = float(time_)
        return {key: (times["start"], times.get("end", float("inf"))) for key, times in said.items()}

    def tree(self) -> str:
        """Entries that are not in done/, as the server has them."""
        words = f"cd {self.root} && find queue held running reaping drop nodes/*/admit ! -type d ! -name '*.id'"
        return self.lab.run("server", "sh", "-c", words)["out"]

    def strike(self) -> None:
        """Note what runs now: a fault follows."""
        names = [path.rpartition("/")[2] for path in self.tree().splitlines() if path.startswith("running/")]
        self.expected.struck |= {entry.unit for entry in map(parse_name, names) if entry}

    def until_running(self, count: int, node: str) -> None:
        """Wait until so many jobs ran or run on a node."""
        self.until(f"{count} jobs on {node}", lambda: len(self.ran([node]).starts) >= count)

    def verdict(self, patience_s: float = PATIENCE_S) -> Verdict:
        """Wait until nothing waits or runs, or moves for so long, and every result is there; then compare."""
        before, end = "", time.monotonic() + patience_s
        while (left := self.tree()) and (left != before or time.monotonic() < end):
            if left != before:
                before, end = left, time.monotonic() + patience_s
            time.sleep(1)
        spool = self.collect()
        while time.monotonic() < end and not all(self._has_result(spool, name) for _, name in spool["entries"]):
            time.sleep(3)
            spool = self.collect()
        for name in self.dropped:
            said = spool["drops"].get(f"{name}.id")
            if said:
                self.expected.acknowledged[int(said)] += 1
        verdict = check(self.expected, self.ran(), spool)
        verdict.lost += [f"dropped {name}: no .id" for name in self.dropped if f"{name}.id" not in spool["drops"]]
        if left:
            verdict.lost.append(f"never came to rest: {left}")
        for node in NODES:
            self._daemons(node, verdict)
        return verdict

    def _daemons(self, node: str, verdict: Verdict) -> None:
        """Whether the daemons of a node ended only where they were killed; one that did not come up is tried again."""
        up = False
        for line in self.log(node, 4000).splitlines():
            if line.startswith("daemon exited"):
                verdict.notes["daemons that did not come up"] += not up
                wanted = ("137", "0") if self.expected.sigterm else ("137",)
                if up and line.split()[-1] not in wanted:
                    verdict.unexpected.append(f"{node}: {line}: {self.log(node)}")
                up = False
            up = up or "up node=" in line
            if line.startswith("Traceback"):
                verdict.unexpected.append(f"{node}: {self.log(node)}")

    def collect(self) -> dict[str, Any]:
        """See lab/collect.py."""
        done = self.lab.run("server", PYTHON, "-I", "-S", f"{seen_inside(HERE)}/collect.py", self.root)
        assert done["code"] == 0, done
        return json.loads(done["out"])

    @staticmethod
    def _has_result(spool: dict[str, Any], name: str) -> bool:
        entry = parse_name(name)
        return not entry or bool((spool["homes"].get(str(entry.unit)) or {}).get("result"))


class Load:
    """Submissions that go on in the background."""

    def __init__(self, site: Site, nodes: Iterable[str], todo: list[tuple[int, str]], line: str) -> None:
        self.site, self.todo, self.line, self.errors = site, todo[::-1], line, []
        self.threads = [threading.Thread(target=self._one, args=(node,), daemon=True) for node in nodes]
        for thread in self.threads:
            thread.start()

    def _one(self, node: str) -> None:
        try:
            while node in self.site.lab.machines:
                with self.site.lock:
                    if not self.todo:
                        return
                    count, rule = self.todo.pop()
                self.site.submit(node, count, self.line, rule=rule)
        except Exception as error:
            self.errors.append(error)

    def join(self) -> None:
        """Wait until all is submitted."""
        for thread in self.threads:
            thread.join(PATIENCE_S)
        assert not self.errors, self.errors
        assert not any(thread.is_alive() for thread in self.threads), "a submission does not end"
