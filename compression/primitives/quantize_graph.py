"""Post-training quantization as a primitive: 8-bit integers in the deployed graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from compression.cost import CostTable, PlanCost
from compression.decisions import Decision, Quantize
from compression.errors import NotCertified, PlanInvalid
from compression.methods import PRIMITIVES, Methods
from compression.onnx_session import open_session, run_batches
from compression.plan import Plan
from compression.primitives.primitive import Constraints, Description, Need
from compression.primitives.quantize import quantize_onnx
from compression.site import MODEL_SITE, Site


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Calibration:
    """What quantization needs beside the graph, and leaves for its verification.

    Attributes:
        inputs: `n x C x H x W` float32, preprocessed.
    """

    inputs: NDArray[np.float32]


class GraphQuantization:
    """Primitive `quantize`; its subject is a serialized ONNX graph."""

    def describe(self) -> Description:
        """Return what this primitive is."""
        return Description(
            name=Quantize.kind,
            summary=PRIMITIVES[Quantize.kind],
            site_kind="model",
            acts_on="onnx",
            deterministic=True,
        )

    def applicable(self, site: Site, costs: CostTable) -> str | None:
        """Return why `site` cannot be quantized; None for the whole model."""
        if site.kind != "model":
            return f"precision is decided for the whole model, not at {site.name!r}"
        return site.frozen

    def space(self, site: Site, methods: Methods) -> tuple[Decision | None, ...]:
        """Return 8-bit integers, then None."""
        return (Quantize(), None)

    def needs(self, decision: Decision) -> frozenset[Need]:
        """Return that unlabelled calibration inputs are needed."""
        return frozenset({"calibration"})

    def estimate(self, site: Site, decision: Decision, costs: CostTable) -> PlanCost:
        """Return the costs of the model with this decision alone: weights of one byte."""
        return costs.cost(Plan.of({site.name: [decision]}))

    def apply(
        self, subject: bytes, decisions: Mapping[str, Decision], context: Calibration
    ) -> tuple[bytes, Calibration]:
        """Return the integer graph of a float graph.

        Raises:
            PlanInvalid: There is not exactly one decision, at the `model` site.
            CompressionError: The graph cannot be quantized.
        """
        decision = decisions.get(MODEL_SITE)
        if len(decisions) != 1 or not isinstance(decision, Quantize):
            raise PlanInvalid(f"quantize takes one decision at 'model'; it got {sorted(decisions)}")
        return quantize_onnx(subject, context.inputs, decision), context

    def verify(self, before: bytes, after: bytes, record: Calibration) -> None:
        """Check that the integer graph runs, is smaller, and still carries the signal.

        The error of its outputs on the calibration inputs must have less power than the float
        outputs about their mean; accuracy proper is measured, not certified.

        Raises:
            NotCertified: One of these does not hold.
        """
        if len(after) >= len(before):
            raise NotCertified(f"Quantized graph has {len(after)} bytes; float has {len(before)}")
        expected, actual = (run_batches(open_session(g), record.inputs) for g in (before, after))
        if actual.shape != expected.shape or not np.isfinite(actual).all():
            raise NotCertified(
                f"Quantized graph gives {actual.shape}, finite: {bool(np.isfinite(actual).all())}; "
                f"float gives {expected.shape}"
            )
        noise = float(np.square(actual - expected).mean())
        signal = float(np.square(expected - expected.mean(axis=0)).mean())
        if not noise < signal:
            raise NotCertified(
                f"Quantization noise has power {noise:.3g}; the outputs have {signal:.3g}"
            )

    def constraints(self) -> Constraints:
        """Return that only lossless coding may follow."""
        return Constraints(before=("encode",), preserves=())
