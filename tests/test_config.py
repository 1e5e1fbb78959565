"""Policies and settings: what they say, where they say it, and what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spoolq import config, toml
from spoolq.errors import Misconfigured

HEAD = 'format = 1\nuuid = "1-2"\nname = "lab"\n'


def policy(text: str = "") -> config.Policy:
    return config.parse_policy((HEAD + text).encode(), "spool.toml")


def said_by(read) -> str:
    """The message, or nothing; anything but Misconfigured fails the test."""
    try:
        read()
    except Misconfigured as error:
        return str(error)
    return ""


def test_a_new_spool_has_the_defaults_in_comments():
    text = config.new_spool("1-2", 'the "lab"')
    found = config.parse_policy(text.encode(), "spool.toml")
    assert found.name == 'the "lab"'
    assert found._replace(name="lab", in_force=()) == policy()._replace(in_force=())
    for key in config.KEYS:
        assert f"# {key.name} = " in text
    loud = "".join(line.removeprefix("# ") + "\n" for line in text.splitlines())
    assert config.parse_policy(loud.encode(), "x")._replace(in_force=()) == found._replace(in_force=())


def test_defaults():
    found = policy()
    assert (found.default_cpus, found.default_mem, found.default_time_s, found.default_rerun) == (
        1000,
        1000_000,
        None,
        "certain",
    )
    assert (found.settle_s, found.grace_s, found.beat_s, found.fence_s, found.dead_s) == (10, 10, 20, 900, 1200)
    assert (found.min_free_mb, found.mem_factor, found.time_factor) == (100, 1, 1)
    assert (found.enforce_default_mem, found.drop_any_owner) == (False, False)


def test_values_know_where_they_were_said():
    found = policy('[policy]\ndefault_mem = "2G"\ndefault_time = 60\n[limits]\n\nmin_free_mb = 7\n')
    assert (found.default_mem, found.default_time_s, found.min_free_mb) == (2048_000, 3600, 7)
    said = {setting.key: setting[1:] for setting in found.in_force}
    assert said["policy.default_mem"] == ('"2G"', "spool.toml:5")
    assert said["limits.min_free_mb"] == ("7", "spool.toml:9")
    assert said["limits.beat_s"] == ("20", "default")
    assert said["policy.default_time"] == ("60", "spool.toml:6")


def test_policy_is_the_base_of_a_job():
    found = policy(
        '[policy]\ndefault_cpus = 2\ndefault_mem = 50\ndefault_time = 1\ndefault_rerun = "yes"\ndefault_retries = 3\n'
        'default_output_mode = "local"\n'
    )
    assert found.job_fields() == {
        "wants": {"cpus": 2000, "mem": 50_000},
        "limit_s": 60,
        "rerun": "yes",
        "retries": 3,
        "output_mode": "local",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[policy]\ndefault_cpu = 1\n",
            "spool.toml:5: unknown key 'default_cpu' in [policy] (did you mean default_cpus?)",
        ),
        ("beat_s = 1\n", "spool.toml:4: unknown key 'beat_s'"),
        ("[limit]\nx = 1\n", "spool.toml:4: unknown key 'limit' (did you mean limits?)"),
        ("limits = 1\n", "spool.toml:4: unknown key 'limits' (did you mean limits?)"),
        ("[limits]\n\nbeat_s = true\n", "spool.toml:6: beat_s: is a boolean; must be a number"),
        ("[limits]\nbeat_s = nan\n", "spool.toml:5: beat_s: nan is not within 0.05..86400"),
        (
            '[policy]\ndefault_cpus = "four"\n',
            "spool.toml:5: default_cpus: cpus: 'four' is no number (examples: 4, 0.5)",
        ),
        ("[policy]\ndefault_mem = 0\n", "spool.toml:5: default_mem: 0 must be more than 0 and at most 1000000000"),
        (
            '[policy]\ndefault_time = "10001d"\n',
            "spool.toml:5: default_time: must be more than 0 and at most 10000 days (for no limit: unlimited)",
        ),
        (
            "[policy]\ndefault_time = []\n",
            "spool.toml:5: default_time: is an array; must be a number of minutes or a string",
        ),
        ('[policy]\ndefault_rerun = "maybe"\n', "spool.toml:5: default_rerun: 'maybe' is none of never, certain, yes"),
        ("[policy]\ndefault_rerun = []\n", "spool.toml:5: default_rerun: [] is none of never, certain, yes"),
        ("[policy]\nmem_factor = 0.5\n", "spool.toml:5: mem_factor: 0.5 is not within 1..100"),
        (
            '[policy]\nenforce_default_mem = "yes"\n',
            "spool.toml:5: enforce_default_mem: is a string; must be true or false",
        ),
        (
            "[limits]\nbeat_s = 400\n",
            "default: fence_s: 900 is less than 3 beats (beat_s = 400): a node would stop its jobs at a hiccup",
        ),
        (
            "[limits]\nfence_s = 1200\ndead_s = 1200\n",
            "spool.toml:6: dead_s: 1200 must be more than 1273 (fence_s 1200 + grace_s 10 + 50, and 1 % for clocks): a job could run twice",
        ),
        ("[limits\n", "spool.toml:4: no valid TOML: expected ']' at the end of a table declaration"),
    ],
)
def test_mistakes_are_explained(text, message):
    with pytest.raises(Misconfigured) as caught:
        policy(text)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "spool.toml: is no spool.toml: it does not say format = 1"),
        ('format = "1"\n', "spool.toml: is no spool.toml: it does not say format = 1"),
        ("format = 2\nnew = 1\n", "spool.toml: format 2 is not known to this version of spoolq (it knows 1)"),
        ("format = 1\n", "spool.toml: uuid: must be a string of 1 to 200 printable characters"),
        ('format = 1\nuuid = "1"\nname = 5\n', "spool.toml:3: name: must be a string of 1 to 200 printable characters"),
    ],
)
def test_what_is_no_spool_is_refused(text, message):
    with pytest.raises(Misconfigured) as caught:
        config.parse_policy(text.encode(), "spool.toml")
    assert str(caught.value) == message


@given(st.floats(0.05, 2000), st.floats(0.1, 5000), st.floats(0.1, 5000), st.floats(0, 500))
def test_timeouts_that_are_accepted_are_ordered(beat_s, fence_s, dead_s, grace_s):
    try:
        found = policy(
            f"[limits]\nbeat_s = {beat_s!r}\nfence_s = {fence_s!r}\ndead_s = {dead_s!r}\ngrace_s = {grace_s!r}\n"
        )
    except Misconfigured:
        return
    assert 3 * found.beat_s <= found.fence_s
    assert found.fence_s + found.grace_s + 50 + 0.01 * found.dead_s < found.dead_s


VALUES = st.sampled_from(
    ["1", "0", "-1", "1e400", "nan", '"x"', "true", "[]", "{}", "1979-05-27", '"3G"', '"""\n"""', "[[1]]"]
)


@given(
    st.lists(st.tuples(st.sampled_from([key.name for key in config.KEYS + config.SETTINGS]), VALUES), max_size=3),
    st.sampled_from(["", "[policy]\n", "[limits]\n", "[node]\n"]),
)
def test_any_values_give_a_policy_or_misconfigured(pairs, table):
    text = table + "".join(f"{name} = {value}\n" for name, value in pairs)
    for read in (policy, lambda text: config.parse_settings([("c.toml", text.encode())])):
        assert "\n" not in said_by(lambda read=read: read(text))


@given(st.binary(max_size=200))
def test_any_bytes_give_settings_or_misconfigured(data):
    for read in (lambda: config.parse_settings([("c.toml", data)]), lambda: config.parse_policy(data, "s.toml")):
        said_by(read)


def test_settings_of_the_user_win_over_those_of_the_site():
    site = ("/etc/spoolq/config.toml", b'spool = "/site"\n[node]\ncpus = 8\nmem = "16G"\nresources = { gpu = 2 }\n')
    user = ("config.toml", b'\nspool = "~/mine"\n[node]\nname = "n1"\nresources = "lic:5,disk=0.5"\n')
    found = config.parse_settings([site, user])
    assert (found.spool, found.node_name, found.cpus, found.mem) == ("~/mine", "n1", 8000, 16384_000)
    assert found.resources == {"lic": 5000, "disk": 500}
    said = {setting.key: setting.origin for setting in found.in_force if setting.origin != "default"}
    assert said == {
        "spool": "config.toml:2",
        "node.name": "config.toml:4",
        "node.cpus": "/etc/spoolq/config.toml:3",
        "node.mem": "/etc/spoolq/config.toml:4",
        "node.resources": "config.toml:5",
    }


def test_no_settings_are_fine():
    assert config.parse_settings([]).spool is None
    assert config.parse_settings([("c.toml", b"")]).resources == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('spool = "relative"', "c.toml:1: spool: must be an absolute path, or one that starts with ~"),
        ('[node]\nname = "a/b"', "c.toml:2: name: 'a/b' is no name for a node (letters, digits, . _ -)"),
        (
            "[node]\nresources = { cpus = 1 }",
            "c.toml:2: resources: 'cpus' is no name for a resource (lower case; cpus and mem are keys of their own)",
        ),
        ("[nodes]", "c.toml:1: unknown key 'nodes' (did you mean node?)"),
        ("[node]\nspool = 1", "c.toml:2: unknown key 'spool' in [node]"),
    ],
)
def test_wrong_settings_are_explained(text, message):
    with pytest.raises(Misconfigured) as caught:
        config.parse_settings([("c.toml", text.encode())])
    assert str(caught.value) == message


@given(st.text(alphabet=st.characters(exclude_categories=("Cs",)), max_size=40))
def test_a_quoted_text_is_read_back_and_cannot_speak_to_a_terminal(text):
    quoted = toml.quote(text)
    assert toml.read_toml(f"x = {quoted}\n".encode(), "f")[0] == {"x": text}
    assert not any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in quoted)
