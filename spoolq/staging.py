"""
Copies between where files are and a node's own disk: `--stage-in`, `--stage-out`, for jobs that read or write much.

What is there already, of the same size and time, is not copied again. Large files go through the kernel
(copy_file_range(2), which a server or file system may do by itself, else sendfile(2)).
Invariants: a file appears whole under its name or not at all; one that changed while it was copied is an error,
never a mixture; what could not be brought out is kept, and said where.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence

PIECE = 64 << 20  # bytes between looks at whether the job is to end
_NOT_HERE = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.ETXTBSY, errno.EBADF)


class StageError(Exception):
    """What could not be copied, and why: for the result of the job."""


def split(item: str) -> tuple[str, str]:
    """`SRC[:DST]`; a colon in a name is written `\\:`."""
    source, _, target = item.replace("\\:", "\0").partition(":")
    return source.replace("\0", ":"), target.replace("\0", ":")


def stage_in(items: Sequence[str], directory: str, scratch: str, goon: Callable[[], None]) -> int:
    """
    Copy files and directories to the scratch directory; returns bytes copied.

    Args:
        items: as in the job; SRC relative to `directory`, with wildcards; DST relative to the scratch directory.
        goon: is called now and then, and may raise to stop.

    Raises:
        StageError: one is missing, changes, or there is no room; with figures.
    """
    pairs = [pair for item in items for pair in _pairs(item, directory, scratch, needed=True)]
    needed = sum(os.lstat(path).st_size for source, _ in pairs for path in _files(source))
    space = os.statvfs(scratch)
    free = space.f_bavail * space.f_frsize
    if needed > free:
        raise StageError(f"{needed >> 20} MB are needed in {scratch}, {free >> 20} MB are free")
    return sum(_copy_all(source, target, goon, sync=False) for source, target in pairs)


def stage_out(items: Sequence[str], scratch: str, directory: str, goon: Callable[[], None], *, needed: bool) -> int:
    """
    Copy what the job made from the scratch directory, durably; returns bytes copied.

    Args:
        items: as in the job; SRC relative to the scratch directory, DST to `directory`.
        needed: whether it is an error if one is missing; not after a command that failed.
    """
    copied = 0
    for item in items:
        for source, target in _pairs(item, scratch, directory, needed=needed):
            copied += _copy_all(source, target, goon, sync=True)
    return copied


def _pairs(item: str, of: str, to: str, *, needed: bool) -> Iterator[tuple[str, str]]:
    source, target = split(item)
    path = os.path.join(of, source)
    found = [path] if os.path.lexists(path) else []
    if not found and any(letter in source for letter in "*?["):
        import glob

        found = sorted(glob.glob(path))
    if not found and needed:
        raise StageError(f"{path}: no such file or directory")
    for one in found:
        name = os.path.basename(one.rstrip("/"))
        into = len(found) > 1 or target.endswith("/")
        yield one, os.path.join(to, target, name) if into or not target else os.path.join(to, target)


def _files(path: str) -> Iterator[str]:
    if not os.path.isdir(path):
        yield os.path.realpath(path)
        return
    for top, _, names in os.walk(path):
        yield from (os.path.join(top, name) for name in names)


def _copy_all(source: str, target: str, goon: Callable[[], None], *, sync: bool) -> int:
    try:
        os.makedirs(os.path.dirname(target) or ".", exist_ok=True)
        if not os.path.isdir(source):
            return copy(os.path.realpath(source), target, goon, sync=sync)
        copied = 0
        for top, directories, names in os.walk(source):
            there = os.path.normpath(os.path.join(target, os.path.relpath(top, source)))
            os.makedirs(there, exist_ok=True)
            for name in [*names, *(d for d in directories if os.path.islink(os.path.join(top, d)))]:
                copied += copy(os.path.join(top, name), os.path.join(there, name), goon, sync=sync)
        return copied
    except OSError as error:
        raise StageError(f"{error.filename or source}: {error.strerror} (to {target})") from error


def copy(source: str, target: str, goon: Callable[[], None] = lambda: None, *, sync: bool = False) -> int:
    """
    Copy one file, with its mode and time, if the target is not the same already; returns bytes copied.

    Raises:
        StageError: it is no regular file, or it changed meanwhile.
    """
    facts = os.lstat(source)
    if stat.S_ISLNK(facts.st_mode):
        _link(os.readlink(source), target)
        return 0
    if not stat.S_ISREG(facts.st_mode):
        raise StageError(f"{source}: is no regular file")
    with contextlib.suppress(OSError):
        there = os.lstat(target)
        if stat.S_ISREG(there.st_mode) and (there.st_size, there.st_mtime_ns) == (facts.st_size, facts.st_mtime_ns):
            return 0
    private = os.path.join(os.path.dirname(target), f".t.{os.getpid()}.{os.path.basename(target)[:200]}")
    reading = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        writing = os.open(private, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            before = os.fstat(reading)
            copied = _pour(reading, writing, goon)
            after = os.fstat(reading)
            same = (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
            if not same or copied != before.st_size or os.fstat(writing).st_size != copied:
                raise StageError(f"{source}: changed while it was copied ({copied} of {after.st_size} bytes)")
            os.fchmod(writing, stat.S_IMODE(before.st_mode))
            if sync:
                os.fsync(writing)
        finally:
            os.close(writing)
        os.utime(private, ns=(before.st_atime_ns, before.st_mtime_ns))
        os.replace(private, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(private)
        raise
    finally:
        os.close(reading)
    return copied


def _pour(reading: int, writing: int, goon: Callable[[], None]) -> int:
    """All bytes of a file, by the best way that works here."""
    done = 0
    for way in (_by_range, _by_sendfile, _by_hand):
        try:
            while part := way(reading, writing, done):
                done += part
                goon()
            if done or way is _by_hand:  # a file of /proc gives nothing to the kernel's ways
                return done
        except OSError as error:
            if way is _by_hand or error.errno not in _NOT_HERE:
                raise
    return done


def _by_range(reading: int, writing: int, at: int) -> int:
    return os.copy_file_range(reading, writing, PIECE, offset_src=at, offset_dst=at)


def _by_sendfile(reading: int, writing: int, at: int) -> int:
    os.lseek(writing, at, os.SEEK_SET)
    return os.sendfile(writing, reading, at, PIECE)


def _by_hand(reading: int, writing: int, at: int) -> int:
    return os.pwrite(writing, os.pread(reading, 1 << 20, at), at)


def _link(text: str, target: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(target)
    os.symlink(text, target)


def discard(scratch: str) -> None:
    """Remove a scratch directory."""
    import shutil

    shutil.rmtree(scratch, ignore_errors=True)


def keep(scratch: str, name: str) -> str:
    """Set a scratch directory aside under a name that nobody clears up; where it is now."""
    kept = os.path.join(os.path.dirname(scratch), name)
    with contextlib.suppress(OSError):
        os.replace(scratch, kept)
        return kept
    return scratch
