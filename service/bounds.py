"""Constraints before any trial: what they contradict, and what arithmetic says of them.

Three quantities of a plan are exact arithmetic (MACs, FLOPs, params); of bytes and of relative
bounds that the dense model itself meets, something is known too. The rest only a device or a
dataset can tell, and is called unknown here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from compression.cost import CostTable, PlanCost
from compression.space import PlanSpace
from search.measurement import Measurement
from search.metric import ACCURACIES, METRICS
from search.objective import Constraint
from service.errors import Fault

Reachable = Literal["yes", "no", "unknown"]

ROUNDING = 1e-12


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """What the plans of a space reach in one quantity.

    Attributes:
        low: Smallest value.
        high: Largest value: the dense model's.
        exact: Whether both ends are exact; False for bytes, which leave out headers and coding.
    """

    low: int
    high: int
    exact: bool = True

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {"min": self.low, "max": self.high, "exact": self.exact}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What is known of one bound before any trial.

    Attributes:
        constraint: The bound.
        limit: In the metric's unit; None while its baseline is not measured.
        reachable: Whether some plan of the space meets it.
        reason: Why, with the figures.
        warning: An estimate that speaks against it; None where there is none.
    """

    constraint: Constraint
    limit: float | None
    reachable: Reachable
    reason: str
    warning: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {
            "key": self.constraint.key,
            "constraint": self.constraint.to_json(),
            "limit": self.limit,
            "unit": METRICS[self.constraint.metric].unit,
            "reachable": self.reachable,
            "reason": self.reason,
            "warning": self.warning,
        }


def arithmetic_values(cost: PlanCost) -> dict[str, int]:
    """Return the exactly known metrics of a plan, by name."""
    return {"macs": cost.macs, "flops": 2 * cost.macs, "params": cost.params}


def regions(space: PlanSpace, costs: CostTable) -> dict[str, Region]:
    """Return what the space reaches, by metric, and `weight_bytes` as the estimate of files.

    Every cost grows with every keep_channels, so the smallest and the dense plan are the ends.
    """
    low, high = costs.cost(space.decode(space.smallest())), costs.cost(space.decode(space.dense()))
    ends = zip(arithmetic_values(low).items(), arithmetic_values(high).values(), strict=True)
    found = {name: Region(low=least, high=most) for (name, least), most in ends}
    found["weight_bytes"] = Region(low=low.weight_bytes, high=high.weight_bytes, exact=False)
    return found


def _bound(constraint: Constraint) -> float:
    bound = constraint.at_most if constraint.at_most is not None else constraint.at_least
    assert bound is not None
    return bound


def _side(constraint: Constraint) -> Literal["at_most", "at_least"]:
    return "at_most" if constraint.at_most is not None else "at_least"


def range_faults(index: int, constraint: Constraint) -> list[Fault]:
    """Return what is wrong with one bound on its own: its sign and its size."""
    bound, side, name = _bound(constraint), _side(constraint), constraint.metric
    where = f"/constraints/{index}/{side}"
    accuracy = name in ACCURACIES
    if constraint.relative_to == "baseline_difference":
        if accuracy and not -1.0 <= bound <= 1.0:
            return [Fault(where, f"{name} {side} baseline {bound:+g}: shares differ by at most 1")]
        return []
    if bound < 0:
        return [Fault(where, f"{name} {side} {bound:g} is negative; a {name} never is")]
    if accuracy and constraint.relative_to is None and bound > 1:
        return [Fault(where, f"{name} {side} {bound:g}: it is a share, so at most 1")]
    if side == "at_most" and bound == 0 and not accuracy:
        return [Fault(where, f"{name} at_most 0: no network has none; the bound must be above 0")]
    return []


