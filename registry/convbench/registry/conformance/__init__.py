"""Verifies backends against a float64 reference."""
