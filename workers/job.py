"""A job as its workers see it: plain data that crosses process borders."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from compression.artifact import Digest, ModelArtifact
from compression.methods import Methods
from search.budget import Budget
from search.device import DeviceSpec
from search.objective import (
    Constraint,
    Objective,
    constraint_from_json,
    objective_from_json,
)
from workers.errors import WorkerError

DatasetFormat = Literal["npz", "folders", "parquet", "builtin", "path"]
# As in `compression.recover`, which loads torch; this module is read by processes without it.
KdLoss = Literal["kl", "ce_soft", "ce_hard"]
FeatureLoss = Literal["none", "cckd", "attention", "nst"]
Average = Literal["none", "ema", "tail"]
RaceMode = Literal["auto", "none", "asha"]

RACE_ABOVE = 4
"""Finalists above which a race pays by itself. Up to here it would spare two recoveries at most,
and take as many points off the front, for cold workers and a start of some seconds per trial."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Splits:
    """Shares or counts are fixed at registration; the split of each row never changes after.

    Attributes:
        train: Share of the rows without a declared split that trains, in [0, 1].
        calibration: Share for BatchNorm recalibration and activation ranges.
        search: Share on which plans are compared.
        test: Share that is read once per finalist.
        seed: Of the shuffle; rows are assigned stratified by label where labels exist.
    """

    train: float = 0.6
    calibration: float = 0.1
    search: float = 0.15
    test: float = 0.15
    seed: int = 0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DatasetArtifact:
    """Labelled (or unlabelled) images, immutable.

    Attributes:
        data: Digest of the uploaded file; None for built-in names and operator paths.
        format: `npz` (arrays `x`, `y`, optional `split` of 0 train, 1 calibration, 2 search,
            3 test), `folders` (zip or tar of class folders), `parquet`, `builtin`, `path`.
        name: Built-in name or operator-registered path, for these two formats.
        splits: How rows without a declared split are divided.
    """

    data: Digest | None
    format: DatasetFormat
    name: str = ""
    splits: Splits = Splits()

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> DatasetArtifact:
        """Rebuild from `to_json`."""
        return DatasetArtifact(**{**data, "splits": Splits(**data["splits"])})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """How the finalists get their accuracy back.

    Attributes:
        epochs: Passes over the training split for a full-fidelity trial; 0 recalibrates only.
        distill: Learn from the original model's outputs beside the labels.
        learning_rate: Peak of the one-cycle schedule. Short recoveries of trained weights want a
            low one: ResNet-20 at half width after 0.7 epochs of CIFAR-10 scored 88.1 % with 0.02
            and 86.8 % with 0.05 on search-validation.
        batch_size: Images per step.
        temperature: Of the distillation softmax (Hinton et al., 2015).
        distill_weight: Share of the distillation loss, in [0, 1]; the rest is cross-entropy.
        augment: Random crop with 4 pixels of padding and horizontal flip, for natural images.
        short_steps: Training steps of a short-fidelity trial.
        finalists: Trials of the search that are recovered in full, at most.
        kd_loss: How the outputs are compared with the original's while distilling: `kl` at the
            temperature, `ce_soft` (cross-entropy with its probabilities), `ce_hard` (with its
            first choice).
        feature_loss: What inside the networks is compared beside it: `none`, `cckd`,
            `attention` or `nst`; wants `distill`.
        mixup: Share of the images that are mixed with another one, in [0, 1].
        average: Weights that are left: the last step's (`none`), their exponential moving
            average (`ema`), or their mean over the last quarter of the steps (`tail`).
        weight_decay: L2 penalty on the weights of convolutions and linear layers.
        early_stop: Stop when so many points of the loss curve in a row, of 20 steps each,
            were no better than the best before; None never stops early.
        quantization_aware: Plans with INT8 train the last quarter of their recovery with
            weights and activations rounded as in the deployed file.
        short_finalists: So many of the search's best are first recovered for `short_steps`, at
            least `finalists` of them, and those scores choose the finalists; 0: the search's own
            scores do.
        race: Whether finalists that fall behind on the way are given up (`asha`, asynchronous
            successive halving) or all are recovered in full (`none`); `auto` races
            above `RACE_ABOVE` finalists.
        race_reduction: Of the finalists that are compared at a rung of the race, one in so many
            goes on.
    """

    epochs: float = 3.0
    distill: bool = True
    learning_rate: float = 0.02
    batch_size: int = 128
    temperature: float = 4.0
    distill_weight: float = 0.9
    augment: bool = True
    short_steps: int = 200
    finalists: int = 4
    kd_loss: KdLoss = "kl"
    feature_loss: FeatureLoss = "none"
    mixup: float = 0.0
    average: Average = "none"
    weight_decay: float = 5e-4
    early_stop: int | None = None
    quantization_aware: bool = False
    short_finalists: int = 0
    race: RaceMode = "auto"
    race_reduction: int = 2

    @property
    def raced(self) -> bool:
        """Whether finalists race."""
        wanted = self.race == "asha" or (self.race == "auto" and self.finalists > RACE_ABOVE)
        return wanted and self.epochs > 0

    def __post_init__(self) -> None:
        if self.feature_loss != "none" and not self.distill:
            raise WorkerError(
                f"recovery.feature_loss is {self.feature_loss!r} and recovery.distill is false; "
                "features are compared with the original model's, which wants distill"
            )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Scoring:
    """How much data a proxy trial reads.

    Attributes:
        recalibration_images: Of the calibration split, for BatchNorm and activation ranges.
        proxy_images: Of the search split, at most.
        parity_images: Inputs on which the deployed file is compared with the torch model.
        prune_hopeless: Proposals whose latency is foretold to miss its bound are not measured.
    """

    recalibration_images: int = 1000
    proxy_images: int = 2000
    parity_images: int = 16
    prune_hopeless: bool = True


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """Everything a worker needs to know of a job.

    Attributes:
        job_id: Its identifier.
        name: The user's name for it.
        model: The dense model.
        dataset: Its data.
        objectives: What is wanted.
        constraints: What is required.
        methods: What may be done.
        devices: Every device that an objective or a constraint names, and the default one.
        recovery: For finalists.
        scoring: For proxies.
        budget: When the search stops.
        agent: Name in `search.catalogue.AGENTS`.
        agent_options: Its options, JSON values.
        parallelism: Trials at once.
        seed: Of everything random.
        code_dir: Folder of the user's own code, with `serve --code`; None otherwise.
        memory: Evaluations of other jobs answer this one's, and this one's theirs.
    """

    job_id: str
    name: str
    model: ModelArtifact
    dataset: DatasetArtifact
    objectives: tuple[Objective, ...]
    constraints: tuple[Constraint, ...]
    methods: Methods
    devices: tuple[DeviceSpec, ...]
    recovery: Recovery
    scoring: Scoring
    budget: Budget
    agent: str
    agent_options: Mapping[str, Any]
    parallelism: int = 1
    seed: int = 0
    code_dir: str | None = None
    memory: bool = True

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        data = dataclasses.asdict(self)
        data["model"] = self.model.to_json()
        data["devices"] = [device.to_json() for device in self.devices]
        return data

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> JobSpec:
        """Rebuild from `to_json`, also after a JSON round trip."""
        methods: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in data["methods"].items()
        }
        return JobSpec(
            **{
                **data,
                "model": ModelArtifact.from_json(data["model"]),
                "dataset": DatasetArtifact.from_json(data["dataset"]),
                "objectives": tuple(objective_from_json(o) for o in data["objectives"]),
                "constraints": tuple(constraint_from_json(c) for c in data["constraints"]),
                "methods": Methods(**methods),
                "devices": tuple(DeviceSpec.from_json(d) for d in data["devices"]),
                "recovery": Recovery(**data["recovery"]),
                "scoring": Scoring(**data["scoring"]),
                "budget": Budget(**data["budget"]),
            }
        )
