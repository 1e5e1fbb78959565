"""The example of docs/plugins.md, installed as it stands there, and plugins that fail."""

import os
import re
import tomllib
from pathlib import Path

from tests.cluster import Cluster, read

DOC = (Path(__file__).parent.parent / "docs" / "plugins.md").read_text()


def block(language: str, holds: str) -> str:
    """The code block of a language in the page that holds a text."""
    found = [text for text in re.findall(rf"```{language}\n(.*?)```", DOC, re.DOTALL) if holds in text]
    assert 1 == len(found)
    return str(found[0])


def install(cluster: Cluster, module: str, code: str, groups: dict[str, dict[str, str]]) -> None:
    """What pip would leave: a module and its metadata, in a directory on the path."""
    site = f"{cluster.base}/site"
    os.makedirs(f"{site}/{module}-1.0.dist-info", exist_ok=True)
    with open(f"{site}/{module}.py", "w") as file:
        file.write(code)
    with open(f"{site}/{module}-1.0.dist-info/METADATA", "w") as file:
        file.write(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    with open(f"{site}/{module}-1.0.dist-info/entry_points.txt", "w") as file:
        file.writelines(
            f"[{group}]\n" + "".join(f"{name} = {what}\n" for name, what in entries.items()) + "\n"
            for group, entries in groups.items()
        )
    if site not in cluster.env.get("PYTHONPATH", ""):
        cluster.env["PYTHONPATH"] = f"{site}:{cluster.env.get('PYTHONPATH', '')}"


def drop(cluster: Cluster, name: str, text: str) -> None:
    """A dropped file, whole."""
    with open(f"{cluster.root}/drop/{name}.tmp", "w") as file:
        file.write(f"{text}\n#SPOOLQ end\n")
    os.rename(f"{cluster.root}/drop/{name}.tmp", f"{cluster.root}/drop/{name}")


def test_the_example_of_the_page(cluster: Cluster):
    groups = tomllib.loads(block("toml", "[project]"))["project"]["entry-points"]
    install(cluster, "example_site", block("python", "def probe"), groups)
    cluster.policy(grace_s=1, settle_s=0, min_free_mb=1, profile_s=30)
    cluster.node()
    capacity = cluster.facts("n1")["capacity"]
    assert (1000, 2500) == (capacity["tape"], capacity["licence"])

    job = cluster.sub("-g", "tape:1", "-J", "plain", "sh", "-c", "exit 3", "align")  # plugins = false: not asked
    assert (1000, "FAILED") == tuple(cluster.result(job)[key] for key in ("mem_mb", "state"))
    cluster.until(lambda: read(f"{cluster.base}/failures"), "the hook wrote its line")
    assert f"{job} plain FAILED on n1\n" == read(f"{cluster.base}/failures")

    drop(cluster, "no.sh", "#!/bin/sh\n#SPOOLQ -J forbidden")
    drop(cluster, "yes.toml", 'command = ["align"]')
    assert "refused: not at this site" in cluster.until(lambda: read(f"{cluster.root}/drop/no.sh.why"), "a reason")
    dropped = cluster.until(lambda: read(f"{cluster.root}/drop/yes.toml.id"), "an id").strip()
    assert "policy     mem 2G" in cluster.ok("show", dropped)

    with open(f"{cluster.root}/spool.toml", "a") as file:
        file.write("\n[policy]\nplugins = true\n")
    done = cluster.spoolq("sub", "-H", "align")
    assert "spoolq: mem 2G instead of 1000M" in done.stderr
    assert "spoolq: time 7d instead of unlimited" in done.stderr
    assert "example_site.py:" in done.stderr
    assert 2 == cluster.spoolq("sub", "-J", "forbidden", "true").returncode


BROKEN = """
def probe():
    raise RuntimeError("no drives")


def good():
    print("a probe may print")
    return {"io": 3}


def wrong():
    return {"CPUs": 3}


def hook(happened):
    if happened["event"] == "end":
        raise RuntimeError("cannot announce")
"""


def test_plugins_that_fail_are_named_and_stop_nothing(cluster: Cluster):
    groups = {
        "spoolq.probe": {
            "bad": "broken:probe",
            "good": "broken:good",
            "missing": "no_module:x",
            "wrong": "broken:wrong",
        },
        "spoolq.hook": {"bad": "broken:hook"},
    }
    install(cluster, "broken", BROKEN, groups)
    cluster.node()
    assert 3000 == cluster.facts("n1")["capacity"]["io"]
    log = cluster.log()
    assert "plugin bad of spoolq.probe: RuntimeError: no drives" in log
    assert "plugin missing of spoolq.probe: ModuleNotFoundError" in log
    assert "plugin wrong of spoolq.probe: 'CPUs' is no name for a resource" in log
    assert "COMPLETED" == cluster.result(cluster.sub("-g", "io:2", "true"))["state"]
    state = f"{cluster.base}/state"
    path = f"{state}/{os.listdir(state)[0]}/hooks.log"
    cluster.until(lambda: "plugin bad of spoolq.hook: RuntimeError: cannot announce" in read(path), "the log says so")
