"""
Plugins: functions of installed packages, found by their entry points (groups spoolq.profile, .probe, .hook).

Looking through what is installed takes tens of milliseconds, so it is done once in a process, in a node, and in
submissions only where spool.toml says so.
Invariant: a plugin that cannot be loaded or fails is named in the message, and stops nothing but itself.
"""

import functools
import json
import logging
import sys
from collections.abc import Callable
from typing import Any

from spoolq.errors import UsageError
from spoolq.keys import resources
from spoolq.resources import Amounts

PROBE, HOOK = "spoolq.probe", "spoolq.hook"
PROBE_S = 30.0  # for all probes of a machine together

log = logging.getLogger("spoolq")


@functools.cache
def names(group: str) -> tuple[str, ...]:
    """The names of a group's plugins, in order."""
    from importlib.metadata import entry_points

    return tuple(sorted(entry.name for entry in entry_points(group=group)))


def load(group: str, name: str) -> list[Callable[..., Any]]:
    """The functions of a group's plugins of a name, usually one; whatever an import raises comes out."""
    from importlib.metadata import entry_points

    return [entry.load() for entry in entry_points(group=group, name=name)]


def words(function: str) -> list[str]:
    """The words that run a function of this room in a process of its own."""
    return [sys.executable, "-P", "-c", f"from spoolq import plugin; plugin.{function}()"]


def each(group: str, *arguments: Any) -> dict[str, Any]:
    """What the plugins of a group give, by their names; one that fails is named on stderr."""
    given = {}
    for name in names(group):
        try:
            for function in load(group, name):
                given[name] = function(*arguments)
        except Exception as error:
            sys.stderr.write(f"spoolq: plugin {name} of {group}: {type(error).__name__}: {error}\n")
    return given


def tell_hooks() -> None:
    """Tell the plugins of the group spoolq.hook what the environment says: a program of its own, see `hook`."""
    import os

    each(HOOK, {name[7:].lower(): value for name, value in os.environ.items() if name.startswith("SPOOLQ_")})


def say_probes() -> None:
    """Print what the plugins of the group spoolq.probe find: a program of its own, for `probed`."""
    import os

    out = os.dup(1)
    os.dup2(2, 1)  # what they print is for people
    text = json.dumps(each(PROBE), default=repr)
    with os.fdopen(out, "w") as file:
        file.write(text)


def probed() -> Amounts:
    """What plugins say that this machine has to lend; thousandths. One that is wrong or hangs is warned of."""
    if not names(PROBE):
        return {}
    import subprocess

    try:
        done = subprocess.run(words("say_probes"), stdout=subprocess.PIPE, timeout=PROBE_S, check=True)
        said = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        log.warning("plugins of %s: %s", PROBE, error)
        return {}
    found: dict[str, int] = {}
    for name, amounts in said.items():
        try:
            found |= resources(amounts)
        except UsageError as error:
            log.warning("plugin %s of %s: %s", name, PROBE, error)
    return found
