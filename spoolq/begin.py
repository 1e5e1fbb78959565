"""
Begin times: from what people write to a moment, and that moment as a fact of a waiting entry's name.

A duration (`now+2h`) or a time of the day is made absolute when the job is submitted; what is kept is
seconds since the epoch, `B=1763740800`, which needs no time zone. Whoever looks into held/ compares it
with the clock of its own machine: the one place where clocks of two machines meet, since a person who
says four o'clock means the clock on the wall. A clock that is wrong by a minute begins a job a minute off.
Nothing here looks at a clock: now is an argument.
"""

import re

from spoolq.entry import BEGINS, IN_LINE, Entry
from spoolq.errors import UsageError
from spoolq.resources import parse_seconds, show_seconds

HELD = "HB"
EXAMPLES = "16:00, tomorrow, 2026-12-24T18:30, now+2h"
MOST = 10**11  # s: the year 5138
_CLOCK = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)(?::([0-5]\d))?")
_DAYS = {"today": 0, "tomorrow": 1}
_HOURS = {"midnight": "0:00", "noon": "12:00"}


def moment(text: str, now: float) -> int:
    """
    Seconds since the epoch from `now+2h`, `16:00`, `tomorrow`, `tomorrow 6:30`, `noon`, `2026-12-24T18:30`.

    A time of the day without a day is the next one; where no zone is said, this machine's counts.

    Raises:
        UsageError: it is no time.
    """
    words = text.strip().lower()
    if words.startswith("now"):
        return int(now) + _after(text, words[3:].strip())
    found = _of_day(words, now) or _iso(text)
    if found is None or not 0 <= found < MOST:
        raise UsageError(f"begin: {text[:40]!r} is no time (examples: {EXAMPLES})")
    return found


def _after(text: str, rest: str) -> int:
    if not rest:
        return 0
    span = rest[1:].strip()
    if rest[0] != "+" or not span or span.isdigit():
        # elsewhere a bare number means seconds, here minutes: nobody should have to guess
        raise UsageError(f"begin: {text[:40]!r}: say now+90s, now+30m, now+2h or now+1d")
    return parse_seconds(span, "begin") or 0


def _of_day(words: str, now: float) -> int | None:
    from datetime import datetime, timedelta

    day, _, clock = words.partition(" ")
    if day not in _DAYS:
        day, clock = "", words
    match = _CLOCK.fullmatch(_HOURS.get(clock.strip(), clock.strip() or "0:00"))
    if not match or not words:
        return None
    here = datetime.fromtimestamp(now)  # the zone of who says it
    hour, minute, second = (int(part or 0) for part in match.groups())
    found = here.replace(hour=hour, minute=minute, second=second, microsecond=0) + timedelta(days=_DAYS.get(day, 0))
    if not day and found <= here:
        found += timedelta(days=1)
    return int(found.timestamp())


def _iso(text: str) -> int | None:
    from datetime import datetime

    try:
        return int(datetime.fromisoformat(text.strip().upper().replace(" ", "T", 1)).timestamp())
    except (ValueError, OverflowError, OSError):
        return None


def resolved(text: str, now: float) -> str:
    """The moment as the job file keeps it, `2026-12-24T18:30:00Z`; empty if it has come."""
    from datetime import UTC, datetime

    when = moment(text, now)
    return datetime.fromtimestamp(when, UTC).isoformat()[:19] + "Z" if when > now else ""


def begins(entry: Entry) -> int | None:
    """When a waiting job may begin, s since the epoch; None if at any time."""
    for fact in entry.other:
        if fact.startswith(BEGINS) and fact[2:].isdigit() and len(fact) < 14:
            return int(fact[2:])
    return None


def next_hold(entry: Entry, now: float) -> str:
    """What still holds a job that is let go: its time, if that is ahead and not what it is released from."""
    when = begins(entry)
    return HELD if entry.held != HELD and when is not None and when > now else ""


def beginning(entry: Entry, when: int | None) -> tuple[str, ...]:
    """The `other` facts of the entry with another begin time, or none."""
    rest = tuple(fact for fact in entry.other if not fact.startswith(BEGINS))
    return rest if when is None else (*rest, *fact(when))


def fact(when: int) -> tuple[str, ...]:
    """It, in an entry's name."""
    return (f"{BEGINS}{when}",)


def since(when: int) -> tuple[str, ...]:
    """The fact that a job is in line since then, where jobs age (see `fair`)."""
    return (f"{IN_LINE}{when}",)


def words(when: int, now: float) -> str:
    """For people: `2026-12-24 18:30:00, in 1:59:30`, in this machine's zone."""
    from datetime import datetime

    text = str(datetime.fromtimestamp(when))  # for who reads it here
    return f"{text}, in {show_seconds(when - now)}" if when > now else f"{text}, which has come"
