"""
Constraints: which nodes a job may run on by their labels, as in `-C 'arch==x86_64 and (ssd or mem>=64G)'`.

A language of its own with nothing in it but comparisons, so what a user writes can be looked at on any
machine and does nothing there. `and or not` (also `& | !`), parentheses, `== != < <= > >=`, `in (a, b)`,
`not in`, and a label alone, which asks whether the node has it. On the right stands a value, quoted if it has
blanks; with `* ? [` it is a pattern. A label's own type says how it is compared: numbers as numbers (64G is
65536, as for --mem), texts letter by letter and for `<` as versions (6.10 after 6.9), true and false by name.
What cannot be answered, as a comparison with a label that the node lacks, is neither true nor false, and
counts as no match if the rest leaves it open: the three-valued logic of SQL and of HTCondor's ClassAds.
Invariant: nothing that a user or a site writes raises anything but UsageError, and that only when it is read.
"""

import functools
import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from spoolq.errors import UsageError
from spoolq.resources import CPUS, MEM, UNIT, Amounts, parse_mb

Label = str | int | float | bool
Labels = Mapping[str, Label]

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,39}")
OWN = ("arch", "os", "kernel", "host", "node", CPUS, MEM)  # labels that every node says of itself
MOST = 1000  # characters
DEEPEST = 40  # parentheses in each other

_TOKEN = re.compile(
    r"""(?P<sign>==|!=|<=|>=|&&|\|\||[=<>()\[\],&|!])|(?P<quoted>'[^']*'|"[^"]*")|(?P<word>[^\s()\[\],=!<>&|'"]+)"""
)
_AS_WORD = {"&": "and", "&&": "and", "|": "or", "||": "or", "!": "not"}
_COMPARE = ("==", "!=", "<", "<=", ">", ">=")
_CLOSING = {"(": ")", "[": "]"}
_VERSION = re.compile(r"\d+(?:\.\d+)*")
_TRUTH = {"true": True, "false": False}


class Token(NamedTuple):
    """A piece of the text: `kind` is sign, quoted, word or end; `at` is its place, from 1."""

    kind: str
    text: str
    at: int


class Answer(NamedTuple):
    """True, False or None for not to be told; and what on the node makes it so, in words."""

    truth: bool | None
    words: str


class Has(NamedTuple):
    """A label alone."""

    label: str

    def ask(self, labels: Labels) -> Answer:
        """True unless the node lacks it, or says false, 0 or nothing."""
        if self.label not in labels:
            return Answer(False, f"there is no label {self.label}")
        return Answer(bool(labels[self.label]), _is(self.label, labels))


class Compare(NamedTuple):
    """A label and values: `in` and `==` are true for any of them."""

    label: str
    sign: str
    values: tuple[str, ...]

    def ask(self, labels: Labels) -> Answer:
        """See the module."""
        if self.label not in labels:
            return Answer(None, f"there is no label {self.label}")
        value = labels[self.label]
        found = [_compare(value, self.sign, text) for text in self.values]
        problem = next((answer for answer in found if isinstance(answer, str)), "")
        if True in found:
            return Answer(True, _is(self.label, labels))
        return Answer(None if problem else False, problem or _is(self.label, labels))


class Not(NamedTuple):
    """The contrary."""

    part: "Part"

    def ask(self, labels: Labels) -> Answer:
        """What cannot be told cannot be told."""
        truth, words = self.part.ask(labels)
        return Answer(None if truth is None else not truth, words)


class Both(NamedTuple):
    """`decisive` decides alone: False for `and`, True for `or`."""

    decisive: bool
    parts: tuple["Part", ...]

    def ask(self, labels: Labels) -> Answer:
        """Kleene's tables."""
        found = [part.ask(labels) for part in self.parts]
        for truth in (self.decisive, None, not self.decisive):
            words = [answer.words for answer in found if answer.truth is truth]
            if words:
                # one part is enough for what is decisive, and for the rest all are needed
                return Answer(truth, words[0] if truth is self.decisive else ", ".join(dict.fromkeys(words)))
        raise AssertionError


Part = Has | Compare | Not | Both


