"""
What a directory lies on, and what to do about a working directory that only the submitting machine has.

Told from device numbers and the table of mounts, where a network file system and a local one differ; if
nothing can be told, nothing is said. A directory that is staged is copied into the job's home, where every
node sees it; the job runs there and leaves its files there.
"""

import os
import re
import sys
from typing import TYPE_CHECKING

from spoolq.errors import TryAgain, UsageError
from spoolq.job import Job, home_of

if TYPE_CHECKING:
    from spoolq.where import Found

IGNORE, WARN, REFUSE, STAGE = "ignore", "warn", "refuse", "stage"
CWD = "cwd"  # the name of the copy in a job's home

# a fuse file system is taken for remote, but for those that show local disks
REMOTE = re.compile(
    r"nfs4?|cifs|smb3|smbfs|9p|lustre|gpfs|ceph|glusterfs|beegfs|afs|ocfs2|gfs2|pvfs2|coda|autofs"
    r"|fuse\.(?!(?:fuse-overlayfs|lxcfs|squashfuse|snapfuse|ntfs-3g|ext4)$).*"
)


def kinds() -> dict[str, str]:
    """The kind of file system of each mounted device, `major:minor`; proc_pid_mountinfo(5)."""
    found = {}
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                first, _, second = line.partition(" - ")
                found[first.split()[2]] = second.split()[0]
    except (OSError, IndexError):
        return {}
    return found


def here_alone(directory: str, root: str) -> bool:
    """Whether the spool comes over a network, and a directory does not."""
    try:
        own, shared = os.stat(directory).st_dev, os.stat(root).st_dev
    except OSError:
        return False
    if own == shared or os.major(shared):  # a disk of this machine: its nodes are here too, or it is the server
        return False
    known = kinds()
    own_kind, shared_kind = (known.get(f"{os.major(dev)}:{os.minor(dev)}", "") for dev in (own, shared))
    return bool(REMOTE.fullmatch(shared_kind) and own_kind and not REMOTE.fullmatch(own_kind))


def heed(found: "Found", job: Job, *, many: bool = False) -> bool:
    """
    Warn of a directory that nodes do not see, or refuse it, as the site says; True if it is to be staged.

    Args:
        many: whether the job stands for many, which would each get a copy.
    """
    how = found.policy.local_cwd
    if how == IGNORE or not os.path.isdir(job.chdir) or not here_alone(job.chdir, found.spool.root):
        return False
    text = f"{job.chdir} is on a disk of this machine, which the nodes may not see"
    if how == REFUSE or (how == STAGE and many):
        raise UsageError(f"{text}: submit from a directory on the network, or name one (-D)")
    if how == WARN:
        sys.stderr.write(f"spoolq: warning: {text}: the job waits for a node that has such a directory\n")
    return how == STAGE


def carry(found: "Found", job_id: int, job: Job) -> Job:
    """
    Copy a job's directory into its home; the job that runs there.

    Raises:
        UsageError: it is larger than the site allows, or cannot be read.
        TryAgain: the spool does not take it.
    """
    from spoolq import staging

    most = int(found.policy.stage_mb) << 20
    size = staging.size_of(job.chdir, most)
    if size > most:
        raise UsageError(f"{job.chdir}: more than {most >> 20} MB (stage_mb) are not copied: name another one (-D)")
    target = f"{found.spool.root}/{home_of(job_id)}/{CWD}"
    try:
        staging.copy_tree(job.chdir, target)
    except staging.StageError as error:
        staging.discard(target)
        raise TryAgain(f"nothing was submitted: {error}") from error
    sys.stderr.write(f"spoolq: copied {job.chdir} ({size >> 10} kB): the job runs in {target}\n")
    return job._replace(chdir=f"{home_of(job_id)}/{CWD}")


def bring_back(found: "Found", job_id: int, directory: str) -> None:
    """Copy what a job that was waited for has made or changed in its copy back to where it was submitted."""
    copied = f"{found.spool.root}/{home_of(job_id)}/{CWD}"
    if found.policy.local_cwd != STAGE or not os.path.isdir(copied):
        return
    from spoolq import staging

    try:
        staging.copy_tree(copied, directory)
    except staging.StageError as error:
        sys.stderr.write(f"spoolq: warning: not copied back: {error}; all is in {copied}\n")
