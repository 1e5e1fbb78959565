"""
Paths of a job as one node sees them: `path_map` says which beginnings are called otherwise there.

Invariant: only whole parts of a path are replaced, the longest beginning first; a relative path stays one.
"""

from collections.abc import Mapping

from spoolq.job import Job


def mapped(path: str, table: Mapping[str, str]) -> str:
    """A path by its name on this node."""
    for old in sorted(table, key=len, reverse=True):
        if path == old or path.startswith(old.rstrip("/") + "/"):
            return (
                table[old].rstrip("/") + "/" + path[len(old.rstrip("/")) :].lstrip("/") if path != old else table[old]
            )
    return path


def job_here(job: Job, table: Mapping[str, str], root: str) -> Job:
    """A job with all its paths by their names on this node; a directory in its home is below the spool's root."""
    if not table and job.chdir[:1] == "/":
        return job

    def here(path: str) -> str:
        return mapped(path, table)

    return job._replace(
        chdir=here(job.chdir) if job.chdir[:1] == "/" else f"{root}/{job.chdir}",
        output=job.output and here(job.output),
        error=job.error and here(job.error),
        inputs=tuple(map(here, job.inputs)),
        targets=tuple(map(here, job.targets)),
        stage_in=tuple(map(here, job.stage_in)),
        stage_out=tuple(_target_here(item, table) for item in job.stage_out),
    )


def _target_here(item: str, table: Mapping[str, str]) -> str:
    source, colon, target = item.replace("\\:", "\0").partition(":")
    return (source + colon + mapped(target, table)).replace("\0", "\\:")
