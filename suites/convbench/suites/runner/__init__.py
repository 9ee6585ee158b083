"""The parent side of a run: from the plan to the rows."""
