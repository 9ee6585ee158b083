"""Backends that cheat, one plugin each, their honest twin, and what they are shown on; see docs/cheats.md."""
