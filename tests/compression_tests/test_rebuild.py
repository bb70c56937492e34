from __future__ import annotations

import json
import subprocess
import sys

import torch

from compression.apply import ApplyContext, apply, replay
from compression.decisions import DECISIONS, MergePool
from compression.models.cifar_resnet import cifar_resnet
from compression.patch import Patch
from compression.survey import survey
from tests.compression_tests.rebuild import mixed_plan, rebuild
from tests.compression_tests.test_checkpoint import SHAPE
from tests.compression_tests.test_export import random_norms


def test_plan_source_and_seed_rebuild_the_same_checkpoint_in_a_new_process() -> None:
    plans = [mixed_plan(integers=integers) for integers in (False, True)]
    documents = [{"plan": plan.to_json(), "seed": 5} for plan in plans]
    found = subprocess.run(
        [sys.executable, "-m", "tests.compression_tests.rebuild"],
        input=json.dumps(documents),
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.split() == [rebuild(document) for document in documents]


def test_the_plan_takes_every_kind_of_decision() -> None:
    # A CIFAR ResNet has no pool that a convolution could take over.
    every = set(DECISIONS) - {MergePool.kind}
    assert {d.kind for _, d in mixed_plan(integers=True)} == every


def test_the_structure_replays_from_the_patch_and_the_weights_from_the_state() -> None:
    torch.manual_seed(3)
    dense = random_norms(cifar_resnet(14)).eval()
    inputs = [torch.randn(32, *SHAPE, generator=torch.Generator().manual_seed(0))]
    context = ApplyContext.build(dense, survey(dense, SHAPE), SHAPE, calibration=inputs)
    applied = apply(mixed_plan(integers=False), context)
    patch = Patch.from_json(json.loads(json.dumps(applied.patch.to_json())))
    # Replay needs no data.
    bare = ApplyContext.build(dense, context.survey, SHAPE)
    model = replay(patch, bare)
    model.load_state_dict(applied.model.state_dict(), strict=True)
    x = torch.randn(2, *SHAPE)
    with torch.no_grad():
        assert torch.equal(model.eval()(x), applied.model(x))
