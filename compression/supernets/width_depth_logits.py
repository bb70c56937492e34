"""The parameters of choice: one logit per width of a site and per depth of a stage."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from compression.supernets.gumbel import gumbel_noise, relaxed, sample_two
from compression.supernets.width_depth_choices import DepthChoice, WidthChoice
from compression.supernets.width_depth_network import Mixture

DEVIATION = 0.01
"""Of the first logits, as in the authors' code."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Logits:
    """Float64 leaf tensors, in the order of the choices.

    Attributes:
        width_choices: What sites choose from.
        depth_choices: What chains of blocks choose from.
        alpha: One tensor per width choice.
        beta: One tensor per depth choice.
    """

    width_choices: tuple[WidthChoice, ...]
    depth_choices: tuple[DepthChoice, ...]
    alpha: tuple[Tensor, ...]
    beta: tuple[Tensor, ...]

    @classmethod
    def drawn(
        cls,
        widths: Sequence[WidthChoice],
        depths: Sequence[DepthChoice],
        generator: torch.Generator,
    ) -> Logits:
        """Return logits near zero: every choice is about equally probable."""

        def draw(count: int) -> Tensor:
            normal = torch.randn(count, generator=generator, dtype=torch.float64)
            return (DEVIATION * normal).requires_grad_()

        return cls(
            tuple(widths),
            tuple(depths),
            tuple(draw(len(choice.candidates)) for choice in widths),
            tuple(draw(len(choice.candidates)) for choice in depths),
        )

    def parameters(self) -> list[Tensor]:
        """Return all of them, widths first."""
        return [*self.alpha, *self.beta]

    def sample(self, tau: float, generator: torch.Generator) -> Mixture:
        """Draw two widths per site and weights of all depths; gradients flow to the logits."""
        pairs = {
            choice.site: sample_two(logits, tau, generator)
            for choice, logits in zip(self.width_choices, self.alpha, strict=True)
        }
        depths = [relaxed(b, gumbel_noise(len(b), generator), tau) for b in self.beta]
        return Mixture(pairs, depths)

    def probabilities(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return the probabilities of widths and of depths, without noise, with gradients."""
        return [torch.softmax(a, 0) for a in self.alpha], [torch.softmax(b, 0) for b in self.beta]

    def decided(self) -> tuple[dict[str, int], list[str]]:
        """Return the most probable: kept channels by site, and the blocks that are skipped."""
        kept = {
            choice.site: choice.candidates[int(logits.argmax())]
            for choice, logits in zip(self.width_choices, self.alpha, strict=True)
        }
        stays = [
            choice.candidates[int(logits.argmax())]
            for choice, logits in zip(self.depth_choices, self.beta, strict=True)
        ]
        return kept, self._skipped(stays)

    def expected(self) -> tuple[dict[str, float], list[str]]:
        """Return the means: kept channels by site, and the blocks beyond the nearest depth."""
        widths, depths = self.probabilities()
        kept = {
            choice.site: _mean(choice.candidates, p)
            for choice, p in zip(self.width_choices, widths, strict=True)
        }
        stays = [
            _nearest(choice.candidates, _mean(choice.candidates, p))
            for choice, p in zip(self.depth_choices, depths, strict=True)
        ]
        return kept, self._skipped(stays)

    def _skipped(self, stays: Sequence[int]) -> list[str]:
        """Return the blocks that are skipped where so many of every chain stay."""
        pairs = zip(self.depth_choices, stays, strict=True)
        return [block for choice, depth in pairs for block in choice.blocks[depth:]]


def _mean(candidates: Sequence[int], probabilities: Tensor) -> float:
    return float(probabilities.detach() @ torch.tensor(candidates, dtype=probabilities.dtype))


def _nearest(candidates: Sequence[int], value: float) -> int:
    return min(candidates, key=lambda candidate: abs(candidate - value))
