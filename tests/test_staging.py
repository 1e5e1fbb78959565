"""Copies to and from a node's own disk: what is copied, what is refused, and that nothing is lost."""

import errno
import os
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spoolq import config, options, paths, staging
from spoolq.errors import Misconfigured, UsageError
from spoolq.job import Job
from spoolq.staging import StageError
from tests.cluster import Cluster


def write(path, text="x") -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        file.write(text)


def read(path) -> str:
    with open(path) as file:
        return file.read()


def nothing() -> None:
    """Go on."""


def stage_in(tmp_path, *items: str) -> int:
    os.makedirs(tmp_path / "scratch", exist_ok=True)
    return staging.stage_in(items, str(tmp_path / "data"), str(tmp_path / "scratch"), nothing)


def tree(top) -> list[str]:
    return sorted(os.path.relpath(os.path.join(d, n), top) for d, _, names in os.walk(top) for n in names)


def test_files_directories_patterns_and_names(tmp_path):
    for name in ("a.txt", "b.txt", "dir/c", "dir/below/d", "odd:name"):
        write(f"{tmp_path}/data/{name}", name)
    os.symlink("c", f"{tmp_path}/data/dir/link")
    stage_in(tmp_path, "*.txt", "a.txt:other", "dir", "dir:copy/of", r"odd\:name:plain", "b.txt:into/")

    assert [
        "a.txt", "b.txt", "copy/of/below/d", "copy/of/c", "copy/of/link", "dir/below/d", "dir/c", "dir/link",
        "into/b.txt", "other", "plain",
    ] == tree(tmp_path / "scratch")  # fmt: skip
    assert "dir/below/d" == read(f"{tmp_path}/scratch/copy/of/below/d")
    assert "c" == os.readlink(f"{tmp_path}/scratch/dir/link")


def test_only_what_changed_is_copied_with_mode_and_time(tmp_path):
    write(f"{tmp_path}/data/a", "12345")
    os.chmod(f"{tmp_path}/data/a", 0o750)
    assert 5 == stage_in(tmp_path, "a")
    facts = os.stat(f"{tmp_path}/scratch/a")
    assert (0o750, os.stat(f"{tmp_path}/data/a").st_mtime_ns) == (facts.st_mode & 0o777, facts.st_mtime_ns)
    assert 0 == stage_in(tmp_path, "a")
    write(f"{tmp_path}/data/a", "123")
    assert 3 == stage_in(tmp_path, "a")


def test_what_cannot_be_copied_is_named(tmp_path):
    os.makedirs(f"{tmp_path}/data")
    os.mkfifo(f"{tmp_path}/data/fifo")
    for item, why in (("none", "no such file"), ("fifo", "is no regular file"), ("*.x", "no such file")):
        with pytest.raises(StageError, match=why):
            stage_in(tmp_path, item)


