"""One criterion per file: which channels a primitive removes."""
