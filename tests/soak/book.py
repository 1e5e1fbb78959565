"""
What happened, as it happens: plans, acknowledgements, requests, faults; in memory for the judge and in a file.

A plan is written before its job is submitted, an acknowledgement after the command has printed the id, so
that what is in doubt is in doubt on the safe side. Safe for several threads.
"""

import json
import threading
import time
from typing import Any

from tests.soak.check import Ack, Asked, Fault, Plan, Told


class Book:
    """The diary of one run."""

    def __init__(self, path: str, seed: int) -> None:
        self.plans: dict[str, Plan] = {}
        self.acks: list[Ack] = []
        self.asked: list[Asked] = []
        self.faults: list[Fault] = []
        self.told: list[Told] = []
        self.crashes: list[str] = []
        self.killed = 0
        self._seed, self._lock, self._number = seed, threading.Lock(), 0
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115  # open as long as the run

    def _note(self, kind: str, value: Any) -> None:
        row = value._asdict() if hasattr(value, "_asdict") else {"text": value}
        self._file.write(json.dumps({"what": kind, "now": time.time(), **row}) + "\n")
        self._file.flush()

    def token(self) -> str:
        """A word that no other job has."""
        with self._lock:
            self._number += 1
            return f"soak-{self._seed:x}-{self._number}"

    def plan(self, plan: Plan) -> None:
        with self._lock:
            self.plans[plan.token] = plan
            self._note("plan", plan)

    def ack(self, token: str, job: int | None) -> None:
        with self._lock:
            self.acks.append(Ack(token, job, time.time()))
            self._note("ack", self.acks[-1])

    def tell(self, told: Told) -> None:
        with self._lock:
            self.told.append(told)
            self._note("told", told)

    def ask(self, asked: Asked) -> None:
        with self._lock:
            self.asked.append(asked)
            self._note("asked", asked)

    def fault(self, fault: Fault) -> None:
        with self._lock:
            self.faults.append(fault)
            self._note("fault", fault)

    def kill(self, count: int) -> None:
        """So many daemons or commands did not live to finish what they were at."""
        with self._lock:
            self.killed += count

    def crash(self, text: str) -> None:
        """A program of spoolq ended with a traceback."""
        with self._lock:
            self.crashes.append(text)
            self._note("crash", text)

    def recent(self, most: int = 150) -> list[int]:
        """The ids told last."""
        with self._lock:
            return [ack.id for ack in self.acks[-most:] if ack.id is not None]

    def close(self) -> None:
        self._file.close()
