"""A job on a trained CIFAR ResNet, as a server would have stored it."""

from __future__ import annotations

from pathlib import Path

from compression.artifact import ModelArtifact, Preprocessing
from compression.methods import Methods
from search.budget import Budget
from search.device import LOCAL_DEVICES
from search.objective import Constraint, Objective
from tests.cifar import MEAN, STD, dataset_npz, weights
from workers.job import DatasetArtifact, JobSpec, Recovery, Scoring
from workers.store import ArtifactStore


def cifar_job(
    architecture: str,
    store: ArtifactStore,
    folder: Path,
    constraints: tuple[Constraint, ...],
    methods: Methods,
    *,
    name: str = "",
    train_files: int = 1,
) -> JobSpec:
    """Return the job; its files are put into the store.

    Args:
        architecture: `cifar_resnet20`, `cifar_resnet32` or `cifar_resnet56`.
        store: Of the job.
        folder: The real data.
        constraints: What is required; top-1 is what is wanted.
        methods: What may be done.
        name: Of the job; the architecture's where empty.
        train_files: Fifths of the training images.
    """
    return JobSpec(
        job_id="job_bench",
        name=name or architecture,
        model=ModelArtifact(
            weights=store.put(weights(folder, architecture)),
            format="safetensors",
            architecture=architecture,
            input_shape=(3, 32, 32),
            preprocessing=Preprocessing(layout="NHWC", scale=255.0, mean=MEAN, std=STD),
            num_classes=10,
        ),
        dataset=DatasetArtifact(data=store.put(dataset_npz(folder, train_files)), format="npz"),
        objectives=(Objective(metric="top1", direction="maximize"),),
        constraints=constraints,
        methods=methods,
        devices=LOCAL_DEVICES,
        recovery=Recovery(),
        scoring=Scoring(),
        budget=Budget(trials=1),
        agent="random",
        agent_options={},
    )
