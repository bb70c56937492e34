"""From a PyTorch module to the ONNX graph that is deployed and timed."""

from __future__ import annotations

import copy
import io
import warnings

import numpy as np
import torch
from onnx.checker import check_model
from torch import Tensor, nn
from torch.jit._trace import TracerWarning

from compression.errors import CompressionError
from compression.onnx_graph import (
    fold,
    name_nodes,
    read_graph,
    tidy,
    unfolded_norms,
    write_graph,
)
from compression.onnx_norms import shorten_norms
from compression.onnx_session import INPUT, OUTPUT, RUNTIME_ERRORS, open_session, run_batches
from compression.onnx_zeros import positive_zeros

OPSET = 17
"""The oldest opset that has every operator the supported networks need: most runtimes load it."""

# Traced with two rows and checked with three: a graph that baked the batch size in is found out.
_TRACE_ROWS = 2
_CHECK_ROWS = 3


def export_onnx(
    model: nn.Module, input_shape: tuple[int, int, int], *, keep_norms: bool = False
) -> bytes:
    """Return the model as ONNX: input `input` (float32 N,C,H,W, preprocessed), output `logits`.

    The batch size is free, BatchNorm is folded into convolutions, constants are folded, and nodes
    are named after the layers of `model` (see `compression.onnx_graph`). Equal models give equal
    bytes. The model itself is left as it is.

    Args:
        model: A float32 module with one tensor in and one out; exported as in `eval` mode.
        input_shape: C, H, W.
        keep_norms: Leave BatchNorm beside its convolution, as runtimes fold it when they load the
            file: weights of few distinct values stay such in the file.

    Raises:
        CompressionError: Neither exporter of PyTorch can export the model, or the graph's batch
            size is not free.
    """
    # The exporters move parameters about and switch modes; the caller's module stays untouched.
    frozen = copy.deepcopy(model).eval().requires_grad_(False)
    example = torch.zeros(_TRACE_ROWS, *input_shape)
    with torch.no_grad():
        outputs = frozen(example)
    if not isinstance(outputs, Tensor):
        raise CompressionError(f"The model returns {type(outputs).__name__}, not one tensor")
    try:
        raw = _export_by_trace(frozen, example)
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        try:
            raw = _export_by_graph(frozen, example)
        except (RuntimeError, TypeError, ValueError, NotImplementedError) as second:
            reason = f"by tracing: {_first_line(error)}; by torch.export: {_first_line(second)}"
            raise CompressionError(f"The model cannot be exported to ONNX ({reason})") from second
    onnx = _finish(raw, frozen, keep_norms)
    _check_free_batch(onnx, input_shape)
    return onnx


def parity(onnx: bytes, model: nn.Module, inputs: Tensor) -> float:
    """Return the largest output difference between graph and module, relative to the scale.

    Args:
        onnx: What `export_onnx` returned (or a quantized form of it).
        model: The module in `eval` mode.
        inputs: `n x C x H x W` float32.

    Returns:
        max |graph - module| / max |module|; 0 means bit for bit, 1e-5 is ordinary float32 noise.
    """
    with torch.no_grad():
        expected = model(inputs).float().numpy()
    found = run_batches(open_session(onnx), inputs.numpy())
    if found.shape != expected.shape:
        raise CompressionError(f"The graph returns shape {found.shape}, not {expected.shape}")
    scale = float(np.abs(expected).max())
    return float(np.abs(found - expected).max()) / (scale if scale > 0 else 1.0)


def _export_by_trace(model: nn.Module, example: Tensor) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # PyTorch calls its TorchScript exporter legacy. Measured warm, it takes 0.13 s for a
        # ResNet-20 where the torch.export-based one takes 2.7 s, and every trial exports.
        warnings.filterwarnings("ignore", message="You are using the legacy TorchScript-based")
        warnings.filterwarnings("ignore", message="The feature will be removed. Please remove")
        # A strided slice is folded by the later pass.
        warnings.filterwarnings("ignore", message="Constant folding - Only steps=1")
        # Shapes become constants of the trace; `_check_free_batch` finds the harmful case.
        warnings.filterwarnings("ignore", category=TracerWarning)
        torch.onnx.export(
            model,
            (example,),
            buffer,  # type: ignore[arg-type]  # this exporter takes files, too
            dynamo=False,
            # Folding is left to one later pass, because the exporter's own loses the names.
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes={INPUT: {0: "batch"}, OUTPUT: {0: "batch"}},
            opset_version=OPSET,
        )
    return buffer.getvalue()


def _export_by_graph(model: nn.Module, example: Tensor) -> bytes:
    program = torch.onnx.export(
        model,
        (example,),
        dynamo=True,
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        verbose=False,
    )
    if program is None:
        raise RuntimeError("the exporter returned nothing")
    return bytes(program.model_proto.SerializeToString())


def _finish(raw: bytes, model: nn.Module, keep_norms: bool) -> bytes:
    proto = read_graph(raw)
    names = [name for name, _ in (*model.named_parameters(), *model.named_buffers())]
    name_nodes(proto, {name: name.rpartition(".")[0] for name in names})
    folded = fold(proto.SerializeToString(), keep_norms=keep_norms)
    if keep_norms:
        shorten_norms(folded)
    positive_zeros(folded)
    tidy(folded)
    left = unfolded_norms(folded)
    if left and not keep_norms:
        raise CompressionError(f"BatchNorm was not folded into the convolution before {left}")
    check_model(folded)
    return write_graph(folded)


def _check_free_batch(onnx: bytes, input_shape: tuple[int, int, int]) -> None:
    probe = np.zeros((_CHECK_ROWS, *input_shape), np.float32)
    try:
        rows = open_session(onnx).run(None, {INPUT: probe})[0].shape[0]
    except RUNTIME_ERRORS as error:
        raise CompressionError(f"The exported graph does not run: {_first_line(error)}") from error
    if rows != _CHECK_ROWS:
        raise CompressionError(
            f"The exported graph returns {rows} rows for {_CHECK_ROWS} inputs; "
            "the model's forward depends on the batch size"
        )


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0][:300]
