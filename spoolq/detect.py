"""
Which devices this machine has, as far as its files tell; a site's configuration says more, and wins.

NVIDIA's driver makes /dev/nvidia0, /dev/nvidia1, .. one for each card, and writes their models under /proc.
No library is loaded: a node without a card needs none, and one with a broken driver would hang in it.
Invariant: reads only; what cannot be read is not there.
"""

import contextlib
import os
import re

from spoolq.devices import GPU, Kind, numbered

_NODE = re.compile(r"nvidia([0-9]{1,4})")
_MODEL = re.compile(r"^Model:\s*(.*\S)", re.MULTILINE)
_UNSAFE = re.compile(r"[^a-z0-9_.-]+")


def devices(root: str = "") -> dict[str, Kind]:
    """
    The kinds of devices here: `gpu` for NVIDIA's cards.

    Args:
        root: of the tree to read, for tests.
    """
    numbers: list[int] = []
    with contextlib.suppress(OSError):
        numbers = sorted(int(match[1]) for name in os.listdir(f"{root}/dev") if (match := _NODE.fullmatch(name)))
    if not numbers:
        return {}
    models = _models(f"{root}/proc/driver/nvidia/gpus")
    # cards of different models have no one type: the site may say which is which by kinds of its own
    kind = numbered(GPU, 0)._replace(ids=tuple(map(str, numbers)), type=models.pop() if len(models) == 1 else "")
    return {GPU: kind}


def _models(directory: str) -> set[str]:
    """`nvidia-a100-sxm4-40gb`: the models as labels."""
    found = set()
    with contextlib.suppress(OSError):
        for card in os.listdir(directory):
            with open(f"{directory}/{card}/information", encoding="utf-8", errors="replace") as file:
                if model := _MODEL.search(file.read(4096)):
                    found.add(_UNSAFE.sub("-", model[1].lower()).strip("-")[:64])
    return found
