"""Fixtures that many tests share."""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from spoolq import daemon
from spoolq import spool as spool_room
from tests.cluster import Cluster
from tests.hang import Hang
from tests.world import SPOOL_TEXT, World

# how long an example takes says something about the machine, nothing about the code; and what fails has been changed,
# so the examples are the same each time. SPOOLQ_EXPLORE=20 takes others, 20 times as many
EXPLORE = int(os.environ.get("SPOOLQ_EXPLORE", "0"))
PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("spoolq", PATIENT, derandomize=True, database=None)
settings.register_profile("explore", PATIENT, max_examples=100 * EXPLORE or 1)
settings.load_profile("explore" if EXPLORE else "spoolq")


# files that only a test needs wait for no disk; TMPDIR=/tmp python -m pytest has them on one
MEMORY, ROOM = "/dev/shm", 2 << 30
_made = ""
if "TMPDIR" not in os.environ and os.path.isdir(MEMORY) and shutil.disk_usage(MEMORY).free >= ROOM:
    _made = os.environ["TMPDIR"] = tempfile.mkdtemp(prefix="sq.", dir=MEMORY)  # workers of xdist find it set
if worker := os.environ.get("PYTEST_XDIST_WORKER"):  # nodes of one name have one scratch directory in TMPDIR
    os.environ["TMPDIR"] = f"{tempfile.gettempdir()}/{worker}"
    os.makedirs(os.environ["TMPDIR"], exist_ok=True)
tempfile.tempdir = None


def pytest_sessionfinish(exitstatus: int) -> None:
    """What was made in memory goes, but for what shows why a test failed."""
    if _made and exitstatus == 0:
        shutil.rmtree(_made, ignore_errors=True)


# a shell that has this run in the background, or nohup, ignores these, and so would every command that is started here
for _number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.default_int_handler if _number == signal.SIGINT else signal.SIG_DFL)


@pytest.fixture
def root(tmp_path):
    """A new spool's directory."""
    path = str(tmp_path / "spool")
    spool_room.initialise(path, SPOOL_TEXT)
    return path


@pytest.fixture
def spool(root):
    """The same, opened."""
    return spool_room.Spool(root)


@pytest.fixture
def short_dir() -> Iterator[str]:
    """A directory with a short path, for Unix sockets (107 bytes)."""
    path = tempfile.mkdtemp(prefix="sq-")
    os.chmod(path, 0o700)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def cluster(short_dir) -> Iterator[Cluster]:
    """A spool with real nodes; nothing of it runs on afterwards."""
    made = Cluster(short_dir)
    yield made
    made.close()


@pytest.fixture
def hung(cluster) -> Iterator[Hang]:
    """The same, on a file system that can be made to hang."""
    made = Hang(cluster.base)
    cluster.env |= made.env | {"SPOOLQ_PATIENCE": "1"}
    yield made
    made.end()


@pytest.fixture
def world(tmp_path, monkeypatch) -> Iterator[World]:
    """A spool and one daemon in this process, whose jobs run until they are told to end."""
    monkeypatch.setattr(daemon.Daemon, "pause", lambda self, seconds: None)
    monkeypatch.setattr(daemon, "RETRY_S", (0.0, 0.0))
    made = World(str(tmp_path), monkeypatch, ends=False)
    yield made
    made.close()
