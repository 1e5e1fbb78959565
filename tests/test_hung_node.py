"""A node whose spool does not answer: jobs go on, end and are delivered later; the daemon is left alone, and stops when told to."""

import datetime as dt
import glob
import os
import signal
import socket
import subprocess
import sys
import time

from tests import hang


def node(cluster, *words, log="n1", **env):
    """A node whose daemon may hang."""
    command = ["node", "--name", "n1", "--cpus", "4", "--mem", "64T", "--no-watch", *words]
    with open(f"{cluster.base}/{log}.log", "ab") as file:
        process = hang.start(cluster.env | env, *command, cwd=cluster.base, stdout=file, stderr=file)
    cluster.nodes.append(process)
    return process


def up(cluster, **env):
    process = node(cluster, **env)
    cluster.until(lambda: cluster.facts("n1").get("pid") == process.pid, "the node is up")
    return process


def marks(cluster, *names):
    return all(os.path.exists(f"{cluster.base}/{name}") for name in names)


def known_ends(cluster):
    """How many ends the runner has written down."""
    found = 0
    for path in glob.glob(f"{cluster.base}/state/**/runner.*.jsonl", recursive=True):
        with open(path, encoding="utf-8") as file:
            found += file.read().count('{"op":"ended",')
    return found


def test_jobs_go_on_and_are_limited_and_delivered_later(cluster, hung):
    cluster.policy(grace_s=60, settle_s=0, min_free_mb=1)  # time for a trap
    daemon = up(cluster)
    jobs = [
        cluster.sub("sh", "-c", "touch a; while [ ! -e go ]; do sleep 0.1; done; echo said; touch ended"),
        cluster.sub(
            "--output-mode", "local", "sh", "-c", "touch c; while [ ! -e go ]; do sleep 0.1; done; echo local; touch e"
        ),
    ]
    cluster.until(lambda: marks(cluster, "a", "c"), "both run")
    limited = "trap 'touch limited; exit 1' TERM; touch b; while :; do sleep 0.1; done"
    jobs.append(cluster.sub("-t", "15s", "sh", "-c", limited))
    cluster.until(lambda: marks(cluster, "b"), "all run, and the spool comes to hang before the limit")
    with hung.lasting():
        cluster.until(lambda: hang.stuck(daemon.pid), "the daemon is stuck")
        with open(f"{cluster.base}/go", "w", encoding="ascii"):
            pass
        cluster.until(lambda: marks(cluster, "ended", "limited", "e"), "jobs end and are limited meanwhile")
        cluster.until(lambda: known_ends(cluster) == 3, "their runner has seen it")
        cluster.until(lambda: "jobs go on, their results wait here" in cluster.log(), "it says so")
        assert ["running"] * 3 == [cluster.place(job) for job in jobs]
        ended = time.time()
    assert ["COMPLETED", "COMPLETED", "TIMEOUT"] == [cluster.result(job)["state"] for job in jobs]
    assert dt.datetime.fromisoformat(cluster.result(jobs[0])["ended"]).timestamp() <= ended + 1
    assert ("said\n", "local\n") == (cluster.text(jobs[0]), cluster.text(jobs[1]))
    cluster.until(lambda: "answers again" in cluster.log(), "it says so")


def test_it_stops_when_told_to_while_it_hangs(cluster, hung):
    daemon = up(cluster)
    job = cluster.sub("sh", "-c", "touch a; while [ ! -e go ]; do sleep 0.1; done")
    cluster.until(lambda: marks(cluster, "a"), "it runs")
    with hung.lasting():
        cluster.until(lambda: hang.stuck(daemon.pid), "the daemon is stuck")
        daemon.send_signal(signal.SIGTERM)
        assert 0 == daemon.wait(timeout=120)
    assert "stopped all the same; jobs that run go on" in cluster.log()
    assert "running" == cluster.place(job)
    with open(f"{cluster.base}/go", "w", encoding="ascii"):
        pass
    up(cluster)
    assert "COMPLETED" == cluster.result(job)["state"]


def test_it_stops_also_if_it_comes_to_hang_while_it_stops(cluster, hung):
    """The signal was heard; the last word to the spool gets no answer."""
    daemon = up(cluster, **{hang.CALLS: "rename"})
    hung.begin()
    daemon.send_signal(signal.SIGTERM)
    assert 0 == daemon.wait(timeout=120)


def test_a_node_that_starts_meanwhile_waits_and_can_be_stopped(cluster, hung):
    with hung.lasting():
        first, second = node(cluster), node(cluster, log="n2", SPOOLQ_STATE_DIR=f"{cluster.base}/other")
        for name in ("n1", "n2"):
            cluster.until(lambda name=name: "does not answer: jobs go on" in cluster.log(name), "both say so")
        first.send_signal(signal.SIGTERM)
        assert first.wait(timeout=120) in (0, -signal.SIGTERM)
        assert second.poll() is None
    cluster.until(lambda: cluster.facts("n1").get("pid") == second.pid, "the other one serves")


def heard(sock):
    """What a service manager has been told since it looked last."""
    texts = []
    sock.setblocking(False)
    while True:
        try:
            texts.append(sock.recv(4096).decode())
        except BlockingIOError:
            return texts


def test_the_watchdog_is_fed_while_the_spool_hangs(cluster, hung):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"{cluster.base}/notify")
        up(cluster, NOTIFY_SOCKET=f"{cluster.base}/notify")
        told = []
        cluster.until(lambda: told.extend(heard(sock)) or "READY=1" in "\n".join(told), "it is ready")
        with hung.lasting():
            told, hangs = [], f"STATUS=the spool {cluster.root} does not answer; jobs go on"
            cluster.until(lambda: told.extend(heard(sock)) or hangs in told, "the daemon is stuck, and says so")
            told = told[told.index(hangs) :]
            cluster.until(lambda: told.extend(heard(sock)) or told.count("WATCHDOG=1") >= 3, "it is fed")


def test_a_daemon_that_hangs_for_a_reason_of_its_own_is_not_fed(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        code = "import time; from spoolq import patience, service; patience.watch.care = service.Serving()\n"
        code += "patience.watch.begin(); service.feed_watchdog(); time.sleep(4)"
        env = os.environ | {"NOTIFY_SOCKET": str(tmp_path / "notify"), "PYTHONPATH": hang.REPO}
        subprocess.run([sys.executable, "-c", code], env=env, check=True)
        assert ["WATCHDOG=1"] == heard(sock)
