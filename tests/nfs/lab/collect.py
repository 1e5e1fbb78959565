"""On the server: everything that a spool says about its jobs, as one line of JSON."""

import glob
import json
import os
import sys


def text(path):
    """A file, or None."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return None


os.chdir(sys.argv[1])
entries, homes, history = [], {}, []
for top in ("queue", "held", "running", "reaping", "done"):
    for folder, _, names in os.walk(top):
        entries += [(folder, name) for name in names if "~" in name]
for home in glob.glob("jobs/*/*"):
    result = text(f"{home}/result.json")
    late = sorted(os.path.basename(path) for path in glob.glob(f"{home}/*.late.json"))
    homes[os.path.basename(home)] = {"result": result, "stdout": text(f"{home}/stdout"), "late": late}
for path in sorted(glob.glob("history/*.jsonl")):
    for line in (text(path) or "").splitlines():
        try:
            record = json.loads(line)
            history.append((record.get("id"), record.get("gen")))
        except ValueError:
            history.append((None, None))
drops = {name: text(f"drop/{name}") for name in os.listdir("drop")}
silly = list(glob.iglob("**/.nfs*", recursive=True))
print(json.dumps({"entries": entries, "homes": homes, "history": history, "drops": drops, "silly": silly}))
