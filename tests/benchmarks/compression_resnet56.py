"""What the engine makes of the trained ResNet-56 (and ResNet-20), part by part.

Targets, on held-out data: structured pruning to half the MACs, at most 10 epochs, drop <= 0.6
points; INT8 without training <= 0.3; Deep Compression to a twentieth of the fp32 bytes <= 1.0;
product quantization to a sixteenth <= 2; ResNet-20 by trained ranks to half the MACs <= 1.2.

Each part records its own line. Recovered networks and the teacher's answers are kept in `--work`,
where `compression_speed` finds them.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from compression.apply import Applied, ApplyContext, apply
from compression.certificate import certify
from compression.container import encode_onnx
from compression.decisions import (
    Decision,
    DropBlock,
    Factorize,
    PruneChannels,
    Quantize,
    Share,
    Sparsify,
)
from compression.export import export_onnx
from compression.factors import expand
from compression.plan import Plan
from compression.primitives.quantize import quantize_onnx
from compression.recover.trained_rank import TrainedRank
from compression.recover.training import Recipe
from compression.sensitivity import DamageMeter, drop_order
from compression.site import MODEL_SITE
from tests.benchmarks.cifar_engine import BACKEND, SHAPE, CifarEngine, top1
from tests.benchmarks.record import record
from tests.conftest import real_data_folder

DROPS = (0, 4, 6, 8)
WIDTHS = (0.5, 0.625, 0.6875, 0.75, 0.8125, 0.875, 1.0)
"""Shares of the inner channels that stay, in steps of a sixteenth."""
CODEBOOKS = ((4_000, Share(entries=8)), (17_000, Share(entries=32, block=2)))
"""Codebooks of layers with fewer weights than that: tables weigh most in small layers."""
LARGE_CODEBOOK = Share(entries=64, block=4)
RANK_RATIO = 0.48
"""Of the break-even rank: half the MACs in sum."""


def structured_plan(engine: CifarEngine, max_macs: float, selector: str = "l2") -> Plan:
    """Return the least damaging of the plans that drop some blocks and thin the others alike.

    Judged on calibration inputs, before any training.
    """
    survey = engine.context.survey
    few, inputs = engine.calibration[:2], engine.calibration
    quick = DamageMeter(engine.context, few, BACKEND, engine.statistics[:2])
    meter = DamageMeter(engine.context, inputs, BACKEND, engine.statistics)
    blocks = [site.name for site in survey.sites if site.kind == "block"]
    order = drop_order(quick, blocks, max(DROPS))
    best: tuple[float, Plan] | None = None
    for count in DROPS:
        gone = order[:count]
        for share in reversed(WIDTHS):
            plan = deep_and_thin(engine, gone, share, selector)
            if survey.costs.cost(plan).macs <= max_macs * survey.summary["macs"]:
                damage = meter.of(plan)
                print(f"{count} blocks dropped, {share} of the width: damage {damage:.3f}")
                if best is None or damage < best[0]:
                    best = damage, plan
                break
    assert best is not None
    return best[1]


def deep_and_thin(engine: CifarEngine, gone: tuple[str, ...], share: float, selector: str) -> Plan:
    """Return the plan that drops `gone` and keeps a share of every other inner width."""
    decisions: dict[str, list[Decision]] = {block: [DropBlock()] for block in gone}
    inside = tuple(f"{block}." for block in gone)
    for site in engine.context.survey.prunable():
        keep = max(4, 4 * round(share * site.channels / 4))
        if keep < site.channels and not (inside and site.name.startswith(inside)):
            decisions[site.name] = [
                PruneChannels(keep_channels=keep, selector=selector, refit="least_squares")
            ]
    return Plan.of(decisions)


def pressed(engine: CifarEngine, plan: Plan) -> Applied:
    """Return the plan's certified model with its own BatchNorm statistics."""
    applied = apply(plan, engine.context)
    certify(engine.dense, applied, plan, SHAPE)
    engine.recalibrate(applied.model)
    return applied


