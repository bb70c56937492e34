"""What a primitive on modules may use beside the module and the decisions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import Tensor, nn

from compression.primitives.rankings import Rankings
from compression.selectors.selector import Batch
from compression.surveyed import Survey


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ModuleContext:
    """What a worker keeps of a model and its data for the primitives that change modules.

    Attributes:
        dense: The dense model in eval mode; never changed.
        survey: Of the dense model.
        rankings: Couplings of the dense model and the orders of importance of their channels.
        input_shape: C, H, W of one input.
        calibration: Preprocessed float32 batches `B x C x H x W`, unlabelled; may be empty.
        batches: Labelled batches; may be empty.
        seed: Of everything random in a primitive.
    """

    dense: nn.Module
    survey: Survey
    rankings: Rankings
    input_shape: tuple[int, int, int]
    calibration: Sequence[Tensor] = ()
    batches: Sequence[Batch] = ()
    seed: int = 0
