"""
When what is done from time to time is due again.
"""


class Agenda:
    """Times by the name of what is due, seconds of CLOCK_BOOTTIME; what has no time yet is due at once."""

    def __init__(self) -> None:
        """Begin with everything due."""
        self._due: dict[str, float] = {}

    def due(self, what: str, now: float, every_s: float) -> bool:
        """Whether it is time for something periodic; sets the next time."""
        if now < self._due.get(what, 0.0):
            return False
        self._due[what] = now + every_s
        return True

    def due_at(self, what: str) -> float:
        """When something is due next."""
        return self._due.get(what, 0.0)

    def set_due(self, what: str, at: float = 0.0) -> None:
        """Make it due then, or at once."""
        self._due[what] = at
