"""How near to the entropy the container codes weights, and how fast it decodes them.

    make bench NAME=coding

Tensors of trained CIFAR ResNets are made INT8, shared or sparse by the plainest means, exported
and coded. What is compared with the order-0 entropy of each tensor plus its tables is everything
that the container spends on weights. The peer is zstd at level 19 on the same integers.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zstandard
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from compression.container import Section, assemble, decode, encode_onnx, sections_of
from compression.decisions import Quantize
from compression.export import export_onnx
from compression.models.cifar_resnet import cifar_resnet
from compression.onnx_graph import read_graph
from compression.primitives.quantize import quantize_onnx
from tests import cifar
from tests.benchmarks.record import record
from tests.conftest import real_data_folder

SHAPE = (3, 32, 32)
OVER_ENTROPY = 1.01
LEAST_SPEED = 20.0
SYNTHETIC = 4_000_000
REPEATS = 9
SEED = 0


@dataclasses.dataclass(frozen=True)
class Coded:
    """The symbols of a tensor as a plain coder would see them, and what its tables must hold."""

    symbols: NDArray[Any]
    table_bytes: int = 0


def entropy_bytes(symbols: NDArray[Any]) -> float:
    """Return the order-0 entropy of one tensor's symbols, in bytes."""
    counts = np.unique(symbols, return_counts=True)[1]
    return float((counts * np.log2(counts.sum() / counts)).sum() / 8)


