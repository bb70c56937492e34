"""A job's recovery options reach the training."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch

from compression.apply import ApplyContext, apply
from compression.decisions import PruneChannels, Quantize, QuantizeWeights
from compression.methods import Methods, resolve_space
from compression.models.digits_cnn import digits_cnn
from compression.plan import Plan
from compression.recover import averaging, losses
from compression.recover.fake_quant import FakeQuant
from compression.recover.training import Recipe
from compression.site import MODEL_SITE
from compression.survey import survey
from tests.workers_tests.works import JOB
from workers import job
from workers.errors import WorkerError
from workers.job import JobSpec, Recovery
from workers.recovery import full_recipe
from workers.recovery_recipe import ROUNDED_SHARE, quantization_hooks

SHAPE = (1, 8, 8)
ASKED: dict[str, Any] = {
    "kd_loss": "ce_soft",
    "feature_loss": "cckd",
    "mixup": 0.25,
    "average": "ema",
    "weight_decay": 1e-3,
    "early_stop": 7,
}


def recipe_of(recovery: Recovery) -> Recipe:
    spec = dataclasses.replace(JOB, recovery=recovery)
    context: Any = SimpleNamespace(spec=JobSpec.from_json(spec.to_json()))
    return full_recipe(context)


def test_every_option_reaches_the_recipe() -> None:
    recipe = recipe_of(Recovery(**ASKED))
    assert {name: getattr(recipe, name) for name in ASKED} == ASKED


def test_defaults_are_what_jobs_recovered_with_before_there_were_options() -> None:
    plain = Recipe(learning_rate=0.02)
    assert recipe_of(Recovery()) == plain


def test_a_stored_job_without_the_options_has_their_defaults() -> None:
    stored = JOB.to_json()
    for name in (*ASKED, "quantization_aware"):
        del stored["recovery"][name]
    del stored["methods"]["refit"]
    assert JobSpec.from_json(stored) == JOB


def test_features_want_the_original_model() -> None:
    with pytest.raises(WorkerError, match=r"feature_loss is 'nst' and recovery\.distill is false"):
        Recovery(distill=False, feature_loss="nst")


def test_the_torch_free_names_are_those_of_the_engine() -> None:
    assert get_args(job.KdLoss) == losses.KD_LOSSES
    assert get_args(job.FeatureLoss) == tuple(losses.FEATURE_WEIGHTS)
    assert get_args(job.Average) == averaging.AVERAGES


@pytest.fixture(scope="module")
def context() -> ApplyContext:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = digits_cnn()
    return ApplyContext.build(model, survey(model, SHAPE), SHAPE)


INT8 = Plan.of({MODEL_SITE: [Quantize()]})
CODED = Plan.of({MODEL_SITE: [Quantize(), QuantizeWeights(bits=4)]})
AWARE = Recovery(quantization_aware=True)


def test_int8_plans_train_their_last_quarter_rounded(context: ApplyContext) -> None:
    applied = apply(INT8, context)
    (hook,) = quantization_hooks(INT8, applied, AWARE)
    assert isinstance(hook, FakeQuant)
    hook.start(applied.model, 40)
    images = torch.randn(4, *SHAPE)
    plain: list[torch.Tensor] = []
    rounded: list[torch.Tensor] = []
    for step in range(40):
        out = applied.model(images)
        (rounded if hook._mode.active else plain).append(out)
        hook.after_step(applied.model, step)
    hook.finish(applied.model)
    assert len(rounded) == 40 * ROUNDED_SHARE
    assert not torch.equal(plain[-1], rounded[0])
    assert torch.equal(applied.model(images), plain[0])


def test_nobody_rounds_unasked(context: ApplyContext) -> None:
    applied = apply(INT8, context)
    assert quantization_hooks(INT8, applied, Recovery()) == ()
    assert quantization_hooks(Plan(), applied, AWARE) == ()


def test_with_low_bits_the_second_training_rounds(context: ApplyContext) -> None:
    first = apply(CODED.before_codes(), context)
    assert quantization_hooks(CODED, first, AWARE) == ()
    (hook,) = quantization_hooks(CODED, apply(CODED, context), AWARE)
    assert isinstance(hook, FakeQuant)
    hook.start(first.model, 100)
    assert hook._mode.active
    hook.finish(first.model)


def test_refit_is_in_every_plan_of_the_space(context: ApplyContext) -> None:
    plain = resolve_space(context.survey.sites, Methods(), context.survey.costs)
    space = resolve_space(
        context.survey.sites, Methods(refit="least_squares"), context.survey.costs
    )
    point = space.smallest()
    plan = space.decode(point)
    assert {d.refit for d in plan.prune_channels().values()} == {"least_squares"}
    assert space.encode(plan) == point
    assert type(space).from_json(space.to_json()) == space
    assert not plain.contains(plan)
    assert not space.contains(plain.decode(point))
    assert "refit" not in plain.to_json()
    # As stored before there was a refit.
    assert (
        plain.decode(point).digest
        == Plan.of(
            {
                site: [
                    PruneChannels(keep_channels=d.keep_channels)
                    if isinstance(d, PruneChannels)
                    else d
                    for d in decisions
                ]
                for site, decisions in plan.decisions
            }
        ).digest
    )
