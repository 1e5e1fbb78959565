"""
V1 to V6: what must happen in the calm at the end of a run, when nothing goes wrong any more. Pure, like `check`.
"""

from typing import Any

from tests.sim.entries import Token, Violation, job_of, numbers_of, token_of

Event = tuple[Any, ...]
# claimed: 60, and a request whose answer was lost before is repeated after 60
WAIT_S, CLAIMED_S, DECIDED_S, DELIVERED_S, OVERTAKEN = 90.0, 125.0, 120.0, 300.0, 10


class Calm:
    """Who waits for what since when."""

    def __init__(self, began: float) -> None:
        self.began = began
        self.capacity: dict[str, float] = {}
        self.dead_s = 0.0
        self.off: dict[str, tuple[float, float]] = {}  # machines without power: since when, their capacity
        self.buried: dict[str, float] = {}
        self.most = 0  # jobs of one user at a time
        self.queue: dict[int | str, tuple[Token, float]] = {}
        self.running: dict[int | str, tuple[Token, str, float]] = {}
        self.reaping: dict[int | str, tuple[Token, float]] = {}
        self.started: set[tuple[int | str, int]] = set()
        self.ended: dict[tuple[int | str, int], float] = {}
        self.tasks: dict[int | str, float] = {}  # of parts of arrays: when a task began or ended there
        self.busy: dict[str, tuple[int, int]] = {}  # tasks that run
        self.kept_since: dict[tuple[int | str, str], float] = {}
        self.fits_since: dict[tuple[int | str, str], float] = {}
        self.overtaken: dict[int | str, int] = {}
        self.told: set[tuple[str, int | str]] = set()
        self.found: list[Violation] = []

    def ran(self, t: float, key: int | str, attempt: int, *, begins: bool) -> None:
        """A job or a task began or ended."""
        if isinstance(key, int):
            if begins:
                self.started.add((key, attempt))
            else:
                self.ended[key, attempt] = t
            return
        job_id, number = job_of(key), numbers_of(key)[0]
        part = next((unit for unit in self.running if job_of(unit) == job_id and number in numbers_of(unit)), key)
        self.tasks[part] = t
        if begins:
            self.busy[key] = job_id, number
        else:
            self.busy.pop(key, None)

    def may(self, token: Token) -> bool:
        """Whether neither its array nor its user runs as much as may be."""
        there = [other for other, *_ in [*self.running.values(), *self.reaping.values()]]
        alike = sum(job_of(other.id) == job_of(token.id) for other in there)
        theirs = sum(other.owner == token.owner for other in there)
        return not (token.most and alike >= token.most) and not (self.most and theirs >= self.most)

    def idle(self, unit: int | str) -> bool:
        """Whether no task of an array's part runs."""
        return not any(job_id == job_of(unit) and n in numbers_of(unit) for job_id, n in self.busy.values())

    def say(self, rule: str, t: float, job_id: int | str, text: str) -> None:
        """Once for each job."""
        if (rule, job_id) not in self.told:
            self.told.add((rule, job_id))
            self.found.append(Violation(rule, t, job_id, text))

    def power(self, t: float, node: str, word: str) -> None:
        """A machine went off or on."""
        if word == "off" and node in self.capacity:
            self.off[node] = t, self.capacity.pop(node)
        elif word == "on" and node in self.off:
            self.capacity[node] = self.off.pop(node)[1]
            self.buried.pop(node, None)

    def free(self, node: str) -> float:
        """Cpus that no entry on the node holds."""
        return self.capacity[node] - sum(token.cpus for token, where, _ in self.running.values() if where == node)

    def move(self, t: float, path: str, path2: str) -> None:
        """An entry was renamed."""
        token = token_of(path2)
        if token is None:
            return
        top, place, _ = path2.split("/")
        if top == "running" and path.startswith("queue/") and t > self.began:
            self.overtake(t, token, place)
            self.delay(t, token, place)
        was = self.running.get(token.id)
        for table in (self.queue, self.running, self.reaping):
            table.pop(token.id, None)  # type: ignore[attr-defined]
        if top == "queue":
            self.queue[token.id] = token, t
            self.kept_since = {key: since for key, since in self.kept_since.items() if key[0] != token.id} | (
                {(token.id, token.kept): self.kept_since.get((token.id, token.kept), t)} if token.kept else {}
            )
        elif top == "running":
            self.running[token.id] = token, place, was[2] if was else t
        elif top == "reaping":
            self.reaping[token.id] = token, t
        elif top == "done":
            end = self.ended.get((token.id, token.attempt))
            if end is not None and t - max(end, self.began) > DELIVERED_S:
                self.say("V4", t, token.id, f"its result came {t - max(end, self.began):.0f} s after its end")

    def keeps(self, node: str, token: Token) -> list[Token]:
        """The jobs before this one for which a node keeps a place; among users that take turns also later ones."""
        waiting = [other for other, _ in self.queue.values() if other.kept == node and other.id != token.id]
        return [other for other in waiting if other.rank <= token.rank and self.may(other)]

    def delay(self, t: float, token: Token, node: str) -> None:
        """A claim: does it take, for nobody knows how long, what is kept for another?"""
        for kept in self.keeps(node, token):
            if kept.turn[1:] > token.turn[1:]:
                continue
            known = max(self.kept_since[kept.id, node], self.began) + WAIT_S / 3
            later = [
                job.cpus
                for job, on, since in self.running.values()
                if on == node and since > known and not job.limited and (job.id, job.attempt) not in self.ended
            ]
            if t > known and not token.limited and sum(later) + token.cpus > self.capacity[node] - kept.cpus:
                self.say("V6", t, kept.id, f"{node} keeps a place for it, and starts {token.id}, which takes that")

    def overtake(self, t: float, token: Token, node: str) -> None:
        """A claim: who waited longer and would have fitted?"""
        free = self.free(node)
        for other, since in self.queue.values():
            before = other.turn < token.turn and self.may(other) and not self.keeps(node, other)
            if before and other.cpus <= free and t - since > WAIT_S / 3:
                self.overtaken[other.id] = self.overtaken.get(other.id, 0) + 1
                if self.overtaken[other.id] > OVERTAKEN:
                    self.say("V5", t, other.id, f"overtaken {self.overtaken[other.id]} times, now by {token.id}")

    def look(self, t: float) -> None:
        """What has waited too long?"""
        free = {node: self.free(node) for node in self.capacity}
        fits = {
            (i, node)
            for i, (token, _) in self.queue.items()
            for node in free
            if token.cpus <= free[node] and self.may(token) and not self.keeps(node, token)
        }
        self.fits_since = {key: self.fits_since.get(key, t) for key in fits}
        if t < self.began:
            return
        for (job_id, node), since in self.fits_since.items():
            if t - max(since, self.began) > WAIT_S:
                self.say("V1", t, job_id, f"fits {node} since {t - max(since, self.began):.0f} s and is not claimed")
        for job_id, (token, node, since) in self.running.items():
            if node in self.off:
                known = self.buried.get(node, t)
                known = min(known, self.off[node][0] + self.dead_s) if token.rule == "Y" else known
                if t - max(known, self.began) > DECIDED_S:
                    self.say("V3", t, job_id, f"{node} is dead, and nobody decides about it")
            elif isinstance(job_id, str):
                last = max(since, self.began, self.tasks.get(job_id, 0.0))
                if t - last > CLAIMED_S and self.idle(job_id):
                    self.say("V2", t, job_id, f"claimed by {node}, and for {t - last:.0f} s none of its tasks runs")
            elif (job_id, token.attempt) not in self.started and t - max(since, self.began) > CLAIMED_S:
                self.say("V2", t, job_id, f"claimed by {node} and neither started nor given back")
        for job_id, (_, since) in self.reaping.items():
            if t - max(since, self.began) > CLAIMED_S:
                self.say("V3", t, job_id, "taken over and not decided")
        for job_id, attempt in self.ended:
            on = self.running.get(job_id)
            if (
                on
                and on[1] not in self.off
                and on[0].attempt == attempt
                and t - max(self.ended[job_id, attempt], self.began) > DELIVERED_S
            ):
                self.say("V4", t, job_id, "ended, and its result is not delivered")


def liveness(trace: list[Event]) -> list[Violation]:
    """V1 to V6 of a trace."""
    began = next((event[0] for event in trace if event[1] == "calm"), None)
    if began is None:
        return []
    state = Calm(began)
    for event in trace:
        t, kind = event[:2]
        if kind == "policy":
            state.dead_s, state.most = event[2]["dead_s"], event[2].get("most", 0)
        elif kind == "power":
            state.power(t, event[2], event[3])
        elif kind == "buried":
            state.buried[event[2]] = t
        elif kind == "node":
            state.capacity[event[2]] = event[3]["cpus"]
        elif kind == "op" and event[3] == "rename":
            state.move(t, event[4], event[5])
        elif kind in ("start", "end"):
            state.ran(t, event[3], event[4], begins=kind == "start")
        elif kind == "stuck":
            state.look(t)
            if not state.found:
                state.say("V4", t, 0, f"does not come to rest: {event[2][:6]}")
        if t >= began and kind in ("calm", "op", "start", "end"):
            state.look(t)
    return state.found
