"""
Guards of the package, each taken out in turn: the simulator must find what they are there for.

`python -m tests.sim.guards` prints after how many seeds each one is missed; the table is in README.md.
"""

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from spoolq import array, claim, claims, control, deliver, dependents, fsops, peers, recover, rerun, spool, throttle
from spoolq.channel import Gone
from spoolq.daemon import Daemon
from spoolq.fsops import Answer
from spoolq.lease import Life
from spoolq.queue import Queue
from tests.sim import __main__ as command
from tests.sim import runner
from tests.sim.runner import Runner

Patch = tuple[Any, str, Any]


class Guard(NamedTuple):
    """
    One guard.

    Args:
        name: what is missing.
        faults: kinds that make it matter; empty for all.
        patches: what to put in place of what.
        rules: of the checker, that must see it.
        most: seeds within which it must be seen.
    """

    name: str
    faults: str
    patches: Callable[[], list[Patch]]
    rules: str
    most: int


def _same_gen() -> list[Patch]:
    def transfer(self: Any, at: Any, top: str, entry: Any, node: str = "") -> Any:
        entry = entry._replace(gen=at.entry.gen)
        target = spool.Placed(spool.place_of(top, entry, node), entry)
        return fsops.move(f"{self.root}/{at.path}", f"{self.root}/{target.path}"), target

    return [(spool.Spool, "transfer", transfer)]


def _unknown_is_won() -> list[Patch]:
    move = fsops.move

    def sure(*args: Any, **kwargs: Any) -> Answer:
        answer = move(*args, **kwargs)
        return Answer.WON if answer is Answer.UNKNOWN else answer

    return [(fsops, "move", sure)]


def _errors_are_believed() -> list[Patch]:
    return [(fsops, "settle", lambda *_, **__: Answer.LOST)]


def _target_first() -> list[Patch]:
    def settle(source: str, target: str, **_: Any) -> Answer | None:
        arrived = fsops.present(*os.path.split(target))
        left = fsops.present(*os.path.split(source))
        if arrived:
            return Answer.WON
        if left:
            return None
        return Answer.UNKNOWN if left is None or arrived is None else Answer.LOST

    return [(fsops, "settle", settle)]


def _stat_is_believed() -> list[Patch]:
    def present(directory: str, name: str, **_: Any) -> bool | None:
        try:
            return fsops.look(f"{directory}/{name}") is not None
        except OSError:
            return None

    return [(fsops, "present", present)]


def _no_lease() -> list[Patch]:
    return [(claim, "may_start", lambda *_: True), (Runner, "_refusal", lambda self, message: "")]


def _lease_of_now() -> list[Patch]:
    def settle(daemon: Any) -> None:
        for pair in list(daemon.unsettled):
            at, claimed = pair
            answer = daemon.spool.settle(at, claimed)
            if answer is not Answer.UNKNOWN:
                daemon.unsettled.remove(pair)
            if answer is Answer.WON:
                claim.launch(daemon, claimed, daemon.launcher.prepare(at.entry), daemon.presence.began)

    return [(claim, "settle_claims", settle)]


def _starts_what_it_finds() -> list[Patch]:
    def start(daemon: Any, at: Any) -> None:
        daemon.sure = True
        claim.launch(daemon, at, daemon.launcher.prepare(at.entry), daemon.presence.began)

    return [(recover, "give_back", start)]


def _no_record() -> list[Patch]:
    return [(claims.Claims, "__contains__", lambda self, name: True)]


def _no_fence() -> list[Patch]:
    return [(Runner, "_watch_fence", lambda self: None)]


def _fence_is_not_noted() -> list[Patch]:
    begin = Runner._begin

    def forget(self: Any) -> None:
        self._noted = None
        begin(self)
        self.fence = float("inf")

    return [(Runner, "_begin", forget)]


def _no_sync() -> list[Patch]:
    create, publish = fsops.create, fsops.publish

    def quick(path: str, data: bytes, *, mode: int = 0o644, sync: bool = True) -> None:
        create(path, data, mode=mode, sync=False)

    def shown(path: str, data: bytes, *, mode: int = 0o644, sync: bool = True) -> None:
        publish(path, data, mode=mode, sync=False)

    nothing: Callable[[Any], None] = lambda _: None  # noqa: E731
    return [
        (fsops, "create", quick),
        (fsops, "publish", shown),
        (fsops, "sync_directory", nothing),
        (fsops, "sync_file", nothing),
    ]


def _silence_is_death() -> list[Patch]:
    judge = peers.judge

    def hasty(*args: Any, **kwargs: Any) -> Life:
        life = judge(*args, **kwargs)
        return Life.DEAD if life is Life.SILENT else life

    return [(peers, "judge", hasty)]


def _impatient() -> list[Patch]:
    judge = peers.judge
    return [(peers, "judge", lambda *args, **kwargs: judge(*args, **{**kwargs, "dead_after_s": 10.0}))]


def _no_ghosts() -> list[Patch]:
    return [(recover, "look_for_ghosts", lambda daemon: None)]


