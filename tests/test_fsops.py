"""What became of a rename is found out, never guessed; what is published is whole or absent."""

import errno
import os

import pytest

from spoolq import fsops
from spoolq.fsops import Answer
from tests.faults import Died, faulty


@pytest.fixture
def two(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "x").write_text("job")
    return str(tmp_path / "a" / "x"), str(tmp_path / "b" / "y")


def test_a_rename_that_works_is_won(two):
    assert Answer.WON is fsops.move(*two)


@pytest.mark.parametrize("code", [errno.ENOENT, errno.EIO, errno.ETIMEDOUT, errno.EEXIST, errno.ESTALE])
def test_a_rename_whose_reply_was_lost_is_won(two, code):
    with faulty(0, after=True, error=code, only="rename"):
        assert Answer.WON is fsops.move(*two)


@pytest.mark.parametrize("code", [errno.ENOENT, errno.EIO, errno.ESTALE])
def test_a_rename_that_did_not_happen_is_repeated(two, code):
    with faulty(0, error=code, only="rename"):
        assert Answer.WON is fsops.move(*two)
    assert os.path.exists(two[1])


def test_a_source_that_somebody_else_took_is_lost(two):
    os.rename(two[0], two[0] + ".theirs")

    assert Answer.LOST is fsops.move(*two)


def test_what_cannot_be_looked_at_is_unknown(two):
    with faulty(0, after=True, error=errno.EIO, only="rename") as fake:

        class Blind:
            def __getattr__(self, name):
                if name == "listdir":
                    raise OSError(errno.EIO, "no answer")
                return getattr(fake, name)

        fsops.os = Blind()
        assert Answer.UNKNOWN is fsops.move(*two)


def test_a_refused_rename_says_so_and_leaves_the_source(two):
    with faulty(0, error=errno.EACCES, only="rename"), pytest.raises(PermissionError):
        fsops.move(*two)
    assert os.path.exists(two[0])


def test_a_target_directory_that_was_swept_is_made_again(two):
    os.rmdir(os.path.dirname(two[1]))

    assert Answer.WON is fsops.move(*two)


@pytest.mark.parametrize("after", [False, True])
def test_publish_is_all_or_nothing_at_every_call(tmp_path, after):
    path = str(tmp_path / "result.json")
    with faulty() as fake:
        fsops.publish(path, b"old")
    for number in range(fake.count):
        fsops.publish(path, b"old")
        with faulty(number, after=after), pytest.raises(Died):
            fsops.publish(path, b"new!")
        with open(path, "rb") as file:
            assert file.read() in (b"old", b"new!")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("call", ["open", "write", "fsync"])
def test_a_full_disk_leaves_no_half_file(tmp_path, code, call):
    path = str(tmp_path / "x")
    with faulty(0, error=code, only=call), pytest.raises(OSError, match=os.strerror(code)):
        fsops.create(path, b"data")
    assert [] == os.listdir(tmp_path)


@pytest.mark.parametrize("kind", ["symlink", "fifo", "directory"])
def test_only_regular_files_are_read(tmp_path, kind):
    path = str(tmp_path / "x")
    if kind == "symlink":
        os.symlink("/etc/passwd", path)
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        os.mkdir(path)
    with pytest.raises(OSError):
        fsops.read(path)


def test_a_file_that_is_too_long_is_refused(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"x" * 11)
    with pytest.raises(OSError) as caught:
        fsops.read(str(path), 10)
    assert errno.EFBIG == caught.value.errno


def test_a_large_limit_costs_no_memory_and_long_files_come_whole(tmp_path, monkeypatch):
    # real NFS, nodes with 256 MB: `hist` ended in MemoryError, since os.read allocates what it is asked for
    path = tmp_path / "x"
    data = os.urandom(3 << 20) + b"end"
    path.write_bytes(data)
    asked = []

    def read(fd, count):
        asked.append(count)
        return real(fd, count)

    real = os.read
    monkeypatch.setattr(fsops.os, "read", read)
    assert data == fsops.read(str(path), 1 << 28)
    assert max(asked) <= 1 << 20


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO])
def test_a_file_that_was_read_is_not_lost_to_an_error_of_its_close(tmp_path, code):
    # crash rig: EACCES here had a dropped file rejected for good as one that may not be read
    (tmp_path / "x").write_bytes(b"whole")
    with faulty(0, after=True, error=code, only="close"):
        assert b"whole" == fsops.read(str(tmp_path / "x"))


def test_absent_is_none_and_empty(tmp_path):
    assert fsops.read(str(tmp_path / "no")) is None
    assert [] == fsops.names(str(tmp_path / "no"))


def test_dot_files_are_not_seen(tmp_path):
    (tmp_path / ".nfs0001").touch()
    (tmp_path / "x").touch()

    assert ["x"] == fsops.names(str(tmp_path))


def test_a_drop_whose_reply_was_lost_is_a_drop(tmp_path):
    path = tmp_path / "x"
    path.touch()
    with faulty(0, after=True, error=errno.ENOENT, only="unlink"):
        fsops.drop(str(path))
    assert not path.exists()
