"""
Which jobs a command means: `42`, `40-45`, `42,44`, `42_7`, `last`, `@name`, `all`, and filters.

A few ids are looked up one by one, a few listings each; many ids, names and filters are answered
from one listing of everything live and, where needed, the finished groups of the ids in question.
Invariant: what was asked for and does not exist is reported, and never stops the rest; without
words and without a filter nothing is selected, so that no slip can kill every job.
"""

import os
import pwd
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from spoolq import array, home
from spoolq.arguments import Flag, Given
from spoolq.entry import HOMES, label_of, order
from spoolq.errors import NotFound, UsageError
from spoolq.job import parse_id
from spoolq.spool import Placed, Spool
from spoolq.state import ENDED, State

FEW = 8  # ids that are cheaper to look up one by one than by listing everything
BACK = 64  # ids that `last` looks back one by one before it lists everything
MOST_RANGE = 10_000_000

FILTER_FLAGS = (
    Flag("state", "t", "STATES", "only jobs in these states: pending, PD, running, failed, live, ended, ...", "state"),
    Flag("user", "u", "USERS", "only jobs of these users (me = you, all = everybody)", "user"),
    Flag("name", "", "NAMES", "only jobs with these names; * and ? are wildcards"),
    Flag("node", "w", "NODES", "only jobs on these nodes; * and ? are wildcards", "node"),
)

_GROUPS = {
    "live": frozenset(State) - ENDED,
    "waiting": frozenset((State.PENDING, State.HELD)),
    "queued": frozenset((State.PENDING, State.HELD)),
    "ended": ENDED,
    "done": ENDED,
    "finished": ENDED,
    "all": frozenset(State),
}
_STATES = {word.lower(): frozenset((state,)) for state in State for word in (state.name, state.value)} | _GROUPS
HELP_WORDS = "JOB: 42, 40-45, 42_7, last_7, 42_[3-9] of an array, last (your newest), @name, all (of yours not ended)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """What a job must be; an empty part lets everything through."""

    states: frozenset[State] = frozenset()
    users: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    everybody: bool = False  # `--user all` was said: `all` and `@name` are not only one's own

    def __bool__(self) -> bool:
        return bool(self.states or self.users or self.names or self.nodes or self.everybody)

    def mine(self, placed: Placed) -> bool:
        """Whether a job is the caller's own, or the filter says whose jobs are meant."""
        return self.everybody or bool(self.users) or placed.entry.owner in (me(), "")

    def passes(self, placed: Placed) -> bool:
        """Whether a job is meant."""
        entry = placed.entry
        return (
            (not self.states or placed.state in self.states)
            and (not self.users or entry.owner in self.users)
            and (not self.names or any(fnmatchcase(entry.label, name) for name in self.names))
            and (not self.nodes or any(fnmatchcase(placed.node, node) for node in self.nodes))
        )


@dataclass(slots=True)
class Selected:
    """
    The jobs that were found, and a message for each word that stands for none.

    Of an array the jobs are its chunks; `tasks` says which tasks are meant of those that are not meant whole.
    """

    jobs: list[Placed] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    tasks: dict[int | str, list[int]] = field(default_factory=dict)


def me() -> str:
    """This user as entries name their owner."""
    try:
        return label_of(pwd.getpwuid(os.getuid()).pw_name)[:32]
    except KeyError:
        return str(os.getuid())


def filter_of(given: Given) -> Filter:
    """The filter in a command line that has FILTER_FLAGS."""
    states: frozenset[State] = frozenset()
    for word in given.every("state"):
        states |= parse_states(word)
    users = given.every("user")
    return Filter(
        states=states,
        users=() if "all" in users else tuple(me() if user == "me" else label_of(user)[:32] for user in users),
        names=tuple(_label_pattern(name) for name in given.every("name")),
        nodes=tuple(given.every("node")),
        everybody="all" in users,
    )


def parse_states(word: str) -> frozenset[State]:
    """States from a word of any case: `failed`, `PD`, `live`, `waiting`, `ended`."""
    found = _STATES.get(word.strip().lower())
    if found is None:
        raise UsageError(
            f"{word[:40]!r} is no state (states: {', '.join(s.name.lower() for s in State)}, live, waiting, ended)"
        )
    return found


def _label_pattern(name: str) -> str:
    # labels hold safe letters only; wildcards stay
    return "".join(c if c in "*?" else label_of(c) or "_" for c in name)[:80]


def parse_words(words: Iterable[str]) -> list[str]:
    """Words between commas, each checked; nothing is looked up. An empty word (`"$unset"`) is an error, not nothing."""
    parts = [part for word in words for part in _split(word) if part or not word.strip(",")]
    for part in parts:
        if part not in ("last", "all") and part[:1] != "@" and not array.parse_unit(part.replace("last_", "1_", 1)):
            parse_range(part)
    return parts


def _split(word: str) -> list[str]:
    if "[" not in word:
        return word.split(",")
    return re.findall(r"(?:[^,\[]|\[[^\]]*\]?)+", word)  # commas in brackets do not part


