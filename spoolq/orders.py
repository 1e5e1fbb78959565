"""
What the daemon may ask of the runner, one function an order.

From the daemon (JSON with `op`; framing in `channel`):
    hello {version, boottime_lease, fence}     answered by `known`
    lease {until, fence}     start nothing after `until`, end jobs of rerun rule Y after `fence` (CLOCK_BOOTTIME, s)
    start {id, attempt, gen, argv, program, env: ["K=V"], umask, chdir, remote, cwdfd, limit_s, grace_s, mem_mb,
           cgroup, rerun, scratch, devices, until, fds, warn: [signal, seconds, first]}     `until`: of its claim;
           fds: stdout, stderr and, if cwdfd, directory; `devices` and `warn`, a signal before the end, may be absent
    signal {id, attempt, signal}  kill {id, attempt, reason, grace_s}  suspend, resume {id, attempt}
    limits {id, attempt, limit_s, mem_mb}  forget {jobs: [[id, attempt]]}  usage {}  reexec {}  stop {}
To the daemon, after its hello:
    known {pid, watcher, family, version,
           jobs: [{id, attempt, gen, state, stage, limit_s, mem_mb, pid, started, scratch, devices, ended}]}
    started {id, attempt, gen, pid, born, since, at}  ended {id, attempt, gen, ended}
    refused {id, attempt, gen, why}     it certainly did not start and is forgotten
    usage {cpu_s, jobs: {"id.attempt": {rss_mb, cpu_s}}}  busy {jobs}
Invariant: `go` is in the journal before the spawn, and `started` before the next `go`; a start that is
not in `known` did not happen.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import spoolq
from spoolq import cgroup, journal, process, runs, spawn, takeover
from spoolq.adopted import NEVER
from spoolq.channel import Message, encode
from spoolq.ending import End
from spoolq.runs import Event, Run, Stage

if TYPE_CHECKING:
    from spoolq.runner import Runner

_WRONG = (KeyError, TypeError, ValueError, AttributeError, IndexError)


def obey(runner: "Runner", message: Message, fds: list[int]) -> None:
    """Carry out one order; one that makes no sense is passed over, or refused if it is a start."""
    what = message.get("op")
    try:
        if what == "start":
            start(runner, message, fds)
        elif order := _ORDERS.get(str(what)):
            order(runner, message)
    except _WRONG as error:
        print(f"spoolq-runner: order {what!r}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)


def start(runner: "Runner", message: Message, fds: list[int]) -> None:
    """Start a job, unless it may not or was already."""
    text = takeover.text_of(message)
    why = refusal(runner, message)
    if why:
        runner.out.append(f'{{"op":"refused",{text},"why":{encode(why)}}}')
        return
    run = Run(text, message)
    procs = ""
    before = process.boottime()
    try:
        if run.cgroup:
            run.sampled = not cgroup.create(run.cgroup, mem_mb=run.mem_mb) and run.mem_mb is not None
            procs = f"{run.cgroup}/cgroup.procs"
        else:
            run.sampled = run.mem_mb is not None
        runner.journal.write(takeover.go_line(run, before))
    except OSError as error:
        if run.cgroup:
            cgroup.remove(run.cgroup)
        reason = f"{error.filename or 'local disk'}: {error.strerror}"
        runner.out.append(f'{{"op":"refused",{text},"why":{encode(reason)}}}')
        return
    runner.die("after-go", run)
    runner.runs[run.key] = run
    try:
        run.pid = runner.spawner.start(message, fds, procs)
    except spawn.NoRoomError as error:
        del runner.runs[run.key]
        runner.refuse(text, str(error))
    except spawn.LaunchError as error:
        run.reason, run.detail = "launch", error.detail
        runner.finish(run, End(error.exit_code, None, None, "", time.time(), "nothing"))
    else:
        runner.die("after-spawn", run)
        note_started(runner, run, before)


def note_started(runner: "Runner", run: Run, before: float) -> None:
    """Its pid goes into the journal at the latest with the next `go`, or at the end of this turn."""
    run.since, run.started = time.monotonic(), time.time()
    run.earliest, run.latest = process.ticks(before), process.ticks(process.boottime())
    runner.by_pid[run.pid] = run
    line = takeover.started_line(run)
    runner.journal.keep(line)
    runner.news.append(line)
    runner.fresh.append(run)
    if run.mem_mb is not None and run.sampled:
        spawn.limit_data(run.pid, run.mem_mb)
    if run.sampled or run.limit_s is not None:
        runner.retime(run)
    runner.die("after-started", run)


def refusal(runner: "Runner", message: Message) -> str:
    """Why a start may not be, or nothing."""
    if (message["id"], message["attempt"]) in runner.runs:
        return "this attempt is known already"
    if process.boottime() > min(runner.lease, message.get("until", NEVER)):
        return "the lease is over"
    if not message["argv"] or not isinstance(message["umask"], int) or not isinstance(message["env"], list):
        return "no start message"
    return ""


def hello(runner: "Runner", message: Message) -> None:
    """A daemon begins; it is told everything that was not forgotten."""
    runner.greeted, runner.leaving = True, False
    runner.out.clear()
    lease(runner, {"until": message.get("boottime_lease"), "fence": message.get("fence")})
    family = runner.kin.ancestors()
    known: dict[str, Any] = {
        "op": "known",
        "pid": os.getpid(),
        "watcher": family[0] if family else None,
        "family": [os.getpid(), *family],
        "version": spoolq.__version__,
        "jobs": [_known(run) for run in runner.runs.values()],
    }
    runner.out.append(encode(known))


def _known(run: Run) -> dict[str, Any]:
    if run.stage is Stage.OVER:
        state, ended = "ended", json.loads(run.line)["ended"]
    else:
        state, ended = ("doubtful" if run.stage is Stage.DOUBTFUL else "running"), None
    return {
        "id": run.id,
        "attempt": run.attempt,
        "gen": run.gen,
        "state": state,
        "stage": run.stage.value,
        "limit_s": run.limit_s,
        "mem_mb": run.mem_mb,
        "pid": run.pid or None,
        "started": run.started or None,
        "scratch": run.scratch,
        "devices": run.devices,
        "ended": ended,
    }


def lease(runner: "Runner", message: Message) -> None:
    """Until when starting is allowed."""
    if message.get("until") is not None:
        runner.lease = float(message["until"])
    if message.get("fence") is not None:
        runner.fence = float(message["fence"])
        with contextlib.suppress(OSError):
            journal.write_fence(runner.kin.state_dir, runner.kin.boot, runner.fence)


def kill(runner: "Runner", message: Message) -> None:
    """End a job: SIGTERM, after the grace SIGKILL, to the whole tree."""
    reason, detail = str(message.get("reason") or Event.CANCEL.value), str(message.get("detail") or "")
    if run := _live(runner, message):
        runner.happen(run, Event.CANCEL, detail, grace_s=message.get("grace_s"), reason=reason)


def suspend(runner: "Runner", message: Message) -> None:
    """Stop a job; its time limit stands still."""
    if run := _live(runner, message):
        runner.happen(run, Event.PAUSE)


def resume(runner: "Runner", message: Message) -> None:
    """Let it go on."""
    if run := _live(runner, message):
        runner.happen(run, Event.RESUME)


def send_signal(runner: "Runner", message: Message) -> None:
    """A signal of the user's choice to the whole tree."""
    if run := _live(runner, message):
        runner.enforcer.signal(run, int(message["signal"]))


