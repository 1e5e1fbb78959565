"""
One soak from beginning to end: a spool, nodes, users, faults; then peace, and the judgement.

The directory of a run holds all: `diary.jsonl`, `truth/`, the spool, and a directory for each node with its log.
"""

import contextlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from tests.soak import gather
from tests.soak.book import Book
from tests.soak.check import Verdict, World, check
from tests.soak.faults import Faults
from tests.soak.node import HERE, Node, containment, read
from tests.soak.pulse import Pulse
from tests.soak.users import User

POLICY = {"beat_s": 1, "fence_s": 5, "dead_s": 60, "grace_s": 1, "settle_s": 2, "retry_s": 1, "min_free_mb": 2}
PEACE_S = 120.0  # without any progress for so long after the faults: stuck
PROGRESS_S = 10.0
LOCAL_MB = 200  # of a node's own disk
TURN = 4  # beats of a fresh daemon, one before its first turn and one in each of some: it has swept, and heard requests
FDS = 6  # descriptors that a daemon may have more than a fresh one


class Options(NamedTuple):
    """What was asked for."""

    seconds: float = 300.0
    nodes: int = 3
    seed: int = 1
    spool: str = ""
    faults: tuple[str, ...] = ()
    rate: float = 3.0
    gap_s: float = 3.0
    users: int = 2
    disk_mb: int = 3000
    directory: str = ""
    contained: bool = True
    keep: bool = False


