"""
The commands `eff` and `suggest`: what jobs used of what they asked for, and what to ask for.

Both read the history, newest first and only as far as needed, so they work for jobs long removed.
Invariant: changes nothing.
"""

from datetime import UTC, datetime
from typing import Any

from spoolq import advice, arguments, history, learn, past, report, selector
from spoolq.arguments import Command, Flag
from spoolq.errors import UsageError
from spoolq.history import Record
from spoolq.report import Column
from spoolq.resources import show_seconds

NEWEST = 20
DEEP = 2000  # attempts that `suggest` looks at

EFF = Command(
    "eff",
    "[JOB..]",
    "How much of what they asked for jobs used, and what would have done.",
    (
        Flag("newest", "n", "N", f"at most so many attempts, the newest; default {NEWEST}; or all"),
        *past.WHEN_FLAGS,
        *selector.FILTER_FLAGS,
    ),
    "job",
    "Memory is the most that one process held, or all together in a control group.\n"
    "Plain files: cat SPOOL/jobs/0/42/result.json",
)
SUGGEST = Command(
    "suggest",
    "[-- COMMAND..]",
    "What to ask for, from earlier runs of the same command; without a command, for all of yours.",
    (
        Flag("since", "", "TIME", "from runs that ended since: 2025-03-01, today, 2h, 3d (ago)"),
        Flag("user", "u", "USERS", "from runs of these users (me = you, all = everybody)", "user"),
    ),
    "",
    f"At least {learn.LEAST} runs that succeeded; numbers in names count as the same command.\n"
    "Example: spoolq sub $(spoolq suggest -- bwa mem) bwa mem ref.fa reads.fq",
)
COMMANDS = {c.name: c for c in (EFF, SUGGEST)}


def eff(argv: list[str]) -> int:
    """`eff [JOB..]`."""
    given = arguments.parse(EFF, argv)
    if given.has("help"):
        return arguments.show_help(EFF)
    spool = arguments.open_spool(given)
    wanted = past.conditions(given, spool, datetime.now(UTC))
    records = past.collect(spool, wanted, given.count("newest", NEWEST))
    records = [record for record in records if record.get("started")]
    if given.has("json"):
        arguments.print_json("efficiency", [as_json(record) for record in records])
    elif records:
        width, colour = arguments.style()
        print("\n".join(report.table(_EFF_COLUMNS, [_cells(record) for record in records], width, colour=colour)))
        for record in records if len(given.words) > 0 else ():
            for hint in advice.hints(record):
                print(f"job {_unit(record)}: next time {hint}")
    if not records:
        arguments.talk("no job has run and ended that fits")
    return 1 if given.words and not records else 0


_EFF_COLUMNS = [
    Column("ID", right=True),
    Column("NAME", least=8),
    Column("STATE", least=4),
    *(Column(title, right=True) for title in ("CPUS", "USED", "MEM MB", "USED", "TIME", "USED")),
    Column("NEXT TIME", least=9),
]


def _cells(record: Record) -> list[Any]:
    shares = advice.shares(record)
    limit = advice.number(record, "limit_s")
    asked = [advice.number(record, key) for key in ("cpus", "mem_mb")]
    cells = ["-" if amount is None else f"{amount:g}" for amount in asked]
    hints = " ".join(hint.partition(":")[0].partition(" (")[0] for hint in advice.hints(record))
    return [
        _unit(record), str(record.get("name") or "-"), str(record.get("state") or "?"),
        cells[0], report.share(shares["cpus"]), cells[1], report.share(shares["mem"]),
        show_seconds(limit) if limit else "-", report.share(shares["time"]), hints or "-",
    ]  # fmt: skip


def _unit(record: Record) -> str:
    number = history.task_of(record)
    return str(record["id"]) if number < 0 else f"{record['id']}_{number}"


def as_json(record: Record) -> dict[str, Any]:
    """One attempt for programs."""
    keys = ("id", "attempt", "name", "user", "state", "cpus", "mem_mb", "limit_s", "wall_s", "max_rss_kb")
    hints = advice.hints(record)
    return {key: record.get(key) for key in keys} | {"share": advice.shares(record), "next_time": hints}


def suggest(argv: list[str]) -> int:
    """`suggest [-- COMMAND..]`."""
    given = arguments.parse(SUGGEST, argv)
    if given.has("help"):
        return arguments.show_help(SUGGEST)
    name = learn.signature(given.words) if given.words else ""
    if given.words and not name:
        raise UsageError("suggest: names no command (example: spoolq suggest -- bwa mem)")
    spool = arguments.open_spool(given)
    given.values.setdefault("user", ["me"])
    wanted = past.conditions(given, spool, datetime.now(UTC), words=[])
    found = advice.rows(past.collect(spool, wanted, DEEP))
    if name:
        found = [row for row in found if name in (row.command, row.command.removeprefix("script "))]
    if given.has("json"):
        arguments.print_json("suggestion", [_row_json(row) for row in found])
    elif name:
        known = next((row.estimate for row in found if row.estimate), None)
        if known:
            print(advice.options(known))
        else:
            runs = sum(row.runs for row in found)
            arguments.complain(f"{name}: {runs} runs that succeeded; {learn.LEAST} are needed to tell")
        return 0 if known else 1
    elif found:
        width, colour = arguments.style()
        table = [[row.command, str(row.runs), str(row.failed), *_asked(row), _ask(row)] for row in found]
        print("\n".join(report.table(_SUGGEST_COLUMNS, table, width, colour=colour)))
    else:
        arguments.talk("nothing of yours has run here yet")
    return 0


_SUGGEST_COLUMNS = [
    Column("COMMAND", least=12),
    *(Column(title, right=True) for title in ("RUNS", "NOT OK", "CPUS", "MEM MB")),
    Column("ASK FOR", least=10),
]


def _asked(row: advice.Row) -> list[str]:
    return ["-" if amount is None else f"{amount:g}" for amount in (row.asked_cpus, row.asked_mb)]


def _ask(row: advice.Row) -> str:
    return advice.options(row.estimate) if row.estimate else f"(known after {learn.LEAST} runs)"


def _row_json(row: advice.Row) -> dict[str, Any]:
    known = row.estimate
    facts = {"command": row.command, "runs": row.runs, "failed": row.failed}
    facts |= {"asked_cpus": row.asked_cpus, "asked_mem_mb": row.asked_mb, "options": None}
    if known:
        facts |= {"cpus": known.cpus, "mem_mb": known.mem_mb, "time_s": known.time_s, "options": advice.options(known)}
    return facts
