"""
Rules of sites and users over jobs: `[[rule]]` tables in config.toml and spool.toml, and what a profile asks for.

A rule looks at a job (`match`) and fills in what was not said (`default`), replaces (`set`), raises (`minimum`),
lowers (`maximum`) or refuses. Its values are options as in job files and count as if the user had given them.
Invariants: a rule that changes nothing says nothing; every change has a note with its origin; what comes out is
options again, so a rule can ask for nothing that a user could not.
Rules are applied in order: of two defaults the first holds, of two `set` the last. Never looks at the machine.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from math import inf
from typing import Any, NamedTuple

from spoolq import jobfile, options
from spoolq.errors import Misconfigured, UsageError
from spoolq.job import Job
from spoolq.options import BY_NAME, Pair
from spoolq.resources import UNIT, parse_mb, show_amount, show_mb, show_seconds
from spoolq.toml import kind_of, lines_of, plain
from spoolq.values import Fields

VERBS = ("default", "set", "minimum", "maximum")
_GLOBS = ("command", "name", "user", "host", "chdir")
_SIZES = ("inputs_over", "inputs_under")
_BOUNDS = ("over", "under")
MATCHES = (*_GLOBS, "gres", "script_contains", *_BOUNDS, *_SIZES)
_NUMBERS = ("wants", "limit_s", "priority", "retries")  # fields that have more and less

Make = Callable[[Sequence[Pair]], Job]


class Facts(NamedTuple):
    """
    What rules see of a job beside its fields.

    Args:
        program: its first word, or the script's name.
        line: the whole command: words with blanks between them, or the shell's line.
        script: the script's text, or empty.
        inputs: finds its input files, paths with sizes in bytes; asked only by rules that want to know.
    """

    program: str
    line: str
    script: str = ""
    inputs: Callable[[], Mapping[str, int]] = dict


class Rule(NamedTuple):
    """One rule. `match` has readers' values by key; `changes` are (verb, option); `origin` is `file:line`."""

    match: tuple[tuple[str, Any], ...]
    changes: tuple[tuple[str, Pair], ...]
    refuse: str
    origin: str


class Ruled(NamedTuple):
    """What rules made of a job: all its options, the weakest first, and a note for each change."""

    pairs: list[Pair]
    notes: tuple[str, ...]


# --- reading


def parse(tables: object, text: str, file: str) -> tuple[Rule, ...]:
    """
    The rules in a configuration file.

    Args:
        tables: the value of its key `rule`.
        text: of the file, for line numbers.

    Raises:
        Misconfigured: an unknown key, or a value that cannot be one; with the line of its rule.
    """
    if not isinstance(tables, list) or any(not isinstance(table, dict) for table in tables):
        raise Misconfigured(f"{file}: rule: {kind_of(tables)}; must be tables that begin with [[rule]]")
    lines = lines_of(text, "rule")
    rules = []
    for number, table in enumerate(tables):
        origin = f"{file}:{lines[number]}" if len(lines) == len(tables) else f"{file} (rule {number + 1})"
        try:
            rules.append(_rule(table, origin))
        except UsageError as error:
            raise Misconfigured(f"{origin}: rule: {error}") from None
    return tuple(rules)


def _rule(table: Mapping[str, Any], origin: str) -> Rule:
    known = ("match", *VERBS, "refuse")
    for key in table:
        if key not in known:
            raise UsageError(f"unknown key {key[:60]!r}{options.did_you_mean(key, known)}")
    refuse = plain("refuse", table.get("refuse", ""))
    changes = changes_of({verb: _table(verb, table.get(verb, {})) for verb in VERBS})
    if not changes and not refuse:
        raise UsageError(f"does nothing: give {', '.join(VERBS)} or refuse")
    match = _table("match", table.get("match", {}))
    return Rule(tuple((key, _condition(key, value)) for key, value in match.items()), changes, refuse, origin)


