"""The rigs that look for a lost or doubled job, as commands; each in the form that takes about a minute."""

PYTEST = ("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider")

RIGS: dict[str, tuple[str, ...]] = {
    "rooms": (
        *PYTEST,
        *(
            f"tests/test_{name}.py"
            for name in ("fsops", "spool", "lease", "recovery", "requests", "peers", "supervise")
        ),
    ),
    "crash points": (*PYTEST, "tests/test_crash_points.py"),
}
