"""Supernets as preparations and bases: trained once, then asked for the weights of any plan."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn

from compression.errors import CheckpointInvalid, NotCertified
from compression.plan import Plan, canonical_json
from compression.recover.training import TrainingData
from compression.recover.training_state import TrainingState
from compression.supernets.handing_out import context_for
from compression.supernets.supernet import Supernet
from compression.supernets.supernet_training import SupernetRecipe, train_supernet
from compression.supernets.widths import WidthChoices
from search.measurement import Reading
from search.trial import Fidelity
from workers.bases import Start
from workers.context import JobContext
from workers.errors import WorkerError
from workers.meters.accuracy import accuracy
from workers.preparations.preparation import Order, Prepared

logger = logging.getLogger(__name__)

TIMES_CHANCE = 5.0
"""What the widest network must score, in multiples of chance, before any other is believed."""

DENSE_SHARE = 0.5
"""Share of the dense network's score that is asked for at most: with few classes five times chance
is more than anything can score."""

LEAST_STEPS = 100
"""Between two checkpoints."""

WEIGHTS_PART = "weights"
TERMS_PART = "terms"

RECIPE_OPTIONS = ("steps", "learning_rate", "batch_size", "weight_decay", "label_smoothing")

Make = Callable[[Mapping[str, Any], WidthChoices, Mapping[str, Any], JobContext], Supernet]
"""From options, choices, order of channels by site and the job to an untrained supernet."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SupernetBase:
    """A trained supernet that trials start from.

    Attributes:
        supernet: In eval mode.
        context: Of the job.
    """

    supernet: Supernet
    context: JobContext

    def start(self, plan: Plan) -> Start:
        """Return the full-size model with the plan's weights; the whole plan is left to do.

        Raises:
            PlanInvalid: The plan prunes an unknown site or keeps more channels than there are.
        """
        return Start(
            context=context_for(plan, self.supernet, self.context.apply_context), rest=plan
        )


