"""
Arrays: which tasks `1-9:2%3` means, into which chunks they are parted, and what becomes of each task.

An entry of an array stands for a chunk: all tasks of the array between two numbers, run one after another with the
resources of one task. Sizes are fixed at submission and shrink towards the end (guided self-scheduling,
Polychronopoulos and Kuck 1987), so 100,000 tasks cost some hundred entries and the last ones still spread; of a short
array each task is an entry of its own.
Invariants: every task is in exactly one chunk; what a task came to is read off its lines alone, in any order.
"""

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from spoolq.entry import Entry
from spoolq.errors import UsageError
from spoolq.state import State, shell_code

MOST_TASKS = 1_000_000
MOST_NUMBER = 999_999_999
SINGLES = 300  # up to so many tasks each is an entry of its own
MOST_CHUNKS = 500  # entries of one array
ROUNDS = 2  # the first chunks hold 1/ROUNDS of what each worker will get of the rest
WORKERS = 64  # at least assumed, since more nodes may come while an array waits

_PART = re.compile(r"(\d{1,9})(?:-(\d{1,9})(?::(\d{1,9}))?)?")
_UNIT = re.compile(r"([1-9]\d{0,11})_(?:\[([\d,:-]+)\]|(\d{1,9}(?:-\d{1,9})?))")
_AGAIN = ("n", "e")  # facts: everything anew since this attempt; what failed anew since this attempt


