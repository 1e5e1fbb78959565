"""
Whether what a job makes is older than what it is made from, as make(1) decides; and the marks of files in commands.

A job is up to date when all its outputs (`--out`) and inputs (`--in`) exist and no output is older than an input.
Times are compared as the file server wrote them, so files of one file system are compared by one clock; between
two file systems nothing better is to be had. Files are opened to be looked at, since a network file system gives
the time of an open file fresh and that of a name up to a minute old.
"""

import contextlib
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from spoolq.errors import UsageError

if TYPE_CHECKING:
    from spoolq.job import Job

_SHELLS = ("sh", "bash", "dash", "ksh", "zsh")
FAILED = ".failed"  # what a failed command made is renamed to
_MARK = r"""(?<![\w%%#])%s([io]):('[^']*'|"[^"]*"|[^\s;|&<>()'"]+)"""  # in a line for the shell


class Seen(NamedTuple):
    """How a file looked: time of its last change (ns), size (bytes) and inode."""

    mtime: int
    size: int
    inode: int


class Marked(NamedTuple):
    """A command without its marks, and the files that they named."""

    command: tuple[str, ...]
    inputs: tuple[str, ...]
    targets: tuple[str, ...]


def look(directory: str, files: Iterable[str]) -> list[Seen | None]:
    """How files look now; None for one that is not there."""
    found: list[Seen | None] = []
    for name in files:
        seen = None
        with contextlib.suppress(OSError):
            fd = os.open(os.path.join(directory, name), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
            try:
                facts = os.fstat(fd)
                seen = Seen(facts.st_mtime_ns, facts.st_size, facts.st_ino)
            finally:
                os.close(fd)
        found.append(seen)
    return found


def fresh(inputs: Sequence[Seen | None], targets: Sequence[Seen | None]) -> bool:
    """Whether nothing need be made; what names no output, or misses any file, is never up to date."""
    made = [seen.mtime for seen in targets if seen]
    of = [seen.mtime for seen in inputs if seen]
    whole = len(made) == len(targets) > 0 and len(of) == len(inputs)
    return whole and (not of or min(made) >= max(of))


def up_to_date(directory: str, inputs: Sequence[str], targets: Sequence[str]) -> bool:
    """The same, of files."""
    return fresh(look(directory, inputs), look(directory, targets))


def marked(command: Sequence[str]) -> Marked:
    """
    Take grun's marks out of a command: `%i:FILE` an input, `%o:FILE` an output.

    `#i:` and `#o:` name a file that is no word of the command. A command that is a line for the shell has them in it.
    """
    found: dict[str, list[str]] = {"i": [], "o": []}
    words = []
    if len(command) >= 3 and command[1] == "-c" and os.path.basename(command[0]) in _SHELLS:
        import re

        def named(match: re.Match[str], keep: bool) -> str:
            text = match[2]
            found[match[1]].append(text[1:-1] if text[0] in "'\"" else text)
            return text if keep else ""

        line = re.sub(_MARK % "%", lambda match: named(match, keep=True), command[2])
        line = re.sub(_MARK % "#", lambda match: named(match, keep=False), line)
        words = [*command[:2], line, *command[3:]]
    else:
        for word in command:
            if word[:3] in ("%i:", "%o:", "#i:", "#o:") and word[3:]:
                found[word[1]].append(word[3:])
                words += [word[3:]] if word[0] == "%" else []
            else:
                words.append(word)
    return Marked(tuple(words), tuple(found["i"]), tuple(found["o"]))


def prepared(job: "Job") -> "Job":
    """A job with the files that its command marks, if it is to run only if they are not up to date."""
    if not job.if_stale:
        return job
    found = marked(job.command)
    job = job._replace(
        command=found.command, inputs=(*job.inputs, *found.inputs), targets=(*job.targets, *found.targets)
    )
    if not job.targets:
        raise UsageError("if-stale: names nothing that is made (remedy: --out FILE, or %o:FILE in the command)")
    return job


def set_aside(directory: str, targets: Sequence[str], before: Sequence[Seen | None]) -> list[str]:
    """Rename the outputs that a failed command made or changed to `*.failed`; returns what could not be, with why."""
    faults = []
    for name, was, now in zip(targets, before, look(directory, targets), strict=True):
        if now and now != was:
            path = os.path.join(directory, name)
            try:
                os.replace(path, path + FAILED)
            except OSError as error:
                faults.append(f"{name}: {error.strerror}")
    return faults
