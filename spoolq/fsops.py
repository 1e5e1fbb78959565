"""
About twenty durable file operations, and the only rename, link and fsync of the package.

NFS tells half-truths: a rename whose reply was lost answers ENOENT although it happened; a stat of
a name once missing is up to 60 s old, and only opening the directory anew is fresh; ENOSPC shows at
fsync or close, never at write. Here, and only here, that is turned into plain answers.
Invariants: `move` answers WON, LOST or UNKNOWN and never guesses; `publish` is all or nothing;
nothing here knows what a job is. Every system call goes through this module's name `os`, which a
test or a simulator replaces; nothing else needs to be replaced.
"""

import contextlib
import errno
import itertools
import os
import stat
from enum import Enum

PIECE = 1 << 20  # bytes read at once: os.read allocates what it is asked for, however short the file
TRIES = 3  # reopen a directory this often on ESTALE before believing it (filelock PR 669)
_counter = itertools.count()

# errors of a rename after which nobody knows whether the server did it
_DOUBTFUL = frozenset(
    (errno.EIO, errno.ETIMEDOUT, errno.ESTALE, errno.ENOENT, errno.EEXIST, errno.ENOTCONN, errno.EINTR, errno.EAGAIN)
)


class Answer(Enum):
    """What became of a rename that others may have tried too."""

    WON = "won"
    LOST = "lost"
    UNKNOWN = "unknown"  # neither act nor give up: ask again


def names(directory: str, *, lasting: bool = False) -> list[str]:
    """
    The names in a directory, read from the server now; an absent directory, or a file in its place, has none.

    A `lasting` directory is never removed: without it, and FileNotFoundError, the spool is not mounted now.

    Opened by path each time: measured on NFS v3 and v4.2 with default mounts that is fresh within
    0.2 s, while a kept descriptor or a stat is up to 60 s old. Dot files (`.nfs*`) are left out.
    """
    for attempt in range(TRIES):
        try:
            return [name for name in os.listdir(directory) if name[0] != "."]
        except (FileNotFoundError, NotADirectoryError):
            if lasting:
                raise
            return []
        except OSError as error:
            if error.errno != errno.ESTALE or attempt == TRIES - 1:
                raise
    return []


def present(directory: str, name: str) -> bool | None:
    """
    Whether a name is there now, by listing; None if that cannot be told.

    In a directory that is gone it is not, if the directory above says so: when that is gone too, the
    spool is not mounted any more, and everything may come back.
    """
    try:
        for _ in range(TRIES):
            try:
                return name in os.listdir(directory)
            except FileNotFoundError:
                above, own = os.path.split(directory)
                return None if own in os.listdir(above) else False  # here again: made anew meanwhile, or mounted
            except OSError as error:
                if error.errno != errno.ESTALE:
                    raise
    except OSError:
        pass
    return None


def move(source: str, target: str, *, tries: int = TRIES) -> Answer:
    """
    Rename to a name that never existed before, and find out the truth.

    A target directory that was swept away meanwhile is made again. After a doubtful error: source
    there = once more, target there = WON, neither = LOST, cannot tell = UNKNOWN. The rule is right
    only because no two renames ever have the same target (Postfix's sane_rename, for many movers).

    Args:
        tries: 1 for a source whose name may come back, like a file in drop/: then a source that is
            still there is LOST, and the caller tries again with another target.

    Raises:
        OSError: the server refused (EACCES, ENOSPC, EROFS, EXDEV, ...): certainly not done.
    """
    for _ in range(tries):
        try:
            os.rename(source, target)
            return Answer.WON
        except OSError as error:
            if error.errno not in _DOUBTFUL:
                raise
        answer = settle(source, target)
        if answer is not None:
            return answer
        with contextlib.suppress(FileExistsError, FileNotFoundError):  # each time: it may be swept again (simulation)
            os.mkdir(os.path.dirname(target))  # and nothing above it: not mounted, that would be a wrong place
    return Answer.LOST if tries == 1 else Answer.UNKNOWN


