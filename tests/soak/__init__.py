"""Random real work under random real faults, for as long as asked; `python -m tests.soak --help`."""
