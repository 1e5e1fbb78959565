"""What a node admits of the files that were dropped: its rules, its limits, and whether any node could run it."""

import time
from typing import TYPE_CHECKING

from spoolq import elbow, plugin, profile, recover, schedule
from spoolq.errors import UsageError
from spoolq.intake import Intake
from spoolq.job import Job

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
        rulebook=lambda: profile.load(policy, plugins=bool(plugin.names(profile.PLUGINS))),
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
    return schedule.impossible(job.wants, {daemon.node: daemon.capacity, **recover.capacities(daemon)})