def structured(engine: CifarEngine, options: argparse.Namespace) -> bool:
    """Half the MACs by depth and width alone."""
    start = time.perf_counter()
    plan = structured_plan(engine, 0.5, options.selector)
    applied = pressed(engine, plan)
    recipe = Recipe(epochs=options.epochs, learning_rate=options.learning_rate)
    memory = options.work / f"teacher56-{options.seed}.pt"
    engine.recover(applied.model, recipe, applied.invariants(), options.seed, memory)
    keep(options.work / "structured", plan, applied)
    file = deployed(applied.model)
    accuracy, drop = engine.held_out(file)
    macs = applied.cost.macs / engine.context.survey.summary["macs"]
    passed = drop.value <= 0.6 and macs <= 0.5
    record(
        "compression_resnet56",
        passed=passed,
        seed=options.seed,
        part="structured",
        macs=round(macs, 4),
        selector=options.selector,
        dropped=sorted(plan.dropped()),
        widths={site: d.keep_channels for site, d in plan.prune_channels().items()},
        epochs=options.epochs,
        learning_rate=options.learning_rate,
        top1=accuracy,
        drop=drop.value,
        drop_interval=[drop.low, drop.high],
        target=0.6,
        wall_s=round(time.perf_counter() - start),
    )
    return passed


def int8(engine: CifarEngine, options: argparse.Namespace) -> bool:
    """INT8 with nothing but 128 calibration images."""
    inputs = torch.cat(list(engine.calibration))[:128].numpy()
    file = quantize_onnx(engine.dense_file(), inputs, Quantize())
    accuracy, drop = engine.held_out(file)
    dense = len(engine.dense_file())
    passed = drop.value <= 0.3
    record(
        "compression_resnet56",
        passed=passed,
        seed=options.seed,
        part="int8",
        top1=accuracy,
        drop=drop.value,
        drop_interval=[drop.low, drop.high],
        target=0.3,
        runtime_bytes=len(file) / dense,
        download_bytes=len(encode_onnx(file)) / dense,
    )
    return passed


def deep_compression(engine: CifarEngine, options: argparse.Namespace) -> bool:
    """Zeros, then a codebook of 16 values a layer, then entropy coding (Han et al., 2016)."""
    start = time.perf_counter()
    zeros: list[Decision] = [Sparsify(sparsity=options.sparsity)]
    plan = Plan.of({MODEL_SITE: [*zeros, Share(entries=16)]})
    coded = coded_in_two_steps(engine, plan, options)
    return report_size("deep_compression", engine, plan, coded, options, (20, 1.0), start)


def product_codebooks(engine: CifarEngine, options: argparse.Namespace) -> bool:
    """Codebooks of short vectors, entries by the size of a layer (Stock et al., 2020)."""
    start = time.perf_counter()
    decisions: dict[str, list[Decision]] = {}
    sites = engine.context.survey.layer_sites()
    for site in sites:
        fitting = (share for limit, share in CODEBOOKS if site.params < limit)
        decisions[site.name] = [next(fitting, LARGE_CODEBOOK)]
    for end in (sites[0], sites[-1]):
        decisions[end.name] = [Share(entries=64)]
    plan = Plan.of(decisions)
    coded = coded_in_two_steps(engine, plan, options)
    return report_size("product_codebooks", engine, plan, coded, options, (16, 2.0), start)


def coded_in_two_steps(
    engine: CifarEngine, plan: Plan, options: argparse.Namespace
) -> torch.nn.Module:
    """Recover from everything but the codes, then apply these and recover again."""
    memory = options.work / f"teacher56-{options.seed}.pt"
    first = apply(plan.before_codes(), engine.context)
    certify(engine.dense, first, plan.before_codes(), SHAPE)
    engine.recalibrate(first.model)
    if first.stages:
        recipe = Recipe(epochs=options.epochs, learning_rate=options.learning_rate)
        engine.recover(first.model, recipe, first.invariants(), options.seed, memory)
    coded = apply(plan, engine.context, first)
    certify(engine.dense, coded, plan, SHAPE, since=len(first.stages))
    engine.recalibrate(coded.model)
    print("coded, before its own recovery:", searched(engine, coded.model), flush=True)
    recipe = Recipe(epochs=options.code_epochs, learning_rate=options.code_learning_rate)
    engine.recover(coded.model, recipe, coded.invariants(), options.seed, memory)
    return coded.model


def searched(engine: CifarEngine, model: torch.nn.Module) -> float:
    """Return the top-1 of a module on search-validation."""
    pixels, known = engine.search
    return 100 * top1(engine.logits(model, pixels), known)


