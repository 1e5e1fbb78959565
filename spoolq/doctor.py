"""
The command `doctor`: is this spool, this mount and this machine in order? And the doors to `init`,
`config` and `completion`.

Every assumption that the protocol makes about a file system is tried for real (`trial`); what cannot
be tried from here is said to be so. Each finding is ok, a warning or an error, with its remedy.
Invariant: changes nothing, leaves nothing behind; exit 1 exactly if there is an error.
"""

import os

from spoolq import arguments, host, report
from spoolq.arguments import Command
from spoolq.errors import Misconfigured, SpoolqError
from spoolq.host import FileSystem
from spoolq.spool import TOPS
from spoolq.trial import ERROR, OK, WARNING, Finding
from spoolq.where import Found

DOCTOR = Command(
    "doctor",
    "",
    "Test whether the spool, its mount and this machine are in order.",
    notes="Exit code: 0, or 1 if there is an error; warnings do not count.",
)
COMMANDS = {"doctor": DOCTOR}
FEW_INODES = 1000
_LOCAL = ("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "overlay", "bcachefs", "jfs", "reiserfs")
_CLUSTER = ("lustre", "gpfs", "ceph", "beegfs", "ocfs2", "gfs2", "orangefs")


def doctor(argv: list[str]) -> int:
    """`doctor [--json]`."""
    given = arguments.parse(DOCTOR, argv)
    if given.has("help"):
        return arguments.show_help(DOCTOR)
    findings = examine(given.last("spool"))
    if given.has("json"):
        rows = [{"level": f.level, "what": f.what, "text": f.text, "remedy": f.remedy or None} for f in findings]
        arguments.print_json("doctor", rows)
    else:
        _, colour = arguments.style()
        print("\n".join(report.finding_lines(findings, colour=colour)))
        print(verdict(findings))
    return 1 if any(finding.level == ERROR for finding in findings) else 0


def verdict(findings: list[Finding]) -> str:
    """The last line."""
    errors = sum(1 for finding in findings if finding.level == ERROR)
    warnings = sum(1 for finding in findings if finding.level == WARNING)
    if not errors and not warnings:
        return "All is well."
    return f"{errors} error{'s' * (errors != 1)}, {warnings} warning{'s' * (warnings != 1)}."


def examine(flag: str = "") -> list[Finding]:
    """Look at everything; without a spool only at the machine."""
    from spoolq import where

    findings: list[Finding] = []
    try:
        found = where.find(flag)
        policy = found.policy
    except Misconfigured as error:
        findings.append(Finding(ERROR, "spool", str(error), "mount it, name another by --spool, or spoolq init"))
        return [*findings, *look_at_machine(None)]
    spool = found.spool
    findings.append(
        Finding(OK, "spool", f"{spool.root} ({found.origin}), name {policy.name}, uuid {policy.uuid}, format 1")
    )
    findings += look_at_tops(spool.root)
    findings += look_at_mount(host.file_system(spool.root))
    findings += look_at_space(spool.root, policy.min_free_mb)
    from spoolq import trial

    findings += trial.try_all(spool.root, TOPS)
    findings += look_at_machine(found)
    return findings + look_at_nodes(found)


def look_at_tops(root: str) -> list[Finding]:
    """The directories that a spool has, and who may write there."""
    findings = []
    missing = [top for top in TOPS if not os.path.isdir(f"{root}/{top}")]
    if missing:
        text = f"{', '.join(missing)}: missing"
        findings.append(Finding(ERROR, "directories", text, f"mkdir {' '.join(f'{root}/{top}' for top in missing)}"))
    mode = os.stat(root).st_mode
    if mode & 0o002 and not mode & 0o1000:
        text = "everybody may write in the spool, and may so run commands as the user of its nodes"
        findings.append(Finding(WARNING, "access", text, f"chmod o-w {root}"))
    return findings or [Finding(OK, "directories", "all there")]


# --- the mount


def look_at_mount(mount: FileSystem) -> list[Finding]:
    """What a mount's type and options mean for a spool."""
    if not mount.kind:
        return [Finding(WARNING, "mount", "cannot be looked up here", "")]
    findings = []
    options = dict(option.partition("=")[::2] for option in mount.options)
    if "ro" in options:
        findings.append(Finding(ERROR, "mount", f"{mount.mount_point} is mounted read-only", "mount it read-write"))
    if mount.kind in ("nfs", "nfs4"):
        findings += _look_at_nfs(mount, options)
    elif mount.kind in _LOCAL:
        findings.append(Finding(OK, "mount", f"{mount.kind}, a local disk: serves this machine alone"))
    elif mount.kind in ("tmpfs", "ramfs"):
        text = f"{mount.kind}: all jobs and results are gone after a reboot"
        findings.append(Finding(WARNING, "mount", text, "fine for a trial; else use a disk"))
    elif mount.kind in _CLUSTER:
        findings.append(Finding(OK, "mount", f"{mount.kind}: a cluster file system; the trials below say what it can"))
    else:
        text = f"{mount.kind}: never proved to keep a rename's promises between machines"
        findings.append(
            Finding(WARNING, "mount", text, "use NFS, or one machine only; the trials below see one machine")
        )
    return findings


def _look_at_nfs(mount: FileSystem, options: dict[str, str]) -> list[Finding]:
    version = options.get("vers", "")
    findings = [
        Finding(OK, "mount", f"NFS {version or '?'} from {mount.source}, {'soft' if 'soft' in options else 'hard'}")
    ]
    if "soft" in options or "softerr" in options:
        text = "soft: when the server is slow, calls fail in the middle, and outputs of jobs may have holes"
        findings.append(Finding(WARNING, "mount option", text, "mount with hard, the default"))
    if version in ("2", "3", "4", "4.0"):
        text = f"vers={version}: works, but a lost reply costs up to a minute, and old clients know less of sessions"
        findings.append(Finding(WARNING, "mount option", text, "mount with vers=4.1 or 4.2 if the server can"))
    if "noac" in options or options.get("actimeo", "") == "0" or options.get("lookupcache") == "none":
        text = "noac, actimeo=0 or lookupcache=none: not needed, spoolq never trusts cached attributes"
        findings.append(Finding(WARNING, "mount option", text, "leave it out: it only slows everything down"))
    text = "whether the server exports it sync or async cannot be seen from here"
    findings.append(Finding(OK, "export", f"{text}; with async a crash of the server may lose acknowledged jobs"))
    return findings


def look_at_space(root: str, min_free_mb: float) -> list[Finding]:
    """Room and inodes."""
    space = os.statvfs(root)
    free_mb = space.f_bavail * space.f_frsize >> 20
    findings = []
    if free_mb < min_free_mb:
        text = f"{free_mb} MB free, and min_free_mb is {min_free_mb:g}: no job is taken"
        findings.append(Finding(ERROR, "space", text, "make room (spoolq gc, or remove old jobs/)"))
    elif free_mb < 4 * min_free_mb:
        findings.append(Finding(WARNING, "space", f"only {free_mb} MB free", "make room before jobs are refused"))
    else:
        findings.append(Finding(OK, "space", f"{free_mb} MB free"))
    if space.f_files and space.f_favail < FEW_INODES:
        text = f"only {space.f_favail} more files can be made"
        findings.append(Finding(WARNING, "space", text, "remove old jobs: each takes some files"))
    return findings


# --- this machine and the nodes


def look_at_machine(found: Found | None) -> list[Finding]:
    """What serving jobs needs here: the machine's facts, and a local directory for the journal."""
    findings = [Finding(level, f"machine {what}", text, remedy) for level, what, text, remedy in host.probe()]
    if found is not None:
        findings.append(look_at_state(found.policy.uuid))
    return findings


def look_at_state(uuid: str) -> Finding:
    """The node-local directory that keeps results while the spool is away."""
    from spoolq import fsops, local, presence

    what = "local state"
    base = local.base()
    existed = os.path.isdir(base)
    try:
        path = local.state_directory(uuid, f"doctor-{os.getpid()}")
        try:
            fsops.create(f"{path}/probe", b"x", sync=True)
            fsops.drop(f"{path}/probe")
        finally:
            fsops.remove_directory(path)
            if not existed:
                fsops.remove_directory(base)
    except SpoolqError as error:
        return Finding(ERROR, what, str(error), "only for machines that serve jobs")
    except OSError as error:
        return Finding(ERROR, what, f"{base}: {error.strerror}", f"set ${local.VARIABLE} to a local directory of yours")
    free = fsops.free_mb(base if existed else os.path.dirname(base))
    text = f"{base} is local and writable, {free} MB free"
    if free < presence.LOCAL_FREE_MB:
        remedy = f"a node claims nothing with less than {presence.LOCAL_FREE_MB} MB here; set ${local.VARIABLE}"
        return Finding(WARNING, what, text, remedy)
    return Finding(OK, what, text)


def look_at_nodes(found: Found) -> list[Finding]:
    """Nodes that are gone, and versions that differ."""
    from spoolq import __version__, roster

    seen = roster.look(found.spool)
    if not seen:
        return [
            Finding(WARNING, "nodes", "no node has ever served this spool", "run `spoolq node` where jobs shall run")
        ]
    findings = []
    for node in seen:
        what = f"node {node.name}"
        running = len(found.spool.on_node(node.name))
        with_jobs = f", with {running} job{'s' * (running != 1)} in running/{node.name}" if running else ""
        if node.state == "dead":
            text = f"its daemon does not run{with_jobs}"
            findings.append(Finding(WARNING, what, text, "start `spoolq node` there again; it takes up where it was"))
        elif node.state == "silent":
            text = f"silent for {node.beat_age_s or 0:.0f} s{with_jobs}"
            findings.append(Finding(WARNING, what, text, "is the machine up and the spool mounted there?"))
        elif node.state == "stopped" and running:
            findings.append(Finding(WARNING, what, f"stopped{with_jobs}", "start `spoolq node` there again"))
        else:
            findings.append(Finding(OK, what, node.state))
        if trouble := node.facts.get("trouble"):
            text = f"does not heed spool.toml as it is now: {trouble}"
            findings.append(Finding(ERROR, what, text, "mend it; until then what the node read before holds there"))
        version = node.facts.get("version")
        if version and version != __version__ and node.state not in ("stopped", "dead"):
            text = f"runs version {version}, this is {__version__}"
            findings.append(Finding(WARNING, what, text, "works; bring both to one version"))
    return findings


# --- the doors to the other commands of a spool's keeper


def init(argv: list[str]) -> int:
    """`init [DIR]`: see `establish`."""
    from spoolq import establish

    return establish.init(argv)


def config(argv: list[str]) -> int:
    """`config`: see `establish`."""
    from spoolq import establish

    return establish.config(argv)


def completion(argv: list[str]) -> int:
    """`completion SHELL`: see `completion`."""
    from spoolq import completion as room

    return room.completion(argv)
