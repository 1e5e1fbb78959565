"""Texts that are jobs: what goes in comes out, and any bytes are a job or an explained mistake."""

import subprocess

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from spoolq import jobfile as jf
from spoolq import options, script, stored, values
from spoolq.environment import shown
from spoolq.errors import JobFileError, Misconfigured, UsageError
from spoolq.job import Job

# any text that an operating system can pass: no NUL, and bytes that are no UTF-8 as surrogates
CLEAN = st.text(alphabet=st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=20)
NASTY = st.sampled_from(
    [
        '"',
        "'",
        "\\",
        '"""',
        "'''",
        "\n",
        "\r\n",
        "\x7f",
        "\x1b[31m",
        "\x9b",
        "\u2028",
        "😀",
        "%41",
        "%25",
        "=",
        "#",
        "\ufeff",
        "%",
        "\udcff%C3",
    ]
)
RAW = st.binary(max_size=12).map(lambda b: b.replace(b"\0", b"").decode("utf-8", "surrogateescape"))
TEXTS = st.one_of(CLEAN, NASTY, RAW, st.tuples(NASTY, CLEAN, NASTY).map("".join))
AMOUNTS = st.integers(1, 10**12)
GRES = st.dictionaries(
    st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True).filter(lambda n: n not in ("cpus", "mem")),
    AMOUNTS,
    max_size=3,
)
JOBS = st.builds(
    Job,
    command=st.lists(TEXTS, min_size=1, max_size=5).map(tuple),
    name=TEXTS,
    script=st.booleans(),
    chdir=TEXTS,
    umask=st.integers(0, 0o777),
    wants=st.tuples(AMOUNTS, AMOUNTS, GRES).map(lambda t: {"cpus": t[0], "mem": t[1], **t[2]}),
    declared=st.frozensets(st.sampled_from(["cpus", "mem", "gpu", "time"])),
    limit_s=st.none() | st.integers(1, values.MOST_SECONDS),
    priority=st.integers(-499, 500),
    retries=st.integers(0, 1000),
    rerun=st.sampled_from(["never", "certain", "yes"]),
    mem_factor=st.none() | st.floats(1, 100),
    time_factor=st.none() | st.floats(1, 100),
    retry_mem=st.sampled_from(["", "2x", "+500"]),
    signal=st.sampled_from(["", "USR1@60", "B:10@1", "TERM@864000000"]),
    output=st.none() | TEXTS,
    error=st.none() | TEXTS,
    open_mode=st.sampled_from(["append", "truncate"]),
    output_mode=st.sampled_from(["spool", "local"]),
    kill_on_invalid_dep=st.sampled_from(["yes", "no"]),
    depend=st.lists(st.sampled_from(["afterok:1", "afterany:42_7", "after:3"]), max_size=3).map(tuple),
    unique=TEXTS,
    constraint=TEXTS,
    begin=TEXTS,
    parent=TEXTS,
    nodelist=st.lists(TEXTS, max_size=3).map(tuple),
    exclude=st.lists(TEXTS, max_size=3).map(tuple),
    policy=st.lists(TEXTS, max_size=3).map(tuple),
    inputs=st.lists(TEXTS, max_size=3).map(tuple),
    targets=st.lists(TEXTS, max_size=3).map(tuple),
    if_stale=st.booleans(),
    ages=st.booleans(),
    array=TEXTS,
    max_fails=st.integers(0, 1_000_000),
    estimate=st.lists(TEXTS, max_size=3).map(tuple),
    stage_in=st.lists(TEXTS, max_size=3).map(tuple),
    stage_out=st.lists(TEXTS, max_size=3).map(tuple),
    held=st.sampled_from(["", "HU", "HD"]),
    export=st.sampled_from(["all", "none", "A,B", "all,A"]),
    user=TEXTS,
    submitted=TEXTS,
    submit_host=TEXTS,
)
STORED = Job(
    command=("make", "-j4", 'a"b'), name="build", chdir="/home/anna", wants={"cpus": 500, "mem": 3072_000, "gpu": 2000}, limit_s=90,
    declared=frozenset(("cpus", "mem")), priority=5, held="HU", export="all,A=s3cret", user="anna", submitted="2024", submit_host="login",
)  # fmt: skip


def job_of(text: str | bytes):
    return jf.parse_job(text if isinstance(text, bytes) else text.encode(), "j.toml")


