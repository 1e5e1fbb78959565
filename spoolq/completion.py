"""
The command `completion`: a static script for bash, zsh or fish, made from the tables of all commands.

The script holds every command and option as words, so completing costs no start of Python; only job
ids and node names are asked for, with one `spoolq stat` or a look at the directory of the nodes.
"""

import sys
from importlib import import_module

from spoolq import arguments, options
from spoolq.arguments import Command, Flag
from spoolq.errors import UsageError

COMPLETION = Command(
    "completion",
    "SHELL",
    "Print a completion script for bash, zsh or fish.",
    (),
    "bash zsh fish",
    "bash: source <(spoolq completion bash)      or into /etc/bash_completion.d/spoolq\n"
    "zsh:  source <(spoolq completion zsh)\n"
    "fish: spoolq completion fish > ~/.config/fish/completions/spoolq.fish",
)
_WITHIN = {"look": ("show", "explain", "past"), "steer": ("amend",), "doctor": ("establish", "completion")}
_STATES = (
    "pending held running suspended completing completed failed cancelled timeout out_of_memory node_fail live ended"
)


def completion(argv: list[str]) -> int:
    """`completion SHELL`."""
    given = arguments.parse(COMPLETION, argv)
    if given.has("help"):
        return arguments.show_help(COMPLETION)
    makers = {"bash": bash, "zsh": zsh, "fish": fish}
    if len(given.words) != 1 or given.words[0] not in makers:
        raise UsageError("completion: for which shell? bash, zsh or fish")
    sys.stdout.write(makers[given.words[0]](gather()))
    return 0


def gather() -> list[Command]:
    """Every command with its options and summary; aliases have those of what they stand for."""
    from spoolq.__main__ import ALIASES, COMMANDS

    found: dict[str, Command] = {}
    for room, _, _ in COMMANDS.values():
        for name in (room, *_WITHIN.get(room, ())):
            for value in vars(import_module(f"spoolq.{name}")).values():
                if isinstance(value, Command):
                    found[value.name] = value
    rows = []
    for name, (_, _, summary) in COMMANDS.items():
        known = found.get(name) or Command(name, "", summary, _submission() if name in ("sub", "run") else ())
        rows.append(known._replace(name=name, summary=summary))
    by_name = {row.name: row for row in rows}
    return rows + [by_name[words[0]]._replace(name=alias) for alias, words in ALIASES.items()]


def _submission() -> tuple[Flag, ...]:
    files = {"file": "file", "each-line": "file", "output": "file", "error": "file", "chdir": "directory"}
    values = {
        "open-mode": "append truncate",
        "output-mode": "spool local",
        "rerun": "never certain yes",
        "nodelist": "node",
        "exclude": "node",
    }
    own = {flag.name for flag in arguments.COMMON}
    return tuple(
        Flag(option.name, option.short, option.metavar, option.help, (files | values).get(option.name, ""))
        for option in options.OPTIONS
        if option.name not in own
    )


