"""Tests of running and measuring."""