def tried(read):
    """What it gives, or the message of its refusal; any other exception fails the test."""
    try:
        return read()
    except (JobFileError, Misconfigured) as error:
        return str(error)


def mistake(text: str | bytes) -> str:
    with pytest.raises(JobFileError) as caught:
        job_of(text)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- stored job files


@given(JOBS)
@example(Job(command=("true",), limit_s=values.MOST_SECONDS - 1))  # longer ones were stored and could not be read
def test_what_is_stored_is_read_back(job):
    assert stored.read_job(stored.format_job(job), "job") == job


@given(JOBS)
def test_a_stored_file_is_readable_text_that_cannot_speak_to_a_terminal(job):
    text = stored.format_job(job).decode()
    assert text.startswith("format = 1\ncommand = [")
    assert not any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in text.replace("\n", ""))


@given(JOBS, st.lists(st.tuples(st.lists(TEXTS, min_size=1, max_size=3).map(tuple), TEXTS), max_size=3))
def test_many_are_stored_like_one(job, many):
    got = list(stored.format_many(job, [command for command, _ in many], [name for _, name in many]))
    assert got == [stored.format_job(job._replace(command=command, name=name)) for command, name in many]


def test_a_stored_file_looks_like_this_for_ever():
    assert stored.format_job(STORED).decode() == (
        'format = 1\ncommand = ["make", "-j4", "a\\"b"]\nname = "build"\nchdir = "/home/anna"\numask = "0022"\n'
        'cpus = 0.5\nmem = 3072\ngres = "gpu:2"\ntime = "90s"\npriority = 5\nheld = "HU"\nexport = "all,A"\n'
        'user = "anna"\nsubmitted = "2024"\nsubmit_host = "login"\ndeclared = ["cpus", "mem"]\n'
    )
    assert stored.read_job(b'format = 1\ncommand = ["x"]\n', "job") == Job(
        ("x",), "", False, "/", 0o022, {"cpus": 1000, "mem": 1000_000}
    )


def test_secrets_given_by_value_are_not_stored():
    data = stored.format_job(STORED)
    assert b"s3cret" not in data
    assert stored.read_job(data, "job") == STORED._replace(export=shown(STORED.export))


def test_bytes_that_are_no_utf8_are_kept():
    job = Job(command=("cat", "caf\udce9%20"), name="50%")
    assert b'escaped = "percent"' in stored.format_job(job)
    assert b'"caf%E9%2520"' in stored.format_job(job)
    assert stored.read_job(stored.format_job(job), "job") == job


def test_a_command_too_long_to_store_is_refused():
    with pytest.raises(UsageError, match="at most 1024 KiB"):
        stored.format_job(Job(command=("x" * (1 << 20),)))


def test_newer_minor_versions_are_read_and_newer_formats_refused():
    data = stored.format_job(STORED)
    assert stored.read_job(data + b"colour = [1, {a = 2}]\n", "job") == stored.read_job(data, "job")
    with pytest.raises(Misconfigured, match="job: format 2 is not known"):
        stored.read_job(data.replace(b"format = 1", b"format = 2"), "job")


@pytest.mark.parametrize("key", ["chdir", "output", "name", "user"])
def test_a_stored_text_with_a_nul_is_damage(key):
    with pytest.raises(JobFileError, match=f"job: damaged: {key}"):
        stored.read_job(f'format = 1\ncommand = ["a"]\n{key} = "a\\u0000"\n'.encode(), "job")


@given(st.integers(0, 400), st.binary(max_size=3))
def test_a_damaged_stored_file_is_a_job_or_an_error(at, junk):
    data = stored.format_job(STORED)
    for damaged in (data[:at], data[:at] + junk + data[at:], data[:at] + junk + data[at + len(junk) :]):
        got = tried(lambda damaged=damaged: stored.read_job(damaged, "job"))
        assert isinstance(got, Job) or got.startswith("job:")


VALUES = st.sampled_from(
    [
        "1",
        "0",
        "-7",
        "1e400",
        "nan",
        "0.5",
        '"x"',
        '""',
        '"4"',
        "true",
        "[]",
        "{}",
        '["a"]',
        '["a", 1]',
        "[[]]",
        "1979-05-27",
        "02:30:00",
        '"\\u0000"',
        '["\\u0000"]',
        '"""\nx\n"""',
        "9" * 30,
    ]
)
KEYS = st.sampled_from(
    ["command", "script", "format", "declared", "held", "user", "umask", "escaped", *options.BY_NAME]
)


