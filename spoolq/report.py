"""
From values to lines and JSON: what commands print.

Job names, commands, users and file names are other people's text; here, and only here, they become
something that a terminal may be given. One writer of plain aligned columns and no table library:
start-up is part of every command.
Invariants: no decision is made here; keys of JSON stay; no control character reaches a terminal, but
for the colours of `paint`; no line is wider than asked for.
"""

import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spoolq.begin import begins
from spoolq.entry import HELD, RERUN_WORDS, Entry, order
from spoolq.history import Record, efficiency
from spoolq.reason import Reason
from spoolq.resources import CPUS, MEM, UNIT, add, show_amount, show_mb, show_seconds
from spoolq.schedule import NodeView
from spoolq.state import State

FORMAT = 1  # of the JSON envelope; raised when a key changes its meaning or goes
CUT = "+"  # ends a cut text, as in sacct; one column in every character set
GAP = "  "
COLOURS = {"bold": 1, "dim": 2, "red": 31, "green": 32, "yellow": 33, "blue": 34, "magenta": 35, "cyan": 36}

# printable for Unicode, and invisible all the same: fillers, joiners, variation selectors
_INVISIBLE = {0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x3164, 0xFFA0, *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)}
_STATE_COLOURS = {
    State.RUNNING: "green",
    State.COMPLETING: "green",
    State.PENDING: "yellow",
    State.HELD: "dim",
    State.SUSPENDED: "magenta",
    State.COMPLETED: "dim",
    State.CANCELLED: "dim",
}
_NODE_COLOURS = {"up": "green", "alive": "green", "silent": "red", "dead": "red", "full": "red"}
_LEVEL_COLOURS = {"ok": "green", "warning": "yellow", "error": "red"}

Cell = str | tuple[str, str]  # a text, or a text and its colour


@dataclass(frozen=True, slots=True)
class Column:
    """A title; `right` aligned; narrowed down to `least` columns if the terminal is too small (0: never)."""

    title: str
    right: bool = False
    least: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRow:
    """
    One job as `stat` shows it; `name` and `user` where more is known than the entry says.

    `part` are the tasks of an array (`1-20,25`) for which one line stands.
    """

    entry: Entry
    state: State
    node: str = ""
    reason: Reason | None = None
    elapsed_s: float | None = None
    name: str = ""
    user: str = ""
    part: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRow:
    """One node as `nodes` shows it; `state` is a word, `load` of the whole machine, `beat_age_s` of its heartbeat."""

    view: NodeView
    state: str
    load: float | None = None
    beat_age_s: float | None = None


# --- text


