"""
Try for real whether a file system keeps the promises that the spool is built on.

Everything happens in a private directory under the spool, and through `fsops`, so that what is tried
is what is used: exclusive mkdir, rename that has exactly one winner among processes, links, fsync,
names of full length, and one file system under all directories of the spool.
Invariant: cleans up after itself; touches nothing but its own names, which start with a dot and are
therefore never seen by anything else.
"""

import contextlib
import os
import shutil
import stat
import time
from collections.abc import Callable
from typing import NamedTuple

from spoolq import fsops
from spoolq.entry import MAX_NAME
from spoolq.fsops import Answer

OK, WARNING, ERROR = "ok", "warning", "error"
RACERS, NAMES = 4, 50
SLOW_SYNC_S = 0.5
CLOCK_S = 2.0  # difference to the server's clock that is worth a word


class Finding(NamedTuple):
    """What one look found: `level` is OK, WARNING or ERROR; `remedy` is empty if nothing is to be done."""

    level: str
    what: str
    text: str
    remedy: str = ""


def attempt(what: str, action: Callable[[], Finding]) -> Finding:
    """Run one trial; an error of the operating system is a finding too."""
    try:
        return action()
    except OSError as error:
        return Finding(ERROR, what, error.strerror or str(error), "this file system cannot hold a spool")


def try_all(root: str, tops: tuple[str, ...]) -> list[Finding]:
    """
    All trials on one spool.

    Args:
        tops: the directories under root among which entries move.
    """
    base = f"{root}/.doctor.{os.getpid()}.{time.time_ns():x}"
    try:
        fsops.make_directory(base, mode=0o700)
    except OSError as error:
        return [
            Finding(ERROR, "writable", f"{root}: {error.strerror}", "mount it read-write, and check owner and mode")
        ]
    try:
        return [
            Finding(OK, "writable", "a directory can be made in the spool"),
            attempt("exclusive", lambda: try_exclusive(base)),
            attempt("rename", lambda: try_rename(base)),
            attempt("race", lambda: try_race(base)),
            attempt("links", lambda: try_links(base)),
            attempt("symlinks", lambda: try_symlinks(base)),
            attempt("unlink", lambda: try_unlink(base)),
            attempt("names", lambda: try_names(base)),
            attempt("modes", lambda: try_modes(base)),
            attempt("fsync", lambda: try_sync(base)),
            attempt("one file system", lambda: try_one_file_system(root, base, tops)),
            attempt("clock", lambda: try_clock(base)),
        ]
    finally:
        shutil.rmtree(base, ignore_errors=True)


def _bad(what: str, text: str) -> Finding:
    return Finding(ERROR, what, text, "this file system cannot hold a spool; use NFS (hard) or a local disk")


def try_exclusive(base: str) -> Finding:
    """Making a directory or a new file succeeds once."""
    if not fsops.make_directory(f"{base}/once") or fsops.make_directory(f"{base}/once"):
        return _bad("exclusive", "mkdir of the same name succeeds twice: two jobs could get one id")
    fsops.create(f"{base}/once/file", b"1")
    with contextlib.suppress(FileExistsError):
        fsops.create(f"{base}/once/file", b"2")
        return _bad("exclusive", "exclusive creation of the same file succeeds twice")
    return Finding(OK, "exclusive", "mkdir and exclusive creation succeed exactly once")


def try_rename(base: str) -> Finding:
    """A rename moves a name, whole, at once to be seen, and replaces where it should."""
    fsops.make_directory(f"{base}/from")
    fsops.make_directory(f"{base}/to")
    fsops.create(f"{base}/from/a", b"a")
    if fsops.move(f"{base}/from/a", f"{base}/to/b") is not Answer.WON:
        return _bad("rename", "a rename that nobody else wanted did not happen")
    if fsops.names(f"{base}/from") or fsops.names(f"{base}/to") != ["b"]:
        return _bad("rename", "a listing does not show a rename that has just happened")
    if fsops.move(f"{base}/from/a", f"{base}/to/c") is not Answer.LOST:
        return _bad("rename", "a rename of a name that is gone does not fail")
    fsops.publish(f"{base}/to/b", b"second")
    if fsops.read(f"{base}/to/b") != b"second":
        return _bad("rename", "a rename over an existing file does not replace it")
    return Finding(OK, "rename", "renames are whole and seen at once")


def try_race(base: str) -> Finding:
    """Several processes rename the same names: each name has exactly one winner, and each knows it."""
    fsops.make_directory(f"{base}/race")
    for number in range(NAMES):
        fsops.create(f"{base}/race/{number}", b"", sync=False)
    for racer in range(RACERS):
        fsops.make_directory(f"{base}/racer{racer}")
    said = _race(base)
    found = [sorted(map(int, fsops.names(f"{base}/racer{racer}"))) for racer in range(RACERS)]
    everything = sorted(number for numbers in found for number in numbers)
    if everything != list(range(NAMES)):
        return _bad("race", f"{NAMES} names, {len(set(everything))} won once, {len(everything)} in all")
    if said != found:
        return _bad("race", "a process was told that it won a rename which another one won")
    return Finding(OK, "race", f"{RACERS} processes, {NAMES} names: each has exactly one winner")


