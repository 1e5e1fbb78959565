"""What a node admits of the files that were dropped: its rules, its limits, and whether any node could run it."""

import time
from typing import TYPE_CHECKING

from spoolq import elbow, lessons, plugin, profile, schedule
from spoolq.constraint import Labels, sound
from spoolq.errors import UsageError
from spoolq.intake import Intake
from spoolq.job import Job
from spoolq.resources import Amounts

if TYPE_CHECKING:
    from spoolq.daemon import Daemon


def intake(daemon: "Daemon") -> Intake:
    """The intake of a node, with all that it must know."""
    policy = daemon.policy
    return Intake(
        daemon.spool,
        daemon.node,
        settle_s=policy.settle_s,
        any_owner=policy.drop_any_owner,
        base=policy.job_fields(),
        check=lambda job: refusal(daemon, job),
        submitted=daemon.around.submitted,
        estimate=lambda job: lessons.estimated(job, daemon.spool.root, daemon.policy),
        rulebook=lambda: profile.load(daemon.policy, plugins=bool(plugin.names(profile.PLUGINS))),
    )


def admit(daemon: "Daemon", now: float) -> None:
    """Make jobs of what was dropped."""
    if daemon.intake.step(time.monotonic()):
        daemon.last_work, daemon.looked, daemon.candidates = now, False, []
        daemon.set_due("queue", 0.0)


def refusal(daemon: "Daemon", job: Job) -> str | None:
    """Why no known node could ever run a job, or why this spool does not take it; or None."""
    try:
        elbow.check(job, daemon.policy)
    except UsageError as error:
        return str(error)
    lent: dict[str, Amounts] = {daemon.node: daemon.capacity}
    labels: dict[str, Labels] = {daemon.node: daemon.labels}
    for node in daemon.spool.nodes():
        facts = daemon.spool.read_node(node, sure=True)
        if node != daemon.node and isinstance(said := facts.get("capacity"), dict):
            lent[node] = {name: amount for name, amount in said.items() if type(amount) is int}
            labels[node] = sound(facts.get("labels"))
    terms = schedule.Conditions(nodelist=job.nodelist, exclude=job.exclude, constraint=job.constraint)
    return schedule.impossible(job.wants, lent, terms, labels)
