"""Files of a run: written, read, and what the run ran on."""
