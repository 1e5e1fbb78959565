"""
What people do in a run: submit, drop files, kill, hold, release, requeue, edit, each as a process of its own.

They call what the commands call (`submit.submit`, the steps of `steer` and `amend`), may die or fail
like any process, and write into the trace what they were told.
"""

from typing import Any, NamedTuple

from spoolq import amend, array, begin, config, mark, part, steer, submit
from spoolq.errors import SpoolqError
from spoolq.job import Job
from spoolq.request import Asked
from spoolq.spool import Spool
from tests.sim.kernel import Died, rng

ENV = {"PATH": "/bin"}
ARRAYS = ("1-3", "0-6", "1-7%1", "1-7%2", "2-6%3", "1-5%1", "7")
VERBS = ("kill", "hold", "release", "requeue", "edit")


class Action(NamedTuple):
    """Somebody does something at a time: `pick` chooses among the ids known then, `facts` are a job's."""

    at: float
    user: str
    verb: str
    pick: float = 0.0
    facts: dict[str, Any] = {}  # noqa: RUF012  # never changed


class Found:
    """As `where.Found`."""

    def __init__(self) -> None:
        self.spool = Spool("/spool")
        self.policy = config.parse_policy(self.spool.text.encode(), "spool.toml")


def make(
    seed: int, users: list[str], cpus: int, *, jobs: int, busy_s: float, steering: int, owned: bool = False
) -> list[Action]:
    """The actions of a seed."""
    chance = rng(seed, "users")
    found = []
    for _ in range(jobs):
        at = chance.uniform(0.1, busy_s * chance.choice([0.1, 0.8]))
        if chance.random() < 0.12:
            found.append(
                Action(at, chance.choice(users), "drop", facts={"name": chance.choice(["a.sh", "nightly.sh"])})
            )
            continue
        facts: dict[str, Any] = {
            "wants": {"cpus": 1000 * chance.randint(1, cpus), "mem": 1_000_000},
            "rerun": chance.choice(["certain", "never", "yes"]),
            "priority": chance.choice([0, 0, 0, 10, -10]),
            "held": chance.choice(["", "", "", "", "HU"]),
            "limit_s": chance.choice([None, None, 5]),
            "retries": chance.choice([0, 0, 0, 1, 2]),
        }
        facts["begin"] = rng(seed, "begin", at).choice([0] * 8 + [2.0, 20.0])  # s after the submission
        found.append(Action(at, chance.choice(users), "submit", facts=facts))
    arrays = rng(seed, "arrays")
    for number, action in enumerate(found):
        if action.verb == "submit":
            facts = dict(action.facts)
            if arrays.random() < 0.15:
                facts |= {"array": arrays.choice(ARRAYS), "max_fails": arrays.choice([0, 0, 0, 2])}
            if owned:
                facts["user"] = action.user
            found[number] = action._replace(facts=facts)
    related = rng(seed, "family")
    for number, action in enumerate(found):
        if action.verb == "submit" and related.random() < 0.3:
            kind = related.choice(["afterok", "afterok", "afterany", "afternotok", "after"])
            facts = {**action.facts, "depend": kind, "kill_on_invalid_dep": related.choice(["yes", "yes", "yes", "no"])}
            found[number] = action._replace(facts=facts, pick=related.random())
    for _ in range(steering):
        at = chance.uniform(1.0, busy_s)
        facts = {"mem": chance.choice(["900M", "1100M"]), "priority": chance.choice(["5", "-5"])}
        found.append(Action(at, chance.choice(users), chance.choice(VERBS), chance.random(), facts))
    return sorted(found, key=lambda action: action.at)


