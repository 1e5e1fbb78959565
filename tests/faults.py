"""
A stand-in for the `os` that fsops calls: counts calls, dies at one, or lets one fail before or after it took effect.

Replacing this one name reaches every system call on the spool, since nothing but fsops makes any.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from spoolq import fsops

# what touches the file system; the rest (path joins, constants) passes through uncounted
CALLS = frozenset(
    [
        "open",
        "write",
        "read",
        "close",
        "fsync",
        "rename",
        "link",
        "symlink",
        "readlink",
        "mkdir",
        "makedirs",
        "rmdir",
        "unlink",
        "listdir",
        "lstat",
        "fstat",
        "utime",
        "statvfs",
    ]
)


class Died(BaseException):
    """The process was killed here; nothing after this line runs."""


class Faulty:
    """
    `os` with one fault.

    Args:
        at: the number of the call (from 0) at which it happens, or None to count only.
        after: the call takes effect first.
        error: errno to raise, or None to die.
        only: names of calls that count, default all of CALLS.
    """

    def __init__(self, at: int | None = None, *, after: bool = False, error: int | None = None, only: str = "") -> None:
        self.at, self.after, self.error = at, after, error
        self.only = frozenset(only.split()) or CALLS
        self.count, self.dead, self.log = 0, False, []

    def __getattr__(self, name: str) -> Any:
        value = getattr(os, name)
        if name not in self.only:
            return value

        def call(*args: Any, **kwargs: Any) -> Any:
            if self.dead:
                raise Died(name)
            number, self.count = self.count, self.count + 1
            self.log.append(name)
            act = value if name != "fsync" else _done  # slow, and no death of a process undoes what the kernel has
            if number != self.at:
                return act(*args, **kwargs)
            result = act(*args, **kwargs) if self.after else None
            if self.error is None:
                self.dead = True
                raise Died(name)
            if name == "open" and self.after:
                os.close(result)
            raise OSError(self.error, os.strerror(self.error))

        return call


def _done(*_: Any) -> None:
    return None


@contextmanager
def faulty(at: int | None = None, **kwargs: Any) -> Iterator[Faulty]:
    """Replace fsops' os for a while."""
    fake, before = Faulty(at, **kwargs), fsops.os
    fsops.os = fake
    try:
        yield fake
    finally:
        fsops.os = before