class Soak:
    """One run."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.base = options.directory or tempfile.mkdtemp(prefix="soak-", dir="/tmp")
        os.makedirs(self.base, exist_ok=True)
        os.chmod(self.base, 0o711)
        for part in ("truth/locks", "desk"):
            os.makedirs(f"{self.base}/{part}", exist_ok=True)
        self.contained = containment() if options.contained else []
        self.disk = ""
        self.root = self.make_spool()
        self.book = Book(f"{self.base}/truth/diary.jsonl", options.seed)
        view = f"{self.base}/mnt/spool" if self.contained else ""
        if view:
            os.makedirs(os.path.dirname(view), exist_ok=True)
        self.nodes = [
            Node(self.base, f"n{i + 1}", self.root, cpus=4, contained=self.contained, view=view)
            for i in range(options.nodes)
        ]
        self.local: list[str] = []
        for node in self.nodes if self.disk else []:  # a disk of its own, which a loss of power leaves as it is
            self.local.append(f"{node.directory}/state")
            size = f"size={LOCAL_MB}m,mode=700"
            subprocess.run(["mount", "-t", "tmpfs", "-o", size, "soak", self.local[-1]], check=True)
        self.faults = Faults(
            self.book,
            self.nodes,
            seed=f"{options.seed}/faults",
            root=self.root,
            disk=self.disk,
            policy=POLICY,
        )
        self.names = [name for name in options.faults or self.faults.possible() if name in self.faults.possible()]
        self.began = time.monotonic()

    def make_spool(self) -> str:
        """A spool with a policy of seconds; on a small file system of its own if that can be."""
        parent = self.options.spool
        if not parent:
            parent = f"{self.base}/disk"
            os.makedirs(parent, exist_ok=True)
            if self.contained and os.getuid() == 0:
                size = f"size={self.options.disk_mb}m,nr_inodes=0"
                subprocess.run(["mount", "-t", "tmpfs", "-o", size, "soak", parent], check=True)
                self.disk = parent
        root = f"{parent}/spool"
        env = {k: v for k, v in os.environ.items() if not k.startswith("SPOOLQ_")} | {
            "PYTHONPATH": HERE,
            "HOME": self.base,
        }
        subprocess.run([sys.executable, "-m", "spoolq", "init", root], check=True, env=env, capture_output=True)
        with open(f"{root}/spool.toml", encoding="utf-8") as file:
            head = file.read().partition("\n[")[0]
        with open(f"{root}/spool.toml", "w", encoding="utf-8") as file:
            file.write(head + "\n[limits]\n" + "".join(f"{key} = {value}\n" for key, value in POLICY.items()))
        return root

    # --- the run

    def run(self) -> Verdict:
        """All of it."""
        names = [node.name for node in self.nodes]
        for node in self.nodes:
            node.boot()
        users = [
            User(
                self.book, self.root, self.base, names,
                seed=f"{self.options.seed}/user{i}", rate=self.options.rate / self.options.users,
            )
            for i in range(self.options.users)
        ]  # fmt: skip
        threads = [threading.Thread(target=user.live, name=f"user {i}") for i, user in enumerate(users)]
        pulse = Pulse(self.book, self.root, names, POLICY["fence_s"])
        heart = threading.Thread(target=pulse.watch, name="pulse", daemon=True)
        heart.start()
        chaos = threading.Thread(target=self.faults.run, args=(self.names, self.options.gap_s), name="faults")
        if self.names:
            threads.append(chaos)
        for thread in threads:
            thread.start()
        try:
            self.wait(self.options.seconds)
        finally:
            for user in users:
                user.stopping.set()
            self.faults.stopping.set()
            for thread in threads:
                thread.join()
        self.say("peace: no more work, no more faults")
        stuck = self.peace(users[0])
        pulse.stopping.set()
        heart.join()
        return self.judge(stuck)

    def wait(self, seconds: float) -> None:
        """Let it go on, and say now and then how far it is."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(left, PROGRESS_S))
            self.progress()

    def progress(self) -> None:
        """One line."""
        counts = gather.unfinished(self.root)
        done = sum(len(gather.listing(f"{self.root}/done/{name}")) for name in gather.listing(f"{self.root}/done"))
        elapsed = time.monotonic() - self.began
        waits = " ".join(f"{name} {count}" for name, count in counts.items())
        self.say(
            f"acknowledged {len(self.book.acks)} done {done} ({done / elapsed:.1f}/s) {waits} faults {len(self.book.faults)}"
        )

    def say(self, text: str) -> None:
        print(f"soak {time.monotonic() - self.began:6.0f} s: {text}", flush=True)

    # --- peace

    def peace(self, user: User) -> list[str]:
        """Put everything right and wait until all has ended; what is stuck."""
        for node in self.nodes:
            if not node.on:
                node.boot()
        last, since = {}, time.monotonic()
        shown = time.monotonic()
        while True:
            user.command("undrain", *user.nodes)
            for verb in ("release", "resume"):
                if gather.unfinished(self.root)["held" if verb == "release" else "running"]:
                    user.command(verb, "--all")
            counts = gather.unfinished(self.root)
            if not any(counts.values()):
                return []
            if counts != last:
                last, since = counts, time.monotonic()
            elif time.monotonic() - since > PEACE_S:
                return [f"nothing has moved for {PEACE_S:.0f} s: {counts}"]
            if time.monotonic() - shown > PROGRESS_S:
                shown = time.monotonic()
                self.progress()
            time.sleep(1.0)

    def restart_all(self) -> list[str]:
        """Every daemon once more, which sweeps; descriptors that the old ones had too many."""
        found = []
        for node in self.nodes:
            before = node.descriptors()
            old = {process.pid for process in node.family("daemon")}
            self.faults.signal(sorted(old), 15)
            self.until(lambda node=node, old=old: self.settled(node, old), PEACE_S)
            after = node.descriptors()
            found += [
                f"{node.name}: the {kind} had {before[kind]} descriptors, a fresh one has {after.get(kind)}"
                for kind in before
                if kind == "daemon" and before[kind] > after.get(kind, 0) + FDS
            ]
            if after.get("runner", 0) > 60:
                found.append(f"{node.name}: the runner has {after['runner']} descriptors without any job")
        return found

    def until(self, done: Callable[[], bool], most_s: float) -> None:
        """Wait for something, but not for ever: who looks next sees what is missing."""
        end = time.monotonic() + most_s
        while not done() and time.monotonic() < end:
            time.sleep(0.2)

    def beats(self, node: Node) -> int:
        """How often its daemon has beaten."""
        words = read(f"{self.root}/nodes/{node.name}/heartbeat").split()
        return int(words[0]) if words and words[0].isdigit() else 0

    def settled(self, node: Node, old: Collection[int]) -> bool:
        """Whether it has a daemon that is none of the old ones, and that is up."""
        if not {process.pid for process in node.family("daemon")} - set(old):
            return False
        lines = node.log()
        starts = [number for number, line in enumerate(lines) if line.startswith("--- start")]
        return any(" up node=" in line for line in lines[starts[-1] :]) if starts else False

    # --- the judgement

    def judge(self, stuck: list[str]) -> Verdict:
        """Look at everything."""
        left = stuck
        if not stuck:
            left = self.restart_all()
            for node in self.nodes:
                self.until(lambda node=node: self.beats(node) >= TURN, PEACE_S)
        for node in self.nodes:
            if not node.shut_down():
                left.append(f"{node.name} could not be shut down")
                node.power_off()
        book = self.book
        world = World(
            told=book.told,
            plans=book.plans,
            acks=book.acks,
            asked=book.asked,
            faults=book.faults,
            crashes=list(book.crashes),
        )
        gather.fill(world, self.root, f"{self.base}/truth", [node.name for node in self.nodes])
        world.left, world.private = left + gather.left_behind(self.root, self.nodes), gather.private(self.root)
        world.killed = book.killed
        world.crashes += gather.crashes(self.nodes)
        verdict = check(world)
        self.report(verdict)
        return verdict

    def report(self, verdict: Verdict) -> None:
        """The numbers, and the story of whatever is wrong."""
        for wrong in verdict.wrong[:20]:
            text = f"{wrong.kind}: " + (f"job {wrong.id}: " if wrong.id is not None else "") + wrong.text
            print("\n".join(gather.story(wrong.id, text, self.root, f"{self.base}/truth", self.nodes) or [text]))
        elapsed = time.monotonic() - self.began
        faults = Counter(fault.kind for fault in self.book.faults)
        said = " ".join(f"{kind} {count}" for kind, count in sorted(faults.items())) or "none"
        missing = sorted(set(self.faults.all()) - set(self.faults.possible()))
        self.say(f"faults: {said}")
        if missing:
            self.say(f"NOT POSSIBLE HERE: {', '.join(missing)}")
        self.say("endings: " + " ".join(f"{state} {count}" for state, count in sorted(verdict.endings.items())))
        self.say(
            f"seed {self.options.seed}: {verdict.done} jobs done, {verdict.starts} starts, {verdict.acknowledged} acknowledged, "
            f"{verdict.done / elapsed:.1f} jobs/s"
        )
        self.say(f"untrue {verdict.count('untrue')}, left behind {verdict.count('left')}")
        self.say(
            f"lost {verdict.count('lost')}, duplicated {verdict.count('duplicated')}, "
            f"unexpected {verdict.count('unexpected')}, recovered {verdict.recovered}"
        )

    def close(self, *, keep: bool) -> None:
        """Nothing of it runs on; the directory goes unless it is evidence."""
        for node in self.nodes:
            if node.on:
                node.power_off()
        mark = f"SPOOLQ_SOAK_USER={self.base}".encode()
        for word in os.listdir("/proc"):  # embedded nodes of `run`
            if word.isdigit() and int(word) != os.getpid() and mark in read(f"/proc/{word}/environ").split(b"\0"):
                self.faults.signal([int(word)], 9)
        self.book.close()
        if keep and self.disk:  # what is in memory only would go with the next boot
            shutil.copytree(self.root, f"{self.base}/evidence", symlinks=True, dirs_exist_ok=True)
            for node in self.nodes:
                shutil.copytree(
                    f"{node.directory}/state",
                    f"{node.directory}/evidence",
                    symlinks=True,
                    dirs_exist_ok=True,
                    ignore=shutil.ignore_patterns("socket*", "*.sock"),
                )
        for path in [*self.local, *([self.disk] if self.disk else [])]:
            subprocess.run(["umount", "-l", path], check=False)
        if not keep:
            with contextlib.suppress(OSError):
                shutil.rmtree(self.base)


def soak(options: Options) -> Verdict:
    """Run one, and clean up if all is well."""
    random.seed(options.seed)
    run = Soak(options)
    print(f"soak: seed {options.seed}, in {run.base}, faults {','.join(run.names) or 'none'}", flush=True)
    if not run.contained:
        print(
            "soak: NO CONTAINERS here (unshare is refused): nodes are process groups, and power is never lost",
            flush=True,
        )
    keep = True
    try:
        verdict = run.run()
        keep = bool(verdict.wrong) or options.keep
    finally:
        run.close(keep=keep)
        if keep:
            print(f"soak: everything is kept in {run.base}", flush=True)
    return verdict


def names(text: str) -> Sequence[str]:
    """Fault names from a command line."""
    return tuple(word for word in text.split(",") if word)
