"""The last rung: rebuilt from its files, checked, timed with interval, held-out split read once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from compression.apply import replay
from compression.checkpoint import CheckpointParts, assemble
from compression.checkpoint_files import REPORT, zip_bytes
from compression.clean_load import load_test
from compression.container import encode_onnx
from compression.errors import NotCertified
from compression.export import parity
from compression.plan import Plan
from search.measurement import Measured, Measurement, Outcome, Reading
from search.trial import Fidelity, Trial
from workers.card import CardFacts, Profile, model_card
from workers.context import JobContext
from workers.meters.accuracy import accuracy, accuracy_drop
from workers.meters.layer_profile import can_profile, layer_profile
from workers.on_device import INT8_AGREEMENT, check_on_device, runtimes_to_check
from workers.readings import arithmetic, deployed_readings
from workers.recovered import Recovered, load_recovered
from workers.rungs import PARITY_TOLERANCE
from workers.steps import Steps

WIDTH = 0.04
"""Relative width of the latency ratio's interval that a result is timed to."""

TIMING_S = 30.0
"""Longest timing of a result, per device."""

ROLES = {"onnx": "model.onnx", "coded": "model.ppz", "report": REPORT}
"""Files of a checkpoint that can also be pulled alone, by role."""


def confirm(trial: Trial, context: JobContext, steps: Steps) -> Outcome:
    """Confirm a recovered trial (`base` is its manifest), or measure the dense model alike.

    Times of boards are not there yet: `workers.board_report` adds them to what is written here.

    The checkpoint is written from the same files, and the roles `checkpoint`, `onnx`, `coded` and
    `report` name its parts. The role `profile` names layers' times as JSON:
    `{device: {"baseline": [row], "candidate": [row]}}`, rows as in `LayerTime`.

    Raises:
        NotCertified: The deployed file does not do what the rebuilt module does, on ONNX Runtime
            or on the runtime of a device that the job names.
        CheckpointInvalid: The checkpoint does not load in a clean interpreter.
    """
    if trial.base is None:
        readings, _ = _measured(context.dense_onnx, None, Plan(), trial, context, steps)
        return Measured(Measurement(tuple(readings)))
    recovered = load_recovered(trial.base, context.store)
    with steps.step("rebuild"):
        model = replay(recovered.patch, context.apply_context)
        model.load_state_dict(dict(recovered.state), strict=True)
        model.eval()
    with steps.step("parity"):
        agreement = _check_parity(model, recovered, context)
    with steps.step("encode"):
        container = encode_onnx(recovered.onnx)
    readings, logits = _measured(recovered.onnx, container, recovered.plan, trial, context, steps)
    with steps.step("parity"):
        integers = recovered.plan.quantize() is not None
        on_devices = [
            check_on_device(device, recovered.onnx, context, integers=integers)
            for device in runtimes_to_check(context)
        ]
    profiles = _profiles(recovered.onnx, trial, context, steps)
    _, labels = context.part(Fidelity.CONFIRMED)
    dense = context.dense_logits(Fidelity.CONFIRMED)
    facts = CardFacts(
        trial=trial,
        recovered=recovered,
        readings=tuple(readings),
        dense_logits=dense,
        labels=labels,
        drop=None if labels is None else accuracy_drop(logits, dense, labels),
        agreement=agreement,
        on_devices=on_devices,
        profiles=profiles,
    )
    with steps.step("write"):
        files = assemble(
            CheckpointParts(
                model=model,
                onnx=recovered.onnx,
                plan=recovered.plan,
                patch=recovered.patch.to_json(),
                source=context.spec.model,
                seed=context.spec.seed,
                card=model_card(facts, context),
            )
        )
    with steps.step("load_test"):
        load_test(files, recovered.probe.numpy(), recovered.expected.numpy())
    with steps.step("store"):
        steps.artifacts["checkpoint"] = context.store.put(zip_bytes(files))
        for role, name in ROLES.items():
            steps.artifacts[role] = context.store.put(files[name])
        steps.artifacts["profile"] = context.store.put(_profile_json(profiles))
    return Measured(Measurement(tuple(readings)))


def _measured(
    deployed: bytes,
    container: bytes | None,
    plan: Plan,
    trial: Trial,
    context: JobContext,
    steps: Steps,
) -> tuple[list[Reading], NDArray[np.float32]]:
    """Read everything there is to read of a deployed file; the held-out split is read here."""
    images, labels = context.part(Fidelity.CONFIRMED)
    dense = context.dense_logits(Fidelity.CONFIRMED)
    with steps.step("score"):
        logits = dense if deployed == context.dense_onnx else context.score_file(deployed, images)
    readings = accuracy(logits, labels, dense, "test")
    readings += arithmetic(plan, context)
    readings += deployed_readings(
        deployed,
        trial,
        context,
        steps,
        devices=context.spec.devices,
        width=WIDTH,
        max_seconds=TIMING_S,
        container=container,
        every=True,
    )
    return readings, logits


def _profiles(
    deployed: bytes, trial: Trial, context: JobContext, steps: Steps
) -> dict[str, Profile]:
    """Return the layers' times of the dense model and the result, on devices that count them.

    Devices that the job names come first: the card shows the first.
    """
    named = context.timed_devices()
    others = [device for device in context.spec.devices if device not in named]
    found: dict[str, Profile] = {}
    for device in filter(can_profile, [*named, *others]):
        with context.quiet.alone(), steps.step("profile"):
            before, after = (
                layer_profile(file, device, seed=trial.seed)
                for file in (context.dense_onnx, deployed)
            )
        found[device.name] = before, after
    return found


def _profile_json(profiles: Mapping[str, Profile]) -> bytes:
    document = {
        device: {
            "baseline": [row.to_json() for row in before],
            "candidate": [row.to_json() for row in after],
        }
        for device, (before, after) in profiles.items()
    }
    return json.dumps(document).encode()


def _check_parity(model: nn.Module, recovered: Recovered, context: JobContext) -> float:
    """Compare deployed file and rebuilt module; return the share of equal decisions."""
    difference = parity(recovered.onnx, model, recovered.probe)
    if recovered.plan.quantize() is None and difference > PARITY_TOLERANCE:
        raise NotCertified(
            f"The deployed file differs from the rebuilt model by {difference:.2e} of its "
            f"outputs' size; {PARITY_TOLERANCE:.0e} is allowed"
        )
    images: Any = context.part(Fidelity.PROXY)[0]
    ours = context.score_module(model, images).argmax(1)
    deployed = context.score_file(recovered.onnx, images).argmax(1)
    agreement = float((ours == deployed).mean())
    if agreement < INT8_AGREEMENT:
        raise NotCertified(
            f"The deployed file decides like the rebuilt model on {agreement:.1%} of the "
            f"search images; {INT8_AGREEMENT:.0%} is required"
        )
    return agreement