class Spec(NamedTuple):
    """The tasks of an array, in order, and how many may run at once (0: as many as fit)."""

    ranges: tuple[range, ...]
    limit: int = 0

    @property
    def size(self) -> int:
        """How many tasks."""
        return sum(map(len, self.ranges))

    @property
    def low(self) -> int:
        """The lowest number."""
        return self.ranges[0][0]

    @property
    def high(self) -> int:
        """The highest number."""
        return self.ranges[-1][-1]

    @property
    def step(self) -> int:
        """Between neighbours; 1 if it is not the same everywhere."""
        return self.ranges[0].step if len(self.ranges) == 1 else 1

    def between(self, low: int, high: int) -> list[int]:
        """The tasks from low to high, both included."""
        found: list[int] = []
        for numbers in self.ranges:
            first = max(0, -(-(low - numbers.start) // numbers.step))
            found += [number for number in numbers[first:] if number <= high] if numbers[-1] > high else numbers[first:]
        return found

    def __contains__(self, number: object) -> bool:
        return any(number in numbers for numbers in self.ranges)


def parse(text: str) -> Spec:
    """
    The array that a text means: `1-9:2`, `1,3,7-20`, and `%3` behind either.

    Raises:
        UsageError: it means none.
    """
    body, percent, most = text.strip().partition("%")
    if percent and not (most.isascii() and most.isdigit() and 0 < int(most[:10]) <= MOST_TASKS):
        raise UsageError(f"array: after % must stand how many tasks may run at once, not {most[:20]!r}")
    numbers: list[range] = []
    for part in body.split(","):
        match = _PART.fullmatch(part.strip())
        low, high, step = (int(match[1]), int(match[2] or match[1]), int(match[3] or 1)) if match else (1, 0, 1)
        if low > high or not step:
            raise UsageError(f"array: {part[:40]!r} is no range of tasks (examples: 0-99, 1-9:2, 1,3,7-20, 0-99%10)")
        numbers.append(range(low, high + 1, step))
    count = sum(map(len, numbers))
    if count > MOST_TASKS:
        raise UsageError(f"array: {count} tasks; at most {MOST_TASKS} can be submitted at once")
    numbers.sort(key=lambda some: some[0])
    for before, after in itertools.pairwise(numbers):
        if after[0] <= before[-1]:
            return Spec(tuple(_merged(numbers)), int(most or 0))
    return Spec(tuple(numbers), int(most or 0))


def _merged(numbers: Iterable[range]) -> list[range]:
    """Overlapping ranges as ranges that do not: each task once."""
    return runs(sorted({number for some in numbers for number in some}))


def runs(numbers: Sequence[int]) -> list[range]:
    """Neighbours together."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return [range(low, high + 1) for low, high in found]


def show(spec: Spec, *, limit: bool = True) -> str:
    """The text that `parse` reads as the same."""
    parts = []
    for some in spec.ranges:
        step = f":{some.step}" if some.step > 1 and len(some) > 1 else ""
        parts.append(f"{some[0]}-{some[-1]}{step}" if len(some) > 1 else str(some[0]))
    return ",".join(parts) + (f"%{spec.limit}" if limit and spec.limit else "")


def ranges(numbers: Iterable[int], most: int = 0) -> str:
    """`3-9,12` from task numbers; of many ranges only the first `most`, then `...`."""
    found = runs(sorted(numbers))
    shown = [f"{some[0]}-{some[-1]}" if len(some) > 1 else str(some[0]) for some in found[: most or None]]
    return ",".join([*shown, *(["..."] if most and len(found) > most else [])])


# --- chunks


def sizes(count: int, workers: int = WORKERS) -> list[int]:
    """
    How many tasks each chunk gets, the largest first.

    Args:
        workers: how many tasks may run at once; a guess will do.
    """
    if count <= SINGLES:
        return [1] * count
    share = ROUNDS * max(1, workers)
    while True:
        found, left = [], count
        while left:
            found.append(-(-left // share))
            left -= found[-1]
        if len(found) <= MOST_CHUNKS or share == 1:
            return found
        share = max(1, share * 3 // 4)


def chunks(spec: Spec, workers: int = WORKERS) -> list[str]:
    """The facts of an array's entries (`a1-100`, `a7`), in order."""
    if spec.limit:
        workers = min(workers, spec.limit)
    numbers = [number for some in spec.ranges for number in some]
    found, at = [], 0
    for size in sizes(len(numbers), workers):
        low, high = numbers[at], numbers[at + size - 1]
        found.append(f"a{low}-{high}" if high > low else f"a{low}")
        at += size
    return found


def bounds(chunk: str) -> tuple[int, int]:
    """(1, 100) of `a1-100`, (7, 7) of `a7`."""
    parts = chunk[1:].split("-")
    return int(parts[0]), int(parts[1] if len(parts) > 1 else parts[0])


def holds(chunk: str, number: int) -> bool:
    """Whether a task is, if it exists, in a chunk."""
    low, high = bounds(chunk)
    return low <= number <= high


def tasks_of(spec: Spec, chunk: str) -> list[int]:
    """The tasks of a chunk, in order."""
    return spec.between(*bounds(chunk))


def entries(base: Entry, spec: Spec, workers: int = WORKERS) -> list[Entry]:
    """The entries of an array before their first rename, from what they have in common."""
    limit = (f"x{spec.limit}",) if spec.limit else ()
    return [base._replace(chunk=chunk, other=(*base.other, *limit)) for chunk in chunks(spec, workers)]


def limit_of(entry: Entry) -> int:
    """How many tasks of its array may run at once; 0: any number."""
    return _number(entry, "x")


def _number(entry: Entry, letter: str) -> int:
    found = [fact[1:] for fact in entry.other if fact[:1] == letter and fact[1:].isdigit()]
    return int(found[0]) if found else 0


def again(entry: Entry, *, failed: bool) -> tuple[str, ...]:
    """The facts of a chunk of which everything, or what failed, runs again as the next attempt."""
    keep = "n" if failed else ""
    rest = [fact for fact in entry.other if not (fact[:1] in _AGAIN and fact[1:].isdigit()) or fact[:1] == keep]
    return (*rest, f"{'e' if failed else 'n'}{entry.attempt + 1}")


# --- tasks


def task_entry(entry: Entry, number: int) -> Entry:
    """A chunk's entry as if it stood for one of its tasks alone."""
    return entry._replace(chunk=f"a{number}")


def parse_unit(text: str) -> tuple[int, Spec] | None:
    """(42, tasks) from `42_7`, `42_3-9`, `42_[3-9,12]`; None if it is nothing like that. UsageError if nearly."""
    match = _UNIT.fullmatch(text)
    if not match:
        return None
    return int(match[1]), parse(match[2] or match[3])


def latest(lines: Iterable[Mapping[str, Any]]) -> dict[int, Mapping[str, Any]]:
    """
    The line that counts for each task: of the highest attempt; of one attempt that of a run before that of a skip.

    A line PENDING says that this attempt is to run it, so any other of the same attempt says what became of that.

    Of two alike the one that ended first: whoever says it again later changes nothing.
    """
    found: dict[int, Mapping[str, Any]] = {}
    for line in lines:
        known = found.get(line["task"])
        sooner = known is not None and str(line.get("ended")) < str(known.get("ended"))
        if known is None or (*_weight(line), sooner) > (*_weight(known), False):
            found[line["task"]] = line
    return found


def _weight(line: Mapping[str, Any]) -> tuple[int, bool, bool]:
    return line["attempt"], line.get("state") != State.PENDING.name, line.get("started") is not None


def failed(line: Mapping[str, Any]) -> bool:
    """Whether a task ended otherwise than well."""
    return line.get("state") != State.COMPLETED.name


def _worth_another(line: Mapping[str, Any], retries: int) -> bool:
    final = (State.COMPLETED.name, State.CANCELLED.name, State.NODE_FAIL.name)
    return line.get("state") not in final and line["attempt"] <= retries


def settled(line: Mapping[str, Any], retries: int) -> bool:
    """Whether a result is the last word: nobody wants that task to run again."""
    return line.get("state") != State.PENDING.name and not _worth_another(line, retries)


def due(entry: Entry, spec: Spec, known: Mapping[int, Mapping[str, Any]], retries: int = 0) -> list[int]:
    """
    The tasks of a chunk that its attempt has to run, in order.

    Args:
        known: the line that counts for each task.
            A line PENDING is of a user who wants this one again.
        retries: a failure of an earlier attempt up to this one is tried again.
    """
    anew, failures = _number(entry, "n"), _number(entry, "e")
    found = []
    for number in tasks_of(spec, entry.chunk):
        line = known.get(number)
        if line is not None and line["attempt"] >= anew and line.get("state") != State.PENDING.name:
            before = line["attempt"] < entry.attempt
            tried = (line["attempt"] < failures and failed(line)) or (before and _worth_another(line, retries))
            if not tried:
                continue
        found.append(number)
    return found


def retriable(entry: Entry, spec: Spec, known: Mapping[int, Mapping[str, Any]], retries: int) -> bool:
    """Whether a chunk that is through has tasks that its user wants tried again."""
    if entry.attempt > retries:
        return False
    return any(
        (line := known.get(number)) is not None and line["attempt"] == entry.attempt and _worth_another(line, retries)
        for number in tasks_of(spec, entry.chunk)
    )


_WORDS = {
    "COMPLETED": "exit0",
    "TIMEOUT": "timeout",
    "OUT_OF_MEMORY": "oom",
    "CANCELLED": "cancelled",
    "NODE_FAIL": "nodefail",
}


def word_of(line: Mapping[str, Any]) -> str:
    """How a task ended, as entries say it: `exit0`, `signal9`, `timeout`, ..."""
    if word := _WORDS.get(str(line.get("state"))):
        return word
    return f"signal{line['signal']}" if line.get("signal") else f"exit{line.get('exit_code') or 1}"


def worst(words: Iterable[str]) -> str:
    """The worst of some endings, by the code that a shell would see; `exit0` of none."""
    return max(words, key=lambda word: (shell_code(word), word), default="exit0")
