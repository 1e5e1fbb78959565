"""
Output mode `local`: what a job writes lies on its node's own disk, and is shipped into the spool when it has ended.

For jobs that write much, or that must not wait when the spool is full or does not answer. One directory an attempt,
`<state>/jobs/<id>.<attempt>/`: the streams, a plan that says where each goes, and a mark for each that is there.
An output in the job's home is copied to a private name, synced and renamed; one of -o or -e is written where it
lies, at the end if it is appended to (after a crash a part of that may be there twice, never too little).
Invariant: an entry reaches done/ only after its outputs; they are tried again for ever, also by later daemons and
after a reboot, and removed here only after the commit. Output of an attempt that somebody else decided about
replaces nothing: it becomes `stdout.<attempt>.late`.
"""

import json
import logging
import os
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from spoolq import array, deliver, fsops, home, host
from spoolq.deliver import Finished
from spoolq.entry import Entry
from spoolq.spool import Placed, Spool

log = logging.getLogger("spoolq")

HOME, WRITE, APPEND = "home", "write", "append"  # how a stream is shipped
_GONE = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)
Key = tuple[int | str, int]  # of an attempt: `entry.unit`, and its number


class Target(NamedTuple):
    """An open output: which stream, where it goes, whether that is the job's home, and its descriptor."""

    stream: str
    path: str
    home: bool
    fd: int


def directory_of(state_dir: str, key: Key) -> str:
    """Where the output of an attempt is kept."""
    return f"{state_dir}/jobs/{key[0]}.{key[1]}"


def begin(state_dir: str, entry: Entry, targets: Sequence[Target], *, again: bool) -> list[int]:
    """
    Local files instead of outputs in the spool; what is no regular file stays as it is.

    Args:
        targets: opened, and closed here if they are replaced.
        again: they are appended to.

    Raises:
        OSError: the local disk refuses; all targets are closed then.
    """
    directory = directory_of(state_dir, (entry.unit, entry.attempt))
    fds = [target.fd for target in targets]
    try:
        files = [target for target in targets if fsops.regular(target.fd)]
        how = {target.stream: HOME if target.home else APPEND if again else WRITE for target in files}
        sizes = {target.stream: fsops.facts_of(target.fd).st_size for target in files}
        streams = {t.stream: {"path": t.path, "base": sizes[t.stream], "how": how[t.stream]} for t in files}
        fsops.make_directories(directory)
        text = json.dumps({"boot": host.boot_id(), "streams": streams})
        new = f"{directory}/plan.new"  # no hidden name, so that it is cleared up with the rest
        fsops.discard(new)  # of a claim that was given back
        fsops.create(new, text.encode(), mode=0o600)
        fsops.put(new, f"{directory}/plan")
        fsops.sync_directory(directory)
        for number, target in enumerate(targets):
            if target in files:
                fds[number] = fsops.open_output(f"{directory}/{target.stream}")
                fsops.close(target.fd)
    except OSError:
        for fd in fds:
            fsops.close(fd)
        raise
    return fds


def _plan(directory: str) -> dict[str, Any]:
    data = fsops.read(f"{directory}/plan")
    try:
        return dict(json.loads(data)) if data else {}
    except ValueError:
        return {}


def kept(state_dir: str, key: Key) -> bool:
    """Whether the output of an attempt lies here."""
    return fsops.look(directory_of(state_dir, key)) is not None


def reopen(state_dir: str, key: Key) -> tuple[int, ...]:
    """Descriptors of the local files, for a daemon that did not start the job."""
    directory = directory_of(state_dir, key)
    paths = [f"{directory}/{stream}" for stream in _plan(directory).get("streams", {})]
    found = [fsops.reopen(path) for path in paths if fsops.look(path)]
    return tuple(fd for fd in found if fd is not None)


def ship_all(spool: Spool, state_dir: str, items: Sequence[Finished]) -> tuple[list[Finished], OSError | None]:
    """
    Ship the outputs of what ended.

    Returns:
        The items whose outputs are where they belong, and the first error that kept back another.
    """
    ready, failed = [], None
    for item in items:
        entry = item.at.entry
        try:
            detail = ship(spool, state_dir, item.at.place, (entry.unit, entry.attempt))
        except OSError as error:
            failed = failed or error
            continue
        if detail and not item.record and item.ended.get("reason") != deliver.OUTPUT_LOST:
            deliver.mark_lost(item.ended, detail)
            item.result, item.line = b"", b""
        ready.append(item)
    return ready, failed


def ship(spool: Spool, state_dir: str, place: str, key: Key) -> str:
    """
    Bring the output of an attempt where it belongs, if it is kept here and not there yet.

    Args:
        place: where the attempt's entry must lie, or the output is late.

    Returns:
        Empty, or why it may not be whole.

    Raises:
        OSError: it stays here; to be tried again.
    """
    if not kept(state_dir, key):
        return ""
    directory = directory_of(state_dir, key)
    plan = _plan(directory)
    names = fsops.names(directory)
    detail = _sync(directory, plan, names)
    for stream, facts in plan.get("streams", {}).items():
        if stream not in names or f"{stream}.shipped" in names:
            continue
        local = f"{directory}/{stream}"
        found = fsops.look(local)
        if found and found.st_size:
            _ship_stream(spool, place, key, local, facts)
        fsops.create(f"{local}.shipped", b"", sync=False)
    return detail


