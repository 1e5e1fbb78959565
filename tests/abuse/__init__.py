"""Hostile words, files, names and jobs."""
