"""Port: one way of making a network smaller."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, Protocol, TypeVar

from torch import nn

from compression.cost import CostTable, PlanCost
from compression.decisions import Decision
from compression.methods import Methods
from compression.primitives.context import ModuleContext
from compression.primitives.record import ModuleRecord
from compression.site import Site, SiteKind

Need = Literal["calibration", "labels", "gradients", "training", "teacher"]

Subject = TypeVar("Subject")
"""What the primitive changes: a torch module, or an exported graph."""
Context_contra = TypeVar("Context_contra", contravariant=True)
"""What it needs beside the subject and the decisions."""
Record = TypeVar("Record")
"""What it leaves for replay and verification."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What a primitive is.

    Attributes:
        name: The `kind` of its decisions.
        summary: One sentence for the user.
        site_kind: Where its decisions attach.
        acts_on: The stage of the model it changes.
        deterministic: Whether equal input gives bit-identical output.
    """

    name: str
    summary: str
    site_kind: SiteKind
    acts_on: Literal["module", "onnx"]
    deterministic: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Constraints:
    """How a primitive fits with others and with recovery.

    Attributes:
        before: Names of primitives and steps that must come later.
        preserves: What later training must leave alone, in words; empty if nothing.
    """

    before: tuple[str, ...] = ()
    preserves: tuple[str, ...] = ()


class Primitive(Protocol[Subject, Context_contra, Record]):
    """One transformation. It holds no state; everything it knows comes as arguments.

    Called in this order: `describe`, `applicable`, `space`, `needs` and `estimate` while a job
    is planned (arithmetic only, no model is touched); `apply` and then `verify` in a worker.
    """

    def describe(self) -> Description:
        """Return what this primitive is."""
        ...

    def applicable(self, site: Site, costs: CostTable) -> str | None:
        """Return why no decision of this kind may attach to `site`; None if one may."""
        ...

    def space(self, site: Site, methods: Methods) -> tuple[Decision | None, ...]:
        """Return the options at an applicable site, smallest result first; None is "untouched".

        The last option is None. Where the options of a field are ordered, so are their costs.
        """
        ...

    def needs(self, decision: Decision) -> frozenset[Need]:
        """Return which data the decision cannot be carried out without."""
        ...

    def estimate(self, site: Site, decision: Decision, costs: CostTable) -> PlanCost:
        """Return what the whole model costs when this decision alone is taken; no model is run."""
        ...

    def apply(
        self, subject: Subject, decisions: Mapping[str, Decision], context: Context_contra
    ) -> tuple[Subject, Record]:
        """Return a changed copy of `subject`, and the record of the change.

        Args:
            subject: Left as it was.
            decisions: By site, of this primitive's kind.
            context: What the primitive needs.

        Raises:
            PlanInvalid: A decision does not fit the subject.
        """
        ...

    def verify(self, before: Subject, after: Subject, record: Record) -> None:
        """Check this primitive's invariant between what `apply` got and gave.

        Raises:
            NotCertified: It does not hold.
        """
        ...

    def constraints(self) -> Constraints:
        """Return how it fits with others."""
        ...


ModuleRecordT = TypeVar("ModuleRecordT", bound=ModuleRecord)


class ModulePrimitive(Primitive[nn.Module, ModuleContext, ModuleRecordT], Protocol[ModuleRecordT]):
    """A primitive that changes the torch module, and can rebuild the structure it made."""

    def replay(
        self, subject: nn.Module, record: Mapping[str, Any], context: ModuleContext
    ) -> nn.Module:
        """Return a module of the structure that `apply` made of `subject`, without any data.

        Weights that were computed from data are not rebuilt; they come with the checkpoint.

        Args:
            subject: What `apply` was given.
            record: `to_json` of the record that it left.
            context: Of the same dense model.

        Raises:
            PlanInvalid: The record does not fit the subject.
        """
        ...
