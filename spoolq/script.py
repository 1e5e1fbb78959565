"""
Scripts that are jobs: their `#SPOOLQ` lines, their interpreter, and lines that need no shell.

Invariant: any bytes give options or a JobFileError that names the line.
"""

import re

from spoolq import options
from spoolq.errors import JobFileError, UsageError
from spoolq.options import BY_NAME, BY_SHORT, Pair
from spoolq.toml import line_at

MAX_SCRIPT = 1 << 20
SHELL = ("/bin/sh", "-c")
_BOM = b"\xef\xbb\xbf"
_DIRECTIVE = re.compile(rb"\s*(#SPOOLQ|#SBATCH|#\s+SPOOLQ\s+-)", re.IGNORECASE)
_SHEBANG = re.compile(rb"#![ \t]*([^ \t\r]+)[ \t]*(.*?)[ \t\r]*", re.DOTALL)
_BLANKS = re.compile(r"\s*")
_WORD = re.compile(r"""(?:[^\s"'\\]+|\\.|"[^"\\]*(?:\\.[^"\\]*)*"|'[^']*')+""", re.DOTALL)
_QUOTED = re.compile(r"""\\.|"[^"\\]*(?:\\.[^"\\]*)*"|'[^']*'""", re.DOTALL)
# Slurm's options that mean the same here -> ours; `one` is good with the value 1 alone
_SAME = "cpus-per-task mem time output error chdir hold gres gpus nodelist exclude export open-mode requeue no-requeue"
_SAME += " dependency kill-on-invalid-dep"
_SBATCH = {"job-name": "name", "nodes": "one", "ntasks": "one", "N": "one", "n": "one"}
_SBATCH |= {name: name for name in _SAME.split()} | {letter: BY_SHORT[letter].name for letter in "JctoeDHGwxd"}
# what the shell would change in a line, and words that only the shell can run
_PLAIN = re.compile(r"[\w@+,./: \t-]*")
_SHELL_WORDS = """
    . : alias bg bind break builtin caller case cd command compgen complete continue coproc declare dirs disown do done
    elif else enable esac eval exec exit export fc fg fi for function getopts hash help history if in jobs kill let
    local logout mapfile popd pushd pwd read readarray readonly return select set shift shopt source suspend then time
    times trap type typeset ulimit umask unalias unset until wait while
"""
_SHELL_ONLY = frozenset(_SHELL_WORDS.split())


def parse_script(data: bytes, file: str) -> tuple[list[Pair], list[str]]:
    """
    The options in a script's `#SPOOLQ` lines, each with its line, and warnings.

    They stand before the first line that is neither blank nor a comment. Without any, `#SBATCH`
    lines are read as far as they mean the same here; each that does not is a warning.

    Raises:
        JobFileError: larger than MAX_SCRIPT, a NUL byte, or a wrong directive.
    """
    if len(data) > MAX_SCRIPT:
        raise JobFileError(f"{len(data)} bytes; a script has at most {MAX_SCRIPT >> 10} KiB", file=file)
    if b"\0" in data:
        raise JobFileError("holds a NUL byte: no script", file=file, line=line_at(data, data.index(b"\0")))
    found: dict[bytes, list[tuple[int, bytes]]] = {b"SPOOLQ": [], b"SBATCH": []}
    warnings = ["has Windows line ends (remedy: dos2unix)"] if b"\r\n" in data else []
    header = True
    for number, raw in enumerate(data.removeprefix(_BOM).split(b"\n"), 1):
        header = header and raw.strip()[:1] in (b"", b"#")
        if not _DIRECTIVE.match(raw) or raw.split() == [b"#SPOOLQ", b"end"]:
            continue
        if raw[1:7] not in found or raw[7:8].strip():
            warnings.append(f"line {number}: looks like a directive and is none; write #SPOOLQ, then a blank")
        elif not header:
            warnings.append(f"line {number}: not read, since it comes after the first command")
        else:
            found[raw[1:7]].append((number, raw[7:]))
    if found[b"SPOOLQ"] and found[b"SBATCH"]:
        warnings.append("#SBATCH lines are not read, since there are #SPOOLQ lines")
    pairs: list[Pair] = []
    for number, raw in found[b"SPOOLQ"] or found[b"SBATCH"]:
        try:
            words = _shell_words(raw.decode())
            if found[b"SPOOLQ"]:
                got, _, rest = options.parse(words, (options.JOB,))
                if rest:
                    raise UsageError(f"{rest[0][:60]!r} is no option, and a directive holds nothing else")
            else:
                got = _foreign(words, f"line {number}: #SBATCH ", warnings)
            for name, value, _ in got:
                BY_NAME[name].parse(value)
                pairs.append(Pair(name, value, number))
        except UnicodeDecodeError:
            raise JobFileError("is not UTF-8", file=file, line=number) from None
        except UsageError as error:
            raise JobFileError(str(error), file=file, line=number) from None
    return pairs, warnings


