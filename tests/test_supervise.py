"""The node family with real processes: what jobs see, how they are ended, and who may be killed meanwhile."""

import contextlib
import os
import re
import resource
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from spoolq import cgroup, journal, process, takeover
from spoolq.ending import USAGE_KEYS
from spoolq.kin import Kin
from spoolq.watch import Watcher

from .node_family import Node, contents, gone, touch, wait_until

STUBBORN = "trap '' TERM; while :; do sleep 0.05; done"
SAYS_SO = "trap '' TERM; echo deaf; while :; do sleep 0.05; done"  # when it is stubborn
GREEDY = f"exec {sys.executable} -c 'import time; x = bytearray(200 << 20); print(1, flush=True); time.sleep(600)'"


@pytest.fixture
def node():
    """A family; whatever it printed is a fault."""
    made = Node()
    yield made
    log = made.close()
    assert "" == log


# --- what a job sees


@pytest.mark.parametrize("code", [0, 1, 77, 255])
def test_exit_codes_are_exact(node, code):
    node.start(1, f"exit {code}")
    ended = node.ended(1)
    assert (code, None, "") == (ended["exit_code"], ended["signal"], ended["reason"])
    assert list(USAGE_KEYS) == list(ended["rusage"])
    assert "wait4" == ended["measured_by"]


def test_a_signal_is_reported(node):
    node.start(1, "kill -9 $$")
    ended = node.ended(1)
    assert (None, 9, "") == (ended["exit_code"], ended["signal"], ended["reason"])


def test_rusage_is_that_of_the_job(node):
    node.start(1, [sys.executable, "-S", "-c", "x = bytearray(80 << 20)\nfor i in range(2000000): pass"])
    rusage = node.ended(1)["rusage"]
    assert rusage["max_rss_kb"] > 80 << 10
    assert rusage["user_s"] > 0


def test_a_job_inherits_three_descriptors_default_signals_and_its_own_environment(node):
    lines = (
        "import os, signal",
        "print('fds', *[f for f in sorted(os.listdir('/proc/self/fd')) if os.path.exists(f'/proc/self/fd/{f}')])",
        "print('in', os.readlink('/proc/self/fd/0'))",
        "print('env', *sorted(os.environ))",
        "print('umask', oct(os.umask(0)))",
        "print('cwd', os.getcwd())",
        "print('leader', os.getsid(0) == os.getpid() == os.getpgid(0))",
        "print(*[l.strip() for l in open('/proc/self/status') if l.startswith(('SigBlk', 'SigIgn'))])",
    )
    # -E -S and the raw state: python itself ignores SIGPIPE and SIGXFSZ, so a shell looks at the mask
    node.start(1, [sys.executable, "-S", "-c", "\n".join(lines)], chdir="/usr")
    node.ended(1)
    node.start(2, "grep -E 'SigBlk|SigIgn' /proc/self/status")
    node.ended(2)
    text = node.output()
    assert "fds 0 1 2\n" in text
    assert "in /dev/null" in text
    assert "env LC_CTYPE NODE PATH SPOOLQ_ATTEMPT SPOOLQ_FAMILY SPOOLQ_JOB_ID" in text.replace(
        "env NODE", "env LC_CTYPE NODE"
    )
    assert "umask 0o27" in text
    assert "cwd /usr" in text
    assert "leader True" in text
    internal = 3 << 31  # glibc's posix_spawn ignores its own signals 32 and 33 in every child
    assert [0, 0] == [int(mask, 16) & ~internal for mask in re.findall(r"Sig\w+:\t(\w+)", text)[-2:]]


def test_a_directory_may_come_as_a_descriptor(node, tmp_path):
    fds = [
        os.open(tmp_path / "o", os.O_WRONLY | os.O_CREAT),
        os.open("/dev/null", os.O_WRONLY),
        os.open(tmp_path, os.O_RDONLY),
    ]
    node.start(1, "pwd", fds=fds, cwdfd=True, chdir=None)
    assert 0 == node.ended(1)["exit_code"]
    assert f"{tmp_path}\n" == (tmp_path / "o").read_text()
    for fd in fds:
        os.close(fd)


def test_jobs_are_preferred_by_the_out_of_memory_killer(node):
    node.start(1, "sleep 600")
    pid = node.pid(1)
    wait_until(lambda: contents(f"/proc/{pid}/oom_score_adj") == "300\n")


# --- launches that fail


