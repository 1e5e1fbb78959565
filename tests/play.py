"""
Plays a node for tests of commands: claims what waits, runs it, delivers, obeys `kill`. No daemon, no runner.

In a thread of its own; looks every few milliseconds, so that tests need no sleeps of their own.
"""

import _thread
import json
import os
import signal
import subprocess
import threading

from spoolq import environment, home, script, stored
from spoolq.fsops import Answer
from spoolq.job import RESULT_KEYS
from spoolq.resources import CPUS, MEM
from spoolq.spool import Spool
from spoolq.state import ending_of, of_ending

NODE = "played"


def announce(spool: Spool, node: str = NODE, cpus: int = 8, mem: int = 16000, state: str = "up", **more) -> None:
    """Write a node.json as of another machine, alive unless `state` says otherwise."""
    spool.enter_node(node)
    capacity = {CPUS: cpus * 1000, MEM: mem * 1000}
    facts = {"format": 1, "node": node, "state": state, "capacity": capacity, "machine": "elsewhere", "boot": "b"}
    spool.write_node(node, facts | more)


def finish(spool: Spool, at, ending: str, *, exit_code=0, sig=None, result=True, reason=None) -> None:
    """Deliver the end of a claimed or waiting entry."""
    entry = at.entry
    facts = dict.fromkeys(RESULT_KEYS) | {"format": 1, "id": entry.id, "attempt": entry.attempt, "node": NODE}
    facts |= {"state": of_ending(ending).name, "exit_code": exit_code, "signal": sig, "reason": reason}
    if result:
        home.publish_result(spool.root, entry.id, json.dumps(facts).encode() + b"\n", sync=False)
    assert spool.finish(at, ending)[0] is Answer.WON


class Node(threading.Thread):
    """Use as a context manager; `ran` lists the ids that were started."""

    def __init__(self, spool: Spool) -> None:
        super().__init__(daemon=True)
        self.spool, self.over, self.ran = spool, threading.Event(), []
        self.running: dict[int, tuple] = {}
        self.killed: set[int] = set()

    def __enter__(self):
        announce(self.spool)
        self.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.join()
        for process, _ in self.running.values():
            process.kill()
            process.wait()

    def run(self):
        try:
            self.play()
        except BaseException:  # whoever waits for its jobs would wait for ever
            _thread.interrupt_main()
            raise

    def play(self):
        while not self.over.wait(0.003):
            for waiting in self.spool.waiting():
                answer, at = self.spool.claim(waiting, NODE)
                if answer is Answer.WON:
                    self.launch(at)
            for name, request in self.spool.requests(NODE):
                process, _ = self.running.get(request["id"], (None, None))
                if process and request["verb"] == "kill":
                    self.killed.add(request["id"])
                    os.killpg(process.pid, signal.SIGTERM)
                self.spool.answered(NODE, name)
            for job_id, (process, at) in list(self.running.items()):
                if process.poll() is not None:
                    del self.running[job_id]
                    self.end(at, process.returncode, job_id in self.killed)

    def launch(self, at):
        job_id, root = at.entry.id, self.spool.root
        job = stored.read_job(home.read_job(root, job_id), "job")
        path = home.path_of(root, job_id)
        argv = list(job.command)
        if job.script:
            argv = [*script.interpreter(home.read_script(root, job_id)), f"{path}/script", *argv]
        files = []
        for stream, pattern in (("stdout", job.output), ("stderr", job.error)):
            if stream == "stderr" and pattern is None and job.output is not None:
                files.append(files[0])
                continue
            fill = {"j": str(job_id), "x": job.name, "u": job.user, "N": NODE, "r": str(at.entry.attempt)}
            target = home.output_path(root, at.entry, pattern, stream, fill, job.chdir)
            files.append(open(target, "wb"))  # noqa: SIM115  # closed below
            if pattern is not None:
                os.symlink(target, f"{path}/{stream}")
        env = environment.unpack(home.read_env(root, job_id) or b"")
        self.ran.append(job_id)
        self.running[job_id] = (
            subprocess.Popen(
                argv, cwd=job.chdir, env=env, stdin=subprocess.DEVNULL, stdout=files[0], stderr=files[1],
                umask=job.umask, start_new_session=True,
            ),
            at,
        )  # fmt: skip
        for file in set(files):
            file.close()

    def end(self, at, code, cancelled):
        exit_code, sig = (None, -code) if code < 0 else (code, None)
        ending = ending_of(exit_code=exit_code, signal=sig, reason="cancelled" if cancelled else "")
        finish(self.spool, at, ending, exit_code=exit_code, sig=sig)
