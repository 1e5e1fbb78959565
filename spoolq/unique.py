"""
`--unique KEY`: of one user's jobs that have not ended at most one has a key; a second submission fails, or joins it.

Who has a key is said by the highest number in `unique/<user>~<key>/`: a file with the holder's id. The next
number is made by a link, which one of many submitters on many machines gets, and only when the holder is
certainly over: ended, or never committed. A submitter that died before its commit is waited for a moment; then
its private entry is set aside by a rename, which excludes the commit: whichever of the two comes first holds.
Invariant: numbers only rise and the highest stays, so no late or repeated request makes a second holder.
"""

import re
import time
from typing import Any, NamedTuple

from spoolq import awaiting, fsops, home
from spoolq.entry import label_of
from spoolq.errors import NotFound, SpoolqError, TryAgain, UsageError
from spoolq.fsops import Answer
from spoolq.job import Job
from spoolq.spool import Placed, Spool

TOP = "unique"
UNCOMMITTED_S, POLL_S = 10.0, 0.05  # how long a submission on its way is waited for
ASIDE = ".aside"  # what becomes of the private entry of one that took longer
TRIES = 100
_KEY = re.compile(r"[A-Za-z0-9._@+-]{1,100}")


class Wanted(NamedTuple):
    """What --unique says: the key, and whether to join the job that has it."""

    key: str
    join: bool


class Taken(SpoolqError):
    """Another job has the key; `at` is where it is."""

    def __init__(self, key: str, at: Placed) -> None:
        self.at = at
        where = f" on {at.node}" if at.node else ""
        hint = f"--unique {key}:join takes that one instead"
        super().__init__(f"job {at.entry.id} ({at.state.name}{where}) has the key {key!r}; {hint}")


def parse(text: str) -> Wanted:
    """The key and the mode in `nightly`, `nightly:fail`, `nightly:join`."""
    key, colon, mode = text.partition(":")
    if not _KEY.fullmatch(key):
        raise UsageError(f"unique: {key[:60]!r} must be 1 to 100 of A-Z a-z 0-9 . _ @ + - (example: nightly:join)")
    if colon and mode not in ("fail", "join"):
        raise UsageError(f"unique: {mode[:60]!r} is neither fail nor join (example: nightly:join)")
    return Wanted(key, mode == "join")


def directory_of(spool: Spool, job: Job) -> str:
    """Where the holders of a job's key are numbered."""
    return f"{spool.root}/{TOP}/{label_of(job.user)[:32]}~{job.unique}"


def look(spool: Spool, job: Job) -> None:
    """Raise Taken if a job that has not ended has the key now: before an id is used up for nothing."""
    number, holder = _highest(directory_of(spool, job))
    if number and (at := _committed(spool, holder)) and at.top != "done":
        raise Taken(job.unique, at)


def take(spool: Spool, job: Job, job_id: int) -> int:
    """
    Get the key for a job whose home is filled and that is not in the queue yet (or has ended, to run again).

    Returns:
        Its number, for `still`.

    Raises:
        Taken: another job has it.
    """
    directory, mine = directory_of(spool, job), f"{home.path_of(spool.root, job_id)}/{TOP}"
    spool.check_same()  # and no directory where nothing is mounted
    fsops.make_directory(f"{spool.root}/{TOP}")
    fsops.make_directory(directory)
    if not fsops.present(*mine.rsplit("/", 1)):
        fsops.create(mine, f"{job_id}\n".encode())
    for _ in range(TRIES):
        number, holder = _highest(directory)
        if number and holder != job_id and (at := _alive(spool, holder)):
            raise Taken(job.unique, at)
        try:
            fsops.link(mine, f"{directory}/{number + 1}")
        except FileExistsError:  # somebody else's, or our own whose answer was lost
            if _highest(directory) != (number + 1, job_id):
                continue
        for old in fsops.names(directory):
            if home.is_number(old) and int(old) <= number:
                fsops.discard(f"{directory}/{old}")
        return number + 1
    raise TryAgain(f"the key {job.unique!r} changes hands all the time: try again")


def requeue(spool: Spool, at: Placed, job: Job, held: str, **changes: Any) -> tuple[Answer, Placed]:
    """
    As `Spool.requeue`, for what has ended and has a key: into held/, and on only if nobody got the key meanwhile.

    Raises:
        Taken, SpoolqError: somebody has it.
    """
    from spoolq import notice, steer

    number = take(spool, job, at.entry.id)
    answer, target = spool.requeue(at, held="HU", **changes)
    if steer.settled(spool, answer, at, target) is Answer.LOST:
        return Answer.LOST, target
    if not still(spool, job, at.entry.id, number):
        detail = f"it was to run again, and another job got its key {job.unique!r} first"
        notice.end(spool, target, detail, steer.writer())
        raise SpoolqError(f"another job got the key {job.unique!r} first")
    return spool.edit(target, held=held) if held else spool.release(target)


def still(spool: Spool, job: Job, job_id: int, number: int) -> bool:
    """Whether nobody got the key after that number."""
    return _highest(directory_of(spool, job)) == (number, job_id)


def committed(spool: Spool, job: Job, job_id: int) -> None:
    """TryAgain if the commit came too late: another submitter did not wait for it, and there is no such job."""
    path = home.path_of(spool.root, job_id)
    if fsops.present(path, ASIDE) is not False and not fsops.present(path, home.PRIVATE_ENTRY):
        if _committed(spool, job_id):
            return
        raise TryAgain(f"took longer than {UNCOMMITTED_S:g} s, and another got the key {job.unique!r}: try again")


def _highest(directory: str) -> tuple[int, int]:
    """(number, id of the holder), or zeros."""
    for _ in range(TRIES):
        number = max((int(name) for name in fsops.names(directory) if home.is_number(name)), default=0)
        if not number:
            return 0, 0
        data = fsops.read(f"{directory}/{number}", 64)
        if data is not None:  # else it was removed by whoever has a higher one
            return number, int(data) if data.strip().isdigit() else 0
    return 0, 0


def _committed(spool: Spool, job_id: int) -> Placed | None:
    try:
        at = spool.find(job_id)
        # of an array any entry was found: of those that go back another may have been missed
        return spool.find(job_id) if at.entry.chunk and at.top == "done" else at
    except NotFound:
        return None


def _alive(spool: Spool, job_id: int) -> Placed | None:
    """
    Where the holder is, if it has not ended; None if it has, or never will be a job.

    Raises:
        TryAgain: nobody can tell.
    """
    path = home.path_of(spool.root, job_id)
    until = time.monotonic() + UNCOMMITTED_S
    while True:
        at = _committed(spool, job_id)
        if at:
            return at if at.top != "done" else None
        if fsops.present(path, home.PRIVATE_ENTRY):  # on its way, or its submitter is dead
            if time.monotonic() >= until:
                fsops.move(f"{path}/{home.PRIVATE_ENTRY}", f"{path}/{ASIDE}")
            else:
                time.sleep(POLL_S)
        elif fsops.present(path, "job") is False or fsops.present(path, ASIDE):
            return None  # given up, swept away, or set aside
        elif awaiting.from_history(spool, {job_id}):
            return None
        elif time.monotonic() >= until:
            raise TryAgain(f"job {job_id} has the key, and the spool does not say where it is: try again")
        else:
            time.sleep(POLL_S)