def act(world: Any, action: Action) -> None:
    """In a process of a user's machine."""
    name, log, kernel = action.user, world.log, world.kernel
    try:
        if action.verb == "submit":
            facts = dict(action.facts)
            parent = part_of(world, world.ids[int(action.pick * len(world.ids))], action) if world.ids else 0
            facts["depend"] = (f"{facts['depend']}:{parent}",) if parent and facts.get("depend") else ()
            facts["begin"] = due(facts["begin"], kernel.me.context.machine.wall())
            job = Job(command=("true",), name=f"r{facts['retries']}", declared=frozenset(["cpus"]), **facts)
            placed = submit.submit(Found(), Asked(job, None, ENV), warn=False)  # type: ignore[arg-type]
            log((kernel.now, "ack", name, placed.entry.id, facts["rerun"]))
            if job.array:
                world.arrays[placed.entry.id] = job.array
            world.ids.append(placed.entry.id)
            if facts["depend"]:
                log((kernel.now, "depends", name, placed.entry.id, *facts["depend"][0].split(":")))
        elif action.verb == "drop":
            drop(world, name, action.facts["name"])
        elif world.ids:
            job_id = world.ids[int(action.pick * len(world.ids))]
            steer_one(world, action, job_id)
    except Died:
        raise
    except (OSError, SpoolqError) as error:
        log((kernel.now, "refused", name, action.verb, f"{type(error).__name__}: {error}"))
    finally:
        if not kernel.me.dead:
            kernel.me.context.gone()


def part_of(world: Any, job_id: int, action: Action) -> int | str:
    """The job; of an array sometimes one of its tasks, as `42_7`."""
    spec, chance = world.arrays.get(job_id), rng(world.seed, "part", action.at)
    if spec is None or chance.random() < 0.5:
        return job_id
    return f"{job_id}_{chance.choice(array.parse(spec).between(0, 99))}"


def steer_one(world: Any, action: Action, job_id: int) -> None:
    """Kill, hold, ... a job, an array, some task of one, or what failed of one."""
    kernel, name, verb, spool = world.kernel, action.user, action.verb, Spool("/spool")
    target = part_of(world, job_id, action) if verb in ("kill", "requeue") else job_id
    world.log((kernel.now, "asks", name, verb, target))
    if job_id not in world.arrays:
        meant = [spool.find(job_id)]
    else:
        meant = [at for at in [*spool.live(), *spool.done(job_id // 1000)] if at.entry.id == job_id]
    for at in meant:
        if isinstance(target, str):
            number = int(target.partition("_")[2])
            if not array.holds(at.entry.chunk, number):
                continue
            doing = part.kill([number]) if verb == "kill" else part.requeue([number])
        elif at.entry.chunk and verb == "requeue" and action.pick * 1e6 % 2 < 1:
            doing = steer.requeue_step(failed=True)
        else:
            doing = step(action)
        outcome = steer.do(spool, at, doing)
        world.log((kernel.now, "told", name, verb, target, outcome.done, outcome.text))


def due(after_s: float, wall: float) -> str:
    """`now+20s`, as the job file keeps it."""
    return begin.resolved(f"now+{after_s:g}s", wall) if after_s else ""


def bury(world: Any, node: str) -> None:
    """`spoolq node-dead NODE --certain`, by an operator who has looked: it is off."""
    try:
        mark._bury(Spool("/spool"), node, Certain())  # type: ignore[arg-type]
        world.log((world.kernel.now, "buried", node))
    except (OSError, SpoolqError) as error:
        world.log((world.kernel.now, "refused", "admin", "node-dead", str(error)))


class Certain:
    """As `arguments.Given`, with --certain."""

    def has(self, _: str) -> bool:
        return True


def step(action: Action) -> Any:
    """What a command does to one job."""
    if action.verb == "edit":
        changes = dict(action.facts)
        fields = amend.parse(changes)
        return lambda spool, placed: amend.edit_step(
            spool, placed, changes if placed.top != "running" else {"mem": changes["mem"]}, fields, {}
        )
    return {
        "kill": steer.kill_step(None),
        "hold": steer.hold_step,
        "release": steer.release_step,
        "requeue": steer.requeue_step(),
    }[action.verb]


def drop(world: Any, user: str, name: str) -> None:
    """`cp nightly.sh SPOOL/drop/`: written somewhere else and renamed, so that it is whole."""
    system, kernel = world.os, world.kernel
    path = f"/spool/drop/.{user}.{kernel.now:.3f}"
    fd = system.open(path, 0o1 | 0o100 | 0o200)
    system.write(fd, b"#!/bin/sh\ntrue\n#SPOOLQ end\n")
    system.fsync(fd)
    ino = system.fstat(fd).st_ino
    system.close(fd)
    system.link(path, f"/spool/drop/{name}")
    world.log((kernel.now, "dropped", user, name, ino))
    system.unlink(path)
