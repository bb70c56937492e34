"""What can go wrong with a model or a plan; messages name the thing, the value, the limit."""

from __future__ import annotations


class CompressionError(Exception):
    """Something about the model, the plan or its application is wrong."""


class PlanInvalid(CompressionError, ValueError):
    """The plan or the space contradicts itself or the model's sites."""


class ModelRefused(CompressionError, ValueError):
    """The uploaded model cannot be accepted: its format, its weights or its shapes."""


class DataRefused(CompressionError, ValueError):
    """The dataset cannot be accepted: its format, its labels or its pixels."""


class NotCertified(CompressionError):
    """The compressed model failed its certificate; the message names the site or the check."""


class CheckpointInvalid(CompressionError):
    """A checkpoint or container is damaged or does not follow the documented format."""
