"""
A simulated machine: clocks, boots, a mount, a disk, a runner, and a service manager that starts the daemon again.
"""

import contextlib
import random
import traceback
from typing import Any

from spoolq import config
from spoolq.daemon import Daemon
from spoolq.errors import SpoolqError
from spoolq.live import Limits
from spoolq.spool import Spool
from tests.sim.client import Client
from tests.sim.disk import Disk
from tests.sim.kernel import Actor, Died, rng
from tests.sim.runner import Connection, Runner
from tests.sim.seam import EPOCH, Process, Wake

STATE = "/state"


class Machine:
    """
    One machine.

    Args:
        world: the run it is part of (`world.World`).
        name: of the node.
        cpus: to lend; 0 is a machine of users only.
    """

    def __init__(self, world: Any, name: str, cpus: int, client: Client | None = None) -> None:
        self.world, self.name, self.cpus, self.kernel, self.log = world, name, cpus, world.kernel, world.log
        chance = self.rng("machine")
        self.machine_id = f"machine-{name}"
        self.rate = 1.0 + chance.uniform(-0.009, 0.009)
        self._boot_at, self._clock_zero = 0.0, chance.uniform(10.0, 1e6)
        self._wall_off = chance.choice([0.0, 0.0, chance.uniform(-5, 5), chance.uniform(-1e5, 1e5)])
        self.drowsy = chance.uniform(*world.shape.drowsy)
        self.boots, self.pids, self.up = 1, 100, True
        self.disk = Disk()
        self.client = client or Client(
            self.kernel, world.server, name, self.rng("client"), world.plan.injector(name), world.shape.page
        )
        self.client.rang = self._ring
        self.runner = Runner(self)
        self.wake = Wake()
        self.daemon: Actor | None = None
        self.connection: Connection | None = None
        self.gone = False  # switched off for good, unless an operator thinks better of it

    def rng(self, *words: object) -> random.Random:
        """Chance of this machine for one purpose."""
        return rng(self.world.seed, self.name, *words)

    # --- clocks and identity

    def clock(self) -> float:
        """CLOCK_BOOTTIME, s: its own zero and rate; goes on while everything is stopped."""
        return self._clock_zero + (self.kernel.now - self._boot_at) * self.rate

    def wall(self) -> float:
        """The wall clock, which nothing may depend on."""
        return EPOCH + self._wall_off + self.kernel.now

    def jump(self, seconds: float) -> None:
        """Somebody sets the wall clock."""
        self._wall_off += seconds

    def boot_id(self) -> str:
        """Of this boot."""
        return f"{self.name}b{self.boots:04d}-0000"

    def work(self, job_id: int | str, attempt: int) -> tuple[float, int]:
        """How long an attempt runs, s, and its exit code; tasks of arrays are shorter, since they follow each other."""
        chance = rng(self.world.seed, "work", job_id, attempt)
        if isinstance(job_id, str):
            return chance.choice([0.0, 0.5, 0.5, 3.0, 12.0, 40.0]) * chance.random(), chance.choice([0, 0, 0, 0, 1, 7])
        return chance.choice([0.0, 0.5, 0.5, 3.0, 3.0, 12.0, 40.0, 250.0]) * chance.random(), chance.choice(
            [0, 0, 1, 7]
        )

    # --- processes

    def _ring(self) -> None:
        self.wake.rang = True
        if self.daemon:
            self.kernel.wake(self.daemon)

    def readable(self) -> bool:
        """Whether a poll of the daemon would return at once."""
        connection = self.connection
        return self.wake.rang or bool(connection and (connection.to_daemon or not connection.open))

    def connect(self) -> Connection:
        """The daemon's connection to the runner; it takes a moment."""
        assert self.kernel.me is not None
        self.kernel.sleep(0.01)
        self.connection = self.runner.connect(self.kernel.me)
        return self.connection

    def process(self, what: str, target: Any, delay: float = 0.0) -> Actor:
        """A new process on this machine."""
        self.pids += 1
        return self.kernel.spawn(f"{self.name}.{what}.{self.pids}", target, Process(self, self.pids), delay)

    def start_daemon(self, delay: float = 0.0) -> None:
        """As the service manager does."""
        if self.cpus and self.up:
            self.daemon = self.process("daemon", self._serve, delay)
            self.daemon.context.on_death = self._daemon_gone

    def _serve(self) -> None:
        self.wake.rang = False
        self.log((self.kernel.now, "daemon", self.name, "starts"))
        how = "exits"
        try:
            spool = Spool("/spool")
            policy = config.parse_policy(spool.text.encode(), "spool.toml")
            daemon = Daemon(
                spool,
                policy,
                self.name,
                capacity={"cpus": self.cpus * 1000, "mem": 64_000_000},
                measured=False,
                state_dir=STATE,
                limits=Limits(),
                wake=self.wake,  # type: ignore[arg-type]
            )
            daemon.run()
        except Died:
            raise
        except (OSError, SpoolqError) as error:
            how = f"gives up: {type(error).__name__}: {error}"
        except BaseException as error:
            how = "breaks"
            where = "".join(traceback.format_exception(error))[-1500:]
            self.log((self.kernel.now, "broken", self.name, f"{type(error).__name__}: {error}", where))
        self.log((self.kernel.now, "daemon", self.name, how))
        with contextlib.suppress(AttributeError):
            self.kernel.me.context.gone()  # type: ignore[union-attr]

    def _daemon_gone(self) -> None:
        """The service manager starts another."""
        if self.connection:
            self.connection.close()
        if self.up and not self.world.over:
            boots = self.boots
            delay = self.rng("restart", self.pids).uniform(0.5, 5.0)
            self.kernel.at(self.kernel.now + delay, lambda: self.start_daemon() if self.boots == boots else None)

    # --- faults

    def kill_daemon(self) -> None:
        """SIGKILL."""
        daemon = self.daemon
        if daemon and not daemon.done and not daemon.dead:
            self.log((self.kernel.now, "daemon", self.name, "killed"))
            self.kernel.kill(daemon)
            daemon.context.gone()

    def freeze(self, seconds: float, *, whole: bool) -> None:
        """The daemon (SIGSTOP) or the whole machine (suspended) stands still; its clock goes on."""
        if self.daemon and not self.daemon.done:
            self.kernel.freeze(self.daemon, seconds)
        if whole:
            self.runner.frozen_until = max(self.runner.frozen_until, self.kernel.now + seconds)

    def power_off(self, back_s: float) -> None:
        """Everything stops; another boot after a while."""
        if not self.up:
            return
        self.up = False
        self.runner.power_off()
        daemon, self.daemon = self.daemon, None
        if daemon and not daemon.done and not daemon.dead:
            daemon.context.on_death = None
            daemon.context.fds = set()
            self.kernel.kill(daemon)
        self.client.drop_caches()
        self.disk.power_loss(self.rng("power", self.boots))
        self.log((self.kernel.now, "power", self.name, "off"))
        self.kernel.at(self.kernel.now + back_s, self.boot)

    def boot(self) -> None:
        """Up again, with a new boot id."""
        if self.up:
            return
        self.up, self.runner.frozen_until = True, 0.0
        self.boots += 1
        self._boot_at, self._clock_zero = self.kernel.now, 5.0
        self.log((self.kernel.now, "power", self.name, "on"))
        self.start_daemon(1.0)
