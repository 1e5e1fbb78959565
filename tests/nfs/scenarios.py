"""
The faults, one function each, by name in SCENARIOS.

A scenario gets a Site with daemons and a number of jobs, makes trouble, and returns how often; what became
of the jobs is compared afterwards by `check`, for every scenario in the same way.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from tests.nfs.site import NODES, PYTHON, Site

RULES = ("certain", "never", "yes")
# nearly the shortest dead_s that is legal; a shorter fence_s is met by emulated machines that are merely slow
SHORT_LEASE = {"beat_s": 3, "fence_s": 20, "grace_s": 1, "dead_s": 75}
OPERATOR = {"beat_s": 2}  # silence alone decides nothing for 20 minutes
BRISK = {"beat_s": 5}  # a machine that is back waits for 3 beats


class Scenario(NamedTuple):
    """How a scenario wants its site, and how many jobs make sense."""

    act: Callable[[Site, int], int]
    jobs: int
    limits: dict[str, Any]
    serve: tuple[str, ...]
    user: bool


SCENARIOS: dict[str, Scenario] = {}


def scenario(jobs: int, limits: dict[str, Any] | None = None, serve: tuple[str, ...] = NODES, *, user: bool = False):
    """Register."""

    def register(act: Callable[[Site, int], int]) -> Callable[[Site, int], int]:
        SCENARIOS[act.__name__] = Scenario(act, jobs, limits or {}, serve, user)
        return act

    return register


@scenario(2000)
def race(site: Site, jobs: int) -> int:
    """Three nodes claim what all three submit, and drop."""
    load = site.load(jobs - jobs // 20, site.job(0), chunk=max(1, jobs // 12))
    for number in range(jobs // 20):
        site.drop(NODES[number % 3], f"dropped{number}", site.job(0))
    load.join()
    return 0


@scenario(30)
def stale_listings(site: Site, jobs: int) -> int:
    """Names that a node has looked for in vain, or has seen, and that another node makes, moves and takes away."""
    ids = site.submit("n1", jobs, site.job(1), "--hold")
    for node in NODES:
        site.ok(node, "stat", "--json")
    freed, killed = ids[: jobs * 2 // 3], ids[jobs // 3 :]
    site.expected.cancelled = set(killed)
    asked = (("n2", "release", freed), ("n3", "kill", killed))
    with ThreadPoolExecutor(2) as pool:  # the third in the middle is released and cancelled at the same time
        list(pool.map(lambda one: site.spoolq(one[0], one[1], *map(str, one[2])), asked))
    last = ids[-1]
    for _ in range(4):
        site.spoolq("n2", "show", str(last + 1))  # not there yet
        (last,) = site.submit("n1", 1, site.job(0))
        site.ok("n2", "show", str(last))
        site.ok("n3", "wait", str(last)) if last % 5 == 0 else site.spoolq("n3", "wait", str(last))
        assert '"COMPLETED"' in (said := site.spoolq("n2", "show", "--json", str(last))["out"]) or last % 5, said
    return 0


@scenario(60)
def kill_daemons(site: Site, jobs: int) -> int:
    """kill -9 of the daemons while jobs start, run and end."""
    load = site.load(jobs, site.job(3))
    faults = 0
    for node in (*NODES, *NODES):
        _busy(site, node, 5)
        site.strike()
        site.kill_daemon(node)
        faults += 1
    load.join()
    return faults


@scenario(60, BRISK)
def power_loss(site: Site, jobs: int) -> int:
    """A node loses power with jobs running and comes back; in between the others go on."""
    site.expected.reruns = True
    load = site.load(jobs, site.job(6), chunk=3, rules=RULES)
    _busy(site, "n2", 40)
    site.strike()
    site.lab.kill("n2")
    load.join()
    site.until("only the jobs of n2 are left", lambda: _only_on(site, "n2"))
    site.lab.boot("n2")
    site.serve("n2")
    return 1


@scenario(45, BRISK)
def power_loss_open_files(site: Site, jobs: int) -> int:
    """The same, with every file of the spool open there: NFSv4 delegations that no one gives back."""
    site.expected.reruns = True
    load = site.load(jobs, site.job(6), chunk=3, rules=RULES)
    _busy(site, "n2", 40)
    program = f"""if True:
        import glob, os, time
        files = [p for p in glob.glob({site.root + "/**"!r}, recursive=True) if os.path.isfile(p)]
        kept = [os.open(p, os.O_RDONLY) for p in files]
        open({site.here + "/open"!r}, "w").write(str(len(kept)))
        time.sleep(9999)"""
    site.lab.run("n2", PYTHON, "-c", program, background=True, SPOOLQ_NONE="1")
    site.until("files are open", lambda: site.lab.run("n2", "test", "-s", f"{site.here}/open")["code"] == 0)
    site.strike()
    site.lab.kill("n2")
    load.join()
    site.submit("n3", 6, site.job(0))
    site.until("only the jobs of n2 are left", lambda: _only_on(site, "n2"))
    site.lab.boot("n2")
    site.serve("n2")
    return 1


@scenario(45, BRISK)
def reboot(site: Site, jobs: int) -> int:
    """A node is rebooted in good order: its jobs are told to end, then killed, with everything else."""
    site.expected.reruns = site.expected.sigterm = True
    load = site.load(jobs, site.job(8), chunk=3, nodes=("n1", "n3"), rules=RULES)
    _busy(site, "n2", 40)
    site.strike()
    site.lab.reboot("n2")
    site.serve("n2")
    load.join()
    return 1


@scenario(90)
def server_restart(site: Site, jobs: int) -> int:
    """nfsd is stopped and started under load, after its replies were lost for a while. Twice."""
    return _server_trouble(site, jobs, 2, lambda: site.lab.server_restart(3))


@scenario(90)
def server_crash(site: Site, jobs: int) -> int:
    """The server loses power under load, after its replies were lost for a while: renames done, answers not heard."""
    return _server_trouble(site, jobs, 2, lambda: site.lab.server_crash(1))


def _server_trouble(site: Site, jobs: int, times: int, trouble: Callable[[], None]) -> int:
    load = site.load(jobs, site.job(1), chunk=4)
    for number in range(times):
        wanted = (number * jobs) // times + 6
        site.until(f"{wanted} jobs began", lambda wanted=wanted: len(site.ran().starts) >= min(wanted, jobs // 2))
        site.strike()
        site.lab.loss("server", 100)
        time.sleep(1.5)
        trouble()
        site.lab.loss("server", 0)
    load.join()
    return times


@scenario(60)
def packet_loss(site: Site, jobs: int) -> int:
    """One packet in ten of the server and one in twenty of a node are lost, all the time."""
    site.lab.loss("server", 10)
    site.lab.loss("n1", 5)
    try:
        site.load(jobs, site.job(1)).join()
        site.until("the queue is empty", lambda: "queue/" not in site.tree())
    finally:
        for name in ("server", "n1"):
            site.lab.loss(name, 0)
    return 2


@scenario(60)
def partition(site: Site, jobs: int) -> int:
    """A node is cut off for a minute, then the server from all, and healed: not long enough for anybody to be dead."""
    load = site.load(jobs, site.job(2))
    for name, seconds in (("n2", 60), ("server", 20)):
        _busy(site, "n2", 5)
        site.strike()
        site.lab.partition(name)
        time.sleep(seconds)
        site.lab.heal(name)
    load.join()
    return 2


@scenario(20)
def hung_mount(site: Site, jobs: int) -> int:
    """A node's mount hangs: commands there say so and end, its jobs and its daemon do not."""
    load = site.load(jobs, site.job(3), nodes=("n1",))
    _busy(site, "n2", 40)
    site.strike()
    site.lab.partition("n2")
    for command in ("stat", "nodes", "sub"):
        done = site.spoolq("n2", command, *(["true"] if command == "sub" else []), timeout=120)
        assert done["code"] == 75, done
        assert "does not answer" in done["err"], done
    site.lab.heal("n2")
    load.join()
    return 1


