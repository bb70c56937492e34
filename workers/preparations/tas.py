"""Preparation `tas`: a differentiable search of widths and depths on the job's model.

What it leaves is a plan, and the shared weights that were trained on the way.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save

from compression.apply import ApplyContext
from compression.errors import CheckpointInvalid, CompressionError
from compression.methods import resolve_space
from compression.plan import Plan, canonical_json
from compression.primitives.rankings import Rankings
from compression.recover.training import TrainingData
from compression.recover.training_state import Checkpoints, TrainingState
from compression.selectors.selector import Evidence, Scores
from compression.space import PlanSpace
from compression.supernets.width_depth import Found, SearchSpace, search_widths
from compression.supernets.width_depth_choices import DepthChoice, depth_choices, width_choices
from compression.supernets.width_depth_recipe import SearchRecipe
from search.arithmetic import as_points
from search.measurement import Measurement, Reading
from search.objective import Constraint, Objective
from search.problem import Problem
from search.repair import Repair, as_point
from workers.bases import Start
from workers.context import JobContext
from workers.errors import WorkerError
from workers.preparations.preparation import Order, Prepared

logger = logging.getLogger(__name__)

CHECKPOINT_STEPS = 100
"""Steps between two checkpoints: some minutes of a small network on one core."""

RECIPE_OPTIONS = frozenset(field.name for field in dataclasses.fields(SearchRecipe))
OWN_OPTIONS = frozenset({"width", "depth"})


def prepare(order: Order) -> Prepared:
    """Search for `options["macs"]` multiply-adds in `options["steps"]` pairs of steps.

    Options are those of `SearchRecipe`, and `width` and `depth`: what is searched. What the recipe
    shares with the job's recovery (batch size, distillation, augmentation) is the job's where the
    order does not say otherwise.

    Returns:
        `found` with the `plan` (JSON; the most probable choices, grown or shrunk as far as the
        target allows), its `macs`, `macs_decided` (before that), the `expected_plan` (the mean
        choices, likewise), `expected_macs`, `discrepancy`, and the probabilities of `widths` and
        `depths`. Parts: `plan`, `weights`.

    Raises:
        WorkerError: An option is unknown, or missing, or nothing can be searched.
    """
    context, trial = order.context, order.trial
    preparation = trial.preparation
    options = dict(preparation.options) if preparation else {}
    if trial.base is not None or trial.plan.decisions:
        raise WorkerError("Preparation 'tas' searches the job's own model, without base and plan")
    recipe = _recipe(options, context)
    space = _search_space(context, options)
    images, labels = context.data.part("train")
    data = TrainingData(images, labels, context.spec.model.preprocessing)
    distils = context.spec.recovery.distill or labels is None
    model = copy.deepcopy(context.dense)
    with order.steps.step("search"):
        found = search_widths(
            model,
            space,
            data,
            recipe,
            teacher=copy.deepcopy(context.dense) if distils else None,
            generator=torch.Generator().manual_seed(trial.seed),
            backend=context.backend,
            progress=lambda row: order.report(
                {**{k: v for k, v in row.items() if k != "step"}, "step": "search",
                 "done": row["step"]}
            ),
            breathe=lambda: _breathe(context),
            checkpoints=Checkpoints(
                every_steps=CHECKPOINT_STEPS, keep=lambda state: order.keep(state.to_bytes())
            ),
            state=_readable(order.resume),
        )  # fmt: skip
    plan = repaired(found.plan, space.plans, recipe.macs, context)
    expected = repaired(found.expected_plan, space.plans, recipe.macs, context)
    layout = torch.contiguous_format
    tensors = {k: v.clone(memory_format=layout) for k, v in model.state_dict().items()}
    orders = {site: [int(c) for c in order_] for site, order_ in space.order.items()}
    described = {"plan": plan.to_json(), "order": orders}
    return Prepared(
        found=_described(found, plan, expected, context),
        parts={"plan": canonical_json(described).encode(), "weights": save(tensors)},
    )


def repaired(plan: Plan, space: PlanSpace, macs: float, context: JobContext) -> Plan:
    """Return the plan, its widths scaled by one factor, then filled up singly, within `macs`."""
    costs = context.survey.costs
    dense = float(costs.cost(Plan()).macs)
    problem = Problem(
        space=space,
        costs=costs,
        objectives=(Objective(metric="macs", direction="minimize"),),
        constraints=(Constraint(metric="macs", at_most=macs),),
        baseline=Measurement((Reading.exact("macs", dense),)),
    )
    repair = Repair(problem)
    points = repair.fill(as_points([space.encode(plan)], len(space.knobs)))
    widths = [i for i, knob in enumerate(space.knobs) if knob.field == "keep_channels"]
    while True:
        # On a coarse grid one factor stops early: then one width at a time, the dearest that fits.
        point = points[0]
        wider = [
            [*point[:i], point[i] + 1, *point[i + 1 :]]
            for i in widths
            if point[i] + 1 < len(space.knobs[i].choices)
        ]
        points = as_points([point, *wider], len(space.knobs))
        spent = np.where(repair.keeps_bounds(points), repair.arithmetic.costs(points).macs, 0)
        best = int(spent.argmax())
        if not best:
            return space.decode(as_point(point))
        points = points[best : best + 1]


def _breathe(context: JobContext) -> None:
    context.quiet.breathe()


def _readable(checkpoint: bytes | None) -> TrainingState | None:
    """Return a state that can be gone on from: a damaged one is as good as none."""
    if checkpoint is None:
        return None
    try:
        return TrainingState.from_bytes(checkpoint)
    except CheckpointInvalid as error:
        logger.warning("search begins anew", extra={"reason": str(error)})
        return None


def _recipe(options: Mapping[str, Any], context: JobContext) -> SearchRecipe:
    unknown = sorted(set(options) - RECIPE_OPTIONS - OWN_OPTIONS)
    if unknown:
        known = ", ".join(sorted(RECIPE_OPTIONS | OWN_OPTIONS))
        raise WorkerError(f"Preparation 'tas' has no options {unknown}; known: {known}")
    if "macs" not in options:
        raise WorkerError("Preparation 'tas' needs the option 'macs': the target multiply-adds")
    recovery = context.spec.recovery
    settings: dict[str, Any] = {
        "batch_size": recovery.batch_size,
        "distill_weight": recovery.distill_weight,
        "temperature": recovery.temperature,
        "augment": recovery.augment,
    }
    settings |= {name: value for name, value in options.items() if name in RECIPE_OPTIONS}
    try:
        return SearchRecipe(**settings)
    except (CompressionError, TypeError) as error:
        raise WorkerError(f"Preparation 'tas': {error}") from error


def _search_space(context: JobContext, options: Mapping[str, Any]) -> SearchSpace:
    methods, survey = context.spec.methods, context.survey
    plans = resolve_space(survey.sites, methods, survey.costs)
    rankings = context.apply_context.module.rankings
    selector = "l2" if "l2" in methods.selectors else methods.selectors[0]
    widths = width_choices(plans) if options.get("width", True) else ()
    depths: tuple[DepthChoice, ...] = ()
    if options.get("depth", True):
        depths = depth_choices(plans, context.dense, context.spec.model.input_shape)
    try:
        return SearchSpace(
            plans=plans,
            costs=survey.costs,
            couplings=rankings.couplings,
            order=rankings.order(context.dense, selector) if widths else {},
            selector=selector,
            widths=widths,
            depths=depths,
        )
    except CompressionError as error:
        raise WorkerError(f"Preparation 'tas': {error}") from error


def _described(found: Found, plan: Plan, expected: Plan, context: JobContext) -> dict[str, Any]:
    """Return the result as JSON values."""
    return {
        "plan": plan.to_json(),
        "macs": context.survey.costs.cost(plan).macs,
        "macs_decided": found.macs,
        "expected_plan": expected.to_json(),
        "expected_macs": round(found.expected_macs),
        "discrepancy": found.discrepancy,
        "widths": {site: _rounded(pairs) for site, pairs in found.widths.items()},
        "depths": {chain: _rounded(pairs) for chain, pairs in found.depths.items()},
        "log": [dataclasses.asdict(row) for row in found.log[-1:]],
    }


def _rounded(pairs: Sequence[tuple[int, float]]) -> list[list[float]]:
    return [[count, round(probability, 4)] for count, probability in pairs]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class FixedOrder:
    """A selector whose answer is known: the order in which widths were trained.

    Attributes:
        ranks: By site, its channels, most important first.
    """

    ranks: Mapping[str, Sequence[int]]
    needs_labels: bool = False
    needs_inputs: bool = False

    def scores(self, model: Any, couplings: Sequence[Any], evidence: Evidence) -> Scores:
        """Return falling scores along the order, whatever the weights are."""
        del model, evidence
        found = {}
        for coupling in couplings:
            scores = np.zeros(coupling.channels)
            ranks = self.ranks.get(coupling.name, range(coupling.channels))
            scores[list(ranks)] = np.arange(coupling.channels, 0, -1)
            found[coupling.name] = scores
        return found


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class TasBase:
    """The job's model with the weights that were trained at all widths.

    Attributes:
        context: Model, and the order in which widths were trained, whichever selector is named.
    """

    context: ApplyContext

    def start(self, plan: Plan) -> Start:
        """Return the trained network; all of the plan is still to be applied to it."""
        return Start(context=self.context, rest=plan)


def load(parts: Mapping[str, bytes], context: JobContext) -> TasBase:
    """Return the base that `prepare` left."""
    ranks = json.loads(parts["plan"])["order"]
    model = copy.deepcopy(context.dense)
    model.load_state_dict(load_tensors(parts["weights"]))
    model.eval()
    known = context.apply_context
    selectors = dict.fromkeys(("l2", *context.spec.methods.selectors), FixedOrder(ranks))
    rankings = Rankings(known.module.rankings.couplings, selectors)
    module = dataclasses.replace(known.module, dense=model, rankings=rankings)
    return TasBase(dataclasses.replace(known, model=model, module=module))