@given(st.dictionaries(KEYS, VALUES, max_size=4))
@example({"command": '["\\u0000"]'})
def test_any_values_of_known_keys_give_a_job_or_an_error(table):
    text = "".join(f"{key} = {value}\n" for key, value in table.items()).encode()
    for read in (job_of, lambda text: (stored.read_job(b"format = 1\n" + text, "j.toml"), None)):
        got = tried(lambda read=read: read(text)[0])
        if isinstance(got, str):
            assert "\n" not in got
        else:
            assert not any("\0" in word for word in got.command)
            assert got.entry(1)
            assert stored.read_job(stored.format_job(got), "job") == got._replace(export=shown(got.export))


# --- job files that people write


def test_a_job_file_says_what_the_command_line_says():
    job, script = job_of(
        'command = ["make", "-j4"]\ncpus = 4\nmem = "3G"\ntime = 02:30:00\nhold = true\nrequeue = false\numask = "0077"\n'
        'nodelist = ["n1", "n[2-3]"]\nexport = ["all", "A=1,2"]\ngres = ["gpu:2"]\njob-name = "x"\n#SPOOLQ end\n'
    )
    parsed = options.parse(
        [
            "-c4",
            "-m3G",
            "-t2:30:00",
            "-H",
            "--umask=0077",
            "-wn1,n[2-3]",
            "--export=all,A=1\\,2",
            "-ggpu:2",
            "-Jx",
            "make",
            "-j4",
        ]
    )
    assert (job, script) == (options.to_job(parsed.pairs, parsed.words), None)


def test_a_command_may_be_a_line_for_the_shell():
    assert job_of('command = "a | b"')[0].command == ("/bin/sh", "-c", "a | b") == job_of('wrap = "a | b"')[0].command


def test_a_script_in_a_job_file_brings_its_directives_and_keys_win():
    job, script = job_of('mem = 7\ncommand = ["arg"]\nscript = """\n#!/bin/bash\n#SPOOLQ -c 2 -m 5\necho $1\n"""\n')
    assert (job.script, job.command, script) == (True, ("arg",), b"#!/bin/bash\n#SPOOLQ -c 2 -m 5\necho $1\n")
    assert job.wants == {"cpus": 2000, "mem": 7000}