def scalar_codebook(
    values: NDArray[np.float32], entries: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return float16 centres and indices by Lloyd's algorithm from the quantiles."""
    centres = np.unique(np.quantile(values, (np.arange(entries) + 0.5) / entries))
    ordered = np.sort(values).astype(np.float64)
    sums = np.r_[0.0, np.cumsum(ordered)]
    for _ in range(20):
        edges = np.searchsorted(ordered, (centres[1:] + centres[:-1]) / 2)
        bounds = np.r_[0, edges, len(ordered)]
        counts = np.diff(bounds)
        means = np.diff(sums[bounds]) / np.maximum(counts, 1)
        centres = np.unique(np.where(counts > 0, means, centres))
    centres = np.unique(centres.astype(np.float16)).astype(np.float32)
    return centres, np.searchsorted((centres[1:] + centres[:-1]) / 2, values)


def vector_codebook(
    blocks: NDArray[np.float32], entries: int, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return float16 centres, `entries x d`, and the index of each block."""
    centres = blocks[rng.choice(len(blocks), entries, replace=False)]
    for step in range(9):
        squares = (centres**2).sum(1)
        nearest = (squares - 2 * blocks @ centres.T).argmin(1)
        if step == 8:
            break
        sums = np.zeros_like(centres)
        np.add.at(sums, nearest, blocks)
        counts = np.bincount(nearest, minlength=entries)[:, None]
        centres = np.where(counts > 0, sums / np.maximum(counts, 1), centres)
        centres = centres.astype(np.float16).astype(np.float32)
    return centres, nearest


def share(weights: NDArray[np.float32], entries: int) -> tuple[NDArray[np.float32], Coded]:
    """Let a layer take few scalar values."""
    centres, found = scalar_codebook(weights.ravel(), min(entries, weights.size // 8))
    return centres[found].reshape(weights.shape), Coded(found, 2 * len(centres))


def uniform(weights: NDArray[np.float32], bits: int) -> tuple[NDArray[np.float32], Coded]:
    """Round to whole multiples of a scale of each output channel."""
    flat = weights.reshape(len(weights), -1)
    scales = (np.abs(flat).max(1, keepdims=True) / (2 ** (bits - 1) - 1)).astype(np.float32)
    steps = np.rint(flat / scales).astype(np.float32) + np.float32(0)
    values = (steps * scales).reshape(weights.shape)
    # The scales lie among BatchNorm's words, which no side of the comparison counts.
    return values, Coded(steps.ravel().astype(np.int64))


def product(weights: NDArray[np.float32], seed: int) -> tuple[NDArray[np.float32], Coded]:
    """Let blocks of 9 or of 4 neighbouring weights take 256 values."""
    row = weights[0].size
    block = 9 if row % 9 == 0 else 4 if row % 4 == 0 else 1
    blocks = weights.reshape(-1, block)
    entries = min(256, len(blocks) // 8)
    centres, found = vector_codebook(blocks, entries, np.random.default_rng(seed))
    return centres[found].reshape(weights.shape), Coded(found, 2 * block * entries)


def sparse_shared(
    weights: NDArray[np.float32], threshold: float, entries: int
) -> tuple[NDArray[np.float32], Coded]:
    """Set small weights to zero and let the others take few values."""
    values = np.zeros_like(weights)
    indices = np.zeros(weights.shape, np.int64)
    kept = np.abs(weights) > threshold
    table = 0
    if kept.any():
        centres, found = scalar_codebook(weights[kept], entries)
        values[kept], indices[kept] = centres[found], found + 1
        table = 2 * len(centres)
    return values, Coded(indices.ravel(), table + 2)


def trained(data: Path, depth: int) -> nn.Module:
    """Return a trained CIFAR ResNet."""
    model = cifar_resnet(depth)
    model.load_state_dict(cifar.state_dict(data, f"cifar_resnet{depth}"))
    return model.eval()


Rewrite = Callable[[NDArray[np.float32]], tuple[NDArray[np.float32], Coded]]


def rewritten(model: nn.Module, rewrite: Rewrite) -> list[Coded]:
    """Rewrite the weights of all convolutions and linear layers in place."""
    coded = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            values, one = rewrite(module.weight.detach().numpy())
            with torch.no_grad():
                module.weight.copy_(torch.from_numpy(values))
            coded.append(one)
    return coded


def int8_parts(onnx: bytes) -> list[Coded]:
    """Return the int8 tensors of a quantized graph."""
    tensors = [numpy_helper.to_array(t) for t in read_graph(onnx).graph.initializer]
    return [Coded(t.ravel()) for t in tensors if t.dtype == np.int8 and t.size >= 32]


def single(tensor: NDArray[Any]) -> bytes:
    """Return a model of one tensor."""
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["x2"])], "g", [value], [])
    graph.initializer.append(numpy_helper.from_array(tensor, "w"))
    return bytes(helper.make_model(graph).SerializeToString())


def split(onnx: bytes, plain: dict[Section, bytes], coded: bytes) -> dict[str, int]:
    """Return the bytes that each section takes in the file."""
    sizes = {}
    for name in Section:
        # A section's share: the file with it, less the file without it.
        sizes[name.name.lower()] = len(coded) - len(assemble(onnx, {**plain, name: b""}))
    return {**sizes, "total": len(coded)}


def zstd_bytes(parts: Iterable[Coded]) -> int:
    """Return what zstd makes of the same integers, each in as few whole bytes as hold it."""
    total = 0
    for part in parts:
        kind = np.int8 if part.symbols.min() < 0 else np.min_scalar_type(part.symbols.max())
        packed = zstandard.ZstdCompressor(level=19).compress(part.symbols.astype(kind).tobytes())
        total += len(packed) + part.table_bytes
    return total


def measure(onnx: bytes, parts: list[Coded]) -> dict[str, Any]:
    """Return sizes of one model against the entropy of its symbols and the peer."""
    started = time.thread_time()
    plain = sections_of(onnx)
    coded = assemble(onnx, plain)
    encode_s = time.thread_time() - started
    if decode(coded) != onnx:
        raise AssertionError("the container does not give the model back")
    sizes = split(onnx, plain, coded)
    spent = sum(sizes[name] for name in ("table", "steps", "symbols", "halves_0", "halves_1"))
    entropy = sum(entropy_bytes(part.symbols) for part in parts)
    tables = sum(part.table_bytes for part in parts)
    return {
        "onnx_bytes": len(onnx),
        "ppz_bytes": len(coded),
        "weight_bytes": spent,
        "entropy_bytes": round(entropy),
        "table_bytes": tables,
        "over_entropy": round(spent / (entropy + tables), 4),
        "zstd_bytes": zstd_bytes(parts),
        "encode_s": round(encode_s, 2),
        "sections": {name: size for name, size in sizes.items() if size},
    }


def speeds(models: dict[str, tuple[bytes, int]], repeats: int) -> dict[str, float]:
    """Return the median of M weights decoded per second of one thread's time; in turns."""
    coded = {name: encode_onnx(onnx) for name, (onnx, _) in models.items()}
    taken: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(repeats):
        for name, container in coded.items():
            started = time.thread_time()
            decode(container)
            taken[name].append(time.thread_time() - started)
    return {
        name: round(models[name][1] / statistics.median(times) / 1e6, 1)
        for name, times in taken.items()
    }


def real_models(data: Path, seed: int) -> dict[str, tuple[bytes, list[Coded]]]:
    """Return exported models with the symbols of their weights."""
    images = cifar.images(data, "train_0")[:64]
    pixels = (images / 255 - cifar.MEAN) / cifar.STD
    inputs = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), np.float32)
    found = {}
    for depth in (20, 56):
        quantized = quantize_onnx(export_onnx(trained(data, depth), SHAPE), inputs, Quantize())
        found[f"resnet{depth}_int8"] = (quantized, int8_parts(quantized))
        weights = [
            m.weight.detach().numpy().ravel()
            for m in trained(data, depth).modules()
            if isinstance(m, nn.Conv2d | nn.Linear)
        ]
        threshold = float(np.quantile(np.abs(np.concatenate(weights)), 0.8))
        rewrites: dict[str, Rewrite] = {
            "shared_4bit": lambda w: share(w, 16),
            "shared_8bit": lambda w: share(w, 256),
            "uniform_4bit": lambda w: uniform(w, 4),
            "sparse80_16": lambda w, least=threshold: sparse_shared(w, least, 16),  # type: ignore[misc]
            "product_256": lambda w: product(w, seed),
        }
        for name, rewrite in rewrites.items():
            model = trained(data, depth)
            parts = rewritten(model, rewrite)
            onnx = export_onnx(model, SHAPE, keep_norms=True)
            found[f"resnet{depth}_{name}"] = (onnx, parts)
    return found


