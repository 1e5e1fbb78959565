"""
Turn files that somebody dropped into drop/ into jobs, each exactly once, or into rejected/ with a reason.

A dropped name may come back (cron drops `nightly.sh` every day), so the file is first renamed to a tag
of our own under nodes/<me>/admit/. Then a new home is filled with a copy, and the file itself is renamed
into the queue: it is the entry. So a crash anywhere leaves the file in drop/, in admit/ or in the queue,
whole, and what has to be done is read off its place; an unused home only costs a number.
Invariant: at every moment the file or its job exists, never two jobs (model: tests/model; an id noted
beforehand, the obvious way, makes two jobs when a silent node's files are taken over).
"""

import errno
import logging
import os
import pwd
import re
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spoolq import begin, environment, fsops, home, jobfile, options, parents, script, stale, stored
from spoolq.entry import Entry
from spoolq.errors import JobFileError, Misconfigured, SpoolqError, UsageError
from spoolq.fsops import Answer
from spoolq.job import Job
from spoolq.options import Pair
from spoolq.profile import Rulebook
from spoolq.spool import Spool

log = logging.getLogger("spoolq")

NOT_JOBS = ("~", ".tmp", ".part", ".swp", ".bak", ".id", ".why", ".crdownload", ".filepart")
LOOK_S = 60.0  # between looks into admit/ that nothing asked for
EMPTY_S = 60.0  # an empty file may still be filled for so long
REFUSED_S = 60.0  # before what cannot be taken is tried again
PATIENCE_S = 5.0  # for profiles, before the node does something else; each is limited by itself
DOUBT_S = 10.0  # a file that does not parse may still be written for so long after its last change
_NO_JOBS = (errno.EINVAL, errno.EFBIG, errno.EACCES, errno.EPERM)  # of a file that will never be one
_ADMITTED = re.compile(r"([0-9a-z]+)~(.*)", re.DOTALL)
_PLAIN = re.compile(rb"[A-Za-z0-9._+=@-]")
_MAX_QUOTED = 180


@dataclass(frozen=True, slots=True)
class _Seen:
    """How a dropped file looked, and since when (s, own monotonic clock) it has looked so."""

    facts: tuple[int, int, int, int]
    since: float


def quote(name: str) -> str:
    """Any file name in safe letters, reversible unless it is very long."""
    raw = os.fsencode(name)
    text = "".join(chr(b) if _PLAIN.match(bytes((b,))) else f"%{b:02X}" for b in raw)
    return text[:_MAX_QUOTED]


def _owner() -> tuple[str, str]:
    """The name and the home directory of this user, who may have neither."""
    try:
        known = pwd.getpwuid(os.getuid())
    except KeyError:
        return str(os.getuid()), "/"
    return known.pw_name, known.pw_dir