def mismatch(text: str, labels: Labels) -> str:
    """
    Why a node with these labels does not satisfy a constraint, in words; empty if it does.

    Never raises: a text that cannot be read, as by hand in a job file, matches nothing and says why.
    """
    try:
        truth, words = parse(text).ask(labels)
    except UsageError as error:
        return str(error)
    return "" if truth else words


@functools.lru_cache(maxsize=256)
def parse(text: str) -> Part:
    """The expression; UsageError with the place of what is wrong."""
    if len(text) > MOST:
        raise UsageError(f"constraint: {len(text)} characters; at most {MOST}")
    if not text.isprintable():
        raise UsageError("constraint: holds a character that cannot be printed")
    reader = _Reader(text)
    found = reader.either()
    if reader.next.kind != "end":
        raise reader.wrong("expected and, or, or the end")
    return found


class _Reader:
    """Recursive descent with one token of look-ahead."""

    def __init__(self, text: str) -> None:
        self.text, self.place, self.deep = text, 0, 0
        self.next = self._read()

    def _read(self) -> Token:
        rest = self.text[self.place :]
        at = self.place + len(rest) - len(rest.lstrip()) + 1
        if at > len(self.text):
            return Token("end", "", at)
        match = _TOKEN.match(self.text, at - 1)
        if not match:
            raise self._error(at, f"the quote {self.text[at - 1]} is not closed")
        self.place = match.end()
        return Token(str(match.lastgroup), match[0], at)

    def take(self) -> Token:
        """The next token, and look at the one after it."""
        taken, self.next = self.next, self._read()
        return taken

    def taken(self, word: str) -> bool:
        """Whether the next token is this operator; if so it is taken."""
        sign = self.next.kind != "quoted" and _AS_WORD.get(self.next.text, self.next.text)
        if sign == word:
            self.take()
        return sign == word

    def wrong(self, expected: str) -> UsageError:
        """The error about the next token."""
        found = "it ends" if self.next.kind == "end" else f"found {self.next.text!r}"
        return self._error(self.next.at, f"{expected}; {found}")

    def _error(self, at: int, what: str) -> UsageError:
        return UsageError(f"constraint: {self.text!r}: character {at}: {what} (example: arch==x86_64 and ssd)")

    def either(self) -> Part:
        """A or B or .."""
        parts = [self.all()]
        while self.taken("or"):
            parts.append(self.all())
        return parts[0] if len(parts) == 1 else Both(True, tuple(parts))

    def all(self) -> Part:
        """A and B and .."""
        parts = [self.single()]
        while self.taken("and"):
            parts.append(self.single())
        return parts[0] if len(parts) == 1 else Both(False, tuple(parts))

    def single(self) -> Part:
        """`not` .., parentheses, or one question."""
        self.deep += 1
        if self.deep > DEEPEST:
            raise self._error(self.next.at, f"more than {DEEPEST} levels")
        try:
            if self.taken("not"):
                return Not(self.single())
            if self.taken("("):
                inner = self.either()
                if not self.taken(")"):
                    raise self.wrong("expected )")
                return inner
            return self.question()
        finally:
            self.deep -= 1

    def question(self) -> Part:
        """A label, perhaps compared."""
        if self.next.kind != "word" or not NAME.fullmatch(self.next.text) or self._reserved():
            raise self.wrong("expected a label")
        label = self.take().text
        if self.next.kind == "sign" and self.next.text in _COMPARE:
            return Compare(label, self.take().text, (self.value(),))
        if self.next.text == "=" and self.next.kind == "sign":
            raise self.wrong("= compares nothing, == does")
        if self.taken("in"):
            return Compare(label, "==", self.values())
        before = self.next
        if before.text == "not" and self.taken("not"):
            if not self.taken("in"):
                raise self._error(before.at, "expected and, or, or the end; found 'not'")
            return Not(Compare(label, "==", self.values()))
        return Has(label)

    def value(self) -> str:
        """A word, or what stands in quotes."""
        if self.next.kind == "quoted":
            return self.take().text[1:-1]
        if self.next.kind != "word" or self._reserved():
            raise self.wrong("expected a value")
        return self.take().text

    def values(self) -> tuple[str, ...]:
        """(a, b, c)."""
        closing = _CLOSING.get(self.next.text if self.next.kind == "sign" else "")
        if not closing:
            raise self.wrong("expected a list in parentheses")
        self.take()
        found = [self.value()]
        while self.taken(","):
            found.append(self.value())
        if not self.taken(closing):
            raise self.wrong(f"expected , or {closing}")
        return tuple(found)

    def _reserved(self) -> bool:
        return self.next.kind == "word" and self.next.text in ("and", "or", "not", "in")


