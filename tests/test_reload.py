"""A node heeds a changed spool.toml while it serves, and nothing of one that is broken."""

import signal

from spoolq import config
from spoolq.reload import FIXED, heed
from tests.cluster import Cluster, read
from tests.world import POLICY, World

SLOW = "beat_s = 1000\nfence_s = 5000\ndead_s = 6000\ngrace_s = 1\nsettle_s = 0\nmin_free_mb = 1\n"


def test_a_changed_spool_toml_takes_effect_by_sighup_and_a_broken_one_does_not(cluster: Cluster):
    path = f"{cluster.root}/spool.toml"
    head = read(path).partition("\n[")[0]

    def write(text: str) -> None:
        with open(path, "w") as file:
            file.write(f"{head}\n[limits]\n{SLOW}{text}\n")

    write("")
    node = cluster.node("n1", 4)  # it does not beat again by itself while this test runs
    first = cluster.sub("sleep", "600")
    cluster.until(lambda: "running" == cluster.place(first), "it runs")

    write("[policy]\nmax_running = 1\n[pools]\nlic = 2\n")
    node.send_signal(signal.SIGHUP)
    cluster.until(lambda: "spool.toml has changed: max_running, pools" in cluster.log(), "the node heeds it")
    second = cluster.sub("-g", "lic:2", "true")
    cluster.until(lambda: "UserLimit" in read(cluster.home(second, "why/n1")), "the limit holds")

    write("[policy]\nmax_running = many\n")
    node.send_signal(signal.SIGHUP)
    cluster.until(lambda: "n1: " in cluster.ok("nodes"), "the node says that it is broken")
    assert "what it read before still holds there" in cluster.ok("nodes")
    assert "spool.toml is not heeded, what was read before still holds: " in cluster.log()
    assert "queue" == cluster.place(second)

    write("[pools]\nlic = 2\n")
    node.send_signal(signal.SIGHUP)
    assert "COMPLETED" == cluster.result(second)["state"], "the limit is gone, and the pool is there"
    cluster.until(lambda: "n1: " not in cluster.ok("nodes"), "nothing is broken any more")
    assert "running" == cluster.place(first)
    cluster.ok("kill", str(first))


def test_a_beat_reads_it_and_a_text_counts_when_it_was_seen_twice(tmp_path, monkeypatch):
    world = World(str(tmp_path), monkeypatch)
    node = world.up()
    world.turn(node)
    before = node.policy
    for part in ("[policy]\nidle_load", " = 2.5\n"):  # an editor writes in two parts
        with open(f"{world.root}/spool.toml", "a") as file:
            file.write(part)
        world.turn(node)
        assert (before, "") == (node.policy, node.reload.trouble)
    world.turn(node)
    assert 2.5 == node.policy.idle_load
    world.close()


def test_who_is_alive_is_judged_by_the_old_times_until_the_node_starts_again(tmp_path, monkeypatch):
    world = World(str(tmp_path), monkeypatch)
    node = world.up()
    old = node.policy
    text = POLICY.partition(b"[limits]")[0] + b"[limits]\nbeat_s = 1\nfence_s = 7\ndead_s = 100\nsettle_s = 3\n"
    said = heed(node, config.parse_policy(text + b"[pools]\nlic = 3\n", "spool.toml"))
    assert "settle_s" in said.split("; when it starts again: ")[0]
    assert "beat_s, fence_s, dead_s" == said.split("; when it starts again: ")[1]
    assert [getattr(old, name) for name in FIXED] == [getattr(node.policy, name) for name in FIXED]
    assert (3.0, 3000) == (node.intake.settle_s, node.capacity["lic"])
    heed(node, old)
    assert "lic" not in node.capacity
    world.close()