@pytest.mark.parametrize("remote", [False, True])
def test_launch_failures_have_shell_codes_and_words(node, tmp_path, remote):
    (tmp_path / "denied").write_text("echo no")
    (tmp_path / "plain").write_text("echo text $1")
    (tmp_path / "plain").chmod(0o700)
    (tmp_path / "broken").write_bytes(b"\0\1\2\3")
    (tmp_path / "broken").chmod(0o700)
    node.start(1, ["no-such-program"], remote=remote)
    node.start(2, [str(tmp_path / "denied")], remote=remote)
    node.start(3, [str(tmp_path / "plain"), "ran"], remote=remote)
    node.start(4, [str(tmp_path / "broken")], remote=remote)
    node.start(5, ["true"], chdir="/no/such/dir", remote=remote)
    ends = [node.ended(i) for i in range(1, 6)]
    assert [127, 126, 0, 126, 126][: 3 if remote else 5] == [e["exit_code"] for e in ends][: 3 if remote else 5]
    assert 126 == ends[4]["exit_code"]
    assert ["launch", "launch", "", "launch"] == [ends[i]["reason"] for i in (0, 1, 2, 4)]
    assert "text ran" in node.output()
    words = "not found" if remote else "No such file or directory"
    assert words in ends[0]["detail"]


def test_a_program_that_exits_with_127_is_no_launch_failure(node):
    node.start(1, "exit 127", remote=True)
    assert (127, "") == (node.ended(1)["exit_code"], node.ended(1)["reason"])


# --- limits and orders


def test_time_limit_kills_what_ignores_the_request(node):
    node.start(1, f"{SAYS_SO} & {SAYS_SO}", limit_s=3600.0, grace_s=0.3)
    wait_until(lambda: node.output().count("deaf") == 2, "both traps")
    node.say("limits", 1, limit_s=0.1)
    ended = node.ended(1)
    assert (9, "timeout") == (ended["signal"], ended["reason"])
    wait_until(lambda: len(node.leftovers()) == 3, "only the family is left")


def test_exit_0_within_the_grace_is_a_timeout_still(node):
    node.start(1, "trap 'exit 0' TERM; echo up; while :; do sleep 0.05; done", limit_s=3600.0)
    wait_until(lambda: "up" in node.output(), "the trap")
    node.say("limits", 1, limit_s=0.1)
    assert (0, "timeout") == (node.ended(1)["exit_code"], node.ended(1)["reason"])


def test_a_tree_that_scatters_is_cancelled_whole(node):
    scatter = f'setsid sh -c "{STUBBORN}" & (setsid setsid sh -c "trap \'\' TERM; sleep 600; sleep 600" &) ; echo up; {STUBBORN}'
    node.start(1, scatter)
    wait_until(lambda: "up" in node.output() and len(node.leftovers()) >= 6)
    node.say("kill", 1, reason="cancelled", grace_s=0.0)
    assert "cancelled" == node.ended(1)["reason"]
    wait_until(lambda: len(node.leftovers()) == 3, "only the family is left")


def test_a_suspended_job_can_be_cancelled_and_its_limit_stands_still(node):
    node.start(1, ["sleep", "600"], limit_s=3.0)
    node.say("suspend", 1)  # at once: its time runs
    pid = node.pid(1)
    wait_until(lambda: process.read_stat(pid).state == "T")
    begun = time.monotonic()
    while time.monotonic() < begun + 3.5:
        node.pump()
    assert not [m for m in node.messages if m["op"] == "ended"]
    node.say("kill", 1, reason="cancelled", grace_s=30.0)
    assert (15, "cancelled") == (node.ended(1)["signal"], node.ended(1)["reason"])


def test_a_resumed_job_goes_on_and_its_limit_too(node):
    node.start(1, ["sleep", "600"], limit_s=3.0)
    node.say("suspend", 1)  # at once: its time runs
    pid = node.pid(1)
    wait_until(lambda: process.read_stat(pid).state == "T")
    node.say("resume", 1)
    assert "timeout" == node.ended(1)["reason"]


def test_a_user_signal_reaches_the_tree(node):
    node.start(1, "trap 'exit 9' USR1; echo up; while :; do sleep 0.05; done")
    wait_until(lambda: "up" in node.output())
    node.say("signal", 1, signal=int(signal.SIGUSR1))
    ended = node.ended(1)
    assert (9, "") == (ended["exit_code"], ended["reason"]) or ended["signal"] == signal.SIGUSR1


def test_limits_of_a_running_job_can_be_changed(node):
    node.start(1, "sleep 600", limit_s=3600)
    node.pid(1)
    node.say("limits", 1, limit_s=0.2)
    assert "timeout" == node.ended(1)["reason"]


def test_memory_beyond_the_limit_ends_the_job_with_the_figures(node):
    node.start(1, GREEDY, mem_mb=50)
    ended = node.ended(1)
    assert "oom" == ended["reason"]
    assert re.search(r"held \d+ MB in \d processes, limit 50 MB", ended["detail"])


def test_memory_shared_by_forks_is_counted_once(node):
    code = "import os, time\nx = bytearray(60 << 20)\nfor i in range(4):\n  if not os.fork(): time.sleep(600)\nprint('up', flush=True); time.sleep(1.5)\nos.killpg(0, 15)"
    node.start(1, [sys.executable, "-S", "-c", code], mem_mb=150)
    assert (15, "") == (node.ended(1)["signal"], node.ended(1)["reason"])


