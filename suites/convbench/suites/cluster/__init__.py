"""A run over many machines, on Ray: which block is next, what is asked of a machine, and what runs on it."""
