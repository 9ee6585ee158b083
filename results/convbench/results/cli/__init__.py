"""The commands `convbench compare` and `convbench report`."""