def parse_range(part: str) -> tuple[int, int]:
    """(40, 45) from `40-45`, (42, 42) from `42`; UsageError otherwise."""
    low, dash, high = part.partition("-")
    first = parse_id(low) if low.isdigit() else parse_id(part)
    last = parse_id(high) if dash else first
    if not first <= last <= first + MOST_RANGE:
        raise UsageError(f"{part[:60]!r} is no range of job ids (example: 40-45)")
    return first, last


class Finder:
    """Looks up jobs of one spool; remembers a listing, so make a new one for a new question."""

    def __init__(self, spool: Spool, *, ended: bool = True) -> None:
        """
        Nothing is listed yet.

        Args:
            ended: whether ranges and names also mean finished jobs.
        """
        self.spool, self.ended = spool, ended
        self._live: dict[int, list[Placed]] | None = None
        self._groups: dict[int, dict[int, list[Placed]]] = {}

    def live(self) -> dict[int, list[Placed]]:
        """Everything that has not ended, by id; listed once."""
        if self._live is None:
            self._live = {}
            for placed in self.spool.live():
                self._live.setdefault(placed.entry.id, []).append(placed)
        return self._live

    def group(self, number: int) -> dict[int, list[Placed]]:
        """The finished jobs of one directory of done/, by id; listed once."""
        if number not in self._groups:
            found = self._groups[number] = {}
            for placed in self.spool.done(number):
                found.setdefault(placed.entry.id, []).append(placed)
        return self._groups[number]

    def by_id(self, job_id: int) -> list[Placed]:
        """One job, ended or not, or the chunks of an array; NotFound if there is none."""
        if self._live is None:
            found = [self.spool.find(job_id)]
            if not found[0].entry.chunk:
                return found
        found = self.live().get(job_id, [])
        if not found or found[0].entry.chunk:
            seen = {placed.entry.chunk for placed in found}
            ended = self.group(job_id // HOMES).get(job_id, [])
            found = sorted([*found, *(at for at in ended if at.entry.chunk not in seen)], key=_id)
        # neither live nor done in the listings: it may have moved between them
        return found or [self.spool.find(job_id)]

    def holding(self, job_id: int, numbers: array.Spec) -> list[tuple[Placed, list[int]]]:
        """The chunks of an array that hold some of its tasks, and which; NotFound for a task that there is not."""
        from spoolq import tally

        spec = tally.spec_of(self.spool, job_id)
        wanted = [number for some in numbers.ranges for number in some if spec is not None and number in spec]
        missing = [some[0] for some in numbers.ranges if len(some) == 1 and some[0] not in wanted]  # ranges have gaps
        if missing or not wanted:
            missing = missing or [numbers.low]
            what = f"its tasks are {array.show(spec, limit=False)}" if spec else "it is no array"
            raise NotFound(f"job {job_id}_{array.ranges(missing, 3)}: no such task: {what}")
        chunks = self.by_id(job_id)
        found = [(at, [number for number in wanted if array.holds(at.entry.chunk, number)]) for at in chunks]
        return [(at, mine) for at, mine in found if mine]

    def everything(self, states: frozenset[State]) -> list[Placed]:
        """All live jobs, and the finished ones if such states are asked for, in order of id."""
        found = [placed for chunks in self.live().values() for placed in chunks]
        if self.ended and states & ENDED:
            for number in self.spool.done_groups():
                for job_id, some in self.group(number).items():
                    live = {at.entry.chunk for at in self.live().get(job_id, [])}
                    found += [placed for placed in some if placed.entry.chunk not in live]
        return sorted(found, key=_id)

    def between(self, low: int, high: int) -> list[Placed]:
        """The jobs with ids low .. high that exist."""
        found = {id_: placed for id_, placed in self.live().items() if low <= id_ <= high}
        if self.ended:
            for number in self.spool.done_groups():
                if low // HOMES <= number <= high // HOMES:
                    for id_, some in self.group(number).items():
                        if low <= id_ <= high:
                            live = {at.entry.chunk for at in found.get(id_, [])}
                            found[id_] = found.get(id_, []) + [at for at in some if at.entry.chunk not in live]
        return [placed for id_ in sorted(found) for placed in found[id_]]

    def newest(self, owner: str) -> Placed:
        """The newest job of a user; NotFound if there is none."""
        highest = home.highest(self.spool.root)
        for job_id in range(highest, max(0, highest - BACK), -1):
            try:
                placed = self.spool.find(job_id)
            except NotFound:
                continue  # an id of a submission that was never finished, or swept
            if placed.entry.owner in (owner, ""):
                return placed
        for placed in self._newest_first():
            if placed.entry.owner == owner:
                return placed
        raise NotFound(f"last: no job of {owner} in {self.spool.root}")

    def _newest_first(self) -> Iterator[Placed]:
        """Live jobs, then finished ones a group at a time; the newest of all is the first of one of the two."""
        live = sorted((placed for chunks in self.live().values() for placed in chunks), key=_id, reverse=True)
        for number in self.spool.done_groups():
            while live and live[0].entry.id // HOMES > number:
                yield live.pop(0)
            ended = [placed for some in self.group(number).values() for placed in some]
            mixed = [*ended, *(p for p in live if p.entry.id // HOMES == number)]
            live = [placed for placed in live if placed.entry.id // HOMES < number]
            yield from sorted(mixed, key=_id, reverse=True)
        yield from live

    def named(self, name: str, filters: Filter) -> list[Placed]:
        """The live jobs of a name; where finished ones count and none is live, the newest finished one."""
        pattern = _label_pattern(name)

        def fits(placed: Placed) -> bool:
            return fnmatchcase(placed.entry.label, pattern) and filters.mine(placed)

        live = [placed for chunks in self.live().values() for placed in chunks if fits(placed)]
        if live or not self.ended:
            return sorted(live, key=_id)
        for number in self.spool.done_groups():
            match = [placed for some in self.group(number).values() for placed in some if fits(placed)]
            if match:
                newest = max(placed.entry.id for placed in match)
                return sorted((placed for placed in match if placed.entry.id == newest), key=_id)
        return []


def _id(placed: Placed) -> tuple[int, int]:
    return order(placed.entry)[1:]


def select(spool: Spool, words: Sequence[str], filters: Filter | None = None, *, ended: bool = True) -> Selected:
    """
    The jobs that words and filters mean, each once, in the order of the words.

    A filter alone means every job that passes, like `all` and the filter; words and a filter mean both.
    `all` and `@name` are jobs of the calling user unless the filter names users.

    Args:
        ended: whether ranges and names also mean finished jobs; a single id always does.
    """
    filters = filters or Filter()
    parts = parse_words(words)
    finder = Finder(spool, ended=ended)
    if sum(1 for part in parts if part.isdigit()) > FEW:
        finder.live()
    chosen = Selected()
    if not parts and filters:
        parts = ["all"]
    seen: set[int | str] = set()
    for part in parts:
        try:
            found = _tasks_of_part(finder, part, filters)
        except NotFound as error:
            chosen.missing.append(str(error))
            continue
        for placed, numbers in found:
            unit = placed.entry.unit
            if filters.passes(placed):
                if unit not in seen:
                    chosen.jobs.append(placed)
                if unit not in seen and numbers is not None:
                    chosen.tasks[unit] = numbers
                elif numbers is None or unit not in chosen.tasks:
                    chosen.tasks.pop(unit, None)  # one word means all of it
                else:
                    chosen.tasks[unit] = sorted({*chosen.tasks[unit], *numbers})
                seen.add(unit)
    return chosen


def _tasks_of_part(finder: Finder, part: str, filters: Filter) -> list[tuple[Placed, list[int] | None]]:
    """Jobs, and which tasks are meant of each; None: all of it."""
    named = None if part in ("last", "all") or part[0] == "@" else array.parse_unit(_numbered(finder, part))
    if named is None:
        return [(placed, None) for placed in _of_part(finder, part, filters)]
    found = finder.holding(*named)
    return [(at, None if at.entry.chunk == f"a{numbers[0]}" else numbers) for at, numbers in found]


def _numbered(finder: Finder, part: str) -> str:
    """`42_7` for `last_7`, everything else as it is."""
    return f"{finder.newest(me()).entry.id}{part[4:]}" if part.startswith("last_") else part


def _of_part(finder: Finder, part: str, filters: Filter) -> list[Placed]:
    if part == "last":
        newest = finder.newest(filters.users[0] if filters.users else me())
        return finder.by_id(newest.entry.id) if newest.entry.chunk else [newest]
    if part == "all":
        wanted = finder.everything(filters.states)
        return [placed for placed in wanted if filters.mine(placed)]
    if part[0] == "@":
        found = finder.named(part[1:], filters)
        if not found:
            raise NotFound(f"{part}: no job of that name" + ("" if finder.ended else " that has not ended"))
        return found
    low, high = parse_range(part)
    if low == high:
        return finder.by_id(low)
    found = finder.between(low, high)
    if not found:
        raise NotFound(f"{part}: no job" + ("" if finder.ended else " that has not ended"))
    return found


def resolve(spool: Spool, words: Sequence[str]) -> list[int | str]:
    """
    The ids that words mean, each once, and `42_7` for a task of an array.

    Single ids are not looked up, so they may not exist.

    Raises:
        UsageError: a word is no selector.
        NotFound: a name, a range, `last` or `all` stands for no job.
    """
    finder = Finder(spool)
    ids: dict[int | str, None] = {}
    for part in parse_words(words):
        if part.isdigit():
            ids[parse_id(part)] = None
        elif part[0] not in "@a" and (named := array.parse_unit(_numbered(finder, part))):
            ids.update(
                dict.fromkeys(f"{named[0]}_{number}" for _, numbers in finder.holding(*named) for number in numbers)
            )
        else:
            found = _of_part(finder, part, Filter())
            if not found:
                raise NotFound(f"{part}: no job")
            ids.update(dict.fromkeys(placed.entry.id for placed in found))
    return list(ids)
