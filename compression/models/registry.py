"""From a model artifact to a module that is known to work."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torchvision.models
from torch import Tensor, nn

from compression.artifact import ModelArtifact
from compression.errors import ModelRefused
from compression.models.cifar_resnet import cifar_resnet
from compression.models.cifar_vgg import cifar_vgg16
from compression.models.declaration import check_declaration
from compression.models.digits_cnn import digits_cnn
from compression.models.names import (
    CIFAR_RESNET_DEPTHS,
    ENTRY_POINT_GROUP,
    ONNX_NAME,
    TIMM_PREFIX,
    TORCHVISION_PREFIX,
    check_name,
    is_user_code,
)
from compression.models.onnx_import import import_onnx
from compression.models.user_code import build_user_model, call_builder
from compression.models.weights import check_finite, load_state, read_state

Builder = Callable[..., nn.Module]


def _of_depth(depth: int) -> Builder:
    def build(*, num_classes: int = 10, in_channels: int = 3) -> nn.Module:
        return cifar_resnet(depth, num_classes=num_classes, in_channels=in_channels)

    return build


BUILDERS: Mapping[str, Builder] = {
    **{f"cifar_resnet{depth}": _of_depth(depth) for depth in CIFAR_RESNET_DEPTHS},
    "cifar_vgg16": cifar_vgg16,
    "digits_cnn": digits_cnn,
}
"""Builders of `names.BUILTIN_NAMES`."""


def load_model(
    artifact: ModelArtifact, weights: bytes | None, code_dir: str | None = None
) -> nn.Module:
    """Build the dense model, load its weights and check that it works.

    Registered architectures get `num_classes` of the artifact unless their options say otherwise;
    the user's own builder gets exactly its options.

    Args:
        artifact: What was declared.
        weights: Content of the weights file; None only for a `python` builder that brings its own.
        code_dir: Folder of the user's own code, where the operator allows it.

    Returns:
        The module in eval mode, float32, on the CPU; every weight is finite, and one input of the
        declared shape gives finite logits of the declared width.

    Raises:
        ModelRefused: Naming the key, the value and what was expected.
    """
    check_declaration(artifact)
    if weights is None and artifact.format != "python":
        raise ModelRefused(f"Format {artifact.format!r} needs a weights file; there is none")
    if artifact.format == "onnx" and weights is not None:
        model: nn.Module = import_onnx(weights, artifact.input_shape)
    else:
        model = build(artifact, code_dir)
        if weights is not None:
            load_state(model, read_state(weights, artifact.format))
    model = model.float().eval()
    check_finite(model)
    _check_forward(model, artifact)
    return model


def build(artifact: ModelArtifact, code_dir: str | None = None) -> nn.Module:
    """Build the architecture with the builder's own weights.

    Raises:
        ModelRefused: The name is unknown or the builder does not take the options.
    """
    name, options = artifact.architecture, dict(artifact.options)
    if is_user_code(name):
        return build_user_model(name, options, code_dir)
    check_name(name)
    if name == ONNX_NAME:
        raise ModelRefused(f"Architecture {name!r} has no builder; its file holds the network")
    if artifact.num_classes:
        options.setdefault("num_classes", artifact.num_classes)
    return call_builder(name, _builder(name), options)


def _builder(name: str) -> Builder:
    if name in BUILDERS:
        return BUILDERS[name]
    for entry in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP, name=name):
        loaded: Builder = entry.load()
        return loaded
    if name.startswith(TIMM_PREFIX):
        timm_name = name.removeprefix(TIMM_PREFIX)
        create: Builder = importlib.import_module("timm").create_model

        def build_timm(**options: Any) -> nn.Module:
            return create(timm_name, **options)

        return build_timm
    builder: Builder = torchvision.models.get_model_builder(name.removeprefix(TORCHVISION_PREFIX))
    return builder


def _check_forward(model: nn.Module, artifact: ModelArtifact) -> None:
    """Run two inputs through the model; two, because one alone can hide a lost batch axis."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(2, *artifact.input_shape, generator=generator)
    shape = list(artifact.input_shape)
    try:
        with torch.inference_mode():
            logits = model(inputs)
    except (RuntimeError, ValueError, TypeError, LookupError, AssertionError) as error:
        first_line = str(error).split("\n", 1)[0]
        raise ModelRefused(
            f"The network does not accept inputs of shape {shape} (C, H, W): {first_line}"
        ) from error
    if not isinstance(logits, Tensor):
        raise ModelRefused(f"The network returns {type(logits).__name__}; logits are one tensor")
    if logits.ndim != 2 or logits.shape[0] != 2:
        raise ModelRefused(
            f"The network maps 2 inputs to shape {list(logits.shape)}; logits are [2, num_classes]"
        )
    if artifact.num_classes and logits.shape[1] != artifact.num_classes:
        raise ModelRefused(
            f"The network's output is {logits.shape[1]} wide; num_classes is {artifact.num_classes}"
        )
    if not bool(torch.isfinite(logits).all()):
        raise ModelRefused("The network returns NaN or infinity on standard normal inputs")
