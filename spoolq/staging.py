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
import time
from collections.abc import Callable, Iterator, Sequence

Way = Callable[[str, str, Callable[[], None]], int]  # source, target, goon -> bytes

LEAST_KEPT = 1 << 20  # bytes of a file that is worth a place in the cache
PIECE = 64 << 20  # bytes between looks at whether the job is to end
_NOT_HERE = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.ETXTBSY, errno.EBADF)


class StageError(Exception):
    """What could not be copied, and why: for the result of the job."""


def split(item: str) -> tuple[str, str]:
    """`SRC[:DST]`; a colon in a name is written `\\:`."""
    source, _, target = item.replace("\\:", "\0").partition(":")
    return source.replace("\0", ":"), target.replace("\0", ":")


class Cache:
    """
    Copies of staged files that stay on the node, so that only what has changed is brought again.

    A file is named by the hash of its path; its time and size say whether it is still the same. What was used least
    lately goes when there is too much. Several jobs may use it at once: names are private until a file is whole.
    """

    def __init__(self, top: str, most: int) -> None:
        """
        Nothing is touched yet.

        Args:
            top: a directory, made if missing; it must be this user's own.
            most: bytes in it; a file of more than half of that is not kept.
        """
        self.top, self.most = top, most

    def usable(self) -> bool:
        """Whether it is there, and nobody else's."""
        with contextlib.suppress(OSError):
            with contextlib.suppress(FileExistsError):
                os.mkdir(self.top, 0o700)
            facts = os.lstat(self.top)
            return stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.getuid() and not facts.st_mode & 0o022
        return False

    def copy(self, source: str, target: str, goon: Callable[[], None]) -> int:
        """Copy a file by way of the cache; returns bytes that came from the source."""
        import hashlib

        facts = os.lstat(source)
        if not stat.S_ISREG(facts.st_mode) or not LEAST_KEPT <= facts.st_size <= self.most // 2:
            return copy(source, target, goon)
        kept = f"{self.top}/{hashlib.sha256(os.fsencode(os.path.realpath(source))).hexdigest()[:32]}"
        try:
            self._make_room(facts.st_size, kept)
            copied = copy(source, kept, goon)
            os.utime(kept, ns=(time.time_ns(), os.lstat(kept).st_mtime_ns))  # used now
            copy(kept, target, goon)
            return copied
        except OSError:  # removed by another job that needed the room, or the disk is full
            return copy(source, target, goon)

    def _make_room(self, size: int, but: str) -> None:
        found = []
        for entry in os.scandir(self.top):
            with contextlib.suppress(FileNotFoundError):
                facts = entry.stat(follow_symlinks=False)
                found.append((facts.st_atime_ns, facts.st_size, entry.path))
        total = size + sum(held for _, held, path in found if path != but)
        for _, held, path in sorted(found):
            if total <= self.most:
                return
            if path != but:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
                total -= held


def stage_in(
    items: Sequence[str], directory: str, scratch: str, goon: Callable[[], None], cache: Cache | None = None
) -> int:
    """
    Copy files and directories to the scratch directory; returns bytes copied from there.

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
    one = cache.copy if cache and cache.usable() else copy
    return sum(_copy_all(source, target, goon, one) for source, target in pairs)


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
            copied += _copy_all(source, target, goon, copy_durably)
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


def _copy_all(source: str, target: str, goon: Callable[[], None], one: Way) -> int:
    try:
        os.makedirs(os.path.dirname(target) or ".", exist_ok=True)
        if not os.path.isdir(source):
            return one(os.path.realpath(source), target, goon)
        copied = 0
        for top, directories, names in os.walk(source):
            there = os.path.normpath(os.path.join(target, os.path.relpath(top, source)))
            os.makedirs(there, exist_ok=True)
            for name in [*names, *(d for d in directories if os.path.islink(os.path.join(top, d)))]:
                copied += one(os.path.join(top, name), os.path.join(there, name), goon)
        return copied
    except OSError as error:
        raise StageError(f"{error.filename or source}: {error.strerror} (to {target})") from error


def size_of(directory: str, most: int) -> int:
    """Bytes of all files in a directory; it is not looked at to the end once there are more than `most`."""
    size = 0
    for path in _files(directory):
        with contextlib.suppress(FileNotFoundError):
            size += os.lstat(path).st_size
        if size > most:
            break
    return size


def copy_tree(source: str, target: str) -> int:
    """Copy what is new or changed in a directory, durably; returns bytes copied."""
    return _copy_all(source, target, lambda: None, copy_durably)


def copy_durably(source: str, target: str, goon: Callable[[], None]) -> int:
    """`copy`, and the file is on disk before it has its name."""
    return copy(source, target, goon, sync=True)


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
