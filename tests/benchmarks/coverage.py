"""How many of torchvision's classifiers can be pruned: half of every prunable site, certified.

For every builder of `torchvision.models`, with random weights: the survey, a plan that keeps half
of every site that is not frozen, the thorough certificate, a backward pass, the ONNX export and
its agreement with the module. Covered means all of that, with at least one site pruned. One
process per model, one after the other; a model that has a row in the table is skipped unless it
is named. Target: 72 of 80.

    python -m tests.benchmarks.coverage              # what is missing in the table
    python -m tests.benchmarks.coverage swin_t       # this one again
    python -m tests.benchmarks.coverage --summary    # records what the table says
"""

from __future__ import annotations

import argparse
import collections
import gc
import json
import multiprocessing
import resource
import time
import traceback
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from compression.apply import ApplyContext, apply
from compression.attention import attention_of
from compression.certificate import certify
from compression.counting import count_macs, count_params
from compression.decisions import PruneChannels
from compression.errors import CompressionError
from compression.export import export_onnx, parity
from compression.plan import Plan
from compression.survey import survey
from tests.benchmarks.record import record

GOLDEN = Path(__file__).parents[1] / "golden" / "coverage.json"
TARGET = 72
LARGEST_PARITY = 1e-4
SEED = 0

_SIDES = {"maxvit_t": 224, "inception_v3": 80, "alexnet": 224}
DEFAULT_SIDE = 32
"""Pixels: structure is what is tried, and it is the same at any size. MaxViT takes 224 only."""

_OPTIONS: dict[str, dict[str, Any]] = {
    # Their own initialisation takes minutes and changes no structure.
    "googlenet": {"init_weights": False},
    "inception_v3": {"init_weights": False},
    # Few tokens: the size is an argument of the builder, and fixes one table of positions.
    **{f"vit_{size}_{patch}": {"image_size": 32} for size in "bl" for patch in (16, 32)},
    "vit_h_14": {"image_size": 28},
}


def names() -> list[str]:
    """Return the classifiers of torchvision."""
    return list(torchvision.models.list_models(module=torchvision.models))


def size(name: str) -> int:
    """Return the published number of parameters of a classifier, to begin with the small ones."""
    weights = torchvision.models.get_model_weights(name)
    return min(int(entry.meta["num_params"]) for entry in weights)


def build(name: str) -> tuple[nn.Module, tuple[int, int, int]]:
    """Return a classifier with random weights, and the shape of its inputs."""
    torch.manual_seed(SEED)
    options = _OPTIONS.get(name, {})
    model = torchvision.models.get_model(name, weights=None, **options)
    side = options.get("image_size", _SIDES.get(name, DEFAULT_SIDE))
    for parameter in model.parameters():
        # Heads that begin at zero and layer scales of 1e-6 would hide what is wrong before them.
        if parameter.dim() > 1 and float(parameter.detach().abs().max()) < 1e-3:
            fan_in = parameter[0].numel()
            nn.init.normal_(parameter, 1.0 if fan_in == 1 else 0.0, fan_in**-0.5)
    return model.eval(), (3, side, side)