def _race(base: str) -> list[list[int]]:
    """What each racer was told it won."""
    start_read, start_write = os.pipe()
    racers = []
    for racer in range(RACERS):
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:  # the racer: waits for the start, renames, tells, and leaves without cleaning up
            try:
                os.close(start_write)
                os.read(start_read, 1)
                os.write(write, _run(base, racer))
            finally:
                os._exit(0)
        os.close(write)
        racers.append((pid, read))
    os.close(start_read)
    os.close(start_write)
    said = []
    for pid, read in racers:
        with os.fdopen(read, "rb") as pipe:
            said.append(sorted(int(word) for word in pipe.read().split()))
        os.waitpid(pid, 0)
    return said


def _run(base: str, racer: int) -> bytes:
    won = [
        str(number)
        for number in range(NAMES)
        if fsops.move(f"{base}/race/{number}", f"{base}/racer{racer}/{number}") is Answer.WON
    ]
    return " ".join(won).encode()


def try_links(base: str) -> Finding:
    """Hard links, which many submissions at once share their environment by."""
    fsops.create(f"{base}/linked", b"x")
    try:
        fsops.link(f"{base}/linked", f"{base}/linked2")
    except OSError as error:
        return Finding(
            WARNING, "links", f"no hard links ({error.strerror})", "works, but many jobs at once need more room"
        )
    return Finding(OK, "links", "hard links work")


def try_symlinks(base: str) -> Finding:
    """Symbolic links, which entries are, kept as they were written and renamed as themselves."""
    text = "../../jobs/0/42/job"
    fsops.symlink(text, f"{base}/entry")
    if fsops.move(f"{base}/entry", f"{base}/entry2") is not Answer.WON or os.readlink(f"{base}/entry2") != text:
        return _bad("symlinks", "a symbolic link is changed when it is renamed")
    return Finding(OK, "symlinks", "symbolic links that point nowhere can be made and renamed")


def try_unlink(base: str) -> Finding:
    """Files and directories go when they are removed."""
    fsops.make_directory(f"{base}/gone")
    fsops.create(f"{base}/gone/file", b"x")
    if fsops.remove_directory(f"{base}/gone"):
        return _bad("unlink", "rmdir removes a directory that is not empty")
    fsops.drop(f"{base}/gone/file")
    if fsops.names(f"{base}/gone") or not fsops.remove_directory(f"{base}/gone"):
        return _bad("unlink", "a removed file stays in the listing")
    return Finding(OK, "unlink", "unlink and rmdir work")


def try_names(base: str) -> Finding:
    """Names of full length, with all signs that entries use, and upper and lower case apart."""
    fsops.make_directory(f"{base}/names")
    wanted = {"500.42.0.1~c0.5,m500,@anna,gpu=1~A-b_c".ljust(MAX_NAME, "x"), "Aa", "aA"}
    for name in wanted:
        try:
            fsops.create(f"{base}/names/{name}", b"")
        except FileExistsError:
            return _bad("names", "upper and lower case are the same name")
    if set(fsops.names(f"{base}/names")) != wanted:
        return _bad("names", "names come back changed from a listing")
    return Finding(OK, "names", f"names of {MAX_NAME} bytes are kept as they are")


def try_modes(base: str) -> Finding:
    """A private file stays private: the environment of a job lies in one."""
    fsops.create(f"{base}/private", b"", mode=0o600)
    mode = stat.S_IMODE(os.lstat(f"{base}/private").st_mode)
    if mode & 0o077:
        text = f"a file made with mode 0600 has mode {mode:04o}: others can read the environment of jobs"
        return Finding(WARNING, "modes", text, "submit with --export none, or mount with other modes")
    return Finding(OK, "modes", "private files stay private")


def try_sync(base: str) -> Finding:
    """Fsync of files and directories works."""
    before = time.monotonic()
    fsops.create(f"{base}/synced", b"x" * 4096, sync=True)
    fsops.sync_directory(base)
    took = time.monotonic() - before
    if took > SLOW_SYNC_S:
        return Finding(WARNING, "fsync", f"takes {took:.1f} s", "every submission waits for that; is the server busy?")
    return Finding(OK, "fsync", f"works ({took * 1000:.1f} ms for a file and its directory)")


def try_one_file_system(root: str, base: str, tops: tuple[str, ...]) -> Finding:
    """An entry can be renamed from each directory to the next."""
    at = f"{base}/travels"
    fsops.create(at, b"")
    for top in tops:
        target = f"{root}/{top}/.{os.path.basename(base)}"
        try:
            os.stat(f"{root}/{top}")
            fsops.move(at, target)
        except OSError as error:
            fsops.drop(at)
            what = "missing" if isinstance(error, FileNotFoundError) else error.strerror
            remedy = "all directories of a spool must lie on one mount, and you must be able to write there"
            return Finding(ERROR, "one file system", f"{top}/: {what}", remedy)
        at = target
    fsops.drop(at)
    return Finding(OK, "one file system", "entries can move between all directories")


def try_clock(base: str) -> Finding:
    """How far this machine's clock is from the file server's; for information, nothing depends on it."""
    path = f"{base}/clock"
    fsops.create(path, b"")
    before = time.time()
    os.utime(path)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        server = os.fstat(fd).st_mtime
    finally:
        os.close(fd)
    after = time.time()
    off = 0.0 if before - 0.01 <= server <= after else server - (before + after) / 2
    if abs(off) > CLOCK_S:
        text = f"the file server's clock is {abs(off):.1f} s {'ahead of' if off > 0 else 'behind'} this machine's"
        return Finding(WARNING, "clock", text, "spoolq does not mind; times in results and `make` do: run NTP")
    return Finding(OK, "clock", f"differs from the file server's by {abs(off):.1f} s (nothing depends on it)")
