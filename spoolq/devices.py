"""
Devices that are told apart: which of a node's gpus a job gets, and how it is told.

A kind of device is a resource like any other (`gpu`, `fpga`: a name, and so many of them), but its units have
ids, and a job holds certain ones: whole devices, and at most one part of one, never a part of two. Who holds
what is not written anywhere else than where the job itself is: the runner's journal has it in the line that
precedes the start, so whoever comes after a killed daemon or runner knows it of every process that may live.
Invariants: of one device no more than the whole is lent; what is busy outside spoolq is not lent at all; the
same free devices and wants give the same answer.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from spoolq.errors import UsageError
from spoolq.resources import CPUS, MEM, NAME, UNIT, Amounts, show_amount

Held = Mapping[str, Mapping[str, int]]  # kind -> id -> thousandths of it
Busy = Mapping[str, Collection[str]]  # kind -> ids that others use

NONE_HELD: Held = MappingProxyType({})
GPU = "gpu"
CUDA = "CUDA_VISIBLE_DEVICES"
# CUDA counts the fastest first unless told; /dev, nvidia-smi and NVML count by bus (CUDA C++ Programming Guide)
CUDA_ORDER = "CUDA_DEVICE_ORDER=PCI_BUS_ID"
OWN = "SPOOLQ_DEVICES_"  # and the kind in capitals: the ids that a job holds
MOST = 1024

_ENV = {GPU: (CUDA,)}
_VARIABLE = re.compile(r"([A-Za-z_][A-Za-z0-9_]{0,63})(?:=([ -~]*))?")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/-]{0,63}")
_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class Kind(NamedTuple):
    """
    One kind of device on a node.

    Args:
        ids: as its variables name them, in the order in which they are lent.
        env: variables that say which ones a job may use: `NAME`, or `NAME=PREFIX` for one whose value is the
            prefix and the ids.
        none: the value for jobs that hold none; None leaves the variables alone then.
        type: what the label `<kind>_type` says, or empty.
    """

    ids: tuple[str, ...]
    env: tuple[str, ...] = ()
    none: str | None = ""
    type: str = ""


Kinds = Mapping[str, Kind]


def numbered(name: str, count: int) -> Kind:
    """Devices 0 to count - 1, with the variable that is usual for the name."""
    return Kind(tuple(str(number) for number in range(count)), _ENV.get(name, ()))


class Stock:
    """What is free of each device, while jobs are planned or started one after the other."""

    def __init__(self, kinds: Kinds, held: Iterable[Held] = (), busy: Busy = MappingProxyType({})) -> None:
        """What is left of `kinds` beside what is held and what others use."""
        self.free = {name: dict.fromkeys(kind.ids, UNIT) for name, kind in kinds.items()}
        self.busy = {name: [i for i in kind.ids if i in busy.get(name, ())] for name, kind in kinds.items()}
        self.kept: set[str] = set()
        for holding in held:
            self._subtract(holding)
        for name, ids in self.busy.items():
            self.free[name] |= dict.fromkeys(ids, 0)

    def copy(self) -> "Stock":
        """The same, to plan with."""
        other = Stock({})
        other.free = {name: dict(free) for name, free in self.free.items()}
        other.busy = self.busy
        return other

    def lend(self, wants: Amounts) -> Held | None:
        """
        Devices for a job, which are free no longer; {} if it wants none.

        None: not to be had now, though there may be enough in parts. Then, for the first of them, the emptiest are
        kept from those who come after it, or parts of devices, lent again and again, would never make a whole one.
        """
        found = {}
        for name, free in self.free.items():
            if amount := wants.get(name, 0):
                picked = pick(amount, free)
                if picked is None:
                    if name not in self.kept:
                        self._keep(amount, free)
                        self.kept.add(name)
                    return None
                found[name] = picked
        self._subtract(found)
        return found

    def total(self, name: str) -> int:
        """What is free in all, thousandths."""
        return sum(self.free[name].values())

    def why(self, wants: Amounts) -> str:
        """Why devices that are free in sum cannot be lent, in words; empty if they can."""
        words = []
        for name, free in self.free.items():
            if (amount := wants.get(name, 0)) and pick(amount, free) is None:
                parts = [f"{show_amount(left)} of {name} {number}" for number, left in free.items() if left]
                where = "of one device" if amount < UNIT else "on whole devices"
                words.append(f"needs {show_amount(amount)} {name} {where}, free are {', '.join(parts) or 'none'}")
        return "; ".join(words)

    def _subtract(self, holding: Held) -> None:
        for name, ids in holding.items():
            free = self.free.get(name, {})
            for number, amount in ids.items():
                if number in free:  # else of a device that the site has taken away since
                    free[number] = max(0, free[number] - amount)

    @staticmethod
    def _keep(amount: int, free: dict[str, int]) -> None:
        emptiest = sorted(free, key=lambda number: -free[number])
        for number in emptiest[: -(-amount // UNIT)]:
            free[number] = 0


class Bench:
    """
    What a node remembers of its devices while it serves.

    `busy`: ids that processes outside spoolq use, as measured. `strays`: what jobs hold, by id and attempt,
    that still run and whose entries others have taken over.
    """

    def __init__(self, kinds: Kinds) -> None:
        """Nothing is held or known to be busy."""
        self.kinds = kinds
        self.busy: dict[str, frozenset[str]] = {}
        self.strays: dict[tuple[int | str, int], Held] = {}

    def stock(self, held: Iterable[Held]) -> Stock:
        """What is free; `held`: what each job of this node holds."""
        return Stock(self.kinds, [*held, *self.strays.values()], self.busy)

    def facts(self, held: Mapping[int | str, Held]) -> dict[str, Any]:
        """
        For node.json: `devices`: kind -> id -> job -> thousandths. Nothing without devices.

        Args:
            held: by the id of the job.
        """
        if not self.kinds:
            return {}
        found: dict[str, dict[str, dict[str, int]]] = {n: {i: {} for i in kind.ids} for n, kind in self.kinds.items()}
        for job_id, holding in held.items():
            for name, ids in holding.items():
                for number, amount in ids.items():
                    found.setdefault(name, {}).setdefault(number, {})[str(job_id)] = amount
        return {"devices": found}


def pick(amount: int, free: Mapping[str, int]) -> dict[str, int] | None:
    """
    Ids and how much of each; None if there are not so many.

    Whole devices come first in order; a part comes from the fullest device that has it, so that whole ones stay.

    Args:
        amount: thousandths, more than 0.
        free: id -> thousandths.
    """
    whole, part = divmod(amount, UNIT)
    empty = [number for number, left in free.items() if left >= UNIT]
    if len(empty) < whole:
        return None
    picked = dict.fromkeys(empty[:whole], UNIT)
    if part:
        able = [number for number, left in free.items() if left >= part and number not in picked]
        if not able:
            return None
        picked[min(able, key=lambda number: free[number])] = part
    return picked


def lines(env: list[str], kinds: Kinds, held: Held) -> list[str]:
    """
    The environment of a job, with the variables that say what it holds; whatever was exported gives way to them.

    Args:
        env: `NAME=VALUE` texts.
    """
    said: dict[str, str] = {}
    ids: dict[str, list[str]] = {}
    for name, kind in kinds.items():
        mine = list(held.get(name, ()))
        for variable in kind.env:
            key, _, prefix = variable.partition("=")
            so_far = ids.setdefault(key, [])
            so_far += mine  # two kinds may share a variable
            if so_far:
                said[key] = prefix + ",".join(so_far)
            elif kind.none is not None:
                said[key] = kind.none
        if mine:
            said[OWN + name.upper()] = ",".join(mine)
    ours = [f"{key}={value}" for key, value in said.items()]
    if said.get(CUDA):
        ours.append(CUDA_ORDER)
    taken = {line.partition("=")[0] for line in ours}
    return [line for line in env if line.partition("=")[0] not in taken] + ours


# --- what sites and nodes say


def check_devices(table: object) -> dict[str, Kind]:
    """The kinds in a configuration: `{ gpu = 2 }`, `{ gpu = { index = [0, 2], env = "..", .. } }`; UsageError."""
    if not isinstance(table, Mapping):
        raise UsageError('must be a table (example: { gpu = 2, fpga = { index = [0, 2], env = "FPGA_IDS" } })')
    return {str(name): _kind(str(name), said) for name, said in table.items()}


def _kind(name: str, said: object) -> Kind:
    if not NAME.fullmatch(name) or name in (CPUS, MEM):
        raise UsageError(f"{name[:60]!r} is no name for a device (lower case letters, digits and _)")
    given: Mapping[str, Any] = said if isinstance(said, Mapping) else {"count": said}
    if unknown := sorted(given.keys() - {"count", "index", "env", "type", "none"}):
        raise UsageError(f"{name}: unknown key {str(unknown[0])[:60]!r} (count, index, env, type, none)")
    if ("count" in given) == ("index" in given):
        raise UsageError(f"{name}: say either count or index")
    if "index" in given:
        index = given["index"]
        ids = tuple(str(i) for i in index if type(i) in (int, str)) if isinstance(index, list) else ()
        if not ids or len(ids) != len(index) or len(set(ids)) != len(ids) or not all(map(_ID.fullmatch, ids)):
            raise UsageError(f"{name}: index: must be a list of different numbers or ids (example: [0, 2])")
    else:
        count = given["count"]
        if type(count) is not int or not 0 <= count <= MOST:
            raise UsageError(f"{name}: count: must be a whole number of at most {MOST}")
        ids = numbered(name, count).ids
    env = given.get("env", _ENV.get(name, ()))
    variables = (env,) if isinstance(env, str) else tuple(env) if isinstance(env, list | tuple) else (None,)
    if not all(isinstance(variable, str) and _VARIABLE.fullmatch(variable) for variable in variables):
        raise UsageError(f'{name}: env: must be NAME or NAME=PREFIX, or a list of them (example: "{CUDA}")')
    none = given.get("none", "")
    if none is not False and not (isinstance(none, str) and none.isprintable()):
        raise UsageError(f"{name}: none: must be a string, or false to leave the variables alone")
    kind = given.get("type", "")
    if not isinstance(kind, str) or (kind and not _TYPE.fullmatch(kind)):
        raise UsageError(f"{name}: type: must be a word (example: a100)")
    return Kind(ids, tuple(str(variable) for variable in variables), None if none is False else none, kind)


def limited(name: str, kind: Kind | None, amount: int) -> Kind:
    """
    A kind of which a node lends only so many; without one, devices that are numbered.

    Raises:
        UsageError: a part of a device.
    """
    count, part = divmod(amount, UNIT)
    if part or count > MOST:
        raise UsageError(f"{name}: {show_amount(amount)}: devices are lent by whole numbers of at most {MOST}")
    if kind and count <= len(kind.ids):
        return kind._replace(ids=kind.ids[:count])
    plain = numbered(name, count)
    return kind._replace(ids=plain.ids) if kind else plain


def sound(said: object) -> dict[str, dict[str, int]]:
    """Kind -> id -> thousandths, of what others wrote; what is none of that is left out."""
    found: dict[str, dict[str, int]] = {}
    for name, ids in said.items() if isinstance(said, Mapping) else ():
        if isinstance(ids, Mapping):
            found[str(name)] = {str(i): amount for i, amount in ids.items() if type(amount) is int and amount >= 0}
    return found


def said(facts: Mapping[str, Any]) -> dict[int | str, dict[str, dict[str, int]]]:
    """Who holds what by a node.json: the id of the job -> what it holds."""
    found: dict[int | str, dict[str, dict[str, int]]] = {}
    table = facts.get("devices")
    for name, ids in table.items() if isinstance(table, Mapping) else ():
        for number, jobs in sound(ids).items():
            for job_id, amount in jobs.items():
                if job_id.replace("_", "").replace("-", "").isdecimal():
                    unit = int(job_id) if job_id.isdecimal() else job_id
                    found.setdefault(unit, {}).setdefault(name, {})[number] = amount
    return found


def stock_said(facts: Mapping[str, Any], present: Collection[int | str]) -> Stock | None:
    """What is free by a node.json, but for jobs that are not there any more; None if it tells no devices apart."""
    table, busy = facts.get("devices"), facts.get("busy")
    if not isinstance(table, Mapping) or not table:
        return None
    kinds = {str(name): Kind(tuple(map(str, ids))) for name, ids in table.items() if isinstance(ids, Mapping)}
    lists = (
        {name: [*map(str, ids)] for name, ids in busy.items() if isinstance(ids, list)}
        if isinstance(busy, Mapping)
        else {}
    )
    return Stock(kinds, [held for job_id, held in said(facts).items() if job_id in present], lists)


def show(held: Held) -> str:
    """`gpu 0,2; fpga 1 (0.5)`: for people."""
    words = []
    for name, ids in held.items():
        numbers = [i if amount >= UNIT else f"{i} ({show_amount(amount)})" for i, amount in ids.items()]
        words.append(f"{name} {','.join(numbers)}")
    return "; ".join(words)
