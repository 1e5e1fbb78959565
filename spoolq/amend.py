"""
The command `edit`: other resources, limits, priority or label for a job that waits or runs.

All changes to a waiting job are one rename, since everything that they touch is in the entry's name.
A running job's time and memory are changed by its node. The keys are the long option names of `sub`,
read by the same table (`options`), so `mem=3G` means the same in both places.
Invariant: the job file stays as submitted; the entry's name is what counts.
"""

import os
import sys
import time
from typing import Any

from spoolq import arguments, begin, options, resources, schedule, steer
from spoolq.arguments import Command
from spoolq.entry import RERUN_WORDS, RERUNS, Entry, format_name, label_of, rank_of
from spoolq.errors import JobFileError, UsageError
from spoolq.fsops import Answer
from spoolq.resources import CPUS, MEM, UNIT, Amounts
from spoolq.spool import Placed, Spool
from spoolq.steer import Outcome

KEYS = ("cpus", "mem", "time", "priority", "nice", "name", "rerun", "begin", "gpus", "gres", "depend")
RUNNING_KEYS = ("time", "mem")
# what else people type
_ALSO = {"memory": "mem", "label": "name", "job-name": "name", "time-limit": "time", "cpus-per-task": "cpus"}
_NONE = ("", "0", "none")

EDIT = Command(
    "edit",
    "JOB.. [KEY=VALUE..]",
    "Change jobs: waiting ones in everything below, running ones in time and mem.",
    steer.KILL.flags[1:],
    "job",
    f"Keys: {', '.join(KEYS)}; any unambiguous beginning of one will do.\n"
    "Examples: edit 42 mem=3G time=2h; edit 40-45 prio=10 begin=now+2h; edit 42 gres=license:2; edit 42 gpus=0;\n"
    "          edit 42 depend=none\n"
    "Without KEY=VALUE on a terminal one job is opened in $VISUAL or $EDITOR.",
)
COMMANDS = {"edit": EDIT}


def edit(argv: list[str]) -> int:
    """`edit JOB.. [KEY=VALUE..]`."""
    given = arguments.parse(EDIT, argv)
    changes = dict(_split(word) for word in given.words if "=" in word)
    given.words[:] = [word for word in given.words if "=" not in word]
    if not changes and not given.has("help"):
        if len(given.words) != 1 or not (sys.stdin.isatty() and sys.stdout.isatty()):
            raise UsageError(f"edit: what is to change? KEY=VALUE with {', '.join(KEYS)} (example: edit 42 mem=3G)")
        changes = by_editor(arguments.open_spool(given), given.words[0])
        if not changes:
            print("nothing changed")
            return 0
    fields = parse(changes) if changes else {}
    known: dict[str, Amounts] = {}

    def step(spool: Spool, placed: Placed) -> Outcome | None:
        if not known:
            known.update(capacities(spool))
        return edit_step(spool, placed, changes, fields, known)

    return steer.act_on(EDIT, given, step, ended=False)


def capacities(spool: Spool) -> dict[str, Amounts]:
    """What each node ever seen has, as it says."""
    said = {name: spool.read_node(name).get("capacity") for name in spool.nodes()}
    return {name: amounts for name, amounts in said.items() if isinstance(amounts, dict)}


def _split(word: str) -> tuple[str, str]:
    name, _, value = word.partition("=")
    return find_key(name), value


def find_key(name: str) -> str:
    """The key of a name or of an unambiguous beginning of one."""
    text = name.strip().lower().replace("_", "-")
    if text in KEYS or text in _ALSO:
        return _ALSO.get(text, text)
    found = sorted({_ALSO.get(key, key) for key in (*KEYS, *_ALSO) if text and key.startswith(text)})
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"edit: {name!r} is ambiguous: {', '.join(found)}")
    raise UsageError(f"edit: {name[:40]!r} cannot be changed (keys: {', '.join(KEYS)})")