def test_a_mark_at_the_beginning_and_windows_line_ends_are_accepted():
    assert job_of(b'\xef\xbb\xbfcommand = ["a"]\r\ncpus = 2\r\n')[0].wants["cpus"] == 2000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", 'j.toml: no command (example: command = ["make", "-j4"], or wrap = "make | tee log")'),
        ("command = []", 'j.toml: no command (example: command = ["make", "-j4"], or wrap = "make | tee log")'),
        ('command = ["a"]\ncpus = "four"\n', "j.toml:2: cpus: 'four' is no number (examples: 4, 0.5)"),
        ("cpus = true", "j.toml:1: cpus: is a boolean; must be a number or a string"),
        ("cpus = [4]", "j.toml:1: cpus: is an array; must be a number or a string"),
        ("cpus = 0", "j.toml:1: cpus: must be more than 0 and at most 1000000000"),
        ("cpus = -4", "j.toml:1: cpus: '-4' is no number (examples: 4, 0.5)"),
        ("cpus = nan", "j.toml:1: cpus: 'nan' is no number (examples: 4, 0.5)"),
        ("name = 5", "j.toml:1: name: is an integer; must be a string"),
        ('hold = "yes"', "j.toml:1: hold: is a string; must be true or false"),
        ("umask = 22", 'j.toml:1: umask: must be a string, to be read as octal (example: "0022")'),
        ("\n\ncpu = 4", "j.toml:3: unknown key 'cpu' (did you mean cpus?)"),
        ("open_mode = 'append'", "j.toml:1: unknown key 'open_mode' (did you mean open-mode?)"),
        ("zzz = 1", "j.toml:1: unknown key 'zzz'"),
        ("wait = true", "j.toml:1: wait: has no meaning in a job file, only on the command line"),
        ("[cpus]\nx = 1", "j.toml:1: cpus: is a table; must be a number or a string"),
        ("gres.gpu = 2", "j.toml:1: gres: is a table; must be a string"),
        ("cpus = 1\ncpus-per-task = 1", "j.toml:2: cpus-per-task: is another name of cpus, which is given too"),
        ("cpus = 1\ncpus = 1", "j.toml:2: no valid TOML: cannot overwrite a value"),
        (
            "command = [1]",
            'j.toml:1: command: must be an array of strings (example: ["sleep", "5"]) or one line for the shell',
        ),
        (
            'command = ""',
            'j.toml:1: command: must be an array of strings (example: ["sleep", "5"]) or one line for the shell',
        ),
        ('command = ["", "a"]', "j.toml:1: command: the first word is empty"),
        ('command = ["a\\u0000"]', "j.toml:1: command: holds a NUL character"),
        ('command = ["a"]\nwrap = "b"', "j.toml: more than one command: give command, script or wrap"),
        ('script = """\ncpus = four\n"""\ncpus = "four"\n', "j.toml:4: cpus: 'four' is no number (examples: 4, 0.5)"),
        ('script = """\n#SPOOLQ --zzz\n"""\n', "j.toml (script):1: unknown option '--zzz' (see spoolq sub --help)"),
        ("command = [", "j.toml:1: no valid TOML: invalid value"),
        (b"command = ['a']\n# \0\n", "j.toml:2: holds a NUL byte: no text file"),
        (b"# \n# \xff\n", "j.toml:2: is not UTF-8"),
        ("x = 'a'".encode("utf-16"), "j.toml:1: holds a NUL byte: no text file"),
        (b"#" * 65537, "j.toml: 65537 bytes; at most 64 KiB are read"),
        ("cpus = " + "9" * 5000, "j.toml: no valid TOML: ValueError"),
        ("a." * 17 + "a = 1", "j.toml:1: more than 16 dots outside quotes"),
        ("x = 1\n" + "a." * 20000 + "a = 1", "j.toml:2: more than 16 dots outside quotes"),
        ("x = " + "[" * 33, "j.toml:1: brackets nested more than 32 deep"),
        ("x = " + "{a = " * 33, "j.toml:1: brackets nested more than 32 deep"),
        ("x = [\n" * 30000, "j.toml: 180000 bytes; at most 64 KiB are read"),
    ],
)
def test_mistakes_are_explained(text, message):
    assert mistake(text) == message


@pytest.mark.parametrize(
    "quoted", ['"{}"', "'{}'", '"""{}"""', "'''{}'''", '"""\n{}\n"""', '"""a""{}"""', '"""{}""""', "'''{}'''''"]
)
def test_dots_and_brackets_inside_quotes_are_harmless(quoted):
    inner = "a.b." * 20 + "[" * 40
    assert (
        job_of("name = 'n'\ncommand = [" + quoted.format(inner) + "]\n# " + inner)[0]
        .command[0]
        .strip("\n\"'")
        .endswith(inner)
    )


@pytest.mark.parametrize(
    "hidden",
    ['x = {a = """b"""", ', "x = {a = '''b'''', ", 'x = {a = "\\"", ', 'x = {a = """\\"""""", ', "x = {a = '\"', "],
)
def test_a_bomb_behind_odd_quotes_is_found(hidden):
    assert mistake(hidden + "a." * 20000 + "b = 1}") == "j.toml:1: more than 16 dots outside quotes"


@pytest.mark.parametrize("trouble", [RecursionError, MemoryError, ValueError])
def test_a_parser_in_trouble_is_a_mistake_in_the_file(monkeypatch, trouble):
    def fail(_text):
        raise trouble

    monkeypatch.setattr("tomli.loads", fail)
    assert mistake("x = 1") == f"j.toml: no valid TOML: {trouble.__name__}"


@given(st.binary(max_size=200))
@example(b'x = """' + b'""' * 60)
@example(b"a = {b = {c = 1}}")
def test_any_bytes_are_a_job_or_an_explained_mistake(data):
    for read in (
        job_of,
        lambda data: stored.read_job(b"format = 1\n" + data, "f"),
        lambda data: script.parse_script(data, "f"),
        script.interpreter,
        script.has_trailer,
    ):
        assert tried(lambda read=read: read(data)) is not None


@given(st.text(alphabet="ab=.[]{}\"'\\\n #,1", max_size=80))
def test_any_text_near_toml_is_a_job_or_an_explained_mistake(text):
    mistake(text)


# --- scripts


