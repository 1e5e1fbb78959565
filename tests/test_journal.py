"""What was written is read back, whatever happened to the files."""

import json
import os

import pytest

from spoolq import journal
from spoolq.journal import Journal, head

HEAD = head(boot="b1", pid=5, born=6)


def line(op, job_id, **more):
    """A line about a job."""
    return json.dumps({"op": op, "id": job_id, "attempt": 1, **more})


def ended(job_id, user_s=1.5):
    """An `ended` line."""
    return line("ended", job_id, ended={"exit_code": 0, "rusage": {"user_s": user_s, "system_s": 0.5}})


@pytest.fixture
def book(tmp_path):
    """Read everything back."""
    return lambda boot="b1": journal.load(str(tmp_path), boot)


@pytest.fixture
def ours(tmp_path):
    """A runner's file."""
    made = Journal(str(tmp_path), "runner", HEAD)
    yield made
    made.close()


def test_nothing_is_made_before_the_first_line(ours, tmp_path):
    assert not ours.begun
    assert [] == os.listdir(tmp_path)
    ours.write(line("go", 1))
    assert ours.begun
    assert ["runner.1.jsonl"] == os.listdir(tmp_path)


def test_records_of_a_job_are_merged(ours, book):
    ours.write(line("go", 1, t=3.0))
    ours.keep(line("started", 1, pid=7))
    ours.keep(line("change", 1, limit_s=1))
    ours.keep(line("change", 1, stage="paused"))
    ours.write(line("go", 2))
    ours.keep(line("refused", 2))
    assert ours.unsaved
    assert ours.flush()
    assert not ours.unsaved
    (job,) = book().jobs.values()
    assert (3.0, 7, 1, "paused") == (
        job["go"]["t"],
        job["started"]["pid"],
        job["change"]["limit_s"],
        job["change"]["stage"],
    )


def test_forgotten_jobs_are_gone_but_for_their_cpu_time(ours, book):
    ours.write(line("go", 1))
    ours.write(ended(1))
    ours.write('{"op":"forget","jobs":[[1,1],[9,9]]}')
    assert ({}, 2.0) == (book().jobs, book().spent_s)


def test_later_files_follow_earlier_ones(tmp_path, book):
    for number in (9, 10):
        made = Journal(str(tmp_path), "runner", head(boot="b1", pid=1, born=1, spent_s=number), [line("go", number)])
        assert made.flush()
        made.close()
    names = sorted(os.listdir(tmp_path))
    assert ["runner.1.jsonl", "runner.2.jsonl"] == names
    assert ([9, 10], 10.0) == ([key[0] for key in book().jobs], book().spent_s)
    made.drop()
    assert ["runner.1.jsonl"] == os.listdir(tmp_path)


def test_of_another_boot_only_undelivered_ends_count(ours, tmp_path, book):
    ours.write(line("go", 1))
    ours.write(line("go", 2))
    ours.write(ended(2))
    watcher = Journal(str(tmp_path), "watcher", HEAD)
    watcher.write('{"op":"exit","pid":3}')
    watcher.close()
    assert [(2, 1)] == list(book("b2").jobs)
    assert ([], []) == (book("b2").exits, book("b2").watching)
    assert ([3], [(watcher.path, 5, 6)]) == ([e["pid"] for e in book().exits], book().watching)


def test_an_attempt_that_starts_again_after_a_reboot_replaces_its_old_end(tmp_path, book):
    old = Journal(str(tmp_path), "runner", HEAD)
    old.write(ended(1))
    old.close()
    new = Journal(str(tmp_path), "runner", head(boot="b2", pid=1, born=1))
    new.write(line("go", 1))
    new.close()
    assert "ended" not in book("b2").jobs[1, 1]


def test_torn_and_foreign_lines_are_passed_over(ours, book):
    ours.write(line("go", 1))
    with open(ours.path, "a") as file:
        file.write('{"op":"go","id":2,"att\n[]\n\n' + line("new-kind", 3) + "\n" + line("go", 4)[:-1])
    assert [(1, 1)] == list(book().jobs)


class FullDisk:
    """Stands for `os` in the journal: takes `room` bytes, then no more."""

    def __init__(self, room, *, truncates=True):
        self.room, self.truncates = room, truncates

    def __getattr__(self, name):
        return getattr(os, name)

    def write(self, fd, data):
        if self.room is not None and len(data) > self.room:
            if self.room == 0:
                raise OSError(28, "No space left on device")
            data, self.room = data[: self.room], 0
        return os.write(fd, data)

    def ftruncate(self, fd, size):
        if not self.truncates:
            raise OSError(5, "Input/output error")
        os.ftruncate(fd, size)


@pytest.mark.parametrize("truncates", [True, False])
@pytest.mark.parametrize("room", [0, 10, 60])
def test_a_full_disk_loses_nothing_that_was_kept(ours, book, monkeypatch, room, truncates):
    ours.write(line("go", 1))
    full = FullDisk(room, truncates=truncates)
    monkeypatch.setattr(journal, "os", full)
    ours.keep(ended(1))
    assert not ours.flush()
    with pytest.raises(OSError):
        ours.write(line("go", 2))
    assert ours.unsaved
    assert (2, 1) not in book().jobs
    full.room = None
    ours.write(line("go", 3))
    assert not ours.unsaved
    assert {(1, 1), (3, 1)} == set(book().jobs)
    assert "ended" in book().jobs[1, 1]


def test_an_error_of_close_ends_nobody(ours, book, monkeypatch):
    """The file is closed all the same, and every line was written before."""

    class Grumbles:
        def __getattr__(self, name):
            return getattr(os, name)

        def close(self, fd):
            os.close(fd)
            raise OSError(5, "Input/output error")

    ours.write(line("go", 1))
    monkeypatch.setattr(journal, "os", Grumbles())
    ours.close()
    assert not ours.begun
    monkeypatch.undo()
    assert [(1, 1)] == list(book().jobs)


def test_a_file_that_cannot_be_made_is_made_later(tmp_path, monkeypatch):
    made = Journal(str(tmp_path / "missing"), "runner", HEAD, [line("go", 1)])
    made.keep(ended(1))
    assert not made.flush()
    assert made.unsaved
    (tmp_path / "missing").mkdir()
    assert made.flush()
    made.sync()
    made.close()
    assert "ended" in journal.load(str(tmp_path / "missing"), "b1").jobs[1, 1]
