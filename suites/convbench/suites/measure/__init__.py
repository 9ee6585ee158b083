"""Timed steps, training, and what is counted and converted around them."""
