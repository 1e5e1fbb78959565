"""
Which spool: the one named, or $SPOOLQ_DIR, or the user's or the site's configuration, or ~/.spoolq.

What is read costs every command, so the configuration is read only if nothing stronger names a spool
or somebody asks for a setting, and the policy in spool.toml is parsed on first use.
Invariant: only commands that submit or serve make a spool, and only the default one, which is the
user's own (mode 0700). A configured spool that is absent is an error (exit 78): it is not mounted.
"""

import os
from functools import cached_property
from typing import TYPE_CHECKING

from spoolq import patience
from spoolq.errors import Misconfigured
from spoolq.spool import Spool, initialise

if TYPE_CHECKING:
    from spoolq.config import Policy, Settings

VARIABLE = "SPOOLQ_DIR"
SITE = "/etc/spoolq/config.toml"
DEFAULT = "~/.spoolq"
MOST = 64 << 10  # bytes of a configuration file


class Found:
    """
    A spool that was found and opened.

    `origin` says who named it: `--spool`, `$SPOOLQ_DIR`, a configuration file, or `default`.
    """

    def __init__(self, root: str, origin: str) -> None:
        """Open it; Misconfigured if it is none."""
        self.origin = origin
        self.spool = Spool(root)

    @cached_property
    def policy(self) -> "Policy":
        """What its spool.toml says; Misconfigured if that is wrong."""
        from spoolq.config import parse_policy

        return parse_policy(self.spool.text.encode(), f"{self.spool.root}/spool.toml")

    @cached_property
    def settings(self) -> "Settings":
        """What the site's and the user's configuration files say."""
        return settings()

    def setting(self, key: str) -> str | None:
        """A setting that is a text: `node.name` or `spool`."""
        value = {"node.name": self.settings.node_name, "spool": self.settings.spool}[key]
        return value or None


def find(flag: str = "", *, make: bool = False) -> Found:
    """
    Find and open the spool.

    Args:
        flag: the value of --spool, or empty.
        make: make the default spool if it is absent.

    Raises:
        Misconfigured: it is no spool, or is not mounted.
    """
    root, origin = locate(flag)
    patience.concerns(root)
    if origin == "default" and not os.path.lexists(f"{root}/spool.toml"):
        if not make:
            raise Misconfigured(
                f"{show(root)}: there is no spool yet: `spoolq sub` makes it at first use; "
                f"for another one give --spool DIR or set ${VARIABLE}"
            )
        _make(root)
    return Found(root, origin)


def locate(flag: str = "") -> tuple[str, str]:
    """(absolute path, origin) of the spool; whether it exists is not looked at."""
    if flag:
        return os.path.abspath(os.path.expanduser(flag)), "--spool"
    if named := os.environ.get(VARIABLE):
        return os.path.abspath(os.path.expanduser(named)), f"${VARIABLE}"
    if any(os.path.exists(file) for file in files()):
        said = settings()
        if said.spool:
            origin = next((s.origin for s in said.in_force if s.key == "spool"), "configuration")
            return os.path.abspath(os.path.expanduser(said.spool)), origin
    return os.path.expanduser(DEFAULT), "default"


def files() -> tuple[str, str]:
    """The configuration files, the weaker first."""
    own = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return SITE, os.path.join(own, "spoolq", "config.toml")


def settings() -> "Settings":
    """
    What the configuration files say.

    Raises:
        Misconfigured: one cannot be read or is wrong.
    """
    from spoolq.config import parse_settings

    sources = []
    for file in files():
        try:
            with open(file, "rb") as stream:
                sources.append((file, stream.read(MOST + 1)))
        except FileNotFoundError:
            continue
        except OSError as error:
            raise Misconfigured(f"{file}: {error.strerror}") from error
    return parse_settings(sources)


def log_file(name: str) -> str:
    """Where commands of this user leave a log: `~/.local/state/spoolq/NAME`."""
    own = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return os.path.join(own, "spoolq", name)


def show(path: str) -> str:
    """A path for people: `~/.spoolq`."""
    own = os.path.expanduser("~")
    return "~" + path[len(own) :] if own != "/" and path.startswith(own + "/") else path


def _make(root: str) -> None:
    import secrets
    import sys

    from spoolq.config import new_spool

    raw = bytearray(secrets.token_bytes(16))
    raw[6], raw[8] = raw[6] & 0x0F | 0x40, raw[8] & 0x3F | 0x80  # a random UUID, without the cost of that module
    text = raw.hex()
    uuid = "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))
    if os.path.isdir(root) and any(not name.startswith(".") for name in os.listdir(root)):
        raise Misconfigured(f"{show(root)}: is no spool (no spool.toml) and not empty: move it away, or name another")
    initialise(root, new_spool(uuid, "default"))
    sys.stderr.write(f"spoolq: made a spool of your own, {show(root)}\n")
