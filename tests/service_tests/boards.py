"""Boards and orders that tests store."""

from __future__ import annotations

import io

import numpy as np

from compression.artifact import Digest
from compression.decisions import PruneChannels
from compression.plan import Plan
from search.agent import Evaluate
from search.device import DeviceSpec
from search.trial import Fidelity
from service.db import device_agents
from service.db.device_agents import StoredAgent
from service.db.session import Database
from tests.service_tests.stored import Clock, open_ledger, store_job
from workers.remote_timing import TimingOrder

DEVICE = "board/kitchen"
CPU = "Cortex-A76"


def spec(
    name: str = DEVICE, *, runtime: str = "onnxruntime", threads: int = 1, cpu: str = CPU
) -> DeviceSpec:
    """Return the pool as a board of it is."""
    return DeviceSpec(
        name=name, runtime=runtime, threads=threads, place="agent", hardware=(("cpu", cpu),)
    )


def add_agent(
    database: Database, name: str, clock: Clock, *, device: str = DEVICE, quota: int = 1
) -> StoredAgent:
    """Register an agent; return the one there is where its name is known."""
    with database.write() as session:
        for known in device_agents.everything(session, device):
            if known.name == name:
                return known
        agent, _ = device_agents.register(
            session, name=name, spec=spec(device), quota=quota, now=clock()
        )
    return agent


def job_with_trials(database: Database, clock: Clock, count: int = 1) -> tuple[str, list[str]]:
    """Store a job with proposed trials; return its id and theirs."""
    job_id = store_job(database)
    ledger = open_ledger(database, owner=job_id, clock=clock)
    trials = ledger.propose(
        [
            Evaluate(
                plan=Plan.of({"conv": [PruneChannels(keep_channels=index + 1)]}),
                fidelity=Fidelity.PROXY,
            )
            for index in range(count)
        ],
        agent="random",
        snapshot=None,
    )
    return job_id, [trial.id for trial in trials]


def order_of(trial_id: str, candidate: str = "c", device: str = DEVICE) -> TimingOrder:
    """Return an order."""
    return TimingOrder(
        trial_id=trial_id,
        device=device,
        candidate=Digest(candidate * 64),
        baseline=Digest("b" * 64),
        probe=Digest("e" * 64),
        compare="values",
        seed=7,
        width=0.05,
        max_seconds=3.0,
    )


def times_npz(candidate_ms: object, baseline_ms: object) -> bytes:
    """Return raw times as agents send them."""
    out = io.BytesIO()
    np.savez(out, candidate_ms=np.array(candidate_ms), baseline_ms=np.array(baseline_ms))
    return out.getvalue()
