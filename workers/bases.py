"""Networks that trials start from: the job's model, or what a preparation left."""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from compression.apply import ApplyContext
from compression.artifact import Digest
from compression.plan import Plan, canonical_json
from search.trial import Preparation, PrepareKind, Trial
from workers.context import JobContext
from workers.errors import WorkerError
from workers.store import ArtifactStore

BASES: Mapping[PrepareKind, str] = {
    "finetune": "workers.preparations.finetune:load",
    "admm": "workers.preparations.admm:load",
    "pruning_net": "workers.preparations.pruning_net:load",
    "supernet": "workers.preparations.supernet:load",
    "tas": "workers.preparations.tas:load",
}
"""`module:function` with the signature `(parts, JobContext) -> Base`, by kind of preparation."""


KEPT_BASES = 2
"""Bases that a worker keeps loaded: an agent's newest, and the one that it compares with."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Start:
    """Where a trial begins, and what is left to do.

    Attributes:
        context: What `compression.apply.apply` is given: model, survey, rankings.
        rest: The part of the trial's plan that is still to be applied to that model.
        stages: Patch stages (`compression.patch.Patch.stages`) that lead from the job's model to
            the structure of `context.model`; empty where both are alike.
    """

    context: ApplyContext
    rest: Plan
    stages: tuple[tuple[str, Any], ...] = ()


class Base(Protocol):
    """What a preparation left, loaded."""

    def start(self, plan: Plan) -> Start:
        """Return where a trial of `plan`, counted in the job's model, begins.

        Raises:
            PlanInvalid: The plan cannot start here; the trial is infeasible.
        """
        ...


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Manifest:
    """What is stored of a preparation: the artifact that later requests name as their base.

    Attributes:
        preparation: Kind and options.
        plan: Of its trial.
        base: What it started from; None for the job's model.
        parts: Name to digest of the files that its loader is given.
    """

    preparation: Preparation
    plan: Plan
    base: Digest | None
    parts: Mapping[str, Digest]


def store_prepared(
    preparation: Preparation,
    plan: Plan,
    base: Digest | None,
    parts: Mapping[str, bytes],
    store: ArtifactStore,
) -> Digest:
    """Store the parts of a preparation and return the digest of the manifest that names them."""
    document = {
        "preparation": preparation.kind,
        "options": dict(preparation.options),
        "plan": plan.to_json(),
        "base": base,
        "parts": {name: store.put(data) for name, data in parts.items()},
    }
    return store.put(canonical_json(document).encode())


def read_manifest(digest: Digest, store: ArtifactStore) -> Manifest:
    """Read what `store_prepared` wrote.

    Raises:
        BlobMissing: There is no such artifact.
        WorkerError: It is not what a preparation left.
    """
    try:
        document = json.loads(store.get(digest))
        return Manifest(
            preparation=Preparation(kind=document["preparation"], options=document["options"]),
            plan=Plan.from_json(document["plan"]),
            base=None if document["base"] is None else Digest(document["base"]),
            parts={name: Digest(part) for name, part in document["parts"].items()},
        )
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, WorkerError):
            raise
        raise WorkerError(f"Artifact {digest[:12]} is not what a preparation left") from error


def start_of(trial: Trial, context: JobContext) -> Start:
    """Return where a trial begins: at its base, or at the job's model.

    Raises:
        BlobMissing: The base or a part of it is gone.
        PlanInvalid: The plan cannot start from the base.
        WorkerError: The base is not what a preparation left.
    """
    if trial.base is None:
        return Start(context=context.apply_context, rest=trial.plan)
    loaded = context.bases.pop(trial.base, None) or load_base(trial.base, context)
    context.bases[trial.base] = loaded
    while len(context.bases) > KEPT_BASES:
        context.bases.popitem(last=False)
    return loaded.start(trial.plan)


def load_base(digest: Digest, context: JobContext) -> Base:
    """Return the base that an artifact is.

    Raises:
        BlobMissing: The artifact or a part of it is gone.
        WorkerError: It is not what a preparation left, or nothing can start from its kind.
    """
    manifest = read_manifest(digest, context.store)
    load = resolve(BASES, manifest.preparation.kind, "start a trial from")
    parts = {name: context.store.get(part) for name, part in manifest.parts.items()}
    base: Base = load(parts, context)
    return base


def resolve(registry: Mapping[PrepareKind, str], kind: str, purpose: str) -> Callable[..., Any]:
    """Return the function that a registry names for a kind.

    Args:
        registry: Kind to `module:function`.
        kind: Of a preparation.
        purpose: What is wanted of it, for the message.

    Raises:
        WorkerError: The kind is unknown here, or its module is not installed.
    """
    name = {str(known): path for known, path in registry.items()}.get(kind)
    if name is None:
        raise WorkerError(
            f"Nothing here can {purpose} a preparation of kind {kind!r}; "
            f"possible: {', '.join(registry)}"
        )
    module, _, attribute = name.partition(":")
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise WorkerError(
            f"Nothing here can {purpose} a preparation of kind {kind!r}: "
            f"module {module} is not installed"
        ) from error
    except AttributeError as error:
        raise WorkerError(f"Module {module} has no {attribute!r} for kind {kind!r}") from error
    return found
