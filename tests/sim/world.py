"""
One run: a cluster made from a seed, its faults, what its users do, and then calm until all has come to rest.

Returns the trace, a list of tuples (time, kind, ...), of which `check` is a pure function.
"""

import logging
import re
import time
from typing import Any, NamedTuple

from spoolq import array, deliver, fsops, parents, steer, tasks
from spoolq.depend import Answer, judge
from spoolq.errors import SpoolqError
from spoolq.spool import Placed, Spool, initialise
from tests.sim import faults, seam, users
from tests.sim.client import Client
from tests.sim.faults import Fault, Plan
from tests.sim.kernel import Kernel, rng
from tests.sim.machine import Machine
from tests.sim.server import Server

BUDGET_S = 1500.0  # of calm, in which everything must come to rest; jobs of 240 s that need a whole node run one by one
STATES = ("queue", "held", "running", "reaping")
Event = tuple[Any, ...]


class Shape(NamedTuple):
    """How large a run is; made from the seed."""

    nodes: int
    cpus: int
    jobs: int
    steering: int
    busy_s: float
    beat_s: float
    drowsy: tuple[float, float]
    page: int
    local: bool
    most: int  # jobs of one user at a time, or 0

    @property
    def times(self) -> tuple[float, float]:
        """(fence_s, dead_s)."""
        fence_s = self.beat_s * 4
        return fence_s, (fence_s + 1 + 50) / 0.99 + 1

    @property
    def policy(self) -> str:
        """spool.toml."""
        fence_s, dead_s = self.times
        return (
            'format = 1\nuuid = "11111111-2222-3333-4444-555555555555"\nname = "sim"\n[limits]\n'
            f"settle_s = 0\nretry_s = 2\nmin_free_mb = 10\ngrace_s = 1\nbeat_s = {self.beat_s}\nfence_s = {fence_s}\ndead_s = {dead_s:.1f}\n"
            + (f"[policy]\nmax_running = {self.most}\n" if self.most else "")
        )


def shape_of(seed: int) -> Shape:
    """From the seed alone."""
    chance = rng(seed, "shape")
    local = chance.random() < 0.15
    return Shape(
        nodes=1 if local else chance.choice([1, 2, 3, 3, 3]),
        cpus=chance.choice([1, 2, 2, 4]),
        jobs=chance.randint(3, 12),
        steering=chance.choice([0, 0, 2, 5]),
        busy_s=chance.choice([15.0, 30.0]),
        beat_s=chance.choice([3.0, 5.0]),
        drowsy=chance.choice([(0.8, 1.2), (2.0, 6.0)]),
        page=chance.choice([2, 1000]),
        local=local,
        most=rng(seed, "most").choice([0] * 7 + [1, 2, 3]),
    )


