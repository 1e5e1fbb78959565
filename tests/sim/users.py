"""
What people do in a run: submit, drop files, kill, hold, release, requeue, edit, each as a process of its own.

They call what the commands call (`submit.submit`, the steps of `steer` and `amend`), may die or fail
like any process, and write into the trace what they were told.
"""

from typing import Any, NamedTuple

from spoolq import amend, begin, config, mark, steer, submit
from spoolq.errors import SpoolqError
from spoolq.job import Job
from spoolq.request import Asked
from spoolq.spool import Spool
from tests.sim.kernel import Died, rng

ENV = {"PATH": "/bin"}
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


def make(seed: int, users: list[str], cpus: int, *, jobs: int, busy_s: float, steering: int) -> list[Action]:
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
            parent = world.ids[int(action.pick * len(world.ids))] if world.ids else 0
            facts["depend"] = (f"{facts['depend']}:{parent}",) if parent and facts.get("depend") else ()
            facts["begin"] = due(facts["begin"], kernel.me.context.machine.wall())
            job = Job(command=("true",), name=f"r{facts['retries']}", declared=frozenset(["cpus"]), **facts)
            placed = submit.submit(Found(), Asked(job, None, ENV), warn=False)  # type: ignore[arg-type]
            log((kernel.now, "ack", name, placed.entry.id, facts["rerun"]))
            world.ids.append(placed.entry.id)
            if facts["depend"]:
                log((kernel.now, "depends", name, placed.entry.id, *facts["depend"][0].split(":")))
        elif action.verb == "drop":
            drop(world, name, action.facts["name"])
        elif world.ids:
            job_id = world.ids[int(action.pick * len(world.ids))]
            log((kernel.now, "asks", name, action.verb, job_id))
            spool = Spool("/spool")
            outcome = steer.do(spool, spool.find(job_id), step(action))
            log((kernel.now, "told", name, action.verb, job_id, outcome.done, outcome.text))
    except Died:
        raise
    except (OSError, SpoolqError) as error:
        log((kernel.now, "refused", name, action.verb, f"{type(error).__name__}: {error}"))
    finally:
        if not kernel.me.dead:
            kernel.me.context.gone()


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
