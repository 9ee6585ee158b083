"""Checks that a backend leaves the process and its own answers alone."""