def settle(source: str, target: str) -> Answer | None:
    """What became of a doubtful rename; None if the source is still there, so that it may be repeated."""
    # the source first: looked at second, an own rename carried out between the looks would seem lost
    left = present(*os.path.split(source))
    if left:
        return None
    arrived = present(*os.path.split(target))
    if left is None:
        return Answer.WON if arrived else Answer.UNKNOWN
    return Answer.UNKNOWN if arrived is None else Answer.WON if arrived else Answer.LOST


def create(path: str, data: bytes, *, mode: int = 0o644, sync: bool = True) -> None:
    """
    Write a new private file under its final name; for names that nobody looks for yet.

    Raises:
        OSError: also for what the server says only at fsync or close (ENOSPC, EDQUOT, EIO); the
            file is then removed, since a second fsync may lie (Rebello et al., ATC 2020).
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        try:
            _write_all(fd, data)
            if sync:
                os.fsync(fd)
        finally:
            os.close(fd)
    except OSError:
        discard(path)
        raise


def publish(path: str, data: bytes, *, mode: int = 0o644, sync: bool = True) -> None:
    """
    Make a file appear whole, replacing an older one: write beside it, sync, rename.

    With sync=False the rename may reach a local disk before the data (on NFS, close commits it): only
    for what can be made again or is recorded elsewhere.
    """
    temporary = private_name(path)
    create(temporary, data, mode=mode, sync=sync)
    put(temporary, path)
    if sync:
        sync_directory(os.path.dirname(path))


def private_name(path: str) -> str:
    """A name beside a path that nobody else has, and nobody looks at."""
    return f"{os.path.dirname(path)}/.t.{os.getpid()}.{next(_counter)}.{os.path.basename(path)[:64]}"


def put(temporary: str, path: str) -> None:
    """Rename a private file to its public name, replacing what has it; the private file is removed if that fails."""
    try:
        os.rename(temporary, path)
    except OSError as error:
        # no other process has this temporary name: if it is gone, the rename happened
        if error.errno not in _DOUBTFUL or present(*os.path.split(temporary)) is not False:
            discard(temporary)
            raise


def copy(source: str, fd: int, *, start: int = 0, most: int | None = None) -> int:
    """
    Write what a file holds from `start` on, at most `most` bytes, where a descriptor stands.

    Returns:
        The number of bytes; 0 if there is no such file.
    """
    try:
        reading = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except FileNotFoundError:
        return 0
    done = 0
    try:
        os.lseek(reading, start, os.SEEK_SET)
        while (most is None or done < most) and (part := os.read(reading, min(PIECE, most - done if most else PIECE))):
            _write_all(fd, part)
            done += len(part)
    finally:
        os.close(reading)
    return done


def append(path: str, data: bytes, *, sync: bool = True, apart: bool = False) -> None:
    """Append to a file of one writing host (O_APPEND is not atomic between NFS clients); `apart`: on a new line."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        _write_all(fd, b"\n" + data if apart and os.fstat(fd).st_size else data)
        if sync:
            os.fsync(fd)
    finally:
        os.close(fd)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def read(path: str, limit: int = 1 << 20) -> bytes | None:
    """
    The bytes of a regular file, or None if there is none.

    Never follows a link, never blocks on a FIFO, never opens a device.

    Raises:
        OSError: EINVAL for what is no regular file, EFBIG for more than `limit` bytes.
    """
    for attempt in range(TRIES):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
            break
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise OSError(errno.EINVAL, "a symbolic link, not a regular file", path) from None
            if error.errno == errno.ENXIO:
                raise OSError(errno.EINVAL, "a socket or FIFO, not a regular file", path) from None
            if error.errno != errno.ESTALE or attempt == TRIES - 1:
                raise
    try:
        kind = os.fstat(fd)
        if not stat.S_ISREG(kind.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        data = _read_all(fd, limit + 1)
    finally:
        with contextlib.suppress(OSError):  # nothing was written, so it says nothing of the file
            os.close(fd)
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"more than {limit} bytes", path)
    return data