def _forgets_first() -> list[Patch]:
    end = Daemon.take_end

    def forget(self: Any, job_id: int, attempt: int, ended: dict[str, Any]) -> None:
        end(self, job_id, attempt, ended)
        with contextlib.suppress(Gone):
            self.family.send({"op": "forget", "jobs": [[job_id, attempt]]})

    return [(Daemon, "take_end", forget)]


def _no_release() -> list[Patch]:
    return [(rerun, "release_due", lambda daemon, now: None)]


def _no_second_look() -> list[Patch]:
    def look(self: Any, now: float) -> None:
        self.looked_at = now
        self.daemon.set_due("held", now + 2.0)

    return [(dependents.Dependents, "look", look)]


def _requests_stay_unheard() -> list[Patch]:
    return [(control, "wishes", lambda daemon, node: {})]


def _no_second_try() -> list[Patch]:
    return [(deliver, "found_again", lambda spool, item: False), (recover, "complete_result", lambda *_: None)]


def _commit_first() -> list[Patch]:
    commit = spool.Spool.submit

    def submit(self: Any, job_id: int, entry: Any) -> Any:
        try:
            return commit(self, job_id, entry)
        except OSError as error:
            if error.errno == errno.ENOENT:
                raise
            return spool.Placed(spool.place_of("queue", entry), entry)

    return [(spool.Spool, "submit", submit)]


def _all_is_due() -> list[Patch]:
    return [(array, "due", lambda entry, spec, known, retries=0: array.tasks_of(spec, entry.chunk))]


def _no_throttle() -> list[Patch]:
    return [(throttle, "crowded", lambda *_: False), (throttle.Throttle, "lets", lambda *_: True)]


def _one_look_at_users() -> list[Patch]:
    return [(Queue, "too_many", lambda *_: False)]


GUARDS = (
    Guard("a rename does not raise gen", "", _same_gen, "I3", 5),
    Guard("UNKNOWN counts as WON", "", _unknown_is_won, "I1 I4 I7 I9 I12 X", 300),
    Guard("an error of a rename counts as LOST", "", _errors_are_believed, "I4 I5 I7 I8 I12 V2 V4", 300),
    Guard("in doubt, stat is asked and not a listing", "", _stat_is_believed, "I4 I5 I7 I8 I9 I12 V4", 300),
    Guard("no lease is needed to start", "stop_daemon slow partition", _no_lease, "I9", 100),
    Guard("a claim in doubt starts on a later lease", "outage", _lease_of_now, "I9 I7", 1000),
    Guard("a new daemon starts what it finds claimed", "", _starts_what_it_finds, "I7 I8 I9", 300),
    Guard("a claim of an earlier boot counts as never started", "power", _no_record, "I7 I8", 100),
    Guard("nobody fences", "partition stop_daemon", _no_fence, "I7", 300),
    Guard("the fence is not noted on disk", "partition stop_daemon kill_runner", _fence_is_not_noted, "I7", 1000),
    Guard("nothing is synced before a commit", "power", _no_sync, "I4 I5 I11 I12 V1 V4", 300),
    Guard("silence counts as death for all rules", "partition stop_daemon gone", _silence_is_death, "I2 I7", 100),
    Guard("silence of 10 s is enough", "partition stop_daemon server_down", _impatient, "I2 I7", 100),
    Guard("nobody looks for late claims", "outage late die_late", _no_ghosts, "V1 V2 V4", 300),
    Guard("the runner forgets before the end is delivered", "", _forgets_first, "I8 I12", 100),
    Guard("retries are not released", "", _no_release, "V1 V4", 100),
    Guard("nobody looks at children again", "", _no_second_look, "V4", 100),
    Guard("who claims a chunk runs also what has a result", "", _all_is_due, "I7 I8", 100),
    Guard("nobody counts the tasks of an array", "", _no_throttle, "I18", 100),
    Guard("what a user runs is not looked at after a claim", "", _one_look_at_users, "I19", 300),
    Guard("a new daemon does not hear what was asked", "", _requests_stay_unheard, "I12", 300),
    Guard("a result that could not be written is given up", "", _no_second_try, "I5 V4", 300),
)


@contextlib.contextmanager
def without(guard: Guard) -> Iterator[None]:
    """The package without one guard."""
    undo = []
    for module, name, value in guard.patches():
        undo.append((module, name, vars(module)[name]))
        setattr(module, name, value)
    try:
        yield
    finally:
        for module, name, value in reversed(undo):
            setattr(module, name, value)


def seeds_until_seen(guard: Guard, most: int) -> tuple[int, str]:
    """(number of seeds, the violation), or (0, '') if none of them sees it."""
    only = frozenset(guard.faults.split())
    with without(guard):
        for seed in range(most):
            found = command.outcome(seed, only).violations
            hit = next((violation for violation in found if violation.rule in guard.rules.split()), None)
            if hit:
                return seed + 1, str(hit)
    return 0, ""


def main() -> None:
    """The table."""
    for guard in GUARDS:
        if len(sys.argv) > 1 and not any(word in guard.name for word in sys.argv[1:]):
            continue
        count, text = seeds_until_seen(guard, guard.most)
        print(f"| {guard.name} | {count or f'not within {guard.most}'} | {text[:120]} |", flush=True)


assert runner
if __name__ == "__main__":
    main()
