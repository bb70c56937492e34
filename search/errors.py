"""What can go wrong with a search; messages name the thing, the value and the limit."""

from __future__ import annotations


class SearchError(Exception):
    """Something about the problem, the agent or a trial is wrong."""


class ProblemInvalid(SearchError, ValueError):
    """An objective, a constraint or an option is unknown or contradicts another."""


class IllegalTransition(SearchError):
    """A trial or job was moved to a state that cannot follow its present one."""
