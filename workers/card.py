"""The model card of a confirmed checkpoint, from what was measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compression.cost import PlanCost
from compression.decisions import (
    Decision,
    Factorize,
    PruneChannels,
    Quantize,
    QuantizeWeights,
    Share,
    Sparsify,
)
from compression.model_card import (
    DeviceRow,
    Interval,
    LayerRow,
    MetricRow,
    ModelCard,
    StepRow,
    installed_versions,
)
from compression.plan import Plan
from compression.site import MODEL_SITE
from search.measurement import Interval as Spread
from search.measurement import Reading
from search.trial import Trial
from workers.context import JobContext
from workers.meters.accuracy import accuracy
from workers.meters.fingerprint import fingerprint
from workers.meters.layer_profile import LayerTime
from workers.metric_row import interval_of, metric_row
from workers.on_device import OnDevice
from workers.recovered import Recovered

Profile = tuple[Sequence[LayerTime], Sequence[LayerTime]]
"""Layers' times of the dense model and of the result."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CardFacts:
    """What a card is written from.

    Attributes:
        trial: The confirmed trial.
        recovered: Its files and story.
        readings: Everything measured of it.
        dense_logits: The dense model's outputs on the held-out split.
        labels: Its labels; None for unlabelled data.
        drop: Paired loss of top-1; None for unlabelled data.
        agreement: Share of search images on which file and module decide alike.
        on_devices: What the file does on the runtimes of other devices.
        profiles: Layers' times of the dense model and of the result, by device, the device that
            the card shows first.
    """

    trial: Trial
    recovered: Recovered
    readings: Sequence[Reading]
    dense_logits: NDArray[np.float32]
    labels: NDArray[np.int64] | None
    drop: Spread | None
    agreement: float
    on_devices: Sequence[OnDevice] = ()
    profiles: Mapping[str, Profile] = dataclasses.field(default_factory=dict)


def model_card(facts: CardFacts, context: JobContext) -> ModelCard:
    """Write the card: every metric beside the baseline, every layer, every step."""
    spec, plan = context.spec, facts.recovered.plan
    counts = context.data.counts()
    warnings = dict.fromkeys(r.warning for r in facts.readings if r.warning)
    device = fingerprint(spec.devices[0])
    profiled_on = next(iter(facts.profiles), "")
    return ModelCard(
        name=f"{spec.name} {plan.digest[:12]}",
        source_name=spec.model.architecture,
        source_digest=spec.model.weights or "",
        input_shape=spec.model.input_shape,
        preprocessing=spec.model.preprocessing,
        metrics=_metrics(facts),
        layers=_layers(
            plan, facts.recovered.fall_back or {}, facts.profiles.get(profiled_on), context
        ),
        profiled_on=profiled_on,
        devices=[
            DeviceRow(
                device=row.device,
                runtime=row.runtime,
                agreement=row.agreement,
                difference=row.difference,
                scores={reading.metric: interval_of(reading) for reading in row.readings},
            )
            for row in facts.on_devices
        ],
        steps=_steps(facts),
        data={
            "dataset": spec.dataset.name or (spec.dataset.data or ""),
            **{f"{part} rows": str(count) for part, count in counts.items()},
            "INT8 or exported file decides like the module": f"{facts.agreement:.2%}",
            "float file against module": f"{facts.recovered.parity:.1e} of the outputs' size",
            **_base(facts.recovered),
            "device": f"{device.name}, {device.runtime}, {device.threads} threads",
            **{f"device {key}": value for key, value in device.hardware},
        },
        seed=spec.seed,
        versions=installed_versions(),
        warnings=tuple(w for w in warnings if w),
    )


def _base(recovered: Recovered) -> dict[str, str]:
    """Return what the recovery started from, where that was not the original model."""
    base = recovered.base
    if base is None:
        return {}
    options = ", ".join(f"{name} {value}" for name, value in sorted(base["options"].items()))
    told = f" ({options})" if options else ""
    return {"starts from": f"preparation {base['kind']}{told}, artifact {base['artifact'][:12]}"}


def _metrics(facts: CardFacts) -> list[MetricRow]:
    dense = {
        r.metric: interval_of(r)
        for r in accuracy(facts.dense_logits, facts.labels, facts.dense_logits, "test")
    }
    macs = next((r.ratio for r in facts.readings if r.metric == "macs"), None)
    return [
        metric_row(
            reading,
            baseline=dense.get(reading.metric),
            drop=facts.drop,
            macs_ratio=None if macs is None else macs.value,
        )
        for reading in facts.readings
    ]


def _layers(
    plan: Plan, fall_back: Mapping[str, Any], profile: Profile | None, context: JobContext
) -> list[LayerRow]:
    costs = context.survey.costs
    before, after = costs.layer_costs(Plan()), costs.layer_costs(plan)
    quantize = plan.quantize()
    reasons = {row["name"]: row["reason"] for row in fall_back.get("layers", ())}
    ms_before, ms_after = ({}, {}) if profile is None else map(_times_by_layer, profile)
    rows = []
    for layer in costs.layers:
        if layer.op not in ("conv", "linear"):
            continue
        is_int = quantize is not None and layer.name not in quantize.keep_float
        decision = _decision(plan, layer.name, before[layer.name], after[layer.name])
        if layer.name in reasons:
            decision += f"; float32 for {reasons[layer.name]}"
        rows.append(
            LayerRow(
                name=layer.name,
                decision=decision,
                params_before=before[layer.name].params,
                params_after=after[layer.name].params,
                macs_before=before[layer.name].macs,
                macs_after=after[layer.name].macs,
                precision="int8" if is_int else "float32",
                ms_before=ms_before.get(layer.name),
                ms_after=ms_after.get(layer.name),
            )
        )
    return rows


def _times_by_layer(rows: Sequence[LayerTime]) -> dict[str, float]:
    return {row.name: row.median_ms for row in rows}


def _decision(plan: Plan, layer: str, before: PlanCost, after: PlanCost) -> str:
    block = next((b for b in plan.dropped() if layer.startswith(f"{b}.")), None)
    if block is not None:
        return f"dropped with its block {block}"
    words = []
    for site, decision in plan:
        if site == layer or (site == MODEL_SITE and not isinstance(decision, Quantize)):
            words.append(_in_words(decision))
    if not words:
        return "as before" if before.params == after.params else "fewer inputs"
    return "; ".join(words)


def _in_words(decision: Decision) -> str:
    match decision:
        case PruneChannels():
            return f"keeps {decision.keep_channels} outputs, ranked by {decision.selector}"
        case Factorize():
            return f"{decision.method} factors at {decision.rank_ratio:.0%} of the break-even rank"
        case Sparsify():
            return f"{decision.sparsity:.0%} zeros ({decision.pattern})"
        case QuantizeWeights():
            return f"weights on {decision.bits}-bit grids ({decision.quantizer})"
        case Share(block=1):
            return f"weights from {decision.entries} values"
        case Share():
            return f"{decision.entries} vectors of {decision.block} weights"
    return decision.kind


def _steps(facts: CardFacts) -> list[StepRow]:
    seconds = facts.recovered.seconds
    times = {
        "prune_channels": sum(seconds.get(k, 0.0) for k in ("apply", "certify", "recalibrate")),
        "recover": seconds.get("recover"),
        "quantize": seconds.get("quantize"),
    }
    return [
        StepRow(
            name=str(line["step"]),
            detail=f"{line['metric']} on search-validation",
            score=Interval(value=float(line["value"])),
            wall_s=times.get(str(line["step"])),
        )
        for line in facts.recovered.story
    ]
