"""
The commands that say something of nodes: drain, undrain, node-dead.

Each leaves a small file under nodes/<node>/, which that node, or those that watch it, heed.
`node-dead --certain` is an operator's oath: it holds for the daemon whose heartbeat was last seen, and
ends by itself when the node comes back.
"""

import sys
from collections.abc import Callable
from fnmatch import fnmatchcase

from spoolq import arguments, selector
from spoolq.arguments import Command, Flag, Given
from spoolq.errors import UsageError
from spoolq.spool import Spool

DRAIN = Command(
    "drain",
    "NODE..",
    "Let nodes start no more jobs; what runs there goes on.",
    (Flag("reason", "r", "WHY", "shown by nodes and why"),),
    "node",
    "* and ? are wildcards. Plain files: touch SPOOL/nodes/NODE/drain",
)
UNDRAIN = Command(
    "undrain", "NODE..", "Let nodes start jobs again.", (), "node", "Plain files: rm SPOOL/nodes/NODE/drain"
)
NODE_DEAD = Command(
    "node-dead",
    "NODE.. --certain",
    "Say that nodes are off for certain, so that their jobs run again elsewhere or end.",
    (Flag("certain", "", "", "yes: powered off, or gone for good; nothing runs there any more"),),
    "node",
    "Jobs of rule certain and yes run again, those of rule never end as NODE_FAIL. If such a node still\n"
    "runs, jobs run twice: look first. Without this, jobs wait until the node is back, but for rule yes.",
)
COMMANDS = {c.name: c for c in (DRAIN, UNDRAIN, NODE_DEAD)}


def drain(argv: list[str]) -> int:
    """`drain NODE.. [-r why]`."""
    return _each(DRAIN, argv, _drain)


def undrain(argv: list[str]) -> int:
    """`undrain NODE..`."""
    return _each(UNDRAIN, argv, _undrain)


def node_dead(argv: list[str]) -> int:
    """`node-dead NODE.. --certain`."""
    return _each(NODE_DEAD, argv, _bury)


def _each(command: Command, argv: list[str], act: Callable[[Spool, str, Given], str]) -> int:
    """Do it to every node that a word stands for; `act` says what it came to."""
    given = arguments.parse(command, argv)
    if given.has("help"):
        return arguments.show_help(command)
    if not given.words:
        raise UsageError(f"{command.name}: which node? (spoolq nodes lists them)")
    spool = arguments.open_spool(given)
    known, done, code = spool.nodes(), [], 0
    for word in given.words:
        names = [node for node in known if fnmatchcase(node, word)]
        if not names:
            arguments.complain(f"{word}: no such node in {spool.root} (spoolq nodes lists them)")
            code = 1
        for node in names:
            try:
                done.append((node, act(spool, node, given)))
            except UsageError as error:
                arguments.complain(str(error))
                code = 1
    if given.has("json"):
        drained = {"drain": command is DRAIN} if command is not NODE_DEAD else {"dead": True}
        arguments.print_json("nodes", [{"node": node, **drained} for node, _ in done])
    elif sys.stdout.isatty():
        for node, text in done:
            print(f"{node}: {text}")
    return code


def _drain(spool: Spool, node: str, given: Given) -> str:
    spool.mark_node(node, "drain", on=True, text=given.last("reason") or f"by {selector.me()}")
    return "starts no more jobs"


def _undrain(spool: Spool, node: str, _: Given) -> str:
    spool.mark_node(node, "drain", on=False)
    return "starts jobs again"


def _bury(spool: Spool, node: str, given: Given) -> str:
    from spoolq import config, local, roster
    from spoolq.lease import LATE

    seen = roster.look_at(spool, node, roster.server_time(spool))
    beat_s = seen.facts.get("beat_s")
    late_s = LATE * float(beat_s if isinstance(beat_s, int | float) else 20)
    recent = seen.beat_age_s is not None and seen.beat_age_s < late_s and seen.state != "stopped"
    if seen.alive or (seen.alive is None and recent):
        said = f"it said so {seen.beat_age_s or 0:.0f} s ago"
        raise UsageError(f"node-dead: {node} lives ({said}): switch it off first, and wait {late_s:.0f} s")
    if seen.alive is False:  # it is this machine
        policy = config.parse_policy(spool.text.encode(), "spool.toml")
        if local.family_lives(local.state_directory(policy.uuid, node)):
            hint = f"start it again (spoolq node --name {node}), and they go on"
            raise UsageError(f"node-dead: the jobs of {node} run on this machine, though its daemon does not: {hint}")
    jobs = [at.entry for at in spool.on_node(node)]
    if not given.has("certain"):
        what = f"{len(jobs)} jobs of it would run again elsewhere or end as NODE_FAIL"
        raise UsageError(f"node-dead: is {node} off for certain? Then say --certain ({what})")
    beat = spool.read_beat(node)
    if beat is None:
        raise UsageError(f"node-dead: {node} never served this spool: there is nothing to decide")
    spool.mark_node(node, "dead", on=True, text=beat[1])
    return f"counts as dead; {len(jobs)} jobs will be decided by the nodes that watch it, within some beats"
