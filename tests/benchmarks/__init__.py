"""Figures, never verdicts: `python -m tests.benchmarks.NAME`."""
