"""ONNX Runtime's own static quantization, as its documentation says and as it comes."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from compression.onnx_session import INPUT

BATCH = 32


@dataclasses.dataclass(frozen=True, slots=True)
class StockQuantizer:
    """One way to call `quantize_static`; format QDQ and calibrator MinMax are its defaults.

    Attributes:
        name: How its row is called.
        prepares: Whether `quant_pre_process` goes first, as the documentation recommends.
        unsigned: uint8 activations, which the documentation recommends for x86; int8 is default.
        per_channel: A scale for each output channel of a weight; off is default.
    """

    name: str
    prepares: bool
    unsigned: bool
    per_channel: bool


STOCK = (
    StockQuantizer("onnxruntime, u8 s8 per channel", True, True, True),
    StockQuantizer("onnxruntime, u8 s8 per tensor", True, True, False),
    StockQuantizer("onnxruntime, defaults untouched", False, False, False),
)


class Images(CalibrationDataReader):  # type: ignore[misc]
    """Calibration images in batches of `BATCH`."""

    def __init__(self, inputs: NDArray[np.float32]) -> None:
        self._batches = iter(np.array_split(inputs, max(1, len(inputs) // BATCH)))

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """Return the next batch by the name of the graph's input; None at the end."""
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch}


def quantized(onnx: bytes, inputs: NDArray[np.float32], stock: StockQuantizer) -> bytes:
    """Return the runtime's INT8 form of a float file.

    Args:
        onnx: The float file.
        inputs: `n x C x H x W`, preprocessed.
        stock: How.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, made = folder / "dense.onnx", folder / "int8.onnx"
        source.write_bytes(onnx)
        if stock.prepares:
            quant_pre_process(source, folder / "prepared.onnx")
            source = folder / "prepared.onnx"
        options: dict[str, Any] = {}
        if stock.unsigned:
            options.update(activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8)
        if stock.per_channel:
            options.update(per_channel=True)
        quantize_static(source, made, Images(inputs), **options)
        return made.read_bytes()
