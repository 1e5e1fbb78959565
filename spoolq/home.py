"""
What lies in a job's home, `jobs/0/42/`: job, env, script, stdout, stderr, result.json, why/<node>.

The home is one stable path for life and a capsule that can be copied, sent and run again; it holds
what was asked for and what is not empty, no more. It is whole before its entry is committed.
Invariant: nothing here is state; deleting a home changes no job's state.
"""

import contextlib
import errno
import json
import os
from collections.abc import Iterable, Iterator

from spoolq import fsops
from spoolq.entry import HOMES, Entry
from spoolq.errors import JobFileError, TryAgain

JOB_LIMIT = 64 << 10  # bytes of a job file
ENV_LIMIT = 8 << 20  # bytes of an environment; Linux allows a quarter of the stack limit
SCRIPT_LIMIT = 1 << 20
MOST_DIGITS = 20  # of a number in a name
RESULT_LIMIT = 64 << 10
PRIVATE_ENTRY = ".entry"
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)  # no hard links on this file system
_LINK_TEXT = "../../{home}/job"  # all state directories have the same depth


def path_of(root: str, job_id: int) -> str:
    """The absolute path of a home."""
    return f"{root}/jobs/{job_id // HOMES}/{job_id}"


def is_number(name: str) -> bool:
    """Whether a name is a number as we write them; `isdigit` alone also means digits of other scripts."""
    return name.isascii() and name.isdigit() and len(name) < MOST_DIGITS


def highest(root: str) -> int:
    """The highest id that has a home, 0 if none: one listing of jobs/ and one of its newest directory."""
    groups = sorted((int(n) for n in fsops.names(f"{root}/jobs") if is_number(n)), reverse=True)
    for group in groups:
        ids = [int(n) for n in fsops.names(f"{root}/jobs/{group}") if is_number(n)]
        if ids:
            return max(ids)
    return 0


def allocate(root: str, after: int | None = None) -> int:
    """
    A new id, by making its home: exclusive and without a lock; a lost reply only skips a number.

    Args:
        after: an id known to be taken, or None to look for the highest one.
    """
    job_id = (highest(root) if after is None else after) + 1
    while True:
        try:
            if fsops.make_directory(path_of(root, job_id)):
                return job_id
            # somebody else's: many submitters leapfrog better by looking again than by counting up
            job_id = max(job_id, highest(root)) + 1 if job_id % 8 == 0 else job_id + 1
        except FileNotFoundError:
            fsops.make_directory(f"{root}/jobs/{job_id // HOMES}")  # and never jobs/: not mounted, it is missing too


def fill(
    root: str,
    job_id: int,
    job: bytes,
    *,
    env: bytes | str | None = None,
    script: bytes | None = None,
    entry: bool = True,
) -> None:
    """
    Write a home whole, before its entry is committed.

    Args:
        job: the job file.
        env: the environment, or the path of an equal file to hard-link (bulk submission).
        script: the copy of the script, executable by its owner.
        entry: whether to make the private entry that `Spool.submit` commits.
    """
    path = path_of(root, job_id)
    if isinstance(env, str):
        try:
            fsops.link(env, f"{path}/env")
        except OSError:  # EMLINK after 65,000 links; no hard links on this file system
            fsops.create(f"{path}/env", fsops.read(env, ENV_LIMIT) or b"", mode=0o600)
    elif env is not None:
        fsops.create(f"{path}/env", env, mode=0o600)
    if script is not None:
        fsops.create(f"{path}/script", script, mode=0o700)
    fsops.create(f"{path}/job", job)
    if entry:
        fsops.symlink(_LINK_TEXT.format(home=f"jobs/{job_id // HOMES}/{job_id}"), f"{path}/{PRIVATE_ENTRY}")


def discard(root: str, job_id: int) -> None:
    """Empty a home whose submission failed; the directory stays, so that the id is never used again."""
    path = path_of(root, job_id)
    for name in (PRIVATE_ENTRY, "job", "script", "env"):
        with contextlib.suppress(OSError):
            fsops.drop(f"{path}/{name}")


def read_job(root: str, job_id: int) -> bytes:
    """The job file; JobFileError if it is gone or no job file any more."""
    return _needed(root, job_id, "job", JOB_LIMIT)


