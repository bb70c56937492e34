"""Channel importance by the effect of its removal on the loss, to second order.

Reference:
    Theis et al. (2018), "Faster gaze prediction with dense networks and Fisher pruning", section
    2.1, https://arxiv.org/abs/1801.05787, after LeCun et al. (1989), "Optimal Brain Damage". Put
    a gate of 1 on a channel; closing it raises the loss by about half the Hessian's diagonal,
    which is the Fisher information of the gate. With `g_n` the derivative of example n's loss
    by the gate, that is the sum over positions of activation times gradient, the score is
    1/(2N) * sum over n of g_n^2.

Deviations:
    The gate sits where the channel is consumed, one for all consumers of a coupling together, so
    what is scored is exactly what a removal does. The empirical Fisher information is taken once,
    on the dense model in evaluation mode, with the data's labels.

With the experiment described in `compression.selectors.magnitude`, on 2,000 images, it reaches
57.4 % on ResNet-20, five points more than `taylor`: what a removal does to an example is squared
after it is summed over positions, not weight by weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd

from compression.coupling import Coupling, Tap
from compression.errors import PlanInvalid
from compression.selectors.magnitude import with_norms
from compression.selectors.selector import Batch, Evidence, Scores
from compression.selectors.windows import consumers, in_eval_mode


class Fisher:
    """Half the mean over examples of the squared derivative of the loss by a channel's gate."""

    needs_labels = True
    needs_inputs = False

    def scores(self, model: nn.Module, couplings: Sequence[Coupling], evidence: Evidence) -> Scores:
        """Score every channel of every coupling.

        Raises:
            PlanInvalid: There are no labelled batches.
        """
        batches = evidence.labelled("fisher")
        taps = consumers(model, couplings)
        totals: dict[str, NDArray[np.float64]] = {}
        examples = 0
        layers = sorted({tap.layer for found in taps.values() for tap in found})
        for batch in batches:
            by_gate = _gate_gradients(model, layers, batch)
            for name, found in taps.items():
                called = [tap for tap in found if tap.layer in by_gate]
                if called:
                    totals[name] = totals.get(name, 0.0) + _squares(by_gate, called)
            examples += len(batch[1])
        scores = {name: total / (2.0 * examples) for name, total in totals.items()}
        return with_norms(scores, model, couplings)


def _squares(by_gate: Mapping[str, Tensor], taps: Sequence[Tap]) -> NDArray[np.float64]:
    """Return, per channel, the sum over examples of the squared derivative by its gate."""
    derivatives = [by_gate[tap.layer][:, torch.from_numpy(tap.index)].sum(2) for tap in taps]
    squares: NDArray[np.float64] = torch.stack(derivatives).sum(0).square().sum(0).numpy()
    return squares


def _gate_gradients(model: nn.Module, layers: Sequence[str], batch: Batch) -> dict[str, Tensor]:
    """Return, by layer, `B x in_channels` float64: each example's loss by its input gates."""
    inputs, labels = batch
    gates: list[tuple[str, Tensor]] = []

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
        def put_gate(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            x, *rest = arguments
            # One per row of the input: so gradients come out per example, summed over positions.
            between = [1] * (x.dim() - 2)
            convolves = isinstance(module, _ConvNd)
            width = x.shape[1] if convolves else x.shape[-1]
            shape = (len(x), width, *between) if convolves else (len(x), *between, width)
            gate = torch.ones(shape, requires_grad=True)
            gates.append((name, gate))
            return (x * gate, *rest)

        return put_gate

    handles = [model.get_submodule(name).register_forward_pre_hook(hook(name)) for name in layers]
    try:
        with in_eval_mode(model), torch.enable_grad():
            loss = functional.cross_entropy(model(inputs), labels, reduction="sum")
            leaves = [gate for _, gate in gates]
            found = torch.autograd.grad(loss, leaves, allow_unused=True) if leaves else ()
    finally:
        for handle in handles:
            handle.remove()
    by_layer: dict[str, Tensor] = {}
    for (name, gate), gradient in zip(gates, found, strict=True):
        if gradient is None:
            continue
        if len(gate) % len(labels):
            raise PlanInvalid(
                f"Selector 'fisher' needs examples apart; {name!r} sees {len(gate)} rows of "
                f"{len(labels)} examples"
            )
        # Where a layer sees an example in parts, as windows of attention, they follow each other.
        rows = gradient.flatten(1).view(len(labels), -1, gradient[0].numel()).sum(1).double()
        by_layer[name] = by_layer[name] + rows if name in by_layer else rows
    return by_layer
