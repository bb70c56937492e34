"""From single effects to a plan: the least damage in sum that meets a bound on MACs.

Reference:
    The knapsack over layers of Shen et al. (2022), "Structural Pruning via Latency-Saliency
    Knapsack", https://arxiv.org/abs/2210.06659, solved by a Lagrange multiplier: per unit the
    option with the least `damage + multiplier * MACs`, bisected on the multiplier.

Deviations:
    Damage is that of `compression.sensitivity`, MACs take the place of latency. Effects are taken
    to add up, which holds only roughly for strong ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from compression.cost import CostTable
from compression.decisions import Decision, DropBlock
from compression.errors import PlanInvalid
from compression.plan import Plan
from compression.sensitivity import Effect

_HALVINGS = 60

Options = list[tuple[float, int, Mapping[str, Sequence[Decision]]]]
"""Of one unit: damage, MACs of the model, and the decisions; the first takes none."""


def allocate(effects: Sequence[Effect], costs: CostTable, max_macs: int) -> Plan:
    """Return the plan of least summed damage whose MACs are at most `max_macs`.

    At every site at most one of its decisions is taken; nothing inside a dropped block.

    Args:
        effects: From `compression.sensitivity.profile`.
        costs: Of the same model.
        max_macs: Exact bound.

    Raises:
        PlanInvalid: No choice of these decisions gets there.
    """
    units = _units(effects, costs)
    low, high = 0.0, 1.0
    while costs.cost(_chosen(units, high)).macs > max_macs:
        high *= 4
        if high > 1e12:
            raise PlanInvalid(
                f"{max_macs} MACs are out of reach; these decisions lead to "
                f"{costs.cost(_chosen(units, high)).macs} at the least"
            )
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if costs.cost(_chosen(units, middle)).macs > max_macs:
            low = middle
        else:
            high = middle
    return _chosen(units, high)


def _units(effects: Sequence[Effect], costs: CostTable) -> list[Options]:
    dense = costs.cost(Plan()).macs
    blocks = {e.site: e for e in effects if isinstance(e.decision, DropBlock)}
    by_site: dict[str, Options] = {}
    for effect in effects:
        if effect.site in blocks:
            continue
        options = by_site.setdefault(effect.site, [(0.0, dense, {})])
        options.append((effect.damage, effect.macs, {effect.site: [effect.decision]}))
    units: list[Options] = []
    for name, drop in blocks.items():
        inside = [site for site in by_site if site.startswith(f"{name}.")]
        unit: Options = [(0.0, dense, {})]
        for site in inside:
            unit = [
                (damage + more, macs + after - dense, {**taken, **also})
                for damage, macs, taken in unit
                for more, after, also in by_site[site]
            ]
            del by_site[site]
        units.append([*unit, (drop.damage, drop.macs, {name: [drop.decision]})])
    return [*units, *by_site.values()]


def _chosen(units: Sequence[Options], multiplier: float) -> Plan:
    """Per million MACs, so that the multiplier is a number of ordinary size."""
    taken: dict[str, Sequence[Decision]] = {}
    for unit in units:
        taken |= min(unit, key=lambda option: option[0] + multiplier * option[1] / 1e6)[2]
    return Plan.of(taken)
