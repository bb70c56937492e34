"""What was evaluated before, in any job, is not paid for twice: the port, and one job's view of it.

An evaluation is named by its plan and its *circumstances*: everything else that decides its
outcome. Held-out data are not among what is remembered: confirmations read and time everything
anew.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from compression.artifact import Digest
from compression.decisions import Decision, DropBlock, MergePool, PruneChannels, Quantize
from compression.errors import PlanInvalid
from compression.plan import Plan, canonical_json
from compression.space import PlanSpace
from search.device import DeviceSpec
from search.measurement import Failed, Infeasible, Measured, Measurement, Reading
from search.trial import Fidelity, Preparation, Trial
from workers.errors import BlobMissing
from workers.executor import Finished
from workers.job import JobSpec
from workers.store import ArtifactStore

EVALUATION_VERSION = 1
"""Grows with every change to the code by which an evaluation of the same plan comes out another."""

DISTRIBUTIONS = ("paretopress", "torch", "onnxruntime")
"""Whose versions decide an outcome."""

MAX_WARM = 200
"""Proxies of other jobs that a new one is told of, at most: enough to know a space by, few enough
for the agents whose models grow with the cube of what they are told."""

LOOKED_AT = 1000
"""Proxies of other jobs that are looked at, newest first, for those that answer the new one."""

REMEMBERED = "remembered"
"""The only step of an attempt that was not carried out, because its outcome was known."""

WHO = frozenset({"finalists", "short_finalists", "race", "race_reduction"})
"""Fields of the recovery that say who is recovered, not how."""

WHICH = frozenset({"prune_hopeless"})
"""Fields of the scoring that say which trials are scored, not how."""

SEEDLESS_SELECTORS = frozenset({"l1", "l2", "bn_scale", "fpgm", "fisher", "taylor", "apoz"})
"""Selectors that draw nothing."""


@dataclasses.dataclass(frozen=True, slots=True)
class MemoryKey:
    """The name of an evaluation.

    Attributes:
        circumstances: SHA-256 of all that decides the outcome, but the plan.
        plan_digest: The plan.
    """

    circumstances: str
    plan_digest: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Remembered:
    """What came of an evaluation.

    Attributes:
        plan: What was evaluated.
        outcome: What came of it; failures are not remembered.
        artifacts: Role to digest of the files that it left.
        devices: Fingerprint, by name, of each device that its times were taken on.
        trial_id: Whose outcome it was first.
    """

    plan: Plan
    outcome: Measured | Infeasible
    artifacts: Mapping[str, Digest] = dataclasses.field(default_factory=dict)
    devices: Mapping[str, str] = dataclasses.field(default_factory=dict)
    trial_id: str = ""


class Memory(Protocol):
    """Evaluations of all jobs. `tests/contracts/memory.py` holds the laws."""

    def find(self, key: MemoryKey) -> Remembered | None:
        """Return what came of an evaluation; None where it is not known."""
        ...

    def put(self, key: MemoryKey, known: Remembered) -> None:
        """Store an evaluation; one of the same name is replaced."""
        ...

    def relevant(self, circumstances: Sequence[str], limit: int) -> Sequence[Remembered]:
        """Return evaluations in any of the circumstances, the newest first, at most `limit`."""
        ...


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JobMemory:
    """The memory as one job may use it.

    Attributes:
        memory: Of all jobs.
        spec: The job.
        store: Where remembered artifacts must still be.
        devices: Fingerprint, by name, of the job's devices as they are now.
        model_id: Names the model where its artifact does not say all: with the user's own code.
        dataset_id: Names the data where their artifact does not: at an operator's path.
    """

    memory: Memory
    spec: JobSpec
    store: ArtifactStore
    devices: Mapping[str, str]
    model_id: str
    dataset_id: str

    def recall(self, trial: Trial) -> Remembered | None:
        """Return what is known to come of a trial, in full; None where it must be evaluated."""
        if trial.fidelity is Fidelity.CONFIRMED:
            return None
        known = self.memory.find(self._key(trial))
        if known is None:
            return None
        return self._answer(known, set() if trial.preparation else self._wanted())

    def keep(self, finished: Finished) -> None:
        """Remember what came of an attempt, unless it failed or read held-out data."""
        trial, outcome = finished.work.trial, finished.outcome
        if trial.fidelity is Fidelity.CONFIRMED or isinstance(outcome, Failed):
            return
        key = self._key(trial)
        known = Remembered(
            plan=trial.plan,
            outcome=outcome,
            artifacts=dict(finished.artifacts),
            devices={name: self.devices[name] for name in _devices(outcome) & set(self.devices)},
            trial_id=trial.id,
        )
        before = self.memory.find(key)
        self.memory.put(key, known if before is None else _joined(before, known))

    def warm(self, space: PlanSpace) -> list[Remembered]:
        """Return proxies of other jobs that answer this one, from the newest to the oldest.

        Args:
            space: Of the job; plans outside of it are left out, and so is the dense model.
        """
        rungs = [self._circumstances(Fidelity.PROXY, seeded=seeded) for seeded in (False, True)]
        answers: list[Remembered] = []
        for known in self.memory.relevant(rungs, LOOKED_AT):
            if len(answers) == MAX_WARM:
                break
            if known.plan.decisions and _within(space, known.plan):
                answer = self._answer(known, self._wanted())
                answers += [] if answer is None else [answer]
        return answers

    def _answer(
        self, known: Remembered, wanted: set[tuple[str, str | None, str | None]]
    ) -> Remembered | None:
        """Return what of an evaluation holds here; None where that is not enough."""
        outcome = known.outcome
        if isinstance(outcome, Measured):
            same = {n for n, mark in self.devices.items() if known.devices.get(n) == mark}
            readings = tuple(
                r for r in outcome.measurement.readings if r.device is None or r.device in same
            )
            if wanted - {_name(r) for r in readings}:
                return None
            outcome = dataclasses.replace(outcome, measurement=Measurement(readings))
        if not all(_is_whole(digest, self.store) for digest in known.artifacts.values()):
            return None
        return dataclasses.replace(known, outcome=outcome)

    def _wanted(self) -> set[tuple[str, str | None, str | None]]:
        """Return what the job must have a reading of: metric, device, statistic."""
        objectives = {(o.metric, o.device, o.statistic) for o in self.spec.objectives}
        return objectives | {(c.metric, c.device, c.statistic) for c in self.spec.constraints}

    def _key(self, trial: Trial) -> MemoryKey:
        circumstances = self._circumstances(
            trial.fidelity,
            seeded=trial.fidelity is not Fidelity.PROXY
            or trial.base is not None
            or not draws_nothing(trial.plan),
            base=trial.base,
            preparation=trial.preparation,
        )
        return MemoryKey(circumstances, trial.plan.digest)

    def _circumstances(
        self,
        fidelity: Fidelity,
        *,
        seeded: bool,
        base: Digest | None = None,
        preparation: Preparation | None = None,
    ) -> str:
        """Return the digest of all that decides an evaluation, but its plan.

        The job's seed is part of it where something is drawn. A trial's own seed is not: it
        follows from the trial's number in its job, so no training would ever be found again.
        """
        spec = self.spec
        scoring = dataclasses.asdict(spec.scoring)
        data: dict[str, Any] = {
            "code": code_version(),
            "model": spec.model.to_json(),
            "dataset": spec.dataset.to_json(),
            "scoring": {f: v for f, v in scoring.items() if f not in WHICH},
            "refit": spec.methods.refit,
            "fidelity": fidelity.value,
            "base": base,
            "preparation": preparation.key if preparation else None,
            "seed": spec.seed if seeded else None,
        }
        if spec.model.weights is None or ":" in spec.model.architecture:
            data["model_id"] = self.model_id
        if spec.dataset.format == "path":
            data["dataset_id"] = self.dataset_id
        if fidelity is not Fidelity.PROXY:
            recovery = dataclasses.asdict(spec.recovery).items()
            data["recovery"] = {field: value for field, value in recovery if field not in WHO}
        if base is not None or preparation is not None:
            # Trained for the whole space, which follows from what the job allows.
            data["methods"] = dataclasses.asdict(spec.methods)
        return hashlib.sha256(canonical_json(data).encode()).hexdigest()


def device_digest(device: DeviceSpec) -> str:
    """Return the SHA-256 of a fingerprinted device; its `hardware` must be filled in."""
    return hashlib.sha256(canonical_json(device.to_json()).encode()).hexdigest()


def code_version() -> str:
    """Return what evaluates: versions of this program and of what computes for it."""
    versions = []
    for name in DISTRIBUTIONS:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"no {name}")
    return ", ".join([*versions, f"evaluation {EVALUATION_VERSION}"])


def draws_nothing(plan: Plan) -> bool:
    """Whether applying and scoring the plan without training is the same under every seed."""
    return all(_draws_nothing(decision) for _, decision in plan)


def _draws_nothing(decision: Decision) -> bool:
    match decision:
        case DropBlock():
            return True
        case PruneChannels(selector=selector, refit=refit):
            return selector in SEEDLESS_SELECTORS and refit == "none"
        case MergePool(refit=refit):
            return refit == "none"
        case Quantize(rounding=rounding):
            return rounding == "nearest"
        case _:
            return False


def _devices(outcome: Measured | Infeasible) -> set[str]:
    if isinstance(outcome, Infeasible):
        return set()
    return {r.device for r in outcome.measurement.readings if r.device is not None}


def _joined(before: Remembered, now: Remembered) -> Remembered:
    """Return the newer evaluation with what only the older one has readings of.

    Two that left artifacts are different networks, whose readings do not mix.
    """
    if not isinstance(before.outcome, Measured) or not isinstance(now.outcome, Measured):
        return now
    if before.artifacts or now.artifacts:
        return now
    have = {_name(r) for r in now.outcome.measurement.readings}
    # A device of the same name that is another one now: its older times are of nothing any more.
    gone = {n for n, mark in now.devices.items() if before.devices.get(n, mark) != mark}
    older = [
        r
        for r in before.outcome.measurement.readings
        if _name(r) not in have and r.device not in gone
    ]
    readings = (*now.outcome.measurement.readings, *older)
    outcome = dataclasses.replace(now.outcome, measurement=Measurement(readings))
    return dataclasses.replace(now, outcome=outcome, devices={**before.devices, **now.devices})


def _name(reading: Reading) -> tuple[str, str | None, str | None]:
    return reading.metric, reading.device, reading.statistic


def _within(space: PlanSpace, plan: Plan) -> bool:
    try:
        return space.decode(space.encode(plan)) == plan
    except PlanInvalid:
        return False


def _is_whole(digest: Digest, store: ArtifactStore) -> bool:
    """Whether an artifact, and the files that it names where it is a manifest, are still there."""
    try:
        store.size_bytes(digest)
        document = json.loads(store.get(digest))
        for part in document["parts"].values():
            store.size_bytes(Digest(part))
    except BlobMissing:
        return False
    except (ValueError, KeyError, TypeError, AttributeError):
        return True  # No manifest: a file by itself.
    return True
