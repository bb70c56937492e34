"""A model and its preprocessing as data: content-addressed, never a path."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, NewType

Digest = NewType("Digest", str)
"""SHA-256 of a blob, hexadecimal: its name in every artifact store."""

ModelFormat = Literal["safetensors", "state_dict", "python", "onnx"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """How stored pixels become the network's input: `(pixel / scale - mean) / std` per channel.

    Attributes:
        layout: Layout of the stored pixels, `NHWC` or `NCHW`; the network always gets NCHW.
        scale: Divisor; 255 for uint8 pixels in [0, 1] afterwards.
        mean: One per channel, after scaling.
        std: One per channel, after scaling, > 0.
    """

    layout: Literal["NHWC", "NCHW"] = "NCHW"
    scale: float = 255.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelArtifact:
    """The user's trained network, immutable.

    Attributes:
        weights: Digest of the weights file; None for a python builder that loads its own.
        format: How the weights are stored; `python` where the builder brings them; `onnx` where
            the file holds the network itself.
        architecture: A registered name, or `package.module:builder` for the user's own code;
            `onnx` for the format of that name.
        options: Keyword arguments of the builder, JSON values.
        input_shape: C, H, W of one input.
        preprocessing: From stored pixels to inputs.
        task: `classification`.
        num_classes: Width of the output.
    """

    weights: Digest | None
    format: ModelFormat
    architecture: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    input_shape: tuple[int, int, int]
    preprocessing: Preprocessing = Preprocessing()
    task: Literal["classification"] = "classification"
    num_classes: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        data = dataclasses.asdict(self)
        data["options"] = dict(self.options)
        return data

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> ModelArtifact:
        """Rebuild from `to_json`, or from that data after a JSON round trip."""
        pre = dict(data["preprocessing"])
        pre["mean"], pre["std"] = tuple(pre["mean"]), tuple(pre["std"])
        c, h, w = data["input_shape"]
        return ModelArtifact(
            **{**data, "preprocessing": Preprocessing(**pre), "input_shape": (c, h, w)}
        )
