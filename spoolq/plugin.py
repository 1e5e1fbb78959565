"""
Plugins: functions of installed packages, found by their entry points (groups spoolq.profile, .probe, .hook).

Looking through what is installed takes tens of milliseconds, so it is done once in a process, in a node, and in
submissions only where spool.toml says so.
Invariant: a plugin that cannot be loaded or fails is named in the message, and stops nothing but itself.
"""

import functools
from collections.abc import Callable
from typing import Any

PROBE, HOOK = "spoolq.probe", "spoolq.hook"


@functools.cache
def names(group: str) -> tuple[str, ...]:
    """The names of a group's plugins, in order."""
    from importlib.metadata import entry_points

    return tuple(sorted(entry.name for entry in entry_points(group=group)))


def load(group: str) -> list[tuple[str, Callable[..., Any]]]:
    """(name, function) of a group's plugins, in order; whatever an import raises comes out."""
    from importlib.metadata import entry_points

    return [(entry.name, entry.load()) for entry in sorted(entry_points(group=group), key=lambda entry: entry.name)]