class World:
    """All of one run."""

    def __init__(self, seed: int, given: list[Fault] | None, only: frozenset[str] = frozenset()) -> None:
        self.seed, self.trace, self.over = seed, [], False
        self.kernel = Kernel()
        self.shape = shape = shape_of(seed)
        self.server = Server(lambda: self.kernel.now, self.log, durable=not shape.local)
        nodes = [f"n{number + 1}" for number in range(shape.nodes)]
        people = nodes[:1] if shape.local else ["u1", "u2"]
        if given is None:
            given = faults.make(seed, nodes, people, busy_s=shape.busy_s, local=shape.local, only=only)
        self.plan = Plan(given, self.log, lambda: self.kernel.now)
        self.machines = {name: Machine(self, name, shape.cpus) for name in nodes}
        for name in people:
            self.machines.setdefault(name, Machine(self, name, 0))
        self.people = people
        self.admin = Machine(self, "admin", 0, self.machines["n1"].client if shape.local else None)
        self.ids: list[int] = []
        self.arrays: dict[int, str] = {}
        self.os: Any = None

    def log(self, event: Event) -> None:
        """Into the trace."""
        self.trace.append(event)

    # --- the story

    def run(self) -> None:
        """From an empty directory to rest."""
        kernel, shape = self.kernel, self.shape
        with seam.in_place(kernel) as found:
            self.os = seam.SimOs(found)
            kernel.main.context = seam.Process(self.admin, 1)
            logging.disable(logging.CRITICAL)
            try:
                self.log((0.0, "policy", shape._asdict() | {"fence_s": shape.times[0], "dead_s": shape.times[1]}))
                initialise("/spool", shape.policy)
                self.plan.calm = False
                for machine in self.machines.values():
                    if machine.cpus:
                        self.log(
                            (kernel.now, "node", machine.name, {"cpus": machine.cpus * 1000, "rate": machine.rate})
                        )
                        machine.start_daemon(rng(self.seed, machine.name, "start").uniform(0, 2))
                calm_s = self._schedule()
                kernel.sleep(calm_s - kernel.now)
                self._calm()
                self._rest()
                self._final()
            finally:
                self.over = True
                kernel.end()
                logging.disable(logging.NOTSET)
        if kernel.broken:
            raise kernel.broken

    def _schedule(self) -> float:
        """Everything that happens at a time; returns when the last trouble is over."""
        shape, kernel = self.shape, self.kernel
        over_s = shape.busy_s
        for action in users.make(
            self.seed,
            self.people,
            shape.cpus,
            jobs=shape.jobs,
            busy_s=shape.busy_s,
            steering=shape.steering,
            owned=bool(shape.most),
        ):
            kernel.at(action.at, lambda action=action: self._act(action))  # type: ignore[misc]
        for fault in self.plan.faults:
            if fault.what in faults.AT_TIME:
                kernel.at(fault.at, lambda fault=fault: self.strike(fault))  # type: ignore[misc]
                lasts = 0.0 if fault.what in ("clock_jump", "gone") else fault.delay
                lasts += 20.0 * (fault.what == "outage")
                over_s = max(over_s, fault.at + lasts)
            else:
                over_s = max(over_s, shape.busy_s + fault.delay)
        return over_s + 1.0

    def _act(self, action: users.Action) -> None:
        machine = self.machines[action.user]
        if machine.up:
            machine.process(action.verb, lambda: users.act(self, action))

    def strike(self, fault: Fault) -> None:
        """A fault that happens at a time."""
        if fault.where not in self.machines:
            return
        machine, now, what = self.machines[fault.where], self.kernel.now, fault.what
        self.plan.happened(fault)
        if what == "kill_daemon":
            machine.kill_daemon()
        elif what in ("kill_runner", "kill_family"):
            machine.runner.die(whole=what == "kill_family")
        elif what == "runner_dies_at_start":
            machine.runner.dies_at_start.append(fault.word)
        elif what == "power":
            if self.shape.local:
                self.server.power_loss(rng(self.seed, "server", now))
                for actor in self.kernel.actors:
                    if actor is not machine.daemon:
                        self.kernel.kill(actor)
            machine.power_off(fault.delay)
        elif what == "gone":
            others = [each for each in self.machines.values() if each.cpus and each.up and each is not machine]
            if others:
                machine.power_off(1e9)
                machine.gone = True
                if fault.delay < 200:  # else at the end
                    kernel = self.kernel
                    kernel.at(
                        now + fault.delay, lambda: self.admin.process("node-dead", lambda: self.bury(machine.name))
                    )
        elif what in ("stop_daemon", "suspend_machine"):
            machine.freeze(fault.delay, whole=what == "suspend_machine")
        elif what == "partition":
            machine.client.blocked_until = max(machine.client.blocked_until, now + fault.delay)
        elif what == "outage":
            machine.client.soft_until = max(machine.client.soft_until, now + fault.delay)
        elif what == "server_down":
            for each in self.machines.values():
                each.client.blocked_until = max(each.client.blocked_until, now + fault.delay)
        elif what == "full":
            self.server.full = True
            self.kernel.at(now + fault.delay, lambda: setattr(self.server, "full", False))
        elif what == "clock_jump":
            machine.jump(fault.delay)

    # --- the end

    def bury(self, name: str) -> None:
        """An operator's word about a machine that is off; some come back later."""
        machine = self.machines[name]
        if machine.up:
            return
        users.bury(self, name)
        if rng(self.seed, name, "back").random() < 0.5:
            self.kernel.sleep(rng(self.seed, name, "when").choice([0.1, 3.0, 30.0]))
            machine.gone = False
            machine.boot()

    def _calm(self) -> None:
        self.plan.calm = True
        self.server.full = False
        for machine in self.machines.values():
            machine.runner.dies_at_start.clear()
            if not machine.up and not machine.gone:
                machine.boot()
        self.log((self.kernel.now, "calm"))

    def _unfinished(self) -> list[str]:
        """What has not come to rest yet, as the server knows it."""
        found = []
        for top in STATES:
            for place, directory in node.entries.items() if (node := self.server.walk(top)) else ():
                found += [f"{top}/{place}/{name}" for name in directory.entries]
        drop = self.server.walk("drop")
        found += [
            f"drop/{name}"
            for name in (drop.entries if drop else ())
            if not name.startswith(".") and name.endswith(".sh")
        ]
        for name in self.machines:
            for what in ("admit", "control") if self.machines[name].up else ("admit",):
                node = self.server.walk(f"nodes/{name}/{what}")
                found += [f"nodes/{name}/{what}/{entry}" for entry in (node.entries if node else ()) if entry[0] != "."]
        done = self.server.walk("done")
        if any(machine.gone and not machine.up for machine in self.machines.values()):
            return sorted(found)  # who is gone may have been about to write a result; history has it
        for group in done.entries.values() if done else ():
            for name in group.entries:
                if "~cancelled" not in name and "~nodefail" not in name and not re.search(r",a\d+", name):
                    _, job_id, _, attempt = name.partition("~")[0].split(".")
                    home = f"jobs/{int(job_id) // 1000}/{job_id}"
                    there = self.server.walk(f"{home}/result.json") or self.server.walk(f"{home}/result.{attempt}.json")
                    asked = any(e[1] == "asks" and e[3:5] == ("requeue", int(job_id)) for e in self.trace)
                    if asked and not there:  # set aside once too often by a late rename: not mended, see README
                        node = self.server.walk(home)
                        there = next(
                            (n for name, n in (node.entries if node else {}).items() if "result." in name), None
                        )
                    found += [] if there else [f"{home}/result.json"]
        return sorted(found)

    def _rest(self) -> None:
        """Let go of what is held, and wait."""
        until = self.kernel.now + BUDGET_S
        rested = 0
        while self.kernel.now < until:
            self.kernel.sleep(4.0)
            left = self._unfinished()
            rested = 0 if left else rested + 1
            if rested == 3:
                self.log((self.kernel.now, "drained"))
                return
            for machine in self.machines.values():
                if machine.gone and not machine.up and any(f"/{machine.name}/" in path for path in left):
                    self._bury_once(machine)
            # begin times too: the clocks of these machines are hours apart
            held = any(path.startswith("held/") and (",HU" in path or ",HB" in path) for path in left)
            if held or any(",S" in path for path in left):
                spool = Spool("/spool")
                for placed in spool.live():
                    if placed.entry.held in ("HU", "HB") or placed.entry.suspended:
                        steer.do(spool, placed, steer.release_step)
            if any(path.startswith("held/") and ",HD" in path for path in left):
                self._kill_hopeless(Spool("/spool"))
        self.log((self.kernel.now, "stuck", self._unfinished()))

    def _kill_hopeless(self, spool: Spool) -> None:
        """Children that wait for what can never be, since their users wanted it so."""
        look = parents.Parents(spool)
        for placed in spool.waiting("held"):
            job = deliver.read_job(spool, placed.entry.id)
            if placed.entry.held != "HD" or job is None or job.kill_on_invalid_dep == "yes":
                continue
            if judge(parents.of_job(job), look.fate).answer is Answer.NEVER:
                self.log((self.kernel.now, "asks", "admin", "kill", placed.entry.id))
                steer.do(spool, placed, steer.kill_step(None))

    def _bury_once(self, machine: Machine) -> None:
        """Until it is said of the daemon that beat last."""
        dead = self.server.walk(f"nodes/{machine.name}/dead")
        if dead is None and self.server.walk(f"nodes/{machine.name}/heartbeat"):
            users.bury(self, machine.name)

    def _final(self) -> None:
        """What a user can find out at the end, and what lies about."""
        spool = Spool("/spool")
        for _ in range(2):
            spool.sweep_segments()
        for group in spool.done_groups():
            for placed in spool.done(group):
                job_id = placed.entry.id
                if placed.entry.chunk:
                    self._final_tasks(spool, placed)
                    continue
                try:
                    record = deliver.read_ending(spool, job_id)
                except (OSError, SpoolqError) as error:
                    record = {"error": str(error)}
                node = self.server.walk(f"jobs/{job_id // 1000}/{job_id}/result.json")
                raw = None if node is None else node.data.decode("latin-1")
                self.log((self.kernel.now, "final", job_id, placed.entry.attempt, placed.entry.ending, record, raw))
        self.log((self.kernel.now, "left", self._walk()))
        self.log((self.kernel.now, "end of run", self.kernel.now * len(self.machines) / 3600))

    def _final_tasks(self, spool: Spool, placed: Placed) -> None:
        """Of a chunk of an array: what each task came to."""
        entry, lines = placed.entry, []
        try:
            lines = tasks.of_tasks(tasks.read(spool.root, entry.id, entry.chunk))
        except (OSError, SpoolqError) as error:
            self.log((self.kernel.now, "refused", "admin", "read", str(error)))
        known = {number: dict(line) for number, line in array.latest(lines).items()}
        self.log((self.kernel.now, "chunk", entry.unit, entry.attempt, entry.ending, known))

    def _walk(self) -> list[str]:
        found, ahead = [], [("", self.server.root)]
        while ahead:
            path, node = ahead.pop()
            if node.kind == "d" and (node.entries or path.count("/") == 0):
                ahead += [(f"{path}/{name}".lstrip("/"), child) for name, child in node.entries.items()]
            else:
                found.append(path + ("/" if node.kind == "d" else ""))
        return sorted(found)


def run(seed: int, given: list[Fault] | None = None, only: frozenset[str] = frozenset()) -> World:
    """One seed; the trace is in `world.trace`."""
    fsops_before = fsops.os
    world = World(seed, given, only)
    began = time.perf_counter()
    world.run()
    world.log((world.kernel.now, "took", time.perf_counter() - began))
    assert fsops.os is fsops_before
    return world


__all__ = ["Client", "World", "run"]