def _quote(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _choices(what: str) -> str:
    return _STATES if what == "state" else what if what not in ("job", "node", "user", "file", "directory") else ""


# --- bash

_BASH = """\
# completion of spoolq for bash; made by `spoolq completion bash`
_spoolq_jobs() {{ spoolq stat --json 2>/dev/null | grep -o '"id": *[0-9]*' | grep -o '[0-9]*$'; echo last; echo all; }}
_spoolq_nodes() {{ spoolq nodes 2>/dev/null | tail -n +2 | cut -d' ' -f1; }}
_spoolq() {{
    local cur prev command="" i flags="" words=""
    cur="${{COMP_WORDS[COMP_CWORD]}}"
    prev="${{COMP_WORDS[COMP_CWORD-1]}}"
    for ((i = 1; i < COMP_CWORD; i++)); do
        case "${{COMP_WORDS[i]}}" in
            -S|--spool) ((i++)) ;;
            -*) ;;
            *) command="${{COMP_WORDS[i]}}"; break ;;
        esac
    done
    if [[ -z "$command" ]]; then
        case "$prev" in -S|--spool) COMPREPLY=($(compgen -d -- "$cur")); return ;; esac
        COMPREPLY=($(compgen -W "{commands} --spool --version --help" -- "$cur"))
        return
    fi
    case "$command:$prev" in
{values}
    esac
    case "$command" in
{cases}
    esac
    if [[ "$cur" == -* ]]; then
        COMPREPLY=($(compgen -W "$flags" -- "$cur"))
    elif [[ "$words" == COMMAND ]]; then
        COMPREPLY=($(compgen -c -f -- "$cur"))
    elif [[ "$words" == DIRECTORY ]]; then
        COMPREPLY=($(compgen -d -- "$cur"))
    else
        COMPREPLY=($(compgen -W "$words" -- "$cur"))
    fi
}}
complete -o default -F _spoolq spoolq
"""


def bash(commands: list[Command]) -> str:
    """The script for bash."""
    cases, values = [], []
    for command in commands:
        flags = " ".join(f"--{flag.name}" for flag in arguments.flags_of(command))
        cases.append(f"        {command.name}) flags={_quote(flags)}; words={_bash_words(command)} ;;")
        for flag in arguments.flags_of(command):
            if flag.metavar and flag.complete:
                names = [f"{command.name}:--{flag.name}", *([f"{command.name}:-{flag.short}"] if flag.short else [])]
                values.append(f"        {'|'.join(names)}) {_bash_value(flag.complete)}; return ;;")
    text = " ".join(command.name for command in commands)
    return _BASH.format(commands=text, cases="\n".join(cases), values="\n".join(values))


def _bash_words(command: Command) -> str:
    if command.name in ("sub", "run"):
        return "COMMAND"
    special = {"job": '"$(_spoolq_jobs)"', "node": '"$(_spoolq_nodes)"', "directory": "DIRECTORY"}
    return special.get(command.words) or _quote(command.words)


def _bash_value(what: str) -> str:
    special = {
        "file": 'compgen -f -- "$cur"',
        "directory": 'compgen -d -- "$cur"',
        "user": 'compgen -u -- "$cur"',
        "job": 'compgen -W "$(_spoolq_jobs)" -- "$cur"',
        "node": 'compgen -W "$(_spoolq_nodes)" -- "$cur"',
    }
    offered = special.get(what) or f'compgen -W {_quote(_choices(what))} -- "$cur"'
    return f"COMPREPLY=($({offered}))"


# --- zsh


def zsh(commands: list[Command]) -> str:
    """The script for zsh: descriptions of commands and options, values as in bash."""
    lines = ["#compdef spoolq", "# completion of spoolq for zsh; made by `spoolq completion zsh`"]
    lines.append('_spoolq_jobs() { local -a ids; ids=(last all ${(f)"$(spoolq stat --json 2>/dev/null | '
                 "grep -o '\"id\": *[0-9]*' | grep -o '[0-9]*$')\"}); compadd -a ids }")  # fmt: skip
    lines.append('_spoolq_nodes() { local -a names; names=(${(f)"$(spoolq nodes 2>/dev/null | tail -n +2 | '
                 "cut -d' ' -f1)\"}); compadd -a names }")  # fmt: skip
    lines += ["_spoolq() {", "  local -a commands; commands=("]
    lines += [f"    {_quote(f'{c.name}:{c.summary}')}" for c in commands]
    lines += ["  )", "  if (( CURRENT == 2 )); then _describe command commands; return; fi"]
    lines += ["  local command=$words[2]; shift words; (( CURRENT-- ))", "  case $command in"]
    for command in commands:
        lines.append(f"    {command.name}) _arguments -s \\")
        for flag in arguments.flags_of(command):
            text = flag.help.replace("[", "(").replace("]", ")").replace(":", ";")
            value = f":{flag.metavar.replace(':', ' ')}:{_zsh_value(flag.complete)}" if flag.metavar else ""
            names = [f"--{flag.name}", *([f"-{flag.short}"] if flag.short else [])]
            lines += [f"      {_quote(f'*{name}[{text}]{value}')} \\" for name in names]
        lines.append(f"      {_quote('*:word:' + _zsh_words(command))} ;;")
    return "\n".join([*lines, "  esac", "}", "compdef _spoolq spoolq"]) + "\n"


def _zsh_words(command: Command) -> str:
    return "_normal" if command.name in ("sub", "run") else _zsh_value(command.words)


def _zsh_value(what: str) -> str:
    special = {"file": "_files", "directory": "_files -/", "user": "_users", "job": "_spoolq_jobs"}
    special |= {"node": "_spoolq_nodes", "": " "}
    return special.get(what) or f"({_choices(what)})"


# --- fish


def fish(commands: list[Command]) -> str:
    """The script for fish."""
    jobs = "(spoolq stat --json 2>/dev/null | string match -rag '\"id\": *([0-9]+)'; echo last; echo all)"
    nodes = "(spoolq nodes 2>/dev/null | tail -n +2 | cut -d' ' -f1)"
    special = {"job": jobs, "node": nodes, "user": "(__fish_complete_users)"}
    lines = ["# completion of spoolq for fish; made by `spoolq completion fish`", "complete -c spoolq -f"]
    for command in commands:
        lines.append(f"complete -c spoolq -n __fish_use_subcommand -a {command.name} -d {_quote(command.summary)}")
        within = f"complete -c spoolq -n '__fish_seen_subcommand_from {command.name}'"
        words = special.get(command.words) or _choices(command.words)
        if command.name in ("sub", "run"):
            words = "(__fish_complete_subcommand)"
        if words:
            lines.append(f"{within} -a {_quote(words)}")
        elif command.words == "directory":
            lines.append(f"{within} -F")
        for flag in arguments.flags_of(command):
            short = f" -s {flag.short}" if flag.short else ""
            value = ""
            if flag.metavar:
                offered = special.get(flag.complete) or _choices(flag.complete)
                value = " -r -F" if flag.complete in ("file", "directory") else " -x"
                value += f" -a {_quote(offered)}" if offered else ""
            lines.append(f"{within}{short} -l {flag.name}{value} -d {_quote(flag.help)}")
    return "\n".join(lines) + "\n"