def _table(key: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UsageError(f'{key}: {kind_of(value)}; must be a table (example: {{ mem = "4G" }})')
    return value


def _condition(key: str, value: Any) -> Any:
    if key in _SIZES:
        return parse_mb(str(value), key) // UNIT << 20
    if key in _BOUNDS:
        return tuple(pair for _, pair in changes_of({"minimum": _table(key, value)}))
    if key not in MATCHES:
        raise UsageError(f"match: unknown key {key[:60]!r}{options.did_you_mean(key, MATCHES)}")
    texts = value if isinstance(value, list) else [value]
    return tuple(plain(f"match: {key}", text) for text in texts)


def changes_of(verbs: Mapping[str, Mapping[str, Any]]) -> tuple[tuple[str, Pair], ...]:
    """
    What `{"minimum": {"mem": "4G"}}` asks for, checked.

    Raises:
        UsageError: no option of a job, or no value for one.
    """
    changes = []
    for verb, table in verbs.items():
        for key, value in table.items():
            option = BY_NAME.get(key)
            if option is None or option.scope != options.JOB:
                names = [name for name, known in BY_NAME.items() if known.scope == options.JOB]
                raise UsageError(f"{verb}: {key[:60]!r} is no option of a job{options.did_you_mean(key, names)}")
            pair = Pair(option.name, jobfile.text_of(key, option, value))
            fields = option.parse(pair.value)
            if verb in ("minimum", "maximum") and (key == "nice" or not set(fields) <= {*_NUMBERS}):
                raise UsageError(f"{verb}: {key}: has no more and less")
            changes.append((verb, pair))
    return tuple(changes)


# --- applying


def apply(rules: Iterable[Rule], pairs: Sequence[Pair], make: Make, facts: Facts) -> Ruled:
    """
    Let rules act on a job.

    Args:
        pairs: its options as given, the weakest first.
        make: the job of some options.

    Raises:
        UsageError: a rule refuses it, or asks for what cannot be.
    """
    said, notes = list(pairs), []
    job = make(said)
    for rule in rules:
        if not all(matches(key, value, job, facts) for key, value in rule.match):
            continue
        if rule.refuse:
            raise UsageError(f"refused: {rule.refuse} ({rule.origin})")
        for verb, pair in rule.changes:
            for added, words in _changed(verb, pair, job, said):
                said = _with(said, added)
                job = make(said)
                notes.append(f"{words} ({rule.origin})")
    return Ruled(said, tuple(notes))


def matches(key: str, value: Any, job: Job, facts: Facts) -> bool:
    """Whether one condition of a rule holds."""
    if key == "command":
        names = (facts.program, facts.program.rpartition("/")[2], facts.line)
        return any(fnmatchcase(name, pattern) for name in names for pattern in value)
    if key in _GLOBS:
        text = {"name": job.name, "user": job.user, "host": job.submit_host, "chdir": job.chdir}[key]
        return any(fnmatchcase(text, pattern) for pattern in value)
    if key == "gres":
        return any(fnmatchcase(name, pattern) for name in job.wants for pattern in value)
    if key == "script_contains":
        return any(text in facts.script or text in facts.line for text in value)
    if key in _BOUNDS:
        sign = 1 if key == "over" else -1
        amounts = [(have, bound) for pair in value for _, have, bound in _amounts(pair, job)]
        return all(sign * have > sign * bound for have, bound in amounts)
    size = sum(facts.inputs().values())
    return bool(size > value if key == "inputs_over" else size < value)


def _changed(verb: str, pair: Pair, job: Job, said: Sequence[Pair]) -> list[tuple[Pair, str]]:
    """The options that a change adds, each with words for people."""
    if verb in ("minimum", "maximum"):
        bound_words, sign = ("at least", 1) if verb == "minimum" else ("at most", -1)
        found = []
        for one, have, bound in _amounts(pair, job):
            if sign * have < sign * bound:
                was = "unlimited" if have == inf else _show(one, have)
                found.append((one, f"{one.name} {one.value} instead of {was}, {bound_words} that is asked for"))
        return found
    if verb == "default":
        known = {place for other in said for place in _places(BY_NAME[other.name].parse(other.value))}
        if known & _places(BY_NAME[pair.name].parse(pair.value)):
            return []
        return [(pair, f"{pair.name} {pair.value}, since nothing was said")]
    if _holds(BY_NAME[pair.name].parse(pair.value), job):
        return []
    return [(pair, f"{pair.name} {pair.value}, whatever was said")]


def _amounts(pair: Pair, job: Job) -> list[tuple[Pair, float, float]]:
    """(option for the bound alone, what the job has, the bound) of each amount in an option."""
    found: list[tuple[Pair, float, float]] = []
    for field, value in BY_NAME[pair.name].parse(pair.value).items():
        if field == "wants":
            for name, bound in value.items():
                one = Pair(pair.name, f"{name}:{show_amount(bound)}") if pair.name == "gres" else pair
                found.append((one, job.wants.get(name, 0), bound))
        else:
            have = getattr(job, field)
            found.append((pair, inf if have is None else have, inf if value is None else value))
    return found


def _show(pair: Pair, amount: float) -> str:
    if pair.name in ("mem", "time"):
        return show_mb(int(amount)) if pair.name == "mem" else show_seconds(amount)
    return show_amount(int(amount)) if "wants" in BY_NAME[pair.name].parse(pair.value) else f"{amount:g}"


def _places(fields: Fields) -> set[str]:
    """What an option decides about: fields of a job, and each resource by itself."""
    return {place for f, v in fields.items() for place in ([f"wants {n}" for n in v] if f == "wants" else [f])}


def _holds(fields: Fields, job: Job) -> bool:
    for field, value in fields.items():
        have = job.wants if field == "wants" else getattr(job, field)
        if have != value and not (field == "wants" and all(have.get(name) == n for name, n in value.items())):
            return False
    return True


def _with(said: Sequence[Pair], added: Pair) -> list[Pair]:
    """An option more; a list of resources is added to, since of one option given twice the last would win."""
    if added.name == "gres":
        earlier = [pair.value for pair in said if BY_NAME[pair.name].name == "gres"]
        added = added._replace(value=",".join([*earlier[-1:], added.value]))
    return [*said, added]
