"""show and why: one job in full, and in words."""

import pytest

from spoolq import home, look
from spoolq.fsops import Answer
from tests.desk import end, node_json, put, run, silence, value


@pytest.fixture
def call(spool, capsys):
    """Call a command; (exit code, stdout, stderr)."""

    def calling(command, *words):
        code = getattr(look, command)(["--spool", spool.root, *words])
        return (code, *capsys.readouterr())

    return calling


@pytest.fixture
def why(call):
    """The words of why."""
    return lambda *words: call("why", *words)[1]


def test_a_waiting_job_is_explained_node_by_node_with_its_position(spool, why):
    node_json(spool, "n1", cpus=4)
    node_json(spool, "n2", cpus=8)
    node_json(spool, "n3", state="stopped")
    spool.mark_node("n2", "drain", on=True, text="new disk")
    run(spool, put(spool, wants={"cpus": 3000, "mem": 1000}))
    put(spool, priority=1)
    put(spool)
    put(spool, wants={"cpus": 2000, "mem": 1000})
    text = why("4")
    assert text.startswith("job 4 waits: Resources: n1: needs 2 cpus, 1 of 4")
    assert "2 jobs of higher or equal rank before it" in text
    assert "n1: Resources: needs 2 cpus" in text
    assert "n2: NodeDrained: n2 takes no new jobs: new disk" in text
    assert "n3: stopped" in text
    assert "first in the queue" in why("2")


def test_a_request_that_no_node_can_fulfil_is_said_with_a_remedy(spool, why):
    node_json(spool)
    put(spool, wants={"cpus": 64_000, "mem": 1000})
    text = why("1")
    assert "No node ever seen here could run it: needs 64 cpus, and no node has more than 4 cpus" in text
    assert "spoolq edit 1 cpus=..." in text


def test_why_works_when_no_node_is_alive(spool, why):
    put(spool)
    assert "no node has ever served this spool" in why("1")
    node_json(spool)
    silence(spool, "n1", 900)
    home.write_why(spool.root, 1, "n1", "n1 Resources: needs 1 cpus, 0 of 4 cpus free; job 9 holds 4 cpus")
    text = why("1")
    assert "n1 is silent for 9" in text
    assert "it wrote: Resources: needs 1 cpus" in text


def test_what_a_node_wrote_is_shown_only_where_it_says_something_else(spool, why):
    node_json(spool)
    put(spool, wants={"cpus": 9000, "mem": 1000})
    now = next(line for line in why("1").splitlines() if line.strip().startswith("n1: "))
    home.write_why(spool.root, 1, "n1", now.strip().replace("n1: ", "n1 ", 1))
    assert "wrote" not in why("1")


def test_a_directory_that_is_missing_there_is_what_only_the_node_knows(spool, why):
    node_json(spool)
    put(spool)
    home.write_why(spool.root, 1, "n1", "n1 CwdMissing: its directory /x does not exist on n1")
    assert "it wrote: CwdMissing: its directory /x" in why("1")


def test_held_jobs_say_what_they_wait_for(spool, why):
    put(spool, held="HU")
    assert "JobHeldUser" in why("1")
    assert "spoolq release 1" in why("1")


def test_a_running_job_of_a_silent_node_says_what_may_come(spool, why):
    node_json(spool)
    run(spool, put(spool))
    assert "runs on n1" in why("1")
    silence(spool, "n1", 900)
    text = why("1")
    assert "n1 has been silent" in text
    assert "only after proof" in text


def test_a_job_being_taken_over_says_so(spool, why):
    placed = run(spool, put(spool))
    spool.enter_node("n2")
    assert Answer.WON is spool.reap(placed, "n2")[0]
    assert "node n2 took it over" in why("1")


@pytest.mark.parametrize(
    ("ended", "words"),
    [
        ({"exit_code": 0}, "COMPLETED, its command exited with 0"),
        ({"exit_code": 1}, "FAILED, its command exited with 1"),
        ({"exit_code": 137}, "128 + 9: a signal (SIGKILL)"),
        ({"exit_code": None, "signal": 11}, "killed by signal 11 (SIGSEGV)"),
        ({"exit_code": None, "signal": 15, "reason": "timeout"}, "still running at its time limit of 1:00"),
        ({"exit_code": None, "signal": 9, "reason": "oom"}, "took more memory than its 1000M; it used 2.0M memory"),
        ({"exit_code": 127, "reason": "launch", "detail": "no such program"}, "reason: launch: no such program"),
    ],
)
def test_an_ended_job_says_how_and_why(spool, why, ended, words):
    item = dict(ended)
    end(spool, run(spool, put(spool, limit_s=60)), item.pop("exit_code"), **item)
    text = why("1")
    assert "ended on n1 at 2001-09-09T01:46:45" in text
    assert words in text


