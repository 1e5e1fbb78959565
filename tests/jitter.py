"""
Everything takes now and then longer than one thinks: random pauses, with which a test that leans on an order of events
that nothing promises is found in an hour instead of on somebody's busy machine.

`JITTER_S=0.4 python -m pytest -n 8` pauses up to 0.4 s: all programs of a Cluster at one in thirty calls that
touch files or processes, and the tests between two commands and after what they waited for.
"""

import functools
import os
import random
import time
from collections.abc import Callable
from typing import Any

LONGEST_S = float(os.environ.get("JITTER_S", "0"))
CALLS = "listdir rename link unlink mkdir rmdir fsync open posix_spawn kill".split()
SHARE = 1 / 30  # a command makes about thirty such calls, a node about twenty for each job
_random = random.Random()


def pause(share: float = 1 / 4) -> None:
    """Sleep, in this share of the cases, where it is asked for."""
    if LONGEST_S and _random.random() < share:
        time.sleep(_random.uniform(0, LONGEST_S))


def _late(call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def later(*args: Any, **kwargs: Any) -> Any:
        pause(SHARE)
        return call(*args, **kwargs)

    return later


def everywhere() -> None:
    """From now on in this process: what sitecustomize calls."""
    for name in CALLS if not hasattr(os.rename, "__wrapped__") else []:
        setattr(os, name, _late(getattr(os, name)))