def read_script(root: str, job_id: int) -> bytes:
    """The copy of the script; JobFileError if it is gone or no file any more."""
    return _needed(root, job_id, "script", SCRIPT_LIMIT)


def read_env(root: str, job_id: int) -> bytes | None:
    """The recorded environment, or None if the job has none of its own; JobFileError if it is no file any more."""
    return _regular(f"{path_of(root, job_id)}/env", ENV_LIMIT)


def _regular(path: str, limit: int) -> bytes | None:
    try:
        return fsops.read(path, limit)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EFBIG):
            raise JobFileError(f"is {error.strerror}", file=path) from error
        raise


def _needed(root: str, job_id: int, name: str, limit: int) -> bytes:
    path = f"{path_of(root, job_id)}/{name}"
    data = _regular(path, limit)
    if data is None:  # a name once missing is missing for up to 60 s more, unless the directories are opened anew
        for directory in (f"{root}/jobs", os.path.dirname(path_of(root, job_id)), path_of(root, job_id)):
            fsops.names(directory)
        data = _regular(path, limit)
    if data is None:
        raise JobFileError("is gone: somebody removed it; submit the job again", file=path)
    return data


def read_result(root: str, job_id: int) -> bytes | None:
    """
    `result.json` as it is, or None, also if something else has its name (history has the result too).

    Looked for by listing, since a missing name is cached for up to 60 s.
    """
    path = path_of(root, job_id)
    if "result.json" not in fsops.names(path):
        return None
    try:
        return _regular(f"{path}/result.json", RESULT_LIMIT)
    except JobFileError:
        return None


def publish_result(root: str, job_id: int, data: bytes, *, sync: bool) -> None:
    """
    Make the result appear whole, unless that of a later attempt is there: whoever is slow must not replace it.

    So by a link, which fails where a rename would replace. Found by simulation: a daemon that stood
    still after it had won done/, while a user let the job run again.
    """
    path = f"{path_of(root, job_id)}/result.json"
    private = fsops.private_name(path)
    with _spared(root, job_id):
        fsops.create(private, data, sync=sync)
        try:
            if not _link_result(root, job_id, private, path, _attempt_of(data)):
                fsops.put(private, path)
        finally:
            fsops.discard(private)


def _link_result(root: str, job_id: int, private: str, path: str, mine: int) -> bool:
    """Whether a result is there now; False if it has to replace what is no result, or there are no links here."""
    for _ in range(2):
        try:
            fsops.link(private, path)
        except FileExistsError:
            there = _attempt_of(read_result(root, job_id) or b"")
            if there >= mine or there < 0:
                return there >= mine
            set_aside(root, job_id, mine)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            return False
        else:
            return True
    return False