def _shell_words(line: str) -> list[str]:
    words, at = [], 0
    while (match := _BLANKS.match(line, at)) and match.end() < len(line) and line[match.end()] != "#":
        word = _WORD.match(line, match.end())
        if not word or (word.end() < len(line) and not line[word.end()].isspace()):
            raise UsageError(f"a quote is not closed: {line.strip()[:60]!r}")
        words.append(_QUOTED.sub(lambda m: _unquote(m[0]), word[0]))
        at = word.end()
    return words


def _unquote(text: str) -> str:
    if text[0] == '"':
        return re.sub(r'\\(["\\$`])', r"\1", text[1:-1])
    return text[1:-1] if text[0] == "'" else text[1:]


def _foreign(words: list[str], place: str, warnings: list[str]) -> list[Pair]:
    # Slurm's words for what is the same here; -p, -m and others mean something else there
    pairs: list[Pair] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        key, equals, value = word.lstrip("-").partition("=") if word[:2] == "--" else (word[1:2], word[2:], word[2:])
        name = _SBATCH.get(key, "") if word[:1] == "-" else ""
        flag = name in BY_NAME and not BY_NAME[name].metavar
        if not equals and not flag and rest and rest[0][:1] != "-":
            value = rest.pop(0)
        if not name or (name == "one" and value != "1") or (name == "mem" and value == "0") or _typed(name, value):
            warnings.append(f"{place}{word}{'' if not value or equals else ' ' + value} is not read")
        elif name != "one":
            zero = name == "time" and value in ("0", "00:00:00")
            pairs.append(Pair(name, "yes" if flag else "unlimited" if zero else value))
    return pairs


def _typed(name: str, value: str) -> bool:
    # gpu:a100:2 names a type, which cannot be asked for here
    return (name == "gpus" and not value.isdigit()) or (name == "gres" and ":" in value.replace(":", "", 1))


def interpreter(data: bytes) -> list[str]:
    """The words that run a script: what its `#!` line says, as the kernel reads it, else /bin/sh."""
    match = _SHEBANG.fullmatch(data[:1024].removeprefix(_BOM).partition(b"\n")[0])
    return [word.decode("utf-8", "surrogateescape") for word in match.groups() if word] if match else [SHELL[0]]


def has_trailer(data: bytes) -> bool:
    """Whether the last line is `#SPOOLQ end`, which says that a dropped file is whole."""
    return data.endswith(b"\n") and data[-200:].rstrip().rpartition(b"\n")[2].split() == [b"#SPOOLQ", b"end"]


def words(line: str) -> list[str] | None:
    """
    The words of a line that needs no shell to run, or None for one that does.

    Saves a process for each job. Conservative: whatever a shell might treat specially needs one.
    """
    plain = line.split() if line.isascii() and _PLAIN.fullmatch(line.rstrip("\r\n")) else []
    if not plain or plain[0] in _SHELL_ONLY or (plain[0] == "echo" and plain[1:2] and plain[1][0] == "-"):
        return None
    return plain