def test_a_cancelled_job_says_by_whom(spool, why):
    from spoolq import steer

    put(spool)
    steer.kill(["--spool", spool.root, "1"])
    text = why("1")
    assert "CANCELLED, it was cancelled" in text


def test_show_tells_everything(spool, call):
    end(spool, run(spool, put(spool, command=("echo", "a b"), chdir="/tmp", output="%x.%j.log")), 3)
    _, out, _ = call("show", "1")
    for words in ("job 1 (t): FAILED", "echo 'a b'", "/tmp/t.1.log", "exit code 3", "1.500 s cpu", "done/0/"):
        assert words in out, words


def test_show_as_json_has_everything(spool, call):
    end(spool, run(spool, put(spool)), 3)
    [facts] = value(call("show", "1", "--json")[1])
    assert ("FAILED", 3, "n1") == (facts["state"], facts["result"]["exit_code"], facts["node"])
    assert ["true"] == facts["job"]["command"]
    assert f"{spool.root}/jobs/0/1/stdout" == facts["outputs"]["stdout"]


def test_show_survives_a_home_that_was_removed(spool, call):
    import shutil

    put(spool)
    shutil.rmtree(f"{spool.root}/jobs/0/1")
    code, out, _ = call("show", "1")
    assert 0 == code
    assert "cannot be read any more" in out
    assert "(removed)" in out


def test_job_text_never_steers_the_terminal(spool, call):
    put(spool, command=("echo", "\x1b[31mred"), name="t")
    home.write_why(spool.root, 1, "n1", "n1 Resources: \x1b[2J")
    for command in ("show", "why"):
        assert "\x1b" not in call(command, "1")[1]


def test_a_missing_job_is_an_error_and_the_others_are_shown(spool, call):
    put(spool)
    for command in ("show", "why"):
        code, out, err = call(command, "8", "1")
        assert (1, True, True) == (code, "job 1" in out, "job 8: no such job" in err)


# --- places that are kept, limits of users


def kept(spool, **facts):
    """A waiting job for which n1 keeps a place."""
    from spoolq.reserve import reserving

    at = put(spool, **facts)
    _, at = spool.transfer(at, "queue", reserving(at.entry, "n1"))
    return at


def test_why_says_where_a_place_is_kept_and_for_whom_from_names_and_node_json_alone(spool, why):
    run(spool, put(spool, wants={"cpus": 2000, "mem": 1000}))
    kept(spool, wants={"cpus": 4000, "mem": 1000})
    node_json(spool, tasks=[[{"cpus": 2000, "mem": 1000}, 90]])
    put(spool, limit_s=90)
    put(spool, limit_s=91)

    assert "A place is kept for it on n1: it starts there in 1:30 at the latest, or earlier wherever it fits." in why(
        "2"
    )
    assert "n1 has room" in why("3")
    text = "n1 keeps 4 cpus, 1M mem for job 2, which starts in 1:30 at the latest; this would delay it"
    assert f"job 4 waits: Priority: n1: {text}" in why("4")


def test_a_place_on_a_node_that_drains_is_void(spool, why):
    run(spool, put(spool))
    kept(spool, wants={"cpus": 4000, "mem": 1000})
    node_json(spool, tasks=[])
    spool.mark_node("n1", "drain", on=True)
    assert "A place is kept" not in why("2")


def test_why_says_what_its_user_runs_and_may_run(spool, why):
    with open(f"{spool.root}/spool.toml", "a") as file:
        file.write("[policy]\nmax_cpus = 2\n")
    node_json(spool)
    run(spool, put(spool, wants={"cpus": 1500, "mem": 1000}))
    put(spool)
    assert "UserLimit: needs 1 cpus, " in why("2")
    assert "uses 1.5 on all nodes, and max_cpus is 2 a user" in why("2")


def test_why_says_how_the_users_stand_that_take_turns(spool, why):
    run(spool, put(spool, user="anna"))
    put(spool, user="anna")
    put(spool, user="ben")
    assert "users of equal priority take turns, the fewest cpus in use first: anna 1, ben 0" in why("2")
