"""
The command `spoolq node`: serve a spool with this machine, in the foreground; what the systemd unit runs.

Reads the options and the configuration, takes the lock of this node, and hands over to `daemon`.
"""

import logging
import os
import resource
import signal
import sys
from collections.abc import Sequence

from spoolq import (
    arguments,
    cgroup,
    constraint,
    detect,
    devices,
    host,
    local,
    patience,
    plugin,
    resources,
    service,
    where,
)
from spoolq.arguments import Flag
from spoolq.busy import DEVICE_FILES
from spoolq.config import Settings
from spoolq.daemon import Daemon
from spoolq.devices import Kind, Kinds
from spoolq.errors import Misconfigured, UsageError
from spoolq.live import Limits
from spoolq.resources import CPUS, MEM, UNIT, Amounts
from spoolq.spool import NODE_NAME
from spoolq.wake import Wake

COMMAND = arguments.Command(
    "node",
    "",
    "Serve: claim jobs that fit, run them, deliver their results. Ctrl-C stops serving; jobs that run go on.",
    (
        Flag("name", "", "NAME", "this node's name; default the host's name"),
        Flag("cpus", "", "N", "cpus to lend; default all. More than the machine has is allowed"),
        Flag("mem", "", "MB", "memory to lend; default all (3G works too)"),
        Flag("gres", "", "NAME:N[,...]", "other things to lend: io:4,licence:2"),
        Flag("label", "", "NAME[=VALUE],..", "what --constraint may ask for: ssd,rack=b4"),
        Flag("once", "", "", "start what fits now, wait for it, and exit"),
        Flag("idle-exit", "", "SECONDS", "exit after so long with nothing to do; 0: when the queue is empty"),
        Flag("no-watch", "", "", "poll only; do not ask the kernel for changes"),
        Flag("quiet", "q", "", "warnings and errors only"),
    ),
)


def node(argv: Sequence[str]) -> int:
    """Run a node until it is told to stop."""
    given = arguments.parse(COMMAND, argv)
    if given.has("help"):
        return arguments.show_help(COMMAND)
    if given.words:
        raise UsageError(f"node: takes no words, got {given.words[0]!r} (a name is given by --name)")
    logging.basicConfig(
        level=logging.WARNING if given.has("quiet") else logging.INFO, format="spoolq: %(message)s", stream=sys.stderr
    )
    care = patience.watch.care = service.Serving()
    found = where.find(given.last("spool"), make=True)
    name = given.last("name") or found.setting("node.name") or host.node_name()
    if not NODE_NAME.fullmatch(name):
        raise UsageError(f"--name {name!r}: letters, digits, . _ @ - only, at most 63")
    state_dir = local.state_directory(found.policy.uuid, name)
    lock = local.lock(state_dir, name)
    capacity, measured = _capacity(given, found.settings)
    kinds = _devices(given, found.settings, capacity)
    capacity = {**capacity, **{name: len(kind.ids) * UNIT for name, kind in kinds.items()}}
    _raise_limits()
    wake = Wake()
    daemon = Daemon(
        found.spool,
        found.policy,
        name,
        capacity=capacity,
        measured=measured,
        state_dir=state_dir,
        limits=_limits(given),
        labels=_labels(given, found.settings, kinds),
        bench=devices.Bench(kinds),
        wake=wake,
        groups=_groups(),
        device_files={**DEVICE_FILES, **found.settings.device_files},
        settings=_executable(found.settings),
    )

    def stop() -> None:
        service.notify("STOPPING=1")
        daemon.stopping = care.stopping = True

    for number in (signal.SIGTERM, signal.SIGINT):
        wake.on_signal(number, stop)
    if not sys.stderr.isatty():  # who closes a terminal wants what runs in it to end
        wake.on_signal(signal.SIGHUP, lambda: daemon.set_due("beat", 0.0))
    found.spool.enter_node(name)
    if not given.has("no-watch"):
        root = found.spool.root
        wake.watch([f"{root}/queue", f"{root}/drop", f"{root}/nodes/{name}/control"])
    try:
        return daemon.run()
    finally:
        del lock


