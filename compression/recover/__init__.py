"""One way of getting accuracy back per file."""
