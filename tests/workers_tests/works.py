"""Attempts at trials that differ in their plans, and a job that only names things."""

from __future__ import annotations

from compression.artifact import ModelArtifact
from compression.decisions import PruneChannels
from compression.methods import Methods
from compression.plan import Plan
from search.budget import Budget
from search.device import LOCAL_DEVICES
from search.measurement import Measured, Measurement, Outcome, Reading
from search.objective import Objective
from search.trial import Attempt, Fidelity, Trial
from workers.executor import Work
from workers.job import DatasetArtifact, JobSpec, Recovery, Scoring


def plan_of(keep_channels: int) -> Plan:
    return Plan.of({"conv1": [PruneChannels(keep_channels=keep_channels)]})


def work_of(number: int, epoch: int = 1) -> Work:
    trial = Trial(
        id=f"trl_{number}",
        number=number,
        plan=plan_of(number + 1),
        fidelity=Fidelity.PROXY,
        seed=number,
        agent="toy",
    )
    return Work(
        trial=trial, attempt=Attempt(id=f"att_{number}_{epoch}", trial_id=trial.id, epoch=epoch)
    )


def measured(top1: float) -> Outcome:
    reading = Reading(metric="top1", value=top1, low=top1, high=top1, n=100, split="search")
    return Measured(Measurement((reading,)))


JOB = JobSpec(
    job_id="job_test",
    name="test",
    model=ModelArtifact(
        weights=None, format="python", architecture="none:none", input_shape=(3, 8, 8)
    ),
    dataset=DatasetArtifact(data=None, format="builtin", name="digits"),
    objectives=(Objective(metric="top1", direction="maximize"),),
    constraints=(),
    methods=Methods(),
    devices=LOCAL_DEVICES,
    recovery=Recovery(),
    scoring=Scoring(),
    budget=Budget(trials=4),
    agent="random",
    agent_options={},
)
