"""
What a node keeps for itself on a local disk: the journal's directory, its lock, temporary directories.

A home directory is often on NFS, so the place is /var/lib/spoolq for root and /var/tmp/spoolq-UID for
others: local on nearly every machine, and it survives a reboot, which results that could not be
delivered must do. Invariant: only this user can write there, or it is refused.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import stat
import tempfile

from spoolq import host
from spoolq.errors import Misconfigured, TryAgain

VARIABLE = "SPOOLQ_STATE_DIR"
KEPT = ".kept"  # how the name of a scratch directory ends that was set aside: its files could not be brought out


def base() -> str:
    """The directory for all spools of this user on this machine."""
    if chosen := os.environ.get(VARIABLE):
        return chosen
    if system := os.environ.get("STATE_DIRECTORY"):  # set by systemd for StateDirectory=
        return system.partition(":")[0]
    uid = os.getuid()
    return "/var/lib/spoolq" if uid == 0 else f"/var/tmp/spoolq-{uid}"


def state_directory(spool_uuid: str, node: str) -> str:
    """
    The directory of one node of one spool, made if missing.

    The name is short and hashed, since a Unix socket's path may have 107 bytes.

    Raises:
        Misconfigured: it belongs to somebody else, others may write there, or it is on a network.
    """
    top = base()
    try:
        os.makedirs(top, mode=0o700, exist_ok=True)
        facts = os.lstat(top)
    except OSError as error:
        raise Misconfigured(f"{top}: {error.strerror}: set ${VARIABLE} to a local directory of your own") from error
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid() or facts.st_mode & 0o022:
        raise Misconfigured(f"{top}: must be a directory of yours that nobody else may write; or set ${VARIABLE}")
    kind = host.file_system(top)
    if kind.remote:
        raise Misconfigured(f"{top} is on a network file system ({kind.kind}): set ${VARIABLE} to a local directory")
    tag = hashlib.sha256(f"{spool_uuid}/{node}".encode()).hexdigest()[:8]
    path = os.path.join(top, f"{node[:16]}-{tag}")
    os.makedirs(path, mode=0o700, exist_ok=True)
    return path


def lock(directory: str, node: str) -> object:
    """
    One daemon per node and spool on this machine; held as long as the returned object lives.

    Raises:
        TryAgain: another daemon holds it.
    """
    import filelock

    held = filelock.FileLock(os.path.join(directory, "daemon.lock"))
    try:
        held.acquire(timeout=0)
    except filelock.Timeout as error:
        raise TryAgain(f"node {node} already runs on this machine for this spool; choose another --name") from error
    return held


def family_lives(directory: str) -> bool:
    """Whether the processes that watch over this node's jobs live (see `kin`): then jobs may run here."""
    try:
        fd = os.open(os.path.join(directory, "family.lock"), os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


class Scratch:
    """
    Private temporary directories of jobs, one per slot, reused while they stay empty.

    A mkdir and rmdir per job would leave ext4 a freed inode to scan past for each later create
    (measured: 46 us become 616 us after 4,000 deletes), so an empty one is handed to the next job.
    """

    def __init__(self, state_dir: str) -> None:
        """Under $TMPDIR, one top per node and spool; directories of an earlier daemon are found again by `adopt`."""
        self.top = os.path.join(tempfile.gettempdir(), f"spoolq-{os.getuid()}-{os.path.basename(state_dir)}")
        os.makedirs(self.top, mode=0o700, exist_ok=True)
        facts = os.lstat(self.top)
        if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid():
            self.top = tempfile.mkdtemp(prefix="spoolq-")
        os.chmod(self.top, 0o700)
        self._free: list[str] = []
        self._used: set[str] = set()

    def adopt(self, used: set[str]) -> None:
        """At start: what running jobs use stays, and what was set aside for users (`.kept`); the rest is emptied."""
        self._used = set(used)
        for name in os.listdir(self.top):
            path = os.path.join(self.top, name)
            if path not in used and not name.endswith(KEPT):
                shutil.rmtree(path, ignore_errors=True)

    def take(self) -> str:
        """An empty directory of mode 0700."""
        while self._free:
            path = self._free.pop()
            if os.path.isdir(path):
                self._used.add(path)
                return path
        number = 0
        while (path := os.path.join(self.top, str(number))) in self._used:
            number += 1
        shutil.rmtree(path, ignore_errors=True)
        os.makedirs(path, mode=0o700)
        self._used.add(path)
        return path

    def give_back(self, path: str) -> None:
        """After the job's whole tree is gone: emptied if it is not."""
        self._used.discard(path)
        with contextlib.suppress(OSError):
            if os.listdir(path):
                shutil.rmtree(path, ignore_errors=True)
            else:
                self._free.append(path)
