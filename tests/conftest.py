"""Fixtures that many tests share."""

import os
import shutil
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import settings

from spoolq import spool as spool_room
from tests.cluster import Cluster

# how long an example takes says something about the machine, nothing about the code
settings.register_profile("spoolq", deadline=None)
settings.load_profile("spoolq")

SPOOL_TEXT = 'format = 1\nuuid = "11111111-2222-3333-4444-555555555555"\nname = "test"\n'


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
