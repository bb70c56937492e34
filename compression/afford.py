"""What a job can afford of what it allows: methods that want what it has not are left out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from compression.choices import parse
from compression.decisions import Factorize, Sparsify
from compression.errors import PlanInvalid
from compression.methods import Methods

LABELLED_SELECTORS = frozenset({"taylor", "fisher", "dcp"})
"""Selectors that take gradients of a labelled loss."""

INPUT_SELECTORS = frozenset({"apoz", "thinet", "lasso"})
"""Selectors that look at activations."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """What a job has to work with.

    Attributes:
        labels: Whether its data are labelled.
        calibration: Images for activation ranges and activations.
        training: Images to learn from.
        float_only: Devices that the job names and on whose runtime INT8 files do not run, in
            order.
    """

    labels: bool = True
    calibration: int = 1
    training: int = 1
    float_only: tuple[str, ...] = ()


def affordable(methods: Methods, means: Means) -> tuple[Methods, tuple[str, ...]]:
    """Return the methods without what the job cannot afford, and what was left out and why.

    Raises:
        PlanInvalid: Nothing is left.
    """
    notes: list[str] = []

    def keep(name: str, values: Sequence[str], fits: Callable[[str], str | None]) -> Any:
        reasons = {value: fits(value) for value in values}
        notes.extend(f"{name} {v!r} is left out: {why}" for v, why in reasons.items() if why)
        return tuple(value for value, why in reasons.items() if why is None)

    no_images = None if means.calibration else "there are no calibration images"

    def selector(name: str) -> str | None:
        if name in LABELLED_SELECTORS and not means.labels:
            return "the dataset has no labels"
        return no_images if name in INPUT_SELECTORS else None

    def needs_images(kind: str) -> Callable[[str], str | None]:
        def reason(text: str) -> str | None:
            decision = parse(kind, text)
            looks = isinstance(decision, Factorize) and decision.whiten
            looks |= isinstance(decision, Sparsify) and decision.criterion == "obs"
            return no_images if looks else None

        return reason

    changed = {
        "selectors": keep("selector", methods.selectors, selector) or ("l2",),
        "factorize": keep("factorize", methods.factorize, needs_images("factorize")),
        "sparsify": keep("sparsify", methods.sparsify, needs_images("sparsify")),
    }

    def method(name: str) -> str | None:
        if name == "quantize" and means.float_only:
            return f"INT8 files do not run on {', '.join(means.float_only)}"
        if name in ("quantize", "merge_pool") and no_images:
            return no_images
        return "none of its ways is affordable" if name in empty else None

    empty = {kind for kind in ("factorize", "sparsify") if not changed[kind]}
    allow = keep("method", methods.allow, method)
    if not allow:
        raise PlanInvalid(f"No method is left: {'; '.join(notes)}")
    if methods.refit != "none" and no_images:
        changed["refit"] = "none"
        notes.append(f"refit {methods.refit!r} is left out: {no_images}")
    if not means.training:
        notes.append("there are no training images: finalists are recalibrated, not trained")
    kept = {name: values for name, values in changed.items() if values}
    return dataclasses.replace(methods, allow=allow, **kept), tuple(notes)
