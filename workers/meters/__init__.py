"""One measured quantity per file."""