def report_size(
    part: str,
    engine: CifarEngine,
    plan: Plan,
    model: torch.nn.Module,
    options: argparse.Namespace,
    target: tuple[int, float],
    start: float,
) -> bool:
    """Record the download of a coded network, as a share of its weights in fp32, and its drop."""
    layout = torch.contiguous_format
    file = export_onnx(model.to(memory_format=layout), SHAPE, keep_norms=True)
    download = len(encode_onnx(file))
    fp32 = 4 * engine.context.survey.summary["params"]
    accuracy, drop = engine.held_out(file)
    ratio, largest = target
    passed = download * ratio <= fp32 and drop.value <= largest
    record(
        "compression_resnet56",
        passed=passed,
        seed=options.seed,
        part=part,
        plan=plan.to_json() if len(plan.decisions) == 1 else plan.digest,
        download_bytes=download,
        fp32_bytes=fp32,
        times_smaller=round(fp32 / download, 2),
        runtime_bytes=len(file),
        epochs=[options.epochs, options.code_epochs],
        learning_rates=[options.learning_rate, options.code_learning_rate],
        top1=accuracy,
        drop=drop.value,
        drop_interval=[drop.low, drop.high],
        target=largest,
        wall_s=round(time.perf_counter() - start),
    )
    return passed


def trained_ranks(engine: CifarEngine, options: argparse.Namespace) -> bool:
    """ResNet-20 to half the MACs: ranks trained in (Xu et al., 2020), then split in two."""
    start = time.perf_counter()
    memory = options.work / f"teacher20-{options.seed}.pt"
    survey = engine.context.survey
    plan = Plan.of({MODEL_SITE: [Factorize(method="spatial", rank_ratio=RANK_RATIO)]})
    ranked = expand(plan.factorize(), survey.costs.layers)
    model = copy.deepcopy(engine.dense)
    recipe = Recipe(epochs=options.epochs, learning_rate=options.learning_rate)
    engine.recover(model, recipe, [TrainedRank(ranked)], options.seed, memory)
    model.to(memory_format=torch.contiguous_format)
    split = ApplyContext.build(model, survey, SHAPE, calibration=engine.calibration)
    applied = apply(plan, split)
    certify(model, applied, plan, SHAPE)
    engine.recalibrate(applied.model)
    print("split, before its own recovery:", searched(engine, applied.model), flush=True)
    recipe = Recipe(epochs=options.code_epochs, learning_rate=options.code_learning_rate)
    engine.recover(applied.model, recipe, seed=options.seed, memory=memory)
    file = deployed(applied.model)
    accuracy, drop = engine.held_out(file)
    macs = applied.cost.macs / survey.summary["macs"]
    passed = drop.value <= 1.2 and macs <= 0.5
    record(
        "compression_resnet56",
        passed=passed,
        seed=options.seed,
        part="trained_ranks",
        depth=20,
        macs=round(macs, 4),
        rank_ratio=RANK_RATIO,
        epochs=[options.epochs, options.code_epochs],
        learning_rates=[options.learning_rate, options.code_learning_rate],
        top1=accuracy,
        drop=drop.value,
        drop_interval=[drop.low, drop.high],
        target=1.2,
        wall_s=round(time.perf_counter() - start),
    )
    return passed


def deployed(model: torch.nn.Module) -> bytes:
    """Return the float file of a trained model."""
    return export_onnx(model.to(memory_format=torch.contiguous_format), SHAPE)


def keep(stem: Path, plan: Plan, applied: Applied) -> None:
    """Write plan, patch and weights of a recovered network."""
    document = {"plan": plan.to_json(), "patch": applied.patch.to_json()}
    stem.with_suffix(".json").write_text(json.dumps(document))
    state = {name: tensor.contiguous() for name, tensor in applied.model.state_dict().items()}
    save_file(state, str(stem.with_suffix(".safetensors")))


PARTS: dict[str, tuple[int, Callable[[CifarEngine, argparse.Namespace], bool]]] = {
    "structured": (56, structured),
    "int8": (56, int8),
    "deep_compression": (56, deep_compression),
    "product_codebooks": (56, product_codebooks),
    "trained_ranks": (20, trained_ranks),
}


def main() -> None:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--epochs", type=float, default=10.0)
    parser.add_argument("--learning-rate", type=float, default=0.03)
    parser.add_argument("--selector", default="l2", help="of channels, in `structured`")
    parser.add_argument("--code-epochs", type=float, default=1.0, help="after codes or a split")
    parser.add_argument("--code-learning-rate", type=float, default=0.01)
    parser.add_argument("--sparsity", type=float, default=0.82)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path(".work"))
    options = parser.parse_args()
    folder = real_data_folder()
    if folder is None:
        raise SystemExit("CIFAR-10 and its checkpoints are absent; set PARETOPRESS_TEST_DATA")
    options.work.mkdir(parents=True, exist_ok=True)
    failed = []
    for part in options.parts:
        depth, run = PARTS[part]
        if not run(CifarEngine.build(folder, depth, options.threads), options):
            failed.append(part)
    if failed:
        raise SystemExit(f"Targets missed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
