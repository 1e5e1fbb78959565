"""
The users: submit in every way there is, and change, cancel, look and hold at random. Real commands only.

Each user is a thread with its own random numbers; what it does follows from the seed, when it does it does not.
"""

import contextlib
import hashlib
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

from tests.soak.book import Book
from tests.soak.check import Asked, Plan, Told
from tests.soak.node import HERE

WORK = f"{HERE}/tests/soak/work.py"
PATIENCE_S = 90.0  # a command that takes longer is killed, like one whose user lost patience
RULES = {"N": "never", "C": "certain", "Y": "yes"}
BURST = 250
SOON_S = 3.0
MOST_S = 6.0  # after a burst a user does not rest for minutes


class User:
    """One user on a machine that is no node."""

    def __init__(self, book: Book, root: str, base: str, nodes: Sequence[str], *, seed: str, rate: float) -> None:
        """
        Args:
            base: directory of the run: `base/truth` for the jobs, `base/desk` to work in.
            rate: jobs a second, about.
        """
        self.book, self.root, self.base, self.nodes = book, root, base, list(nodes)
        self.random, self.rate = random.Random(seed), rate
        self.stopping = threading.Event()
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("SPOOLQ_")}
        self.env |= {
            "SPOOLQ_DIR": root,
            "PYTHONPATH": HERE,
            "HOME": base,
            "SPOOLQ_SOAK_USER": base,
            "SPOOLQ_STATE_DIR": f"{base}/embedded",
        }
        self.later: list[tuple[float, list[str]]] = []  # what puts an earlier action right

    def live(self) -> None:
        """Until told to stop."""
        ways = [
            (40, self.single), (12, self.lines), (14, self.drop_whole), (8, self.drop_slowly), (8, self.script),
            (12, self.dies),
            (5, self.run), (30, self.act), (3, self.drain), (6, self.look),
        ]  # fmt: skip
        while not self.stopping.is_set():
            (way,) = self.random.choices([way for _, way in ways], [weight for weight, _ in ways])
            made = way()
            now = time.monotonic()
            due = [words for at, words in self.later if at <= now]
            self.later = [(at, words) for at, words in self.later if at > now]
            for words in due:
                self.command(*words)
            self.stopping.wait(min(MOST_S, self.random.expovariate(self.rate / max(made, 0.3))))

    # --- commands

    def command(self, *words: str, stdin: str = "", kill_after_s: float | None = None) -> tuple[int, str]:
        """Run a command, perhaps not to its end; code and stdout."""
        child = subprocess.Popen(
            [sys.executable, "-m", "spoolq", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=f"{self.base}/desk",
            env=self.env,
        )
        try:
            out, err = child.communicate(stdin, timeout=PATIENCE_S if kill_after_s is None else kill_after_s)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
            self.book.kill(1)
            out, err = child.communicate()
        if "Traceback" in err:
            self.book.crash(f"spoolq {shlex.join(words)[:200]} died: {err[-2000:]}")
        return child.returncode, out

    def work(self, token: str, *, short: bool = False) -> tuple[list[str], int]:
        """The command of a job, and how it will end."""
        pick = self.random
        seconds = pick.choice([0, 0, 0.1, 0.3]) if short else pick.choice([0, 0, 0, 0.2, 0.5, 1, 2, 3, 6, 10])
        code = pick.choice([0, 0, 0, 0, pick.randrange(1, 80), pick.choice([-6, -9, -10, -15])])
        size = pick.choice([0, 0, 10, 1000, 70_000]) if short else pick.choice([0, 100, 5000, 200_000, 2_000_000])
        flags = "".join(
            flag for flag, chance in (("f", 0.1), ("d", 0.1), ("l", 0.05), ("e", 0.3)) if pick.random() < chance
        )
        words = [sys.executable, "-I", "-S", WORK, f"{self.base}/truth", token, str(seconds), str(code), str(size)]
        return [*words, *([flags] if flags else [])], code

    def options(self, *, limits: bool = True) -> tuple[list[str], str, float | None, int]:
        """Options of a job, its rule, its time limit, and how often it is tried again."""
        pick = self.random
        rule = pick.choice("NCYCC")
        limit = pick.choice([1.0, 4.0]) if limits and pick.random() < 0.08 else None
        words = ["-c", pick.choice(["0.1", "0.5", "1", "2"]), "--rerun", RULES[rule]]
        words += ["-p", str(pick.randrange(-50, 50))] if pick.random() < 0.3 else []
        words += ["-t", f"{limit:g}s"] if limit else []
        retries = pick.choice([1, 2]) if pick.random() < 0.1 else 0
        words += ["--retries", str(retries)] if retries else []
        words += ["-w", pick.choice(self.nodes)] if pick.random() < 0.1 else []
        return words, rule, limit, retries

    # --- ways to submit; each returns about how many jobs it made

    def single(self, how: str = "sub", kill_after_s: float | None = None) -> float:
        token = self.book.token()
        words, code = self.work(token)
        options, rule, limit, retries = self.options()
        if self.random.random() < 0.05:
            options.append("-H")
        self.book.plan(Plan(token, how, rule, code, limit, retries))
        _, out = self.command("sub", *options, *words, kill_after_s=kill_after_s)
        if re.fullmatch(r"\d+\n", out):
            self.book.ack(token, int(out))
        return 1

    def lines(self, how: str = "lines", kill_after_s: float | None = None) -> float:
        options, rule, limit, retries = self.options(limits=False)
        tokens, lines = [], []
        for _ in range(self.random.choice([5, 20, BURST])):
            token = self.book.token()
            words, code = self.work(token, short=True)
            self.book.plan(Plan(token, how, rule, code, limit, retries))
            tokens.append(token)
            lines.append(shlex.join(words))
        options[1] = "0.1"
        _, out = self.command("sub", *options, "--each-line", "-", stdin="\n".join(lines), kill_after_s=kill_after_s)
        told = out[: out.rfind("\n") + 1].split()
        for token, word in zip(tokens, told, strict=False):
            self.book.ack(token, int(word))
        return len(tokens)

    def script(self) -> float:
        """A script on standard input, or a file of the user's."""
        token = self.book.token()
        words, code = self.work(token)
        options, rule, limit, retries = self.options()
        self.book.plan(Plan(token, "script", rule, code, limit, retries))
        text = f"#!/bin/sh\n#SPOOLQ {shlex.join(options)}\nexec {shlex.join(words)}\n"
        if self.random.random() < 0.5:
            _, out = self.command("sub", stdin=text)
        else:
            path = f"{self.base}/desk/{token}.sh"
            with open(path, "w", encoding="ascii") as file:
                file.write(text)
            _, out = self.command("sub", path)
            os.unlink(path)
        if re.fullmatch(r"\d+\n", out):
            self.book.ack(token, int(out))
        return 1

    def run(self) -> float:
        """A job in the foreground, perhaps interrupted: by Ctrl-C, which kills the job, or for good."""
        token = self.book.token()
        words, code = self.work(token, short=True)
        options, rule, limit, retries = self.options()
        self.book.plan(Plan(token, "run", rule, code, limit, retries))
        after = self.random.uniform(0.05, 1.0) if self.random.random() < 0.3 else None
        number, out = self.command("run", *options, *words, kill_after_s=after)
        if after is None and number >= 0:
            self.book.tell(Told(token, number, hashlib.sha256(out.encode()).hexdigest(), time.time()))
        return 1

    def dies(self) -> float:
        """A submitter that is killed in the middle."""
        after = self.random.uniform(0.02, 0.25)
        if self.random.random() < 0.5:
            return self.single("dies", after)
        return self.lines("dies", after + self.random.uniform(0.0, 0.3))

    def drop_whole(self) -> float:
        """A file that arrives by rename."""
        token, text, ending = self.dropped("drop")
        path = f"{self.root}/drop/{token}{ending}"
        if ending == ".sh" and self.random.random() < 0.5:
            text += "#SPOOLQ end\n"
        try:
            with open(path + ".part", "w", encoding="ascii") as file:
                file.write(text)
            os.rename(path + ".part", path)
            self.book.ack(token, None)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(path + ".part")
        return 1

    def drop_slowly(self) -> float:
        """A file that grows in place; with a pause that is too long it counts as in doubt."""
        token, text, ending = self.dropped("grows")
        path = f"{self.root}/drop/{token}{ending}"
        longest, last = 0.0, time.monotonic()
        try:
            with open(path, "w", encoding="ascii") as file:
                for line in text.splitlines(keepends=True):
                    file.write(line)
                    file.flush()
                    now = time.monotonic()
                    longest, last = max(longest, now - last), now
                    self.stopping.wait(self.random.uniform(0.0, 0.4))
            if longest < 0.8:
                self.book.ack(token, None)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(path)
        return 1

    def dropped(self, how: str) -> tuple[str, str, str]:
        """Token, text and ending of a file to drop; what makes it a job comes last."""
        token = self.book.token()
        words, code = self.work(token)
        options, rule, _, retries = self.options(limits=False)
        options += ["-D", f"{self.base}/desk"]  # the default, the home of whoever serves, need not be open to us
        self.book.plan(Plan(token, how, rule, code, None, retries))
        if self.random.random() < 0.5:
            quoted = ", ".join(json.dumps(word) for word in words)
            text = f'# {token}\ncpus = {options[1]}\nrerun = "{RULES[rule]}"\nname = "toml"\nchdir = "{options[-1]}"\nretries = {retries}\ncommand = [{quoted}]\n'
            return token, text, ".toml"
        text = f"#!/bin/sh\n#SPOOLQ {shlex.join(options)}\n# {token}\ntrue\n# more\nexec {shlex.join(words)}\n"
        return token, text, ".sh"

    # --- what else users do

    def act(self) -> float:
        """Something to some of the latest jobs."""
        ids = self.book.recent()
        if not ids:
            return 0
        jobs = [str(job) for job in self.random.sample(ids, min(len(ids), self.random.choice([1, 1, 2, 5])))]
        verbs = ["kill", "signal", "hold", "suspend", "release", "resume", "requeue", "requeue", "edit"]
        verb = self.random.choice(verbs)
        words = {
            "signal": ["kill", "-s", self.random.choice(["TERM", "USR1"])],
            "edit": ["edit", "-p", str(self.random.randrange(-90, 90))],
        }.get(verb, [verb])
        self.ask(verb, [*words, *jobs], jobs)
        if verb in ("hold", "suspend"):
            back = self.random.choice(["release", "resume"])
            self.later.append((time.monotonic() + self.random.uniform(0.1, SOON_S), [back, *jobs]))
        return 0.5

    def ask(self, verb: str, words: Sequence[str], jobs: Sequence[str]) -> None:
        """A command about jobs, and what it answered for each."""
        since = time.time()
        _, out = self.command(*words, "--json") if verb != "edit" else self.command(*words)
        answers: dict[int, str] = {}
        with contextlib.suppress(ValueError, KeyError, TypeError):
            answers = {row["id"]: row.get("done") or "" for row in json.loads(out)["outcomes"]}
        for job in jobs:
            self.book.ask(Asked(verb, int(job), since, time.time(), answers.get(int(job), "")))

    def drain(self) -> float:
        """A node takes a break."""
        node = self.random.choice(self.nodes)
        self.command("drain", node)
        self.later.append((time.monotonic() + self.random.uniform(0.5, SOON_S), ["undrain", node]))
        return 0.5

    def look(self) -> float:
        """Commands that only read."""
        ids = self.book.recent() or [1]
        job = str(self.random.choice(ids))
        self.command(
            *self.random.choice(
                [["stat"], ["nodes"], ["why", job], ["show", job], ["hist", "--json"], ["stat", "--json"]]
            )
        )
        return 0.5
