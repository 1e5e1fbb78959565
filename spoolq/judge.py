"""
The program that asks a profile about jobs: a child of `sub` or of a node, which may be killed at any time.

A profile is a Python file with a function `profile(job)`, or a plugin of the group `spoolq.profile`. Jobs come
as lines of JSON on standard input, and what each of them was judged goes out as a line: changes and refusals
with the place that made them, or the exception. What a profile prints goes to standard error.
Imports nothing of spoolq, since its start is part of every submission where there is a profile.
"""

import json
import os
import sys
from collections.abc import Callable
from typing import Any

GROUP = "spoolq.profile"
READY = b"ready\n"


class Job:
    """
    What a profile sees of a job; what it wants is asked for by the methods, with options as in job files.

    Attributes:
        command, line, program: its words, the same as one text, and the first or the script's name.
        script: the script's text, or empty. `options`: what was said so far, by long name.
        name, user, host, chdir: texts. `cpus`, `mem_mb`: numbers; `time_s`: or None. `gres`: other resources.
        inputs: paths of its input files that exist here. `input_mb`: their size.
    """

    def __init__(self, view: dict[str, Any]) -> None:
        """From the parent's line."""
        self.__dict__.update(view, asked=[])

    def __setattr__(self, name: str, value: Any) -> None:
        """Refused: an assignment would change nothing outside."""
        raise AttributeError(f"job.{name} cannot be assigned to: call job.set({name}=...)")

    def default(self, **options: Any) -> None:
        """Fill in what nobody said."""
        self._ask("default", options)

    def set(self, **options: Any) -> None:
        """Replace, whatever was said."""
        self._ask("set", options)

    def minimum(self, **options: Any) -> None:
        """Raise to at least this."""
        self._ask("minimum", options)

    def maximum(self, **options: Any) -> None:
        """Lower to at most this."""
        self._ask("maximum", options)

    def refuse(self, message: str) -> None:
        """Do not let it be submitted."""
        self._ask("refuse", str(message))

    def _ask(self, verb: str, what: Any) -> None:
        frame = sys._getframe(2)  # noqa: SLF001  # the line of the profile that asked
        if isinstance(what, dict):
            what = _named(what)
        self.__dict__["asked"].append([verb, what, f"{frame.f_code.co_filename}:{frame.f_lineno}"])


def _named(asked: dict[str, Any]) -> dict[str, Any]:
    """Options by their long names; a number that was worked out need not be exact, and amounts have three places."""
    return {str(k).replace("_", "-"): round(v, 3) if isinstance(v, float) else v for k, v in asked.items()}


def profiles(path: str) -> list[Callable[[Job], Any]]:
    """The function of a profile file, or those of the plugins that are installed."""
    if path == GROUP:
        from importlib.metadata import entry_points

        return [entry.load() for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name)]
    with open(path, encoding="utf-8") as file:
        names: dict[str, Any] = {"__name__": "profile", "__file__": path}
        exec(compile(file.read(), path, "exec"), names)  # noqa: S102  # what a profile is for
    function = names.get("profile")
    if not callable(function):
        raise TypeError("defines no function profile(job)")
    return [function]


def judge(functions: list[Callable[[Job], Any]], view: dict[str, Any]) -> list[list[Any]]:
    """What profiles ask for a job: [verb, options or message, place]."""
    job = Job(view)
    for function in functions:
        filled = function(job)
        if isinstance(filled, dict):
            code = function.__code__ if hasattr(function, "__code__") else None
            place = f"{code.co_filename}:{code.co_firstlineno}" if code else str(function)
            job.__dict__["asked"].append(["default", _named(filled), place])
        elif filled is not None:
            raise TypeError(f"profile(job) returned {type(filled).__name__}: must be a dict of options, or None")
    return list(job.__dict__["asked"])


def _mishap(error: BaseException, path: str) -> dict[str, Any]:
    """Where in the profile an exception arose, and what it was."""
    if isinstance(error, SyntaxError):
        return {"file": error.filename or path, "line": error.lineno, "error": f"SyntaxError: {error.msg}"}
    found: dict[str, Any] = {"file": path, "line": None, "error": f"{type(error).__name__}: {error}"}
    trace = error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if file != __file__ and not file.startswith("<frozen"):
            found |= {"file": file, "line": trace.tb_lineno}
            if file == path:
                break  # the profile's own line says more than that of a library
        trace = trace.tb_next
    return found


def main() -> None:
    """Answer until standard input ends."""
    path = sys.argv[1]
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="surrogateescape")
    os.dup2(2, 1)
    answers.write(READY.decode())
    answers.flush()
    functions: list[Callable[[Job], Any]] | None = None
    for line in sys.stdin.buffer:
        try:
            if functions is None:
                functions = profiles(path)
            answer: dict[str, Any] = {"asked": judge(functions, json.loads(line))}
            text = json.dumps(answer)
        except BaseException as error:  # also SystemExit: the job is refused, with the place
            text = json.dumps(_mishap(error, path))
        answers.write(text + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
