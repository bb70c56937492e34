"""One transformation of a model per file."""
