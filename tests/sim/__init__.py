"""Whole clusters in one process and in virtual time: the real daemons over a simulated NFS; see README.md."""
