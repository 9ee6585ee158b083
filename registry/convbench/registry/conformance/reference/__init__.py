"""Reference answers: output and gradients of a call in float64, and how far from them rounding may lead."""
