"""FashionMNIST: found, fetched, checked and read."""
