"""The commands that run and inspect, and the pytest fixtures."""