class Intake:
    """The admission of one node."""

    def __init__(
        self,
        spool: Spool,
        node: str,
        *,
        settle_s: float,
        any_owner: bool,
        base: Mapping[str, Any],
        check: Callable[[Job], str | None],
        rulebook: Callable[[], Rulebook | None] = lambda: None,
        submitted: Callable[[Entry, Job], None] = lambda *_: None,
        estimate: Callable[[Job], Job] = lambda job: job,
    ) -> None:
        """
        Remember what to do; nothing is touched yet.

        Args:
            settle_s: a file must look the same for so long, unless it carries the trailer.
            any_owner: accept files that belong to somebody else (they run as this node's user).
            base: fields of a job that does not say.
            check: says why no node could ever run a job, or None.
            submitted: is told of each job that was made.
            estimate: the job with what its command needed before where it asks for nothing.
            rulebook: finds this node's rules and profiles, which may have changed since the last file.
        """
        self.spool, self.node, self.settle_s, self.any_owner = spool, node, settle_s, any_owner
        self.base, self.check, self.rulebook, self.submitted = base, check, rulebook, submitted
        self.estimate = estimate
        self._seen: dict[str, _Seen] = {}
        self._tags = 0
        self._refused: dict[str, float] = {}  # what cannot be taken now, and when to try again
        self._spare: list[int] = []  # homes of admissions that failed
        self._look_at = 0.0  # a rename that failed may still be carried out by the server, and bring a file there
        self._ruled_s = 0.0  # for so long profiles were asked since it last mattered
        self.unfinished = True  # look into admit/ at the first step: an earlier daemon may have died

    def step(self, now: float) -> int:
        """
        One look; returns how many jobs were admitted.

        Args:
            now: s, monotonic.
        """
        admitted = 0
        if self.unfinished or now >= self._look_at:
            names = sorted(fsops.names(self._admit()))
            self.spool.check_same()  # where it is not mounted, nothing lies there
            self.unfinished, self._look_at = False, now + LOOK_S
            for name in names:
                admitted += self._admit_one(name)
                if self._slow():
                    return admitted
        present = fsops.names(f"{self.spool.root}/drop")
        self._seen = {name: seen for name, seen in self._seen.items() if name in present}
        self._refused = {name: until for name, until in self._refused.items() if now < until and name in present}
        for name in sorted(present):
            if not name.endswith(NOT_JOBS) and name not in self._refused and self._ready(name, now):
                admitted += self._take(name, now)
                if self._slow():
                    break
        return admitted

    def _slow(self) -> bool:
        """Whether profiles took so long that the rest must wait for the next step: the node has other work."""
        slow, self._ruled_s = self._ruled_s > PATIENCE_S, 0.0 if self._ruled_s > PATIENCE_S else self._ruled_s
        self.unfinished = self.unfinished or slow
        return slow

    def left_by(self, node: str) -> list[str]:
        """What another node has taken from drop/ and not admitted yet."""
        return sorted(fsops.names(f"{self.spool.root}/nodes/{node}/admit"))

    def inherit(self, node: str, name: str) -> None:
        """Admit a file that another node took and left; safe also if that node lives (model: `admission`)."""
        match = _ADMITTED.fullmatch(name)
        if match:
            admitted = f"{self._tag()}~{match[2]}"
            answer = fsops.move(f"{self.spool.root}/nodes/{node}/admit/{name}", self._admit(admitted), tries=1)
            if answer is not Answer.LOST:
                self.unfinished = True

    def _tag(self) -> str:
        """A fresh one for each rename, since dropped names come back."""
        self._tags += 1
        return f"{time.time_ns():x}{os.getpid():x}{self._tags:x}"

    def _admit(self, name: str = "") -> str:
        return f"{self.spool.root}/nodes/{self.node}/admit" + (f"/{name}" if name else "")

    def _ready(self, name: str, now: float) -> bool:
        """Whether a file has settled."""
        path = f"{self.spool.root}/drop/{name}"
        facts = fsops.look(path)
        if facts is None:
            return False
        if not stat.S_ISREG(facts.st_mode):
            return True  # to be refused; waiting does not make a FIFO a job
        now_facts = (facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
        seen = self._seen.get(name)
        if seen is None or seen.facts != now_facts:
            self._seen[name] = seen = _Seen(now_facts, time.monotonic())  # long after `now`, if the spool is slow
            # whoever renames a finished file in and ends it with the trailer need not wait
            return bool(facts.st_size) and self._has_trailer(path)
        age = now - seen.since
        if facts.st_size == 0:
            return age >= EMPTY_S
        if age < self.settle_s:
            return False
        return age >= max(self.settle_s, DOUBT_S) or self._parses(name)

    def _has_trailer(self, path: str) -> bool:
        try:
            return script.has_trailer(fsops.read(path, home.SCRIPT_LIMIT) or b"")
        except OSError:
            return False

    def _parses(self, name: str) -> bool:
        try:
            self._parse(name, f"{self.spool.root}/drop/{name}")
        except (SpoolqError, OSError):
            return False
        return True

    def _take(self, name: str, now: float) -> int:
        admitted = f"{self._tag()}~{quote(name)}"
        try:
            answer = fsops.move(f"{self.spool.root}/drop/{name}", self._admit(admitted), tries=1)
        except OSError as error:  # a mount point, or not ours to move: it stops no other
            log.warning("cannot take drop/%s error=%s", name, error.strerror)
            self._refused[name] = now + REFUSED_S
            return 0
        self._seen.pop(name, None)
        if answer is Answer.UNKNOWN:
            self.unfinished = True
        return self._admit_one(admitted) if answer is Answer.WON else 0

    def _admit_one(self, name: str) -> int:
        """From admit/ to a job or to rejected/; whatever fails for now stays and is done again."""
        match = _ADMITTED.fullmatch(name)
        if not match:
            return 0  # not ours to explain, not ours to touch
        tag, quoted = match.groups()
        original = os.fsdecode(re.sub(rb"%([0-9A-F]{2})", lambda m: bytes((int(m[1], 16),)), quoted.encode()))
        try:
            try:
                job, script = self._parse(original, self._admit(name), ruled=True)
            except (JobFileError, UsageError, Misconfigured) as error:
                self._reject(name, original, tag, str(error))
                return 0
            return self._commit(name, original, job, script)
        except OSError:
            self.unfinished = True
            return 0

    def _commit(self, name: str, original: str, job: Job, script: bytes | None) -> int:
        job_id = self._spare.pop() if self._spare else home.allocate(self.spool.root)
        try:
            home.fill(self.spool.root, job_id, stored.format_job(job), script=script, entry=False)
            # before the commit: a dropper must not wait for ever; after a crash it is written again
            self._answer(f"{original}.id", f"{job_id}\n")
            answer, at = self.spool.submit_file(f"nodes/{self.node}/admit/{name}", job.entry(job_id))
        except OSError:
            home.discard(self.spool.root, job_id)
            self._spare.append(job_id)
            raise
        if answer is not Answer.WON:
            self.unfinished = True  # look again: still here, or queued and already claimed
            return 0
        self.spool.committed([at])
        self.submitted(at.entry, job)
        return 1

    def _answer(self, name: str, text: str) -> None:
        """Beside the dropped file's place; the job exists whether or not this can be written."""
        try:
            fsops.publish(f"{self.spool.root}/drop/{name}", text.encode(), sync=False)
        except (OSError, ValueError):
            return

    def _reject(self, name: str, original: str, tag: str, why: str) -> None:
        why = "".join(c if c.isprintable() else repr(c)[1:-1] for c in why)  # it quotes the name, and people `cat` it
        target = f"{quote(original)}.{tag}"
        fsops.publish(f"{self.spool.root}/rejected/{target}.why", why.encode() + b"\n")
        if fsops.move(self._admit(name), f"{self.spool.root}/rejected/{target}") is Answer.UNKNOWN:
            self.unfinished = True
        self._answer(f"{original}.why", f"{why}\nThe file is now rejected/{target}\n")

    def _parse(self, name: str, path: str, *, ruled: bool = False) -> tuple[Job, bytes | None]:
        """The job in a file, as the rules want it if so asked; JobFileError with a message for a person."""
        facts = fsops.look(path)
        if facts is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)  # or the spool is
        try:
            data = fsops.read(path, home.SCRIPT_LIMIT)
        except OSError as error:
            if error.errno not in _NO_JOBS:
                raise  # the spool's fault, not the file's
            raise JobFileError(f"{error.strerror}: a job must be a regular file up to 1 MB", file=name) from error
        if not data:
            raise JobFileError("is empty: write a script starting with #! or a TOML job file", file=name)
        if facts.st_uid != os.getuid() and not self.any_owner:
            raise JobFileError(f"belongs to user id {facts.st_uid}, and jobs here run as {os.getuid()}", file=name)
        pairs, words, script = self._parse_text(name, data)
        owner, directory = _owner()
        stamp = environment.timestamp(time.time())
        base = {**self.base, "name": name.rpartition(".")[0] or name, "user": owner, "submitted": stamp}
        base |= {"chdir": directory, "submit_host": self.node}

        def make(pairs: Sequence[Pair]) -> Job:
            job = stale.prepared(options.to_job(pairs, words, base, script=script is not None))
            return job._replace(chdir=os.path.join(directory, job.chdir), export="none")

        try:
            job = self._rule(pairs, make, words, script, name) if ruled else make(pairs)
        except UsageError as error:
            raise JobFileError(str(error), file=name) from None
        if job.depend:
            job = job._replace(depend=parents.resolve(self.spool, job.depend))
        if job.begin:
            job = job._replace(begin=begin.resolved(job.begin, time.time()))
        if job.array:  # its one file can become one entry only
            raise JobFileError("is an array: submit it with `spoolq sub`", file=name)
        best = self.estimate(job)
        if best != job and not self.check(best):  # an estimate that no node could hold is dropped
            return best, script
        if why := self.check(job):
            raise JobFileError(why, file=name)
        return job, script

    def _rule(
        self, pairs: Sequence[Pair], make: Callable[[Sequence[Pair]], Job], words: Sequence[str],
        script: bytes | None, name: str,
    ) -> Job:  # fmt: skip
        """The job as this node's rules and profiles want it."""
        book = self.rulebook()
        if book is None:
            return make(pairs)
        began = time.monotonic()
        try:
            ruled = book.rule(pairs, make, words, script, name)
        finally:
            book.close()
            self._ruled_s += time.monotonic() - began
        return make(ruled.pairs)._replace(policy=ruled.notes)

    def _parse_text(self, name: str, data: bytes) -> tuple[Sequence[Pair], Sequence[str], bytes | None]:
        """Options, words and script."""
        if data.startswith(b"#!") or (name.endswith(".sh") and not data.startswith(b"\xef\xbb\xbf")):
            pairs, _ = script.parse_script(data, name)
            return pairs, (), data
        if name.endswith((".toml", ".job")) or b"command" in data or b"script" in data:
            asked = jobfile.parse_request(data, name)
            return asked.pairs, asked.command, asked.script
        hint = "name it *.sh or *.toml"
        raise JobFileError(f"is neither a script (#! first) nor a TOML job file (command = ...); {hint}", file=name)