@scenario(8, SHORT_LEASE, ("n2",))
def partition_takeover(site: Site, jobs: int) -> int:
    """
    A node is cut off for longer than dead_s: others run its jobs of rule yes again, and only those.

    `check` compares the times: the node has killed its own copies before.
    """
    site.expected.reruns = True
    again = site.submit("n1", 2, site.job(600, ticks=True), "-c", "0.5", rule="yes")  # only the first attempt is long
    gate = f"until [ -e {site.here}/go ]; do sleep 0.2; done; {site.job(0)}"
    (unheard,) = site.submit("n1", 1, gate, "-c", "0.5", rule="yes")
    words = (site.job(60, ticks=True), "-c", "0.5")
    kept = [site.submit("n1", 1, *words, rule=rule)[0] for rule in ("certain", "never")]
    site.until_running(4, "n2")
    site.until("five jobs on n2", lambda: site.tree().count("running/n2/") == 5)
    site.serve("n1", "n3")
    site.strike()
    site.lab.partition("n2")
    for node in NODES:  # on n2 this job ends before the fence, and nobody hears it
        site.lab.run(node, "touch", f"{site.here}/go")
    site.until("taken over", lambda: all(site.ran(("n1", "n3")).attempts(job) for job in (*again, unheard)))
    there = site.ran(("n2",))
    assert all((job, 1) in there.starts and (job, 1) not in there.ends for job in again), "no copy was killed"
    site.submit("n3", jobs, site.job(0))
    site.lab.heal("n2")
    if (unheard, 1) in there.ends:
        late = "result.1.late.json"
        site.until(late, lambda: late in site.collect()["homes"][str(unheard)]["late"])
    site.until("all ended", lambda: not site.tree())
    assert all(site.ran().attempts(job) == [1] for job in kept), "rules certain and never wait for the node itself"
    return 1


