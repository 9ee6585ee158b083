"""Finds plugins, checks them, and lists what they offer."""
