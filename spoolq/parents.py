"""
Where the parents of a dependent job are, and what becomes of the child: released, ended, or waiting on.

Whoever submits a child looks at its parents after the commit, and every node looks at those who wait again
and again (`dependents`); both do the same here, and either may be late, dead or first: a look reads parents
and child anew, and acts by one rename from the name that it saw.
Invariant: a parent counts as gone only after `Spool.find` has missed it twice, on a spool that is there.
"""

from collections.abc import Callable, Iterable

from spoolq import array, awaiting, home, stored
from spoolq.depend import NEVER_WORD, STARTED, Answer, Condition, Fate, Verdict, id_of, judge, parse, settled
from spoolq.entry import HOMES, Entry
from spoolq.errors import JobFileError, NotFound, RequestError
from spoolq.fsops import Answer as Moved
from spoolq.job import Job
from spoolq.reason import Reason
from spoolq.spool import Placed, Spool
from spoolq.state import State

End = Callable[[Placed, str], object]

FEW = 8  # parents that are cheaper to look for one by one than by listing everything


class Parents:
    """One look at the parents of any number of jobs; remembers what it saw, so make a new one for a new look."""

    def __init__(self, spool: Spool, *, sure: bool = True) -> None:
        """
        Nothing is looked at yet.

        Args:
            sure: find out where those are that have not ended; else that is done for conditions `after` alone.
        """
        self.spool, self.sure = spool, sure
        self._groups: dict[int, dict[int, list[Placed]]] = {}
        self._fates: dict[str, Fate] = {}
        self._live: dict[int, Placed] | None = None
        self._finds = 0

    def fate(self, condition: Condition) -> Fate:
        """What is known of a condition's parent."""
        parent = condition.parent
        if parent in self._fates:
            return self._fates[parent]
        if done := self._done(parent):
            found = done
        elif self.sure or condition.kind == STARTED:
            found = self._find(parent)
        else:
            return Fate(State.PENDING)  # as much as its child needs to know
        self._fates[parent] = found
        return found

    def _done(self, parent: str) -> Fate | None:
        job_id = id_of(parent)
        group = job_id // HOMES
        if group not in self._groups:
            self._groups[group] = {}
            for at in self.spool.done(group):
                self._groups[group].setdefault(at.entry.id, []).append(at)
        ended = self._groups[group].get(job_id, [])
        if ended and not ended[0].entry.chunk:
            return fate_of(ended[0])
        if "_" not in parent:
            return self._of_parts(job_id) if ended else None
        outcome = awaiting.of_arrays(self.spool, {parent}, {job_id: ended}).get(parent)
        return Fate(State[outcome.state], started=True) if outcome else None

    def _of_parts(self, job_id: int) -> Fate:
        """A job of several entries, some of which have ended: it has when none is left that has not."""
        for _ in range(2):  # one that is run again moves against the direction of the look
            if left := [at for at in self.spool.live() if at.entry.id == job_id]:
                return fate_of(left[0])._replace(started=True)
        parts = [at for at in self.spool.done(job_id // HOMES) if at.entry.id == job_id]
        bad = [at for at in parts if at.state is not State.COMPLETED]
        return fate_of([*bad, *parts][0]) if parts else self._find(str(job_id))

    def _find(self, parent: str) -> Fate:
        job_id = id_of(parent)
        self._finds += 1
        if self._finds > FEW and self._live is None:
            self._live = {at.entry.id: at for at in self.spool.live()}
        try:
            at = (self._live or {}).get(job_id) or self.spool.find(job_id)
            if at.entry.chunk and at.top == "done":
                return Fate(State.RUNNING, started=True)  # others of its array may not have ended
            return fate_of(at)
        except NotFound:
            record = awaiting.from_history(self.spool, {job_id}).get(job_id)
        if awaiting.of_one_task(record):
            return Fate(State.PENDING, started=True)
        state = State.__members__.get(str((record or {}).get("state")))
        return Fate(state, started=True) if state and state.ended else Fate(None)


def fate_of(at: Placed) -> Fate:
    """What an entry says of a parent."""
    began = at.top in ("running", "reaping") or at.entry.attempt > 1
    return Fate(at.state, began, at.node, at.entry.ending or "")


def resolve(spool: Spool, words: Iterable[str]) -> tuple[str, ...]:
    """
    Dependencies as they are stored: every parent an id of a job that exists.

    Args:
        words: conditions as the user wrote them (`afterok:last`).

    Raises:
        RequestError: a parent that is no job.
    """
    from spoolq import selector

    look, found = Parents(spool), dict[str, None]()
    for word in words:
        for condition in parse(word):
            try:
                plain = condition.parent.isdigit() or "_" in condition.parent
                for parent in [condition.parent] if plain else selector.resolve(spool, [condition.parent]):
                    one = Condition(condition.kind, str(parent))
                    if look.fate(one).state is None:
                        raise NotFound(f"job {parent}: no such job in {spool.root}")
                    if "_" in one.parent:
                        selector.Finder(spool).holding(*(array.parse_unit(one.parent) or (0, array.Spec(()))))
                    found[str(one)] = None
            except NotFound as error:
                raise RequestError(f"depend: {condition}: {error}") from None
    return tuple(found)


def of_job(job: Job) -> tuple[Condition, ...]:
    """What a stored job waits for."""
    return settled(job.depend)


def reason(look: Parents, job: Job) -> Reason:
    """Why a job that is held for its parents waits, in words."""
    verdict = judge(of_job(job), look.fate)
    if verdict.answer is Answer.READY:
        return Reason("Dependency", "what it waited for is fulfilled; a node lets it go soon")
    return Reason(NEVER_WORD if verdict.answer is Answer.NEVER else "Dependency", verdict.text)


def settle(spool: Spool, at: Placed, job: Job, look: Parents, end: End) -> tuple[Verdict, Placed | None]:
    """
    Judge one job that is held for its parents, and act: into the queue, or to its end.

    Args:
        at: where it was seen, in held/ with HD.
        end: cancels a job that waits, with the reason.

    Returns:
        The verdict, and where the entry is now if this rename moved it into the queue.
    """
    verdict = judge(of_job(job), look.fate)
    if verdict.answer is Answer.READY:
        moved, target = spool.release(at)
        return verdict, target if moved is Moved.WON else None
    if verdict.answer is Answer.NEVER and job.kill_on_invalid_dep == "yes":
        end(at, f"{NEVER_WORD}: {verdict.text}")
    return verdict, None


def next_hold(spool: Spool, entry: Entry) -> str:
    """
    What else holds a job that nobody holds any more, or that is to run again: `HD` or nothing.

    Raises:
        OSError: its file cannot be read now, so nobody knows.
    """
    if not entry.more:
        return ""
    try:
        job = stored.read_job(home.read_job(spool.root, entry.id), f"{home.path_of(spool.root, entry.id)}/job")
    except JobFileError:  # it can never run: whoever claims it says so
        return ""
    return "HD" if job.depend else ""


def after_commit(spool: Spool, placed: Iterable[Placed], job: Job, end: End) -> list[str]:
    """
    The submitter's look, after its commit: a parent may have ended before anybody could see the child.

    Returns:
        What the user should know of jobs that can never start.
    """
    look, released, notes = Parents(spool), [], []
    for at in placed:
        if at.entry.held != "HD":
            continue
        verdict, target = settle(spool, at, job, look, end)
        released += [target] if target else []
        if verdict.answer is Answer.NEVER:
            became = "was cancelled" if job.kill_on_invalid_dep == "yes" else "waits"
            notes.append(f"job {at.entry.id} {became} at once: {verdict.text}")
    if released:
        spool.committed(released)
    return notes
