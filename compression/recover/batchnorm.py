"""BatchNorm recalibration: the cheapest recovery, and needed after every structural change.

Removing channels shifts the distributions that the running statistics describe; replacing the
statistics by those of the compressed network restores most of the accuracy with no training.

Reference:
    Li et al. (2020), "EagleEye: Fast Sub-net Evaluation for Efficient Neural Network Pruning",
    section 3.3, https://arxiv.org/abs/2007.02491. Deviation: instead of the average of batch
    variances, the pooled variance of all batches, merged by Chan et al. (1979), "Updating
    Formulae and a Pairwise Algorithm for Computing Sample Variances", equation 2.1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from compression.backend import Backend
from compression.errors import CompressionError


@dataclasses.dataclass(slots=True)
class Moments:
    """Count, mean and sum of squared deviations per channel, in float64."""

    count: int = 0
    mean: Tensor = dataclasses.field(default_factory=lambda: torch.zeros(()))
    squares: Tensor = dataclasses.field(default_factory=lambda: torch.zeros(()))

    def merge(self, count: int, mean: Tensor, squares: Tensor) -> None:
        """Add a group of `count` values with its own mean and sum of squared deviations."""
        total = self.count + count
        delta = mean - self.mean
        self.mean = self.mean + delta * (count / total)
        self.squares = self.squares + squares + delta.square() * (self.count * count / total)
        self.count = total


def recalibrate(model: nn.Module, batches: Iterable[Tensor], backend: Backend) -> None:
    """Replace every BatchNorm layer's running statistics by those of the given inputs.

    The result is the exact mean and unbiased variance over all batches together, whatever their
    sizes. As in training, each batch is normalised by its own statistics on the way. Nothing but
    the buffers of BatchNorm layers changes; dropout is off, and every layer ends in the mode it
    was in.

    Args:
        model: Changed in place.
        batches: Inputs `B x C x H x W` float32; labels are not needed.
        backend: How to compute; statistics are float32 in any case.

    Raises:
        CompressionError: There is no batch, or statistics are not finite.
        ValueError: A batch gives a layer one value per channel only (torch says so).
    """
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    }
    if not layers:
        return
    modes = {module: module.training for module in model.modules()}
    momenta = {name: layer.momentum for name, layer in layers.items()}
    moments = {name: Moments() for name in layers}
    hooks = [
        layer.register_forward_hook(_observer(moments[name])) for name, layer in layers.items()
    ]
    seen = 0
    try:
        model.eval()
        for layer in layers.values():
            layer.train()
            # With momentum 1 the layer's own kernel leaves the batch's mean and unbiased
            # variance in the running buffers, where the hook picks them up: no second pass.
            layer.momentum = 1.0
        with torch.inference_mode():
            for batch in batches:
                backend.forward(model, batch)
                seen += 1
    finally:
        for hook in hooks:
            hook.remove()
        for name, layer in layers.items():
            layer.momentum = momenta[name]
        for module, training in modes.items():
            module.training = training
    if not seen:
        raise CompressionError("BatchNorm recalibration got no batch of images")
    for name, layer in layers.items():
        _store(name, layer, moments[name], seen)


def _observer(moments: Moments) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def observe(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        del output
        mean, variance = layer.running_mean, layer.running_var
        assert isinstance(mean, Tensor)
        assert isinstance(variance, Tensor)
        count = inputs[0].numel() // inputs[0].shape[1]
        # The buffer holds the unbiased variance; (count - 1) of it is the sum of squares.
        moments.merge(count, mean.double(), variance.double() * (count - 1))

    return observe


def _store(name: str, layer: _BatchNorm, moments: Moments, batches: int) -> None:
    """Write the merged statistics; a layer that no input reached keeps what it had."""
    if not moments.count:
        return
    variance = moments.squares / (moments.count - 1)
    if not bool(torch.isfinite(moments.mean).all() and torch.isfinite(variance).all()):
        raise CompressionError(
            f"BatchNorm layer {name!r}: statistics over {moments.count} values are not finite"
        )
    assert layer.running_mean is not None
    assert layer.running_var is not None
    layer.running_mean.copy_(moments.mean)
    layer.running_var.copy_(variance)
    if layer.num_batches_tracked is not None:
        layer.num_batches_tracked.fill_(batches)
