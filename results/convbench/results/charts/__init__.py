"""The charts of runs and comparisons."""
