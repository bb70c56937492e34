"""Client of a ParetoPress server: post a model and its limits, pull compressed checkpoints."""

from __future__ import annotations

from paretopress.client import Client
from paretopress.embedded import local
from paretopress.errors import ClientError
from paretopress.jobs import Job
from paretopress.problems import ApiProblem

__all__ = ["ApiProblem", "Client", "ClientError", "Job", "local"]
