"""Tests of the vocabulary of search and of its agents."""