def show(text: object, width: int | None = None) -> str:
    r"""
    A text that no terminal obeys: what is not visible becomes `\xNN` or `\uNNNN`.

    Args:
        text: bytes are read as UTF-8; bytes that are none, also in a str from the file system, become `\xNN`.
        width: terminal columns at most; cut after escaping, so that no escape is split.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", "surrogateescape")
    plain = str(text)
    # ASCII has no more to hide, and a mark that begins a text would join what stands before it
    if not plain.isascii() or not plain.isprintable():
        plain = "".join(_escaped(char) for char in plain)
        if plain and unicodedata.combining(plain[0]):
            plain = f"\\u{ord(plain[0]):04x}{plain[1:]}"
    return plain if width is None else cut(plain, width)


def _escaped(char: str) -> str:
    code = ord(char)
    if char.isprintable() and code not in _INVISIBLE:
        return char
    if 0xDC80 <= code <= 0xDCFF:
        code -= 0xDC00  # a byte that was no UTF-8
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def breadth(text: str) -> int:
    """The terminal columns that a shown text takes."""
    if text.isascii():
        return len(text)
    return sum(map(_breadth, text))


def _breadth(char: str) -> int:
    if unicodedata.category(char) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in ("W", "F") else 1


def cut(text: str, width: int) -> str:
    """A shown text in at most `width` columns; CUT at its end says that there was more."""
    if breadth(text) <= width:
        return text
    taken, room = 0, width - len(CUT)
    for number, char in enumerate(text):
        taken += _breadth(char)
        if taken > room:
            return text[:number] + CUT if room >= 0 else ""
    return text


def paint(text: str, colour: str, enabled: bool) -> str:
    """A shown text in a colour of COLOURS; unchanged if not enabled. The only source of escape sequences."""
    return f"\x1b[{COLOURS[colour]}m{text}\x1b[0m" if enabled and colour and text else text


def table(
    columns: Sequence[Column | str],
    rows: Iterable[Sequence[Cell]],
    width: int | None = None,
    *,
    header: bool = True,
    colour: bool = False,
) -> list[str]:
    """
    Aligned columns.

    Args:
        rows: m rows of as many cells as there are columns, not yet escaped.
        width: of the terminal, or None for as wide as it takes (a pipe).

    Returns:
        m lines and a header's.
    """
    heads = [column if isinstance(column, Column) else Column(column) for column in columns]
    plain = [[(cell, "") if isinstance(cell, str) else cell for cell in row] for row in rows]
    shown = [[(show(text), tint) for text, tint in row] for row in plain]
    if header:
        shown.insert(0, [(head.title, "bold") for head in heads])
    widths = [max((breadth(row[i][0]) for row in shown), default=0) for i in range(len(heads))]
    if width is not None:
        widths = _narrow(widths, [head.least for head in heads], width)
    lines = []
    for row in shown:
        cells = [_cell(*pair, room, head.right, colour) for pair, room, head in zip(row, widths, heads, strict=True)]
        # the blanks of a cell are outside its colour, so none is left at the end of a line
        lines.append(GAP.join(cell for cell, room in zip(cells, widths, strict=True) if room).rstrip(" "))
    return lines


def _cell(text: str, tint: str, room: int, right: bool, colour: bool) -> str:
    text = cut(text, room)
    blank = " " * (room - breadth(text))
    text = paint(text, tint, colour)
    return blank + text if right else text + blank


def _narrow(widths: list[int], least: list[int], width: int) -> list[int]:
    """Widths that fit: narrow the widest that may be, the last column after the others, then leave out at the right."""
    over = sum(widths) + len(GAP) * (len(widths) - 1) - width
    for able in ([*range(len(widths) - 1)], [len(widths) - 1]):
        while over > 0 and (some := [i for i in able if least[i] and widths[i] > least[i]]):
            widths[max(some, key=lambda i: (widths[i], i))] -= 1
            over -= 1
    left = width
    for i, wanted in enumerate(widths):
        widths[i] = max(0, min(wanted, left))
        left -= widths[i] + len(GAP)
    return widths


# --- JSON


def to_json(kind: str, rows: object) -> str:
    """`{"format": 1, "kind": "jobs", "jobs": [...]}`, a line of ASCII in which nothing can act on a terminal."""
    assert kind not in ("format", "kind")
    whole = {"format": FORMAT, "kind": kind, kind: rows}
    try:
        return json.dumps(whole, allow_nan=False)  # which escapes all but printable ASCII
    except ValueError:  # a number that is none in JSON, from a file that somebody else wrote
        return json.dumps(_finite(whole))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return value if not isinstance(value, float) or abs(value) < float("inf") else None


def _columns(text: str) -> tuple[Column, ...]:
    """Columns from their titles: `ID>` is right aligned, `NAME~8` may be narrowed to 8."""
    parts = [word.rstrip(">").partition("~") for word in text.split()]
    return tuple(Column(p[0], word[-1] == ">", int(p[2] or 0)) for p, word in zip(parts, text.split(), strict=True))


# --- jobs

JOB_COLUMNS = _columns("ID> NAME~12 USER~8 ST CPUS> MEM> TIME/LIMIT> NODE/REASON~16")
_PLACE = {State.RUNNING: 0, State.SUSPENDED: 0, State.COMPLETING: 1, State.PENDING: 2, State.HELD: 3}


def arranged(rows: Iterable[JobRow]) -> list[JobRow]:
    """What runs, by node; what waits, in the order in which it starts; what is held; what has ended."""

    def place(row: JobRow) -> tuple[int, str, int, int, int]:
        rank = row.entry.rank if row.state in (State.PENDING, State.HELD) else 0
        node = row.node if row.state in (State.RUNNING, State.SUSPENDED, State.COMPLETING) else ""
        return _PLACE.get(row.state, 4), node, rank, *order(row.entry)[1:]

    return sorted(rows, key=place)


def job_lines(
    rows: Iterable[JobRow], width: int | None = None, *, header: bool = True, colour: bool = False
) -> list[str]:
    """The table of `stat`: what runs where, what waits and why."""
    return table(JOB_COLUMNS, [_job_cells(row) for row in arranged(rows)], width, header=header, colour=colour)


def _job_cells(row: JobRow) -> list[Cell]:
    entry, wants = row.entry, row.entry.wants
    elapsed = "-" if row.elapsed_s is None else show_seconds(row.elapsed_s)
    limit = "-" if entry.limit_s is None else show_seconds(entry.limit_s)
    extra = "".join(f" {name}:{show_amount(amount)}" for name, amount in wants.items() if name not in (CPUS, MEM))
    where = row.node or ("" if row.reason is None else f"({row.reason})")
    return [
        f"{entry.id}_[{row.part}]" if row.part else str(entry.unit),
        row.name or entry.label or "-",
        row.user or entry.owner or "-",
        (row.state.value, _STATE_COLOURS.get(row.state, "red")),
        show_amount(wants.get(CPUS, 0)) + extra,
        show_mb(wants.get(MEM, 0)),
        f"{elapsed}/{limit}",
        where or entry.ending or "-",
    ]


def job_json(row: JobRow) -> dict[str, Any]:
    """One job for programs; these keys stay."""
    entry, wants = row.entry, row.entry.wants
    return {
        "id": entry.id,
        "attempt": entry.attempt,
        "chunk": entry.chunk[1:] or None,
        "name": row.name or entry.label,
        "user": row.user or entry.owner,
        "state": row.state.name,
        "reason": row.reason.word if row.reason else None,
        "reason_text": row.reason.text if row.reason else None,
        "node": row.node or None,
        "priority": entry.priority,
        "cpus": wants.get(CPUS, 0) / UNIT,
        "mem_mb": wants.get(MEM, 0) / UNIT,
        "gres": {name: amount / UNIT for name, amount in sorted(wants.items()) if name not in (CPUS, MEM)},
        "limit_s": entry.limit_s,
        "elapsed_s": row.elapsed_s,
        "rerun": RERUN_WORDS[entry.rerun],
        "held": HELD.get(entry.held),
        "begin": begins(entry),
        "ending": entry.ending,
    }


# --- nodes

NODE_COLUMNS = _columns("NAME~8 STATE CPUS> MEM> GRES~8 LOAD> JOBS> BEAT> NOTE~8")


def node_lines(
    rows: Iterable[NodeRow], width: int | None = None, *, header: bool = True, colour: bool = False
) -> list[str]:
    """The table of `nodes`: declared by jobs / total, and how long ago it was heard of."""
    cells: list[list[Cell]] = []
    for row in sorted(rows, key=lambda row: row.view.name):
        view, held = row.view, add(*row.view.held.values())
        cells.append(
            [
                view.name,
                (row.state, _NODE_COLOURS.get(row.state, "yellow")),
                f"{show_amount(held.get(CPUS, 0))}/{show_amount(view.capacity.get(CPUS, 0))}",
                f"{show_mb(held.get(MEM, 0)) if held.get(MEM) else 0}/{show_mb(view.capacity.get(MEM, 0))}",
                others(held, {name: size for name, size in view.capacity.items() if name not in view.pools}) or "-",
                "-" if row.load is None else f"{row.load:.2f}",
                str(len(view.held)),
                "-" if row.beat_age_s is None else f"{row.beat_age_s:.0f}s",
                view.note or "-",
            ]
        )
    return table(NODE_COLUMNS, cells, width, header=header, colour=colour)


def others(held: Mapping[str, int], capacity: Mapping[str, int]) -> str:
    """What there is beside cpus and memory, declared by jobs / total: `gpu 0.5/2, io 3/4`."""
    names = sorted(name for name in capacity if name not in (CPUS, MEM))
    return ", ".join(f"{name} {show_amount(held.get(name, 0))}/{show_amount(capacity[name])}" for name in names)


# --- history

HISTORY_COLUMNS = _columns("ID> ATT> NAME~8 USER~6 STATE~4 EXIT> WALL> CPU%> MEM%> NODE~6 ENDED~10")


def history_lines(
    records: Iterable[Record], width: int | None = None, *, header: bool = True, colour: bool = False
) -> list[str]:
    """The table of `hist`, in the order given."""
    return table(HISTORY_COLUMNS, [_record_cells(record) for record in records], width, header=header, colour=colour)


def _record_cells(record: Record) -> list[Cell]:
    cpu, mem = efficiency(record)
    state = str(record.get("state") or "?")
    known = State.__members__.get(state)
    wall = record.get("wall_s")
    code = f"sig {record['signal']}" if record.get("signal") else record.get("exit_code")
    taken = show_seconds(wall) if isinstance(wall, int | float) and 0 <= wall < 1e12 else "-"
    name, user, node, ended = (str(record.get(key) or "-") for key in ("name", "user", "node", "ended"))
    tinted = (state, _STATE_COLOURS.get(known, "red") if known else "")
    exit_code = "-" if code is None else str(code)
    part = record.get("chunk") if record.get("task") is None else record["task"]
    first: list[Cell] = [
        f"{record['id']}_{part}" if part is not None else str(record["id"]),
        str(record["attempt"]),
        name,
        user,
        tinted,
    ]
    return [*first, exit_code, taken, share(cpu), share(mem), node, ended]


def share(part: float | None) -> str:
    """`87%`, or `-` for what is not known."""
    return "-" if part is None else f"{100 * part:.0f}%"


# --- one job, doctor


def detail_lines(facts: Mapping[str, object], width: int | None = None) -> list[str]:
    """`key: value` lines, values aligned; None is `-`, a sequence is joined."""
    wide = max((breadth(show(key)) for key in facts), default=0) + 1
    lines = []
    for key, value in facts.items():
        if isinstance(value, list | tuple):
            text = " ".join(show(part) for part in value)
        else:
            text = "-" if value is None else show(value)
        head = show(key) + ":"
        line = f"{head}{' ' * (wide - breadth(head))} {text}".rstrip()
        lines.append(line if width is None else cut(line, width))
    return lines


def finding_lines(findings: Iterable[Sequence[str]], *, colour: bool = False) -> list[str]:
    """Findings of `doctor` (level, what, text, remedy or nothing), the remedy under each."""
    lines = []
    for level, what, text, *remedy in findings:
        word = paint(f"{show(level):<7}", _LEVEL_COLOURS.get(level, "red"), colour)
        lines.append(f"{word}  {show(what)}: {show(text)}")
        lines += [f"{'':7}  -> {show(part)}" for part in remedy if part]
    return lines
