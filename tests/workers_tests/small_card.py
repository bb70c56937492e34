"""A card with something of everything, and a checkpoint's files that are no more than names."""

from __future__ import annotations

from compression.artifact import Preprocessing
from compression.model_card import DeviceRow, Interval, LayerRow, MetricRow, ModelCard, StepRow

CARD = ModelCard(
    name="edge",
    source_name="resnet8",
    source_digest="5" * 64,
    input_shape=(3, 32, 32),
    preprocessing=Preprocessing(mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2)),
    metrics=(
        MetricRow(metric="macs", baseline=Interval(value=8), result=Interval(value=4),
                  change=Interval(value=0.5, low=0.5, high=0.5)),
        MetricRow(metric="latency_ms", unit="ms", baseline=Interval(value=2.0),
                  result=Interval(value=1.0, low=0.9, high=1.1, n=40),
                  change=Interval(value=0.5, low=0.4, high=0.6),
                  conditions="local/onnxruntime, p50", macs_ratio=0.5),
    ),
    layers=(LayerRow(name="conv", decision="keeps 8", params_before=2, params_after=1,
                     macs_before=8, macs_after=4, precision="float32", ms_before=0.5),),
    profiled_on="local/onnxruntime",
    devices=(DeviceRow(device="local/openvino", runtime="openvino", agreement=1.0, difference=0.0,
                       scores={"top5": Interval(value=1.0), "top1": Interval(value=0.9)}),),
    steps=(StepRow(name="recover", score=Interval(value=0.9)), StepRow(name="quantize")),
    data={"test rows": "5", "dataset": "digits"},
    seed=3,
    versions={"torch": "2", "onnx": "1"},
    warnings=("The machine was busy.",),
)  # fmt: skip
FILES = {"model.py": b"code", "model.onnx": b"graph"}
