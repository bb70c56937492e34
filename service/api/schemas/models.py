"""The shape of a model."""

from __future__ import annotations

import datetime
from typing import Any, Literal

from pydantic import Field, JsonValue, model_validator

from service.api.schemas.strict import Answer, Finite, Name, Request
from service.scan_state import ScanState


class ArchitectureIn(Request):
    """Which network the weights belong to: `name`, or `python` for the operator's own code.

    Attributes:
        name: Registered architecture, for example `cifar_resnet56` or `torchvision/resnet18`;
            `onnx` for an ONNX file, which holds its network itself.
        python: `package.module:builder`, where the server was started with a code folder.
        options: Keyword arguments of the builder.
    """

    name: str | None = None
    python: str | None = None
    options: dict[str, JsonValue] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _exactly_one(self) -> ArchitectureIn:
        if (self.name is None) == (self.python is None):
            raise ValueError("exactly one of name and python is required")
        return self


class PreprocessingIn(Request):
    """How stored pixels become inputs: `(pixel / scale - mean) / std` per channel."""

    layout: Literal["NHWC", "NCHW"] = "NCHW"
    scale: Finite = 255.0
    mean: list[Finite] = Field(default=[0.0], min_length=1, max_length=4096)
    std: list[Finite] = Field(default=[1.0], min_length=1, max_length=4096)


class ModelCreate(Request):
    """What is said of an uploaded model, as the part `spec` beside the file `weights`.

    Attributes:
        name: The user's name for it.
        architecture: Which network the weights belong to.
        format: How the weights are stored; `python` where the builder brings them; `onnx` where
            the file holds the network itself.
        preprocessing: From stored pixels to inputs.
        input_shape: C, H, W of one input; may be left out where an ONNX file says it.
        task: Only `classification` exists.
        num_classes: Width of the output; 0 leaves it to the scan.
    """

    name: Name
    architecture: ArchitectureIn
    format: Literal["safetensors", "state_dict", "python", "onnx"] | None = None
    preprocessing: PreprocessingIn = PreprocessingIn()
    input_shape: tuple[int, int, int] | None = None
    task: Literal["classification"] = "classification"
    num_classes: int = 0


class ModelOut(Answer):
    """A model as it stands.

    Attributes:
        id: Identifier.
        name: The user's name for it.
        state: SCANNING, then READY or REJECTED.
        problem: Why it was rejected; None otherwise.
        architecture: Registered name, or `package.module:builder`.
        options: Keyword arguments of the builder.
        format: How the weights are stored.
        input_shape: C, H, W of one input.
        preprocessing: From stored pixels to inputs.
        task: `classification`.
        num_classes: Width of the output; 0 until scanned where it was not declared.
        weights_sha256: Digest of the uploaded file.
        summary: What the scan found; None until READY.
        created_at: Moment of the upload.
        updated_at: Moment of the last change.
        links: Paths of what belongs to it.
    """

    id: str
    name: str
    state: ScanState
    problem: dict[str, Any] | None
    architecture: str
    options: dict[str, Any]
    format: str
    input_shape: tuple[int, int, int]
    preprocessing: dict[str, Any]
    task: str
    num_classes: int
    weights_sha256: str | None
    summary: dict[str, Any] | None
    created_at: datetime.datetime
    updated_at: datetime.datetime
    links: dict[str, str]


class SiteOut(Answer):
    """What one decision can attach to.

    Attributes:
        name: The producing layer's path, or `model`.
        kind: `channels` or `model`.
        channels: Of the group in the dense model.
        macs: Of all layers it touches, in the dense model.
        params: Of these layers.
        members: The coupled layers.
        frozen: Why nothing can be decided here; None if it can.
    """

    name: str
    kind: str
    channels: int
    macs: int
    params: int
    members: list[str]
    frozen: str | None


class SurveyOut(Answer):
    """The sites of a model, in forward order, and facts about it."""

    sites: list[SiteOut]
    summary: dict[str, Any]
