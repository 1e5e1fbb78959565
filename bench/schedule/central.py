"""The baselines: one queue, one scheduler that knows everything at once. First come first served, and EASY backfill."""

import heapq

from bench.schedule.outcome import Ran
from bench.schedule.workload import Job


class Central:
    """A central queue over equal nodes; jobs go to the fullest node that has room (best fit)."""

    def __init__(self, jobs: list[Job], nodes: int, cpus: int, *, easy: bool) -> None:
        """Nothing has run yet."""
        self.jobs, self.nodes, self.cpus, self.easy = jobs, nodes, cpus, easy
        self.free = [cpus] * nodes
        self.running: list[dict[int, tuple[float, Job]]] = [{} for _ in range(nodes)]
        self.queue: list[Job] = []
        self.ran: list[Ran] = []
        self.ends: list[tuple[float, int, int]] = []
        self.kept: tuple[int, int, float] | None = None  # job, node, since when: without limits it stays there

    def run(self) -> list[Ran]:
        """The whole workload."""
        ahead = list(reversed(self.jobs))
        while ahead or self.ends:
            now = min(ahead[-1].submit if ahead else float("inf"), self.ends[0][0] if self.ends else float("inf"))
            while self.ends and self.ends[0][0] <= now:
                _, node, job_id = heapq.heappop(self.ends)
                self.free[node] += self.running[node].pop(job_id)[1].cpus
            while ahead and ahead[-1].submit <= now:
                self.queue.append(ahead.pop())
            self.schedule(now)
        return self.ran

    def schedule(self, now: float) -> None:
        """Start what may start."""
        for place, job in enumerate(self.queue):
            if not self.start(job, now, range(self.nodes)):
                self.queue = self.queue[place:]
                break
        else:
            self.queue = []
        if self.easy and self.queue and any(self.free):
            self.backfill(now)

    def start(self, job: Job, now: float, among: range | list[int]) -> bool:
        """Start a job on the fullest node that has room."""
        fitting = [node for node in among if self.free[node] >= job.cpus]
        if not fitting:
            return False
        node = min(fitting, key=lambda n: (self.free[n], n))
        self.free[node] -= job.cpus
        self.running[node][job.id] = (now, job)
        heapq.heappush(self.ends, (now + job.run, node, job.id))
        self.ran.append(Ran(job, node, now))
        return True

    def backfill(self, now: float) -> None:
        """The first job that has to wait gets a node; the others may not delay it there."""
        head = self.queue[0]
        node, shadow, spare = self.reservation(head, now)
        left = [head]
        tried: set[tuple[int, int | None]] = set()
        for job in self.queue[1:]:
            if (job.cpus, job.limit) in tried:
                left.append(job)
                continue
            soon = shadow is not None and job.limit is not None and now + job.limit <= shadow
            may = [n for n in range(self.nodes) if n != node or soon or job.cpus <= spare]
            if self.start(job, now, may):
                if self.ran[-1].node == node and not soon:
                    spare -= job.cpus
            else:
                tried.add((job.cpus, job.limit))
                left.append(job)
        self.queue = left

    def reservation(self, head: Job, now: float) -> tuple[int, float | None, int]:
        """(node, when it can start there by time limits or None, cpus that it leaves)."""
        best: tuple[float, int, int] | None = None
        for node in range(self.nodes):
            ends = [
                (since + job.limit, job.cpus) for since, job in self.running[node].values() if job.limit is not None
            ]
            ends.sort()
            free, shadow = self.free[node], None
            for end, cpus in ends:
                if shadow is not None and end > shadow:
                    break
                free += cpus
                if free >= head.cpus:
                    shadow = end
            if shadow is not None and (best is None or shadow < best[0]):
                best = (shadow, node, free - head.cpus)
        if best:
            self.kept = None
            return best[1], best[0], best[2]
        # no limit says when: where most is free already, and there until it starts
        if self.kept is None or self.kept[0] != head.id:
            self.kept = (head.id, max(range(self.nodes), key=lambda n: (self.free[n], -n)), now)
        node, since = self.kept[1:]
        young = sum(job.cpus for start, job in self.running[node].values() if start >= since)
        return node, None, max(0, self.cpus - head.cpus - young)