def test_what_outlives_its_job_is_ended(node):
    node.start(1, "sleep 600 & (setsid sleep 600 &) ; exit 3")
    assert 3 == node.ended(1)["exit_code"]
    wait_until(lambda: len(node.leftovers()) == 3, "only the family is left")


def test_orphans_of_a_job_that_still_runs_are_spared(node):
    node.start(1, "(setsid sleep 600 &) ; echo up; sleep 600; :")  # some shells become the last command
    wait_until(lambda: "up" in node.output() and len(node.leftovers()) == 6)
    node.start(2, "exit 0")
    node.ended(2)
    begun = time.monotonic()
    while time.monotonic() < begun + 2.5:
        node.pump()
    assert 6 == len(node.leftovers())


def test_usage_never_goes_down_and_names_running_jobs(node):
    code = "print('up', flush=True)\nfor i in range(3000000): pass\nimport time; time.sleep(600)"
    node.start(1, [sys.executable, "-S", "-c", code])
    wait_until(lambda: "up" in node.output(), "a job that holds something")
    last = 0.0
    for _ in range(3):
        node.family.send({"op": "usage"})
        usage = node.wait_for("usage")
        node.messages.remove(usage)
        assert usage["cpu_s"] >= last
        last = usage["cpu_s"]
    assert ["1.1"] == list(usage["jobs"])
    assert usage["jobs"]["1.1"]["rss_mb"] >= 1


def test_nothing_wakes_up_while_jobs_without_limits_run(node):
    node.start(1, ["sleep", "600"])
    node.start(2, "exit 0")
    node.ended(2)
    pids = node.whole()

    def switches():
        return [re.findall(r"voluntary_ctxt_switches:\t(\d+)", contents(f"/proc/{pid}/status"))[0] for pid in pids]

    def still():
        before = switches()
        time.sleep(1.3)
        return before == switches()

    wait_until(still, "rest")


# --- refusals


def test_nothing_starts_after_the_lease(node):
    node.family.lease(process.boottime() - 1)
    node.start(1, "exit 0")
    assert "lease" in node.wait_for("refused", 1)["why"]
    assert None is node.reconnect()["jobs"] or [] == node.known["jobs"]


def test_an_attempt_starts_once(node):
    node.start(1, "echo once")
    node.ended(1)
    node.start(1, "echo twice", gen=9)
    assert "known" in node.wait_for("refused", 1)["why"]
    assert "once\n" == node.output()


def test_jobs_of_rule_yes_end_when_the_node_is_fenced(node):
    node.start(1, "sleep 600", rerun="Y")
    node.start(2, "sleep 600")
    node.pid(2)
    node.family.lease(process.boottime() + 60, fence=process.boottime() + 0.3)
    assert ("lost", 9) == (node.ended(1)["reason"], node.ended(1)["signal"])
    assert "running" == next(j for j in node.reconnect()["jobs"] if j["id"] == 2)["state"]


def test_a_later_lease_does_not_allow_a_start_whose_claim_was_made_under_an_earlier_one(node):
    node.family.lease(process.boottime() + 60)
    node.start(1, "exit 3", until=process.boottime() - 1)
    assert "lease" in node.wait_for("refused", 1)["why"]
    node.start(2, "exit 3", until=process.boottime() + 60)
    assert 3 == node.ended(2)["exit_code"]


def test_a_runner_forked_after_a_kill_fences_without_word_from_a_daemon(node):
    node.start(1, "sleep 600", rerun="Y")
    node.start(2, "sleep 600")
    pids = node.pid(1), node.pid(2)
    node.family.lease(process.boottime() + 60, fence=process.boottime() + 1)
    wait_until(lambda: contents(f"{node.dir}/fence"), "the note on the local disk")
    node.family.close()
    os.kill(node.known["pid"], signal.SIGKILL)
    wait_until(lambda: gone(pids[0]), "the fence")
    assert not gone(pids[1])
    node.reconnect()
    assert "lost" == node.ended(1)["reason"]  # its process is gone before that is known


def test_orders_that_make_no_sense_do_no_harm():
    node = Node()
    for message in ({"op": "start", "id": 1}, {"op": "kill"}, {"op": "nonsense"}, {"op": "forget", "jobs": 3}, {}):
        node.family.send(message)
    node.start(2, ["a\0b"])
    node.start(3, "exit 4")
    assert 4 == node.ended(3)["exit_code"]
    assert "launch" == node.ended(2)["reason"]
    assert "order 'start'" in node.close()


