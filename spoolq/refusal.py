"""
Why a dropped job is refused: what this spool does not take, and what no known node could ever run.

The same answer as `sub` gives (`request.check_nodes`), with this node as it is and the others as they said.
"""

from typing import TYPE_CHECKING

from spoolq import elbow, schedule
from spoolq.constraint import Labels, sound
from spoolq.errors import UsageError
from spoolq.job import Job
from spoolq.resources import Amounts

if TYPE_CHECKING:
    from spoolq.daemon import Daemon


def refusal(daemon: "Daemon", job: Job) -> str | None:
    """In words, or None; what a node says wrong is not counted."""
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