def contradiction_faults(constraints: Sequence[Constraint], baseline: Measurement) -> list[Fault]:
    """Return two bounds on one side of one quantity, and pairs that no value can satisfy.

    Args:
        constraints: In the order of the request.
        baseline: What is known of the dense model; relative bounds on other metrics are compared
            among their own kind only.
    """
    faults: list[Fault] = []
    seen: dict[tuple[str, str], int] = {}
    for index, constraint in enumerate(constraints):
        side = (constraint.key, _side(constraint))
        if side in seen:
            message = (
                f"{constraint.key} has a second {side[1]} bound; "
                f"the first is constraints[{seen[side]}]"
            )
            faults.append(Fault(f"/constraints/{index}", message))
        else:
            seen[side] = index
    most = [(i, c) for i, c in enumerate(constraints) if c.at_most is not None]
    least = [(i, c) for i, c in enumerate(constraints) if c.at_least is not None]
    for i, upper in most:
        for j, lower in least:
            clash = _contradiction(upper, lower, baseline)
            if clash is not None:
                faults.append(Fault(f"/constraints/{max(i, j)}", clash))
    return faults


def _comparable(constraint: Constraint, baseline: Measurement) -> tuple[str, str, float]:
    """Return quantity, scale and bound; two bounds compare where the first two agree."""
    # FLOPs are 2 x MACs, so a bound on one is a bound on the other.
    flops = constraint.metric == "flops"
    quantity = "macs" if flops else constraint.key
    if constraint.relative_to is None or constraint.reading(baseline) is not None:
        return quantity, "absolute", constraint.limit(baseline) * (0.5 if flops else 1.0)
    return quantity, constraint.relative_to, _bound(constraint)


def _contradiction(upper: Constraint, lower: Constraint, baseline: Measurement) -> str | None:
    *above, high = _comparable(upper, baseline)
    *below, low = _comparable(lower, baseline)
    if above != below or high >= low:
        return None
    return (
        f"{upper.key} at most {high:g} contradicts {lower.key} at least {low:g}"
        f"{'' if above[1] == 'absolute' else f' (relative to {above[1]})'}: no value is both"
    )


def verdict(constraint: Constraint, reach: Mapping[str, Region], baseline: Measurement) -> Verdict:
    """Return what is known of a bound before any trial.

    Args:
        constraint: The bound.
        reach: From `regions`.
        baseline: What is known of the dense model.
    """
    bound, upper = _bound(constraint), constraint.at_most is not None
    relative = constraint.relative_to is not None
    known = not relative or constraint.reading(baseline) is not None
    limit = constraint.limit(baseline) if known else None
    if METRICS[constraint.metric].by_cost_table and limit is not None:
        region = reach[constraint.metric]
        # A multiple of the baseline may miss the very end by a rounding of its last digit.
        slack = ROUNDING * abs(limit)
        met = region.low <= limit + slack if upper else region.high >= limit - slack
        reason = (
            f"{constraint.metric} of this space go from {region.low:,} to {region.high:,}; "
            f"the bound is {'at most' if upper else 'at least'} {limit:,.6g}"
        )
        return Verdict(
            constraint=constraint,
            limit=limit,
            reachable="yes" if met else "no",
            reason=reason,
        )
    neutral = 1.0 if constraint.relative_to == "baseline" else 0.0
    if relative and (neutral <= bound if upper else neutral >= bound):
        return Verdict(
            constraint=constraint,
            limit=limit,
            reachable="yes",
            reason="The dense model itself meets the bound",
        )
    return Verdict(
        constraint=constraint,
        limit=limit,
        reachable="unknown",
        reason=f"{constraint.metric} is not known before measuring",
        warning=_size_warning(constraint, limit, reach["weight_bytes"]),
    )


def _size_warning(constraint: Constraint, limit: float | None, weights: Region) -> str | None:
    """Return why a bound on a file's size looks too tight; an estimate, never a refusal."""
    if constraint.at_most is None or constraint.metric not in ("runtime_bytes", "download_bytes"):
        return None
    if limit is None and constraint.relative_to == "baseline":
        limit = constraint.at_most * weights.high
    if limit is None or limit >= weights.low:
        return None
    coded = ", before entropy coding" if constraint.metric == "download_bytes" else ""
    return (
        f"The weights alone of the smallest plan take {weights.low:,} bytes{coded}; "
        f"the bound is about {limit:,.0f} bytes (estimate)"
    )
