"""The rigs that look for a lost or doubled job, as commands; each takes about a minute on a quiet machine."""

PYTEST = ("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider")
ROOMS = ("fsops", "spool", "lease", "peers", "recovery", "requests", "supervise", "durable")

RIGS: dict[str, tuple[str, ...]] = {
    "rooms": (*PYTEST, *(f"tests/test_{name}.py" for name in ROOMS)),
    "crash points": (*PYTEST, "tests/test_crash_points.py"),
    "simulation": ("-m", "tests.sim", "--seeds", "600"),
    "real crashes": (*PYTEST, "tests/crash"),
}
