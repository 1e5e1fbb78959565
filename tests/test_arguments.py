"""The small commands' lines, read by a table."""

import pytest

from spoolq import arguments
from spoolq.arguments import Command, Flag
from spoolq.errors import UsageError

TRY = Command(
    "try", "[X]", "Tries.", (Flag("signal", "s", "SIG", "a signal"), Flag("all", "a", "", "all")), "job", "Note."
)


def test_options_stand_anywhere_until_two_dashes():
    given = arguments.parse(TRY, ["42", "-s", "USR1", "--all", "--", "-x"])
    assert ["42", "-x"] == given.words
    assert "USR1" == given.last("signal")
    assert given.has("all")


@pytest.mark.parametrize("words", [["--signal=9"], ["--signal", "9"], ["--sig", "9"], ["-s9"], ["-s=9"], ["-as", "9"]])
def test_values_are_given_in_all_usual_ways(words):
    assert "9" == arguments.parse(TRY, words).last("signal")


@pytest.mark.parametrize("words", [["--nothing"], ["-z"], ["--signal"], ["-s"], ["--all=1"], ["--"[:1] + "-=x"]])
def test_what_is_not_in_the_table_is_refused(words):
    with pytest.raises(UsageError):
        arguments.parse(TRY, words)


def test_the_nearest_option_is_named():
    with pytest.raises(UsageError, match="did you mean --signal"):
        arguments.parse(TRY, ["--singal", "9"])


def test_numbers_are_checked():
    given = arguments.parse(TRY, ["-s", "all"])
    assert given.count("signal", 5) > 10**9
    assert 5 == given.count("all", 5)
    with pytest.raises(UsageError):
        arguments.parse(TRY, ["-s", "x"]).count("signal", 5)


def test_help_names_every_option():
    text = arguments.help_text(TRY)
    for word in ("usage: spoolq try [options] [X]", "-s, --signal SIG", "--json", "--spool", "Note."):
        assert word in text


def test_a_message_cannot_steer_a_terminal(capsys):
    arguments.complain("x\x1b[31m")
    assert "spoolq: x\\x1b[31m\n" == capsys.readouterr().err


def test_off_a_terminal_there_is_no_width_and_no_colour():
    assert (None, False) == arguments.style()
