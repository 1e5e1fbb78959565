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
    for line in [line for path in glob.glob(f"{home}/tasks/*.jsonl") for line in (text(path) or "").splitlines()]:
        try:
            task = json.loads(line)
        except ValueError:  # an empty line begins what a new daemon writes; a torn one is no line
            continue
        known = homes.setdefault(f"{os.path.basename(home)}_{task['task']}", {"attempt": 0, "late": []})
        if task["attempt"] >= known["attempt"]:
            stdout = text(f"{home}/out/{task['task'] // 1000}/{task['task']}.stdout")
            known |= {"attempt": task["attempt"], "result": line, "stdout": stdout}
for path in sorted(glob.glob("history/*.jsonl")):
    for line in (text(path) or "").splitlines():
        try:
            record = json.loads(line)
            unit = f"{record['id']}_{record['task']}" if "task" in record else record.get("id")
            history.append((unit, record.get("gen")))
        except ValueError:
            history.append((None, None))
drops = {name: text(f"drop/{name}") for name in os.listdir("drop")}
silly = list(glob.iglob("**/.nfs*", recursive=True))
print(json.dumps({"entries": entries, "homes": homes, "history": history, "drops": drops, "silly": silly}))