def test_a_job_of_the_same_number_on_another_node_here_is_left_alone(node):
    """Found by killing at every call: only the marker counts once the first process is gone, and ids are small numbers."""
    other = Node()
    other.start(1, "sleep 600 & exec sleep 601")
    theirs = other.pid(1)
    node.start(1, "setsid sleep 600 & sleep 1; kill -9 $$")
    assert 9 == node.ended(1)["signal"]
    wait_until(lambda: not node.leftovers() or len(node.leftovers()) == 3, "what is left of the job is cleared up")
    assert not gone(theirs)
    other.say("suspend", 1)
    wait_until(lambda: process.read_stat(theirs).state == "T")
    other.say("kill", 1, reason="cancelled", grace_s=0.1)
    other.ended(1)
    other.close()


# --- deaths in the family


def test_every_end_is_exact_when_the_runner_is_killed_with_50_jobs(node):
    for i in range(1, 51):
        node.start(
            i,
            [
                sys.executable,
                "-S",
                "-c",
                f"import os, time\nx = b'x' * ({i} << 20)\nwhile not os.path.exists({node.made!r} + '/go'): time.sleep(0.05)\nos._exit({i})",
            ],
        )
    node.pid(50)
    node.kill_runner()
    assert {"running"} == {job["state"] for job in node.known["jobs"]}
    assert 50 == len(node.known["jobs"])
    touch(node.made + "/go")
    for i in range(1, 51):
        ended = node.ended(i)
        assert (i, "", "wait4") == (ended["exit_code"], ended["reason"], ended["measured_by"])
        assert ended["rusage"]["max_rss_kb"] > i << 10
    node.family.send({"op": "forget", "jobs": [[i, 1] for i in range(1, 51)]})
    node.family.send({"op": "usage"})  # unread words of a connection that closes are dropped
    node.wait_for("usage")
    assert [] == node.reconnect()["jobs"]


def test_limits_and_orders_reach_adopted_jobs(node):
    node.start(1, SAYS_SO, limit_s=3600.0, grace_s=0.2)
    node.start(2, SAYS_SO)
    node.start(3, ["sleep", "600"])  # no shell: it may be between vfork and exec when it is stopped
    node.start(4, GREEDY, mem_mb=1000)
    pid = node.pid(3)
    node.pid(4)
    wait_until(lambda: node.output().count("deaf") == 2, "both traps")
    node.start(5, ["sleep", "600"], limit_s=4.0)
    node.say("limits", 1, limit_s=4.0)
    node.say("suspend", 3)
    wait_until(lambda: process.read_stat(pid).state == "T")
    node.kill_runner()
    assert "paused" == node.job(3)["stage"]
    node.say("kill", 2, reason="cancelled", grace_s=0.0)
    assert ("cancelled", 9) == (node.ended(2)["reason"], node.ended(2)["signal"])
    node.say("resume", 3)
    wait_until(lambda: process.read_stat(pid).state == "S")
    node.say("limits", 4, mem_mb=20)
    assert "oom" == node.ended(4)["reason"]
    assert ("timeout", 9) == (node.ended(1)["reason"], node.ended(1)["signal"])
    assert ("timeout", 15) == (node.ended(5)["reason"], node.ended(5)["signal"])


@pytest.mark.parametrize("order", ["stop", "cont", "term"])
def test_what_a_runner_wrote_down_and_did_not_live_to_do_is_done_by_the_next(order):
    # crash rig: of a tree that was to be resumed one process had its signal, and the other stood still for ever
    node = Node(hook=f"before-{order}:1")
    try:
        node.start(1, ["sleep", "600"], grace_s=600.0)
        pid, runner = node.pid(1), node.known["pid"]
        wait_until(lambda: process.read_stat(pid).comm == "sleep")
        if order == "term":
            node.say("kill", 1, reason="cancelled")
        else:
            node.say("suspend", 1)
        if order == "cont":
            wait_until(lambda: process.read_stat(pid).state == "T")
            node.say("resume", 1)
        node.until_new(runner)
        if order == "term":
            assert ("cancelled", 15) == (node.ended(1)["reason"], node.ended(1)["signal"])
        else:
            state, stage = {"stop": ("T", "paused"), "cont": ("S", "running")}[order]
            wait_until(lambda: process.read_stat(pid).state == state)
            assert stage == node.job(1)["stage"]
    finally:
        node.close()


@pytest.mark.parametrize("order", [(0, 1), (1, 0), (2, 0), (1, 1)])
def test_two_kills_in_the_life_of_a_job_cost_nothing(node, order):
    """0 is the runner, 1 the watcher above it, 2 the one above that; jobs start before, between and after."""
    wait = f"while [ ! -e {node.made}/go ]; do sleep 0.05; done;"
    for turn, which in enumerate((*order, None)):
        pids = node.whole()
        for i in range(5):
            job = turn * 5 + i + 1
            node.start(job, f"{wait} exit {job}")
            node.pid(job)
        if which is not None:
            os.kill(pids[which], signal.SIGKILL)
            wait_until(lambda p=pids[which]: gone(p))
    assert 3 == len(node.whole())
    touch(node.made + "/go")
    for job in range(1, 16):
        ended = node.ended(job)
        assert (job, "", "wait4") == (ended["exit_code"], ended["reason"], ended["measured_by"])
        assert list(USAGE_KEYS) == list(ended["rusage"])