def directives(text: str | bytes):
    pairs, warnings = script.parse_script(text if isinstance(text, bytes) else text.encode(), "s.sh")
    return [tuple(pair) for pair in pairs], warnings


def test_directives_stand_before_the_first_command():
    text = '#!/bin/sh\n\n# words\n#SPOOLQ -c 4 -m500  # why\n#SPOOLQ --hold --name \'a b\'"c\\""\\ d\necho\n#SPOOLQ -c 8\n#SPOOLQ end\n'
    assert directives(text) == (
        [("cpus", "4", 4), ("mem", "500", 4), ("hold", "yes", 5), ("name", 'a bc" d', 5)],
        ["line 7: not read, since it comes after the first command"],
    )


def test_a_script_without_directives_has_none():
    assert directives("") == directives("#!/bin/sh\n# spoolq is nice\necho\n#SPOOLQ end\n") == ([], [])


def test_directives_as_windows_writes_them_are_read():
    assert directives("#!/bin/sh\r\n#SPOOLQ -J x\r\necho\r\n") == (
        [("name", "x", 2)],
        ["has Windows line ends (remedy: dos2unix)"],
    )


@pytest.mark.parametrize("line", ["#spoolq -c 4", "# SPOOLQ -c 4", " #SPOOLQ -c 4", "#SPOOLQ-c 4"])
def test_what_looks_like_a_directive_is_not_ignored_silently(line):
    assert directives(f"#!/bin/sh\n{line}\n")[1] == [
        "line 2: looks like a directive and is none; write #SPOOLQ, then a blank"
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("#!/bin/sh\n#SPOOLQ -n 4\n", "s.sh:2: unknown option '-n' (did you mean -c/--cpus?)"),
        ("#SPOOLQ --cpu four\n", "s.sh:1: cpus: 'four' is no number (examples: 4, 0.5)"),
        ("\n#SPOOLQ -c 4 make\n", "s.sh:2: 'make' is no option, and a directive holds nothing else"),
        ("#SPOOLQ -J 'x\n", 's.sh:1: a quote is not closed: "-J \'x"'),
        ("#SPOOLQ -c\n", "s.sh:1: -c/--cpus: needs a value (N)"),
        ("#SPOOLQ --wait\n", "s.sh:1: -W/--wait: has no meaning here, only on the command line"),
        ("#SPOOLQ --wrap x\n", "s.sh:1: --wrap: has no meaning here, only on the command line"),
        (b"#SPOOLQ -J \xff\n", "s.sh:1: is not UTF-8"),
        (b"#!/bin/sh\necho \0\n", "s.sh:2: holds a NUL byte: no script"),
        (b"#" * ((1 << 20) + 1), "s.sh: 1048577 bytes; a script has at most 1024 KiB"),
        (
            "#SBATCH --time=abc\n",
            "s.sh:1: time: 'abc' is no time (examples: 30 = minutes, 2:30:00, 90s, 2h30m, 1-12, unlimited)",
        ),
    ],
)
def test_wrong_directives_are_explained(text, message):
    with pytest.raises(JobFileError) as caught:
        directives(text)
    assert str(caught.value) == message


def test_a_script_body_may_be_any_text():
    assert directives(b"#SPOOLQ -c 4\necho \xff\n") == ([("cpus", "4", 1)], [])


def test_lines_for_slurm_are_read_when_there_are_none_for_us():
    text = "#!/bin/bash\n#SBATCH -J x -c4 --mem=4000 -t 1-12\n#SBATCH --ntasks=1 --nodes 1\n#SBATCH --gres=gpu:2 -H --export=ALL\n#SBATCH -o out.%j\n"
    pairs = [
        ("name", "x", 2),
        ("cpus", "4", 2),
        ("mem", "4000", 2),
        ("time", "1-12", 2),
        ("gres", "gpu:2", 4),
        ("hold", "yes", 4),
    ]
    assert directives(text) == ([*pairs, ("export", "ALL", 4), ("output", "out.%j", 5)], [])
    assert directives(text + "#SPOOLQ -c 1\n") == (
        [("cpus", "1", 6)],
        ["#SBATCH lines are not read, since there are #SPOOLQ lines"],
    )


