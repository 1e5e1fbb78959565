"""
A cluster scheduler made of nothing but a directory.

Importing a room imports this first, so it stays empty but for the version: an eager import here
would hand the spool to the runner, which must not reach it, and slow every command.
"""

__version__ = "0.1.0"
