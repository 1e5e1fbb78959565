"""
The short form of `python -m tests.nfs` as tests: `python -m pytest -m nfs tests/nfs`.

Skipped, with the reason, where `lab` cannot run. `sh tests/nfs/lab/setup.sh` gets what it needs.
"""

import pytest

from tests.nfs.__main__ import SHORT, SHORT_LEASE_S, run
from tests.nfs.lab import Lab, Unfit, missing

pytestmark = pytest.mark.nfs


@pytest.fixture(scope="module")
def labs():
    if reason := missing():
        pytest.skip(f"real NFS was NOT tested: {reason}")
    made: dict[str, Lab] = {}

    def lab(vers: str) -> Lab:
        # two at a time are too much for a small machine
        if vers not in made:
            for other in list(made):
                made.pop(other).close()
            made[vers] = Lab(vers, lease_s=SHORT_LEASE_S)
        return made[vers]

    yield lab
    for one in made.values():
        one.close()


@pytest.mark.parametrize(("vers", "name", "jobs"), SHORT)
def test_no_job_is_lost_or_runs_twice_and_each_result_is_its_own(labs, vers, name, jobs):
    try:
        row = run(labs(vers), name, jobs)
    except Unfit as reason:
        pytest.skip(f"real NFS was NOT tested: {reason}")
    assert row.good, row.wrong()
    assert row.jobs >= jobs
