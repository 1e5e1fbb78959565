"""
Watch other nodes, and take over what those that are silent or dead have left.

Each node watches the next ones on the ring of names, by the counter of their heartbeats and its own
clock (`lease`). Silence is enough for jobs whose rule is `yes`, since their own node has killed them
before (`runner`, the fence), and for what was being decided or admitted there. Everything else waits
for proof: that node itself after a reboot (`recover`), or an operator's word (`spoolq node-dead`).
Invariant: list, then look at the heartbeat, then rename only what was listed (model: "judged dead
before listed" gives two runners, since a node that has come back may have claimed anew meanwhile).
"""

import logging
from typing import TYPE_CHECKING

from spoolq import host, recover, rerun
from spoolq.control import wishes
from spoolq.deliver import recorded_lines
from spoolq.fsops import Answer
from spoolq.lease import ABSENT, LATE, STILL, Life, Watch, judge, observe, successors
from spoolq.rerun import Known
from spoolq.spool import Placed

if TYPE_CHECKING:
    from spoolq.daemon import Daemon

log = logging.getLogger("spoolq")

LATEST = 50  # of its results: more do not end between two commits
BARE_BEATS = 30  # between listings of what a node has left that is gone and had left nothing


class Peers:
    """What one node knows of those that it watches."""

    def __init__(self, daemon: "Daemon") -> None:
        """Nothing is known yet."""
        self.daemon = daemon
        self.watches: dict[str, Watch] = {}
        self.instances: dict[str, str] = {}
        self.lives: dict[str, Life] = {}
        self.bare: dict[str, float] = {}  # gone, and nothing lay there: when to list it again

    def look(self) -> None:
        """One look at every node that this one watches; what one of them meets stops no other."""
        daemon = self.daemon
        gone = {name for name, life in self.lives.items() if life in (Life.SILENT, Life.DEAD)}
        watched = successors(daemon.node, daemon.spool.nodes(), gone)
        for known in (self.watches, self.instances, self.lives, self.bare):
            for name in known.keys() - set(watched):
                del known[name]
        failed: OSError | None = None
        for name in watched:
            try:
                self.visit(name)
            except OSError as error:
                failed = failed or error
        if failed:
            raise failed

    def visit(self, name: str) -> None:
        """One of them: observe, and take over what its state allows."""
        watch = self.observe(name)
        if watch is None or watch.still_s <= LATE * self.daemon.policy.beat_s:
            self.lives[name] = Life.UNKNOWN
            self.bare.pop(name, None)
            return
        if host.boottime() < self.bare.get(name, 0.0):
            return
        running = self.daemon.spool.on_node(name)
        reaping = self.daemon.spool.on_node(name, "reaping")
        dropped = self.daemon.intake.left_by(name)
        life = self.judge(name)
        fresh = life is not self.lives.get(name) and life in (Life.SILENT, Life.DEAD)
        if fresh:
            log.warning("node %s is %s after %.0f s without a heartbeat", name, life.value, watch.still_s)
        self.lives[name] = life
        if life not in (Life.SILENT, Life.DEAD):
            return
        if not (running or reaping or dropped):
            self.bare[name] = host.boottime() + BARE_BEATS * self.daemon.policy.beat_s
        mine = [at for at in running if life is Life.DEAD or at.entry.rerun == "Y"] + reaping
        if mine:
            take_over(self.daemon, name, mine)
        for file in dropped:
            self.daemon.intake.inherit(name, file)
        if fresh:  # it may have died between a commit and result.json, and never come back
            recover.repair_results(self.daemon, recorded_lines(self.daemon.spool, name), LATEST)

    def observe(self, name: str) -> Watch | None:
        """Read its heartbeat once more."""
        now = host.boottime()
        beat = self.daemon.spool.read_beat(name)
        counter, instance = beat or (ABSENT, "")
        if self.instances.get(name) != instance:
            self.watches.pop(name, None)  # another daemon: its counter begins anew
        self.instances[name] = instance
        found = observe(self.watches.get(name), now=now, counter=counter, interval_s=self.daemon.policy.beat_s)
        if found is not None:
            self.watches[name] = found
        return found

    def judge(self, name: str) -> Life:
        """What is known of it now, by a fresh look at its heartbeat, and at what an operator says of that daemon."""
        policy = self.daemon.policy
        said = self.daemon.spool.node_marks(name).get("dead")
        watch = self.observe(name)
        still = watch is not None and watch.still_s >= STILL * policy.beat_s
        return judge(
            watch,
            now=host.boottime(),
            interval_s=policy.beat_s,
            dead_after_s=policy.dead_s,
            proof=still and said is not None and said == self.instances[name],
        )


def take_over(daemon: "Daemon", name: str, listed: list[Placed]) -> None:
    """Rename what was listed into reaping/<me>, and decide about it; done again from there after a crash."""
    known = Known(daemon, {}, wishes(daemon, name), name)
    for at in listed:
        with recover.spared(at):
            answer, taken = daemon.spool.reap(at, daemon.node)
            log.warning("took over job=%d attempt=%d from=%s %s", at.entry.id, at.entry.attempt, name, answer.value)
            if answer is Answer.WON:
                rerun.decide(daemon, taken, known)
    daemon.last_work = host.boottime()
    daemon.set_due("queue", 0.0)