def test_the_chain_renews_itself_again_and_again(node):
    for turn in range(1, 7):
        pids = node.whole()
        node.start(turn, "sleep 0.2; exit 5")
        node.pid(turn)
        os.kill(pids[turn % 3], signal.SIGKILL)
        assert (5, "wait4") == (node.ended(turn)["exit_code"], node.ended(turn)["measured_by"])


def test_a_daemon_that_returns_is_told_everything(node):
    node.start(1, "exit 6")
    node.start(2, "sleep 600")
    node.ended(1)
    pid = node.pid(2)
    node.reconnect()
    assert (6, "/s", 7) == (node.job(1)["ended"]["exit_code"], node.job(1)["scratch"], node.job(1)["gen"])
    assert ("running", pid, None) == (node.job(2)["state"], node.job(2)["pid"], node.job(2)["ended"])


@pytest.mark.parametrize("place", ["after-go", "after-spawn", "after-started", "before-reap"])
def test_a_runner_killed_in_the_middle_of_a_start_tells_the_truth(place):
    node = Node(hook=f"{place}:2")
    node.start(1, "sleep 600")
    first = node.known["pid"]
    node.start(2, "sleep 0.3; exit 8" if place != "before-reap" else "exit 8")
    node.until_new(first)
    if place == "after-go":
        assert None is node.job(2)
        node.start(2, "exit 8")  # the hook is for runners that start it: die once more, truthfully
        node.until_new(node.known["pid"])
        assert None is node.job(2)
    else:
        assert 8 == node.ended(2)["exit_code"]
        assert "wait4" == node.ended(2)["measured_by"]
    node.reconnect()
    assert "running" == node.job(1)["state"]
    node.close()


def test_a_job_that_ends_at_once_is_found_although_its_runner_died_after_the_spawn():
    node = Node(hook="after-spawn:2")
    node.start(1, "sleep 600")
    old = node.known["pid"]
    node.start(2, ["/bin/false"])
    node.until_new(old)
    assert (1, "wait4") == (node.ended(2)["exit_code"], node.ended(2)["measured_by"])
    node.close()


def test_jobs_survive_the_whole_family_and_are_found_again(node):
    node.start(1, f"while [ ! -e {node.made}/go ]; do sleep 0.05; done; exit 4")
    node.start(2, "exit 5")
    node.start(3, STUBBORN)
    pid = node.pid(1)
    node.pid(3)
    node.ended(2)
    node.kill_all()
    node.reconnect()
    assert ("running", pid) == (node.job(1)["state"], node.job(1)["pid"])
    assert 5 == node.job(2)["ended"]["exit_code"]
    node.say("kill", 3, reason="cancelled", grace_s=0.0)
    assert "cancelled" == node.ended(3)["reason"]
    touch(node.made + "/go")
    ended = node.ended(1)
    # since Linux 6.15 the kernel tells the status of a process that pid 1 has reaped
    assert (ended["exit_code"], ended["reason"], ended["measured_by"]) in [(4, "", "pidfd"), (None, "lost", "nothing")]


def test_a_daemon_that_a_job_left_behind_is_not_taken_for_the_job():
    """Its runner died between spawn and journal, and the job had ended: the elder of the two is the job."""
    node = Node(hook="after-spawn:2")
    node.start(1, "sleep 600")
    old = node.known["pid"]
    node.start(2, "setsid sleep 600 & exit 36")
    node.until_new(old)
    assert (36, "wait4") == (node.ended(2)["exit_code"], node.ended(2)["measured_by"])
    node.close()


def test_a_job_is_looked_for_among_all_processes(monkeypatch):
    """The kernel's list of children leaves some out while others end: found by the soak, one attempt began twice."""
    child = subprocess.Popen(["sleep", "600"], start_new_session=True)
    monkeypatch.setattr(process, "children", lambda pid: [])
    taken = takeover.Takeover.__new__(takeover.Takeover)
    taken.kin = SimpleNamespace(alone=False, ancestors=lambda: [1])
    try:
        assert child.pid in [stat.pid for stat in taken._candidates({os.getpid()})]
        assert [] == taken._candidates({0x7FFFFFFF})
        taken.kin = SimpleNamespace(alone=False, ancestors=list)  # the watchers died after they had forked us
        assert taken.alone()
        assert child.pid in [stat.pid for stat in taken._candidates({0x7FFFFFFF})]
    finally:
        child.kill()
        child.wait()