def _read_all(fd: int, most: int) -> bytes:
    parts, size = [], 0
    while size < most and (part := os.read(fd, min(most - size, PIECE))):
        parts.append(part)
        size += len(part)
    return b"".join(parts)


def make_directory(path: str, *, mode: int = 0o755) -> bool:
    """Make one directory; False if it existed. After a lost reply an own success counts as existing."""
    try:
        os.mkdir(path, mode)
    except FileExistsError:
        return False
    return True


def make_directories(path: str) -> None:
    """Make a directory and its parents, if missing."""
    os.makedirs(path, exist_ok=True)


def remove_directory(path: str) -> bool:
    """Remove an empty directory; False if it is not empty, in use or gone."""
    try:
        os.rmdir(path)
    except OSError:
        return False
    return True


def symlink(text: str, path: str) -> None:
    """Make a private symbolic link; an equal one from an earlier, interrupted try is as good."""
    try:
        os.symlink(text, path)
    except FileExistsError:
        if os.readlink(path) != text:
            raise


def link(existing: str, path: str) -> None:
    """Give a private file a second private name."""
    os.link(existing, path)


def drop(path: str) -> None:
    """Remove a file; one already gone is success, as after a lost reply."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def discard(path: str) -> None:
    """Remove a private file if that can be done now."""
    with contextlib.suppress(OSError):
        os.unlink(path)


def sync_directory(path: str) -> None:
    """Make the names of a directory durable: needed on local disks, one GETATTR on NFS."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_file(fd: int) -> None:
    """Make an open file durable; the place where ENOSPC shows on NFS."""
    os.fsync(fd)


def reopen(path: str) -> int | None:
    """A descriptor of a regular file that exists, for syncing only; links are followed. None for other kinds."""
    fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    return None


def sync_path(path: str) -> None:
    """
    Send what anybody on this machine wrote to a regular file; other kinds are left alone.

    A descriptor of its own, so that an error is not used up here but told again to whoever holds one.
    """
    fd = reopen(path)
    if fd is not None:
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def facts_of(fd: int) -> os.stat_result:
    """What stat says of an open file."""
    return os.fstat(fd)


def close(fd: int) -> None:
    """Close a descriptor that `open_output` or `open_directory` gave."""
    os.close(fd)


def open_private(path: str) -> int:
    """A descriptor of a new, empty private file; what an interrupted try left under that name is gone."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


def open_at(path: str, at: int | None) -> int:
    """A descriptor that writes to an existing file, from an offset on, or at its end if None."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOCTTY | (os.O_APPEND if at is None else 0))
    os.lseek(fd, at or 0, os.SEEK_SET)
    return fd


def regular(fd: int) -> bool:
    """Whether an open file is a regular one: no device, FIFO or terminal."""
    return stat.S_ISREG(os.fstat(fd).st_mode)


def open_output(path: str, *, append_to: bool = False) -> int:
    """A descriptor for a job's stdout or stderr, always O_APPEND, so that two streams may share a file."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
    # O_NONBLOCK only for the open: a FIFO without a reader answers ENXIO instead of hanging the daemon
    fd = os.open(path, flags if append_to else flags | os.O_TRUNC, 0o666)
    os.set_blocking(fd, True)
    return fd


def ring(path: str) -> None:
    """Change a directory's time stamps, which wakes those on this machine who watch it."""
    with contextlib.suppress(OSError):
        os.utime(path)


def look(path: str) -> os.stat_result | None:
    """lstat of one path, or None; up to 60 s old on NFS, so never for deciding what became of a rename."""
    try:
        return os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def free_mb(path: str) -> int:
    """MB (2**20 bytes) that this user may still write to the file system of a path."""
    space = os.statvfs(path)
    return space.f_bavail * space.f_frsize >> 20