def parse(changes: dict[str, str]) -> dict[str, Any]:
    """
    Changes of an entry: `wants` (0 means none of it any more), `limit_s`, `rank`, `label`, `rerun`, `begin` (epoch s).

    Raises:
        UsageError: a value is wrong.
    """
    fields: dict[str, Any] = {}
    wants: dict[str, int] = {}
    for key, value in changes.items():
        if key == "gpus" and value.strip() in _NONE:
            wants[options.GPU] = 0
        elif key == "gres":
            wants |= _gres(value)
        elif key == "depend":
            if value.strip() not in _NONE:
                raise UsageError(f"edit: depend: only `none` is possible, to let a job go (not {value[:60]!r})")
            fields["held"] = ""
        else:
            found = options.BY_NAME[key].parse(value)
            wants |= found.pop("wants", {})
            fields |= found
    entry: dict[str, Any] = {"wants": wants} if wants else {}
    if "limit_s" in fields:
        entry["limit_s"] = fields["limit_s"]
    if "priority" in fields:
        entry["rank"] = rank_of(fields["priority"])
    if "name" in fields:
        entry["label"] = label_of(fields["name"])
    if "begin" in fields:
        entry["begin"] = begin.moment(fields["begin"], time.time())
    if "held" in fields:
        entry["held"] = ""  # let go of its dependencies
    if "rerun" in fields:
        entry["rerun"] = RERUNS[fields["rerun"]]
    return entry


def _gres(text: str) -> dict[str, int]:
    # `license:0` takes one away, which `sub` has no use for
    wants: dict[str, int] = {}
    for part in text.split(","):
        name, _, number = part.strip().replace("=", ":", 1).partition(":")
        if number.strip() == "0" and name not in (CPUS, MEM):
            wants[name] = 0
        else:
            found = options.BY_NAME["gres"].parse(part)
            if "typed" in found:
                raise UsageError(f"gres: {part.strip()!r}: the type stays as it was submitted (example: gres=gpu:2)")
            wants |= found["wants"]
    return wants


def changed(entry: Entry, fields: dict[str, Any]) -> dict[str, Any]:
    """The fields that really change an entry, with its other amounts kept."""
    merged = dict(fields)
    if "wants" in merged:
        wants = {**entry.wants, **merged["wants"]}
        merged["wants"] = {name: amount for name, amount in wants.items() if amount}
    if "held" in merged:
        merged["held"] = begin.next_hold(entry, time.time())
    if "begin" in merged:
        when = merged.pop("begin")
        ahead = when > time.time()
        merged["other"] = begin.beginning(entry, when if ahead else None)
        if entry.held in ("", begin.HELD):  # else somebody holds it, and a release heeds the time
            merged["held"] = begin.HELD if ahead else ""
    return {name: value for name, value in merged.items() if getattr(entry, name) != value}


def edit_step(
    spool: Spool, placed: Placed, changes: dict[str, str], fields: dict[str, Any], known: dict[str, Amounts]
) -> Outcome | None:
    """
    Change one job where it is.

    Args:
        known: node -> capacity; what none of them could ever run is refused, as by `sub`.
    """
    entry = placed.entry
    if placed.top == "done":
        return steer.over(placed)
    if placed.top == "reaping":
        return steer.nothing(placed, f"node {placed.node} is just deciding about it, try again", failed=True)
    if "held" in fields and entry.held != "HD":
        return steer.nothing(placed, "does not wait for other jobs", failed=True)
    new = changed(entry, fields)
    if not new:
        return Outcome(entry.id, "unchanged", f"job {entry.id}: is so already")
    if placed.top == "running":
        return _edit_running(spool, placed, changes, new)
    if "wants" in new and (impossible := schedule.impossible(new["wants"], known)):
        return steer.nothing(placed, f"no node could ever run it so: {impossible}", failed=True)
    try:
        format_name(entry.next(**new))
    except ValueError:
        return steer.nothing(
            placed, "too much for one entry's name: ask for fewer kinds, or a shorter name", failed=True
        )
    answer, target = spool.edit(placed, **new)
    if steer.settled(spool, answer, placed, target) is Answer.LOST:
        return None
    spool.committed([target])
    return Outcome(entry.id, "changed", f"job {entry.id}: {describe(target.entry)}")


