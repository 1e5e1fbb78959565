"""
The command `run`: a job as if it ran here.

Invariant: `run` never leaves a job behind: who interrupts it, hangs up or closes its output kills the
job and waits a moment for its end.
"""

import os
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

from spoolq import awaiting, home, mount, options, patience, reason, request, submit, where
from spoolq.errors import SpoolqError, UsageError
from spoolq.spool import Placed, Spool
from spoolq.tail import STDERR, STDOUT, Following, Stream

SILENT_S = 1.5  # a start that takes longer is explained
LOOK_S = 1.0  # between looks at whether it may start at all
KEEP_S = 5.0  # between looks, once it runs, at whether the node that we started still serves
REPEAT_S = 10.0  # between explanations that differ
LINGER_S = 5.0  # beyond the grace time: how long the end of a killed job is waited for
STREAMS = {"stdout": STDOUT, "stderr": STDERR}

_RUN_HELP = """\
usage: spoolq run [-v] [options] COMMAND [ARGUMENT...]
       spoolq run [-v] [options] SCRIPT [ARGUMENT...]
       spoolq run [-v] -a TASKS [options] COMMAND [ARGUMENT...]

Run a command as a job, as if it ran here: its output appears here as it is written, the exit code is
its own, and Ctrl-C, SIGTERM, hanging up or a closed pipe kill it; a second Ctrl-C leaves at once.
If no node is alive on a spool of your own, one is started on this machine for as long as it is needed.
Of an array (-a) each task's output appears when it has ended, whole, in the order in which tasks end; a
task that fails is named on stderr, with -v each is; the exit code is the worst, and Ctrl-C kills all of it.
With -o or -e that stream goes to the file only. A start that takes longer than a moment is explained
on stderr; -v (first) says from the beginning what is happening.

"""
_RUN_NOTES = """
Examples:
  spoolq run make test
  spoolq run -c 8 -m 16G ./solve input.txt > result.txt
  spoolq run -a 1-100%20 ./step.sh > results.txt
  for f in *.raw; do spoolq run gzip "$f" & done; wait

Exit: the job's own code; 128+n for signal n, 124 time limit, 137 memory, 130 cancelled.
"""


class Stopped:
    """Remembers the first signal that asks us to stop; a second one ends us at once."""

    def __init__(self) -> None:
        """Catch SIGINT, SIGTERM and SIGHUP, but for those that the caller ignores (nohup, `&` in a script)."""
        self.number: int | None = None
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._caught)

    def _caught(self, number: int, _frame: Any) -> None:
        if self.number is not None:
            os._exit(128 + number)
        self.number = number


def run(argv: Sequence[str]) -> int:
    """`run`: submit, show the output, exit with the job's code."""
    words = list(argv)
    first = 2 if words[:1] == ["--spool"] else 0  # as `main` hands it on from before the command
    verbose = words[first : first + 1] in (["-v"], ["--verbose"])
    if verbose:
        del words[first]
    parsed = options.parse(words)
    if "help" in parsed.flags:
        sys.stdout.write(_RUN_HELP + options.help_text((options.JOB, options.REQUEST)) + _RUN_NOTES)
        return 0
    if "check" in parsed.flags:
        return submit.sub(words)
    if "each-line" in parsed.flags:
        raise UsageError("run: --each-line is for `spoolq sub`")
    found = where.find(parsed.flags.get("spool", ""), make=True)
    asked = request.ask(parsed, found, request.current_directory())
    if request.up_to_date(asked.job, request.current_directory()):
        submit.say_fresh(", ".join(asked.job.targets))
        return 0
    stopped = Stopped()
    patience.so_far(lambda: "nothing was submitted")
    sys.stdout.flush()
    placed, joined = submit.submit_or_join(found, asked, parsed, warn=False)
    if not joined:
        submit.tell(found, [placed.entry.id], asked.job)
    foreground = Foreground(found, placed, asked, stopped, verbose=verbose, joined=joined)
    if "SPOOLQ_JOB_ID" not in os.environ:
        return foreground.run()
    from spoolq import nested

    with nested.waiting(found.spool):
        return foreground.run()


