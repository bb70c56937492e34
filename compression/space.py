"""Which plans are admissible, and their integer and unit-cube coordinates."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compression import choices
from compression.decisions import (
    Decision,
    DropBlock,
    PruneChannels,
    Quantize,
    QuantizeWeights,
    Refit,
    Share,
    Sparsify,
)
from compression.errors import PlanInvalid
from compression.plan import Plan

Choice = int | str
Point = tuple[int, ...]
"""One index into `choices` per knob, in knob order."""

DENSE = "none"
"""The choice of a categorical knob that leaves the model untouched."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Knob:
    """One variable of the search: a field of a decision at a site.

    Fields are `keep_channels` (ordered ints ascending, the last is all channels, which means no
    decision), `selector` (one for the whole model), `precision` (`none` or `int8`), and the kinds
    of `compression.choices` (`none`, then texts, from the mildest to the strongest).

    Attributes:
        site: The site's name.
        field: Which field of which decision, one of those above.
        choices: At least one, distinct.
        ordered: Whether neighbouring choices are alike.
    """

    site: str
    field: str
    choices: tuple[Choice, ...]
    ordered: bool

    def __post_init__(self) -> None:
        if self.field not in ("keep_channels", "selector", "precision", *choices.KINDS):
            raise PlanInvalid(f"Knob at {self.site!r}: unknown field {self.field!r}")
        if not self.choices or len(set(self.choices)) != len(self.choices):
            raise PlanInvalid(f"Knob {self.name!r}: choices {self.choices} are empty or repeat")
        if self.field in choices.KINDS:
            for choice in self.choices:
                if choice != DENSE:
                    choices.parse(self.field, str(choice))

    @property
    def name(self) -> str:
        """Unique within a space: `site:field`."""
        return f"{self.site}:{self.field}"

    def nearest(self, value: float) -> int:
        """Return the index of the number nearest to `value`, the first of equally near ones."""
        distances = [abs(int(choice) - value) for choice in self.choices]
        return distances.index(min(distances))