def test_too_little_room_is_known_before_anything_is_copied(tmp_path, monkeypatch):
    write(f"{tmp_path}/data/big", "x" * (3 << 20))
    space = os.statvfs_result((4096, 4096, 10, 10, 100, 10, 10, 10, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _: space)
    with pytest.raises(StageError, match=r"3 MB are needed in .*, 0 MB are free"):
        stage_in(tmp_path, "big")


def test_a_file_that_changes_meanwhile_is_an_error_and_leaves_nothing(tmp_path, monkeypatch):
    write(f"{tmp_path}/data/a", "12345")
    source, target = f"{tmp_path}/data/a", f"{tmp_path}/b"
    with pytest.raises(StageError, match="changed while it was copied"):
        staging.copy(source, target, lambda: write(source, "123456789"))
    assert ["data/a"] == tree(tmp_path)


@pytest.mark.parametrize("missing", [(), ("copy_file_range",), ("copy_file_range", "sendfile")])
@pytest.mark.parametrize("size", [0, 1, 3_000_001])
def test_every_way_of_copying(tmp_path, monkeypatch, missing, size):
    data = os.urandom(size)
    (tmp_path / "a").write_bytes(data)

    def refuse(*_args, **_kwargs):
        raise OSError(errno.EXDEV, "across file systems")

    for name in missing:
        monkeypatch.setattr(os, name, refuse)
    monkeypatch.setattr(staging, "PIECE", 1 << 20)
    assert size == staging.copy(str(tmp_path / "a"), str(tmp_path / "b"), sync=True)
    assert data == (tmp_path / "b").read_bytes()


@given(st.text(alphabet="ab:\\/", max_size=8), st.text(alphabet="ab:/", max_size=8))
def test_a_colon_in_a_name_can_be_written(source, target):
    source = source.replace("\\", "")
    assert (source, target) == staging.split(source.replace(":", "\\:") + ":" + target.replace(":", "\\:"))


@pytest.mark.parametrize("item", ["a:/etc", "a:../b", ":a"])
def test_stage_in_stays_below_the_scratch_directory(item):
    with pytest.raises(UsageError, match="DST must be relative to the scratch directory"):
        options.to_job([("stage-in", item)], ("x",))


def test_stage_out_too():
    with pytest.raises(UsageError, match="SRC must be relative to the scratch directory"):
        options.to_job([("stage-out", "/etc/passwd")], ("x",))


def test_a_path_map_replaces_whole_parts_the_longest_first():
    table = {"/home": "/nfs/home", "/home/eve": "/data/eve", "/": "/root"}
    seen = [paths.mapped(path, table) for path in ("/home", "/home/bob/x", "/home/eve/y", "/homes/z", "rel")]
    assert ["/nfs/home", "/nfs/home/bob/x", "/data/eve/y", "/root/homes/z", "rel"] == seen
    job = Job(("x",), chdir="/home/bob", output="/home/o", stage_in=("/home/a:b",), stage_out=(r"c\:d:/home/e",))
    here = paths.job_here(job, {"/home": "/h"}, "/spool")
    assert ("/h/bob", "/h/o", ("/h/a:b",), (r"c\:d:/h/e",)) == (here.chdir, here.output, here.stage_in, here.stage_out)
    assert "/spool/jobs/0/1/cwd" == paths.job_here(job._replace(chdir="jobs/0/1/cwd"), {}, "/spool").chdir


@pytest.mark.parametrize("value", ['"x"', '{ "/a" = "b" }', '{ "a" = "/b" }', '{ "/a" = 3 }'])
def test_a_path_map_is_a_table_of_absolute_paths(value):
    with pytest.raises(Misconfigured, match="f:2: path_map: "):
        config.parse_settings([("f", f"[node]\npath_map = {value}\n".encode())])


def test_a_cache_brings_only_what_has_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(staging, "LEAST_KEPT", 1)
    cache = staging.Cache(f"{tmp_path}/cache", 40)
    os.makedirs(tmp_path / "data")
    numbers = iter(range(99))

    def bring(name: str) -> tuple[int, str]:
        to = f"{tmp_path}/to{next(numbers)}"
        os.mkdir(to)
        return staging.stage_in([name], f"{tmp_path}/data", to, nothing, cache), read(f"{to}/{name}")

    def source(name: str, text: str, mtime: int) -> None:
        write(f"{tmp_path}/data/{name}", text)
        os.utime(f"{tmp_path}/data/{name}", ns=(mtime, mtime))

    source("a", "0123456789", 1)
    assert [(10, "0123456789"), (0, "0123456789")] == [bring("a"), bring("a")]
    source("a", "abcdefghij", 2)
    assert (10, "abcdefghij") == bring("a")
    source("large", "x" * 21, 1)  # more than half: not kept
    assert [21, 21] == [bring("large")[0], bring("large")[0]]
    for name in "bcd":
        source(name, name * 15, 1)
        assert 15 == bring(name)[0]
    assert 2 == len(os.listdir(f"{tmp_path}/cache"))  # the least lately used went
    assert [0, 0, 10] == [bring(name)[0] for name in "dca"]
    os.chmod(f"{tmp_path}/cache", 0o777)
    assert [15, 15] == [bring("d")[0], bring("d")[0]]  # others may write there: not used


def configure(cluster: Cluster, text: str) -> None:
    write(f"{cluster.base}/.config/spoolq/config.toml", text)


def test_a_node_without_its_scratch_directory_refuses_to_serve(cluster: Cluster):
    configure(cluster, '[node]\nscratch = "/no/such/directory"\n')
    done = cluster.spoolq("node", "--name", "n1")
    assert 78 == done.returncode
    assert "config.toml:2: scratch: /no/such/directory: no such directory" in done.stderr


def test_a_node_keeps_what_it_has_staged(cluster: Cluster):
    configure(cluster, '[node]\nstage_cache = "10M"\n')
    path = f"{cluster.base}/in"
    cluster.node()
    for text in ("old", "new"):
        write(path, text * (1 << 20))
        os.utime(path, ns=(5, 5))  # as if it had not changed, so that it shows who was asked
        job = cluster.sub("--stage-in", "in", "sh", "-c", "head -c 3 $SPOOLQ_SCRATCH/in")
        assert "COMPLETED" == cluster.result(job)["state"]
        assert "old" == cluster.text(job)
    os.utime(path)
    job = cluster.sub("--stage-in", "in", "sh", "-c", "head -c 3 $SPOOLQ_SCRATCH/in")
    assert "COMPLETED" == cluster.result(job)["state"]
    assert "new" == cluster.text(job)


@pytest.mark.parametrize("where", ["", "scratch"])
def test_a_job_works_on_copies(cluster: Cluster, where: str):
    here = cluster.base
    if where:
        os.mkdir(f"{here}/{where}")
        configure(cluster, f'[node]\nscratch = "{here}/{where}"\n')
    write(f"{here}/in/a", "input\n")
    cluster.node()
    line = "cd $SPOOLQ_SCRATCH; pwd; cat in/a >out; echo changed >>in/a; echo more >two.log"
    job = cluster.sub("--stage-in", "in", "--stage-out", "out:results/made,*.log", "--wrap", line)

    assert ("COMPLETED", None) == tuple(cluster.result(job)[key] for key in ("state", "reason"))
    assert ("input\n", "input\n", "more\n") == (
        read(f"{here}/in/a"),
        read(f"{here}/results/made"),
        read(f"{here}/two.log"),
    )
    scratch = cluster.text(job).strip()
    assert scratch.startswith(f"{here}/{where or 'tmp'}/")
    cluster.until(lambda: not os.path.exists(scratch) or not os.listdir(scratch), "it is cleared up")


def test_what_cannot_be_brought_out_is_kept_and_said_where(cluster: Cluster):
    here = cluster.base
    write(f"{here}/results", "a file, no directory")
    node = cluster.node()
    job = cluster.sub("--stage-out", "out:results/made", "sh", "-c", "echo precious >$SPOOLQ_SCRATCH/out")
    result = cluster.result(job)

    assert ("FAILED", 1) == (result["state"], result["exit_code"])
    assert result["reason"].startswith("stage-out: ")
    assert "what was made is kept on n1 in " in result["reason"]
    kept = result["reason"].rpartition(" in ")[2]
    node.terminate()
    node.wait()
    cluster.node()
    assert "precious\n" == read(f"{kept}/out")
    assert kept in cluster.ok("why", str(job))


def test_a_missing_input_fails_the_job_before_its_command(cluster: Cluster):
    cluster.node()
    job = cluster.sub("--stage-in", "no.dat", "touch", f"{cluster.base}/ran")
    result = cluster.result(job)

    assert ("FAILED", 1) == (result["state"], result["exit_code"])
    assert "stage-in: " in result["reason"]
    assert "no.dat: no such file" in result["reason"]
    assert not os.path.exists(f"{cluster.base}/ran")
    job = cluster.sub("--stage-out", "no.dat", "true")
    assert "stage-out: " in cluster.result(job)["reason"]


@pytest.mark.parametrize("how", ["exit 3", "kill -9 $PPID; sleep 9"])
def test_what_a_failed_command_left_is_brought_out(cluster: Cluster, how: str):
    cluster.node()
    job = cluster.sub("--stage-out", "log,never", "sh", "-c", f"echo so far >$SPOOLQ_SCRATCH/log; {how}")

    assert "FAILED" == cluster.result(job)["state"]
    assert "so far\n" == read(f"{cluster.base}/log")


def test_a_copy_that_is_stopped_leaves_nothing(tmp_path):
    """Between two pieces it is asked whether the job is to end."""

    def goon() -> None:
        raise InterruptedError(signal.SIGTERM)

    write(f"{tmp_path}/a", "x" * 100)
    with pytest.raises(InterruptedError):
        staging.copy(f"{tmp_path}/a", f"{tmp_path}/b", goon)
    assert ["a"] == tree(tmp_path)


def test_a_node_with_other_paths(cluster: Cluster):
    """The submitter's directory is called otherwise on the node."""
    here = cluster.base
    os.mkdir(f"{here}/real")
    os.mkdir(f"{here}/seen")
    configure(cluster, f'[node]\npath_map = {{ "{here}/seen" = "{here}/real" }}\n')
    cluster.node()
    job = cluster.sub("-o", f"{here}/seen/o", "pwd", cwd=f"{here}/seen")

    assert "COMPLETED" == cluster.result(job)["state"]
    assert f"{here}/real\n" == read(f"{here}/real/o")