@pytest.mark.parametrize(
    "words",
    [
        "--ntasks=4",
        "-n 4",
        "-p long",
        "--mail-type=END",
        "--mem=0",
        "--gres=gpu:a100:2",
        "-G a100:2",
        "--array 1-9",
        "--exclusive",
        "stray",
    ],
)
def test_what_slurm_alone_understands_is_reported(words):
    assert directives(f"#SBATCH {words}\n#SBATCH -c 2\n") == (
        [("cpus", "2", 2)],
        [f"line 1: #SBATCH {words} is not read"],
    )


def test_slurms_zero_time_is_no_limit():
    assert directives("#SBATCH --time=0\n")[0] == [("time", "unlimited", 1)]


@given(st.text(alphabet="ab -=\"'\\#4c\t", max_size=30))
def test_directives_are_split_as_a_shell_splits_or_refused(text):
    import shlex

    try:
        words = script._shell_words(text)
    except UsageError:
        with pytest.raises(ValueError, match="closing|escaped"):
            shlex.split(text.partition("#")[0] if text.lstrip().startswith("#") else text)
        return
    if "#" not in text:
        assert words == shlex.split(text)


@pytest.mark.parametrize(
    ("data", "argv"),
    [
        (b"", ["/bin/sh"]),
        (b"echo\n", ["/bin/sh"]),
        (b"#!\n", ["/bin/sh"]),
        (b"#!/bin/bash", ["/bin/bash"]),
        (b"#! /bin/bash -e -x \r\n", ["/bin/bash", "-e -x"]),
        (b"#!/usr/bin/env\tpython3\n", ["/usr/bin/env", "python3"]),
        (b"\xef\xbb\xbf#!/bin/ksh\n", ["/bin/ksh"]),
        (b"#!/bin/\xff\n", ["/bin/\udcff"]),
        (b" #!/bin/bash\n", ["/bin/sh"]),
    ],
)
def test_the_interpreter_is_what_the_kernel_would_run(data, argv):
    assert script.interpreter(data) == argv


@pytest.mark.parametrize(
    ("data", "whole"),
    [
        (b"x\n#SPOOLQ end\n", True),
        (b"#SPOOLQ end\r\n\r\n", True),
        (b"#SPOOLQ  end  \n", True),
        (b"x\n#SPOOLQ end", False),
        (b"#SPOOLQ end\nx\n", False),
        (b"x #SPOOLQ end\n", False),
        (b"#SPOOLQ en", False),
        (b"", False),
    ],
)
def test_a_trailer_is_the_last_whole_line(data, whole):
    assert script.has_trailer(data) is whole


# --- one job for each line


@pytest.mark.parametrize(
    "line", ["true", "make -j4", " /bin/echo a  b\tc\n", "python3 x.py --lr 0.1,2", "./run @file +x", "echo a"]
)
def test_plain_lines_need_no_shell(line):
    assert script.words(line) == line.split()


@pytest.mark.parametrize(
    "line",
    [
        "",
        "  ",
        "# x",
        "a | b",
        "a && b",
        "a;b",
        "a > b",
        "echo $A",
        "`a`",
        "a 'b'",
        'a "b"',
        "ls *",
        "ls ?",
        "ls [a]",
        "a # b",
        "cd ~",
        "A=1 b",
        "a b=c",
    ]
    + [
        "a {b,c}",
        "! a",
        "a %1",
        "a \\",
        "(a)",
        "cd /tmp",
        "export A",
        "source x",
        ". x",
        ": x",
        "exec a",
        "if a",
        "for a",
        "while a",
        "ulimit -n 5",
        "umask 22",
    ]
    + ["set -e", "exit 3", "echo -e a", "pwd", "time a", "a\x0bb", "a\u00a0b", "é", "a^b"],
)
def test_whatever_a_shell_might_change_needs_one(line):
    assert script.words(line) is None


LINES = st.lists(st.text(alphabet="ab-+@,./: \t'\"$*~=#{}\\!%^0é", min_size=1, max_size=12), min_size=20, max_size=60)


@given(LINES)
@example(["a b", "a:b", "a,b +c", ":a"])
def test_a_shell_would_have_found_the_same_words(lines):
    plain = [(line, got) for line in lines if (got := script.words(line))]
    text = "show() { for w; do printf '<%s>' \"$w\"; done; echo; }\n" + "".join(f"show {line}\n" for line, _ in plain)
    done = subprocess.run(["/bin/sh"], input=text.encode(), capture_output=True, check=True)
    assert done.stdout.decode().splitlines() == ["".join(f"<{word}>" for word in got) for _, got in plain]
