"""What convbench ships: op backends, architectures and datasets, each a plugin like anybody's."""
