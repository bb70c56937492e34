"""`python -m paretopress` is the `paretopress` command."""

from __future__ import annotations

from paretopress.cli import app

if __name__ == "__main__":
    app()
