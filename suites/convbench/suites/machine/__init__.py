"""The machine: load, noise, GPU clocks, cores and memory."""
