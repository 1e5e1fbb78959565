"""
Wake a waiting daemon early: a change in the spool made on this machine, or a signal.

inotify (through watchdog) sees local changes only and may miss some, so this is never more than a
hint: correctness, and all tests, also hold with it off. Submitters ring by changing the time stamps
of queue/ (`fsops.ring`), since watchdog holds back the events of a directory out of which files are
renamed for half a second.
"""

import contextlib
import os
import signal
from collections.abc import Callable
from typing import Any


class Wake:
    """A pipe that becomes readable when there is a reason to look; wait on `fileno()`, then `clear()`."""

    def __init__(self) -> None:
        """Nothing is watched yet."""
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._observer: Any = None

    def fileno(self) -> int:
        """For poll."""
        return self._read

    def ring(self, *_: object) -> None:
        """Wake the waiting thread, from any thread."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._write, b".")

    def clear(self) -> bool:
        """Empty the pipe; whether it rang."""
        rang = False
        with contextlib.suppress(BlockingIOError):
            while os.read(self._read, 4096):
                rang = True
        return rang

    def on_signal(self, number: signal.Signals, action: Callable[[], None]) -> None:
        """Run an action in the main thread and wake up."""

        def handler(*_: object) -> None:
            action()
            self.ring()

        signal.signal(number, handler)

    def watch(self, directories: list[str]) -> bool:
        """Start watching, not recursively; False where that is impossible (then polling alone serves)."""
        try:
            from watchdog.events import FileSystemEvent, FileSystemEventHandler
            from watchdog.observers import Observer

            ring = self.ring

            class Handler(FileSystemEventHandler):
                def on_any_event(self, event: FileSystemEvent) -> None:  # noqa: ARG002  # any event is a reason to look
                    ring()

            handler = Handler()
            observer = Observer()
            for directory in directories:
                observer.schedule(handler, directory, recursive=False)
            observer.start()
        except (ImportError, OSError, RuntimeError):
            return False
        self._observer = observer
        return True

    def close(self) -> None:
        """Stop watching."""
        if self._observer is not None:
            self._observer.stop()
            self._observer.join(timeout=2)