def limits(runner: "Runner", message: Message) -> None:
    """Other limits for a running job; a key that is absent stays as it is."""
    run = _live(runner, message)
    if not run:
        return
    if "limit_s" in message:
        run.limit_s = None if message["limit_s"] is None else float(message["limit_s"])
        runs.rewarn(run, time.monotonic())
    if "mem_mb" in message:
        run.mem_mb = None if message["mem_mb"] is None else int(message["mem_mb"])
        enforced = bool(run.cgroup and run.mem_mb is not None and cgroup.limit_memory(run.cgroup, run.mem_mb))
        run.sampled = run.mem_mb is not None and not enforced
        if run.sampled and run.own and run.mem_mb is not None:
            spawn.limit_data(run.pid, run.mem_mb)
    runner.journal.keep(takeover.change_line(run))
    runner.retime(run)


def forget(runner: "Runner", message: Message) -> None:
    """Results that are in the spool."""
    gone = []
    for job_id, attempt in message["jobs"]:
        run = runner.runs.get((job_id, attempt))
        if run and not run.live:
            runner.spent_s += run.cpu_s
            del runner.runs[run.key]
            gone.append([job_id, attempt])
    if gone:
        runner.journal.keep(f'{{"op":"forget","jobs":{encode(gone)}}}')


def usage(runner: "Runner", _message: Message) -> None:
    """What the family and all its jobs have used so far, never less than it said before."""
    jobs, own_s = runner.enforcer.usage(runner.by_pid.values())
    total = runner.spent_s + own_s + sum(run.cpu_s for run in runner.runs.values())
    runner.most_s = max(runner.most_s, total + sum(job["cpu_s"] for job in jobs.values()))
    runner.out.append(encode({"op": "usage", "cpu_s": round(runner.most_s, 3), "jobs": jobs}))


def reexec(runner: "Runner", _message: Message) -> None:
    """Execute the program as it is on disk now; all that is known is in the journal."""
    if not runner.journal.flush():
        runner.out.append(encode({"op": "busy", "jobs": len(runner.by_pid)}))
        return
    runner.tell()
    runner.hang_up()
    runner.kin.execute_anew()


def stop(runner: "Runner", _message: Message) -> None:
    """End the family, if nothing needs it."""
    if runner.runs:
        runner.out.append(encode({"op": "busy", "jobs": len(runner.runs)}))
    elif runner.sweep_at != NEVER:
        runner.leaving = True  # what the last jobs left behind has a moment more, and is not to outlive us
    else:
        runner.end()


def _live(runner: "Runner", message: Message) -> Run | None:
    run = runner.runs.get((message["id"], message["attempt"]))
    return run if run and run.live else None


_ORDERS: dict[str, "Callable[[Runner, Message], None]"] = {
    "hello": hello,
    "lease": lease,
    "kill": kill,
    "suspend": suspend,
    "resume": resume,
    "signal": send_signal,
    "limits": limits,
    "forget": forget,
    "usage": usage,
    "reexec": reexec,
    "stop": stop,
}
