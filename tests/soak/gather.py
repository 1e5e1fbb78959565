"""
The evidence: what lies in the spool and in the truth file, read without the package, as plain values.

Names are taken apart here by a few words of code of our own, so that a mistake of the package about its own
names does not hide itself.
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from tests.soak.check import Line, Output, Place, World
from tests.soak.node import Node, read

BEGINS = b'{"kind"'  # every line of the truth

TOKEN = re.compile(rb"soak-[0-9a-f]+-[0-9]+")
TOPS = ("queue", "held", "running", "reaping", "done")
_CRASH = re.compile(r"Traceback|Fatal Python|Segmentation fault")


def listing(path: str) -> list[str]:
    """The names in a directory; none if it is not there."""
    with contextlib.suppress(OSError):
        return sorted(os.listdir(path))
    return []


def places(root: str) -> list[Place]:
    """All entries."""
    found = []
    for top in TOPS:
        for directory in listing(f"{root}/{top}"):
            for name in listing(f"{root}/{top}/{directory}"):
                numbers, _, rest = name.partition("~")
                parts = numbers.split(".")
                if len(parts) == 4 and all(part.isdigit() for part in parts):
                    _, job, gen, attempt = (int(part) for part in parts)
                    ending = rest.partition("~")[0].split(",")[0] if top == "done" else ""
                    found.append(Place(top, job, gen, attempt, ending))
    return found


def unfinished(root: str) -> dict[str, int]:
    """How many entries are not in done/ yet, and files that are not jobs yet, by directory."""
    counts = dict.fromkeys((*TOPS[:-1], "drop", "admit"), 0)
    for top in TOPS[:-1]:
        counts[top] = sum(len(listing(f"{root}/{top}/{name}")) for name in listing(f"{root}/{top}"))
    counts["drop"] = sum(name.endswith((".sh", ".toml")) for name in listing(f"{root}/drop"))
    counts["admit"] = sum(len(listing(f"{root}/nodes/{node}/admit")) for node in listing(f"{root}/nodes"))
    return counts


def homes(root: str) -> Iterator[tuple[int, str]]:
    """(id, directory) of every home."""
    for group in listing(f"{root}/jobs"):
        for name in listing(f"{root}/jobs/{group}"):
            if name.isdigit():
                yield int(name), f"{root}/jobs/{group}/{name}"


def token_of(home: str) -> str:
    """Which job this is."""
    for name in ("job", "script"):
        if found := TOKEN.search(read(f"{home}/{name}")):
            return found[0].decode()
    return ""


def truth(directory: str) -> list[Line]:
    """What the jobs said; one that is killed while it writes over the end of a page leaves a piece of a line."""
    found = []
    known = set(Line._fields)
    for text in read(f"{directory}/truth.jsonl").splitlines():
        with contextlib.suppress(ValueError):
            row = json.loads(text[text.rfind(BEGINS) :])
            found.append(Line(**{key: value for key, value in row.items() if key in known}))
    return found


def json_lines(data: bytes) -> Iterator[dict[str, Any]]:
    """Records of history; a torn line is none."""
    for text in data.splitlines():
        with contextlib.suppress(ValueError):
            row = json.loads(text)
            if isinstance(row, dict) and isinstance(row.get("id"), int):
                yield row


def history(root: str) -> list[dict[str, Any]]:
    """
    One record for each attempt: of those about renames that took place.

    A line is written before the rename that it is about; one whose rename was lost to another decision is told
    by its `gen`, and counts only if nothing newer is known of that attempt.
    """
    best: dict[tuple[int, int], dict[str, Any]] = {}
    for name in listing(f"{root}/history"):
        for row in json_lines(read(f"{root}/history/{name}")):
            key = (row["id"], row["attempt"])
            if key not in best or (row.get("gen") or 0) >= (best[key].get("gen") or 0):
                best[key] = row
    return list(best.values())


def fill(world: World, root: str, directory: str, nodes: Iterable[str]) -> None:
    """Everything that lies there, into the world."""
    world.places, world.truth, world.history = places(root), truth(directory), history(root)
    sizes = {line.id: line.size for line in world.truth if line.kind == "start"}
    for job, home in homes(root):
        world.tokens[job] = token_of(home)
        data = read(f"{home}/result.json")
        if data:
            with contextlib.suppress(ValueError):
                world.results[job] = json.loads(data)
        data, size = read(f"{home}/stdout"), sizes.get(job, 0)
        world.outputs[job] = Output(len(data), hashlib.sha256(data[len(data) - size :]).hexdigest())
        world.late += [job for name in listing(home) if name.endswith(".late.json")]
    for name in (*listing(f"{root}/rejected"), *(n for node in nodes for n in listing(f"{root}/nodes/{node}/admit"))):
        if found := TOKEN.search(name.encode()):
            world.rejected.add(found[0].decode())


def left_behind(root: str, nodes: Sequence[Node]) -> list[str]:
    """What should not be there after everything has ended and each node was restarted."""
    found = [f"{top}/{name} is an empty segment" for top in ("queue", "held") for name in listing(f"{root}/{top}")]
    for node in nodes:
        found += [f"{node.name}: request {name} was left" for name in listing(f"{root}/nodes/{node.name}/control")]
        found += [
            f"{node.name}: after the end there ran {line}"
            for line in read(f"{node.directory}/left").decode().splitlines()
        ]
    return found


def private(root: str) -> list[str]:
    """Files that were written and did not get their name."""
    walk = os.walk(root)
    return [f"{directory}/{name} was left" for directory, _, names in walk for name in names if name.startswith(".t.")]


def crashes(nodes: Sequence[Node]) -> list[str]:
    """Tracebacks in what nodes said, a few lines of each."""
    found = []
    for node in nodes:
        lines = node.log()
        for number, line in enumerate(lines):
            if _CRASH.search(line):
                found.append(f"{node.name} log line {number + 1}: " + " | ".join(lines[number : number + 30])[-1500:])
    return found


def story(job: int | None, text: str, root: str, directory: str, nodes: Sequence[Node]) -> list[str]:
    """Everything that is known of one job, for a person."""
    if job is None:
        return []
    home, said = f"{root}/jobs/{job // 1000}/{job}", []
    marks = [f'"id": {job},'.encode(), f'"{token_of(home) or job}"'.encode()]
    for name in ("truth", "diary"):
        lines = [line for line in read(f"{directory}/{name}.jsonl").splitlines() if any(mark in line for mark in marks)]
        said += [f"  {name}    {line.decode()}" for line in lines if b'"kind": "alive"' not in line]
    said += [f"  entry    {place}" for place in places(root) if place.id == job]
    said += [f"  home     {name}" for name in listing(home)]
    said += [
        f"  {name} {read(f'{home}/{name}').decode('utf-8', 'replace').strip()}"
        for name in listing(home)
        if "result" in name
    ]
    for name in listing(f"{root}/history"):
        said += [f"  {name} {row}" for row in json_lines(read(f"{root}/history/{name}")) if row["id"] == job]
    mention = re.compile(rf"job=?\s?{job}\b")
    for node in nodes:
        said += [
            f"  {node.name}: {number}: {line}" for number, line in enumerate(node.log(), 1) if mention.search(line)
        ]
    return [f"{text}:", *said]
