"""
What a command tells hooks when it ends a job that waits: it does itself what a node does for jobs that it ends.

The hooks are those of the command's own machine and user (`[hooks]` in config.toml, and plugins), as at a
submission; nobody else notices such an end in time, and who noticed it later could not tell whether
another has told of it. What goes wrong in a hook is no matter of the job.
Invariant: at most once: whoever made the rename starts the hooks after it.
"""

import functools
import time
from typing import TYPE_CHECKING

from spoolq import arguments, deliver
from spoolq.errors import SpoolqError
from spoolq.fsops import Answer

if TYPE_CHECKING:
    from spoolq.entry import Entry
    from spoolq.hook import Hooks
    from spoolq.spool import Placed, Spool

LOOK_S = 0.02  # between looks whether a hook has ended, where as many run as may


def end(spool: "Spool", at: "Placed", detail: str, writer: str) -> Answer:
    """Cancel a job that waits, and tell; see `deliver.finish_unstarted`."""
    answer = deliver.finish_unstarted(spool, at, "cancelled", detail, writer)
    if answer is Answer.WON:
        tell(spool, at.entry, detail)
    return answer


def tell(spool: "Spool", entry: "Entry", detail: str) -> None:
    """Start the hooks for a job that was cancelled; returns when they have begun."""
    from spoolq import hook

    try:
        hooks = _hooks(spool)
        if hooks.wants(hook.END):
            ended = {"detail": detail}
            hooks.tell(hook.END, hook.of_end(entry, deliver.read_job(spool, entry.id), "cancelled", ended))
            while hooks.full:
                time.sleep(LOOK_S)
                hooks.step()
    except (SpoolqError, OSError) as error:
        arguments.complain(f"the hook for ends was not run: {error}")


@functools.lru_cache(maxsize=1)
def _hooks(spool: "Spool") -> "Hooks":
    from spoolq import hook, where
    from spoolq.config import parse_policy

    policy = parse_policy(spool.text.encode(), f"{spool.root}/spool.toml")
    return hook.Hooks(where.settings(), spool.root, where.log_file("hooks.log"), plugins=policy.plugins)
