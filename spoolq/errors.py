"""
The exceptions of spoolq, each with the exit code of the command that meets it.

    SpoolqError           1   something failed; the message says what, why and what to do
    ├── UsageError        2   the command line is wrong
    │   └── RequestError  2   no node could ever run what was asked for
    ├── JobFileError      2   a job file, script or drop is wrong: file, line, remedy
    ├── NotFound          1   no such job or node
    ├── TryAgain         75   it may work later (spool full, node name in use)
    └── Misconfigured    78   not a spool, a newer format, a bad configuration file

Three kinds of trouble: the user's (these classes), the world's (`OSError`, caught where its errno
means something) and ours (`ValueError`, `assert`: let it crash; a crash is safe by design).
The codes 75 and 78 are those of sysexits.h.
"""


class SpoolqError(Exception):
    """Root of the tree; shown as `spoolq: message`, never with a traceback."""

    exit_code = 1


class UsageError(SpoolqError):
    """The command line is wrong."""

    exit_code = 2


class RequestError(UsageError):
    """The request is well formed and no known node could ever run it."""


class JobFileError(SpoolqError):
    """
    A job file is wrong.

    Args:
        message: what is wrong and the remedy, one line.
        file: as the user named it, or None.
        line: 1-based, or None where no single line is to blame.
    """

    exit_code = 2

    def __init__(self, message: str, *, file: str | None = None, line: int | None = None) -> None:
        self.message, self.file, self.line = message, file, line
        super().__init__(message)

    def __str__(self) -> str:
        """`file:line: message`, with what is known."""
        place = ":".join(str(part) for part in (self.file, self.line) if part is not None)
        return f"{place}: {self.message}" if place else self.message

    def at(self, file: str) -> "JobFileError":
        """The same error, with the file's name."""
        return JobFileError(self.message, file=file, line=self.line)


class NotFound(SpoolqError):
    """No such job, task or node."""


class TryAgain(SpoolqError):
    """It may work later."""

    exit_code = 75


class Misconfigured(SpoolqError):
    """Not a spool, a spool of a newer format, or a bad configuration file."""

    exit_code = 78
