"""
What came with the scheduling rooms, on real NFS: arrays, dependencies, keys, pools, limits, kept places, nested runs.

As in `scenarios`: what became of the jobs is compared by `check`; here is what else must hold. Who ran beside whom is
told by the server's clock alone, see `Site.spans`; nothing depends on how long something takes.
"""

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.nfs.check import Unit
from tests.nfs.scenarios import scenario
from tests.nfs.site import NODES, PYTHON, Site

Spans = Mapping[tuple[Unit, int], tuple[float, float]]
POOL, MOST = 2, 5  # of `pools`: how many take from the pool, and how many run, at once


@scenario(48)
def arrays(site: Site, jobs: int) -> int:
    """An array with a limit over three nodes: held, released, a task killed, one that fails; the failed run again."""
    bad, killed = jobs // 3, jobs
    load = site.load(9, site.job(1))
    code = f"SPOOLQ_ARRAY_TASK_ID == {bad} && SPOOLQ_ATTEMPT == 1 ? 3 : 0"
    array = site.sub("n1", site.marked(1, code), "-a", f"1-{jobs}%6")
    other = site.sub("n2", site.marked(1), "-a", "1-9:2")
    tasks: list[Unit] = [f"{array}_{number}" for number in range(1, jobs + 1)]
    expected = site.expected
    expected.acknowledged.update([*tasks, *(f"{other}_{number}" for number in range(1, 10, 2))])
    expected.codes.update(dict.fromkeys(tasks, 0))
    expected.again = {f"{array}_{bad}", f"{array}_{killed}"}
    site.spoolq("n3", "hold", str(array))  # what is being claimed meanwhile stays
    site.spoolq("n2", "kill", f"{array}_{killed}")
    site.ok("n3", "release", str(array))
    assert site.spoolq("n2", "wait", str(array))["code"], "one failed and one was killed"
    site.ok("n3", "requeue", str(array), "--failed")
    assert site.spoolq("n1", "wait", str(array))["code"] == 0, "and then they did not"
    load.join()
    site.until("all ended", lambda: not site.tree())
    ran, spans = site.ran(), site.spans()
    assert ran.attempts(f"{array}_{bad}") == [1, 2], ran.attempts(f"{array}_{bad}")
    at_once = most({key: span for key, span in spans.items() if key[0] in tasks})
    assert at_once <= 6, f"{at_once} tasks at once: {spans}"
    return 0


@scenario(6)
def dependencies(site: Site, jobs: int) -> int:
    """Chains over three nodes, and parents that end while their children are submitted from two others."""
    first = site.sub("n1", site.marked(3, "0"))
    second = site.sub("n2", site.marked(1, "0"), "-d", f"afterok:{first}")
    third = site.sub("n3", site.marked(1, "1"), "-d", f"afterok:{second}")
    fourth = site.sub("n1", site.marked(1, "0"), "-d", f"afternotok:{third},afterany:{first}")
    never = site.sub("n2", site.marked(0, "0"), "-d", f"afternotok:{first}")
    nor = site.sub("n3", site.marked(0, "0"), "-d", f"afterok:{never}")
    codes = {first: 0, second: 0, third: 1, fourth: 0}
    chain, off = [first, second, third, fourth], {never, nor}
    for number in range(jobs):  # each lasts a little longer than the one before
        fails = number % 2
        parent = site.sub("n1", site.marked(number, str(fails)))
        asked = (("n2", ("afterok", "afternotok")[fails]), ("n3", ("afternotok", "afterok")[fails]))
        goes, not_ = _together(
            [lambda at=at, on=f"{kind}:{parent}": site.sub(at, site.marked(0, "0"), "-d", on) for at, kind in asked]
        )
        codes |= {parent: fails, goes: 0}
        chain += [parent, goes]
        off.add(not_)
    site.expected.codes, site.expected.cancelled = codes, off
    site.until("all ended", lambda: not site.tree())
    spans = site.spans()
    before = [*zip(chain[:3], chain[1:4], strict=True), *zip(chain[4::2], chain[5::2], strict=True)]
    for parent, child in before:
        assert spans[parent, 1][1] <= spans[child, 1][0], f"{child} began before {parent} had ended: {spans}"
    assert not any(site.ran().attempts(job) for job in off), f"of {off} none may start"
    return 0


