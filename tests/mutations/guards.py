"""
Each guard that keeps jobs from being lost or run twice, and how to take it out of the source.

A guard is a name, what it is for, and texts to replace; each text stands exactly once in its file, which
`test_mutations` holds, so a guard that is rewritten cannot silently drop out of the check.
"""

from typing import NamedTuple


class Change(NamedTuple):
    """One replacement in one file of the package."""

    file: str
    old: str
    new: str


class Guard(NamedTuple):
    """One guard; without it `without` would happen."""

    name: str
    without: str
    changes: tuple[Change, ...]


GUARDS = (
    Guard(
        "gen in names",
        "a late or repeated rename finds a name that has come back",
        (
            Change("entry.py", "return self._replace(gen=self.gen + 1, **changes)", "return self._replace(**changes)"),
            Change("spool.py", 'assert entry.gen == at.entry.gen + 1, "every rename raises gen"', "pass"),
        ),
    ),
    Guard(
        "a failed rename is looked into",
        "an own rename whose reply was lost is taken for lost",
        (
            Change(
                "fsops.py",
                "        answer = settle(source, target)\n",
                "        answer = Answer.LOST\n",
            ),
        ),
    ),
    Guard(
        "unknown is not won",
        "a claim that nobody answered is started",
        (
            Change(
                "fsops.py",
                "return Answer.UNKNOWN if arrived is None else Answer.WON if arrived else Answer.LOST",
                "return Answer.WON if arrived is None or arrived else Answer.LOST",
            ),
            Change("fsops.py", "return Answer.WON if arrived else Answer.UNKNOWN", "return Answer.WON"),
        ),
    ),
    Guard(
        "unknown is not lost",
        "an end that nobody answered for is given up",
        (
            Change(
                "fsops.py",
                "return Answer.UNKNOWN if arrived is None else Answer.WON if arrived else Answer.LOST",
                "return Answer.WON if arrived else Answer.LOST",
            ),
            Change("fsops.py", "return Answer.WON if arrived else Answer.UNKNOWN", "return Answer.LOST"),
            Change(
                "fsops.py",
                "return Answer.LOST if tries == 1 else Answer.UNKNOWN",
                "return Answer.LOST",
            ),
        ),
    ),
    Guard(
        "the source is looked at first",
        "an own rename that is carried out between two looks is taken for lost",
        (
            Change(
                "fsops.py",
                "    left = present(*os.path.split(source))\n    if left:\n        return None\n"
                "    arrived = present(*os.path.split(target))\n",
                "    arrived = present(*os.path.split(target))\n    left = present(*os.path.split(source))\n"
                "    if left:\n        return None\n",
            ),
        ),
    ),
    Guard(
        "lease check before the start",
        "a node that was silent for long starts what others have taken over",
        (
            Change("claim.py", "if not may_start(host.boottime(), began, daemon.policy.fence_s):", "if False:"),
            Change("orders.py", 'if process.boottime() > min(runner.lease, message.get("until", NEVER)):', "if False:"),
        ),
    ),
    Guard(
        "the lease counts from before the claim",
        "a beat that is faster than the reply of a claim renews the right to start it",
        (
            Change(
                "claim.py",
                "if not may_start(host.boottime(), began, daemon.policy.fence_s):",
                "if not may_start(host.boottime(), daemon.presence.began, daemon.policy.fence_s):",
            ),
            Change("orders.py", 'min(runner.lease, message.get("until", NEVER))', "runner.lease"),
        ),
    ),
    Guard(
        "the runner fences",
        "a node that is cut off goes on with jobs that run elsewhere by now",
        (
            Change(
                "runner.py",
                'return [run for run in self.by_pid.values() if run.rerun == "Y" and run.stage is not Stage.KILLING]',
                "return []",
            ),
        ),
    ),
    Guard(
        "the fence outlives the runner",
        "a runner forked after a kill does not know until when its jobs may live",
        (
            Change(
                "runner.py",
                "self.fence = read_fence(kin.state_dir, kin.boot, 0.0 if self.by_pid else NEVER)",
                "self.fence = NEVER",
            ),
        ),
    ),
    Guard(
        "listed, then looked at, then taken over",
        "a node that has come back loses what it has claimed since",
        (
            Change(
                "peers.py",
                "        watch = self.observe(name)\n        still",
                "        watch = self.watches.get(name)\n        still",
            ),
        ),
    ),
    Guard(
        "time counts only between own reads",
        "an observer that slept believes that all others are dead",
        (
            Change(
                "lease.py",
                "still_s = watch.still_s + gap if 0 <= gap <= GAP * interval_s else 0.0",
                "still_s = watch.still_s + gap",
            ),
        ),
    ),
    Guard(
        "an operator's word is about one daemon",
        "a node that is back loses its jobs by an old word",
        (
            Change(
                "peers.py",
                "proof=still and said is not None and said == self.instances[name],",
                "proof=said is not None,",
            ),
        ),
    ),
    Guard(
        "silence is enough for rule yes alone",
        "a job runs twice though its user did not allow it",
        (
            Change(
                "peers.py",
                'mine = [at for at in running if life is Life.DEAD or at.entry.rerun == "Y"] + reaping',
                "mine = running + reaping",
            ),
        ),
    ),
    Guard(
        "no record of the claim means that it may have started",
        "after a reboot a job that ran is started again against its rule",
        (
            Change(
                "recover.py",
                "if not known.state(key) and entry.name in daemon.claims:",
                "if not known.state(key):",
            ),
        ),
    ),
    Guard(
        "rule never",
        "a job runs again though its user said never",
        (Change("rerun.py", '    if entry.rerun == "N":\n', "    if False:\n"),),
    ),
    Guard(
        "what the runner has not forgotten is adopted",
        "a restarted daemon gives back what runs",
        (Change("recover.py", 'if known.state(key) in ("running", "ended"):', 'if known.state(key) in ("ended",):'),),
    ),
    Guard(
        "own directories are listed for ghosts",
        "a claim that the server carried out late lies there for ever",
        (Change("daemon.py", 'self.part("ghosts", recover.look_for_ghosts, self)', "pass"),),
    ),
    Guard(
        "history proves only the name it is about",
        "a job ends with the result of another attempt",
        (Change("deliver.py", "if record is None or _gen(record) - entry.gen not in (0, 1):", "if record is None:"),),
    ),
    Guard(
        "history is durable before the commit",
        "power is lost, and a job is done without a result",
        (
            Change(
                "deliver.py",
                "spool.record(today(), node, [item.line for item in new])",
                "spool.record(today(), node, [item.line for item in new], sync=False)",
            ),
        ),
    ),
    Guard(
        "the job file is durable before the commit",
        "power is lost, and an acknowledged job is empty",
        (
            Change(
                "fsops.py",
                "            if sync:\n                os.fsync(fd)\n        finally:\n            os.close(fd)\n    except OSError:\n",
                "        finally:\n            os.close(fd)\n    except OSError:\n",
            ),
        ),
    ),
    Guard(
        "the runner forgets last",
        "a daemon that dies before the commit loses the end of a job",
        (
            Change(
                "deliver.py",
                "    for item in items:\n        if not item.requeue:\n            sync_outputs(item, lost)\n",
                "    for item in items:\n        item.through = True\n        if not item.requeue:\n            sync_outputs(item, lost)\n",
            ),
        ),
    ),
    Guard(
        "go is written before the start",
        "a runner that dies just after a start does not know of it",
        (Change("orders.py", "        runner.journal.write(takeover.go_line(run, before))\n", "        pass\n"),),
    ),
    Guard(
        "an end is written before the process is reaped",
        "a runner that dies in between loses an exit status",
        (
            Change(
                "runner.py",
                '                self.journal.flush()\n                self.die("before-reap", run)\n',
                '                self.die("before-reap", run)\n',
            ),
        ),
    ),
    Guard(
        "a dropped file is taken under a fresh name each time",
        "a file that is dropped again overwrites the first",
        (
            Change(
                "intake.py",
                '        admitted = f"{self._tag()}~{quote(name)}"\n',
                '        admitted = f"0~{quote(name)}"\n',
            ),
        ),
    ),
)