@dataclasses.dataclass(frozen=True, slots=True)
class PlanSpace:
    """The admissible plans: every combination of the knobs' choices.

    Laws: `contains(decode(p))` for every point; `decode(encode(plan)) == plan` for every
    contained plan; the dense plan is always contained. Several points may decode to one plan: a
    selector does not matter where nothing is pruned, nor does anything inside a dropped block,
    nor low bits where weights are shared, nor zeros where vectors of weights are. `canonical`
    gives the one that `encode` returns.

    Attributes:
        knobs: The variables, keep_channels first, in forward order.
        refit: Of every channel decision.
    """

    knobs: tuple[Knob, ...]
    refit: Refit = "none"

    def __post_init__(self) -> None:
        names = [knob.name for knob in self.knobs]
        if len(set(names)) != len(names):
            raise PlanInvalid(f"Space has two knobs of one name: {names}")

    @property
    def size(self) -> int:
        """Number of points."""
        return math.prod(len(knob.choices) for knob in self.knobs)

    def decode(self, point: Sequence[int]) -> Plan:
        """Return the plan at `point`.

        Raises:
            PlanInvalid: Wrong length, or an index out of range.
        """
        if len(point) != len(self.knobs):
            raise PlanInvalid(f"Point has {len(point)} coordinates; space has {len(self.knobs)}")
        selector = "l2"
        decisions: dict[str, list[Decision]] = {}
        keeps: list[tuple[str, int]] = []
        for knob, index in zip(self.knobs, self.canonical(point), strict=True):
            value = knob.choices[index]
            if knob.field == "selector":
                selector = str(value)
            elif knob.field == "keep_channels":
                if index != len(knob.choices) - 1:
                    keeps.append((knob.site, int(value)))
            elif value != DENSE:
                decision = (
                    Quantize()
                    if knob.field == "precision"
                    else choices.parse(knob.field, str(value))
                )
                decisions.setdefault(knob.site, []).append(decision)
        for site, keep in keeps:
            decision = PruneChannels(keep_channels=keep, selector=selector, refit=self.refit)
            decisions.setdefault(site, []).append(decision)
        return Plan.of(decisions)

    def canonical(self, point: Sequence[int]) -> Point:
        """Return the one point that stands for all points of the same plan.

        Raises:
            PlanInvalid: Wrong length, or an index out of range.
        """
        if len(point) != len(self.knobs):
            raise PlanInvalid(f"Point has {len(point)} coordinates; space has {len(self.knobs)}")
        out = [int(index) for index in point]
        dropped: list[str] = []
        displaced: set[tuple[str, str]] = set()
        for knob, index in zip(self.knobs, out, strict=True):
            if not 0 <= index < len(knob.choices):
                raise PlanInvalid(
                    f"Knob {knob.name!r}: index {index} is outside 0..{len(knob.choices) - 1}"
                )
            taken = knob.choices[index] != DENSE
            if knob.field == DropBlock.kind and taken:
                dropped.append(f"{knob.site}.")
            elif knob.field == Share.kind and taken:
                displaced.add((knob.site, QuantizeWeights.kind))
                share = choices.parse(Share.kind, str(knob.choices[index]))
                if isinstance(share, Share) and share.block > 1:
                    displaced.add((knob.site, Sparsify.kind))
        inside = tuple(dropped)
        pruned = False
        for number, knob in enumerate(self.knobs):
            within = bool(inside) and knob.site.startswith(inside)
            if within or (knob.site, knob.field) in displaced:
                out[number] = self._untouched(knob)
            pruned |= knob.field == "keep_channels" and out[number] != len(knob.choices) - 1
        if not pruned:
            out = [
                0 if knob.field == "selector" else index
                for knob, index in zip(self.knobs, out, strict=True)
            ]
        return tuple(out)

    @staticmethod
    def _untouched(knob: Knob) -> int:
        if knob.field == "keep_channels":
            return len(knob.choices) - 1
        return knob.choices.index(DENSE) if DENSE in knob.choices else 0

    def encode(self, plan: Plan) -> Point:
        """Return the point of a contained plan; `keep_float` of a Quantize is ignored.

        Raises:
            PlanInvalid: The plan is not in the space; the message names the site.
        """
        prune = plan.prune_channels()
        selectors = sorted({decision.selector for decision in prune.values()})
        if len(selectors) > 1:
            raise PlanInvalid(f"Plan mixes selectors {selectors}; the space knows one per plan")
        for site, pruned in prune.items():
            if pruned.refit != self.refit:
                raise PlanInvalid(
                    f"Site {site!r} has refit {pruned.refit!r}; the space allows only "
                    f"{self.refit!r}"
                )
        wanted: dict[str, Choice] = {
            f"{s}:keep_channels": d.keep_channels for s, d in prune.items()
        }
        for knob in self.knobs:
            if knob.field == "keep_channels" and wanted.get(knob.name) == knob.choices[-1]:
                raise PlanInvalid(
                    f"Site {knob.site!r} keeps {knob.choices[-1]} channels, which is all of them; "
                    "a plan leaves such a site out"
                )
        quantize = plan.quantize()
        if quantize is not None:
            if quantize.calibrator != Quantize().calibrator:
                raise PlanInvalid(
                    f"Plan calibrates by {quantize.calibrator!r}; the space allows only "
                    f"{Quantize().calibrator!r}"
                )
            site = next(site for site, d in plan if isinstance(d, Quantize))
            wanted[f"{site}:precision"] = "int8"
        for site, decision in plan:
            if decision.kind in choices.KINDS:
                wanted[f"{site}:{decision.kind}"] = choices.text_of(decision)
        point = []
        for knob in self.knobs:
            if knob.field == "selector":
                value: Choice = selectors[0] if selectors else knob.choices[0]
            elif knob.field == "keep_channels":
                value = wanted.pop(knob.name, knob.choices[-1])
            else:
                value = wanted.pop(knob.name, DENSE)
            if value not in knob.choices:
                raise PlanInvalid(f"Knob {knob.name!r}: {value!r} is not one of {knob.choices}")
            point.append(knob.choices.index(value))
        if wanted:
            raise PlanInvalid(f"Plan decides {sorted(wanted)}, which the space does not have")
        if selectors and not any(k.field == "selector" for k in self.knobs) and selectors != ["l2"]:
            raise PlanInvalid(f"Plan uses selector {selectors[0]!r}; the space allows only 'l2'")
        return tuple(point)

    def contains(self, plan: Plan) -> bool:
        """Whether the plan is admissible."""
        try:
            self.encode(plan)
        except PlanInvalid:
            return False
        return True

    def dense(self) -> Point:
        """Return the point that leaves the model untouched."""
        return tuple(self._untouched(knob) for knob in self.knobs)

    def smallest(self) -> Point:
        """Return the point with the strongest choice everywhere."""
        return self.canonical(
            [
                0 if knob.field in ("keep_channels", "selector") else len(knob.choices) - 1
                for knob in self.knobs
            ]
        )

    def uniform(self, keep_ratio: float, *, precision: str | None = None) -> Point:
        """Return the point nearest to one `keep_ratio` (share kept) at every channel site.

        Args:
            keep_ratio: In (0, 1].
            precision: The choice of the precision knob; the first choice when None.
        """
        point = []
        for knob in self.knobs:
            if knob.field == "keep_channels":
                point.append(knob.nearest(keep_ratio * int(knob.choices[-1])))
            elif knob.field == "precision" and precision is not None:
                point.append(knob.choices.index(precision))
            else:
                point.append(0)
        return tuple(point)

    def sample(self, rng: np.random.Generator) -> Point:
        """Draw a point uniformly, each knob on its own."""
        return tuple(int(rng.integers(len(knob.choices))) for knob in self.knobs)

    def to_unit(self, point: Sequence[int]) -> NDArray[np.float64]:
        """Return `d` float64 coordinates in [0, 1]: index / (choices - 1), 0.5 for one choice."""
        return np.array(
            [
                index / (len(knob.choices) - 1) if len(knob.choices) > 1 else 0.5
                for knob, index in zip(self.knobs, point, strict=True)
            ]
        )

    def from_unit(self, x: NDArray[np.float64]) -> Point:
        """Return the point nearest to `d` coordinates; values outside [0, 1] are clipped."""
        return tuple(
            int(np.rint(np.clip(value, 0.0, 1.0) * (len(knob.choices) - 1)))
            for knob, value in zip(self.knobs, x, strict=True)
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {
            "knobs": [
                {"site": k.site, "field": k.field, "choices": list(k.choices), "ordered": k.ordered}
                for k in self.knobs
            ],
            **({} if self.refit == "none" else {"refit": self.refit}),
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> PlanSpace:
        """Rebuild a space from `to_json`."""
        return PlanSpace(
            tuple(Knob(**{**knob, "choices": tuple(knob["choices"])}) for knob in data["knobs"]),
            data.get("refit", "none"),
        )
