from __future__ import annotations

import functools
import json
import time

import pytest
import torch
from torch import nn
from torch.nn import functional

from compression.apply import Applied, ApplyContext, apply, replay
from compression.decisions import PruneChannels, Quantize
from compression.errors import CheckpointInvalid, PlanInvalid
from compression.patch import Patch
from compression.plan import Plan
from compression.site import MODEL_SITE
from compression.survey import survey
from tests.builders import PRUNABLE, SHAPE, MobileNet, SharedNet, seeded, surveyed_resnet


@functools.cache
def make_context(name: str) -> ApplyContext:
    model = seeded(PRUNABLE[name])
    return ApplyContext.build(model, survey(model, SHAPE), SHAPE)


def half(context: ApplyContext, selector: str = "l2") -> Plan:
    return Plan.of(
        {
            site.name: [PruneChannels(keep_channels=site.channels // 2, selector=selector)]
            for site in context.survey.prunable()
        }
    )


def kept_channels(applied: Applied) -> dict[str, list[int]]:
    stage = applied.patch.stage("prune_channels")
    assert stage is not None
    kept: dict[str, list[int]] = stage["kept"]
    return kept


def same_bits(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return list(ours) == list(theirs) and all(torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.mark.parametrize("name", list(PRUNABLE))
def test_applying_is_deterministic_and_leaves_the_dense_model_alone(name: str) -> None:
    context = make_context(name)
    before = {key: tensor.clone() for key, tensor in context.model.state_dict().items()}
    first, second = apply(half(context), context), apply(half(context), context)
    assert same_bits(first.model, second.model)
    assert first.patch == second.patch
    assert all(torch.equal(before[k], t) for k, t in context.model.state_dict().items())


@pytest.mark.parametrize("name", list(PRUNABLE))
def test_a_patch_survives_json_and_replays_to_the_bit_in_another_context(name: str) -> None:
    applied = apply(half(make_context(name)), make_context(name))
    model = seeded(PRUNABLE[name])
    elsewhere = ApplyContext.build(model, survey(model, SHAPE), SHAPE)
    patch = Patch.from_json(json.loads(json.dumps(applied.patch.to_json())))
    assert patch == applied.patch
    assert same_bits(replay(patch, elsewhere), applied.model)


def test_the_model_is_of_the_same_classes_with_true_attributes() -> None:
    context = make_context("mobilenet")
    applied = apply(half(context), context)
    assert [(n, type(m)) for n, m in applied.model.named_modules()] == [
        (n, type(m)) for n, m in context.model.named_modules()
    ]
    depthwise = applied.model.get_submodule("blocks.0.depthwise")
    assert isinstance(depthwise, nn.Conv2d)
    assert (depthwise.in_channels, depthwise.out_channels, depthwise.groups) == (12, 12, 12)
    norm = applied.model.get_submodule("blocks.0.norm2")
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.num_features == 12
    assert norm.running_var is not None
    assert norm.running_var.shape == (12,)
    assert not applied.model.training


def test_training_the_result_does_not_change_the_dense_model() -> None:
    context = make_context("mobilenet")
    before = {key: tensor.clone() for key, tensor in context.model.state_dict().items()}
    model = apply(half(context), context).model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = functional.cross_entropy(model(torch.randn(4, *SHAPE)), torch.arange(4))
    torch.autograd.backward(loss)
    optimizer.step()
    assert all(torch.equal(before[k], t) for k, t in context.model.state_dict().items())
    ours = {t.data_ptr() for t in context.model.state_dict().values()}
    assert not ours & {t.data_ptr() for t in model.state_dict().values()}


def test_kept_channels_are_the_best_ranked_in_their_old_order() -> None:
    context = make_context("flatten")
    plan = Plan.of({"features.0": [PruneChannels(keep_channels=3)]})
    applied = apply(plan, context)
    convolution = context.model.get_parameter("features.0.weight")
    norms = convolution.detach().flatten(1).norm(dim=1)
    expected = tuple(sorted(norms.topk(3).indices.tolist()))
    assert kept_channels(applied) == {"features.0": [*expected]}
    assert torch.equal(
        applied.model.get_parameter("features.0.weight"), convolution[list(expected)]
    )
    assert torch.equal(
        applied.model.get_parameter("features.4.weight"),
        context.model.get_parameter("features.4.weight")[:, list(expected)],
    )


def test_a_flattened_channel_takes_its_columns_along() -> None:
    context = make_context("flatten")
    applied = apply(Plan.of({"features.4": [PruneChannels(keep_channels=5)]}), context)
    columns = [16 * c + i for c in kept_channels(applied)["features.4"] for i in range(16)]
    assert torch.equal(
        applied.model.get_parameter("hidden.weight"),
        context.model.get_parameter("hidden.weight")[:, columns],
    )


def test_shared_tensors_stay_shared() -> None:
    model = seeded(SharedNet)
    context = ApplyContext.build(model, survey(model, SHAPE), SHAPE)
    applied = apply(half(context), context).model
    assert applied.get_parameter("first.weight") is applied.get_parameter("second.weight")


def test_precision_changes_nothing_in_the_module() -> None:
    context = make_context("concat")
    plan = half(context)
    quantized = plan.with_decision(MODEL_SITE, Quantize())
    assert same_bits(apply(plan, context).model, apply(quantized, context).model)
    assert apply(quantized, context).cost.weight_bytes < apply(plan, context).cost.weight_bytes


@pytest.mark.parametrize(
    ("site", "keep", "selector", "message"),
    [
        ("conv1", 8, "l2", "'conv1' must stay whole: .*padding"),
        ("nowhere", 8, "l2", "'nowhere' is unknown"),
        ("layer1.0.conv1", 17, "l2", "has 16 channels; the plan keeps 17"),
        ("layer1.0.conv1", 8, "best", "Unknown selector 'best'; known: l1, l2, bn_scale, fpgm"),
        ("layer1.0.conv1", 8, "taylor", "'taylor' needs labelled batches"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(
    site: str, keep: int, selector: str, message: str
) -> None:
    plan = Plan.of({site: [PruneChannels(keep_channels=keep, selector=selector)]})
    with pytest.raises(PlanInvalid, match=message):
        apply(plan, make_context("resnet20"))


def test_a_patch_that_does_not_fit_is_refused() -> None:
    context = make_context("resnet20")
    for channels in ([0, 16], [1, 0], [0, 0], [-1], []):
        patch = Patch((("prune_channels", {"kept": {"layer1.0.conv1": channels}}),))
        with pytest.raises(PlanInvalid, match="has 16 channels; the patch keeps"):
            replay(patch, context)
    with pytest.raises(PlanInvalid, match="'conv1' is unknown or frozen"):
        replay(Patch((("prune_channels", {"kept": {"conv1": [0, 1]}}),)), context)


@pytest.mark.parametrize(
    "data",
    [
        {"version": 1, "kept": {}},
        {"version": 2},
        {"version": 2, "stages": {"prune_channels": {}}},
        {"version": 2, "stages": [["prune_channels"]]},
        {"version": 2, "stages": [["prune_channels", 3]]},
        {"version": 2, "stages": [["grow", {}]]},
        {"version": 2, "stages": [["sparsify", {}], ["prune_channels", {}]]},
    ],
)
def test_a_damaged_patch_is_refused(data: dict[str, object]) -> None:
    with pytest.raises(CheckpointInvalid, match=r"[Pp]atch"):
        Patch.from_json(data)


def test_a_survey_of_another_model_is_refused() -> None:
    model = seeded(MobileNet)
    with pytest.raises(PlanInvalid, match="the survey is of another one"):
        ApplyContext.build(model, make_context("flatten").survey, SHAPE)


def test_resnet56_is_pruned_in_a_tenth_of_a_second() -> None:
    model, result = surveyed_resnet(56)
    context = ApplyContext.build(model, result, (3, 32, 32))
    plan = half(context)
    assert len(plan.prune_channels()) == 27
    apply(plan, context)
    seconds = []
    for _ in range(5):
        started = time.process_time()
        apply(plan, context)
        seconds.append(time.process_time() - started)
    assert min(seconds) < 0.1
