"""
The policy of a spool and the settings of users and sites, from text to frozen values.

Invariant: a Policy's timeouts are ordered, so that a node that lost touch has stopped its jobs
before another may believe it dead. Unknown keys are errors: a misspelt limit is no limit.
Never reads a file, never looks at the machine; each value knows where it was said.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from spoolq.constraint import Labels, check_labels
from spoolq.devices import Kinds, check_devices
from spoolq.entry import RERUNS
from spoolq.errors import JobFileError, Misconfigured, UsageError
from spoolq.options import did_you_mean
from spoolq.resources import CPUS, MEM, NAME, UNIT, Amounts, parse_amount, parse_mb, parse_seconds
from spoolq.toml import kind_of, line_of, quote, read_toml
from spoolq.values import MOST, MOST_FACTOR, MOST_SECONDS

if TYPE_CHECKING:
    from spoolq.rules import Rule

FORMAT = 1
# fencing: killing takes the grace and at most this long more, and clocks differ in rate by 1 %
KILL_S, RATE = 50.0, 0.01
BEATS = 3  # lost beats that a node must survive


NODE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


class Setting(NamedTuple):
    """A value in force, as TOML would say it, and where it was said: `file:line`, or `default`."""

    key: str
    value: str
    origin: str


class Key(NamedTuple):
    """One key of spool.toml: how its value is read, its default as written, and what it is for."""

    table: str
    name: str
    read: Callable[[Any], Any]
    default: Any
    help: str


def _number(low: float, high: float = 1e9) -> Callable[[Any], float]:
    def read(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UsageError(f"{kind_of(value)}; must be a number")
        if low <= value <= high:
            return float(value)
        raise UsageError(f"{value} is not within {low:g}..{high:g}")

    return read


def _amount(parse: Callable[[str, str], int], what: str) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise UsageError(f"{kind_of(value)}; must be a number or a string")
        if not 0 < (amount := parse(str(value), what)) <= MOST:
            raise UsageError(f"{value!r} must be more than 0 and at most {MOST // UNIT}")
        return amount

    return read


def _time(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise UsageError(f"{kind_of(value)}; must be a number of minutes or a string")
    seconds = parse_seconds(str(value))
    if seconds is not None and not 0 < seconds <= MOST_SECONDS:
        raise UsageError("must be more than 0 and at most 10000 days (for no limit: unlimited)")
    return seconds


def _choice(*choices: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if value not in choices:
            raise UsageError(f"{value!r:.60} is none of {', '.join(choices)}")
        return str(value)

    return read


def _bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise UsageError(f"{kind_of(value)}; must be true or false")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or not value.isprintable() or len(value) > 200:
        raise UsageError("must be a string of 1 to 200 printable characters")
    return value


def _path(value: Any) -> str:
    if not isinstance(value, str) or value[:1] not in ("/", "~") or not value.isprintable():
        raise UsageError("must be an absolute path, or one that starts with ~")
    return value


def _node_name(value: Any) -> str:
    if not isinstance(value, str) or not NODE_NAME.fullmatch(value):
        raise UsageError(f"{value!r:.60} is no name for a node (letters, digits, . _ -)")
    return value


def _resources(value: Any) -> dict[str, int]:
    if isinstance(value, str):
        value = dict(part.replace("=", ":").partition(":")[::2] for part in value.split(","))
    if not isinstance(value, dict):
        raise UsageError(f'{kind_of(value)}; must be a table or a string (example: "gpu:2")')
    for name in value:
        if not NAME.fullmatch(name) or name in (CPUS, MEM):
            raise UsageError(
                f"{name[:60]!r} is no name for a resource (lower case; cpus and mem are keys of their own)"
            )
    return {name: _amount(parse_amount, name)(amount) for name, amount in value.items()}


def _pools(value: Any) -> dict[str, int]:
    return {} if value is None else _resources(value)


KEYS: tuple[Key, ...] = (
    Key("policy", "default_cpus", _amount(parse_amount, CPUS), 1, "of a job that does not say"),
    Key("policy", "default_mem", _amount(parse_mb, MEM), 1000, "MB of a job that does not say"),
    Key("policy", "default_time", _time, "unlimited", "limit of a job that does not say; a bare number is minutes"),
    Key("policy", "default_rerun", _choice(*RERUNS), "certain", "of a job that does not say"),
    Key("policy", "default_retries", lambda n: int(_number(0, 1000)(n)), 0, "of a job that does not say"),
    Key("policy", "default_output_mode", _choice("spool", "local"), "spool", "of a job that does not say"),
    Key("policy", "enforce_default_mem", _bool, False, "end jobs over memory that they did not ask for"),
    Key("policy", "placement", _choice("pack", "spread"), "pack", "fill up one node at a time, or the emptiest first"),
    Key("policy", "drop_any_owner", _bool, False, "run dropped files of other owners, as this node's user"),
    Key("policy", "mem_factor", _number(1, MOST_FACTOR), 1.0, "enforced memory = declared x this"),
    Key("policy", "time_factor", _number(1, MOST_FACTOR), 1.0, "enforced time = declared x this"),
    Key("policy", "max_mem_factor", _number(1, MOST_FACTOR), MOST_FACTOR, "the most that a job may say itself"),
    Key("policy", "max_time_factor", _number(1, MOST_FACTOR), MOST_FACTOR, "the most that a job may say itself"),
    Key("policy", "plugins", _bool, False, "ask plugins of spoolq.profile at submission too (see docs/plugins.md)"),
    Key("limits", "settle_s", _number(0, 86400), 10, "a dropped file must stay the same for so long"),
    Key("limits", "grace_s", _number(0, 86400), 10, "from SIGTERM to SIGKILL"),
    Key("limits", "beat_s", _number(0.05, 86400), 20, "between heartbeats of a node"),
    Key("limits", "fence_s", _number(0.1), 900, "a node without a good beat for so long stops its rerun jobs"),
    Key("limits", "dead_s", _number(0.1), 1200, "a node silent for so long counts as dead"),
    Key(
        "limits",
        "retry_s",
        _number(0, 86400),
        10,
        "before the first retry of a failure; each further waits twice as long",
    ),
    Key("limits", "profile_s", _number(0.05, 60), 2, "a profile.py that takes longer refuses the job"),
    Key("limits", "max_attempts", lambda n: int(_number(1)(n)), 10, "no more than so many because nodes went down"),
    Key("limits", "min_free_mb", lambda mb: int(_number(0)(mb)), 100, "refuse jobs when the spool has less room"),
)
KEYS += (Key("", "pools", _pools, None, "what all nodes share, as licences: name = amount"),)
_TOP = ("format", "uuid", "name", "rule")
SETTINGS = (
    Key("", "spool", _path, None, "the spool's directory"),
    Key("node", "name", _node_name, None, "of this node"),
    Key("node", "cpus", _amount(parse_amount, CPUS), None, "that jobs may have"),
    Key("node", "mem", _amount(parse_mb, MEM), None, "MB that jobs may have"),
    Key("node", "resources", _resources, None, "what else jobs may ask for"),
    Key("node", "devices", check_devices, None, "what else jobs may ask for, by its ids: { gpu = 2 }"),
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
    drop_any_owner: bool
    plugins: bool
    mem_factor: float
    time_factor: float
    max_mem_factor: float
    max_time_factor: float
    settle_s: float
    grace_s: float
    beat_s: float
    fence_s: float
    dead_s: float
    retry_s: float
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
        return {"wants": wants, "limit_s": self.default_time_s, "output_mode": self.default_output_mode, **said}


class Settings(NamedTuple):
    """What users and sites say; None where nobody says anything. Amounts are thousandths."""

    spool: str | None = None
    node_name: str | None = None
    cpus: int | None = None
    mem: int | None = None
    resources: Amounts = MappingProxyType({})
    devices: Kinds = MappingProxyType({})
    labels: Labels = MappingProxyType({})
    in_force: tuple[Setting, ...] = ()
    rules: "tuple[Rule, ...]" = ()


def parse_policy(data: bytes, file: str) -> Policy:
    """
    Read spool.toml.

    Raises:
        Misconfigured: no spool.toml, a newer format, a wrong or unknown key, timeouts out of order.
    """
    table, text = _load(data, file)
    version = table.get("format")
    if type(version) is not int:
        raise Misconfigured(f"{file}: is no spool.toml: it does not say format = {FORMAT}")
    if version != FORMAT:
        raise Misconfigured(f"{file}: format {version} is not known to this version of spoolq (it knows {FORMAT})")
    given = _checked(table, text, file, KEYS, _TOP)
    values: dict[str, Any] = {key.name: key.read(key.default) for key in KEYS}
    for name in ("uuid", "name"):
        try:
            values[name] = _text(table.get(name))
        except UsageError as error:
            raise Misconfigured(_place(file, line_of(text, name)) + f": {name}: {error}") from None
    values |= {name: value for name, (value, _, _) in given.items()}
    values["default_time_s"] = values.pop("default_time")
    policy = Policy(**values, in_force=_in_force(KEYS, given), rules=_rules(table, text, file))
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
        table, text = _load(data, file)
        given |= _checked(table, text, file, SETTINGS, ("spool", "rule"))
        found = (*_rules(table, text, file), *found)  # the user's act first
    values = {f"node_{name}" if name == "name" else name: value for name, (value, _, _) in given.items()}
    return Settings(**values, in_force=_in_force(SETTINGS, given), rules=found)


def parse_rules(data: bytes, file: str) -> "tuple[Rule, ...]":
    """
    The `[[rule]]` tables of a configuration file; the rest is not looked at.

    Raises:
        Misconfigured: one is wrong.
    """
    return _rules(*_load(data, file), file)


def _rules(table: Mapping[str, Any], text: str, file: str) -> "tuple[Rule, ...]":
    if "rule" not in table:
        return ()
    from spoolq import rules

    return rules.parse(table["rule"], text, file)


def _load(data: bytes, file: str) -> tuple[dict[str, Any], str]:
    try:
        return read_toml(data, file)
    except JobFileError as error:
        raise Misconfigured(str(error)) from None


def _place(file: str, line: int | None) -> str:
    return f"{file}:{line}" if line else file


def _checked(
    table: Mapping[str, Any], text: str, file: str, keys: tuple[Key, ...], tops: tuple[str, ...]
) -> dict[str, tuple[Any, str, str]]:
    # name -> (value, as written, origin)
    known = {(key.table, key.name): key for key in keys}
    tables = {key.table for key in keys} - {""}
    flat: list[tuple[str, str, Any]] = []
    for name, value in table.items():
        if name in tables and isinstance(value, dict):
            flat += [(name, inner, inner_value) for inner, inner_value in value.items()]
        elif name not in tops or ("", name) in known:
            flat.append(("", name, value))
    found = {}
    for where, name, value in flat:
        place = _place(file, line_of(text, name))
        if (where, name) not in known:
            hint = did_you_mean(name, {n for t, n in known if t == where} | (set() if where else {*tops, *tables}))
            inside = f" in [{where}]" if where else ""
            raise Misconfigured(f"{place}: unknown key {name[:60]!r}{inside}{hint}")
        try:
            found[name] = (known[where, name].read(value), _written(value), place)
        except UsageError as error:
            raise Misconfigured(f"{place}: {name}: {str(error).removeprefix(name + ': ')}") from None
    return found


def _in_force(keys: tuple[Key, ...], given: Mapping[str, tuple[Any, str, str]]) -> tuple[Setting, ...]:
    said = {key: given.get(key.name) or (None, _written(key.default), "default") for key in keys}
    return tuple(Setting(f"{k.table}.{k.name}".lstrip("."), text, origin) for k, (_, text, origin) in said.items())


def _written(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{name} = {_written(inner)}" for name, inner in value.items()) + " }" if value else ""
    if isinstance(value, list):
        return f"[{', '.join(map(_written, value))}]"
    return quote(value) if isinstance(value, str) else "" if value is None else str(value).lower()


def new_spool(uuid: str, name: str) -> str:
    """The spool.toml of a new spool, with every default in a comment."""
    lines = [f"format = {FORMAT}", f"uuid = {quote(uuid)}", f"name = {quote(name)}"]
    lines += [
        f"# {'pools = {}':<28}  # what all nodes share, as licences: {{ matlab = 5 }}; jobs ask by --gres matlab:1"
    ]
    for title in ("policy", "limits"):
        lines += ["", f"[{title}]"]
        lines += [f"# {f'{k.name} = {_written(k.default)}':<28}  # {k.help}" for k in KEYS if k.table == title]
    return "\n".join(lines) + "\n"
