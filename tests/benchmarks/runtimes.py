"""What compression is worth on each runtime: dense and compressed networks, float and INT8.

Every cell is timed against the dense float file on the same runtime, batch and threads,
interleaved; a ratio below 1 is faster. Networks are CIFAR ResNet-20 and -56 with their trained
weights where these lie, and torchvision's MobileNetV2 and ResNet-18 with random ones. `compressed`
keeps half of the channels, of the CIFAR networks only of those inside the blocks, in multiples of
8; nothing is recovered, since only time is looked at.

Cells and built files are kept in `--work`: a run that was stopped goes on where it ended. The
table that is recorded is that of all cells asked for that are there.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision.models
from torch import nn

from compression.apply import ApplyContext, apply
from compression.certificate import certify
from compression.decisions import PruneChannels, Quantize
from compression.export import export_onnx
from compression.methods import Methods, resolve_space
from compression.models.cifar_resnet import cifar_resnet
from compression.plan import Plan
from compression.primitives.quantize import quantize_onnx
from compression.survey import survey
from compression.surveyed import Survey
from search.device import DeviceSpec
from tests.benchmarks.record import record
from tests.cifar import state_dict
from tests.conftest import real_data_folder
from workers.errors import DeviceUnknown, FileRefused
from workers.meters import RUNTIMES, open_runtime
from workers.meters.latency import time_files

SHAPES = {
    "resnet20": (3, 32, 32),
    "resnet56": (3, 32, 32),
    "mobilenet_v2": (3, 224, 224),
    "resnet18": (3, 224, 224),
}
FORMS = ("dense fp32", "compressed fp32", "dense int8", "compressed int8")
SHARE = 0.5
MULTIPLE = 8
CALIBRATION_INPUTS = 16
"""Random: ranges decide nothing about time."""


def network(name: str) -> nn.Module:
    """Return the dense network, eval mode."""
    if name.startswith("resnet") and SHAPES[name][1] == 32:
        depth = int(name.removeprefix("resnet"))
        model = cifar_resnet(depth)
        folder = real_data_folder()
        if folder is not None:
            model.load_state_dict(state_dict(folder, f"cifar_resnet{depth}"))
        return model.eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built: nn.Module = torchvision.models.get_model_builder(name)()
        return built.eval()


def halved(name: str, found: Survey) -> Plan:
    """Return half of the channels everywhere; inside the blocks only of the CIFAR networks."""
    methods = Methods(allow=("prune_channels",), channel_multiple=MULTIPLE, min_keep_ratio=SHARE)
    space = resolve_space(found.sites, methods)
    plan = space.decode(space.uniform(SHARE))
    if SHAPES[name][1] != 32:
        return plan
    inner = {
        site: [decision]
        for site, decision in plan
        if isinstance(decision, PruneChannels) and site.endswith(".conv1")
    }
    return Plan.of(inner)


def files(name: str, folder: Path) -> dict[str, bytes]:
    """Return the ONNX file of every form, made once."""
    paths = {form: folder / f"{name}-{form.replace(' ', '-')}.onnx" for form in FORMS}
    if not all(path.exists() for path in paths.values()):
        shape = SHAPES[name]
        dense = network(name)
        context = ApplyContext.build(dense, survey(dense, shape), shape)
        plan = halved(name, context.survey)
        applied = apply(plan, context)
        certify(dense, applied, plan, shape)
        share = context.survey.costs.cost(plan).macs / context.survey.summary["macs"]
        print(f"{name}: compressed keeps {share:.0%} of the MACs", flush=True)
        rng = np.random.default_rng(0)
        inputs = rng.standard_normal((CALIBRATION_INPUTS, *shape), dtype=np.float32)
        for kind, model in (("dense", dense), ("compressed", applied.model)):
            onnx = export_onnx(model, shape)
            paths[f"{kind} fp32"].write_bytes(onnx)
            paths[f"{kind} int8"].write_bytes(quantize_onnx(onnx, inputs, Quantize()))
    return {form: path.read_bytes() for form, path in paths.items()}


def cells(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield what is to be timed, slow networks last."""
    for name, runtime, batch, threads, form in itertools.product(
        options.networks, options.runtimes, options.batches, options.threads, FORMS
    ):
        if RUNTIMES[runtime].int8 or form.endswith("fp32"):
            yield {
                "network": name,
                "runtime": runtime,
                "batch": batch,
                "threads": threads,
                "form": form,
            }


