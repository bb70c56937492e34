"""How the forward passes of a model are computed fastest on this machine, without changing it.

Memory layout and bfloat16 autocast are worth a factor of two to four on CPUs with bfloat16
instructions and cost one on CPUs without, so they are measured on the real batch, not guessed.
"""

from __future__ import annotations

import copy
import dataclasses
import time

import torch
from torch import Tensor, nn

MIN_AGREEMENT = 0.99
"""Least share of a batch whose first choice must be that of float32."""

RUNS = 3
HOPELESS = 2.0
"""A first pass this many times slower than the best ends a candidate: bfloat16 is emulated on
CPUs without the instructions, at a hundredth of the speed."""


@dataclasses.dataclass(frozen=True, slots=True)
class Backend:
    """Memory layout and arithmetic of forward passes.

    Attributes:
        channels_last: Keep activations and convolution weights in NHWC order.
        bf16: Compute convolutions and matrix products in bfloat16 by autocast; parameters,
            gradients, BatchNorm statistics and logits stay float32.
    """

    channels_last: bool = False
    bf16: bool = False

    def prepare(self, model: nn.Module) -> nn.Module:
        """Bring the model's weights into this layout, in place, and return the model."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        model.to(memory_format=layout)
        return model

    def forward(self, model: nn.Module, x: Tensor) -> Tensor:
        """Return the model's logits, `B x num_classes` float32, for inputs `B x C x H x W`.

        Gradients flow as the caller's mode says.
        """
        if self.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.bf16):
            logits: Tensor = model(x)
        return logits.float()


FLOAT32 = Backend()
"""The reference: what the user's model computes."""


def choose_backend(model: nn.Module, batch: Tensor) -> Backend:
    """Measure every backend on a batch and return the fastest that agrees with float32.

    Args:
        model: In eval mode; it is not touched (a copy is measured).
        batch: `B x C x H x W` float32 real inputs of the size that will be used.

    Returns:
        The fastest whose first choices agree with float32 on at least 99 % of the batch; plain
        float32 where none is faster. The timing makes the answer depend on the machine and its
        load: ask once and keep it.
    """
    best_s, reference = _measure(model, FLOAT32, batch, limit_s=float("inf"))
    best = FLOAT32
    expected = reference.argmax(1)
    for channels_last, bf16 in ((True, False), (False, True), (True, True)):
        candidate = Backend(channels_last, bf16)
        wall_s, logits = _measure(model, candidate, batch, limit_s=HOPELESS * best_s)
        agreement = float((logits.argmax(1) == expected).float().mean())
        if wall_s < best_s and agreement >= MIN_AGREEMENT:
            best, best_s = candidate, wall_s
    return best


def _measure(
    model: nn.Module, backend: Backend, batch: Tensor, *, limit_s: float
) -> tuple[float, Tensor]:
    """Return the least wall time of some passes and the logits; one pass if it is over limit."""
    prepared = backend.prepare(copy.deepcopy(model))
    times_s: list[float] = []
    with torch.inference_mode():
        logits = backend.forward(prepared, batch)  # warm-up: allocations, kernel choice
        for _ in range(RUNS):
            start = time.perf_counter()
            logits = backend.forward(prepared, batch)
            times_s.append(time.perf_counter() - start)
            if times_s[-1] > limit_s:
                break
    return min(times_s), logits