@scenario(8, OPERATOR, ("n2",))
def node_dead_certain(site: Site, jobs: int) -> int:
    """A node is off for good: its jobs wait for an operator's word, then run elsewhere; it finds nothing later."""
    site.expected.reruns = True
    # only the first attempt is long: none ends before the power does, however slowly the others come up
    ids = {rule: site.submit("n1", 1, site.job(900, ticks=True), rule=rule)[0] for rule in RULES}
    site.until_running(3, "n2")
    site.serve("n1", "n3")
    site.strike()
    site.lab.kill("n2")
    site.submit("n3", jobs, site.job(0))
    site.until("only the jobs of n2 are left", lambda: _only_on(site, "n2"))
    left = {int(path.rpartition("/")[2].split(".")[1]) for path in site.tree().splitlines()}
    assert left == set(ids.values()), "all three wait for a word"
    assert site.spoolq("n1", "node-dead", "n2")["code"], "node-dead without --certain is refused"
    site.until("the word is taken", lambda: site.spoolq("n1", "node-dead", "n2", "--certain")["code"] == 0)
    site.until("decided", lambda: not site.tree())
    assert [2, 0, 2] == [max(site.ran(("n1", "n3")).attempts(ids[rule]), default=0) for rule in RULES]
    site.lab.boot("n2")
    site.serve("n2")
    site.submit("n2", 6, site.job(1))
    return 1


@scenario(40)
def full_export(site: Site, jobs: int) -> int:
    """The export is full while jobs end and others are submitted; then there is room again."""
    site.expected.output_lost = True
    site.submit("n1", jobs, site.job(15))
    for node in NODES:
        _busy(site, node, 15)
    site.strike()
    site.lab.fill()
    refused = site.spoolq("n2", "sub", "true")
    assert refused["code"] == 75, refused
    site.spoolq("n3", "stat")
    time.sleep(40)
    site.lab.run("n3", "sh", "-c", f"kill -9 $(cat {site.here}/pid)")  # the next one comes up on a full spool
    time.sleep(10)
    site.lab.unfill()
    site.until("the spool takes jobs", lambda: site.spoolq("n2", "sub", "--check", "true")["code"] == 0)
    site.submit("n2", 6, site.job(0))
    return 2


