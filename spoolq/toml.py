"""
The one reader and the one quoter of TOML, since every text in TOML here has the same enemies.

Never tomllib: a key of 40 kB full of dots makes it use 1.5 GB (measured); tomli refuses such a key, and
it does not even get there. Never reads a file.
"""

import re
from collections.abc import Iterable
from typing import Any

from spoolq.errors import JobFileError, UsageError

MAX_FILE = 64 << 10  # bytes of a TOML file that a person wrote
MAX_DOTS, MAX_NESTING = 16, 32
# no possessive quantifiers: those of Python 3.11.2, Debian 12's, give up too early (CPython issue 106052)
_STRINGS = re.compile(
    r'"""(?:[^"\\]|\\.|"{1,2}(?!"))*(?:"{3,5}|\Z)' r"|'''(?:[^']|'{1,2}(?!'))*(?:'{3,5}|\Z)"
    r'|"(?:[^"\\\n]|\\.)*"?' r"|'[^'\n]*'?|\#[^\n]*",
    re.DOTALL,
)  # fmt: skip
# what a quoted text must not hold: by TOML, and what would speak to a terminal
_UNSAFE = re.compile('["\\\\\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]')
_SHORT = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def read_toml(data: bytes, file: str, limit: int = MAX_FILE) -> tuple[dict[str, Any], str]:
    """
    The table and the text of a TOML file.

    Raises:
        JobFileError: too large, not UTF-8, NUL, nested too deeply, or no TOML.
    """
    from tomli import TOMLDecodeError, loads

    if len(data) > limit:
        raise JobFileError(f"{len(data)} bytes; at most {limit >> 10} KiB are read", file=file)
    if b"\0" in data:
        raise JobFileError("holds a NUL byte: no text file", file=file, line=line_at(data, data.index(b"\0")))
    try:
        text = data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise JobFileError("is not UTF-8", file=file, line=line_at(data, error.start)) from None
    if text.count(".") > MAX_DOTS or text.count("[") + text.count("{") > MAX_NESTING:
        _guard(text, file)
    try:
        return loads(text), text
    except TOMLDecodeError as error:
        message = error.msg[:1].lower() + error.msg[1:]
        raise JobFileError(f"no valid TOML: {message}", file=file, line=error.lineno) from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise JobFileError(f"no valid TOML: {type(error).__name__}", file=file) from None


def line_at(data: bytes, at: int) -> int:
    """The line of a byte."""
    return data.count(b"\n", 0, at) + 1


def _guard(text: str, file: str) -> None:
    # keys of many parts and deep nesting cost a parser more than their size: refuse them unparsed
    depth = 0
    for number, line in enumerate(_STRINGS.sub(lambda m: "\n" * m[0].count("\n"), text).split("\n"), 1):
        if line.count(".") > MAX_DOTS:
            raise JobFileError(f"more than {MAX_DOTS} dots outside quotes", file=file, line=number)
        for letter in re.findall(r"[][{}]", line):
            depth += 1 if letter in "[{" else -1
            if depth > MAX_NESTING:
                raise JobFileError(f"brackets nested more than {MAX_NESTING} deep", file=file, line=number)


def line_of(text: str, key: str) -> int | None:
    """The line on which a key is set, outside multi-line texts; None if it cannot be found."""
    plain = _STRINGS.sub(lambda m: "\n" * m[0].count("\n") or m[0], text)
    match = re.search(rf"""^[ \t\[]*["']?{re.escape(key)}["']?[ \t]*[.=\]]""", plain, re.MULTILINE)
    return plain.count("\n", 0, match.start()) + 1 if match else None


def lines_of(text: str, name: str) -> list[int]:
    """The lines of the `[[name]]` headers, outside multi-line texts."""
    bare = _STRINGS.sub(lambda m: "\n" * m[0].count("\n") or m[0], text)
    headers = re.finditer(rf"^[ \t]*\[\[[ \t]*{re.escape(name)}[ \t]*\]\]", bare, re.MULTILINE)
    return [bare.count("\n", 0, header.start()) + 1 for header in headers]


def kind_of(value: object) -> str:
    """`is an array`: for messages."""
    names = {bool: "a boolean", int: "an integer", float: "a float", str: "a string", list: "an array", dict: "a table"}
    return f"is {names.get(type(value), 'a date or time')}"


def quote(text: str) -> str:
    """A TOML string; what would speak to a terminal is escaped too, so that `cat` is safe."""
    if not _UNSAFE.search(text):
        return f'"{text}"'
    return '"' + _UNSAFE.sub(lambda m: _SHORT.get(m[0]) or f"\\u{ord(m[0]):04X}", text) + '"'


def array(words: Iterable[str]) -> str:
    """A TOML array of strings."""
    return f"[{', '.join([quote(word) for word in words])}]"


def plain(key: str, value: object) -> str:
    """A text without NUL; UsageError names the key."""
    if not isinstance(value, str):
        raise UsageError(f"{key}: {kind_of(value)}; must be a string")
    if "\0" in value:
        raise UsageError(f"{key}: holds a NUL character")
    return value