def slowly(begins, words=("sh", "-c", "exit 0")):
    """A child as posix_spawn makes it, which on a busy machine is not yet in its own session; until `begins` exists."""
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
            wait_until(lambda: os.path.exists(begins))
            os.setsid()
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            os.execvp(words[0], words)
        os._exit(127)
    wait_until(lambda: process.unborn(pid))
    return pid


def test_a_job_that_is_slow_to_join_its_session_is_not_taken_for_the_next_runner(tmp_path):
    # crash rig, on a busy machine: the watcher watched it instead of a new runner, and its exit code 0 ended the family
    begins, found = f"{tmp_path}/begins", f"{tmp_path}/found"
    watcher = os.fork()
    if watcher == 0:
        with contextlib.suppress(BaseException):
            os.setsid()
            kin = Kin.begin(str(tmp_path), 5.0)
            if kin.fork() == 0:  # the runner, which is killed in the middle of a start
                slowly(begins)
                os.kill(os.getpid(), signal.SIGKILL)
            kin.arrive("watch")
            if Watcher(kin).serve() == "runner":
                ends = wait_until(lambda: journal.load(kin.state_dir, kin.boot).exits)
                with open(found, "w") as file:
                    file.write(str([end["code"] for end in ends]))
        os._exit(0)
    time.sleep(0.3)
    touch(begins)
    wait_until(lambda: os.waitpid(watcher, os.WNOHANG)[0], "the watcher's end")
    assert "[0]" == contents(found)


def test_a_start_that_hangs_before_its_exec_was_not_never_carried_out(tmp_path, monkeypatch):
    monkeypatch.setattr(takeover, "_UNBORN_S", 0.2)
    taken = takeover.Takeover.__new__(takeover.Takeover)
    taken.kin = SimpleNamespace(alone=False, ancestors=lambda: [os.getpid()], state_dir=str(tmp_path))
    run = SimpleNamespace(id=1, attempt=1)
    child = slowly(f"{tmp_path}/begins")
    birth = process.born(child)
    assert (child, birth) == taken._find_living(run, birth, set())
    assert (0, 0) == taken._find_living(run, birth, {child})
    touch(f"{tmp_path}/begins")
    os.waitpid(child, 0)


def ended_unreaped(*words):
    """A child, leader of its session, that nobody waits for yet."""
    child = subprocess.Popen(words, start_new_session=True)
    wait_until(lambda: process.read_stat(child.pid).state == "Z", "a zombie")
    return child


def looking(tmp_path, *stats):
    """A takeover that finds these processes."""
    taken = takeover.Takeover.__new__(takeover.Takeover)
    taken.kin = SimpleNamespace(alone=False, ancestors=lambda: [os.getpid()], state_dir=str(tmp_path))
    taken._candidates = lambda _: stats
    return taken


def test_a_start_that_ends_while_it_is_looked_for_was_not_never_carried_out(tmp_path):
    # on a busy machine: it ended between two looks at it, and before its watcher had written that down
    child = ended_unreaped("true")
    stat = process.read_stat(child.pid)
    taken = looking(tmp_path, stat._replace(state="S"))
    assert (child.pid, stat.born) == taken._find_living(SimpleNamespace(id=1, attempt=1), stat.born, set())
    child.wait()
    assert (0, 0) == taken._find_living(SimpleNamespace(id=1, attempt=1), stat.born, set())


@pytest.mark.parametrize("looks", [3, 999])
def test_a_start_whose_exec_takes_long_was_not_never_carried_out(tmp_path, monkeypatch, looks):
    """The kernel shows no words and no environment until the new program's memory is set up, from a slow file system perhaps."""
    monkeypatch.setattr(takeover, "_UNBORN_S", 0.2 if looks == 999 else 600.0)
    marks = {"SPOOLQ_FAMILY": str(tmp_path), "SPOOLQ_JOB_ID": "1", "SPOOLQ_ATTEMPT": "1"}
    child = subprocess.Popen(["sleep", "600"], start_new_session=True, env=marks)
    try:
        wait_until(lambda: process.environment(child.pid), "its environment")
        assert not process.in_exec(child.pid)
        left, environment = [None] * looks, process.environment
        monkeypatch.setattr(process, "environment", lambda pid: {} if left else environment(pid))
        monkeypatch.setattr(process, "in_exec", lambda pid: bool(left and (left.pop() or True)))
        stat = process.read_stat(child.pid)
        found = looking(tmp_path, stat)._find_living(SimpleNamespace(id=1, attempt=1), stat.born, set())
        assert (child.pid, stat.born) == found
    finally:
        child.kill()
        child.wait()


