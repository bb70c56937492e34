"""Models of what was measured; every import of torch in `search` is below here, on demand."""
