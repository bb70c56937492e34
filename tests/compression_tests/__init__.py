"""Tests of the compression package."""
