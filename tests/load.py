"""A machine whose load a test chooses: a tree like /proc, in which time goes on."""

import os
import threading
import time

CPUS = sorted(os.sched_getaffinity(0))


class Load:
    """
    Cpu time of others, as if it were used on this machine, under `root`.

    Args:
        root: a directory for the tree; `foreign` cpus are busy from now on.
    """

    def __init__(self, root: str, foreign: float) -> None:
        self.root, self.foreign = root, foreign
        self._busy_s, self._at, self._over = 1000.0, time.monotonic(), threading.Event()
        os.makedirs(f"{root}/proc")
        with open("/proc/meminfo") as file, open(f"{root}/proc/meminfo", "w") as copy:
            copy.write(file.read())
        self._write()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._over.wait(0.05):
            self._write()

    def _write(self) -> None:
        now = time.monotonic()
        self._busy_s += self.foreign * (now - self._at)
        self._at = now
        ticks = round(self._busy_s * os.sysconf("SC_CLK_TCK"))
        lines = [f"cpu{number} {ticks if number == CPUS[0] else 0} 0 0 0 0 0 0 0 0 0\n" for number in CPUS]
        with open(f"{self.root}/new", "w") as file:
            file.write("cpu 0\n" + "".join(lines))
        os.replace(f"{self.root}/new", f"{self.root}/proc/stat")

    def memory(self, available_mb: int) -> None:
        """So much memory is available from now on, and no other line says anything of it."""
        with open(f"{self.root}/proc/meminfo") as file:
            lines = [line for line in file if not line.startswith("MemAvailable")]
        with open(f"{self.root}/newmem", "w") as file:
            file.write("".join(lines) + f"MemAvailable: {available_mb * 1024} kB\n")
        os.replace(f"{self.root}/newmem", f"{self.root}/proc/meminfo")

    def close(self) -> None:
        """Time stands still."""
        self._over.set()
        self._thread.join()