def _compare(value: Label, sign: str, text: str) -> bool | str:
    """The answer, or why there is none."""
    if isinstance(value, bool):
        if text not in _TRUTH or sign not in ("==", "!="):
            return f"a label that is {_shown(value)} can only be == or != true or false, not {sign} {text}"
        return (value is _TRUTH[text]) == (sign == "==")
    if isinstance(value, int | float):
        try:
            return _ordered(round(value * UNIT), sign, parse_mb(text))
        except (UsageError, OverflowError, ValueError):  # infinite, or no number at all
            return f"{_shown(value)} is a number, and {text!r} is none"
    if sign in ("==", "!="):
        return fnmatchcase(value, text) == (sign == "==")
    mine, other = _VERSION.match(value), _VERSION.match(text)
    if not mine or not other:
        return f"{value!r} and {text!r} are no versions to compare by {sign}"
    return _ordered(_parts(mine[0]), sign, _parts(other[0]))


def _parts(version: str) -> tuple[int, ...]:
    # 6.1 and 6.1.0 are the same version
    parts = [int(part[:18]) for part in version.split(".")]
    while parts and not parts[-1]:
        parts.pop()
    return tuple(parts)


def _ordered(left: Any, sign: str, right: Any) -> bool:
    less, equal = bool(left < right), bool(left == right)
    match sign:
        case "==" | "!=":
            return equal == (sign == "==")
        case "<" | "<=":
            return less or (equal and sign == "<=")
        case _:
            return not less and (not equal or sign == ">=")


def _is(label: str, labels: Labels) -> str:
    return f"{label} is {_shown(labels[label])}"


def _shown(value: Label) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


# --- labels


def labels_of(node: str, capacity: Amounts, said: Labels) -> dict[str, Label]:
    """
    All labels of a node: what it has to lend, in whole figures, its name, and what it says besides.

    Args:
        said: of the machine (arch, os, ..) and of the site; they win over the names of resources.
    """
    lent: dict[str, Label] = {name: _number(amount) for name, amount in capacity.items() if amount}
    return {**lent, **said, "node": node, CPUS: lent.get(CPUS, 0), MEM: lent.get(MEM, 0)}


def _number(amount: int) -> int | float:
    return amount // UNIT if amount % UNIT == 0 else amount / UNIT


def sound(labels: object) -> dict[str, Label]:
    """What of a node's own words are labels; anybody may have written them."""
    if not isinstance(labels, Mapping):
        return {}
    return {name: value for name, value in labels.items() if isinstance(value, str | int | float)}


def parse_label(text: str) -> dict[str, Label]:
    """`ssd` is true, `old=false` false, `disk=2000` a number, `rack=b4` a text; UsageError."""
    name, equals, value = text.strip().partition("=")
    if not equals or value in _TRUTH:
        return check_labels({name: _TRUTH[value or "true"]})
    return check_labels({name: int(value) if re.fullmatch(r"[0-9]{1,15}", value) else value})


def check_labels(labels: object) -> dict[str, Label]:
    """A site's labels; UsageError for what is none, or what nodes say themselves."""
    if not isinstance(labels, Mapping):
        raise UsageError('must be a table (example: { ssd = true, rack = "b4", disk = 2000 })')
    for name, value in labels.items():
        if not NAME.fullmatch(name) or name in ("and", "or", "not", "in"):
            raise UsageError(f"{name[:60]!r} is no name for a label (letters, digits, _ . - after a letter)")
        if name in OWN:
            raise UsageError(f"{name} is said by each node itself; choose another name")
        if not isinstance(value, str | int | float) or not str(value).isprintable() or len(str(value)) > 200:
            raise UsageError(f"{name}: must be true, false, a number or a string of at most 200 characters")
    return dict(labels)
