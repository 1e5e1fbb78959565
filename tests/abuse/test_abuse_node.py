"""A real node among hostile files, requests and jobs: it serves on, and its other jobs live."""

import json
import os
import shutil
import signal
import socket
import stat
import time

import pytest

from tests.cluster import Cluster

HELLO = b"#!/bin/sh\necho hello\n"
GOOD_NAMES = [
    b"new\nline.sh",
    b"escape\x1b[31m.sh",
    b"sp ace.sh",
    b"q'\"`$(id).sh",
    b"-rf",
    b"%s%n%41.sh",
    b"\xff\xfe.sh",
    b"\xc2\x9b31m.sh",
    b"x" * 255,
    b"\x1b" * 255,
]
BAD = {
    b"types1.toml": b"command = 5\n",
    b"types2.toml": b'command = ["true"]\ncpus = [1]\n',
    b"types3.toml": b'command = ["true"]\ncpus = true\n',
    b"types4.toml": b'command = ["true"]\ncpus = nan\n',
    b"types5.toml": b'command = ["true"]\nname = {a = 1}\n',
    b"types6.toml": b'command = ["true"]\ntime = 1979-05-27T07:32:00Z\n',
    b"digits.toml": b'command = ["true"]\ncpus = ' + b"9" * 5000 + b"\n",
    b"name.toml": b'command = ["true"]\nname = "a\\u001b[31mb"\n',
    b"null.toml": b'command = ["a\\u0000b"]\n',
    b"unknown.toml": b'command = ["true"]\ncpuz = 3\n',
    b"user.toml": b'command = ["id"]\nuser = "nobody"\n',
    b"twice.toml": b'command = ["true"]\ncommand = ["false"]\n',
    b"dots.toml": b"a" + b".a" * 20_000 + b" = 1\n",
    b"nested.toml": b"command = " + b"[" * 60_000,
    b"latin1.toml": b'command = ["\xff"]\n',
    b"utf16.toml": 'command = ["true"]\n'.encode("utf-16"),
    b"nul.sh": b"#!/bin/sh\necho \0\n",
    b"big.sh": b"#!/bin/sh\n" + b"x" * (10 << 20),
    b"line.sh": b"#!/bin/sh\n#SPOOLQ -J " + b"x" * (1000 << 10),
    b"junk": b"hello\n",
    b"never.toml": b'command = ["true"]\ncpus = 400\n',
    b"bad\x1b[31m\n\xff.toml": b"junk\0",
    b"bad\xc2\x9b2J.sh": b"junk\0",
}


def drop(cluster: Cluster, name: bytes, data: bytes) -> bytes:
    """Put a file into drop/ by a rename; its path there."""
    with open(f"{cluster.base}/dropped", "wb") as file:
        file.write(data)
    path = os.fsencode(cluster.root) + b"/drop/" + name
    os.rename(f"{cluster.base}/dropped", path)
    return path


def full_directory(cluster: Cluster, path: str) -> None:
    """Put one there by a rename too: of an empty one the node may be through before anything is in it."""
    os.makedirs(f"{cluster.base}/directory/inside")
    os.rename(f"{cluster.base}/directory", path)


def plain(text: bytes | str) -> bool:
    """Whether a terminal may be given it."""
    text = text.decode() if isinstance(text, bytes) else text
    return all(c.isprintable() or c == "\n" for c in text)


def rejected(cluster: Cluster) -> dict[bytes, bytes]:
    """Name in rejected/ -> its .why."""
    top = os.fsencode(cluster.root) + b"/rejected/"
    found = {}
    for name in os.listdir(top):
        if name.endswith(b".why") and os.path.lexists(top + name[:-4]):
            with open(top + name, "rb") as file:
                found[name] = file.read()
    return found


@pytest.fixture
def prompt(cluster: Cluster) -> Cluster:
    """A cluster whose node does not wait whether a bad file becomes a good one."""
    cluster.hurry("intake", DOUBT_S=0.0, EMPTY_S=0.0)
    return cluster


