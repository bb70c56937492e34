"""Latency of a plan foretold from what was measured: never a measurement, never on a front."""
