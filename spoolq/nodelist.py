"""
Names of nodes as people write them: `n1,n2`, `n[1-3,5]`, `gpu*`.
"""

import fnmatch
import functools
import itertools
import re
from collections.abc import Iterable

from spoolq.errors import UsageError

MAX_NODES = 10_000  # names that one pattern may stand for
_RANGES = re.compile(r"\[([0-9][0-9,-]*)\]")
_RANGE = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?")
_WORD = re.compile(r"[A-Za-z0-9._*?-]+")


def matches(patterns: Iterable[str], name: str) -> bool:
    """Whether a node's name is among patterns: exact, `n*` (glob), `n[1-3,5]`, or several with commas."""
    compiled = [_compiled(pattern) for pattern in patterns]
    return any(name in exact or any(fnmatch.fnmatchcase(name, g) for g in globs) for exact, globs in compiled)


@functools.lru_cache(maxsize=256)
def _compiled(pattern: str) -> tuple[frozenset[str], tuple[str, ...]]:
    try:
        words = node_names(pattern)
    except UsageError:  # refused at submission; by hand in a job file it names nobody
        return frozenset(), ()
    return frozenset(words), tuple(word for word in words if set(word) & set("*?["))


def node_names(text: str) -> list[str]:
    """
    The names and globs that a node list stands for: `n[08-10],big*` is n08 n09 n10 big*.

    Raises:
        UsageError: a range is malformed, a word is no name, or the list is longer than MAX_NODES.
    """
    found: list[str] = []
    for word in re.split(r",(?![^\[\]]*\])", text):
        parts = _RANGES.split(word.strip())
        choices = [_numbers(part, text) if index % 2 else [part] for index, part in enumerate(parts)]
        size = 1
        for choice in choices:
            size *= len(choice)
        if size + len(found) > MAX_NODES:
            raise UsageError(f"nodes: {text[:60]!r} stands for more than {MAX_NODES} names")
        words = ["".join(choice) for choice in itertools.product(*choices)] if word.strip() else []
        if words and not _WORD.fullmatch(words[0]):
            raise UsageError(f"nodes: {word.strip()[:60]!r} is no node (examples: n1, n[1-3,5], gpu*)")
        found += words
    return found


def _numbers(text: str, whole: str) -> list[str]:
    found: list[str] = []
    for part in text.split(","):
        match = _RANGE.fullmatch(part)
        low, high = (match[1], match[2] or match[1]) if match else ("1", "0")
        if not 0 <= int(high) - int(low) < MAX_NODES:
            raise UsageError(f"nodes: [{text[:40]}] in {whole[:60]!r} is no range, or a long one (example: n[1-3,5])")
        found += [str(number).zfill(len(low)) for number in range(int(low), int(high) + 1)]
    return found