def _attempt_of(data: bytes) -> int:
    """The attempt that a result is about, or -1."""
    try:
        return int(json.loads(data)["attempt"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return -1


def set_aside(root: str, job_id: int, attempt: int) -> None:
    """
    Keep an earlier attempt's result as `result.<attempt>.json`, before the job runs again.

    Args:
        attempt: the one that ended; a result of a later one, by whoever was faster, stays.
    """
    data = read_result(root, job_id)
    if data is None:
        return
    of_attempt = _attempt_of(data)
    if of_attempt < 0:
        of_attempt = attempt
    if of_attempt <= attempt:
        path = path_of(root, job_id)
        fsops.move(f"{path}/result.json", f"{path}/result.{of_attempt}.json")


def bring_back(root: str, job_id: int, attempt: int) -> None:
    """Undo `set_aside`: the job was not allowed to run again."""
    path = path_of(root, job_id)
    with contextlib.suppress(OSError):  # history has it too
        if "result.json" not in fsops.names(path):
            fsops.move(f"{path}/result.{attempt}.json", f"{path}/result.json", tries=1)


def keep_attempt(root: str, job_id: int, attempt: int, data: bytes) -> None:
    """The result of an attempt whose job runs again."""
    _publish(root, job_id, f"result.{attempt}.json", data, sync=False)


def keep_late(root: str, job_id: int, attempt: int, data: bytes) -> None:
    """A result that came after the decision: shown to the user, never authoritative."""
    _publish(root, job_id, f"result.{attempt}.late.json", data)


def _publish(root: str, job_id: int, name: str, data: bytes, *, sync: bool = True) -> None:
    with _spared(root, job_id):
        fsops.publish(f"{path_of(root, job_id)}/{name}", data, sync=sync)


@contextlib.contextmanager
def _spared(root: str, job_id: int) -> Iterator[None]:
    """A home that somebody removed, or its job made unfit, keeps no result back: history has it too."""
    try:
        yield
    except (NotADirectoryError, IsADirectoryError):
        return
    except FileNotFoundError:
        if fsops.present(os.path.dirname(path_of(root, job_id)), str(job_id)) is not False:
            raise


def write_why(root: str, job_id: int, node: str, line: str) -> None:
    """What one node says about why the job does not start there: one small file per node."""
    directory = f"{path_of(root, job_id)}/why"
    fsops.make_directory(directory)
    fsops.publish(f"{directory}/{node}", line.encode() + b"\n", sync=False)


def read_whys(root: str, job_id: int) -> dict[str, str]:
    """Node -> its line."""
    directory = f"{path_of(root, job_id)}/why"
    lines = {}
    for node in sorted(fsops.names(directory)):
        with contextlib.suppress(OSError):
            lines[node] = (fsops.read(f"{directory}/{node}", 4096) or b"").decode("utf-8", "backslashreplace").strip()
    return lines


def fill_in(entry: Entry, name: str, user: str) -> dict[str, str]:
    """`%j %A %a %x %u %r` without the percent sign -> text; `%N`, the node, is known to whoever opens the file."""
    task = entry.chunk[1:]
    names = {"j": str(entry.unit), "A": str(entry.id), "a": task, "x": name, "u": user}
    return names | {"r": str(entry.attempt)}


def tells_tasks(pattern: str) -> bool:
    """Whether each task of an array has a file of its own by an output pattern."""
    return bool({"a", "j"} & set(_split_pattern(pattern)[1::2]))


def output_path(root: str, entry: Entry, pattern: str | None, stream: str, fill_in: dict[str, str], chdir: str) -> str:
    """
    Where a stream of a job goes.

    Args:
        pattern: as the user wrote it (`%j.out`), or None for the home.
        stream: `stdout` or `stderr`.
        fill_in: `%j %A %a %x %u %N %r` without the percent sign -> text.
    """
    if pattern is None:
        task = entry.chunk[1:]
        name = f"out/{int(task) // HOMES}/{task}.{stream}" if task.isdigit() else stream
        return f"{path_of(root, entry.id)}/{name}"
    text = "".join(
        part if i % 2 == 0 else "%" if part == "%" else fill_in.get(part, "%" + part)
        for i, part in enumerate(_split_pattern(pattern))
    )
    return os.path.join(chdir, text)


def _split_pattern(pattern: str) -> list[str]:
    """Literal, letter, literal, letter, ..., literal."""
    parts, rest = [], pattern
    while "%" in rest[:-1]:
        literal, _, rest = rest.partition("%")
        parts += [literal, rest[0]]
        rest = rest[1:]
    return [*parts, rest]


def reopen_outputs(root: str, entry: Entry) -> tuple[int, ...]:
    """
    Descriptors of the outputs of a job that an earlier daemon started, through which a failed write is heard of.

    Those in its home: a link there leads to where -o and -e put them, but for tasks of an array.
    """
    found = []
    for name in ("stdout", "stderr"):
        with contextlib.suppress(OSError):
            found.append(fsops.reopen(output_path(root, entry, None, name, {}, "")))
    return tuple(fd for fd in found if fd is not None)


def sync_outputs(root: str, job_id: int) -> None:
    """Let other machines see what the job has written so far; wherever -o and -e put it, a link leads there."""
    sync_files(f"{path_of(root, job_id)}/{name}" for name in ("stdout", "stderr"))


def sync_files(paths: Iterable[str]) -> None:
    """The same for the outputs of a task."""
    for path in paths:
        with contextlib.suppress(OSError):  # there may be none; what fails is told when the job ends
            fsops.sync_path(path)


def check_space(root: str, least_mb: int) -> None:
    """TryAgain if the spool is too full to take more."""
    free = fsops.free_mb(root)
    if free < least_mb:
        raise TryAgain(f"{root}: only {free} MB free, {least_mb} MB must stay free: the spool takes no more jobs")
