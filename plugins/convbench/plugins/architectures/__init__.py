"""Built-in architectures, one module each, named as registered."""
