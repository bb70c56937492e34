"""An agent that names one point at a time from what all agents remember."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from compression.space import Point
from search.agent import Request, Snapshot
from search.history import History, fill
from search.problem import Problem
from search.repair import Repair
from search.trial import Trial


class PointAgent(ABC):
    """Implements the treaty of agents around one method, `_suggest`.

    A subclass whose suggestion is a function of the problem, the options, the count of requests,
    the told trials and the pending points alone needs nothing else; one that keeps more overrides
    `snapshot` and `restore`.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._history = History(problem)
        self._repair = Repair(problem)

    def ask(self, n: int) -> Sequence[Request]:
        """Return up to `n` new requests; fewer when it waits or the space is exhausted."""
        return fill(self._history, n, self._suggest)

    def tell(self, trials: Sequence[Trial]) -> None:
        """Learn from finished trials."""
        self._history.tell(trials)

    def snapshot(self) -> Snapshot:
        """Return the count and the pending points."""
        return self._history.snapshot()

    def restore(self, snapshot: Snapshot) -> None:
        """Take up where `snapshot` was made."""
        self._history.restore(snapshot)

    @abstractmethod
    def _suggest(self) -> Point | None:
        """Return a point that nobody asked for, or None to wait or when there is none."""