def test_a_daemon_is_not_taken_for_its_job_that_has_ended_and_that_no_watcher_has_waited_for(tmp_path):
    child = ended_unreaped("true")
    marks = {"SPOOLQ_FAMILY": str(tmp_path), "SPOOLQ_JOB_ID": "1", "SPOOLQ_ATTEMPT": "1"}
    left = subprocess.Popen(["sleep", "600"], start_new_session=True, env=marks)
    wait_until(lambda: process.environment(left.pid), "its environment")  # a moment after its exec
    stats = [process.read_stat(pid) for pid in (child.pid, left.pid)]
    taken = looking(tmp_path, *stats)
    try:
        assert (child.pid, stats[0].born) == taken._find_living(SimpleNamespace(id=1, attempt=1), stats[0].born, set())
        child.wait()
        assert (left.pid, stats[1].born) == taken._find_living(SimpleNamespace(id=1, attempt=1), stats[0].born, set())
    finally:
        left.kill()
        left.wait()


def test_the_heir_is_found_although_the_list_of_children_is_short(tmp_path, monkeypatch):
    """The kernel leaves some out while others end; a second runner would be forked."""
    monkeypatch.setattr(process, "children", lambda pid: [])
    kin = SimpleNamespace(session=os.getsid(0))
    assert 0 == Kin.heir(kin)
    child = slowly(f"{tmp_path}/begins")
    assert -1 == Kin.heir(kin)
    other = subprocess.Popen(["sleep", "600"])
    wait_until(lambda: Kin.heir(kin) == other.pid)
    other.kill()
    other.wait()
    touch(f"{tmp_path}/begins")
    wait_until(lambda: Kin.heir(kin) == 0)
    os.waitpid(child, 0)


def test_of_a_family_that_died_whole_a_daemon_that_is_left_tells_no_end(node):
    """Found by the soak: such a job was COMPLETED when its daemon had ended, though it had failed."""
    wait = f"while [ ! -e {node.made}/%s ]; do sleep 0.05; done"
    node.start(1, f"setsid sh -c 'echo up; {wait % 'go'}' & {wait % 'end'}; exit 36")
    pid = node.pid(1)
    wait_until(lambda: "up" in node.output(), "the daemon that it leaves")
    node.kill_all()
    touch(node.made + "/end")
    wait_until(lambda: gone(pid), "the job's end")
    for name in os.listdir(node.dir):  # as if it had been killed before it wrote this
        if name.startswith("runner.") and not name.endswith(".sock"):
            with open(f"{node.dir}/{name}") as file:
                lines = [line for line in file if '"op":"started"' not in line]
            with open(f"{node.dir}/{name}", "w") as file:
                file.writelines(lines)
    node.reconnect()
    assert "running" == node.job(1)["state"]
    touch(node.made + "/go")
    ended = node.ended(1)
    assert (None, "lost", "nothing") == (ended["exit_code"], ended["reason"], ended["measured_by"])


def test_an_end_that_nobody_saw_is_lost(node):
    node.start(1, "sleep 600")
    pid = node.pid(1)
    node.kill_all()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: gone(pid))
    node.reconnect()
    ended = node.ended(1)
    assert ("lost", None) == (ended["reason"], ended["exit_code"]) or (9, "pidfd") == (
        ended["signal"],
        ended["measured_by"],
    )


def test_reexec_keeps_jobs_and_pids(node):
    node.start(1, f"while [ ! -e {node.made}/go ]; do sleep 0.05; done; exit 4")
    node.start(2, "sleep 600", limit_s=3600)
    node.start(3, "exit 2")
    node.ended(3)
    pids = node.whole()
    for _ in range(2):
        node.family.send({"op": "reexec"})
        told = node.family
        wait_until(lambda: node.pump() or node.family is not told, "a runner that has hung up")
        wait_until(lambda: b"--role=runner" in contents(f"/proc/{pids[0]}/cmdline").encode())
        wait_until(lambda: all(b"--role=watch" in contents(f"/proc/{p}/cmdline").encode() for p in pids[1:]))
        assert pids == node.whole()
    assert 2 == node.job(3)["ended"]["exit_code"]
    node.say("limits", 2, limit_s=0.1)
    assert "timeout" == node.ended(2)["reason"]
    os.kill(pids[0], signal.SIGKILL)
    node.until_new(pids[0])
    touch(node.made + "/go")
    assert (4, "wait4") == (node.ended(1)["exit_code"], node.ended(1)["measured_by"])


def test_a_full_disk_refuses_starts_and_keeps_results(node):
    node.start(1, f"while [ ! -e {node.made}/go ]; do sleep 0.05; done; exit 4")
    node.pid(1)
    pids = node.whole()
    unlimited = resource.prlimit(pids[0], resource.RLIMIT_FSIZE)
    resource.prlimit(pids[0], resource.RLIMIT_FSIZE, (0, unlimited[1]))
    node.start(2, "exit 0")
    assert "disk" in node.wait_for("refused", 2)["why"]
    touch(node.made + "/go")
    assert 4 == node.ended(1)["exit_code"]
    node.reconnect()
    assert 4 == node.job(1)["ended"]["exit_code"]
    resource.prlimit(pids[0], resource.RLIMIT_FSIZE, unlimited)

    def saved():
        return any(
            '"op":"ended","id":1' in contents(os.path.join(node.dir, n))
            for n in os.listdir(node.dir)
            if n.endswith("jsonl")
        )

    wait_until(saved, "the result on disk")
    node.kill_all()
    node.reconnect()
    assert 4 == node.job(1)["ended"]["exit_code"]


