"""
Amounts of what nodes have and jobs want: cpus, memory, and anything else a site counts.

A *node describes* a capacity, a *job requests*, a *node allocates* (HyperQueue's words).
All three are the same value: a mapping from a resource's name to thousandths of its unit, so
that half a cpu is exact and ten tenths are one. `cpus` (unit: a logical cpu) and `mem` (unit:
MB of 2**20 bytes) are two names among many.
Invariant: amounts are never negative; free = capacity - sum(allocations), in every dimension.
"""

import re
from collections.abc import Iterable, Mapping

from spoolq.errors import UsageError

Amounts = Mapping[str, int]

UNIT = 1000
CPUS, MEM = "cpus", "mem"
NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")

_NUMBER = re.compile(r"(\d{1,12})(?:\.(\d{1,6}))?")
_SIZE = re.compile(r"(\d{1,12}(?:\.\d{1,6})?)\s*([kKmMgGtTpP]?)(?:i?[bB])?")
_TIME_PART = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_MB = {"k": 1 / 1024, "m": 1, "g": 1024, "t": 1024**2, "p": 1024**3}


def fits(want: Amounts, free: Amounts) -> bool:
    """Whether every wanted amount is free; what a node does not have, it has none of."""
    return all(amount <= free.get(name, 0) for name, amount in want.items())


def lacking(want: Amounts, free: Amounts) -> list[str]:
    """The names of what is wanted and not free, in a stable order."""
    return sorted(name for name, amount in want.items() if amount > free.get(name, 0))


def add(*parts: Amounts) -> dict[str, int]:
    """The sum of n amounts."""
    total: dict[str, int] = {}
    for part in parts:
        for name, amount in part.items():
            total[name] = total.get(name, 0) + amount
    return total


def free_of(capacity: Amounts, allocations: Iterable[Amounts]) -> dict[str, int]:
    """What is left of a capacity; never below zero, since an operator may shrink a busy node."""
    left = dict(capacity)
    for part in allocations:
        for name, amount in part.items():
            left[name] = max(0, left.get(name, 0) - amount)
    return left


def parse_amount(text: str, what: str = "amount") -> int:
    """Thousandths from `4`, `0.5`; UsageError otherwise."""
    match = _NUMBER.fullmatch(text.strip())
    if not match:
        raise UsageError(f"{what}: {text[:40]!r} is no number (examples: 4, 0.5)")
    return int(match[1]) * UNIT + round(float("0." + (match[2] or "0")) * UNIT)


def show_amount(amount: int) -> str:
    """The shortest text that `parse_amount` reads back: `4`, `0.5`."""
    whole, part = divmod(amount, UNIT)
    return f"{whole}.{part:03d}".rstrip("0") if part else str(whole)


def parse_mb(text: str, what: str = "mem") -> int:
    """
    Thousandths of MB from `500`, `500M`, `3G`, `1.5G`, `2GiB`; a bare number is MB.

    All letters are powers of 1024, as Slurm and HyperQueue count.
    """
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise UsageError(f"{what}: {text[:40]!r} is no amount of memory (examples: 500, 500M, 3G)")
    return round(float(match[1]) * _MB[(match[2] or "m").lower()] * UNIT)


def show_mb(amount: int) -> str:
    """`500M`, `3G`, `1.5G`: for people."""
    mb = amount / UNIT
    for letter, size in (("T", 1024**2), ("G", 1024)):
        if mb >= size:
            return f"{mb / size:.4g}{letter}"
    return f"{mb:.4g}M"


def parse_seconds(text: str, what: str = "time") -> int | None:
    """
    Seconds from Slurm's and HyperQueue's notations; None for `unlimited`.

    `30` = 30 minutes; `30:00`; `2:30:00`; `1-12`; `1-12:30`; `90s`, `45m`, `2h30m`, `2d`.
    """
    text = text.strip()
    if text.lower() in ("unlimited", "infinite", "none"):
        return None
    if re.fullmatch(r"\d{1,9}(\.\d{1,3})?", text):
        return round(float(text) * 60)
    parts = _TIME_PART.findall(text.lower())
    if parts and "".join(n + unit for n, unit in parts) == text.lower():
        return round(sum(float(n) * _SECONDS[unit] for n, unit in parts))
    match = re.fullmatch(r"(?:(\d{1,6})-)?(\d{1,9})(?::(\d{1,2}))?(?::(\d{1,2}))?", text)
    if not match:
        raise UsageError(
            f"{what}: {text[:40]!r} is no time (examples: 30 = minutes, 2:30:00, 90s, 2h30m, 1-12, unlimited)"
        )
    days, a, b, c = (int(x) if x else None for x in match.groups())
    if days is not None:
        return days * 86400 + (a or 0) * 3600 + (b or 0) * 60 + (c or 0)
    if c is not None:
        return (a or 0) * 3600 + (b or 0) * 60 + c
    return (a or 0) * 60 + (b or 0)


def show_seconds(seconds: float | None) -> str:
    """`1-12:00:00`, `2:30:00`, `30:00`, `0:05`: for people."""
    if seconds is None:
        return "unlimited"
    whole = int(seconds)
    days, rest = divmod(whole, 86400)
    hours, rest = divmod(rest, 3600)
    clock = f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if days or hours else f"{rest // 60}:{rest % 60:02d}"
    return f"{days}-{hours:02d}:{rest // 60:02d}:{rest % 60:02d}" if days else clock


def show(amounts: Amounts) -> str:
    """`4 cpus, 500M mem, 1 gpu`: for people."""
    words = [
        f"{show_mb(amounts[name])} mem" if name == MEM else f"{show_amount(amounts[name])} {name}"
        for name in sorted(amounts, key=lambda n: (n != CPUS, n != MEM, n))
    ]
    return ", ".join(words) or "nothing"
