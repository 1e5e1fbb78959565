"""
Entry names: the state of a job, in a text that `ls` sorts, a person reads and a shell passes unquoted.

    500.42.0.1~c4,m500,t60,@anna~align
    rank.id.gen.attempt ~ facts ~ label

An entry's name and directory are its whole scheduling state, so choosing among 100,000 jobs costs
directory listings and no open. `gen` counts the renames of the entry: every rename raises it, so no
name is ever the target of two renames, a late or repeated rename finds its source gone, and gen is
the fencing number. `attempt` counts executions, from 1.
Invariant: parse(format(e)) == e; a text that is not exactly a name is None, never a guess.
"""

import contextlib
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from spoolq.resources import CPUS, MEM, UNIT, Amounts, parse_amount, show_amount

MAX_NAME = 200  # bytes; every file system takes 255, and NFS servers add suffixes of their own
MAX_LABEL = 40
MIDDLE_RANK = 500  # priority 0; rank = 500 - priority, so that the higher priority sorts first
MIN_PRIORITY, MAX_PRIORITY = -499, 500
BLOCK = 500  # ids per segment: at most 512 names in a directory, and one listing is a few RPCs
HOMES = 1000  # homes per directory

RERUNS = {"never": "N", "certain": "C", "yes": "Y"}
RERUN_WORDS = {letter: word for word, letter in RERUNS.items()}
# why an entry is held: by its user, an operator, a dependency, a begin time, a retry that backs off
HELD = {"HU": "JobHeldUser", "HA": "JobHeldAdmin", "HD": "Dependency", "HB": "BeginTime", "HR": "RetryBackoff"}

_NAME = re.compile(r"(\d{3})\.(\d{1,12})\.(\d{1,9})\.(\d{1,6})~([A-Za-z0-9._,=@-]*)~([A-Za-z0-9._=@-]*)")
_ENDING = re.compile(r"exit\d{1,3}|signal\d{1,3}|timeout|oom|cancelled|nodefail")
# as many digits as `resources.parse_amount` reads
_NUMBER_FACT = re.compile(r"([cmt])(\d{1,12}(?:\.\d{1,6})?)")
_RESOURCE_FACT = re.compile(r"([a-z][a-z0-9_]{0,31})=(\d{1,12}(?:\.\d{1,6})?)")
_CHUNK_FACT = re.compile(r"a\d{1,9}(?:-\d{1,9}){0,2}")
LENDS = "L"  # the fact that a running job waits for jobs of its own and holds no cpus, see `lend`
_PARENT_FACT = re.compile(r"P\d{1,12}")  # among `other`
_UNSAFE = re.compile(r"[^A-Za-z0-9._=@-]+")


RESERVED = "R="  # where a place is kept for a waiting job, see `reserve`
BEGINS = "B="  # when it may begin, see `begin`
IN_LINE = "Q="  # since when it is in line, see `fair`
# facts that mean something in one directory only, and go when the entry leaves it
_PASSING = {"queue": RESERVED, "held": BEGINS, "running": LENDS}

_NOTHING: Amounts = {}


class Entry(NamedTuple):
    """
    What an entry's name says. A named tuple, since dataclasses cost a command 10 ms of its start.

    `wants` are thousandths (see `resources`). `limit_s` is the time limit in seconds or None.
    `ending` is None until the job has ended, then `exit0`, `signal9`, `timeout`, `oom`, `cancelled`
    or `nodefail`. `held` is a key of HELD or empty. `more` says that the job file holds conditions
    (nodes, constraints) that the name does not. `aside`: its node suspended it, see `overload`.
    `chunk` is an array chunk (`a1-100`, or `a7`) or empty.
    `other` keeps facts of newer versions unchanged, and those of arrays (see `array`).
    """

    rank: int
    id: int
    gen: int = 0
    attempt: int = 1
    ending: str | None = None
    wants: Amounts = _NOTHING
    limit_s: int | None = None
    rerun: str = "C"
    owner: str = ""
    held: str = ""
    suspended: bool = False
    aside: bool = False
    more: bool = False
    chunk: str = ""
    other: tuple[str, ...] = ()
    label: str = ""

    @property
    def priority(self) -> int:
        """Higher is sooner."""
        return MIDDLE_RANK - self.rank

    @property
    def unit(self) -> int | str:
        """What it is called where entries are told apart: the id; of an array `42_1-100`, or `42_7` for one task."""
        return f"{self.id}_{self.chunk[1:]}" if self.chunk else self.id

    @property
    def name(self) -> str:
        """The name this entry has in its directory."""
        return format_name(self)

    @property
    def parent(self) -> int:
        """The job that submitted this one, perhaps to wait for it, or 0."""
        return next((int(fact[1:]) for fact in self.other if _PARENT_FACT.fullmatch(fact)), 0)

    def next(self, **changes: Any) -> "Entry":
        """The entry after one more rename: gen + 1 and the changes; whoever is not suspended is not aside."""
        if changes.get("suspended") is False:
            changes["aside"] = False
        return self._replace(gen=self.gen + 1, **changes)


def rank_of(priority: int) -> int:
    """Rank from a priority within MIN_PRIORITY..MAX_PRIORITY."""
    assert MIN_PRIORITY <= priority <= MAX_PRIORITY
    return MIDDLE_RANK - priority


def label_of(text: str) -> str:
    """A label from any text: safe letters only, at most MAX_LABEL."""
    return _UNSAFE.sub("_", text).strip("_")[:MAX_LABEL]


def _minutes(limit_s: int) -> str:
    # up to six decimals of a minute read back to the same second
    return f"{limit_s / 60:.6f}".rstrip("0").rstrip(".")


