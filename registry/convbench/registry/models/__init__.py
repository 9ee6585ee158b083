"""Makes networks by name and describes them layer by layer."""
