"""Preparation `finetune`: a plan is applied, and the network that it leaves is recovered.

What remains is a base: later trials take more away from it, as in one-shot pruning that is
repeated (Han et al., 2015, https://arxiv.org/abs/1506.02626, "iterative pruning").
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from search.trial import Fidelity
from workers.bases import start_of
from workers.context import JobContext
from workers.errors import WorkerError
from workers.kept_recovery import KeptRecovery
from workers.meters.accuracy import accuracy
from workers.preparations.preparation import Order, Prepared
from workers.readings import arithmetic
from workers.recovery import check_arithmetic, full_recipe, pressed, recover
from workers.thin_base import ThinBase, composed, load_thin, require_removals, thin_parts


def prepare(order: Order) -> Prepared:
    """Apply the order's plan to its base and train for `options["steps"]`, with the job's recipe.

    Returns:
        `found` with the realised `plan` (JSON) and `top1` on the search subset (the share of equal
        decisions where the data has no labels).

    Raises:
        PlanInvalid: The plan does more than removing channels and blocks, or cannot start here.
        NotCertified: The network is not what the plan says.
    """
    trial, context, steps = order.trial, order.context, order.steps
    require_removals(trial.plan)
    count = steps_of(order)
    start = start_of(trial, context)
    applied = pressed(start.rest, context, steps, thorough=True, start=start)
    check_arithmetic(applied, trial, context)
    recover(
        applied,
        dataclasses.replace(full_recipe(context), steps=count),
        trial,
        context,
        steps,
        order.report,
        KeptRecovery(context.store, order.keep, order.resume),
    )
    images, labels = context.part(Fidelity.PROXY)
    with steps.step("score"):
        logits = context.score_module(applied.model, images)
    readings = accuracy(logits, labels, context.dense_logits(Fidelity.PROXY), "search")
    return Prepared(
        found={"plan": trial.plan.to_json(), "top1": readings[0].value},
        parts=thin_parts(trial.plan, composed(start, applied.patch, context), applied.model),
        readings=(*readings, *arithmetic(trial.plan, context)),
    )


def load(parts: Mapping[str, bytes], context: JobContext) -> ThinBase:
    """Return the base that `prepare` left."""
    return load_thin(parts, context)


def steps_of(order: Order, name: str = "steps") -> int:
    """Return an option that is a number of training steps.

    Raises:
        WorkerError: It is missing, or not a whole number of at least 1.
    """
    preparation = order.trial.preparation
    value: Any = preparation.options.get(name) if preparation else None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise WorkerError(
            f"Option {name!r} of preparation {preparation and preparation.kind!r} is {value!r}; "
            "a whole number of at least 1 is required"
        )
    return value