def half(context: ApplyContext) -> Plan:
    """Return the plan that keeps half of every site, at least one channel."""
    return Plan.of(
        {
            site.name: [PruneChannels(keep_channels=max(1, site.channels // 2))]
            for site in context.survey.prunable()
        }
    )


def measure(name: str) -> dict[str, Any]:
    """Return the row of one model."""
    started = time.perf_counter()
    model, shape = build(name)
    heads = {
        attention.coupling.name: attention.coupling.channels
        for path, module in model.named_modules()
        if (attention := attention_of(path, module)) is not None
    }
    found = survey(model, shape)
    prunable = {site.name for site in found.prunable()}
    channels = [site for site in found.sites if site.kind == "channels"]
    reasons = collections.Counter(_kind_of(site.frozen) for site in channels if site.frozen)
    row: dict[str, Any] = {
        "model": name,
        "input": list(shape),
        "sites": len(channels),
        "prunable": len(prunable),
        "heads": sum(count for site, count in heads.items()),
        "heads_prunable": sum(count for site, count in heads.items() if site in prunable),
        "frozen": dict(sorted(reasons.items())),
        "params": count_params(model),
        "macs": found.summary["macs"],
    }
    try:
        row |= _prune(model, found, shape)
        if not prunable:
            raise CompressionError(found.summary["untraced"] or f"every site is frozen: {reasons}")
        if not row["parity"] <= LARGEST_PARITY:
            raise CompressionError(f"parity is {row['parity']:.1e}; {LARGEST_PARITY:g} is allowed")
        row["refused"] = None
    except CompressionError as error:
        row["refused"] = str(error)
    row["wall_s"] = round(time.perf_counter() - started, 1)
    row["peak_gb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 1)
    return row


def _prune(model: nn.Module, found: Any, shape: tuple[int, int, int]) -> dict[str, Any]:
    context = ApplyContext.build(model, found, shape)
    del model
    gc.collect()
    plan = half(context)
    applied = apply(plan, context)
    certify(context.model, applied, plan, shape, thorough=True)
    thin = applied.model
    row: dict[str, Any] = {
        "params_after": count_params(thin),
        "macs_after": count_macs(thin, shape),
    }
    del context, applied
    gc.collect()
    inputs = torch.randn(2, *shape, generator=torch.Generator().manual_seed(SEED))
    thin(inputs).square().mean().backward()
    used = [p.grad for p in thin.parameters() if p.grad is not None]
    if not used or not all(bool(torch.isfinite(grad).all()) for grad in used):
        raise CompressionError("the backward pass gives no finite gradients")
    thin.zero_grad(set_to_none=True)
    used.clear()
    row["parity"] = float(f"{parity(export_onnx(thin, shape), thin, inputs):.2g}")
    return row


def _kind_of(reason: str) -> str:
    """Return a reason without names and figures, so that equal ones count together."""
    text = reason.partition(" (")[0]
    return "'...'".join(text.split("'")[::2])


def table() -> dict[str, dict[str, Any]]:
    """Return the rows that were measured, by model."""
    rows = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else []
    return {row["model"]: row for row in rows}


def write(rows: dict[str, dict[str, Any]]) -> None:
    """Write the table, one row a line."""
    lines = ",\n".join(json.dumps(rows[name]) for name in sorted(rows))
    GOLDEN.write_text(f"[\n{lines}\n]\n")


def run(chosen: list[str]) -> Iterator[dict[str, Any]]:
    """Measure models in processes of their own and keep the table up to date."""
    # Forked, so that the imports are paid for once.
    processes = multiprocessing.get_context("fork")
    for name in chosen:
        receiver, sender = processes.Pipe(duplex=False)
        child = processes.Process(target=_measure_into, args=(sender, name))
        child.start()
        sender.close()
        try:
            row = receiver.recv()
        except EOFError:
            row = {}
        child.join()
        if not row:
            row = {"model": name, "refused": f"its process ended with {child.exitcode}"}
        write({**table(), name: row})
        yield row


def _measure_into(sender: Connection, name: str) -> None:
    try:
        sender.send(measure(name))
    except Exception as error:
        traceback.print_exc()
        sender.send({"model": name, "refused": f"{type(error).__name__}: {error}"})


def summarize() -> None:
    """Record how many models are covered."""
    rows = table()
    covered = [name for name, row in rows.items() if row["refused"] is None]
    record(
        "coverage",
        passed=len(covered) >= TARGET and len(rows) == len(names()),
        seed=SEED,
        models=len(rows),
        covered=len(covered),
        target=TARGET,
        refused={name: row["refused"] for name, row in rows.items() if row["refused"]},
        heads_prunable=sum(row.get("heads_prunable", 0) for row in rows.values()),
        worst_parity=max(row.get("parity", 0.0) for row in rows.values()),
    )


def main() -> None:
    """Measure the models that are named, or all that the table lacks."""
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="*")
    parser.add_argument("--summary", action="store_true", help="record what the table says")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not arguments.summary:
        known = table()
        missing = [name for name in sorted(names(), key=size) if name not in known]
        for row in run(arguments.models or missing):
            print(json.dumps(row), flush=True)
    summarize()


if __name__ == "__main__":
    main()