def test_signals_that_end_other_programs_do_not_end_the_family(node):
    node.start(1, "sleep 600")
    node.pid(1)
    pids = node.whole()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        for pid in pids:
            os.kill(pid, number)
    node.start(2, "exit 0")
    node.ended(2)
    assert pids == node.whole()


def test_stop_ends_the_family_only_when_nothing_is_left(node):
    pids = node.whole()
    node.start(1, "exit 0")
    node.ended(1)
    node.family.send({"op": "stop"})
    assert 1 == node.wait_for("busy")["jobs"]
    node.family.send({"op": "forget", "jobs": [[1, 1]]})
    node.family.send({"op": "stop"})
    wait_until(lambda: all(gone(pid) for pid in pids), "the end of the family")


def test_what_a_job_left_behind_does_not_outlive_a_family_that_is_told_to_stop(node):
    """Found by the soak: told within LINGER_S, it left the daemon of its last job to nobody."""
    pids = node.whole()
    node.start(1, f"setsid sleep 600 & echo $! > {node.made}/left; exit 0")
    node.ended(1)
    node.family.send({"op": "forget", "jobs": [[1, 1]]})
    node.family.send({"op": "stop"})
    node.family.close()
    wait_until(lambda: all(gone(pid) for pid in pids), "the end of the family")
    assert gone(int(contents(f"{node.made}/left")))


def test_a_family_without_daemon_and_jobs_ends_and_keeps_results():
    node = Node(idle_s=0.3)
    node.start(1, "exit 3")
    node.ended(1)
    pids = node.known["family"]
    node.family.close()
    wait_until(lambda: all(gone(pid) for pid in pids), "the end of the family")
    node.connect()
    assert 3 == node.job(1)["ended"]["exit_code"]
    node.close()


def test_a_state_directory_may_have_a_long_path(tmp_path):
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    node = Node(str(deep))
    node.start(1, "exit 0")
    assert 0 == node.ended(1)["exit_code"]
    node.close()


def test_two_daemons_that_start_at_once_share_one_family():
    node = Node()
    second = Node(node.made)
    assert node.known["family"][-1] == second.known["family"][-1]
    node.family.close()
    second.start(1, "exit 0")
    assert 0 == second.ended(1)["exit_code"]
    second.close()


# --- control groups


@pytest.fixture
def group():
    """A group of the host's cgroup v2 tree."""
    root = "/sys/fs/cgroup/unified" if os.path.isdir("/sys/fs/cgroup/unified") else "/sys/fs/cgroup"
    path = f"{root}/spoolq-test-{os.getpid()}"
    try:
        os.mkdir(path)
    except OSError as error:
        pytest.skip(f"no writable cgroup v2: {error}")
    yield path + "/job"
    wait_until(lambda: cgroup.remove(path), "removal of the group")


@pytest.mark.cgroup
def test_a_job_in_a_control_group_is_frozen_killed_and_cleared_up(node, group):
    node.start(1, f'(setsid env -i sh -c "{STUBBORN}" &) ; {SAYS_SO}', cgroup=group)
    pid = node.pid(1)
    wait_until(lambda: "deaf" in node.output() and len(cgroup.tree_of(group)) >= 2)
    node.say("suspend", 1)
    wait_until(lambda: "frozen 1" in contents(f"{group}/cgroup.events"))
    node.say("resume", 1)
    wait_until(lambda: "frozen 0" in contents(f"{group}/cgroup.events"))
    node.kill_runner()
    node.say("kill", 1, reason="cancelled", grace_s=0.1)
    ended = node.ended(1)
    assert ("cancelled", 9) == (ended["reason"], ended["signal"])
    assert gone(pid)
    wait_until(lambda: not os.path.exists(group), "removal of the group")


@pytest.mark.cgroup
def test_what_outlives_its_job_in_a_control_group_is_ended(node, group):
    node.start(1, "(setsid env -i sleep 600 &) ; exit 3", cgroup=group)
    assert (3, "cgroup") == (node.ended(1)["exit_code"], node.ended(1)["measured_by"])
    wait_until(lambda: not os.path.exists(group), "removal of the group")


def test_the_family_reaches_neither_the_spool_nor_heavy_rooms():
    code = "import sys; import spoolq.supervise; print(*sorted(sys.modules))"
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    ).stdout.split()
    banned = {"spoolq.spool", "spoolq.home", "spoolq.job", "psutil", "dataclasses", "subprocess", "logging", "asyncio"}
    assert set() == banned & set(loaded)
