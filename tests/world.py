"""A spool and a node whose runner lives in memory, so that daemons can be killed at any line within milliseconds."""

import contextlib
import os
import tempfile

import pytest

from spoolq import config, daemon, deliver, fsops, home, stored
from spoolq.daemon import Daemon, Limits
from spoolq.entry import Entry, parse_name
from spoolq.errors import UsageError
from spoolq.job import Job
from spoolq.spool import Placed, Spool, initialise
from spoolq.wake import Wake
from tests.fake_family import FakeRunner
from tests.faults import Faulty

SPOOL_TEXT = 'format = 1\nuuid = "11111111-2222-3333-4444-555555555555"\nname = "test"\n'
POLICY = SPOOL_TEXT.encode() + b"[limits]\nsettle_s = 0\nmin_free_mb = 0\n"


def open_now() -> set[str]:
    """The numbers of this process's open files, without that of the listing itself."""
    return {fd for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")}


class World:
    """A spool, a runner that outlives daemons, and what a submitter was told."""

    def __init__(self, path: str, monkeypatch: pytest.MonkeyPatch, *, ends: bool = True) -> None:
        self.open_before = open_now()
        self.root, self.state = f"{path}/spool", f"{path}/state"
        self.chdir = path
        monkeypatch.setattr(fsops, "os", Faulty())  # deaths of processes only: the page cache is durable enough
        initialise(self.root, SPOOL_TEXT)
        self.runner = FakeRunner(ends=ends)
        self.acknowledged: list[int] = []
        monkeypatch.setattr(daemon, "Family", self.runner)
        monkeypatch.setattr(tempfile, "tempdir", path)  # it remembers what $TMPDIR said first
        os.makedirs(self.state)
        self.spool = Spool(self.root)

    def submit(self, count: int = 1, **facts: object) -> int:
        """As `spoolq sub` does: the id is told only after the commit. Returns the last id."""
        spool, job_id = Spool(self.root), 0
        for _ in range(count):
            job = Job(**{"command": ("true",), "name": "t", "chdir": self.chdir, **facts})
            job_id = home.allocate(self.root)
            home.fill(self.root, job_id, stored.format_job(job), env=b"PATH=/bin\0")
            spool.committed([spool.submit(job_id, job.entry(job_id))])
            self.acknowledged.append(job_id)
        return job_id

    def daemon(self, name: str = "n1", *, cpus: int = 2, state: str = "", idle_exit_s: float | None = 0.0) -> Daemon:
        """A daemon that does nothing yet."""
        return Daemon(
            Spool(self.root),
            config.parse_policy(POLICY, "spool.toml"),
            name,
            capacity={"cpus": cpus * 1000, "mem": 4_000_000},
            measured=False,
            state_dir=state or self.state,
            limits=Limits(idle_exit_s=idle_exit_s),
            wake=Wake(),
        )

    def up(self, name: str = "n1", **kwargs: object) -> Daemon:
        """A daemon that has said hello and takes its turns when it is told to: `node.step()`."""
        node = self.daemon(name, **kwargs)
        node.begin()
        return node

    def serve(self) -> None:
        """A daemon until nothing is left to do."""
        self.daemon().run()

    def reboot(self) -> None:
        """The machine starts again: nothing runs, and what was on record of this boot is void."""
        self.runner.jobs.clear()
        for name in ("boot", "claims"):
            with open(f"{self.state}/{name}", "w", encoding="ascii") as file:
                file.write("an earlier boot\n")

    def turn(self, node: Daemon, *parts: str) -> None:
        """One turn in which everything periodic is due."""
        for part in parts or ("queue", "control", "drop", "beat", "deliver"):
            node.set_due(part, 0.0)
        node.turn()

    def close(self) -> None:
        """Close what dead daemons had open."""
        for fd in open_now() - self.open_before:
            with contextlib.suppress(OSError):
                os.close(int(fd))

    # --- looking

    def placed(self) -> list[Placed]:
        """Every entry in the spool."""
        found = []
        for top in ("queue", "held", "running", "reaping", "done"):
            for directory, _, names in os.walk(f"{self.root}/{top}"):
                place = os.path.relpath(directory, self.root)
                for name in names:
                    with contextlib.suppress(UsageError):
                        entry = parse_name(name)
                        found += [Placed(place, entry)] if entry else []
        return found

    def entries(self) -> list[tuple[str, int]]:
        """(directory, id) of every entry in the spool."""
        return [(at.top, at.entry.id) for at in self.placed()]

    def at(self, job_id: int) -> Placed:
        """Where the one entry of a job is."""
        (found,) = [at for at in self.placed() if at.entry.id == job_id]
        return found

    def where(self, job_id: int) -> tuple[str, str | None, int]:
        """(directory, ending, attempt) of a job."""
        at = self.at(job_id)
        return at.top, at.entry.ending, at.entry.attempt

    def requests(self, node: str = "n1") -> list[str]:
        """Names of the requests that wait for a node."""
        return sorted(os.listdir(f"{self.root}/nodes/{node}/control"))

    def check(self, *, starts: int = 1) -> None:
        """The invariants, after everything has come to rest."""
        entries = self.entries()
        assert len({job_id for _, job_id in entries}) == len(entries), f"two entries of one job: {entries}"
        assert {"done"} >= {top for top, _ in entries}, entries
        assert set(self.acknowledged) <= {job_id for _, job_id in entries}, "an acknowledged job is lost"
        assert len(set(self.runner.starts)) == len(self.runner.starts), "an attempt was started twice"
        for _, job_id in entries:
            assert sum(key[0] == job_id for key in self.runner.starts) <= starts, "started too often"
            record = deliver.read_ending(Spool(self.root), job_id)
            assert record is not None, f"no result of {job_id}"
            assert record["id"] == job_id
        for directory, _, names in os.walk(self.root):
            for name in names:
                if name == "result.json":
                    with open(os.path.join(directory, name), "rb") as file:
                        assert file.read().endswith(b"}\n"), "a torn result"

    def entry(self, job_id: int) -> Entry:
        """The entry of a job."""
        return self.at(job_id).entry
