"""Exhaustive models of the spool protocol: every order of every step, in a small scope."""
