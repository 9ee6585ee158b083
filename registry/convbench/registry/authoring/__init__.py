"""What authors of backends build on: derived gradients, torch ops, new packages."""
