"""
Model the admission of one dropped file: it becomes one job, or it stays where it can be seen.

A file in `drop/` and an entry in `queue/` are two things, and one rename moves one thing.
The plans here differ in what ties them: an intent in the file's name, or nothing, or that
the file itself becomes the entry, so that admission ends with the same single rename as
every other step of a job's life.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

TWO_JOBS = "two jobs of one file"
FILE_LOST = "dropped file lost"
EMPTY = "entry without a job file"

DROP, GONE, ENTRY = -1, -2, -3
IDLE, DEAD = -1, -2

Plan = Literal["token", "intent", "patched", "entry-before-intent", "no-intent", "job-before-entry"]

ORDERS: dict[Plan, tuple[str, ...]] = {
    "token": ("home", "job", "take"),
    "intent": ("home", "intent", "entry", "job", "commit", "unlink"),
    "patched": ("home", "intent", "entry", "job", "commit", "unlink"),
    "entry-before-intent": ("home", "entry", "intent", "job", "commit", "unlink"),
    "no-intent": ("home", "entry", "job", "commit", "unlink"),
    "job-before-entry": ("home", "intent", "job", "entry", "commit", "unlink"),
}


class Place(NamedTuple):
    """A home: private `.entry`, entry in queue, job file."""

    private: int = 0
    queued: int = 0
    job: int = 0


class Admitter(NamedTuple):
    """A node: the step it is at, the file name it holds (by its number), the id it works on."""

    at: int = IDLE
    seq: int = 0
    job: int = 0


class Shop(NamedTuple):
    """Where the file is and under which name, the homes by id, the nodes, what may still happen."""

    file: int = DROP
    seq: int = 0
    intent: int = 0
    homes: tuple[Place, ...] = ()
    jobs: int = 0  # entries that ever came to be
    bad: str = ""
    nodes: tuple[Admitter, ...] = ()
    late: tuple[tuple[str, int, int, int], ...] = ()
    kills: int = 0
    lates: int = 0
    takes: int = 0


Steps = list[tuple[str, Shop]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """
    Two nodes and one dropped file.

    Attributes:
        plan: the order of the steps and what a recovery concludes from what it finds.
        takeover: from nodes that are certainly dead, or from any silent one, which may go on.
        kills, lates, takes: kills of nodes, RPCs executed late or twice, takeovers (count).
    """

    plan: Plan = "token"
    takeover: Literal["certain", "silence"] = "silence"
    kills: int = 2
    lates: int = 1
    takes: int = 1

    def initial(self) -> Shop:
        nodes = (Admitter(), Admitter())
        return Shop(nodes=nodes, kills=self.kills, lates=self.lates, takes=self.takes)

    def settled(self, s: Shop) -> bool:
        return s.file in (GONE, ENTRY) and s.jobs == 1

    def violated(self, s: Shop) -> str:
        if s.bad:
            return s.bad
        if s.jobs > 1:
            return TWO_JOBS
        pending = any(rpc[0] in ("commit", "take") for rpc in s.late)
        return FILE_LOST if s.file == GONE and not s.jobs and not pending else ""

    def steps(self, s: Shop) -> Steps:
        out: Steps = []
        for i, rpc in enumerate(s.late):
            rest = s._replace(late=s.late[:i] + s.late[i + 1 :])
            out.append((f"late {rpc[0]} of n{rpc[1]} executed", effect(rest, *rpc)[0]))
        for i, home in enumerate(s.homes):
            if home.queued:
                out.append((f"job {i + 1} is claimed", with_home(s, i + 1, home._replace(queued=0))))
        for n, node in enumerate(s.nodes):
            if node.at == DEAD:
                out.append((f"n{n} restarts", with_node(s, n, Admitter())))
                continue
            if s.kills:
                out.append((f"n{n} killed", with_node(s, n, Admitter(at=DEAD))._replace(kills=s.kills - 1)))
            if node.at == IDLE:
                self._find(s, n, out)
            else:
                self._do(s, n, node, out)
        return out

    def _do(self, s: Shop, n: int, node: Admitter, out: Steps) -> None:
        """Add the next step of the plan: done, done with a duplicate to come, or killed with it in flight."""
        order = ORDERS[self.plan]
        rpc = (order[node.at], n, node.seq, node.job)
        after, won = effect(s, *rpc)
        last = node.at + 1 == len(order)
        seq = after.seq if rpc[0] == "intent" else node.seq
        job = len(after.homes) if rpc[0] == "home" else node.job
        following = Admitter(at=node.at + 1, seq=seq, job=job) if won and not last else Admitter()
        out.append((f"n{n} {rpc[0]}", with_node(after, n, following)))
        if not s.lates or rpc[0] == "home":
            return
        twice = with_node(after, n, following)._replace(late=(*s.late, rpc), lates=s.lates - 1)
        out.append((f"n{n} {rpc[0]}, duplicate in flight", twice))
        if s.kills:
            dead = with_node(s, n, Admitter(at=DEAD))
            dead = dead._replace(late=(*s.late, rpc), lates=s.lates - 1, kills=s.kills - 1)
            out.append((f"n{n} killed with {rpc[0]} in flight", dead))

    def _find(self, s: Shop, n: int, out: Steps) -> None:
        """Add what an idle node does about the file where it lies."""
        if s.file == n:
            at = self._resume(s)
            out.append((f"n{n} resumes", with_node(s, n, Admitter(at=at, seq=s.seq, job=s.intent))))
        elif s.file == DROP:
            taken = s._replace(file=n, seq=s.seq + 1)
            out.append((f"n{n} takes the file", with_node(taken, n, Admitter(at=0, seq=taken.seq))))
        elif s.file >= 0 and s.takes and (self.takeover == "silence" or s.nodes[s.file].at == DEAD):
            taken = s._replace(file=n, seq=s.seq + 1, takes=s.takes - 1)
            out.append((f"n{n} takes over from n{s.file}", taken))

    def _resume(self, s: Shop) -> int:
        """Tell at which step of the plan to go on with a file found in the own directory."""
        order = ORDERS[self.plan]
        if not s.intent:
            return 0
        home = s.homes[s.intent - 1]
        if home.private:
            ready = home.job or self.plan == "intent"  # the plain intent plan does not look at the job file
            return order.index("commit" if ready else "job")
        if home.job or self.plan == "entry-before-intent":
            return order.index("unlink")
        return order.index("intent") + 1


def effect(s: Shop, rpc: str, n: int, seq: int, job: int) -> tuple[Shop, bool]:
    """Execute one step on the server; False if the file was no longer the node's."""
    mine = s.file == n and s.seq == seq
    if rpc == "home":
        return s._replace(homes=(*s.homes, Place())), True
    home = s.homes[job - 1]
    if rpc == "intent":
        return (s._replace(seq=s.seq + 1, intent=job), True) if mine else (s, False)
    if rpc == "entry":
        return with_home(s, job, home._replace(private=1)), True
    if rpc == "job":
        return with_home(s, job, home._replace(job=1)), True
    if rpc == "unlink":
        return (s._replace(file=GONE) if mine else s), True
    if rpc == "take":
        if not mine:
            return s, False
        return with_home(s._replace(file=ENTRY, jobs=s.jobs + 1), job, home._replace(queued=1)), True
    if not home.private:  # the commit found nothing: committed before
        return s, True
    more = s._replace(jobs=s.jobs + (not home.queued), bad="" if home.job else EMPTY)
    return with_home(more, job, home._replace(private=0, queued=1)), True


def with_home(s: Shop, job: int, home: Place) -> Shop:
    """Return the shop with one home replaced; ids count from 1."""
    return s._replace(homes=(*s.homes[: job - 1], home, *s.homes[job:]))


def with_node(s: Shop, n: int, node: Admitter) -> Shop:
    """Return the shop with one node replaced."""
    return s._replace(nodes=(*s.nodes[:n], node, *s.nodes[n + 1 :]))
