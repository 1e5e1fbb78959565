"""A spool with real nodes and real commands, as a shell user meets them."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

import spoolq
from tests import jitter

PATIENCE_S = 120.0  # generous: the machine may be busy; nothing here asserts how long something takes


def read(path: str) -> str:
    """A file's text, or empty."""
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""


class Cluster:
    """
    Args:
        base: a short directory (Unix sockets have 107 bytes) for the spool, the state and the marks of jobs.
    """

    def __init__(self, base: str) -> None:
        self.base, self.root = base, f"{base}/spool"
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("SPOOLQ_")}
        self.env |= {"SPOOLQ_DIR": self.root, "SPOOLQ_STATE_DIR": f"{base}/state", "TMPDIR": f"{base}/tmp"}
        self.env |= {"HOME": base, "SPOOLQ_TEST_CLUSTER": base, "PYTHONUNBUFFERED": "1"}
        os.makedirs(f"{base}/tmp")
        self.nodes: list[subprocess.Popen[bytes]] = []
        if jitter.LONGEST_S:
            self.customise("from tests import jitter\njitter.everywhere()\n")
        self.ok("init", self.root)
        self.policy(grace_s=1, settle_s=0, min_free_mb=1)

    def policy(self, **limits: Any) -> None:
        """Set values of [limits] in spool.toml."""
        with open(f"{self.root}/spool.toml", encoding="utf-8") as file:
            head = file.read().partition("\n[")[0]
        lines = "".join(f"{key} = {value}\n" for key, value in limits.items())
        with open(f"{self.root}/spool.toml", "w", encoding="utf-8") as file:
            file.write(f"{head}\n[limits]\n{lines}")

    def hurry(self, room: str, **values: float) -> None:
        """Other intervals in a room of all that is started from now on, where those of the product are long."""
        self.customise(f"import spoolq.{room} as room\n" + "".join(f"room.{k} = {v}\n" for k, v in values.items()))

    def customise(self, code: str) -> None:
        """Python that all that is started from now on runs first."""
        site = f"{self.base}/site"
        os.makedirs(site, exist_ok=True)
        with open(f"{site}/sitecustomize.py", "a", encoding="ascii") as file:
            file.write(code)
        self.env["PYTHONPATH"] = os.pathsep.join([site, str(Path(spoolq.__file__).parent.parent)])

    # --- commands

    def spoolq(self, *words: str, stdin: str = "", cwd: str | None = None, env: dict[str, str] | None = None) -> Any:
        """Run a command to its end: a CompletedProcess with texts."""
        jitter.pause()
        return subprocess.run(
            [sys.executable, "-m", "spoolq", *words],
            input=stdin,
            capture_output=True,
            text=True,
            cwd=cwd or self.base,
            # a slow disk is no hang; what is to meet one that hangs is started by tests.hang
            env=self.env | {"SPOOLQ_PATIENCE": str(PATIENCE_S)} | (env or {}),
            timeout=PATIENCE_S * 2,
            check=False,
        )

    def ok(self, *words: str, **kwargs: Any) -> str:
        """Run a command that must succeed; its stdout."""
        done = self.spoolq(*words, **kwargs)
        assert done.returncode == 0, f"{words}: {done.returncode}: {done.stdout}{done.stderr}"
        return str(done.stdout)

    def sub(self, *words: str, **kwargs: Any) -> int:
        """Submit; the id."""
        return int(self.ok("sub", *words, **kwargs))

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        """Any command in the background."""
        return subprocess.Popen(
            [sys.executable, "-m", "spoolq", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self.base,
            env={"SPOOLQ_PATIENCE": str(PATIENCE_S)} | self.env,  # as above, unless a test says otherwise
        )

    def node(
        self, name: str = "n1", cpus: int = 2, *words: str, path: str | None = None, mem: str = "64T"
    ) -> subprocess.Popen[bytes]:
        """A node in the background, up and beating; `path` is where another version of the package lies."""
        with open(f"{self.base}/{name}.log", "ab") as log:
            node = subprocess.Popen(
                [sys.executable, "-m", "spoolq", "node", "--name", name, "--cpus", str(cpus), "--mem", mem, *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.base,
                env=self.env | ({"PYTHONPATH": path} if path else {}),
            )
        self.nodes.append(node)
        self.until(lambda: node.poll() is not None or self.facts(name).get("pid") == node.pid, f"node {name} is up")
        assert node.poll() in (None, 0), f"node {name} ended with {node.poll()}:\n{self.log(name)}"
        return node

    def log(self, name: str = "n1") -> str:
        """What a node has said."""
        with open(f"{self.base}/{name}.log", encoding="utf-8") as file:
            return file.read()

    # --- looking

    def until(self, done: Callable[[], Any], what: str) -> Any:
        """Wait for something, with patience; what it looks into need not be there yet."""
        end = time.monotonic() + PATIENCE_S
        while True:
            with contextlib.suppress(FileNotFoundError):
                if value := done():
                    jitter.pause()
                    return value
            if time.monotonic() > end:
                logs = "".join(f"--- {n}\n" for n in os.listdir(self.base))
                raise AssertionError(f"waited in vain: {what}\n{logs}{self.tree()}")
            time.sleep(0.02)

    def tree(self) -> str:
        """Where the entries are, and what nodes said: for messages."""
        text = subprocess.run(
            f"cd {self.root} && ls queue/* held/* running/* done/* | head -50; tail -n 30 ../*.log",
            shell=True,
            capture_output=True,
            text=True,
            check=False,
        )
        return text.stdout

    def facts(self, node: str) -> dict[str, Any]:
        """node.json."""
        with contextlib.suppress(OSError, ValueError), open(f"{self.root}/nodes/{node}/node.json", "rb") as file:
            return dict(json.load(file))
        return {}

    def home(self, job_id: int, name: str = "") -> str:
        """A path in a job's home."""
        return f"{self.root}/jobs/{job_id // 1000}/{job_id}/{name}"

    def result(self, job_id: int) -> dict[str, Any]:
        """The result, waited for."""

        def read() -> dict[str, Any] | None:
            with contextlib.suppress(OSError), open(self.home(job_id, "result.json"), "rb") as file:
                return dict(json.load(file))
            return None

        return dict(self.until(read, f"result of job {job_id}"))

    def text(self, job_id: int, name: str = "stdout") -> str:
        """An output."""
        with open(self.home(job_id, name), encoding="utf-8") as file:
            return file.read()

    def place(self, job_id: int) -> str:
        """`queue`, `running`, ...: by listing, as `ls` does."""
        for top in ("queue", "held", "running", "reaping", "done"):
            for directory in os.listdir(f"{self.root}/{top}"):
                with contextlib.suppress(FileNotFoundError):  # it was empty: a node sweeps such segments
                    names = os.listdir(f"{self.root}/{top}/{directory}")
                    if any(name.split(".")[1:2] == [str(job_id)] for name in names):
                        return top
        return ""

    def running(self, job_id: int, mark: str) -> None:
        """Wait until a job has written its mark file."""
        self.until(lambda: os.path.exists(mark), f"job {job_id} runs")

    def family(self) -> dict[str, list[int]]:
        """Pids of this cluster's processes by name: daemon, runner, watch."""
        found: dict[str, list[int]] = {"daemon": [], "runner": [], "watch": []}
        for process in psutil.process_iter(["name", "pid", "cmdline"]):
            with contextlib.suppress(psutil.Error):
                name = process.info["name"] or ""
                kind = name.removeprefix("spoolq-") if name.startswith("spoolq-") else ""
                if "node" in (process.info["cmdline"] or []):
                    kind = "daemon"
                if kind in found and process.environ().get("SPOOLQ_TEST_CLUSTER") == self.base:
                    found[kind].append(process.info["pid"])
        return found

    # --- the end

    def close(self) -> None:
        """Kill everything that this cluster started, jobs too."""
        for _ in range(200):  # whoever watches forks the one that was killed again, until it is killed itself
            left = 0
            for process in psutil.process_iter():
                with contextlib.suppress(psutil.Error):
                    env = process.environ()
                    job = env.get("SPOOLQ_FAMILY", "").startswith(f"{self.base}/")  # which has nothing else of ours
                    if process.pid != os.getpid() and (job or env.get("SPOOLQ_TEST_CLUSTER") == self.base):
                        process.send_signal(signal.SIGKILL)
                        left += 1
            if not left:
                break
            time.sleep(0.05)
        for node in self.nodes:
            node.wait()
