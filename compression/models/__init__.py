"""Architectures by name, and how weights get into them."""
