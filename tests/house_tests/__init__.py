"""Laws of the house that no linter knows."""