def _groups() -> str | None:
    """Where jobs get control groups of their own: what systemd delegated, or $SPOOLQ_CGROUP names."""
    groups = cgroup.delegated(os.environ.get("SPOOLQ_CGROUP"))
    if groups is not None:
        passed = cgroup.settle(groups)
        logging.info("control groups in %s: %s", groups, " ".join(sorted(passed)) or "no controllers")
    return groups


def _executable(settings: Settings) -> Settings:
    """The settings, if what is to run around every job can be run: a node without would fail them all."""
    import shutil

    for key in ("wrapper", "prolog", "epilog"):
        words = getattr(settings, key)
        if words and not shutil.which(words[0]):
            origin = next(said.origin for said in settings.in_force if said.key == f"node.{key}")
            raise Misconfigured(f"{origin}: {key}: {words[0]}: no such program here, or not executable")
    if settings.scratch and not os.access(os.path.expanduser(settings.scratch), os.R_OK | os.W_OK | os.X_OK):
        origin = next(said.origin for said in settings.in_force if said.key == "node.scratch")
        raise Misconfigured(f"{origin}: scratch: {settings.scratch}: no such directory here, or not writable")
    return settings


def _limits(given: arguments.Given) -> Limits:
    idle = given.last("idle-exit")
    seconds = None
    if idle:
        seconds = resources.parse_seconds(idle + "s" if idle.replace(".", "", 1).isdigit() else idle, "--idle-exit")
    return Limits(once=given.has("once"), idle_exit_s=seconds)


def _capacity(given: arguments.Given, settings: Settings) -> tuple[Amounts, bool]:
    """What this node lends, and whether measured load counts: options over configuration, plugins and the machine."""
    machine = host.capacity()
    lent = {**machine, **plugin.probed(), **settings.resources}
    lent |= {name: said for name, said in ((CPUS, settings.cpus), (MEM, settings.mem)) if said is not None}
    if text := given.last("cpus"):
        lent[CPUS] = resources.parse_amount(text, "--cpus")
        if not lent[CPUS]:
            raise UsageError("--cpus: 0 lends nothing, so no job could ever start here (spoolq drain pauses a node)")
    if text := given.last("mem"):
        lent[MEM] = resources.parse_mb(text, "--mem")
    for part in given.every("gres"):
        name, _, amount = part.replace("=", ":").partition(":")
        if name:
            if not resources.NAME.fullmatch(name):
                raise UsageError(f"--gres {part!r}: a name is lower case letters, digits and _")
            lent[name] = resources.parse_amount(amount or "1", f"--gres {name}")
    more = [name for name in (CPUS, MEM) if lent[name] > machine[name]]
    if more:
        logging.warning(
            "lends more %s than this machine has (%s): measured load does not count", " and ".join(more),
            resources.show(machine),
        )  # fmt: skip
    return lent, not more


def _devices(given: arguments.Given, settings: Settings, lent: Amounts) -> Kinds:
    """The devices that are told apart: options over configuration over what is found here."""
    found: dict[str, Kind] = {**detect.devices(), **settings.devices}
    said = {*settings.resources, *(part.replace("=", ":").partition(":")[0] for part in given.every("gres"))}
    for name in said & {devices.GPU, *found}:
        try:
            found[name] = devices.limited(name, found.get(name), lent[name])
        except UsageError as error:
            raise UsageError(f"--gres or resources: {error}") from None
    return {name: kind for name, kind in found.items() if kind.ids}


def _labels(given: arguments.Given, settings: Settings, kinds: Kinds) -> constraint.Labels:
    """What this node says of itself: options over configuration over the machine."""
    types: dict[str, constraint.Label] = {f"{name}_type": kind.type for name, kind in kinds.items() if kind.type}
    said = {**types, **settings.labels}
    for text in given.every("label"):
        try:
            said |= constraint.parse_label(text)
        except UsageError as error:
            raise UsageError(f"--label: {error}") from None
    return {**host.labels(), **said}


def _raise_limits() -> None:
    # two descriptors a running job; the soft limit of 1024 would end at 500 jobs
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 1 << 16) if hard > 0 else 1 << 16, hard))
    os.umask(0o022)
