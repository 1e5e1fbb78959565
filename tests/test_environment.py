"""What goes with a job, and what the job finds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spoolq import environment as env
from spoolq.errors import UsageError
from spoolq.job import Job

TEXT = st.text(alphabet=st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=20)
RAW = st.binary(max_size=20).map(lambda b: b.translate(None, b"\0=").decode("utf-8", "surrogateescape"))
NAMES = st.one_of(TEXT.map(lambda t: t.replace("=", "")), RAW).filter(bool)
ENVIRONS = st.dictionaries(NAMES, st.one_of(TEXT, RAW), max_size=6)

SECRETS = "GITHUB_TOKEN token MY_SECRET_1 db_password PGPASSWD OPENAI_API_KEY APIKEY AWS_REGION SSH_KEY"
HARMLESS = "HOME KEYMAP TOKENIZERS_PARALLELISM MONKEY KRB5CCNAME LD_LIBRARY_PATH PYTHONPATH"
OF_SESSIONS = (
    "TERM SSH_AUTH_SOCK SSH_AGENT_PID GPG_AGENT_INFO TMUX XDG_SESSION_ID DISPLAY _ PS1 SPOOLQ_NODE NOTIFY_SOCKET"
)
SHELL = {"HOME": "/home/anna", "PATH": "/bin", "DEBUG": "1", "GITHUB_TOKEN": "x", "TERM": "xterm", "SPOOLQ_JOB_ID": "7"}


@given(ENVIRONS)
def test_packing_loses_nothing(environ):
    assert env.unpack(env.pack(environ)) == environ


@given(st.binary(max_size=200))
def test_any_bytes_can_be_unpacked(data):
    for name in env.unpack(data):
        assert name
        assert "=" not in name


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        ("all", {"HOME", "PATH", "DEBUG"}),
        ("ALL", {"HOME", "PATH", "DEBUG"}),
        ("none", set()),
        ("NONE", set()),
        ("DEBUG", {"DEBUG"}),
        ("DEBUG,UNSET", {"DEBUG"}),
        ("all,GITHUB_TOKEN", {"HOME", "PATH", "DEBUG", "GITHUB_TOKEN"}),
        ("none,TERM", {"TERM"}),
        ("all,NEW=1", {"HOME", "PATH", "DEBUG", "NEW"}),
    ],
)
def test_export_chooses(spec, names):
    assert set(env.exported(SHELL, spec)) == names


def test_values_given_win_and_may_hold_anything():
    assert env.exported(SHELL, "DEBUG,DEBUG=a=b\\,c,EMPTY=") == {"DEBUG": "a=b,c", "EMPTY": ""}


@pytest.mark.parametrize("spec", ["", "1A", "A B", "=x", "A-B=1", "all,a/b", "A=1,2"])
def test_a_wrong_export_is_refused(spec):
    with pytest.raises(UsageError, match="is no variable"):
        env.parse_export(spec)


@pytest.mark.parametrize("name", SECRETS.split())
def test_secrets_stay_at_home(name):
    assert env.is_secret(name)


@pytest.mark.parametrize("name", HARMLESS.split())
def test_what_is_no_secret_goes_along(name):
    assert not env.is_secret(name)


@pytest.mark.parametrize(
    "name",
    OF_SESSIONS.split(),
)
def test_what_belongs_to_the_session_stays(name):
    assert env.is_session(name)


@given(ENVIRONS)
def test_export_all_gives_no_secret_and_no_session(environ):
    assert not any(env.is_secret(name) or env.is_session(name) for name in env.exported(environ, "all"))


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("all", "all"),
        ("none", "none"),
        ("A,B", "A,B"),
        ("all,A=s3cret", "all,A"),
        ("A=x\\,y,B", "none,B,A"),
        ("A=1", "none,A"),
    ],
)
def test_values_are_not_shown_to_others(spec, text):
    assert env.shown(spec) == text
    assert env.shown(text) == text


def job_lines(environ, *, wants=None, limit_s=None, base=()):
    job = Job(
        command=("true",),
        name="align",
        wants=wants or {"cpus": 1500, "mem": 500_001},
        limit_s=limit_s,
        chdir="/work/x",
        user="anna",
        submit_host="login",
    )
    common = env.shared(env.pack(environ), base)
    return env.for_job(common, job.entry(42), job, node="n1", spool="/spool", tmpdir="/tmp/42")


def test_a_job_finds_its_facts():
    found = dict(
        line.split("=", 1)
        for line in job_lines({"HOME": "/h"}, wants={"cpus": 1500, "mem": 500_001, "gpu": 2000}, limit_s=90)
    )
    threads = dict.fromkeys(env.THREADS, "2")
    assert found == threads | {
        "HOME": "/h",
        "PWD": "/work/x",
        "TMPDIR": "/tmp/42",
        "SPOOLQ_SCRATCH": "/tmp/42",
        "SPOOLQ_JOB_ID": "42",
        "SPOOLQ_JOB_NAME": "align",
        "SPOOLQ_JOB_DIR": "/spool/jobs/0/42",
        "SPOOLQ_SUBMIT_DIR": "/work/x",
        "SPOOLQ_SUBMIT_HOST": "login",
        "SPOOLQ_SUBMIT_USER": "anna",
        "SPOOLQ_NODE": "n1",
        "SPOOLQ_CPUS": "1.5",
        "SPOOLQ_MEM_MB": "501",
        "SPOOLQ_TIME_LIMIT": "90",
        "SPOOLQ_ATTEMPT": "1",
        "SPOOLQ_SPOOL": "/spool",
        "SPOOLQ_DIR": "/spool",
        "SPOOLQ_GRES_GPU": "2",
    }


def test_threads_that_the_user_set_stay_and_a_base_is_weaker_than_the_job():
    lines = job_lines({"OMP_NUM_THREADS": "7", "A": "job"}, base=(("A", "base"), ("B", "base")))
    assert [line for line in lines if line.startswith(("OMP_NUM_THREADS=", "A=", "B="))] == [
        "A=job",
        "B=base",
        "OMP_NUM_THREADS=7",
    ]
    assert "MKL_NUM_THREADS=2" in lines


def test_the_directory_of_submission_is_the_submitters_word():
    lines = job_lines({env.SUBMIT_DIR: "/where/i/was"})
    assert [line for line in lines if line.startswith(env.SUBMIT_DIR)] == [f"{env.SUBMIT_DIR}=/where/i/was"]


@given(
    st.dictionaries(
        st.sampled_from(["SPOOLQ_JOB_ID", "SPOOLQ_GRES_GPU", "TMPDIR", "PWD", "SPOOLQ_DIR", "HOME", "OMP_NUM_THREADS"]),
        TEXT,
    )
)
def test_no_name_appears_twice_and_facts_cannot_be_forged(environ):
    lines = job_lines(environ)
    names = [line.partition("=")[0] for line in lines]
    assert len(set(names)) == len(names)
    assert {"SPOOLQ_JOB_ID=42", "TMPDIR=/tmp/42", "SPOOLQ_DIR=/spool"} <= set(lines)
    assert not any(name.startswith("SPOOLQ_GRES_") for name in names)


def test_a_timestamp_is_utc_with_microseconds():
    assert env.timestamp(0) == "1970-01-01T00:00:00.000000Z"
    assert env.timestamp(1714566000.5) == "2024-05-01T12:20:00.500000Z"
