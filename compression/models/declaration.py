"""What the user declares about a model, checked without torch."""

from __future__ import annotations

import math

from compression.artifact import ModelArtifact, Preprocessing
from compression.errors import ModelRefused
from compression.models.names import ONNX_NAME, check_name

MAX_INPUT_VALUES = 3 * 4096 * 4096
"""More values in one input than any classification network takes: a slip, or an attack."""


def check_declaration(artifact: ModelArtifact) -> None:
    """Require a known architecture and consistent shape, preprocessing and task.

    Raises:
        ModelRefused: Naming the field, its value and what is accepted.
    """
    check_name(artifact.architecture)
    if (artifact.format == "onnx") != (artifact.architecture == ONNX_NAME):
        raise ModelRefused(
            f"architecture is {artifact.architecture!r} and format is {artifact.format!r}; "
            f"{ONNX_NAME!r} stands in both or in neither"
        )
    if artifact.format == "onnx" and artifact.options:
        raise ModelRefused(f"options are {dict(artifact.options)}; a network from ONNX takes none")
    shape = artifact.input_shape
    if len(shape) != 3 or any(side < 1 for side in shape):
        raise ModelRefused(f"input_shape is {list(shape)}; it must be [C, H, W], each at least 1")
    if math.prod(shape) > MAX_INPUT_VALUES:
        raise ModelRefused(
            f"input_shape {list(shape)} has {math.prod(shape)} values; "
            f"at most {MAX_INPUT_VALUES} are accepted"
        )
    if artifact.num_classes < 0 or artifact.num_classes == 1:
        raise ModelRefused(f"num_classes is {artifact.num_classes}; at least 2 are required")
    if artifact.task != "classification":
        raise ModelRefused(f"task is {artifact.task!r}; only 'classification' exists")
    check_preprocessing(artifact.preprocessing, channels=shape[0])


def check_preprocessing(preprocessing: Preprocessing, *, channels: int) -> None:
    """Require finite numbers, one mean and std per channel (or one for all), no division by zero.

    Raises:
        ModelRefused: Naming the field, its value and what is accepted.
    """
    if preprocessing.layout not in ("NHWC", "NCHW"):
        raise ModelRefused(f"preprocessing.layout is {preprocessing.layout!r}; NHWC and NCHW exist")
    if not math.isfinite(preprocessing.scale) or preprocessing.scale <= 0:
        raise ModelRefused(f"preprocessing.scale is {preprocessing.scale}; it must be > 0")
    for field, values in (("mean", preprocessing.mean), ("std", preprocessing.std)):
        if len(values) not in (1, channels):
            raise ModelRefused(
                f"preprocessing.{field} has {len(values)} values; "
                f"the input has {channels} channels (give {channels}, or 1 for all)"
            )
        if not all(math.isfinite(value) for value in values):
            raise ModelRefused(f"preprocessing.{field} is {list(values)}; all must be finite")
    if min(preprocessing.std) <= 0:
        raise ModelRefused(
            f"preprocessing.std is {list(preprocessing.std)}; all must be greater than 0"
        )
