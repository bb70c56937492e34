"""The whole service, real processes."""