def synthetic_models(seed: int) -> dict[str, tuple[bytes, list[Coded]]]:
    """Return models of one large tensor each."""
    rng = np.random.default_rng(seed)
    values = rng.laplace(0, 1, SYNTHETIC).astype(np.float32).reshape(1000, -1)
    int8 = np.rint(values * 15).clip(-127, 127).astype(np.int8)
    shared, indices = share(values, 16)
    sparse, kept = sparse_shared(values, float(np.quantile(np.abs(values), 0.8)), 16)
    return {
        "laplace_int8": (single(int8), [Coded(int8.ravel())]),
        "laplace_shared_4bit": (single(shared), [indices]),
        "laplace_sparse80_16": (single(sparse), [kept]),
    }


def main() -> None:
    """Run the benchmark."""
    data = real_data_folder()
    if data is None:
        raise SystemExit("CIFAR-10 and its checkpoints are absent; set PARETOPRESS_TEST_DATA")
    torch.set_num_threads(1)
    synthetic = synthetic_models(SEED)
    models = {**real_models(data, SEED), **synthetic}
    figures = {name: measure(*parts) for name, parts in models.items()}
    timed = {name: (onnx, SYNTHETIC) for name, (onnx, _) in synthetic.items()}
    decoded = speeds(timed, REPEATS)
    over = max(one["over_entropy"] for one in figures.values())
    slowest = min(decoded.values())
    record(
        "coding",
        passed=over <= OVER_ENTROPY and slowest >= LEAST_SPEED,
        seed=SEED,
        over_entropy_most=over,
        over_entropy_target=OVER_ENTROPY,
        decode_mweights_per_s=decoded,
        decode_target=LEAST_SPEED,
        models=figures,
    )


if __name__ == "__main__":
    main()
