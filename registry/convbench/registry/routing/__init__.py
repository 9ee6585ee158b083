"""Runs the convolutions and poolings of a torch model on a backend."""
