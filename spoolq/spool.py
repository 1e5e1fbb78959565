"""
The spool: alone knows the directory layout and the rename protocol.

One entry, one rename, one transition. An entry is a symbolic link to its job file; only its name and directory are
state, and no program follows it. Every rename raises `gen`, so no target name is ever used twice, and contended
transitions go to a directory that only the mover writes (`running/<me>`, `reaping/<me>`); `move` says who won.
Invariant: each transition is a row of `state.TRANSITIONS`; listings are never cached here.
"""

import contextlib
import errno
import json
import os
import re
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from spoolq import begin, fsops, home
from spoolq import entry as entry_room
from spoolq.entry import HOMES, Entry, fitting, leaving, order, parse_name, rank_of, segment
from spoolq.errors import Misconfigured, NotFound, TryAgain
from spoolq.fsops import Answer
from spoolq.state import TRANSITIONS, State, of_entry

FORMAT = 1
NODE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,62}")
TOPS = ("drop", "queue", "held", "running", "reaping", "done", "rejected", "jobs", "nodes", "history")
MARKS = ("drain", "dead")  # files under nodes/<node>/: start nothing more; an operator says that it is off
BY_NAME = frozenset(["kill", "requeue", "suspend", "resume"])  # requests that an empty file's name can make
# me.a2.42.kill, 42.kill; of a chunk of an array 42_1-9.kill, of a task in it 42_1-9_7.kill
_REQUEST = re.compile(r"(?as)(?:.*?\.)?(?:a(\d{1,6})\.)?(\d{1,18})(?:_(\d+(?:-\d+)?)(?:_(\d{1,9}))?)?\.([a-z]+)")
_UUID = re.compile(r"^uuid\s*=.*$", re.MULTILINE)
_FORMAT = re.compile(r"^\s*format\s*=\s*([0-9]{1,20})\s*$", re.MULTILINE)  # parsing it all costs every command
_NEWEST_FIRST = ("queue", "held", "running", "reaping", "done")  # the direction in which jobs move


class Placed(NamedTuple):
    """An entry and where it lies: `place` is its directory relative to the spool."""

    place: str
    entry: Entry

    @property
    def path(self) -> str:
        """Relative to the spool."""
        return f"{self.place}/{self.entry.name}"

    @property
    def top(self) -> str:
        """`queue`, `held`, `running`, `reaping` or `done`."""
        return self.place.partition("/")[0]

    @property
    def node(self) -> str:
        """The node it is on, or empty; the directories of nodes are never removed."""
        return self.place.partition("/")[2] if self.top in ("running", "reaping") else ""

    @property
    def state(self) -> State:
        """What a user is told."""
        return of_entry(self.place, self.entry)


def place_of(top: str, entry: Entry, node: str = "") -> str:
    """The directory for an entry under a top."""
    if top in ("queue", "held"):
        return f"{top}/{segment(entry.rank, entry.id)}"
    return f"done/{entry.id // HOMES}" if top == "done" else f"{top}/{node}"


def initialise(root: str, text: str, *, mode: int = 0o700) -> None:
    """Make a spool; `spool.toml`, its text, comes last, since its presence is what makes a directory one."""
    os.makedirs(root, exist_ok=True)
    os.chmod(root, mode)
    for top in TOPS:
        fsops.make_directory(f"{root}/{top}")
    fsops.publish(f"{root}/spool.toml", text.encode())