def test_dropped_names_are_bytes_and_run_as_they_are(cluster: Cluster):
    node = cluster.node("n1", 8)
    for name in GOOD_NAMES:
        drop(cluster, name, HELLO)

    ids = range(1, len(GOOD_NAMES) + 1)
    assert ["COMPLETED"] * len(ids) == [cluster.result(job)["state"] for job in ids]
    for words in (["stat", "-a"], ["show", "1-99"], ["why", "1-99"], ["hist"], ["hist", "--json"]):
        assert plain(cluster.ok(*words)), words
    assert node.poll() is None
    assert plain(cluster.log())


def test_dropped_files_that_are_no_jobs_are_rejected_with_a_reason_and_the_node_serves_on(prompt: Cluster):
    cluster = prompt
    node = cluster.node("n1", 8)
    for name, data in BAD.items():
        drop(cluster, name, data)
    top = f"{cluster.root}/drop"
    os.symlink("/etc/shadow", f"{top}/link.sh")
    os.symlink("nowhere", f"{top}/dangling.sh")
    os.mkfifo(f"{top}/fifo.sh")
    full_directory(cluster, f"{top}/directory.sh")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{top}/socket.sh")
    extra = 5
    if os.geteuid() == 0:
        os.mknod(f"{top}/device.sh", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
        extra += 1

    cluster.until(lambda: len(rejected(cluster)) == len(BAD) + extra or node.poll() is not None, "all are rejected")

    assert node.poll() is None, cluster.log()
    for why in rejected(cluster).values():
        assert 1 == why.count(b"\n")
        assert len(why) < 300
        assert plain(why)
    for name in os.listdir(top):
        if name.endswith(".why"):
            with open(f"{top}/{name}", "rb") as file:
                assert plain(file.read()), name
    assert [] == os.listdir(f"{cluster.root}/jobs/0") if os.path.isdir(f"{cluster.root}/jobs/0") else True
    assert "ok\n" == cluster.ok("run", "echo", "ok")


def test_a_dropped_job_with_a_relative_directory_runs_below_home(cluster: Cluster):
    import pwd

    home = pwd.getpwuid(os.getuid()).pw_dir
    cluster.node()
    drop(cluster, b"here.toml", b'command = ["pwd"]\nchdir = "."\n')

    assert "COMPLETED" == cluster.result(1)["state"]
    assert os.path.realpath(home) == os.path.realpath(cluster.text(1).strip())


def test_a_node_serves_on_among_foreign_things(cluster: Cluster):
    cluster.policy(grace_s=1, settle_s=0, min_free_mb=1, beat_s=1)
    node = cluster.node("n1", 8)
    root = cluster.root
    places = (
        "queue/x held/x running/x reaping/x done/x done/² jobs/x jobs/² nodes/x nodes/n9 history/x nodes/n1/admit/x"
    )
    for number, place in enumerate(places.split()):
        if number % 2:
            os.mkfifo(f"{root}/{place}")
        with open(f"{root}/{place}.file", "w") as file:
            file.write("foreign")
    full_directory(cluster, f"{root}/nodes/n1/control/directory")
    for kind in (b"junk\0", b"[" * 60_000, b"[]"):
        with open(f"{root}/nodes/n1/control/junk{len(kind)}", "wb") as file:
            file.write(kind)
    os.mkfifo(f"{root}/nodes/n1/control/fifo")

    assert "ok\n" == cluster.ok("run", "echo", "ok")
    drop(cluster, b"also.sh", HELLO)
    cluster.until(lambda: os.path.exists(f"{root}/drop/also.sh.id"), "the node takes dropped files")
    cluster.until(lambda: not os.listdir(f"{root}/nodes/n1/control"), "requests that are none are put away")
    beat = read(f"{root}/nodes/n1/heartbeat")
    cluster.until(lambda: read(f"{root}/nodes/n1/heartbeat") != beat, "the node beats")
    assert node.poll() is None
    assert "COMPLETED" == cluster.result(2)["state"]


def read(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()


def test_requests_that_make_no_sense_are_dropped_and_hurt_neither_node_nor_job(cluster: Cluster):
    node = cluster.node()
    job = cluster.sub("sh", "-c", f"touch {cluster.base}/up; while [ ! -e {cluster.base}/go ]; do sleep 0.1; done")
    cluster.running(job, f"{cluster.base}/up")
    bad = [
        {"verb": "kill", "id": []},
        {"verb": "kill", "id": {}},
        {"verb": "kill", "id": job, "attempt": []},
        {"verb": "edit", "id": job, "limit_s": "x"},
        {"verb": "edit", "id": job, "limit_s": []},
        {"verb": "edit", "id": job, "limit_s": -5},
        {"verb": "edit", "id": job, "limit_s": 1e999},
        {"verb": "edit", "id": job, "limit_s": True},
        {"verb": "edit", "id": job, "mem_mb": "x"},
        {"verb": "edit", "id": job, "mem_mb": None},
        {"verb": "edit", "id": job, "mem_mb": -1},
        {"verb": "edit", "id": job, "mem_mb": 1e999},
        {"verb": "edit", "id": job, "mem_mb": 10**40},
        {"verb": "edit", "id": job, "limit_s": 10**400},
        {"verb": "signal", "id": job, "signal": "x"},
        {"verb": "signal", "id": job, "signal": 9999},
        {"verb": "signal", "id": job, "signal": -1},
        {"verb": [], "id": job},
        {"verb": 5, "id": job},
    ]
    control = f"{cluster.root}/nodes/n1/control"
    for number, request in enumerate(bad):
        with open(f"{cluster.base}/request", "w") as file:
            json.dump(request, file)
        os.rename(f"{cluster.base}/request", f"{control}/{number:02}.{job}.bad")

    cluster.until(lambda: not os.listdir(control) or node.poll() is not None, "all are dropped")
    assert node.poll() is None, cluster.log()
    assert "running" == cluster.place(job)
    assert "ok\n" == cluster.ok("run", "echo", "ok")
    open(f"{cluster.base}/go", "w").close()
    assert "COMPLETED" == cluster.result(job)["state"]


# --- outputs, programs and ends


def test_what_cannot_be_started_says_why_and_every_code_is_the_jobs_own(cluster: Cluster):
    base = cluster.base
    cluster.node("n1", 16)
    for name, text, mode in (("elf", "\x7fELF\0", 0o755), ("badsh", "#!/no/such/interpreter\n", 0o755)):
        with open(f"{base}/{name}", "w") as file:
            file.write(text)
        os.chmod(f"{base}/{name}", mode)
    jobs = {
        cluster.sub("-o", f"{base}/tmp", "echo", "x"): ("FAILED", 126, "Is a directory"),
        cluster.sub("-o", f"{base}/no/such/x", "echo", "x"): ("FAILED", 126, "No such file"),
        cluster.sub("-o", "/dev/full", "echo", "x"): ("FAILED", 1, ""),
        cluster.sub("-o", f"{base}/50%", "echo", "x"): ("COMPLETED", 0, ""),
        cluster.sub("nosuchprogram"): ("FAILED", 127, "nosuchprogram"),
        cluster.sub(f"{base}/elf"): ("FAILED", 126, "Exec format"),
        cluster.sub(f"{base}/badsh"): ("FAILED", 127, "/no/such/interpreter"),
        cluster.sub("sh", "-c", "mkdir d; cd d; rmdir ../d; echo gone"): ("COMPLETED", 0, ""),
        cluster.sub("cat"): ("COMPLETED", 0, ""),
        cluster.sub("sh", "-c", "exec >&- 2>&-; exit 9"): ("FAILED", 9, ""),
    }
    with open(f"{base}/codes", "w") as file:
        file.writelines(f"exit {code}\n" for code in range(256))
    first = int(cluster.ok("sub", "-c", "0.1", "--each-line", "codes").split()[0])

    for job, (state, code, why) in jobs.items():
        result = cluster.result(job)
        assert (state, code) == (result["state"], result["exit_code"]), result
        assert why in (result["reason"] or "")
    assert "x\n" == read(f"{base}/50%")
    assert list(range(256)) == [cluster.result(first + code)["exit_code"] for code in range(256)]


def test_signals_that_end_jobs_are_told(cluster: Cluster):
    cluster.node("n1", 8)
    numbers = (signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV, signal.SIGHUP, signal.SIGUSR1)
    jobs = {cluster.sub("sh", "-c", f"ulimit -c 0; kill -{number} $$"): number for number in map(int, numbers)}

    for job, number in jobs.items():
        result = cluster.result(job)
        assert ("FAILED", number, None) == (result["state"], result["signal"], result["exit_code"])
        assert 128 + number == cluster.spoolq("wait", str(job)).returncode


def test_binary_output_of_a_megabyte_arrives_whole(cluster: Cluster):
    cluster.node()
    data = os.urandom(1 << 20)
    with open(f"{cluster.base}/data", "wb") as file:
        file.write(data)
    job = cluster.sub("cat", "data")
    cluster.result(job)

    with open(cluster.home(job, "stdout"), "rb") as file:
        assert data == file.read()


# --- jobs that misbehave


def bystander(cluster: Cluster) -> int:
    """A job that must survive everything; `go` ends it."""
    mark = f"{cluster.base}/bystander"
    job = cluster.sub("sh", "-c", f"touch {mark}; while [ ! -e {cluster.base}/go ]; do sleep 0.1; done; exit 42")
    cluster.running(job, mark)
    return job


def survives(cluster: Cluster, job: int) -> None:
    """It does, with its exit code and usage."""
    open(f"{cluster.base}/go", "w").close()
    result = cluster.result(job)
    assert (42, "wait4") == (result["exit_code"], result["measured_by"])


def sleepers(mark: str) -> int:
    """How many processes have a word in their command line."""
    import psutil

    found = 0
    for process in psutil.process_iter(["cmdline"]):
        found += any(mark in word for word in process.info["cmdline"] or [])
    return found


def test_processes_that_a_job_leaves_behind_are_ended(cluster: Cluster):
    cluster.node("n1", 8)
    other = bystander(cluster)
    mark = f"{cluster.base}/left"
    for how in (
        f"sleep 987 {mark}",
        f"setsid sh -c ': {mark}; sleep 987' &",
        f"(setsid sh -c ': {mark}; sleep 987' &) &",
    ):
        job = cluster.sub("sh", "-c", f"{how} >/dev/null 2>&1 & sleep 0.2; exit 0")
        assert 0 == cluster.result(job)["exit_code"]
    cluster.until(lambda: not sleepers(mark), "nothing of the jobs is left")
    survives(cluster, other)


def test_jobs_that_will_not_die_are_killed(cluster: Cluster):
    cluster.node("n1", 8)
    other = bystander(cluster)
    base = cluster.base
    deaf = cluster.sub("sh", "-c", f"trap '' TERM INT HUP; touch {base}/deaf; while :; do sleep 0.1; done")
    still = cluster.sub("sh", "-c", f"touch {base}/still; kill -STOP $$; sleep 100")
    late = cluster.sub("-t", "1s", "sh", "-c", "trap '' TERM; kill -STOP $$; while :; do sleep 0.1; done")
    for job, mark in ((deaf, "deaf"), (still, "still")):
        cluster.running(job, f"{base}/{mark}")
    cluster.ok("kill", str(deaf), str(still))

    assert ["CANCELLED", "CANCELLED"] == [cluster.result(job)["state"] for job in (deaf, still)]
    assert "TIMEOUT" == cluster.result(late)["state"]
    survives(cluster, other)


def test_a_small_fork_bomb_ends_with_its_job(cluster: Cluster):
    cluster.node("n1", 8)
    other = bystander(cluster)
    mark = f"{cluster.base}/bomb"
    bomb = cluster.sub("-t", "2s", "sh", "-c", f"for i in $(seq 200); do sh -c ': {mark}; sleep 987' & done; wait")

    assert "TIMEOUT" == cluster.result(bomb)["state"]
    cluster.until(lambda: not sleepers(mark), "nothing of the bomb is left")
    survives(cluster, other)


def test_a_job_that_takes_too_much_memory_is_killed_alone(cluster: Cluster):
    cluster.node("n1", 8)
    other = bystander(cluster)
    code = "import time; x = b'x' * (200 << 20); time.sleep(100)"
    hog = cluster.sub("-m", "50", os.path.realpath("/proc/self/exe"), "-c", code)

    result = cluster.result(hog)
    assert "OUT_OF_MEMORY" == result["state"]
    assert 137 == cluster.spoolq("wait", str(hog)).returncode
    survives(cluster, other)


def test_a_job_that_kills_its_parent_hurts_no_other_job(cluster: Cluster):
    node = cluster.node("n1", 8)
    other = bystander(cluster)
    killer = cluster.sub("sh", "-c", "kill -9 $PPID; sleep 0.3; exit 5")

    assert 5 == cluster.result(killer)["exit_code"]
    assert node.poll() is None
    assert "ok\n" == cluster.ok("run", "echo", "ok")
    survives(cluster, other)


def test_three_hundred_jobs_at_once(cluster: Cluster):
    cluster.node("n1", 300)
    with open(f"{cluster.base}/lines", "w") as file:
        file.writelines(
            f"touch {cluster.base}/tmp/{i}; while [ ! -e {cluster.base}/go ]; do sleep 0.5; done\n" for i in range(300)
        )
    ids = [int(word) for word in cluster.ok("sub", "-m", "1", "--each-line", "lines").split()]
    for i in range(300):  # patience for each
        cluster.until(lambda mark=f"{cluster.base}/tmp/{i}": os.path.exists(mark), f"{i} of 300 that run at once")
    open(f"{cluster.base}/go", "w").close()

    assert 0 == cluster.spoolq("wait", f"{ids[0]}-{ids[-1]}").returncode
    assert {"COMPLETED"} == {cluster.result(job)["state"] for job in ids}


# --- the ground is taken away


def test_waiting_jobs_whose_homes_were_damaged_fail_alone(cluster: Cluster):
    def home_gone(job: int) -> None:
        shutil.rmtree(cluster.home(job))

    def home_is_a_file(job: int) -> None:
        shutil.rmtree(cluster.home(job))
        open(cluster.home(job).rstrip("/"), "w").close()

    def replaced(name: str, data: bytes | None):
        def change(job: int) -> None:
            os.unlink(cluster.home(job, name))
            if data is None:
                os.mkfifo(cluster.home(job, name))
            else:
                with open(cluster.home(job, name), "wb") as file:
                    file.write(data)

        return change

    damages = [
        home_gone,
        home_is_a_file,
        lambda job: os.unlink(cluster.home(job, "script")),
        replaced("script", None),
        lambda job: os.truncate(cluster.home(job, "script"), 2 << 20),
        replaced("env", None),
        lambda job: (os.unlink(cluster.home(job, "env")), os.mkdir(cluster.home(job, "env"))),
        replaced("job", None),
        replaced("job", b"junk\0"),
        replaced("job", b"format = 1\n"),
        replaced("job", b"format = 1\ncommand = 5\n"),
        replaced("job", b"[" * 60_000),
    ]
    jobs = [cluster.sub("-H", stdin="#!/bin/sh\necho script\n") for _ in damages]
    node = cluster.node("n1", 8)
    for job, damage in zip(jobs, damages, strict=True):
        damage(job)
    cluster.ok("release", *map(str, jobs))

    cluster.until(lambda: {cluster.place(job) for job in jobs} == {"done"} or node.poll() is not None, "all are done")
    assert node.poll() is None, cluster.log()
    assert ["FAILED"] * len(jobs) == [
        job["state"] for job in json.loads(cluster.ok("stat", "--json", *map(str, jobs)))["jobs"]
    ]
    assert "ok\n" == cluster.ok("run", "echo", "ok")


def test_a_job_of_a_newer_format_waits_for_a_node_that_knows_it(cluster: Cluster):
    job = cluster.sub("-H", "true")
    with open(cluster.home(job, "job"), "wb") as file:
        file.write(b'format = 2\ncommand = ["true"]\n')
    cluster.node("n1", 8)
    cluster.ok("release", str(job))

    assert "ok\n" == cluster.ok("run", "echo", "ok")
    cluster.until(lambda: "cannot be read" in cluster.ok("why", str(job)), "the reason is told")
    assert "queue" == cluster.place(job)


def test_jobs_that_damage_their_own_homes_keep_no_result_back(cluster: Cluster):
    node = cluster.node("n1", 8)
    wait = f"while [ ! -e {cluster.base}/go ]; do sleep 0.05; done"
    lines = (
        'rm -rf "$SPOOLQ_JOB_DIR"',
        'rm -rf "$SPOOLQ_JOB_DIR"; touch "$SPOOLQ_JOB_DIR"',
        'mkdir -p "$SPOOLQ_JOB_DIR/result.json/x"',
        'mkfifo "$SPOOLQ_JOB_DIR/result.json"',
        'ln -s /etc/passwd "$SPOOLQ_JOB_DIR/result.json"',
        'rm "$SPOOLQ_JOB_DIR/job"',
        'rm "$SPOOLQ_JOB_DIR/stdout"; mkfifo "$SPOOLQ_JOB_DIR/stdout"',
    )
    jobs = [cluster.sub("sh", "-c", f"{wait}; {line}; exit 3") for line in (*lines, "true")]
    open(f"{cluster.base}/go", "w").close()

    assert 3 == cluster.result(jobs[-1])["exit_code"]
    cluster.until(lambda: {cluster.place(job) for job in jobs} == {"done"}, "all are done")
    for job in jobs:
        done = cluster.spoolq("wait", str(job))
        assert 3 == done.returncode, done.stderr
    listed = json.loads(cluster.ok("hist", "--json"))["history"]
    assert sorted(jobs) == sorted(record["id"] for record in listed)
    assert node.poll() is None


def test_a_node_survives_the_loss_of_the_mark_of_its_spool(cluster: Cluster):
    cluster.policy(grace_s=1, settle_s=0, min_free_mb=1, beat_s=1)
    node = cluster.node("n1", 8)
    other = bystander(cluster)
    os.rename(f"{cluster.root}/spool.toml", f"{cluster.base}/toml")
    assert 78 == cluster.spoolq("sub", "true").returncode
    time.sleep(0.5)
    assert node.poll() is None
    os.rename(f"{cluster.base}/toml", f"{cluster.root}/spool.toml")
    assert "ok\n" == cluster.ok("run", "echo", "ok")
    survives(cluster, other)


def test_two_spools_with_one_uuid_keep_their_jobs_apart(cluster: Cluster):
    cluster.node("n1", 4)
    nodes = f"{cluster.root}/nodes"  # where the node may just replace a file of its own
    ignore = lambda path, names: names if path == nodes else []  # noqa: E731
    shutil.copytree(cluster.root, f"{cluster.base}/copy", symlinks=True, ignore=ignore)

    second = cluster.spoolq("node", "--spool", f"{cluster.base}/copy", "--name", "n1", "--once")

    assert (75, 1) == (second.returncode, second.stderr.count("\n")), second.stderr
    assert "ok\n" == cluster.ok("run", "echo", "ok")


def test_a_drained_node_starts_nothing_more_long_before_its_next_beat(cluster: Cluster):
    cluster.policy(grace_s=1, settle_s=0, min_free_mb=1, beat_s=300)
    cluster.node()
    assert "ok\n" == cluster.ok("run", "echo", "ok")
    cluster.ok("drain", "n1")
    # before it looks at requests it looks whether it is drained, and so before the second at last
    for number in (1, 2):
        request = f"{cluster.root}/nodes/n1/control/{number}.99.bad"
        with open(request, "w") as file:
            file.write("[]")
        cluster.until(lambda path=request: not os.path.exists(path), "the node looks")
    job = cluster.sub("true")
    time.sleep(1)

    assert "queue" == cluster.place(job)
    cluster.ok("undrain", "n1")
    assert "COMPLETED" == cluster.result(job)["state"]
