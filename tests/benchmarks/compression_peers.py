"""Peers and our engine side by side, in one run on a trained CIFAR ResNet.

    make bench NAME=compression_peers

* `pruning`: Torch-Pruning's pruners against our plans at no more than half the MACs, each then
  given the same recovery: recipe, seed, order of data, BatchNorm recalibration, dense teacher.
* `int8`: ONNX Runtime's static quantization against ours, same dense file, same 128 images.
* `coding`: zstd (and xz) against the container, on the integers and on the whole INT8 file.

Our row that is compared with each peer is the best on search-validation data; held-out data are
only reported. Each finished row is kept in `WORK/peers.jsonl` and not run again.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import lzma
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zstandard
from numpy.typing import NDArray
from torch import nn

from compression.apply import apply
from compression.certificate import certify
from compression.container import encode_onnx
from compression.counting import count_macs, count_params
from compression.decisions import Decision, PruneChannels, Quantize, Refit
from compression.models.cifar_resnet import CifarResNet
from compression.plan import Plan
from compression.primitives.quantize import quantize_onnx
from compression.recover.hook import Hook
from compression.recover.training import Recipe
from search.device import LOCAL_DEVICES
from tests.benchmarks import peer_pruners
from tests.benchmarks.cifar_engine import SHAPE, CifarEngine, top1
from tests.benchmarks.coding import int8_parts, measure
from tests.benchmarks.compression_resnet56 import deployed, structured_plan
from tests.benchmarks.peer_pruners import CONTENDERS, PeerPruner, pruned_to
from tests.benchmarks.peer_quantizers import STOCK, StockQuantizer, quantized
from tests.benchmarks.peer_rows import OURS, PEER, FinishedRows, Row, Verdict, top1_gain
from tests.benchmarks.record import record
from tests.conftest import real_data_folder
from workers.meters.latency import time_onnx

MAX_MACS = 0.5
SHARES = 512
"""A uniform share of the width is sought in steps of one of so many."""
CALIBRATION_IMAGES = 128
TIMING_S = 20.0
ZSTD_LEVEL = 19

Logits = NDArray[np.float32]


@dataclasses.dataclass(frozen=True, eq=False)
class Bench:
    """What all parts share."""

    engine: CifarEngine
    options: argparse.Namespace
    rows: FinishedRows

    @property
    def conditions(self) -> dict[str, Any]:
        """What every row depends on."""
        return {"depth": self.options.depth, "seed": self.options.seed}

    @functools.cached_property
    def dense_file(self) -> bytes:
        """The float file that both sides quantize."""
        return self.engine.dense_file()

    @functools.cached_property
    def int8_file(self) -> bytes:
        """Our INT8 form of it."""
        return quantize_onnx(self.dense_file, self.images, Quantize())

    @functools.cached_property
    def images(self) -> NDArray[np.float32]:
        """Calibration images, preprocessed."""
        few: NDArray[np.float32] = torch.cat(list(self.engine.calibration)).numpy()
        return few[:CALIBRATION_IMAGES]

    def search_top1(self, model: nn.Module) -> float:
        """Return points of top-1 on search-validation data."""
        pixels, known = self.engine.search
        return 100 * top1(self.engine.logits(model, pixels), known)

    def held_out(self, onnx: bytes) -> tuple[Row, Logits]:
        """Return top-1, paired drop and the outputs of a file on held-out data."""
        accuracy, drop = self.engine.held_out(onnx)
        figures = {
            "top1": round(accuracy, 3),
            "drop": round(drop.value, 3),
            "drop_interval": [round(drop.low, 3), round(drop.high, 3)],
        }
        return figures, self.engine.file_logits(onnx, self.engine.test[0])


def uniform_plan(engine: CifarEngine, selector: str, refit: Refit) -> Plan:
    """Return the plan that keeps the largest share of every inner width within the bound."""
    survey = engine.context.survey
    for step in range(SHARES, 0, -1):
        decisions: dict[str, list[Decision]] = {}
        for site in survey.prunable():
            keep = max(1, round(step / SHARES * site.channels))
            decisions[site.name] = [
                PruneChannels(keep_channels=keep, selector=selector, refit=refit)
            ]
        plan = Plan.of(decisions)
        if survey.costs.cost(plan).macs <= MAX_MACS * survey.summary["macs"]:
            return plan
    raise ValueError(f"No uniform share of the width leaves {MAX_MACS} of the MACs")


OUR_PLANS: Mapping[str, Callable[[CifarEngine], Plan]] = {
    "ours, uniform l2": lambda engine: uniform_plan(engine, "l2", "none"),
    "ours, uniform l2 refitted": lambda engine: uniform_plan(engine, "l2", "least_squares"),
    "ours, uniform thinet refitted": lambda engine: uniform_plan(engine, "thinet", "least_squares"),
    "ours, structured": lambda engine: structured_plan(engine, MAX_MACS),
}


def our_pruned(bench: Bench, name: str) -> tuple[Row, Logits]:
    """Prune by the engine and recover."""
    start = time.perf_counter()
    plan = OUR_PLANS[name](bench.engine)
    applied = apply(plan, bench.engine.context)
    certify(bench.engine.dense, applied, plan, SHAPE)
    seconds = time.perf_counter() - start
    figures: Row = {
        "side": OURS,
        "misaligned_channels": 0,
        "dropped": sorted(plan.dropped()),
        "widths": {site: d.keep_channels for site, d in plan.prune_channels().items()},
    }
    return recovered(bench, applied.model, figures, seconds, applied.invariants())


def peer_pruned(bench: Bench, peer: PeerPruner) -> tuple[Row, Logits | None]:
    """Prune by a peer and recover; that it fails is a row, too."""
    start = time.perf_counter()
    dense = bench.engine.dense
    assert isinstance(dense, CifarResNet)
    limit = int(MAX_MACS * count_macs(dense, SHAPE))
    try:
        made = pruned_to(dense, peer, limit, bench.engine.context.module.batches)
    except (RuntimeError, ValueError, IndexError) as error:
        return {"side": PEER, "failed": str(error).split("\n", 1)[0][:200]}, None
    seconds = time.perf_counter() - start
    figures = {
        "side": PEER,
        "pruning_ratio": round(made.ratio, 4),
        "misaligned_channels": made.misaligned,
    }
    return recovered(bench, made.model, figures, seconds, ())


def recovered(
    bench: Bench,
    model: nn.Module,
    figures: Row,
    seconds: float,
    hooks: tuple[Hook, ...],
    quantize: Quantize | None = None,
) -> tuple[Row, Logits]:
    """Give a pruned network the recovery that every row gets, and measure it all along."""
    engine, options = bench.engine, bench.options
    row = {
        **figures,
        "macs": round(count_macs(model, SHAPE) / count_macs(engine.dense, SHAPE), 4),
        "params": round(count_params(model) / count_params(engine.dense), 4),
        "search_top1_pruned": bench.search_top1(model),
    }
    engine.recalibrate(model)
    row["search_top1_recalibrated"] = bench.search_top1(model)
    start = time.perf_counter()
    memory = options.work / f"teacher{options.depth}-{options.seed}.pt"
    engine.recover(model, recipe_of(options), hooks, options.seed, memory)
    row["recovery_s"] = round(time.perf_counter() - start, 1)
    row["pruning_s"] = round(seconds, 1)
    row["search_top1_recovered"] = bench.search_top1(model)
    file = deployed(model)
    held_out, logits = bench.held_out(
        file if quantize is None else quantize_onnx(file, bench.images, quantize)
    )
    return {**row, **held_out}, logits


def recipe_of(options: argparse.Namespace) -> Recipe:
    """Return the one recipe of all rows."""
    return Recipe(epochs=options.epochs, steps=options.steps, learning_rate=options.learning_rate)


def pruning(bench: Bench) -> tuple[list[Row], Verdict]:
    """Half the MACs, the same recovery."""
    options = bench.options
    conditions = {
        **bench.conditions,
        "epochs": options.epochs,
        "steps": options.steps,
        "learning_rate": options.learning_rate,
    }
    verdict = Verdict()
    rows = [
        bench.rows.row("pruning", name, conditions, functools.partial(our_pruned, bench, name))
        for name in OUR_PLANS
        if options.only in name
    ]
    if peer_pruners.installed():
        rows += [
            bench.rows.row(
                "pruning", peer.name, conditions, functools.partial(peer_pruned, bench, peer)
            )
            for peer in CONTENDERS
            if options.only in peer.name
        ]
    else:
        rows.append({"name": "torch_pruning", "side": PEER, "absent": True})
    ours = [row for row in rows if row["side"] == OURS]
    peers = [row for row in rows if row["side"] == PEER and "top1" in row]
    if ours and peers:
        best = max(ours, key=lambda row: row["search_top1_recovered"])
        for row in peers:
            gain = top1_gain(bench.rows.logits(best), bench.rows.logits(row), bench.engine.test[1])
            verdict.gain(f"points of top-1, {best['name']} against {row['name']}", gain)
    return rows, verdict


def int8_row(bench: Bench, side: str, make: Callable[[], bytes]) -> tuple[Row, Logits]:
    """Quantize and measure one file."""
    start = time.perf_counter()
    file = make()
    seconds = time.perf_counter() - start
    timed = time_onnx(
        file, bench.dense_file, LOCAL_DEVICES[0], seed=bench.options.seed, max_seconds=TIMING_S
    )
    held_out, logits = bench.held_out(file)
    ratio = timed.ratio
    # Against each other in one sitting: rows timed minutes apart differ by the machine's mood.
    ours = ratio
    if side == PEER:
        ours = time_onnx(
            bench.int8_file,
            file,
            LOCAL_DEVICES[0],
            seed=bench.options.seed,
            max_seconds=TIMING_S,
        ).ratio
    row = {
        "side": side,
        **held_out,
        "bytes": len(file),
        "dense_bytes": len(bench.dense_file),
        "latency_ratio": [round(v, 4) for v in (ratio.value, ratio.low, ratio.high)],
        "ours_over_it": [round(v, 4) for v in (ours.value, ours.low, ours.high)],
        "latency_warnings": list(timed.warnings),
        "quantizing_s": round(seconds, 2),
    }
    return row, logits


def int8(bench: Bench) -> tuple[list[Row], Verdict]:
    """INT8 without training."""

    def stock_file(stock: StockQuantizer) -> bytes:
        return quantized(bench.dense_file, bench.images, stock)

    ours = bench.rows.row(
        "int8",
        "ours",
        bench.conditions,
        lambda: int8_row(bench, OURS, lambda: bench.int8_file),
    )
    peers = [
        bench.rows.row(
            "int8",
            stock.name,
            bench.conditions,
            functools.partial(int8_row, bench, PEER, functools.partial(stock_file, stock)),
        )
        for stock in STOCK
    ]
    verdict = Verdict()
    for row in peers:
        gain = top1_gain(bench.rows.logits(ours), bench.rows.logits(row), bench.engine.test[1])
        verdict.gain(f"points of top-1 against {row['name']}", gain)
        verdict.smaller(f"file bytes against {row['name']}", ours["bytes"], row["bytes"])
        verdict.apart(
            f"latency of our file over that of {row['name']}", row["ours_over_it"], (1.0, 1.0, 1.0)
        )
    return [ours, *peers], verdict


def coded(bench: Bench) -> Row:
    """Return the sizes of one INT8 file under every coder."""
    file = bench.int8_file
    parts = int8_parts(file)
    found = measure(file, parts)
    zstd = zstandard.ZstdCompressor(level=ZSTD_LEVEL)
    joined = b"".join(part.symbols.astype(np.int8).tobytes() for part in parts)
    return {
        "onnx_bytes": len(file),
        "integers": len(joined),
        "entropy_bytes": found["entropy_bytes"],
        "weights_ppz_bytes": found["weight_bytes"],
        # Per tensor, frames cost the peer; in one stream, the mixed statistics do.
        "weights_zstd_bytes": min(found["zstd_bytes"], len(zstd.compress(joined))),
        "weights_xz_bytes": len(_xz(joined)),
        "file_ppz_bytes": len(encode_onnx(file)),
        "file_zstd_bytes": len(zstd.compress(file)),
        "file_xz_bytes": len(_xz(file)),
    }


def _xz(content: bytes) -> bytes:
    return lzma.compress(content, preset=9 | lzma.PRESET_EXTREME)


def coding(bench: Bench) -> tuple[list[Row], Verdict]:
    """Bytes to download."""
    row = bench.rows.row("coding", "ours, INT8", bench.conditions, lambda: (coded(bench), None))
    verdict = Verdict()
    for what in ("weights", "file"):
        for peer in ("zstd", "xz"):
            verdict.smaller(
                f"bytes of the {what} against {peer}",
                row[f"{what}_ppz_bytes"],
                row[f"{what}_{peer}_bytes"],
            )
    return [row], verdict


PARTS: Mapping[str, Callable[[Bench], tuple[list[Row], Verdict]]] = {
    "pruning": pruning,
    "int8": int8,
    "coding": coding,
}


def main() -> None:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--depth", type=int, default=20, choices=(20, 32, 56))
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--steps", type=int, default=None, help="instead of epochs")
    parser.add_argument("--learning-rate", type=float, default=Recipe().learning_rate)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path(".work"))
    parser.add_argument("--only", default="", help="pruning rows whose name contains this")
    parser.add_argument("--dry", action="store_true", help="print the verdicts, record nothing")
    options = parser.parse_args()
    folder = real_data_folder()
    if folder is None:
        raise SystemExit("CIFAR-10 and its checkpoints are absent; set PARETOPRESS_TEST_DATA")
    options.work.mkdir(parents=True, exist_ok=True)
    engine = CifarEngine.build(folder, options.depth, options.threads)
    bench = Bench(engine=engine, options=options, rows=FinishedRows(options.work))
    figures: dict[str, Any] = {}
    lost = []
    for part in options.parts:
        rows, verdict = PARTS[part](bench)
        shown = [{k: v for k, v in row.items() if k != "key"} for row in rows]
        figures[part] = {"rows": shown, **verdict.to_json()}
        lost += verdict.loses
        print(part, verdict.to_json(), flush=True)
    if not options.dry:
        record(
            "compression_peers",
            passed=not lost,
            seed=options.seed,
            depth=options.depth,
            epochs=options.epochs,
            steps=options.steps,
            learning_rate=options.learning_rate,
            max_macs=MAX_MACS,
            torch_pruning=metadata.version("torch-pruning") if peer_pruners.installed() else None,
            **figures,
        )


if __name__ == "__main__":
    main()
