"""
Virtual time and actors: threads of which exactly one runs, so that one seed is one run.

An actor gives up the baton only in `sleep`. Whoever gives it up looks for what is due next: callbacks
are run on the spot, an actor gets the baton. Nothing here knows what the actors do.
"""

import heapq
import itertools
import random
import threading
from collections.abc import Callable
from typing import Any

threading.stack_size(512 << 10)


class Died(BaseException):
    """The process was killed here; nothing after this line runs, and no `finally` has an effect."""


class Hung(RuntimeError):
    """The run makes no progress in virtual time: a loop without end in the code under test."""


class Actor:
    """One process: a thread, and `context` for what belongs to it (machine, open files, ...)."""

    def __init__(self, kernel: "Kernel", name: str, target: Callable[[], None], context: Any) -> None:
        self.kernel, self.name, self.context = kernel, name, context
        self.dead = self.done = False
        self.ticket = 0  # of the sleep that is on: an earlier alarm is void
        self.frozen_until = 0.0  # stopped (SIGSTOP, a suspended machine): nothing runs before
        self.deadline: float | None = None  # of the poll that is on
        self._baton = threading.Lock()
        self._baton.acquire()
        self._target = target
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        self._baton.acquire()
        try:
            if not self.dead:
                self._target()
        except Died:
            pass
        except BaseException as error:  # reported by the main thread: the simulator itself is broken
            self.kernel.broken = self.kernel.broken or error
        self.done = True
        self.kernel.hand_over(self)

    def take(self) -> None:
        """Run now; by whoever had the baton."""
        self._baton.release()

    def wait(self) -> None:
        """Until it is our turn."""
        self._baton.acquire()


class Kernel:
    """One run's time. The thread that made it is the actor `main`."""

    def __init__(self, most_events: int = 3_000_000) -> None:
        self.now = 0.0
        self.broken: BaseException | None = None
        self.events, self.most_events = 0, most_events
        self._heap: list[tuple[float, int, Any, int]] = []
        self._number = itertools.count()
        self.main = Actor(self, "main", lambda: None, None)
        self.me: Actor | None = self.main
        self.actors: list[Actor] = []

    def spawn(self, name: str, target: Callable[[], None], context: Any, delay: float = 0.0) -> Actor:
        """A process that begins after `delay`."""
        actor = Actor(self, name, target, context)
        self.actors.append(actor)
        actor.thread.start()
        self._push(self.now + delay, actor, actor.ticket)
        return actor

    def at(self, when: float, action: Callable[[], None]) -> None:
        """Do something then; in nobody's name, and it must not sleep."""
        self._push(max(when, self.now), action, -1)

    def _push(self, when: float, what: Any, ticket: int) -> None:
        heapq.heappush(self._heap, (when, next(self._number), what, ticket))

    def sleep(self, seconds: float, *, wakeable: bool = False) -> None:
        """Let time pass for the actor that runs; raises Died in one that was killed meanwhile."""
        me = self.me
        assert me is not None, "callbacks do not sleep"
        if me.dead:
            raise Died
        until = self.now + seconds
        until = max(until, me.frozen_until)
        if not (self._heap and self._heap[0][0] <= until):
            self.now = until
            return
        me.ticket += 1
        me.deadline = until if wakeable else None
        self._push(until, me, me.ticket)
        other = self._next()
        if other is not me:
            self.me = other
            other.take()
            me.wait()
        self.me = me
        me.ticket += 1
        if me.dead:
            raise Died

    def wake(self, actor: Actor) -> None:
        """End a poll early."""
        if actor.deadline is not None and not actor.done:
            actor.deadline = None
            self._push(max(self.now, actor.frozen_until), actor, actor.ticket)

    def freeze(self, actor: Actor, seconds: float) -> None:
        """SIGSTOP: what it does next, it does after this time."""
        actor.frozen_until = max(actor.frozen_until, self.now + seconds)

    def kill(self, actor: Actor) -> None:
        """SIGKILL; the one that runs notices at its next call."""
        if actor.done or actor.dead:
            return
        actor.dead = True
        actor.frozen_until = 0.0
        if actor is not self.me:
            self._push(self.now, actor, actor.ticket)

    def hand_over(self, _finished: Actor) -> None:
        """An actor has ended: somebody else's turn."""
        other = self._next()
        self.me = other
        other.take()

    def _next(self) -> Actor:
        while True:
            if self.broken is not None:
                return self.main
            when, _, what, ticket = heapq.heappop(self._heap)
            self.now = max(self.now, when)
            self.events += 1
            if self.events > self.most_events:
                self.broken = Hung(f"{self.events} events, time is {self.now:.1f} s")
                return self.main
            if isinstance(what, Actor):
                if what.done or what.ticket != ticket:
                    continue
                if what.frozen_until > self.now and not what.dead:
                    self._push(what.frozen_until, what, ticket)
                    continue
                return what
            self.me = None
            try:
                what()
            except BaseException as error:
                self.broken = self.broken or error

    def end(self) -> None:
        """Kill everything; when this returns no thread of the run is left."""
        broken, self.broken = self.broken, None
        self._heap.clear()
        for actor in self.actors:
            if not actor.done:
                actor.dead = True
                # give it the baton, to unwind; it gives it back through `hand_over`
                self._push(self.now, self.main, self.main.ticket)
                self.me = actor
                actor.take()
                self.main.wait()
                self.me = self.main
                self._heap.clear()
            actor.thread.join(10)
        self.broken = broken or self.broken


def rng(seed: int, *words: object) -> random.Random:
    """A generator of its own for each purpose, so that taking out one fault changes little else."""
    return random.Random(f"{seed}/{'/'.join(map(str, words))}")
