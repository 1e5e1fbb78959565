"""The units are valid, and say what the code relies on."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = Path(__file__).parent.parent / "contrib" / "systemd"


@pytest.mark.parametrize("unit", ["spoolq-node.service", "spoolq-node-user.service"])
def test_systemd_finds_nothing_wrong(unit, tmp_path):
    if not shutil.which("systemd-analyze"):
        pytest.skip("LANE SKIPPED: no systemd-analyze here")
    user = ["--user"] if "user" in unit else []
    env = os.environ | {"XDG_RUNTIME_DIR": str(tmp_path)}
    done = subprocess.run(
        ["systemd-analyze", *user, "verify", "--man=no", str(UNITS / unit)], capture_output=True, text=True, env=env
    )
    about = [
        line for line in (done.stdout + done.stderr).splitlines() if "spoolq" in line and "not executable" not in line
    ]
    assert (0, []) == (done.returncode, about)


@pytest.mark.parametrize("unit", ["spoolq-node.service", "spoolq-node-user.service"])
def test_a_restart_leaves_jobs_alive(unit):
    text = (UNITS / unit).read_text()
    for line in ("KillMode=process", "Type=notify", "RestartPreventExitStatus=78", "Delegate=yes"):
        assert line in text.splitlines()
