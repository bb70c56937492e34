"""How fast the engine makes the trained ResNet-56 on ONNX Runtime: batch 1, one thread, measured.

Target: at least three times as fast as the dense float network, at most one point lost on
held-out data after at most 10 epochs. At these widths a layer costs its overhead more than its
arithmetic: integers and fewer blocks pay, narrower layers hardly do.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from compression.apply import apply
from compression.certificate import certify
from compression.decisions import DropBlock, Quantize
from compression.plan import Plan
from compression.primitives.quantize import quantize_onnx
from compression.recover.training import Recipe
from compression.sensitivity import DamageMeter, drop_order
from search.device import LOCAL_DEVICES
from tests.benchmarks.cifar_engine import BACKEND, SHAPE, CifarEngine
from tests.benchmarks.compression_resnet56 import deployed
from tests.benchmarks.record import record
from tests.conftest import real_data_folder
from workers.meters.latency import time_onnx

TARGET_SPEED = 3.0
TARGET_DROP = 1.0
WIDTH = 0.03
"""Relative width of the interval that each ratio is timed to."""
LONGEST_S = 30.0


def timed(name: str, file: bytes, engine: CifarEngine, seed: int) -> dict[str, Any]:
    """Return latency against the dense float file, interleaved, and held-out accuracy."""
    reading = time_onnx(
        file, engine.dense_file(), LOCAL_DEVICES[0], seed=seed, width=WIDTH, max_seconds=LONGEST_S
    ).readings[0]
    assert reading.ratio is not None
    accuracy, drop = engine.held_out(file)
    ratio = reading.ratio
    return {
        "name": name,
        "p50_ms": reading.value,
        "ratio": [ratio.value, ratio.low, ratio.high],
        "times_faster": round(1 / ratio.value, 2),
        "faster": ratio.high is not None and ratio.high < 1,
        "runtime_bytes": len(file),
        "top1": accuracy,
        "drop": drop.value,
        "drop_interval": [drop.low, drop.high],
    }


def main() -> None:
    """Drop blocks, recover, quantize, and time everything against the dense float network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--drops", type=int, default=10)
    parser.add_argument("--epochs", type=float, default=10.0)
    parser.add_argument("--learning-rate", type=float, default=0.03)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path(".work"))
    options = parser.parse_args()
    folder = real_data_folder()
    if folder is None:
        raise SystemExit("CIFAR-10 and its checkpoints are absent; set PARETOPRESS_TEST_DATA")
    options.work.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    engine = CifarEngine.build(folder, 56, options.threads)
    meter = DamageMeter(engine.context, engine.calibration[:2], BACKEND, engine.statistics[:2])
    blocks = [site.name for site in engine.context.survey.sites if site.kind == "block"]
    order = drop_order(meter, blocks, options.drops)
    plan = Plan.of({block: [DropBlock()] for block in order})
    applied = apply(plan, engine.context)
    certify(engine.dense, applied, plan, SHAPE)
    engine.recalibrate(applied.model)
    recipe = Recipe(epochs=options.epochs, learning_rate=options.learning_rate)
    memory = options.work / f"teacher56-{options.seed}.pt"
    engine.recover(applied.model, recipe, seed=options.seed, memory=memory)
    inputs = torch.cat(list(engine.calibration))[:128].numpy()
    integers = Quantize(calibrator="mse")
    dense, shallow = engine.dense_file(), deployed(applied.model)
    files = {
        "dense fp32": dense,
        "dense int8": quantize_onnx(dense, inputs, integers),
        f"{options.drops} blocks dropped, fp32": shallow,
        f"{options.drops} blocks dropped, int8": quantize_onnx(shallow, inputs, integers),
    }
    rows = [timed(name, file, engine, options.seed) for name, file in files.items()]
    best = rows[-1]
    passed = best["ratio"][2] <= 1 / TARGET_SPEED and best["drop"] <= TARGET_DROP
    record(
        "compression_speed",
        passed=passed,
        seed=options.seed,
        rows=rows,
        dropped=sorted(order),
        macs=applied.cost.macs / engine.context.survey.summary["macs"],
        epochs=options.epochs,
        learning_rate=options.learning_rate,
        regime="candidate and dense file take turns; one thread, batch 1",
        target={"times_faster": TARGET_SPEED, "drop": TARGET_DROP},
        wall_s=round(time.perf_counter() - start),
    )
    if not passed:
        raise SystemExit(f"Target missed: {best['times_faster']} x, drop {best['drop']:.2f}")


if __name__ == "__main__":
    main()
