"""Which spool a command means."""

import os

import pytest

from spoolq import where
from spoolq.config import new_spool
from spoolq.errors import Misconfigured
from spoolq.spool import initialise


@pytest.fixture(autouse=True)
def user(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.delenv("SPOOLQ_DIR", raising=False)
    monkeypatch.setattr(where, "SITE", str(tmp_path / "site.toml"))
    (tmp_path / "user").mkdir()
    return tmp_path / "user"


def make(path):
    initialise(str(path), new_spool("11111111-2222-3333-4444-555555555555", "x"))
    return str(path)


def configure(user, spool):
    file = user / ".config" / "spoolq" / "config.toml"
    file.parent.mkdir(parents=True)
    file.write_text(f'spool = "{spool}"\n')
    return str(file)


def test_the_flag_wins_over_the_environment_and_that_over_the_configuration(tmp_path, user, monkeypatch):
    configure(user, "/configured")
    monkeypatch.setenv("SPOOLQ_DIR", "/named")

    assert where.locate("/flag") == ("/flag", "--spool")
    assert where.locate() == ("/named", "$SPOOLQ_DIR")
    monkeypatch.delenv("SPOOLQ_DIR")
    assert where.locate()[0] == "/configured"


def test_the_origin_of_a_configured_spool_is_its_file_and_line(user):
    file = configure(user, "/configured")

    assert f"{file}:1" == where.locate()[1]


def test_the_users_configuration_wins_over_the_sites(tmp_path, user):
    (tmp_path / "site.toml").write_text('spool = "/of/the/site"\n')
    assert where.locate()[0] == "/of/the/site"

    configure(user, "/of/the/user")
    assert where.locate()[0] == "/of/the/user"


def test_relative_paths_and_tildes_become_absolute(user, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    assert str(tmp_path / "here") == where.locate("here")[0]
    assert str(user / "there") == where.locate("~/there")[0]


def test_the_default_spool_is_made_private_by_those_who_submit(user, capsys):
    found = where.find(make=True)

    assert str(user / ".spoolq") == found.spool.root
    assert os.stat(found.spool.root).st_mode & 0o777 == 0o700
    assert "~/.spoolq" in capsys.readouterr().err
    assert found.policy.min_free_mb == 100
    where.find()
    assert capsys.readouterr().err == ""


def test_others_are_told_how_to_make_it(user):
    with pytest.raises(Misconfigured, match="spoolq sub") as error:
        where.find()

    assert error.value.exit_code == 78
    assert not (user / ".spoolq").exists()


def test_a_spool_that_was_named_is_never_made(tmp_path, monkeypatch):
    monkeypatch.setenv("SPOOLQ_DIR", str(tmp_path / "not-mounted"))

    with pytest.raises(Misconfigured, match="not mounted"):
        where.find(make=True)
    assert not (tmp_path / "not-mounted").exists()


def test_a_directory_with_something_else_in_it_does_not_become_a_spool(user):
    (user / ".spoolq").mkdir()
    (user / ".spoolq" / "precious").write_text("")

    with pytest.raises(Misconfigured, match="not empty"):
        where.find(make=True)


def test_a_half_made_default_spool_is_finished(user):
    (user / ".spoolq").mkdir()

    assert where.find(make=True).policy.name == "default"


def test_settings_of_the_node(tmp_path, user):
    (tmp_path / "site.toml").write_text('[node]\nname = "n7"\n')

    found = where.find(make(tmp_path / "spool"))
    assert found.setting("node.name") == "n7"
    assert found.setting("spool") is None


def test_a_wrong_configuration_names_the_file(tmp_path, user):
    file = configure(user, "/x")
    with open(file, "a") as stream:
        stream.write("spol = 1\n")

    with pytest.raises(Misconfigured, match="config.toml"):
        where.locate()
    assert where.locate("/flag")[0] == "/flag"  # what is not asked is not read


def test_a_configuration_that_cannot_be_read_is_an_error(user):
    os.makedirs(user / ".config" / "spoolq" / "config.toml")

    with pytest.raises(Misconfigured):
        where.locate()


def test_a_wrong_policy_is_found_when_it_is_needed(tmp_path):
    root = make(tmp_path / "spool")
    with open(f"{root}/spool.toml", "w") as stream:
        stream.write('format = 1\nuuid = "u"\nname = "x"\n[limits]\nmin_fre_mb = 3\n')

    found = where.find(root)
    with pytest.raises(Misconfigured, match="min_free_mb"):
        _ = found.policy


def test_paths_are_shown_short(user):
    assert where.show(str(user / ".spoolq")) == "~/.spoolq"
    assert where.show("/elsewhere") == "/elsewhere"
