"""Datasets that convbench ships: plugins like anybody's, with what finds, verifies and fetches them."""