class Spool:
    """One spool, opened. Hands out values; its paths are for printing."""

    def __init__(self, root: str) -> None:
        """Open; nothing is read until it is needed, but the mark must be there (exit 78 otherwise)."""
        self.root, self._whole = root, ""
        self.text = self._mark()

    def _mark(self) -> str:
        try:
            data = fsops.read(f"{self.root}/spool.toml", 1 << 16)
        except OSError as error:
            if error.errno in (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH):
                raise TryAgain(f"{self.root}: {error.strerror}: no answer, or lost by its server") from error
            raise Misconfigured(f"{self.root}: not a spool: spool.toml: {error.strerror}") from error
        if data is None:
            raise Misconfigured(f"{self.root}: not a spool (no spool.toml): not mounted, or run `spoolq init` first")
        text = data.decode("utf-8", "replace")
        said = _FORMAT.search(text)
        if said and int(said[1]) != FORMAT:
            what = f"format {said[1]} is not known to this version of spoolq (it knows {FORMAT})"
            raise Misconfigured(f"{self.root}/spool.toml: {what}")
        return text

    def check_same(self) -> str:
        """What spool.toml says now; OSError: not mounted, perhaps to come back; Misconfigured: another spool is."""
        data = fsops.read(f"{self.root}/spool.toml", 1 << 16)
        if data is None:
            raise OSError(errno.ENOENT, "not mounted any more (no spool.toml)", self.root)
        text = data.decode("utf-8", "replace")
        if _UUID.findall(text) != _UUID.findall(self.text):
            raise Misconfigured(f"{self.root}: another spool is there now (its uuid changed); start the node again")
        return text

    # --- looking

    def segments(self, top: str) -> list[str]:
        """The segments of queue or held in the order in which their jobs start."""
        return sorted(fsops.names(f"{self.root}/{top}"))

    def entries(self, place: str, *, lasting: bool = False) -> list[Entry]:
        """The entries of one directory in start order; names that are none are skipped. `lasting`: as `fsops.names`."""
        names = fsops.names(f"{self.root}/{place}", lasting=lasting)
        return sorted((entry for name in names if (entry := parse_name(name))), key=order)

    def waiting(self, top: str = "queue") -> Iterator[Placed]:
        """Waiting entries in start order, a segment at a time, so that a node reads no more than it needs."""
        for places in [[f"{top}/{name}" for name in names] for names in entry_room.together(self.segments(top))]:
            found = [Placed(place, entry) for place in places for entry in self.entries(place)]
            yield from found if len(places) == 1 else sorted(found, key=lambda at: order(at.entry))

    def on_node(self, node: str, top: str = "running", *, lasting: bool = False) -> list[Placed]:
        """What is claimed by or runs on a node; `lasting` if it is our own, which has made its directories."""
        return [Placed(f"{top}/{node}", entry) for entry in self.entries(f"{top}/{node}", lasting=lasting)]

    def live(self) -> list[Placed]:
        """Everything that has not ended: waiting, held, running, reaping."""
        found = [*self.waiting("queue"), *self.waiting("held")]
        for top in ("running", "reaping"):
            for node in sorted(fsops.names(f"{self.root}/{top}")):
                found += self.on_node(node, top)
        # one moving forward meanwhile is seen twice: the later sighting has the higher gen
        newest: dict[tuple[int, str], Placed] = {}
        for placed in found:
            key = (placed.entry.id, placed.entry.chunk)
            if key not in newest or newest[key].entry.gen < placed.entry.gen:
                newest[key] = placed
        return list(newest.values())

    def done(self, group: int) -> list[Placed]:
        """The finished entries with ids group * 1000 .. group * 1000 + 999."""
        return [Placed(f"done/{group}", entry) for entry in self.entries(f"done/{group}")]

    def done_groups(self) -> list[int]:
        """The groups that exist, newest first."""
        return sorted((int(n) for n in fsops.names(f"{self.root}/done") if home.is_number(n)), reverse=True)

    def find(self, job_id: int | str) -> Placed:
        """
        Where a job is now, or a chunk of an array by its `entry.unit`; by the id of an array any of them.

        Looks in the direction in which jobs move, twice, since one that moves back (requeue) can be
        missed; an id that has a home but no entry was never submitted whole.

        Raises:
            NotFound; OSError if the spool is not there.
        """
        for _ in range(2):
            for top in _NEWEST_FIRST:
                if (match := self.lookup(top, job_id)) is not None:
                    return match
            self.check_same()  # where nothing is mounted no job is
        raise NotFound(f"job {job_id}: no such job in {self.root} (never submitted, or removed after its retention)")

    def lookup(self, top: str, job_id: int | str) -> Placed | None:
        """A job's entry under one top, or None."""
        for place in self._places(top, int(str(job_id).partition("_")[0])):
            if match := [entry for entry in self.entries(place) if job_id in (entry.id, entry.unit)]:
                return Placed(place, max(match, key=lambda entry: entry.gen))
        return None

    def _places(self, top: str, job_id: int) -> list[str]:
        if top == "done":
            return [f"done/{job_id // HOMES}"]
        children = sorted(fsops.names(f"{self.root}/{top}"))
        holds = entry_room.segment_holds
        return [f"{top}/{n}" for n in children if top not in ("queue", "held") or holds(n, job_id)]

    # --- submitting

    def submit(self, job_id: int, entry: Entry) -> Placed:
        """
        Commit a filled home: one rename of its private entry, or of a directory of them, an array's. Then it exists.

        Raises:
            TryAgain: nobody can tell whether the rename happened; the job may exist, never twice.
            OSError: refused; the job does not exist.
        """
        top = "held" if entry.held else "queue"
        target = Placed(f"{top}/{entry_room.array_segment(entry)}" if entry.chunk else place_of(top, entry), entry)
        private = f"{home.path_of(self.root, job_id)}/{home.PRIVATE_ENTRY}"
        answer = fsops.move(private, f"{self.root}/{target.place if entry.chunk else target.path}")
        # only we know this private name: gone, in a home that is there, means committed, perhaps claimed since
        if answer is Answer.UNKNOWN:
            raise TryAgain(f"job {job_id}: the spool does not say whether it was submitted; ask `spoolq show {job_id}`")
        return target

    def submit_file(self, path: str, entry: Entry) -> tuple[Answer, Placed]:
        """
        Commit a dropped file as the entry of a filled home: the file itself moves, so it becomes one job or none.

        Args:
            path: relative to the spool, in this node's admit directory, a name that never comes back.
        """
        target = Placed(place_of("held" if entry.held else "queue", entry), entry)
        return fsops.move(f"{self.root}/{path}", f"{self.root}/{target.path}"), target

    def committed(self, places: Iterable[Placed]) -> None:
        """Make submissions durable and wake the nodes of this machine."""
        self.make_durable(places)
        fsops.ring(f"{self.root}/queue")

    def make_durable(self, places: Iterable[Placed]) -> None:
        """Let the names of entries survive a power loss of the server, which may be this machine."""
        for place in sorted({place for at in places for place in (at.place, *([at.top] if at.entry.chunk else []))}):
            with contextlib.suppress(FileNotFoundError):  # emptied by nodes and swept: further along than durable
                fsops.sync_directory(f"{self.root}/{place}")

    # --- transitions: one rename each

    def transfer(self, at: Placed, top: str, entry: Entry, node: str = "") -> tuple[Answer, Placed]:
        """Rename an entry, the one place where states change: WON and where it is, or LOST or UNKNOWN."""
        assert (at.top, top) in TRANSITIONS, f"{at.top} -> {top} is no transition"
        assert entry.gen == at.entry.gen + 1, "every rename raises gen"
        entry = fitting(entry if top == at.top else leaving(entry, at.top))
        target = Placed(place_of(top, entry, node), entry)
        return fsops.move(f"{self.root}/{at.path}", f"{self.root}/{target.path}"), target

    def settle(self, at: Placed, target: Placed) -> Answer | None:
        """Ask again what became of an UNKNOWN transfer; None if it did not happen and may be repeated."""
        return fsops.settle(f"{self.root}/{at.path}", f"{self.root}/{target.path}")

    def claim(self, at: Placed, node: str) -> tuple[Answer, Placed]:
        """queue -> running/<node>."""
        return self.transfer(at, "running", at.entry.next(), node)

    def give_back(self, at: Placed) -> tuple[Answer, Placed]:
        """running -> queue with the same attempt: certainly not started."""
        return self.transfer(at, "queue", at.entry.next(suspended=False))

    def finish(self, at: Placed, ending: str) -> tuple[Answer, Placed]:
        """-> done: the commit point of a job's end."""
        return self.transfer(at, "done", at.entry.next(ending=ending, held="", suspended=False))

    def reap(self, at: Placed, node: str) -> tuple[Answer, Placed]:
        """running or reaping of another or of oneself before a reboot -> reaping/<node>."""
        return self.transfer(at, "reaping", at.entry.next(), node)

    def requeue(self, at: Placed, *, held: str = "", **changes: Any) -> tuple[Answer, Placed]:
        """-> queue as the next attempt."""
        entry = at.entry.next(attempt=at.entry.attempt + 1, ending=None, suspended=False, held=held, **changes)
        return self.transfer(at, "held" if held else "queue", entry)

    def hold(self, at: Placed, why: str = "HU") -> tuple[Answer, Placed]:
        """queue -> held."""
        return self.transfer(at, "held", at.entry.next(held=why))

    def release(self, at: Placed) -> tuple[Answer, Placed]:
        """held -> queue; one whose time has not come waits for that, unless it waited for that alone."""
        return self.edit(at, held=begin.next_hold(at.entry, time.time()))

    def edit(self, at: Placed, *, priority: int | None = None, **changes: Any) -> tuple[Answer, Placed]:
        """Rename in place with other facts; a new priority may change the segment, `held` the top."""
        changes |= {"rank": rank_of(priority)} if priority is not None else {}
        top = ("held" if changes["held"] else "queue") if "held" in changes else at.top
        return self.transfer(at, top, at.entry.next(**changes), at.node)

    def sweep_segments(self) -> None:
        """Remove empty segments, off the hot path; one that is in use says ENOTEMPTY and stays."""
        for path in [f"{self.root}/{top}/{name}" for top in ("queue", "held") for name in self.segments(top)]:
            fsops.remove_directory(path)

    # --- nodes

    def nodes(self) -> list[str]:
        """The names of all nodes ever seen."""
        return sorted(filter(NODE_NAME.fullmatch, fsops.names(f"{self.root}/nodes")))

    def enter_node(self, node: str) -> None:
        """Make what a node needs, a level at a time; `nodes/` last: who then misses `running/` misses it for 60 s."""
        for path in ("running/{}", "reaping/{}", "nodes/{}", "nodes/{}/control", "nodes/{}/admit"):
            fsops.make_directory(f"{self.root}/{path.format(node)}")

    def write_node(self, node: str, facts: dict[str, Any]) -> None:
        """Publish node.json."""
        fsops.publish(f"{self.root}/nodes/{node}/node.json", json.dumps(facts).encode() + b"\n", sync=False)

    def read_node(self, node: str, *, sure: bool = False) -> dict[str, Any]:
        """node.json, or {} if none says in numbers what the node has; `sure`: OSError if it cannot be read now."""
        facts = _json(self._read_small(f"nodes/{node}/node.json", sure=sure))
        capacity = facts.get("capacity", {})
        sound = isinstance(capacity, dict) and all(type(amount) is int for amount in capacity.values())
        return facts if sound else {}

    def beat(self, node: str, count: int, instance: str) -> None:
        """Write the heartbeat: a counter, never a time."""
        fsops.publish(f"{self.root}/nodes/{node}/heartbeat", f"{count} {instance}\n".encode(), sync=False)

    def read_beat(self, node: str) -> tuple[int, str] | None:
        """(counter, instance) by open and read, never by stat; None if there is none; OSError if nobody can tell."""
        words = self._read_small(f"nodes/{node}/heartbeat", sure=True).split()
        return (int(words[0]), words[1]) if len(words) == 2 and home.is_number(words[0]) else None

    def mark_node(self, node: str, word: str, *, on: bool, text: str = "") -> None:
        """Set or clear a mark such as `drain`; `touch nodes/<node>/drain` is the same."""
        path = f"{self.root}/nodes/{node}/{word}"
        fsops.publish(path, text.encode()) if on else fsops.drop(path)

    def node_marks(self, node: str) -> dict[str, str]:
        """Marks that are set, with their text; see MARKS."""
        present = fsops.names(f"{self.root}/nodes/{node}")
        return {word: self._read_small(f"nodes/{node}/{word}").strip() for word in MARKS if word in present}

    def _read_small(self, relative: str, *, sure: bool = False) -> str:
        try:
            data = fsops.read(f"{self.root}/{relative}", 1 << 16)
        except OSError as error:
            if sure and error.errno not in (errno.EINVAL, errno.EFBIG):  # those mean: something else has its name
                raise
            return ""
        return (data or b"").decode("utf-8", "replace")

    # --- requests to a node: files like everything else

    def request(self, node: str, verb: str, job_id: int, arguments: dict[str, Any], tag: str) -> None:
        """Ask a node to do something to a job that runs there; executed at its next look."""
        tag += f".a{arguments['attempt']}" if "attempt" in arguments else ""
        about = "_".join(str(n) for n in (job_id, arguments.get("chunk"), arguments.get("task")) if n is not None)
        path = f"{self.root}/nodes/{node}/control/{tag}.{about}.{verb}"
        try:
            fsops.publish(path, json.dumps({"verb": verb, "id": job_id, **arguments}).encode())
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or verb not in BY_NAME:
                raise
            fsops.create(path, b"")  # needs no room: the job that filled the spool can still be killed

    def requests(self, node: str) -> list[tuple[str, dict[str, Any]]]:
        """(name, request) in order of name; one that cannot be read comes with what its name says, or empty."""
        directory = f"nodes/{node}/control"
        found = fsops.names(f"{self.root}/{directory}")
        return [(name, _json(self._read_small(f"{directory}/{name}")) or _named(name)) for name in sorted(found)]

    def answered(self, node: str, name: str) -> None:
        """Remove a request that was carried out or makes no sense any more; a directory goes to rejected/."""
        path = f"{self.root}/nodes/{node}/control/{name}"
        try:
            fsops.drop(path)
        except IsADirectoryError:
            fsops.move(path, f"{self.root}/rejected/{name}.{time.time_ns():x}")

    # --- history

    def record(self, date: str, writer: str, lines: Iterable[bytes], *, sync: bool = True) -> None:
        """Append finished jobs to `history/<date>.<writer>.jsonl`, synced once; never to a line that may be torn."""
        path, whole = f"{self.root}/history/{date}.{writer}.jsonl", self._whole
        self._whole = ""  # a full disk tears lines, and so does whoever dies
        fsops.append(path, b"".join(lines), sync=sync, apart=path != whole)
        self._whole = path

    def history_files(self) -> list[str]:
        """Names of the history files, oldest first."""
        return sorted(name for name in fsops.names(f"{self.root}/history") if name.endswith(".jsonl"))

    def read_history(self, name: str) -> bytes:
        """One history file whole (at most 256 MB); what only has the name of one is empty."""
        try:
            return fsops.read(f"{self.root}/history/{name}", 1 << 28) or b""
        except OSError as error:
            if error.errno == errno.EINVAL:
                return b""
            raise


def _named(name: str) -> dict[str, Any]:
    if not (match := _REQUEST.fullmatch(name)) or match[5] not in BY_NAME:
        return {}
    parts = zip(("attempt", "id", "chunk", "task", "verb"), match.groups(), strict=True)
    return {key: text if key in ("chunk", "verb") else int(text) for key, text in parts if text}


def _json(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
