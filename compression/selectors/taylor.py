"""Channel importance by the effect of its removal on the loss, to first order.

Reference:
    Molchanov et al. (2019), "Importance Estimation for Neural Network Pruning";
    https://arxiv.org/abs/1906.10771. Equation 8: the importance of a set of weights is the sum
    of the squares of gradient times weight; averaged over minibatches as in section 3.2.

Deviations:
    The set of a channel is all weights, scales and biases that produce it, in all layers of its
    coupling. Gradients are taken once, in evaluation mode, on the dense model; the paper removes
    a few channels at a time while it trains.

On networks that fit their training images perfectly these gradients are small and noisy: with
the experiment described in `compression.selectors.magnitude` it reaches 69 % on ResNet-56 and
52 % on ResNet-20, less than the norms of filters.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from compression.coupling import Coupling
from compression.selectors.selector import Evidence, Scores, sum_over_producers


class Taylor:
    """The mean over batches of the sum of (gradient * weight)^2, for the cross-entropy loss."""

    needs_labels = True
    needs_inputs = False

    def scores(self, model: nn.Module, couplings: Sequence[Coupling], evidence: Evidence) -> Scores:
        """Score every channel of every coupling.

        Raises:
            PlanInvalid: There are no labelled batches.
        """
        batches = evidence.labelled("taylor")
        # Fresh leaves, so that neither the model's gradients nor its flags are touched.
        weights = {
            name: parameter.detach().clone().requires_grad_()
            for name, parameter in model.named_parameters()
        }
        values = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        for inputs, labels in batches:
            with torch.enable_grad():
                logits = functional_call(model, weights, (inputs,))
                loss = functional.cross_entropy(logits, labels)
                gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
            for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
                if gradient is not None:
                    values[name] += (gradient * weight.detach()).square() / len(batches)
        return {c.name: sum_over_producers(values, c, ("weight", "bias")) for c in couplings}