@scenario(45)
def clock_skew(site: Site, jobs: int) -> int:
    """Clocks an hour ahead and behind, and one that jumps while jobs run: time limits are meant in seconds that pass."""
    site.lab.clock("n1", 3600)
    site.lab.clock("n3", -3600)
    load = site.load(jobs, site.job(3), chunk=3)
    site.drop("n1", "dropped", site.job(0))
    limited = site.submit("n1", 3, site.job(9999), "-t", "20s")
    site.submit("n2", 3, site.job(20), "-t", "10m")
    site.expected.timeout = set(limited)
    _busy(site, "n2", 15)
    site.strike()
    site.lab.clock("n2", 3600)
    load.join()
    for node in NODES:
        said = site.ok(node, "nodes")
        assert said.count(" up ") == 3, said
    site.until("all ended", lambda: not site.tree())
    return 3


@scenario(30, serve=(), user=True)
def root_squash(site: Site, jobs: int) -> int:
    """Root of the nodes is nobody on the server: a user's nodes serve the user's spool, root's is refused clearly."""
    site.lab.squash(on=True)
    site.serve("n1", "n2")
    site.load(jobs, site.job(1), nodes=("n1", "n2")).join()
    site.as_user = ()
    env, site.env = site.env, site.env | {"SPOOLQ_STATE_DIR": "/run/state-of-root"}
    site.lab.run("n3", "install", "-d", "-m", "700", "/run/state-of-root")
    for words in (("node", "--cpus", "4", "--idle-exit", "5"), ("sub", "true")):
        done = site.spoolq("n3", *words, timeout=120)
        assert done["code"] not in (0, 124), done
        assert "Traceback" not in done["err"], done
        assert site.root in done["err"], done
    site.env = env
    site.until("all ended", lambda: not site.tree())
    return 1


@scenario(1)
def output_followed(site: Site, jobs: int) -> int:
    """Output is seen on another node while it grows. Without care it comes when the kernel writes back, 30 s later."""
    ticking = f"sh -c 'for i in 0 1 2 3 4 5 6 7; do echo line$i; sleep 2; done' > /dev/null; {site.job(0)}"
    site.submit("n1", jobs, ticking)
    writes = "for i in $(seq 0 400); do echo $i; sleep 1; done"
    job = int(site.ok("n1", "sub", "-w", "n2", "-D", "/", "sh", "-c", writes))
    site.expected.acknowledged[job] += 1
    site.expected.cancelled.add(job)
    follow = f"timeout 300 {PYTHON} -m spoolq out -f {job} | head -n 5"
    seen = site.lab.run("n1", "sh", "-c", follow, timeout=320, **site.env)["out"].split()
    assert list("01234") == seen, seen
    site.ok("n1", "kill", str(job))
    return 0


def _busy(site: Site, node: str, seconds: float) -> None:
    """A job of each rule that can run on one node only, before others; back when all three have begun there."""
    words = (site.job(seconds), "-w", node, "-p", "100")
    ids = [site.submit("n1", 1, *words, rule=rule)[0] for rule in RULES]
    site.until(f"{ids} on {node}", lambda: all(site.ran([node]).attempts(job) for job in ids))


def _only_on(site: Site, node: str) -> bool:
    left = site.tree().splitlines()
    return all(path.startswith((f"running/{node}/", f"reaping/{node}/")) for path in left)


def undo(site: Site) -> None:
    """Take all faults back, whatever a scenario left."""
    lab = site.lab
    for name in lab.names:
        lab.heal(name)
        if name not in lab.machines:
            lab.boot(name)
    for name in lab.names:
        lab.loss(name, 0)
        lab.clock(name)
    lab.unfill()
    lab.squash(on=False)
