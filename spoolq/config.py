"""
The policy of a spool and the settings of users and sites, from text to frozen values.

Invariant: a Policy's timeouts are ordered, so that a node that lost touch has stopped its jobs
before another may believe it dead. Unknown keys are errors: a misspelt limit is no limit.
Never reads a file, never looks at the machine; each value knows where it was said.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from spoolq import keys as k
from spoolq.constraint import Labels, check_labels
from spoolq.devices import Kinds, check_devices
from spoolq.entry import RERUNS
from spoolq.errors import Misconfigured, UsageError
from spoolq.keys import Key, Setting
from spoolq.resources import CPUS, MEM, Amounts, parse_amount, parse_mb
from spoolq.toml import line_of, quote
from spoolq.values import MOST_FACTOR

if TYPE_CHECKING:
    from spoolq.rules import Rule

FORMAT = 1
# fencing: killing takes the grace and at most this long more, and clocks differ in rate by 1 %
KILL_S, RATE = 50.0, 0.01
BEATS = 3  # lost beats that a node must survive


KEYS: tuple[Key, ...] = (
    Key("policy", "default_cpus", k.amount(parse_amount, CPUS), 1, "of a job that does not say"),
    Key("policy", "default_mem", k.amount(parse_mb, MEM), 1000, "MB of a job that does not say"),
    Key(
        "policy", "default_time", k.duration, "unlimited", "limit of a job that does not say; a bare number is minutes"
    ),
    Key("policy", "default_rerun", k.choice(*RERUNS), "certain", "of a job that does not say"),
    Key("policy", "default_retries", lambda n: int(k.number(0, 1000)(n)), 0, "of a job that does not say"),
    Key("policy", "default_output_mode", k.choice("spool", "local"), "spool", "of a job that does not say"),
    Key("policy", "enforce_default_mem", k.boolean, False, "end jobs over memory that they did not ask for"),
    Key("policy", "placement", k.choice("pack", "spread"), "pack", "fill up one node at a time, or the emptiest first"),
    Key("policy", "fair_share", k.boolean, True, "users of equal priority take turns, by cpus in use"),
    Key("policy", "ageing_s", k.number(0), 0, "a waiting job gains 1 of priority in so long; 0: never"),
    Key("policy", "max_running", k.most(lambda n, _: int(n)), "unlimited", "jobs of one user at a time, on all nodes"),
    Key("policy", "max_cpus", k.most(parse_amount), "unlimited", "that jobs of one user hold at a time, on all nodes"),
    Key("policy", "drop_any_owner", k.boolean, False, "run dropped files of other owners, as this node's user"),
    Key("policy", "mem_factor", k.number(1, MOST_FACTOR), 1.0, "enforced memory = declared x this"),
    Key("policy", "time_factor", k.number(1, MOST_FACTOR), 1.0, "enforced time = declared x this"),
    Key("policy", "max_mem_factor", k.number(1, MOST_FACTOR), MOST_FACTOR, "the most that a job may say itself"),
    Key("policy", "max_time_factor", k.number(1, MOST_FACTOR), MOST_FACTOR, "the most that a job may say itself"),
    Key("policy", "learn", k.boolean, True, "what a job does not ask for comes from earlier runs of its command"),
    Key("policy", "idle_load", k.number(0, 1e6), 0.3, "cpus that others may use without keeping jobs waiting"),
    Key("policy", "overload_suspend", k.boolean, False, "jobs step aside while others take their cpus or memory"),
    Key("limits", "overload_mem_mb", k.number(0), 200, "less memory available than this is overload too; 0: it is not"),
    Key("limits", "overload_s", k.number(0, 86400), 30, "overload, or its end, must last so long"),
    Key(
        "policy",
        "local_cwd",
        k.choice("ignore", "warn", "refuse", "stage"),
        "warn",
        "if nodes do not see where you are",
    ),
    Key("policy", "plugins", k.boolean, False, "ask plugins of spoolq.profile at submission too (see docs/plugins.md)"),
    Key("limits", "settle_s", k.number(0, 86400), 10, "a dropped file must stay the same for so long"),
    Key("limits", "grace_s", k.number(0, 86400), 10, "from SIGTERM to SIGKILL"),
    Key("limits", "beat_s", k.number(0.05, 86400), 20, "between heartbeats of a node"),
    Key("limits", "fence_s", k.number(0.1), 900, "a node without a good beat for so long stops its rerun jobs"),
    Key("limits", "dead_s", k.number(0.1), 1200, "a node silent for so long counts as dead"),
    Key(
        "limits",
        "retry_s",
        k.number(0, 86400),
        10,
        "before the first retry of a failure; each further waits twice as long",
    ),
    Key("limits", "stage_mb", k.number(0), 100, 'the largest directory that local_cwd = "stage" copies'),
    Key("limits", "profile_s", k.number(0.05, 60), 2, "a profile.py that takes longer refuses the job"),
    Key("limits", "max_attempts", lambda n: int(k.number(1)(n)), 10, "no more than so many because nodes went down"),
    Key("limits", "min_free_mb", lambda mb: int(k.number(0)(mb)), 100, "refuse jobs when the spool has less room"),
)
KEYS += (
    Key("", "pools", lambda said: k.resources(said or {}), None, "what all nodes share, as licences: name = amount"),
)
_TOP = ("format", "uuid", "name", "rule")
SETTINGS = (
    Key("", "spool", k.path, None, "the spool's directory"),
    Key("node", "name", k.node_name, None, "of this node"),
    Key("node", "cpus", k.amount(parse_amount, CPUS), None, "that jobs may have"),
    Key("node", "mem", k.amount(parse_mb, MEM), None, "MB that jobs may have"),
    Key("node", "resources", k.resources, None, "what else jobs may ask for"),
    Key("node", "device_files", k.device_files, None, 'by which use outside spoolq is seen: { gpu = "/dev/nvidia%d" }'),
    Key("node", "devices", check_devices, None, "what else jobs may ask for, by its ids: { gpu = 2 }"),
    Key("node", "scratch", k.path, None, "where jobs that stage have their files; default $TMPDIR"),
    Key("node", "stage_cache", k.amount(parse_mb, MEM), None, "MB of staged files that stay here; default none"),
    Key("node", "path_map", k.path_map, None, "paths that are called otherwise on this node"),
    Key("node", "wrapper", k.words, None, "put before the words of every command"),
    Key("node", "prolog", k.words, None, "run before each command, as the job"),
    Key("node", "epilog", k.words, None, "run after each command"),
    Key("hooks", "on_submit", k.words, None, "run when a job was submitted"),
    Key("hooks", "on_start", k.words, None, "run when an attempt started"),
    Key("hooks", "on_end", k.words, None, "run when a job ended"),
    Key("hooks", "on_fail", k.words, None, "run when a job ended as a failure"),
    Key("hooks", "hook_s", k.number(0.05, 86400), None, "that a hook may take; 60 if not said"),
    Key("node", "prolog_s", k.number(0.05, 86400), None, "that a prolog may take; 300 if not said"),
    Key("node", "epilog_s", k.number(0.05, 86400), None, "that an epilog may take; 300 if not said"),
    Key("node", "labels", check_labels, None, "what jobs may ask for by --constraint"),
)


class Policy(NamedTuple):
    """
    What spool.toml says, with the defaults, see KEYS; `in_force`: where each value comes from.

    `default_cpus` and `default_mem` are thousandths; names in `_s` and `_mb` are in that unit.
    """

    uuid: str
    name: str
    default_cpus: int
    default_mem: int
    default_time_s: int | None
    default_rerun: str
    default_retries: int
    default_output_mode: str
    enforce_default_mem: bool
    placement: str
    fair_share: bool
    ageing_s: float
    max_running: int | None
    max_cpus: int | None
    drop_any_owner: bool
    local_cwd: str
    plugins: bool
    mem_factor: float
    time_factor: float
    max_mem_factor: float
    max_time_factor: float
    learn: bool
    idle_load: float
    overload_suspend: bool
    overload_s: float
    overload_mem_mb: float
    settle_s: float
    grace_s: float
    beat_s: float
    fence_s: float
    dead_s: float
    retry_s: float
    stage_mb: float
    profile_s: float
    max_attempts: int
    min_free_mb: int
    pools: Amounts = MappingProxyType({})
    in_force: tuple[Setting, ...] = ()
    rules: "tuple[Rule, ...]" = ()

    def job_fields(self) -> dict[str, Any]:
        """Fields of a job that does not say: the base of `options.apply`."""
        wants = {CPUS: self.default_cpus, MEM: self.default_mem}
        said = {"rerun": self.default_rerun, "retries": self.default_retries}
        return {"wants": wants, "limit_s": self.default_time_s, "output_mode": self.default_output_mode, **said} | (
            {"ages": True} if self.ageing_s else {}
        )


class Settings(NamedTuple):
    """What users and sites say; None or empty where nobody says anything. Amounts are thousandths; `_s` seconds."""

    spool: str | None = None
    node_name: str | None = None
    cpus: int | None = None
    mem: int | None = None
    resources: Amounts = MappingProxyType({})
    device_files: Mapping[str, str] = MappingProxyType({})
    devices: Kinds = MappingProxyType({})
    scratch: str = ""
    stage_cache: int | None = None
    path_map: Mapping[str, str] = MappingProxyType({})
    wrapper: tuple[str, ...] = ()
    prolog: tuple[str, ...] = ()
    epilog: tuple[str, ...] = ()
    prolog_s: float = 300.0
    epilog_s: float = 300.0
    on_submit: tuple[str, ...] = ()
    on_start: tuple[str, ...] = ()
    on_end: tuple[str, ...] = ()
    on_fail: tuple[str, ...] = ()
    hook_s: float = 60.0
    labels: Labels = MappingProxyType({})
    in_force: tuple[Setting, ...] = ()
    rules: "tuple[Rule, ...]" = ()


NO_SETTINGS = Settings()  # nobody says anything


def parse_policy(data: bytes, file: str) -> Policy:
    """
    Read spool.toml.

    Raises:
        Misconfigured: no spool.toml, a newer format, a wrong or unknown key, timeouts out of order.
    """
    table, text = k.load(data, file)
    version = table.get("format")
    if type(version) is not int:
        raise Misconfigured(f"{file}: is no spool.toml: it does not say format = {FORMAT}")
    if version != FORMAT:
        raise Misconfigured(f"{file}: format {version} is not known to this version of spoolq (it knows {FORMAT})")
    given = k.checked(table, text, file, KEYS, _TOP)
    values: dict[str, Any] = {key.name: key.read(key.default) for key in KEYS}
    for name in ("uuid", "name"):
        try:
            values[name] = k.text(table.get(name))
        except UsageError as error:
            raise Misconfigured(k.located(file, line_of(text, name)) + f": {name}: {error}") from None
    values |= {name: value for name, (value, _, _) in given.items()}
    values["default_time_s"] = values.pop("default_time")
    policy = Policy(**values, in_force=k.in_force(KEYS, given), rules=_rules(table, text, file))
    _check_order(policy)
    return policy


def _check_order(policy: Policy) -> None:
    where = {setting.key: setting.origin for setting in policy.in_force}
    if policy.fence_s < BEATS * policy.beat_s:
        said = f"{where['limits.fence_s']}: fence_s: {policy.fence_s:g} is less than {BEATS} beats"
        raise Misconfigured(f"{said} (beat_s = {policy.beat_s:g}): a node would stop its jobs at a hiccup")
    least = (policy.fence_s + policy.grace_s + KILL_S) / (1 - RATE)
    if policy.dead_s <= least:
        said = f"{where['limits.dead_s']}: dead_s: {policy.dead_s:g} must be more than {least:.0f}"
        why = f"fence_s {policy.fence_s:g} + grace_s {policy.grace_s:g} + {KILL_S:g}, and 1 % for clocks"
        raise Misconfigured(f"{said} ({why}): a job could run twice")


def parse_settings(sources: Iterable[tuple[str, bytes]]) -> Settings:
    """
    Read configuration files of the site and the user; what a later one says wins.

    Args:
        sources: (file name, contents), the site's first.

    Raises:
        Misconfigured: a wrong or unknown key.
    """
    given: dict[str, tuple[Any, str, str]] = {}
    found: tuple[Rule, ...] = ()
    for file, data in sources:
        table, text = k.load(data, file)
        given |= k.checked(table, text, file, SETTINGS, ("spool", "rule"))
        found = (*_rules(table, text, file), *found)  # the user's act first
    values = {f"node_{name}" if name == "name" else name: value for name, (value, _, _) in given.items()}
    return Settings(**values, in_force=k.in_force(SETTINGS, given), rules=found)


def parse_rules(data: bytes, file: str) -> "tuple[Rule, ...]":
    """
    The `[[rule]]` tables of a configuration file; the rest is not looked at.

    Raises:
        Misconfigured: one is wrong.
    """
    return _rules(*k.load(data, file), file)


def _rules(table: Mapping[str, Any], text: str, file: str) -> "tuple[Rule, ...]":
    if "rule" not in table:
        return ()
    from spoolq import rules

    return rules.parse(table["rule"], text, file)


def new_spool(uuid: str, name: str) -> str:
    """The spool.toml of a new spool, with every default in a comment."""
    lines = [f"format = {FORMAT}", f"uuid = {quote(uuid)}", f"name = {quote(name)}"]
    lines += [
        f"# {'pools = {}':<28}  # what all nodes share, as licences: {{ matlab = 5 }}; jobs ask by --gres matlab:1"
    ]
    for title in ("policy", "limits"):
        lines += ["", f"[{title}]"]
        for key in KEYS:
            if key.table == title:
                lines.append(f"# {f'{key.name} = {k.written(key.default)}':<28}  # {key.help}")
    return "\n".join(lines) + "\n"
