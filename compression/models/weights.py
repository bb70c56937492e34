"""Weights from a file's bytes into a module: complete, of the right shapes, finite.

Checkpoint files in the wild wrap the weights: `{"state_dict": ...}` (also `model_state_dict`,
`model` and `net`) is opened, and the prefixes `module.` (data parallel) and `_orig_mod.`
(compiled) are removed where every key carries them. Nothing else is guessed.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from compression.artifact import ModelFormat
from compression.errors import ModelRefused
from compression.models.formats import check_weights, looks_like_safetensors

WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
PREFIXES = ("module.", "_orig_mod.")
SHOWN_KEYS = 5

State = dict[str, Tensor]


def read_state(data: bytes, declared: ModelFormat) -> State:
    """Return the tensors of a weights file by name, on the CPU.

    Args:
        data: The whole file.
        declared: Its format; for `python` either of the two formats is recognised.

    Raises:
        ModelRefused: The file is not of the declared format, is damaged, or holds no tensors.
    """
    if declared == "python":
        declared = "safetensors" if looks_like_safetensors(data) else "state_dict"
    check_weights(data, declared)
    state = _read_safetensors(data) if declared == "safetensors" else _read_state_dict(data)
    for prefix in PREFIXES:
        if state and all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    if not state:
        raise ModelRefused("The weights file holds no tensors")
    return state


def load_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy every tensor into the model, cast to the model's own type.

    A missing `num_batches_tracked` counter of a BatchNorm layer is forgiven: files written before
    PyTorch 0.4.1 have none, and nothing depends on it.

    Raises:
        ModelRefused: A key is missing or unexpected, or a shape or kind of number differs.
    """
    wanted = model.state_dict()
    missing = [k for k in wanted if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in wanted]
    if missing or unexpected:
        problems = [("lacks", missing), ("has unexpected", unexpected)]
        raise ModelRefused(
            "The weights do not match the architecture: the file "
            + " and ".join(f"{verb} {_listed(keys)}" for verb, keys in problems if keys)
        )
    for key, found in state.items():
        expected = wanted[key]
        if found.shape != expected.shape:
            raise ModelRefused(
                f"Weight {key!r} has shape {list(found.shape)}; "
                f"the architecture expects {list(expected.shape)}"
            )
        if found.is_floating_point() != expected.is_floating_point():
            raise ModelRefused(
                f"Weight {key!r} is {found.dtype}; the architecture expects {expected.dtype}"
            )
    model.load_state_dict(dict(state), strict=False)


def check_finite(model: nn.Module) -> None:
    """Require that every parameter and buffer is finite.

    Raises:
        ModelRefused: Naming the first tensor that is not.
    """
    for key, value in model.state_dict().items():
        if value.is_floating_point():
            bad = int(value.numel() - torch.isfinite(value).sum())
            if bad:
                raise ModelRefused(
                    f"Weight {key!r} has {bad} of {value.numel()} values that are NaN or infinite"
                )


def _read_safetensors(data: bytes) -> State:
    try:
        return safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise ModelRefused(f"The safetensors file cannot be read: {error}") from error


def _read_state_dict(data: bytes) -> State:
    try:
        # weights_only: tensors and plain containers; anything else in the pickle is refused
        # before it could run.
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        RuntimeError,
        ValueError,
        TypeError,
        LookupError,
        EOFError,
    ) as error:
        first_line = str(error).split("\n", 1)[0]
        raise ModelRefused(f"The state dict cannot be read safely: {first_line}") from error
    if isinstance(content, Mapping):
        for wrapper in WRAPPERS:
            if isinstance(content.get(wrapper), Mapping):
                content = content[wrapper]
                break
    if not isinstance(content, Mapping):
        raise ModelRefused(f"The file holds a {type(content).__name__}; a state dict is a mapping")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ModelRefused(
                f"Entry {key!r} of the state dict is a {type(value).__name__}, not a tensor"
            )
    return {key: value.detach() for key, value in content.items()}


def _listed(keys: list[str]) -> str:
    shown = ", ".join(repr(key) for key in keys[:SHOWN_KEYS])
    rest = len(keys) - SHOWN_KEYS
    return f"{shown} and {rest} more" if rest > 0 else shown
