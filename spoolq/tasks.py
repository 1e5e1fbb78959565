"""
What the tasks of an array leave in its home: their results, their outputs, which of them failed.

    tasks/a1-100.1.n1.jsonl    results of chunk a1-100, attempt 1, written by node n1: a line each, as result.json
    out/0/7.stdout             output of task 7; a thousand tasks a directory
    failed/7                   task 7 failed; only for arrays with --max-fails

A file of results has one writer, since two that append to one file over NFS overwrite each other. Which line counts for
a task is decided by `array.latest`, from all files.
Invariant: a line that is torn, or no result, is passed over: its task is then run again, and never thought well.
"""

import contextlib
import errno
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from spoolq import array, fsops, home
from spoolq.entry import HOMES, Entry
from spoolq.job import Job

Line = dict[str, Any]

_FILE = re.compile(r"(a\d{1,9}(?:-\d{1,9})?)\.(\d{1,6})\.(.+)\.jsonl")
_LINK = "../../jobs/{group}/{id}/job"
_LIMIT = 1 << 28
TASKS, FAILED = "tasks", "failed"  # directories in the home of each array


def fill(root: str, job_id: int, names: Iterable[str], *, bounded: bool = False) -> None:
    """
    The entries of an array, in the private directory that `Spool.submit` makes a segment of the queue.

    And the directories that nodes look into before they write there: an NFS client remembers for 60 s that a name was
    missing, and would not see what others have recorded (simulation: completed tasks were run again).

    Args:
        bounded: it ends when so many of its tasks have failed.
    """
    for name in (TASKS, FAILED) if bounded else (TASKS,):
        fsops.make_directory(f"{home.path_of(root, job_id)}/{name}")
    directory = f"{home.path_of(root, job_id)}/{home.PRIVATE_ENTRY}"
    fsops.make_directory(directory)
    for name in names:
        fsops.symlink(_LINK.format(group=job_id // HOMES, id=job_id), f"{directory}/{name}")
    fsops.sync_directory(directory)


# --- results


def record(root: str, entry: Entry, writer: str, lines: Sequence[bytes], *, anew: bool = True) -> None:
    """
    Append results to the file of a chunk, durable on return.

    Args:
        entry: of the chunk: its attempt names the file.
        writer: the node, or who else writes on which host; nobody else has this name.
        anew: the last time may have left a piece of a line.
    """
    directory = f"{home.path_of(root, entry.id)}/{TASKS}"
    path, data = f"{directory}/{entry.chunk}.{entry.attempt}.{writer}.jsonl", b"".join(lines)
    if anew and fsops.look(path):
        data = b"\n" + data
    try:
        fsops.append(path, data)
    except FileNotFoundError:
        if not fsops.make_directory(directory):
            raise
        fsops.append(path, data)


def read(root: str, job_id: int, chunk: str = "", *, sure: bool = False) -> list[Line]:
    """
    All lines about the tasks of an array, or of one chunk; those about a whole chunk have no `task`.

    Args:
        sure: what has no line is run: then nothing may be missing because the spool is not mounted now.

    Raises:
        OSError: something there cannot be read now.
    """
    directory = f"{home.path_of(root, job_id)}/{TASKS}"
    low, high = array.bounds(chunk) if chunk else (0, array.MOST_NUMBER)
    found: list[Line] = []
    for name in sorted(fsops.names(directory, lasting=sure)):
        match = _FILE.fullmatch(name)
        if match and low <= array.bounds(match[1])[0] <= high:
            data = fsops.read(f"{directory}/{name}", _LIMIT)
            if data is None and sure:
                raise FileNotFoundError(errno.ENOENT, "listed, and not there", f"{directory}/{name}")
            found += _parse(data or b"", match[1])
    return found


def _parse(data: bytes, chunk: str) -> list[Line]:
    found = []
    for text in data.split(b"\n"):
        with contextlib.suppress(ValueError, RecursionError):
            line = json.loads(text) if text.startswith(b"{") else None
            if isinstance(line, dict) and type(line.get("attempt")) is int:
                number = line.get("task")
                if number is None or (type(number) is int and array.holds(chunk, number)):
                    found.append({**line, "chunk": chunk})
    return found


def of_tasks(lines: Iterable[Line]) -> list[Line]:
    """Those that are about a task."""
    return [line for line in lines if line.get("task") is not None]


def result(root: str, job_id: int, number: int) -> Line | None:
    """What a task came to, or None if that is not known."""
    lines = [line for line in of_tasks(read(root, job_id)) if line["task"] == number]
    found = array.latest(lines).get(number)
    return dict(found) if found else None


# --- outputs


def make_room(path: str) -> None:
    """The directories of an output, one level at a time: nothing where the home is not."""
    directory = path.rpartition("/")[0]
    fsops.make_directory(directory.rpartition("/")[0])
    fsops.make_directory(directory)


def output_paths(root: str, entry: Entry, job: Job, node: str) -> list[str]:
    """Where a task writes to."""
    names = home.fill_in(entry, job.name, job.user) | {"N": node}
    patterns = {"stdout": job.output, "stderr": job.error if job.error or not job.output else job.output}
    found = (home.output_path(root, entry, pattern, name, names, job.chdir) for name, pattern in patterns.items())
    return list(dict.fromkeys(found))


def of_task(entry: Entry, job: Job, files: Sequence[str]) -> tuple[str, ...]:
    """Names of files of an array, with `%a`, `%A`, `%j` filled in for one task; those of a job stay as they are."""
    if not entry.chunk:
        return tuple(files)
    names = home.fill_in(entry, job.name, job.user)
    return tuple(home.output_path("", entry, name, "", names, "") for name in files)


# --- failures


def note_failure(root: str, job_id: int, number: int) -> None:
    """Remember that a task failed; known already is fine."""
    directory = f"{home.path_of(root, job_id)}/{FAILED}"
    fsops.make_directory(directory)
    try:
        fsops.create(f"{directory}/{number}", b"")
    except FileExistsError:
        return


def failures(root: str, job_id: int) -> list[int]:
    """The tasks that failed, of an array with --max-fails."""
    return sorted(int(name) for name in fsops.names(f"{home.path_of(root, job_id)}/{FAILED}") if home.is_number(name))


def pardon(root: str, job_id: int, numbers: Iterable[int]) -> None:
    """Forget that some tasks failed: they run again."""
    for number in numbers:
        try:
            fsops.drop(f"{home.path_of(root, job_id)}/{FAILED}/{number}")
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