class Foreground:
    """One job that runs as if it ran here."""

    def __init__(
        self,
        found: where.Found,
        placed: Placed,
        asked: request.Asked,
        stopped: Stopped,
        *,
        verbose: bool = False,
        joined: bool = False,
    ) -> None:
        """Right after the submission; `joined`: somebody else's, which is not killed."""
        from spoolq.embedded import Embedded

        self.found, self.spool, self.id, self.stopped = found, found.spool, placed.entry.id, stopped
        patience.so_far(lambda: f"job {self.id} may go on")
        patience.endure()
        job, self.chdir = asked.job, asked.job.chdir
        shown = [] if job.output is not None else ["stdout"] if job.error is not None else ["stdout", "stderr"]
        streams = [Stream(self.spool, self.id, name, STREAMS[name]) for name in shown]
        self.following = Following(self.spool, self.id, streams)
        if job.array:
            from spoolq.gather import Gathering

            self.following = Gathering(self.spool, self.id, job, streams, verbose=verbose)
        self.embedded, self.joined = Embedded(found), joined
        self._looked = self._said_at = 0.0
        self._said = ""
        self.silent_s = 0.0 if verbose else SILENT_S
        if verbose:
            sys.stderr.write(f"spoolq: submitted job {self.id}\n")

    def run(self) -> int:
        """Until the end, whoever brings it about; the exit code."""
        try:
            while True:
                outcome = self.following.look()
                if outcome is not None:
                    awaiting.tell(self.spool, outcome)
                    mount.bring_back(self.found, self.id, self.chdir)
                    return outcome.code
                if self.stopped.number is not None:
                    return self.stop(128 + self.stopped.number)
                self.care()
                self.following.nap()
        except BrokenPipeError:
            self.following.streams = []
            return self.stop(128 + signal.SIGPIPE)
        except SpoolqError:
            self.stop(1)
            raise

    def care(self) -> None:
        """See that there is a node, and say why the job does not start; once it runs, only keep our own node."""
        now = time.monotonic()
        running = self.following.started
        if self._looked and now - self._looked < (KEEP_S if running else LOOK_S):
            return
        self._looked = now
        if not running or self.embedded.started:
            self.embedded.ensure()
        if running:
            return
        if now - self.following.began >= self.silent_s and (not self._said or now - self._said_at >= REPEAT_S):
            text = why_it_waits(self.spool, self.id)
            if text and text != self._said:
                self._said, self._said_at = text, now
                sys.stderr.write(f"spoolq: job {self.id} waits: {text}\n")

    def stop(self, code: int) -> int:
        """Kill the job and wait a moment for its end; the exit code, of which the job's own is no part."""
        from spoolq import steer

        if self.joined:
            sys.stderr.write(f"spoolq: no longer waiting; job {self.id} goes on, since it was only joined\n")
            return code
        try:
            for at in parts_of(self.spool, self.id):
                steer.do(self.spool, at, steer.kill_step(None))
            until = time.monotonic() + self.found.policy.grace_s + LINGER_S
            while time.monotonic() < until:
                try:
                    if self.following.look() is not None:
                        return code
                except BrokenPipeError:
                    self.following.streams = []
                self.following.nap()
            sys.stderr.write(f"spoolq: job {self.id} was told to end and has not yet; see `spoolq show {self.id}`\n")
        except (SpoolqError, OSError) as error:
            sys.stderr.write(f"spoolq: job {self.id} may go on: {error}\n")
        return code


def parts_of(spool: Spool, job_id: int) -> list[Placed]:
    """The job's entry, or those of an array that have not ended."""
    at = spool.find(job_id)
    return [at for at in spool.live() if at.entry.id == job_id] if at.entry.chunk else [at]


def why_it_waits(spool: Spool, job_id: int) -> str:
    """In words; empty if it does not wait."""
    from spoolq.entry import HELD

    placed = spool.find(job_id)
    if placed.top == "held" and placed.entry.held == "HD":
        from spoolq import deliver, parents

        job = deliver.read_job(spool, job_id)
        return str(parents.reason(parents.Parents(spool), job)) if job else ""
    if placed.top == "held":
        return f"it is held ({HELD.get(placed.entry.held, 'held')}); `spoolq release {job_id}` lets it start"
    if placed.top != "queue":
        return ""
    reasons = [parsed for line in home.read_whys(spool.root, job_id).values() if (parsed := reason.parse_reason(line))]
    if not reasons:
        return "no node has said why; `spoolq nodes` shows which are alive"
    return str(reason.overall(dict(reasons)))
