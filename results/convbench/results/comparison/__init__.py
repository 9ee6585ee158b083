"""Compares the results of two or more runs."""
