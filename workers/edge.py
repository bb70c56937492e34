"""The worker's edge: what breaks in a worker becomes an outcome, not a dead worker."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from compression.errors import CompressionError
from search.errors import SearchError
from search.measurement import Failed
from workers.errors import WorkerError
from workers.executor import Finished, Runner, Work

logger = logging.getLogger(__name__)

OURS = (CompressionError, SearchError, WorkerError)
"""Errors that name a fault of the model, the data or the job: another attempt meets it again."""


def guarded(build: Callable[[], Runner]) -> Runner:
    """Return a runner that builds the real one when first needed, and never raises.

    Any exception, of building or of running, becomes a `Failed` outcome: not retryable when it is
    one of `OURS`, retryable otherwise, since a full disk or a lost network may heal. A build that
    failed is tried again by the next attempt.
    """
    built: list[Runner] = []

    def run(work: Work, report: Callable[[Mapping[str, Any]], None]) -> Finished:
        try:
            if not built:
                built.append(build())
            return built[0](work, report)
        except Exception as error:  # The worker's edge.
            logger.exception("attempt failed", extra={"trial": work.trial.id})
            text = f"{type(error).__name__}: {error}"
            if isinstance(error, OURS):
                return Finished(work=work, outcome=Failed(text))
            frames = "".join(traceback.format_exception(error)[-3:])
            return Finished(work=work, outcome=Failed(f"{text}\n{frames}", retryable=True))

    return run
