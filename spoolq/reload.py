"""
A changed spool.toml takes effect while a node serves: with its next beat, which reads that file anyway.

`systemctl reload` (SIGHUP) makes it beat at once. A text counts when two looks found the same, since editors
write in place; one that cannot be read leaves what was in force before, and the node says so until it is mended.
What decides who is alive and who may take over (FIXED) holds until the node starts again: a node that hears of
nothing would otherwise be taken for dead by the new times before it stops its jobs by the old ones.
Invariant: the daemon never serves without a policy that was read whole.
"""

import logging
from typing import TYPE_CHECKING

from spoolq import config
from spoolq.config import Policy
from spoolq.errors import SpoolqError
from spoolq.fair import Most

if TYPE_CHECKING:
    from spoolq.daemon import Daemon

log = logging.getLogger("spoolq")

FIXED = ("uuid", "grace_s", "beat_s", "fence_s", "dead_s")
AGAIN_S = 1.0  # between the two looks


class Reload:
    """What one daemon knows of the text of spool.toml."""

    def __init__(self, text: str) -> None:
        """`text` is what its policy was read from."""
        self.trouble = ""  # why the text that is there now does not count, for people
        self._judged = self._seen = text

    def step(self, daemon: "Daemon", now: float) -> None:
        """Heed what the last beat has read."""
        text = daemon.presence.mark
        if text in ("", self._judged):
            self._seen = self._judged
            return
        if text != self._seen:
            self._seen = text
            daemon.set_due("beat", now + AGAIN_S)
            return
        self._judged = text
        try:
            policy = config.parse_policy(text.encode(), f"{daemon.spool.root}/spool.toml")
        except SpoolqError as error:
            self.trouble = str(error)
            log.error(  # noqa: TRY400  # the trace says nothing
                "spool.toml is not heeded, what was read before still holds: %s", error
            )
        else:
            self.trouble = ""
            log.info("spool.toml has changed: %s", heed(daemon, policy) or "nothing that concerns a node")
        daemon.set_due("news", 0.0)


def heed(daemon: "Daemon", policy: Policy) -> str:
    """Serve by another policy from now on; which of its values changed, in words."""
    old = daemon.policy
    names = [name for name in Policy._fields if name != "in_force" and getattr(policy, name) != getattr(old, name)]
    later = [name for name in names if name in FIXED]
    policy = policy._replace(**{name: getattr(old, name) for name in FIXED})
    daemon.policy = daemon.presence.policy = policy
    daemon.capacity = {**daemon.own, **policy.pools}
    daemon.pending.pools = policy.pools
    daemon.queue.most = Most(policy.max_running, policy.max_cpus)
    daemon.gauge.hysteresis.hold_s = policy.overload_s
    intake = daemon.intake
    intake.settle_s, intake.any_owner, intake.base = policy.settle_s, policy.drop_any_owner, policy.job_fields()
    daemon.set_due("queue", 0.0)
    now = ", ".join(name for name in names if name not in later)
    return "; ".join(filter(None, (now, f"when it starts again: {', '.join(later)}" if later else "")))