def _sync(directory: str, plan: dict[str, Any], names: Collection[str]) -> str:
    """The local files are durable from here on; what a power loss took before that is not passed over."""
    if "synced" in names or not plan:
        return ""
    if plan.get("boot") != host.boot_id():
        return "its node went down before the output was safe: the end of it may be missing"
    for stream in plan["streams"]:
        if stream in names:
            fsops.sync_path(f"{directory}/{stream}")
    fsops.create(f"{directory}/synced", b"")
    fsops.sync_directory(directory)
    return ""


def _ship_stream(spool: Spool, place: str, key: Key, local: str, facts: dict[str, Any]) -> None:
    if facts["how"] == HOME:
        _replace(spool, place, key, local, facts["path"], facts["base"])
        return
    try:
        fd = fsops.open_at(facts["path"], 0 if facts["how"] == WRITE else None)
    except _GONE as error:  # its user took that place away: the home is better than nowhere
        log.warning("output job=%s file=%s error=%s: into its home", key[0], facts["path"], error.strerror)
        path = home.output_path(spool.root, _entry_of(key), None, os.path.basename(local), {}, "")
        _replace(spool, place, key, local, path, 0)
        return
    try:
        fsops.copy(local, fd)
        fsops.sync_file(fd)
    finally:
        fsops.close(fd)


def _entry_of(key: Key) -> Entry:
    job_id, _, number = str(key[0]).partition("_")
    return Entry(rank=0, id=int(job_id), attempt=key[1], chunk=f"a{number}" if number else "")


def _replace(spool: Spool, place: str, key: Key, local: str, path: str, base: int) -> None:
    """Whole, or not at all; the first `base` bytes are of earlier attempts and stay."""
    directory, name = os.path.split(path)
    private = f"{directory}/.ship.{key[1]}.{name}"
    try:
        fd = fsops.open_private(private)
    except _GONE:
        spool.check_same()  # not mounted: to be tried again
        log.warning("output job=%s: its home is gone: somebody removed it", key[0])
        return
    try:
        try:
            if base:
                fsops.copy(path, fd, most=base)
            fsops.copy(local, fd)
            fsops.sync_file(fd)
        finally:
            fsops.close(fd)
    except OSError:
        fsops.discard(private)  # the room that it takes may be what is missing
        raise
    ours = any(_is_of(entry, key) for entry in spool.entries(place))
    fsops.put(private, path if ours else f"{path}.{key[1]}.late")
    fsops.sync_directory(directory)


def _is_of(entry: Entry, key: Key) -> bool:
    """Whether an attempt is that of an entry, or of a task of its chunk."""
    if isinstance(key[0], int) or not entry.chunk:
        return (entry.id, entry.attempt) == key
    job_id, _, number = key[0].partition("_")
    return (str(entry.id), entry.attempt) == (job_id, key[1]) and array.holds(entry.chunk, int(number))


def increment(state_dir: str, at: Placed) -> None:
    """What a running job has written so far, for somebody who follows it; what is appended comes at the end only."""
    key = (at.entry.unit, at.entry.attempt)
    directory = directory_of(state_dir, key)
    for stream, facts in _plan(directory).get("streams", {}).items():
        local, path, base = f"{directory}/{stream}", facts["path"], facts["base"]
        here, there = fsops.look(local), fsops.look(path)
        if facts["how"] == APPEND or not here or not there:
            continue
        sent = max(0, there.st_size - base)
        if here.st_size > sent:
            fd = fsops.open_at(path, base + sent)
            try:
                fsops.copy(local, fd, start=sent, most=here.st_size - sent)
                fsops.sync_file(fd)
            finally:
                fsops.close(fd)


def forget(state_dir: str, key: Key) -> None:
    """After the commit; without its plan, what is left is nothing."""
    if not kept(state_dir, key):
        return
    directory = directory_of(state_dir, key)
    for name in sorted(fsops.names(directory), key=lambda name: name != "plan"):
        fsops.discard(f"{directory}/{name}")
    fsops.remove_directory(directory)


def tidy(spool: Spool, state_dir: str, node: str, keep: Collection[Key]) -> None:
    """What earlier daemons left of attempts that are not here any more: late output, or what is there already."""
    names = fsops.names(f"{state_dir}/jobs")
    if names:
        spool.check_same()
        here = [*spool.entries(f"running/{node}"), *spool.entries(f"reaping/{node}")]
        keep = {*keep, *((entry.id, entry.attempt) for entry in here if not entry.chunk)}
    for name in names:
        unit, _, attempt = name.partition(".")
        if not home.is_number(unit.replace("_", "", 1)) or not home.is_number(attempt):
            continue
        key: Key = (unit if "_" in unit else int(unit), int(attempt))
        if key in keep:
            continue
        try:
            ship(spool, state_dir, f"running/{node}", key)
            forget(state_dir, key)
        except OSError as error:
            log.warning("output not shipped job=%s attempt=%d error=%s", *key, error)