def format_facts(entry: Entry) -> str:
    """The middle part of the name."""
    facts = [entry.ending] if entry.ending else []
    wants = entry.wants
    if CPUS in wants:
        facts.append("c" + show_amount(wants[CPUS]))
    if MEM in wants:
        facts.append("m" + show_amount(wants[MEM]))
    if entry.limit_s is not None:
        facts.append("t" + _minutes(entry.limit_s))
    if entry.rerun != "C":
        facts.append("r" + entry.rerun)
    if entry.owner:
        facts.append("@" + entry.owner)
    facts += [f"{name}={show_amount(wants[name])}" for name in sorted(wants) if name not in (CPUS, MEM)]
    stopped = ("SO" if entry.aside else "S") if entry.suspended else ""
    facts += [fact for fact in (entry.held, stopped, "f" * entry.more, entry.chunk) if fact]
    facts += entry.other
    return ",".join(facts)


def format_name(entry: Entry) -> str:
    """The name; ValueError if it would be longer than MAX_NAME (the submitter checks first)."""
    name = f"{entry.rank:03d}.{entry.id}.{entry.gen}.{entry.attempt}~{format_facts(entry)}~{entry.label}"
    if len(name) > MAX_NAME:
        raise ValueError(f"entry name of {len(name)} bytes: {name}")
    return name


def fitting(entry: Entry) -> Entry:
    """The entry with a name that is not too long: the label gives way, then what only schedulers look at."""
    usual = {name: amount for name, amount in entry.wants.items() if name in (CPUS, MEM)}
    for shorter in (entry, entry._replace(label=""), entry._replace(label="", wants=usual)):
        with contextlib.suppress(ValueError):
            format_name(shorter)
            return shorter
    return entry


def leaving(entry: Entry, top: str) -> Entry:
    """The same without what holds in a directory that it leaves."""
    mark = _PASSING.get(top)
    if not (mark and entry.other):
        return entry
    return entry._replace(other=tuple(fact for fact in entry.other if fact.partition("=")[0] != mark.rstrip("=")))


def released(entry: Entry) -> Entry:
    """The same without a reservation."""
    return leaving(entry, "queue")


def parse_name(name: str) -> Entry | None:
    """The entry that a name stands for, or None for a name that is none."""
    match = _NAME.fullmatch(name)
    if not match or len(name) > MAX_NAME:
        return None
    rank, job_id, gen, attempt, facts, label = match.groups()
    known = _parse_facts(facts)
    entry = Entry(rank=int(rank), id=int(job_id), gen=int(gen), attempt=int(attempt), label=label, **known)
    # one state, one name: a text that would be written differently was not written by us
    return entry if entry.name == name else None


def _parse_facts(text: str) -> dict[str, Any]:
    known: dict[str, Any] = {}
    wants: dict[str, int] = {}
    other: list[str] = []
    for fact in text.split(",") if text else ():
        if match := _NUMBER_FACT.fullmatch(fact):
            letter, number = match.groups()
            if letter == "t":
                known["limit_s"] = round(float(number) * 60)
            else:
                wants[CPUS if letter == "c" else MEM] = parse_amount(number)
        elif fact[:1] == "@":
            known["owner"] = fact[1:]
        elif match := _RESOURCE_FACT.fullmatch(fact):
            wants[match[1]] = parse_amount(match[2])
        elif _ENDING.fullmatch(fact):
            known["ending"] = fact
        elif fact in ("rN", "rY"):
            known["rerun"] = fact[1]
        elif fact in HELD:
            known["held"] = fact
        elif fact in ("S", "f"):
            known["suspended" if fact == "S" else "more"] = True
        elif fact == "SO":
            known["suspended"] = known["aside"] = True
        elif _CHUNK_FACT.fullmatch(fact):
            known["chunk"] = fact
        else:
            other.append(fact)
    known["wants"], known["other"] = wants, tuple(other)
    return known


def segment(rank: int, job_id: int) -> str:
    """
    The segment of queue/ or held/ for a rank and id: `500.000000001`.

    Segments sort by rank, then id, and all ids of one segment have the same number of digits, so
    that the plain `ls queue/*` prints the order in which jobs start without zeros in the ids.
    """
    first = job_id // BLOCK * BLOCK
    digits = 10 ** (len(str(job_id)) - 1)
    return f"{rank:03d}.{max(first, digits) if job_id else 0:09d}"


def segment_holds(name: str, job_id: int) -> bool:
    """Whether a segment's name covers an id, whatever the rank."""
    return name[4:] in (segment(MIDDLE_RANK, job_id)[4:], f"{job_id:09d}a")


def array_segment(entry: Entry) -> str:
    """The segment that the entries of an array have for themselves, so that one rename brings all of them in."""
    return f"{entry.rank:03d}.{entry.id:09d}a"


def together(names: Iterable[str]) -> list[list[str]]:
    """Segments in order, those that have to be read together: a common one, and those of arrays of its ids."""
    found: dict[str, list[str]] = {}
    for name in sorted(names):
        number = name[4:-1]
        of_array = name[-1:] == "a" and number.isdigit()
        found.setdefault(segment(int(name[:3]), int(number)) if of_array else name, []).append(name)
    return [found[name] for name in sorted(found)]


def order(entry: Entry) -> tuple[int, int, int]:
    """The key of the one order on all nodes: rank, then id, then the place in its array."""
    low = entry.chunk[1:].partition("-")[0]
    return (entry.rank, entry.id, int(low) if low.isdecimal() else 0)


def asked(entry: Entry) -> tuple[float, int]:
    """(cpus, MB) for people and JSON."""
    return entry.wants.get(CPUS, 0) / UNIT, entry.wants.get(MEM, 0) // UNIT
