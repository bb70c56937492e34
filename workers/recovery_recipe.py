"""What a job's recovery asks of a training beside its recipe: hooks that the plan calls for."""

from __future__ import annotations

from torch import nn

from compression.apply import Applied
from compression.decisions import QuantizeWeights, Share
from compression.plan import Plan
from compression.recover.fake_quant import FakeQuant
from compression.recover.hook import Hook
from workers.job import Recovery

ROUNDED_SHARE = 0.25
"""Share of the recovery, its last, that trains with rounded weights and activations: by then the
learning rate falls, and BatchNorm and the optimizer have settled without rounding, as in Park &
Yoo (2020), https://arxiv.org/abs/2006.09679."""


def quantization_hooks(plan: Plan, applied: Applied, recovery: Recovery) -> tuple[Hook, ...]:
    """Return fresh hooks that round as the deployed file will; none where nobody asked.

    Plans with low bits or codebooks are recovered in two trainings: the second is the last
    quarter, and rounds throughout; the first does not round.

    Args:
        plan: The trial's, whole.
        applied: What of it was carried out before this training.
        recovery: Of the job.
    """
    decision = plan.quantize()
    if decision is None or not recovery.quantization_aware:
        return ()
    codes = {kind for kind in (QuantizeWeights.kind, Share.kind) if plan.of_kind(kind)}
    if codes and codes.isdisjoint(stage.kind for stage in applied.stages):
        return ()
    layers = {
        name
        for name, module in applied.model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
    }
    return (
        FakeQuant(
            weight_bits=decision.weight_bits,
            activation_bits=decision.activation_bits,
            # What stays in float is named after the deployed file; here only layers can.
            keep_float=layers & set(decision.keep_float),
            warm_up=0.0 if codes else 1.0 - ROUNDED_SHARE,
        ),
    )
