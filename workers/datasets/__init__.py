"""Datasets: reading, checking and splitting; only `builtin.py` may import torch."""