def built(cell: dict[str, Any], form: str, onnx: bytes, folder: Path) -> bytes:
    """Return a form as the cell's runtime loads it; what differs from the ONNX file is kept."""
    entry = RUNTIMES[cell["runtime"]]
    name = f"{cell['network']}-{form.replace(' ', '-')}-b{cell['batch']}{entry.suffix}"
    path = Path(folder, cell["runtime"], name)
    if path.exists():
        return path.read_bytes()
    file = open_runtime(cell["runtime"], threads=1, seed=0).build(onnx, cell["batch"])
    if file != onnx:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(file)
    return file


def timed(
    cell: dict[str, Any], forms: dict[str, bytes], options: argparse.Namespace
) -> dict[str, Any]:
    """Return a cell with its median and its ratio to the dense float file, or why there is none."""
    device = DeviceSpec(
        name=f"local/{cell['runtime']}-{cell['threads']}t-b{cell['batch']}",
        runtime=cell["runtime"],
        threads=cell["threads"],
        batch=cell["batch"],
    )
    try:
        candidate, baseline = (
            built(cell, form, forms[form], options.work) for form in (cell["form"], "dense fp32")
        )
        found = time_files(
            candidate,
            baseline,
            device,
            seed=options.seed,
            max_seconds=options.max_seconds,
        )
    except (DeviceUnknown, FileRefused) as error:
        return {**cell, "refused": str(error)}
    p50 = next(r for r in found.readings if (r.metric, r.statistic) == ("latency_ms", "p50"))
    ratio = found.ratio
    return {
        **cell,
        "p50_ms": p50.value,
        "p50_interval_ms": [p50.low, p50.high],
        "n": p50.n,
        "ratio": [ratio.value, ratio.low, ratio.high],
        "warnings": list(found.warnings),
        "load_1min": round(os.getloadavg()[0], 2),
    }


def in_words(row: dict[str, Any]) -> str:
    """Return a cell as one line."""
    where = f"{row['network']:>12} {row['runtime']:>13} b{row['batch']:<2} {row['threads']}t"
    if "refused" in row:
        return f"{where} {row['form']:>15}: {row['refused']}"
    value, low, high = row["ratio"]
    return (
        f"{where} {row['form']:>15}: {row['p50_ms']:9.3f} ms, {value:.3f} [{low:.3f}, {high:.3f}]"
    )


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    """Return what names a cell."""
    return tuple(row[field] for field in ("network", "runtime", "batch", "threads", "form"))


def main() -> None:
    """Time every cell that is not there yet, and record the table."""
    installed = [name for name, entry in RUNTIMES.items() if entry.installed]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runtimes", nargs="+", choices=tuple(RUNTIMES), default=installed)
    parser.add_argument("--networks", nargs="+", choices=tuple(SHAPES), default=list(SHAPES))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--max-seconds", type=float, default=10.0, help="of timing, per cell")
    parser.add_argument(
        "--max-load", type=float, help="cells timed beside a higher load are timed again"
    )
    parser.add_argument("--max-wall-s", type=float, default=None, help="no new cell after that")
    parser.add_argument("--work", type=Path, default=Path("/tmp/paretopress-runtimes"))
    parser.add_argument("--fill", action="store_true", help="only time cells, record nothing")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    kept = options.work / "cells.jsonl"
    lines = kept.read_text().splitlines() if kept.exists() else []
    # Of a cell that was timed again the last row counts.
    known = {key(row): row for row in map(json.loads, lines)}
    if options.max_load is not None:
        known = {
            name: row for name, row in known.items() if row.get("load_1min", 0) <= options.max_load
        }
    start = time.monotonic()
    forms: tuple[str, dict[str, bytes]] = ("", {})
    rows, left = [], 0
    for cell in cells(options):
        row = known.get(key(cell))
        if row is None:
            if options.max_wall_s is not None and time.monotonic() - start > options.max_wall_s:
                left += 1
                continue
            if forms[0] != cell["network"]:
                forms = cell["network"], files(cell["network"], options.work)
            row = timed(cell, forms[1], options)
            with kept.open("a") as file:
                file.write(json.dumps(row) + "\n")
        print(in_words(row), flush=True)
        rows.append(row)
    if options.fill:
        print(f"{left} cells left", flush=True)
        return
    record(
        "runtimes",
        passed=left == 0,
        seed=options.seed,
        cells=rows,
        cells_left=left,
        max_seconds=options.max_seconds,
        runtimes={name: metadata.version(RUNTIMES[name].package) for name in options.runtimes},
    )


if __name__ == "__main__":
    main()