@scenario(30, {"pools": {"lic": POOL}, "policy": {"max_running": MOST}})
def pools(site: Site, jobs: int) -> int:
    """Three nodes take from one pool, and a daemon is killed: never more holders, nor more jobs of a user, than may."""
    ones, both = "lic:1", f"lic:{POOL}"
    taken: dict[Unit, int] = {}

    def submit(node: str) -> None:
        for gres in (ones, ones, both, ""):
            ids = site.submit(node, jobs // 12 or 1, site.marked(1.5), *(("-g", gres) if gres else ()))
            taken.update(dict.fromkeys(ids, {ones: 1, both: POOL}.get(gres, 0)))

    _together([lambda node=node: submit(node) for node in NODES])
    site.strike()
    site.kill_daemon("n2")
    site.until("all ended", lambda: not site.tree())
    spans = site.spans()
    assert (seen := most(spans, taken)) <= POOL, f"{seen} of {POOL} taken at once: {spans}, {taken}"
    assert (seen := most(spans)) <= MOST, f"{seen} jobs at once, {MOST} allowed: {spans}"
    return 1


@scenario(36, serve=())
def places(site: Site, jobs: int) -> int:
    """A job for a whole node among small ones, of which there are always more; and jobs in jobs where one cpu is."""
    for cpus, node in ((1, "n1"), (2, "n2"), (4, "n3")):
        site.serve(node, cpus=cpus)
    nest = f"LAB_NEST=2 LAB_PYTHON={PYTHON} {site.marked(1, '0')}"
    top = site.sub("n2", nest, "-w", "n1", "-p", "100")
    site.submit("n1", jobs // 3, site.marked(4))
    whole = site.sub("n2", site.marked(2), "-c", "4")
    site.until("a place is kept", lambda: f".{whole}." not in site.tree() or "R=n3" in site.tree())
    later = set(site.submit("n3", jobs - jobs // 3, site.marked(2)))
    site.until("all ended", lambda: not site.tree())
    nested = [int(word) for word in site.lab.run("n1", "cat", f"{site.here}/ran.children")["out"].split()]
    assert len(nested) == 2, nested
    site.expected.acknowledged.update(nested)
    site.expected.codes = dict.fromkeys([top, *nested], 0)
    spans, there = site.spans(), site.ran(["n3"])
    began, ended = spans[whole, 1]
    assert there.attempts(whole) == [1]
    beside = {job: spans[job, 1] for job, _ in there.starts if job != whole}
    assert not (at := [job for job, (start, end) in beside.items() if start < ended and end > began]), f"{whole}: {at}"
    assert not (at := [job for job in later & beside.keys() if beside[job][0] < began]), f"{at} on n3 before {whole}"
    return 0


@scenario(12)
def steering(site: Site, jobs: int) -> int:
    """Keys, begin times, holds and edits, each by several nodes at once."""
    # held, so that the first has not ended before the last is submitted
    words = ("sub", "-D", "/", "-H", "--unique", "nightly", "sh", "-c", site.job(1))
    said = _together([lambda node=node: site.spoolq(node, *words, patient=True) for node in (*NODES, *NODES)])
    ids = [int(done["out"]) for done in said if done["code"] == 0]
    assert len(ids) == 1, said
    assert all("has the key" in done["err"] for done in said if done["code"]), said
    joined = _together([lambda node=node: site.ok(node, *words[:5], "nightly:join", *words[6:]) for node in NODES])
    assert {int(text) for text in joined} == set(ids), (ids, joined)
    site.expected.acknowledged.update(ids)
    _together([lambda node=node: site.spoolq(node, "release", str(ids[0])) for node in NODES])
    now = float(site.lab.run("server", "date", "+%s.%N")["out"])
    late = site.sub("n1", site.marked(0), "-b", "now+20s")
    put_off = site.sub("n2", site.marked(0), "-b", "now+1d")
    held = site.submit("n1", jobs, site.marked(2), "--hold")
    jobs_held = [str(job) for job in held]
    asked = [("n1", "release"), ("n2", "edit", "priority=5"), ("n3", "edit", "priority=9", "name=edited")]
    _together([lambda one=one: site.spoolq(one[0], one[1], *jobs_held, *one[2:]) for one in asked])
    site.spoolq("n2", "release", *jobs_held)
    limited = site.sub("n1", site.job(9999), "-t", "10m", "-w", "n2")
    site.until(f"{limited} began", lambda: site.ran(["n2"]).attempts(limited))
    site.ok("n3", "edit", str(limited), "time=1s")
    site.expected.timeout = {limited}
    site.ok("n3", "release", str(put_off))
    site.until("all ended", lambda: not site.tree())
    assert site.spans()[late, 1][0] >= now + 15, "began before its time"  # the clock of whichever node looks counts
    return 0


def most(spans: Spans, weights: Mapping[Unit, int] | None = None) -> int:
    """How many of these ran at once, or what they took together, at most."""
    changes = [(start, 1, key[0]) for key, (start, _) in spans.items()]
    changes += [(end, -1, key[0]) for key, (_, end) in spans.items()]
    now, seen = 0, 0
    for _, sign, job in sorted(changes, key=lambda change: change[:2]):  # what ends at a moment makes room at it
        now += sign * (1 if weights is None else weights.get(job, 0))
        seen = max(seen, now)
    return seen


def _together(acts: Iterable[Callable[[], Any]]) -> list[Any]:
    acts = list(acts)
    with ThreadPoolExecutor(len(acts)) as pool:
        return list(pool.map(lambda act: act(), acts))