def _edit_running(spool: Spool, placed: Placed, changes: dict[str, str], new: dict[str, Any]) -> Outcome:
    fixed = [key for key in changes if key not in RUNNING_KEYS]
    if fixed:
        return steer.nothing(placed, f"runs: {', '.join(fixed)} cannot change any more (time and mem can)", failed=True)
    asked: dict[str, Any] = {}
    if "limit_s" in new:
        asked["limit_s"] = new["limit_s"]
    if "wants" in new:
        asked["mem_mb"] = -(-new["wants"][MEM] // UNIT)
    return steer.request(spool, placed, "edit", "requested", f"{placed.node} is asked to change its limits", **asked)


def describe(entry: Entry) -> str:
    """What an entry asks for, for people."""
    parts = [resources.show(entry.wants), f"time {resources.show_seconds(entry.limit_s)}", f"priority {entry.priority}"]
    if (when := begin.begins(entry)) is not None:
        parts.append(f"begins {begin.words(when, time.time())}")
    return ", ".join([*parts, f"rerun {RERUN_WORDS[entry.rerun]}", f"name {entry.label or '-'}"])


# --- in an editor


def form(placed: Placed) -> dict[str, str]:
    """Key -> value of one job as `edit` would read it."""
    entry = placed.entry
    rest = [name for name in sorted(entry.wants) if name not in (CPUS, MEM)]
    values = {
        "cpus": resources.show_amount(entry.wants.get(CPUS, UNIT)),
        "mem": resources.show_amount(entry.wants.get(MEM, 0)) + "M",
        "time": "unlimited" if entry.limit_s is None else f"{entry.limit_s}s",
    }
    if placed.top == "running":
        return {key: values[key] for key in RUNNING_KEYS}
    values |= {"priority": str(entry.priority), "name": entry.label, "rerun": RERUN_WORDS[entry.rerun]}
    values["gres"] = ",".join(f"{name}:{resources.show_amount(entry.wants[name])}" for name in rest)
    return values


def form_text(placed: Placed) -> str:
    """The TOML to edit."""
    from spoolq.toml import quote

    lines = [f"# job {placed.entry.id}, {placed.state.name}: change what you want, save and leave the editor."]
    lines += ["# An empty file changes nothing. Units as everywhere: 500M, 3G, 90s, 2h30m, 1-12.", ""]
    return "\n".join([*lines, *(f"{key} = {quote(value)}" for key, value in form(placed).items())]) + "\n"


def read_form(placed: Placed, data: bytes) -> dict[str, str]:
    """The changes in an edited TOML; UsageError or JobFileError with the line for what is wrong."""
    from spoolq.toml import read_toml

    table, _ = read_toml(data, f"job {placed.entry.id}")
    before, changes = form(placed), {}
    for name, value in table.items():
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise UsageError(f"edit: {name}: must be a number or a string")
        key = find_key(name)
        if str(value) != before.get(key):
            changes[key] = str(value)
    if "gres" in changes:
        # what stood there and does not any more is given up
        kept = {part.strip().replace("=", ":", 1).partition(":")[0] for part in changes["gres"].split(",")}
        gone = [part.partition(":")[0] for part in before.get("gres", "").split(",") if part]
        new = [part for part in changes["gres"].split(",") if part.strip() and part.strip() != "none"]
        changes["gres"] = ",".join([*new, *(f"{name}:0" for name in gone if name not in kept)])
        if not changes["gres"]:
            del changes["gres"]
    parse(changes)
    return changes


def by_editor(spool: Spool, word: str) -> dict[str, str]:
    """Let the user edit one job's values; what is wrong can be corrected in the editor."""
    import shlex
    import subprocess
    import tempfile

    from spoolq import selector

    chosen = selector.select(spool, [word], ended=False)
    if len(chosen.jobs) != 1:
        raise UsageError(chosen.missing[0] if chosen.missing else f"edit: {word} stands for {len(chosen.jobs)} jobs")
    placed = chosen.jobs[0]
    if placed.state.ended:
        raise UsageError(steer.over(placed).text)
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    with tempfile.NamedTemporaryFile("wb", prefix=f"job-{placed.entry.id}-", suffix=".toml") as file:
        file.write(form_text(placed).encode())
        file.flush()
        while True:
            code = subprocess.run([*shlex.split(editor), file.name], check=False).returncode
            if code:
                raise UsageError(f"edit: {editor} ended with exit code {code}; nothing was changed")
            try:
                with open(file.name, "rb") as edited:
                    return read_form(placed, edited.read())
            except (UsageError, JobFileError) as error:
                arguments.complain(str(error))
                if input("Edit again? [Y/n] ").strip().lower().startswith("n"):
                    return {}