def prepare_supernet(order: Order, make: Make, own: Mapping[str, Any]) -> Prepared:
    """Train a supernet of the job's model.

    Args:
        order: Its options are those of `SupernetRecipe` but augmentation, `choices` (by site, the
            numbers of channels to train at), `selector` (who orders the channels) and `own`.
        make: Builds the supernet.
        own: Further options and their defaults; may name those of the recipe.

    Returns:
        `found["top1_dense"]`: what the widest network scores on the search subset (the share of
        equal decisions where the data has no labels).

    Raises:
        NotCertified: The widest network has not learnt enough to rank others.
        WorkerError: An option is unknown, the order names a plan or a base.
        CompressionError: An option is out of range.
    """
    trial, context, steps = order.trial, order.context, order.steps
    assert trial.preparation is not None
    if trial.plan.decisions or trial.base is not None:
        raise WorkerError(
            f"A preparation of kind {trial.preparation.kind!r} starts from the job's whole model; "
            f"trial {trial.id} names {'a base' if trial.base else 'a plan'}"
        )
    options = _options(trial.preparation.options, own, trial.preparation.kind)
    wanted = context.spec.recovery
    recipe = SupernetRecipe(
        **{
            "batch_size": wanted.batch_size,
            **{name: options[name] for name in RECIPE_OPTIONS if name in options},
        },
        augment=wanted.augment,
    )
    # A checkpoint of generators is thirty times the model: few of them.
    recipe = dataclasses.replace(recipe, checkpoint_steps=max(LEAST_STEPS, recipe.steps // 8))
    rankings = context.apply_context.module.rankings
    choices = WidthChoices.of(context.survey, context.spec.methods, options.get("choices"))
    ranked = rankings.order(context.apply_context.model, options.get("selector", "l2"))
    supernet = make(options, choices, ranked, context)
    images, labels = context.data.part("train")
    with steps.step("supernet"):
        train_supernet(
            supernet,
            TrainingData(
                images=images, labels=labels, preprocessing=context.spec.model.preprocessing
            ),
            recipe,
            generator=torch.Generator().manual_seed(trial.seed),
            backend=context.backend,
            progress=lambda data: order.report(
                {
                    "step": "supernet",
                    "done": data["step"],
                    "of": data["of"],
                    "loss": data["loss"],
                    "epoch": data["epoch"],
                }
            ),
            breathe=lambda: _breathe(context),
            keep=order.keep,
            resume=_readable(order.resume),
        )
    reading = _checked(supernet, order)
    terms = {
        "options": dict(options),
        "choices": choices.to_json(),
        "order": {site: channels.tolist() for site, channels in supernet.order.items()},
    }
    state = {name: tensor.contiguous() for name, tensor in supernet.state_dict().items()}
    return Prepared(
        found={"top1_dense": reading.value},
        parts={WEIGHTS_PART: save_tensors(state), TERMS_PART: canonical_json(terms).encode()},
        readings=(reading,),
    )


def load_supernet(parts: Mapping[str, bytes], context: JobContext, make: Make) -> SupernetBase:
    """Return the base that `prepare_supernet` left.

    Raises:
        WorkerError: The parts are not what it left, or are of another model.
    """
    try:
        terms = json.loads(parts[TERMS_PART])
        choices = WidthChoices.of(context.survey, context.spec.methods, terms["choices"])
        order = {
            site: np.array(channels, dtype=np.int64) for site, channels in terms["order"].items()
        }
        supernet = make(terms["options"], choices, order, context)
        supernet.load_state_dict(load_tensors(parts[WEIGHTS_PART]))
    except (KeyError, ValueError, RuntimeError) as error:
        raise WorkerError(f"The artifact is no supernet of this job's model: {error}") from error
    return SupernetBase(supernet=supernet.eval(), context=context)


def require_learnt(score: float, dense_score: float, classes: int) -> None:
    """Refuse a supernet whose widest network says too little.

    Args:
        score: Of the widest network, in [0, 1].
        dense_score: Of the job's model, on the same images.
        classes: How many there are.

    Raises:
        NotCertified: The score is below five times chance, or below half of the dense one where
            that is less.
    """
    least = min(TIMES_CHANCE / classes, DENSE_SHARE * dense_score)
    if score < least:
        raise NotCertified(
            f"The supernet's widest network scores {score:.3f} after training; at least "
            f"{least:.3f} is required before others are compared by it. More steps or another "
            "learning rate may help"
        )


def _checked(supernet: Supernet, order: Order) -> Reading:
    """Score the widest network with its own statistics, which the supernet keeps."""
    context, steps = order.context, order.steps
    widest = supernet.full_size(supernet.choices.widest())
    with steps.step("recalibrate"):
        context.recalibrate(widest)
    _take_buffers(supernet.model, widest)
    images, labels = context.part(Fidelity.PROXY)
    with steps.step("score"):
        logits = context.score_module(widest, images)
    dense = context.dense_logits(Fidelity.PROXY)
    reading = accuracy(logits, labels, dense, "search")[0]
    require_learnt(
        reading.value, accuracy(dense, labels, dense, "search")[0].value, supernet.classes
    )
    return reading


def _take_buffers(model: nn.Module, other: nn.Module) -> None:
    found = dict(other.named_buffers())
    for name, buffer in model.named_buffers():
        buffer.copy_(found[name])


def _breathe(context: JobContext) -> None:
    context.quiet.breathe()


def _readable(checkpoint: bytes | None) -> bytes | None:
    """Return a checkpoint that can be gone on from: a damaged one is as good as none."""
    if checkpoint is None:
        return None
    try:
        TrainingState.from_bytes(checkpoint)
    except CheckpointInvalid as error:
        logger.warning("training begins anew", extra={"reason": str(error)})
        return None
    return checkpoint


def _options(given: Mapping[str, Any], own: Mapping[str, Any], kind: str) -> dict[str, Any]:
    known = {*RECIPE_OPTIONS, "choices", "selector", *own}
    unknown = sorted(set(given) - known)
    if unknown:
        raise WorkerError(
            f"A preparation of kind {kind!r} has no options {unknown}; "
            f"known: {', '.join(sorted(known))}"
        )
    return {**own, **given}
