"""A real node family for tests: start it, talk to it, kill parts of it, and leave nothing behind."""

import contextlib
import os
import select
import shutil
import signal
import tempfile
import time
from typing import Any

from spoolq import process
from spoolq.channel import Family, Gone

DEADLINE_S = 120.0  # generous: a loaded machine is slow, and nothing here waits for long when it works


def wait_until(holds, what="it"):
    """Poll until something holds; its value. What it looks into need not be there yet."""
    give_up = time.monotonic() + DEADLINE_S
    while True:
        with contextlib.suppress(FileNotFoundError):
            if value := holds():
                return value
        assert time.monotonic() < give_up, f"{what} did not come true"
        time.sleep(0.01)


def gone(pid):
    """Whether a process has ended (pid 1 of a container may leave it a zombie for ever)."""
    stat = process.read_stat(pid)
    return stat is None or stat.state in "ZX"


def contents(path):
    """The text of a file."""
    with open(path) as file:
        return file.read()


def touch(path):
    """Make an empty file."""
    with open(path, "w"):
        pass


def wait_for(family: Any, seconds: float) -> None:
    """Until it says something; poll, since select ends at 1024 descriptors."""
    poller = select.poll()
    poller.register(family.fileno(), select.POLLIN)
    poller.poll(seconds * 1000)


class Node:
    """The daemon's place, taken by a test."""

    def __init__(self, directory=None, *, idle_s=5.0, hook=""):
        self.made = directory or tempfile.mkdtemp(prefix="sq-")
        self.dir = os.path.join(self.made, "state")
        os.makedirs(self.dir, exist_ok=True)
        self.idle_s, self.hook = idle_s, hook
        self.messages = []
        self.out = os.path.join(self.made, "out")
        self.known = self.connect()

    def connect(self):
        """(Re)connect and say hello; the `known` message, of which the ends count as told."""
        os.environ.pop("SPOOLQ_TEST_DIE", None)
        if self.hook:
            os.environ["SPOOLQ_TEST_DIE"] = self.hook
        try:
            self.family = Family.connect(self.dir, timeout_s=DEADLINE_S, idle_s=self.idle_s)
        finally:
            os.environ.pop("SPOOLQ_TEST_DIE", None)
        try:
            self.family.hello(version="t", lease=process.boottime() + 3600)
            self.known = self._next("known")
        except Gone:
            self.family.close()
            return self.connect()
        self.messages += [{"op": "ended", **job} for job in self.known["jobs"] if job["state"] == "ended"]
        return self.known

    def reconnect(self):
        """As a restarted daemon: what ended before its hello is in `known`, and told in no other way."""
        self.family.close()
        self.messages = [m for m in self.messages if m["op"] == "ended"]
        return self.connect()

    def pump(self, timeout_s=0.1):
        """Take in what has come; connect anew if the runner is gone."""
        try:
            self.family.flush()
            wait_for(self.family, timeout_s)
            self.messages += self.family.receive()
        except Gone:
            self.family.close()
            self.connect()

    def _next(self, op):
        give_up = time.monotonic() + DEADLINE_S
        while True:
            for message in self.messages:
                if message["op"] == op:
                    self.messages.remove(message)
                    return message
            assert time.monotonic() < give_up, f"no {op!r} came"
            wait_for(self.family, 0.2)
            self.messages += self.family.receive()

    def wait_for(self, op, job_id=None):
        """The first message of a kind about a job."""
        give_up = time.monotonic() + DEADLINE_S
        while True:
            for message in self.messages:
                if message["op"] == op and job_id in (None, message.get("id")):
                    return message
            assert time.monotonic() < give_up, f"no {op!r} for {job_id} came"
            self.pump()

    def start(self, job_id, argv, *, fds=None, attempt=1, **more):
        """Send a start; a text is a shell's."""
        argv = ["/bin/sh", "-c", argv] if isinstance(argv, str) else argv
        env = ["PATH=/usr/bin:/bin", f"SPOOLQ_JOB_ID={job_id}", f"SPOOLQ_ATTEMPT={attempt}", f"NODE={self.made}"]
        message = {
            "op": "start", "id": job_id, "attempt": attempt, "gen": 7, "argv": argv, "program": None, "env": env,
            "umask": 0o027, "chdir": "/", "remote": False, "limit_s": None, "grace_s": 30.0, "mem_mb": None,
            "cgroup": None, "rerun": "C", "scratch": "/s",
        }  # fmt: skip
        fd = os.open(self.out, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.family.send(message | more, fds if fds is not None else [fd, fd])
        os.close(fd)

    def say(self, op, job_id, **more):
        """Send another order about a job."""
        self.family.send({"op": op, "id": job_id, "attempt": 1, **more})

    def ended(self, job_id):
        """How a job ended, once it has."""
        return self.wait_for("ended", job_id)["ended"]

    def pid(self, job_id):
        """The pid of a job, once it runs."""
        return self.wait_for("started", job_id)["pid"]

    def output(self):
        """What all jobs wrote."""
        with contextlib.suppress(FileNotFoundError), open(self.out) as file:
            return file.read()
        return ""

    def job(self, job_id):
        """What the last `known` says of a job, or None."""
        return next((job for job in self.known["jobs"] if job["id"] == job_id), None)

    def kill_runner(self):
        """kill -9 of the runner; connected to the next one afterwards."""
        old = self.known["pid"]
        os.kill(old, signal.SIGKILL)
        self.until_new(old)

    def until_new(self, old):
        """Connected to a runner that is another than `old`."""
        wait_until(lambda: self.pump() or self.known["pid"] != old, "a new runner")

    def whole(self):
        """Wait until the chain has its full length; its pids, runner first."""

        def full():
            known = self.reconnect()
            return known["family"] if len(known["family"]) == 3 else None

        return wait_until(full, "a whole family")

    def kill_all(self):
        """kill -9 of the whole family, so that none sees another die."""
        pids = self.whole()
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in pids:
                os.kill(pid, number)
        wait_until(lambda: all(gone(pid) for pid in pids), "death")

    def leftovers(self):
        """Living processes of this family and its jobs."""
        found = []
        for pid, stat in process.scan().items():
            if stat.state in "ZX" or pid == os.getpid():
                continue
            with contextlib.suppress(OSError):
                with open(f"/proc/{pid}/cmdline", "rb") as file:
                    words = file.read()
                mine = process.environment(pid).get(b"NODE") == self.made.encode()
                if mine or b"spoolq.supervise" in words and self.dir.encode() in words:
                    found.append(pid)
        return found

    def close(self):
        """End everything."""
        self.family.close()
        give_up = time.monotonic() + DEADLINE_S
        while left := self.leftovers():
            assert time.monotonic() < give_up, left
            for number in (signal.SIGSTOP, signal.SIGKILL):
                for pid in left:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, number)
            time.sleep(0.01)
        log = ""
        with contextlib.suppress(FileNotFoundError), open(os.path.join(self.dir, "family.log")) as file:
            log = file.read()
        shutil.rmtree(self.made, ignore_errors=True)
        return log
