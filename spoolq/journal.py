"""
What the node family must not forget, in files of JSON lines on the node's own disk.

One writer a file: `runner.<n>.jsonl` holds starts, ends and what changed in between,
`watcher.<n>.jsonl` the ends of processes whose runner was killed. A line is one write to the page
cache, which outlives every process of ours: what must survive a power loss is synced by others later.
Invariant: a line that was reported as written is in the file whole; a torn one (disk full) is cut off
again or, at worst, passed over by `load`. What is `kept` is never dropped: it waits in memory until
the disk takes it.
It knows keys of jobs and lines of text; what the lines mean to the runner is the runner's matter.
"""

import contextlib
import errno
import json
import os
from collections.abc import Iterable, Iterator
from typing import Any

from spoolq import fsops

FORMAT = 1
LARGEST = 1 << 30  # bytes of one file that are read back
Key = tuple[Any, Any]


class Journal:
    """
    One file of this process, made whole or not at all when the first line is due.

    Args:
        head: the first line: who writes, in which boot (see `head`).
        lines: what else it begins with.
        sync: whether those must be durable before the file counts, as where they replace other files.
    """

    def __init__(self, directory: str, role: str, head: str, lines: Iterable[str] = (), *, sync: bool = False) -> None:
        self.directory, self.role, self.path = directory, role, ""
        self._first, self._sync = [head, *lines], sync
        self._kept: list[str] = []
        self._fd = -1
        self.size = self.initial_size = 0
        self._torn = False

    @property
    def begun(self) -> bool:
        """Whether the file exists, and so holds all that it began with."""
        return self._fd >= 0

    @property
    def unsaved(self) -> bool:
        """Whether something that was kept is not in the file yet."""
        return bool(self._kept)

    def keep(self, line: str) -> None:
        """A line that must get into the file, with the next `write` or `flush`."""
        self._kept.append(line)

    def write(self, line: str) -> None:
        """
        Append one line, after all that was kept, in one write.

        Raises:
            OSError: the disk refuses; the line is not in the file, what was kept is still kept.
        """
        self._append("\n".join([*self._kept, line, ""]).encode())
        self._kept.clear()

    def flush(self) -> bool:
        """Append what was kept; False if the disk refuses, then it is still kept."""
        if not self._kept and self.begun:
            return True
        try:
            self._append("\n".join([*self._kept, ""]).encode() if self._kept else b"")
        except OSError:
            return False
        self._kept.clear()
        return True

    def _begin(self) -> None:
        text = "\n".join([*self._first, ""]).encode()
        path = _next_path(self.directory, self.role)
        fsops.publish(path, text, mode=0o600, sync=self._sync)
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        self.path, self.size, self.initial_size = path, len(text), len(text)
        self._first.clear()

    def _append(self, data: bytes) -> None:
        if self._fd < 0:
            self._begin()
        if self._torn:
            data = b"\n" + data
        written = os.write(self._fd, data)
        if written == len(data):
            self.size += written
            self._torn = False
            return
        try:
            os.ftruncate(self._fd, self.size)
        except OSError:
            self.size += written
            self._torn = True
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)

    def sync(self) -> None:
        """Make all lines durable; may take long."""
        if self.begun:
            fsops.sync_file(self._fd)

    def close(self) -> None:
        """Let go of the file; another process may have it open."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):  # closed all the same, and a lost write shows when it is read
                os.close(self._fd)
            self._fd = -1

    def drop(self) -> None:
        """Remove the file: a later one holds all of it."""
        self.close()
        if self.path:
            fsops.drop(self.path)


class Book:
    """
    What the files of a directory say together.

    Attributes:
        jobs: by (id, attempt) the merged records: `go`, `started`, `ended` (dicts or absent), `change`
            (later fields win), and `boot`, the boot that wrote them.
        exits: ends of processes that watchers saw in this boot.
        spent_s: CPU seconds of jobs that are no longer in the files.
        watching: files of watchers: path, and pid and birth tick of who writes it.
        paths: all files that were read.
    """

    def __init__(self) -> None:
        self.jobs: dict[Key, dict[str, Any]] = {}
        self.exits: list[dict[str, Any]] = []
        self.spent_s = 0.0
        self.watching: list[tuple[str, int, int]] = []
        self.paths: list[str] = []


def head(*, boot: str, pid: int, born: int, spent_s: float = 0.0) -> str:
    """The first line of a file."""
    return f'{{"op":"head","format":{FORMAT},"boot":"{boot}","pid":{pid},"born":{born},"spent_s":{spent_s!r}}}'


def load(directory: str, boot: str) -> Book:
    """
    Merge all files, oldest first.

    Of earlier boots only ends that were never delivered are of interest: what ran then is dead.
    """
    book = Book()
    for path in paths(directory):
        book.paths.append(path)
        records = _records(path)
        first = next(records, {})
        of_boot = str(first.get("boot", ""))
        role = os.path.basename(path).partition(".")[0]
        if role == "runner":
            book.spent_s = float(first.get("spent_s", 0.0)) if of_boot == boot else book.spent_s
        elif of_boot == boot:
            book.watching.append((path, int(first.get("pid", 0)), int(first.get("born", -1))))
        for record in records:
            if record.get("op") != "exit":
                _merge(book, record, of_boot)
            elif of_boot == boot:
                book.exits.append(record)
    for key, job in list(book.jobs.items()):
        if job["boot"] != boot and "ended" not in job:
            del book.jobs[key]
    return book


def cpu_of(ended: dict[str, Any]) -> float:
    """CPU seconds in an `ended` record."""
    rusage = ended["ended"].get("rusage") or {}
    return float((rusage.get("user_s") or 0.0) + (rusage.get("system_s") or 0.0))


def _merge(book: Book, record: dict[str, Any], boot: str) -> None:
    what, jobs = record.get("op"), book.jobs
    if what == "forget":
        for job_id, attempt in record["jobs"]:
            gone = jobs.pop((job_id, attempt), {})
            book.spent_s += cpu_of(gone["ended"]) if "ended" in gone else 0.0
        return
    if what not in ("go", "started", "change", "ended", "refused") or "id" not in record:
        return
    key = (record["id"], record["attempt"])
    if what == "refused":
        jobs.pop(key, None)
        return
    if what == "go" and "ended" in jobs.get(key, {}) and jobs[key]["boot"] != boot:
        del jobs[key]  # the same attempt again, after a reboot: the earlier end was given up
    job = jobs.setdefault(key, {"boot": boot})
    if what == "change":
        job.setdefault("change", {}).update(record)
    else:
        job[what] = record


def paths(directory: str) -> list[str]:
    """The files of a directory in the order in which they were begun."""
    found = []
    for name in fsops.names(directory):
        parts = name.split(".")
        if len(parts) == 3 and parts[0] in ("runner", "watcher") and parts[2] == "jsonl" and parts[1].isdigit():
            found.append((int(parts[1]), os.path.join(directory, name)))
    return [path for _, path in sorted(found)]


def _next_path(directory: str, role: str) -> str:
    numbers = [int(path.split(".")[-2]) for path in paths(directory)]
    return os.path.join(directory, f"{role}.{max(numbers, default=0) + 1}.jsonl")


def _records(path: str) -> Iterator[dict[str, Any]]:
    data = fsops.read(path, LARGEST) or b""
    for line in data.splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue  # torn by a full disk or a power loss
        if isinstance(record, dict):
            yield record


def write_fence(state_dir: str, boot: str, until: float) -> None:
    """
    Note until when (s, CLOCK_BOOTTIME) jobs of rule `yes` may live without word from the spool.

    In place, so that a full disk does not refuse it: whoever is the runner after a kill has to know
    (model: "only the runner fences, and it is killed").
    """
    fd = os.open(os.path.join(state_dir, "fence"), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.pwrite(fd, f"{boot} {until:020.3f}\n".encode(), 0)
    finally:
        os.close(fd)


def read_fence(state_dir: str, boot: str, unknown: float) -> float:
    """What was noted in this boot, or `unknown`."""
    try:
        with open(os.path.join(state_dir, "fence"), encoding="ascii") as file:
            said, _, until = file.read().partition(" ")
            return float(until) if said == boot else unknown
    except (OSError, ValueError):
        return unknown
