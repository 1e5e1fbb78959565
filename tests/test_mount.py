"""A working directory that nodes do not see: told from what it lies on, and warned of, refused or copied."""

import os

import pytest

from spoolq import __main__ as program
from spoolq import mount
from tests.cluster import Cluster

TABLE = {"8:1": "ext4", "0:50": "nfs4", "0:51": "nfs4", "0:60": "tmpfs", "0:70": "fuse.sshfs"}
NFS, OTHER_NFS, DISK, TMPFS, FUSE, UNKNOWN = (
    os.makedev(*n) for n in ((0, 50), (0, 51), (8, 1), (0, 60), (0, 70), (0, 99))
)


@pytest.mark.parametrize(
    ("directory", "spool", "alone"),
    [
        (NFS, NFS, False), (OTHER_NFS, NFS, False), (FUSE, NFS, False), (DISK, NFS, True), (TMPFS, NFS, True),
        (DISK, FUSE, True), (DISK, DISK, False), (TMPFS, DISK, False), (UNKNOWN, NFS, False), (DISK, UNKNOWN, False),
    ],
)  # fmt: skip
def test_what_only_this_machine_has(monkeypatch, directory, spool, alone):
    devices = {"/dir": directory, "/spool": spool}
    monkeypatch.setattr(mount, "kinds", lambda: TABLE)
    real = os.stat

    def stat(path, **_):
        return os.stat_result((0, 0, devices[path], 0, 0, 0, 0, 0, 0, 0)) if path in devices else real(path)

    monkeypatch.setattr(mount.os, "stat", stat)
    assert alone == mount.here_alone("/dir", "/spool")


def test_the_table_of_mounts_of_this_machine():
    assert "proc" in mount.kinds().values()


@pytest.fixture
def alone(monkeypatch, cluster):
    """A user on a machine whose disk no node sees, as far as `sub` can tell; the nodes are real."""
    monkeypatch.setattr(mount, "here_alone", lambda *_: True)
    for name in ("SPOOLQ_DIR", "HOME", "SPOOLQ_STATE_DIR"):
        monkeypatch.setenv(name, cluster.env[name])
    os.mkdir(f"{cluster.base}/work")
    monkeypatch.chdir(f"{cluster.base}/work")
    with open("in", "w") as file:
        file.write("input\n")
    return cluster


def site(cluster: Cluster, how: str, stage_mb: float = 100) -> None:
    cluster.policy(grace_s=1, settle_s=0, min_free_mb=1, stage_mb=stage_mb)
    with open(f"{cluster.root}/spool.toml", "a") as file:
        file.write(f'[policy]\nlocal_cwd = "{how}"\n')


@pytest.mark.parametrize(("how", "code", "said"), [("ignore", 0, ""), ("warn", 0, "is on a disk of this machine"), ("refuse", 2, "submit from a directory on the network")])  # fmt: skip
def test_it_is_as_the_site_says(alone, capsys, how, code, said):
    site(alone, how)
    assert code == program.main(["sub", "true"])
    err = capsys.readouterr().err
    assert said in err
    assert bool(said) == ("disk of this machine" in err)


def test_a_directory_is_copied_to_the_spool_and_back(alone, capsys):
    site(alone, "stage")
    alone.node()
    code = program.main(["sub", "-W", "-o", "o", "sh", "-c", "pwd; cat in >out; echo changed >>in"])
    home = os.path.realpath(alone.home(1, "cwd"))
    assert (0, f"the job runs in {alone.home(1, 'cwd')}") == (
        code,
        capsys.readouterr().err.partition(": ")[2].partition(": ")[2].strip(),
    )
    assert [f"{home}\n", "input\n", "input\nchanged\n"] == [read(name) for name in ("o", "out", "in")]
    assert 'chdir = "jobs/0/1/cwd"' in read(alone.home(1, "job"))
    assert alone.home(1, "cwd") in alone.ok("show", "1")
    assert 0 == program.main(["run", "sh", "-c", "cat out >again"])
    assert "input\n" == read("again")


def test_one_that_is_too_large_is_refused_with_figures(alone, capsys):
    site(alone, "stage", 1)
    with open("large", "wb") as file:
        file.truncate(2 << 20)
    assert 2 == program.main(["sub", "true"])
    assert "more than 1 MB (stage_mb) are not copied" in capsys.readouterr().err
    assert 2 == program.main(["sub", "--each-line", "in"])


def read(path: str) -> str:
    with open(path) as file:
        return file.read()
