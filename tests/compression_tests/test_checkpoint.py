"""The files of a checkpoint, and the model card among them."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import zipfile
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from safetensors.torch import load

from compression.apply import ApplyContext, apply, replay
from compression.artifact import Digest, ModelArtifact, Preprocessing
from compression.checkpoint import CheckpointParts, assemble
from compression.checkpoint_files import CheckpointFiles, zip_bytes
from compression.container import decode
from compression.decisions import PruneChannels, Quantize
from compression.errors import CheckpointInvalid
from compression.export import export_onnx
from compression.model_card import (
    DeviceRow,
    Interval,
    LayerRow,
    MetricRow,
    ModelCard,
    StepRow,
    installed_versions,
)
from compression.models.cifar_resnet import cifar_resnet
from compression.onnx_session import open_session
from compression.patch import Patch
from compression.plan import Plan
from compression.primitives.quantize import quantize_onnx
from compression.readme import render_readme
from compression.survey import survey
from tests.compression_tests.test_export import random_norms

SHAPE = (3, 32, 32)
NAMES = [
    "LICENSE-NOTE",
    "README.md",
    "model.onnx",
    "model.ppz",
    "model.py",
    "model.safetensors",
    "plan.json",
    "report.json",
]


def card() -> ModelCard:
    return ModelCard(
        name="edge | small",
        source_name="resnet8 <b>",
        source_digest="5" * 64,
        source_licence="MIT, as its owner says.",
        input_shape=SHAPE,
        preprocessing=Preprocessing(mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2)),
        metrics=[
            MetricRow(
                metric="top1",
                baseline=Interval(value=0.9218, low=0.914, high=0.929, n=5000),
                result=Interval(value=0.9102, low=0.902, high=0.918, n=5000),
                change=Interval(value=-0.0116, low=-0.016, high=-0.007, n=5000),
                change_kind="difference",
                conditions="test split",
            ),
            MetricRow(
                metric="download_bytes",
                unit="bytes",
                baseline=Interval(value=921905),
                result=Interval(value=133477),
            ),
        ],
        layers=[
            LayerRow(
                name="layer1.0.conv1",
                decision="16 -> 8 channels",
                params_before=2304,
                params_after=1152,
                macs_before=2359296,
                macs_after=1179648,
                precision="int8",
            )
        ],
        steps=[StepRow(name="distil", detail="2 epochs", score=Interval(value=0.9), wall_s=90.25)],
        data={"dataset": "cifar10", "calibration rows": "64"},
        seed=11,
        versions=installed_versions(),
        warnings=["The machine was busy."],
    )


@pytest.fixture(scope="module")
def parts() -> CheckpointParts:
    torch.manual_seed(0)
    dense = random_norms(cifar_resnet(8))
    context = ApplyContext.build(dense, survey(dense, SHAPE), SHAPE)
    sites = [s.name for s in context.survey.sites if s.kind == "channels" and not s.frozen]
    plan = Plan.of({sites[0]: [PruneChannels(keep_channels=8)], "model": [Quantize()]})
    applied = apply(plan, context)
    images = np.random.default_rng(0).standard_normal((8, *SHAPE), dtype=np.float32)
    source = ModelArtifact(
        weights=Digest("5" * 64),
        format="safetensors",
        architecture="cifar_resnet8",
        input_shape=SHAPE,
        num_classes=10,
    )
    return CheckpointParts(
        model=applied.model,
        onnx=quantize_onnx(export_onnx(applied.model, SHAPE), images, Quantize()),
        plan=plan,
        patch=applied.patch.to_json(),
        source=source,
        seed=11,
        card=card(),
    )


@pytest.fixture(scope="module")
def files(parts: CheckpointParts) -> CheckpointFiles:
    return assemble(parts)


def test_files_are_the_documented_ones(files: CheckpointFiles) -> None:
    assert list(files) == NAMES
    assert all(files.values())


def test_same_parts_same_bytes(parts: CheckpointParts, files: CheckpointFiles) -> None:
    assert assemble(parts) == files
    assert zip_bytes(files) == zip_bytes(dict(reversed(list(files.items()))))


def test_graph_and_container_agree(parts: CheckpointParts, files: CheckpointFiles) -> None:
    assert files["model.onnx"] == parts.onnx
    assert decode(files["model.ppz"]) == parts.onnx
    assert len(files["model.ppz"]) < len(files["model.onnx"])
    x = np.zeros((2, *SHAPE), np.float32)
    assert open_session(files["model.onnx"]).run(None, {"input": x})[0].shape == (2, 10)


def test_weights_are_those_of_the_network(parts: CheckpointParts, files: CheckpointFiles) -> None:
    found = load(files["model.safetensors"])
    expected = parts.model.state_dict()
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_plan_is_replayable(parts: CheckpointParts, files: CheckpointFiles) -> None:
    record = json.loads(files["plan.json"])
    plan = Plan.from_json(record["plan"])
    assert plan == parts.plan
    assert record["plan_digest"] == plan.digest
    assert record["seed"] == 11
    assert ModelArtifact.from_json(record["source"]) == parts.source
    torch.manual_seed(0)
    dense = random_norms(cifar_resnet(8))
    context = ApplyContext.build(dense, survey(dense, SHAPE), SHAPE)
    again = replay(Patch.from_json(record["patch"]), context)
    expected = parts.model.state_dict()
    assert all(torch.equal(t, expected[name]) for name, t in again.state_dict().items())


def test_report_names_every_file_by_digest(files: CheckpointFiles) -> None:
    report = json.loads(files["report.json"])
    for name, entry in report["files"].items():
        assert entry["sha256"] == hashlib.sha256(files[name]).hexdigest()
        assert entry["bytes"] == len(files[name])
    assert set(report["files"]) == set(NAMES) - {"README.md", "report.json"}
    top1 = report["metrics"][0]
    assert top1["baseline"]["value"] == 0.9218
    assert top1["result"]["low"] == 0.902


def test_readme_tells_what_the_card_holds(files: CheckpointFiles) -> None:
    text = files["README.md"].decode()
    for needed in (
        "0.9218 [0.914, 0.929]",
        "0.9102 [0.902, 0.918]",
        "difference -0.0116 [-0.016, -0.007]",
        "133,477",
        "16 -> 8 channels",
        "2,304 -> 1,152",
        "90.2",
        "calibration rows",
        "The machine was busy.",
        torch.__version__.partition("+")[0],
        f"| `model.ppz` | {len(files['model.ppz']):,} |",
    ):
        assert needed in text, needed


def test_readme_shows_what_was_measured_on_each_device() -> None:
    plain = render_readme(card(), {})
    assert "On each device" not in plain
    assert "counts on" not in plain
    top1, size = card().metrics
    latency = dataclasses.replace(
        size, metric="latency_ms", change=Interval(value=0.8, low=0.7, high=0.9), macs_ratio=0.5
    )
    (layer,) = card().layers
    device = DeviceRow(
        device="local/openvino",
        runtime="openvino",
        agreement=0.9975,
        difference=2.5e-6,
        scores={"top1": Interval(value=0.909, low=0.9, high=0.917, n=5000)},
    )
    text = render_readme(
        dataclasses.replace(
            card(),
            metrics=[top1, latency],
            layers=[dataclasses.replace(layer, ms_before=0.0512, ms_after=None)],
            profiled_on="local/onnxruntime",
            devices=[device],
        ),
        {},
    )
    assert "ratio 0.8 [0.7, 0.9]; MACs: ratio 0.5 |" in text
    assert "own counts on local/onnxruntime" in text
    assert "| 0.051 -> not counted |" in text
    assert "| local/openvino | openvino | 0.909 [0.9, 0.917] | 99.75% | 2.5e-06 |" in text


def test_names_cannot_break_the_readme() -> None:
    hostile = dataclasses.replace(
        card(),
        name="x\n# fake\n<script>alert(1)</script>",
        data={"a|b": "<img src=x onerror=y>\n| c | d |"},
    )
    text = render_readme(hostile, {"model.py": 1})
    tags: list[str] = []

    class Tags(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.append(tag)

    Tags().feed(text)
    assert tags == []
    assert "\n# fake" not in text
    widths = {
        line.replace("\\|", "").count("|") for line in text.splitlines() if line.startswith("| a")
    }
    assert widths == {3}


def test_licence_note_names_the_source(files: CheckpointFiles) -> None:
    text = files["LICENSE-NOTE"].decode()
    assert "resnet8 <b>" in text
    assert "5" * 64 in text
    assert "MIT, as its owner says." in text


def test_zip_holds_the_files_and_no_clock(files: CheckpointFiles) -> None:
    with zipfile.ZipFile(io.BytesIO(zip_bytes(files))) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == NAMES
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert archive.read("model.onnx") == files["model.onnx"]


@pytest.mark.parametrize("name", ["../model.py", "/etc/x", "a\\b", "..", ""])
def test_zip_refuses_names_that_are_paths(name: str) -> None:
    with pytest.raises(CheckpointInvalid, match="not a plain file name"):
        zip_bytes({name: b"x"})


def test_numbers_that_are_not_finite_are_refused(parts: CheckpointParts) -> None:
    row = dataclasses.replace(parts.card.metrics[0], result=Interval(value=float("nan")))
    broken = dataclasses.replace(parts, card=dataclasses.replace(parts.card, metrics=[row]))
    with pytest.raises(CheckpointInvalid, match="not finite"):
        assemble(broken)
