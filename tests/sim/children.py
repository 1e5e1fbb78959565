"""I16: who waits for other jobs, or for tasks of arrays, waits for them. Pure, like `check`."""

from typing import Any

from tests.sim.arrays import key_of, lines_in
from tests.sim.entries import Violation, job_of, runs_of, token_of

Event = tuple[Any, ...]


class Ends:
    """How jobs, parts of arrays and tasks have ended, as often as they did; `fate` of any of them, or of an array."""

    def __init__(self) -> None:
        self.of: dict[Any, set[str]] = {}
        self.parts: dict[int, set[int | str]] = {}

    def see(self, event: Event) -> None:
        """One event."""
        if event[1] == "op" and event[3] == "rename" and (token := token_of(event[5])):
            self.parts.setdefault(job_of(token.id), set()).add(token.id)
            if event[5].startswith("done/"):
                self.of.setdefault(token.id, set()).add(token.ending)
                if token.ending in ("cancelled", "nodefail"):
                    for key in runs_of(token.id):
                        self.of.setdefault(key, set()).add(token.ending)
        elif event[1] == "lines":
            for line in lines_in(event):
                if (state := line.get("state")) != "PENDING":
                    word = "exit0" if state == "COMPLETED" else str(state)
                    self.of.setdefault(key_of(event[2], line), set()).add(word)

    def fate(self, parent: str) -> set[str]:
        """Of an array only when all its parts have ended."""
        if "_" in parent:
            return self.of.get(parent, set())
        ends = [self.of.get(part, set()) for part in self.parts.get(int(parent), ())]
        if not all(ends):
            return set()
        every = {"exit0"} if all("exit0" in end for end in ends) else set()
        return set().union(*ends) - {"exit0"} | every

    def never(self, kind: str, parent: str) -> bool:
        """Whether a condition could at some time never be fulfilled any more."""
        ends = self.fate(parent)
        return ("exit0" in ends and kind == "afternotok") or (bool(ends - {"exit0"}) and kind == "afterok")


def children(trace: list[Event]) -> list[Violation]:
    """A job that waits for another one gets into the queue only after that one has ended as it must."""
    found: list[Violation] = []
    depends = {event[3]: (event[4], str(event[5])) for event in trace if event[1] == "depends"}
    ends = Ends()
    for event in trace:
        if event[1] == "op" and event[3] == "rename" and event[4].startswith("held/") and event[5].startswith("queue/"):
            token = token_of(event[4])
            if token and job_of(token.id) in depends and "HR" not in token.facts:
                how, parent = depends[job_of(token.id)]
                fate = ends.fate(parent)
                fits = {"afterok": "exit0" in fate, "afternotok": bool(fate - {"exit0"})}
                if not fits.get(how, bool(fate) or how == "after"):
                    text = f"{event[2]} let it go, {how}:{parent} ended as {fate}"
                    found.append(Violation("I16", event[0], token.id, text))
        ends.see(event)
    return found
