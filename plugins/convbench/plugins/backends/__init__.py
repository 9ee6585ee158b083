"""Built-in backends, one module each, named as registered."""
