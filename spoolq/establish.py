"""
The commands `init` and `config`: make a spool, and say which values are in force and who said them.

Invariant: what is already a spool, or holds anything else, is never touched by `init`.
"""

import os
import sys

from spoolq import arguments, patience
from spoolq.arguments import Command, Flag
from spoolq.errors import SpoolqError, UsageError

INIT = Command(
    "init",
    "[DIR]",
    "Make a spool in a directory that is new or empty.",
    (
        Flag("name", "", "NAME", "what to call it; default the directory's name"),
        Flag("group", "g", "", "for the directory's group too (mode 2770 instead of 0700)"),
    ),
    "directory",
    "Without DIR: --spool, $SPOOLQ_DIR, the configured one, else ~/.spoolq.",
)
CONFIG = Command(
    "config",
    "",
    "Show the values in force and where each comes from; an error in a file is shown with its line.",
)
COMMANDS = {"init": INIT, "config": CONFIG}


def init(argv: list[str]) -> int:
    """`init [DIR] [--name NAME]`."""
    given = arguments.parse(INIT, argv)
    if given.has("help"):
        return arguments.show_help(INIT)
    if len(given.words) > 1:
        raise UsageError("init: one directory only")
    from spoolq import where

    root = os.path.abspath(os.path.expanduser(given.words[0])) if given.words else where.locate(given.last("spool"))[0]
    patience.concerns(root)
    make(root, given.last("name"), 0o2770 if given.has("group") else 0o700)
    if given.has("json"):
        arguments.print_json("spool", {"spool": root})
        return 0
    print(root)
    if sys.stdout.isatty():
        sys.stderr.write(next_steps(root, where.locate("")[0]))
    return 0


def make(root: str, name: str, mode: int = 0o700) -> None:
    """
    Make a spool.

    Raises:
        SpoolqError: it is one already, or it is not empty.
        UsageError: the name cannot be one.
    """
    import uuid

    from spoolq.config import new_spool, parse_policy
    from spoolq.spool import initialise

    if os.path.lexists(f"{root}/spool.toml"):
        raise SpoolqError(f"{root}: is a spool already (spoolq doctor looks whether it is in order)")
    if os.path.isdir(root):
        if foreign := sorted(os.listdir(root)):
            raise SpoolqError(f"{root}: is not empty ({foreign[0]!r}, ...): name a new directory")
    elif os.path.lexists(root):
        raise SpoolqError(f"{root}: is no directory")
    text = new_spool(str(uuid.uuid4()), name or os.path.basename(root).strip(".") or "spool")
    try:
        parse_policy(text.encode(), "spool.toml")
    except SpoolqError as error:
        raise UsageError(f"init: --name: {error}") from error
    initialise(root, text, mode=mode)


def next_steps(root: str, default: str) -> str:
    """What to do now, for a person."""
    option = "" if root == default else f" --spool {root}"
    lines = ["", "Next:"]
    if option:
        lines.append(f'  export SPOOLQ_DIR={root}         # or in ~/.config/spoolq/config.toml: spool = "{root}"')
    lines.append("  spoolq doctor                    # is this file system fit for it?")
    lines.append("  spoolq node                      # on each machine that shall run jobs")
    lines.append("  spoolq sub echo hello            # the first job")
    return "\n".join(lines) + "\n"


def config(argv: list[str]) -> int:
    """`config [--json]`."""
    given = arguments.parse(CONFIG, argv)
    if given.has("help"):
        return arguments.show_help(CONFIG)
    if given.words:
        raise UsageError(f"config: takes no words, got {given.words[0]!r} (values are changed in the files it names)")
    from spoolq import where

    found = where.find(given.last("spool"))
    rows = [("spool", found.spool.root, found.origin)]
    rows += [(key, value, origin) for key, value, origin in found.policy.in_force]
    rows += [(key, value, origin) for key, value, origin in found.settings.in_force if key != "spool"]
    rules = [*found.settings.rules, *found.policy.rules]
    rows += [("rule", rule.refuse or ", ".join(verb for verb, _ in rule.changes), rule.origin) for rule in rules]
    if given.has("json"):
        arguments.print_json("config", [{"key": k, "value": v or None, "origin": o} for k, v, o in rows])
        return 0
    from spoolq import report

    width, colour = arguments.style()
    cells = [[key, value or "-", origin] for key, value, origin in rows]
    print("\n".join(report.table(["KEY", "VALUE", "FROM"], cells, width, colour=colour)))
    return 0
