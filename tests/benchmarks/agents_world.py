"""A trained CIFAR ResNet as agents meet it in a job: real plans, real proxy trials, no server.

What was evaluated once is kept in a folder and never paid for twice: the key is setting, plan,
fidelity, base and preparation; seeds of trials do not matter to proxies.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from compression.apply import apply
from compression.artifact import Digest
from compression.methods import Methods, resolve_space
from compression.plan import Plan
from search.agent import Agent, Evaluate, Request, Snapshot
from search.budget import Budget
from search.catalogue import create
from search.device import LOCAL_DEVICES
from search.measurement import Measured, Measurement, outcome_from_json, outcome_to_json
from search.objective import Constraint, Objective
from search.problem import Problem
from search.trial import BASELINE_AGENT, Fidelity, Trial
from tests.benchmarks.cifar_job import cifar_job
from tests.memory_ledger import Book, MemoryLedger
from workers import loop
from workers.bases import start_of
from workers.context import JobContext
from workers.edge import guarded
from workers.evaluate import evaluate
from workers.executor import Finished, InlineExecutor, Runner, Work
from workers.latency_book import LatencyBook
from workers.quiet import QuietNode
from workers.store import FolderStore

TOP1 = Objective(metric="top1", direction="maximize")
MACS = Constraint(metric="macs", at_most=0.5, relative_to="baseline")
DOWNLOAD = Constraint(metric="download_bytes", at_most=0.25, relative_to="baseline")


def latency(at_most: float) -> Constraint:
    """Return a bound on the median latency, as a share of the dense network's."""
    return Constraint(
        metric="latency_ms",
        at_most=at_most,
        relative_to="baseline",
        device=LOCAL_DEVICES[0].name,
        statistic="p50",
    )


@dataclasses.dataclass(frozen=True, slots=True)
class Setting:
    """What is bounded, what may be done, and what is wanted."""

    constraints: tuple[Constraint, ...]
    methods: Methods
    objectives: tuple[Objective, ...] = (TOP1,)


THIN = Methods(allow=("prune_channels",), channel_multiple=2)
"""Widths inside of residual blocks: the space of the papers on CIFAR ResNets."""
MIXED = Methods(allow=("prune_channels", "drop_block", "quantize"), channel_multiple=4)

SETTINGS: Mapping[str, Setting] = {
    "macs": Setting((MACS,), THIN),
    "latency": Setting((latency(0.6),), MIXED),
    "three": Setting((MACS, latency(0.6), DOWNLOAD), MIXED),
}


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Searched:
    """What one agent found.

    Attributes:
        problem: As the agent saw it.
        trials: Its evaluations, in order.
        agent_s: Seconds that it thought.
        trial_s: Seconds of its evaluations and preparations, also of those from the folder.
    """

    problem: Problem
    trials: Sequence[Trial]
    agent_s: float
    trial_s: float


class World:
    """One network under one setting."""

    def __init__(
        self,
        folder: Path,
        work: Path,
        depth: int,
        name: str,
        train_files: int = 5,
        setting: Setting | None = None,
    ) -> None:
        """Load the network.

        Args:
            folder: The real data.
            work: Where evaluations are kept.
            depth: 20, 32 or 56.
            name: Of the setting, and of its file of evaluations.
            train_files: Fifths of the training images.
            setting: What is bounded; None: that of the name in `SETTINGS`.
        """
        store = FolderStore(work / "blobs")
        self.setting = SETTINGS[name] if setting is None else setting
        spec = cifar_job(
            f"cifar_resnet{depth}",
            store,
            folder,
            self.setting.constraints,
            self.setting.methods,
            name=name,
            train_files=train_files,
        )
        self.spec = dataclasses.replace(spec, objectives=self.setting.objectives)
        self.context = JobContext.build(self.spec, store, QuietNode(work / "quiet"))
        trained = repr((depth, train_files, self.setting.methods))
        digest = hashlib.sha256(trained.encode()).hexdigest()[:12]
        self._kept = Kept(
            work / f"evaluations-{depth}-{name}.jsonl", work / f"preparations-{digest}.jsonl"
        )

    @functools.cached_property
    def runner(self) -> Runner:
        """What runs an attempt, or finds it in the folder."""
        # An agent's plan that breaks must fail its trial, as in a worker.
        real = guarded(lambda: lambda work, report: evaluate(work, self.context, report))

        def run(work: Work, report: Any) -> Finished:
            known = self._kept.find(work)
            if known is None:
                known = real(work, report)
                self._kept.put(known)
            return known

        return run

    @property
    def spent_s(self) -> float:
        """Seconds of all evaluations asked for so far, remembered ones at what they once cost."""
        return self._kept.seconds

    def proxies(self) -> list[tuple[Plan, Measurement]]:
        """Return what the folder holds of proxies that start from the job's own model."""
        return self._kept.proxies()

    def measure(self, plan: Plan, fidelity: Fidelity = Fidelity.PROXY) -> Measurement:
        """Return what a plan measures; it must be possible."""
        trials = self._run(MemoryLedger(Book()), [Evaluate(plan=plan, fidelity=fidelity)])
        outcome = trials[0].outcome
        assert isinstance(outcome, Measured), outcome
        return outcome.measurement

    def network(self, plan: Plan, base: Digest | None = None) -> nn.Module:
        """Return a plan's network, untrained where it starts from the job's model."""
        trial = Trial(
            id="trl_network",
            number=0,
            plan=plan,
            fidelity=Fidelity.FULL,
            base=base,
            seed=0,
            agent="bench",
        )
        start = start_of(trial, self.context)
        return apply(start.rest, start.context).model

    def carry_out(self, request: Request) -> Trial:
        """Return what came of one request, a preparation or an evaluation."""
        return self._run(MemoryLedger(Book()), [request])[0]

    def problem(self, seed: int, budget: int) -> Problem:
        """Return the search as an agent sees it."""
        survey = self.context.survey
        return Problem(
            space=resolve_space(survey.sites, self.setting.methods, survey.costs),
            costs=survey.costs,
            objectives=self.spec.objectives,
            constraints=self.setting.constraints,
            baseline=self.measure(Plan()),
            budget_trials=budget,
            seed=seed,
        )

    def search(
        self, agent: str, seed: int, budget: int, options: Mapping[str, Any] | None = None
    ) -> Searched:
        """Let an agent of the catalogue search, as a job would."""
        return self.search_by(
            lambda problem: create(agent, problem, options or {}), agent, seed, budget
        )

    def search_by(
        self,
        make: Callable[[Problem], Agent],
        name: str,
        seed: int,
        budget: int,
        latency: LatencyBook | None = None,
    ) -> Searched:
        """Let an agent that `make` makes of the problem search, as a job would.

        With a book of latencies, hopeless proposals are spared.
        """
        problem = self.problem(seed, budget)
        timed = Timed(make(problem))
        ledger = MemoryLedger(Book(seed=seed))
        self._run(ledger, [Evaluate(plan=Plan())], BASELINE_AGENT)
        before = self._kept.seconds
        loop.run(
            timed,
            InlineExecutor(self.runner),
            ledger,
            Budget(trials=budget),
            agent_name=name,
            latency=latency,
        )
        trials = [t for t in ledger.trials() if t.agent == name and t.preparation is None]
        return Searched(problem, trials, timed.seconds, self._kept.seconds - before)

    def _run(
        self, ledger: MemoryLedger, requests: Sequence[Request], agent: str = "bench"
    ) -> Sequence[Trial]:
        trials = ledger.propose(requests, agent=agent, snapshot=None)
        return loop.run_all(trials, InlineExecutor(self.runner), ledger, parallelism=1)


class Timed:
    """An agent and how long it thought."""

    def __init__(self, agent: Agent) -> None:
        self.seconds = 0.0
        self._agent = agent

    def ask(self, n: int) -> Sequence[Request]:
        """See `search.agent.Agent`."""
        start = time.perf_counter()
        requests = self._agent.ask(n)
        self.seconds += time.perf_counter() - start
        return requests

    def tell(self, trials: Sequence[Trial]) -> None:
        """See `search.agent.Agent`."""
        start = time.perf_counter()
        self._agent.tell(trials)
        self.seconds += time.perf_counter() - start

    def snapshot(self) -> Snapshot:
        """See `search.agent.Agent`."""
        return self._agent.snapshot()

    def restore(self, snapshot: Snapshot) -> None:
        """See `search.agent.Agent`."""
        self._agent.restore(snapshot)


class Kept:
    """Finished evaluations in a file, one JSON line each.

    Preparations, in which no bound takes part, are in a file of all settings with the same methods.
    """

    def __init__(self, path: Path, shared: Path) -> None:
        self._path = path
        self._shared = shared
        self.seconds = 0.0
        """Of all evaluations that were asked for, remembered ones at what they once cost."""
        self._rows: dict[str, dict[str, Any]] = {}
        for file in (path, shared):
            for line in file.read_text().splitlines() if file.exists() else ():
                row = json.loads(line)
                self._rows[row["key"]] = row

    def find(self, work: Work) -> Finished | None:
        """Return what an earlier attempt at the same order came to."""
        row = self._rows.get(_key(work.trial))
        if row is None:
            return None
        self.seconds += row["seconds"]
        return Finished(
            work=work,
            outcome=outcome_from_json(row["outcome"]),
            artifacts={role: Digest(digest) for role, digest in row["artifacts"].items()},
        )

    def proxies(self) -> list[tuple[Plan, Measurement]]:
        """Return all plans that proxies without base or preparation measured, by key."""
        found = []
        for key, row in sorted(self._rows.items()):
            _, fidelity, base, prepared = key.split(" ")
            outcome = outcome_from_json(row["outcome"])
            own = fidelity == Fidelity.PROXY and not base and not prepared
            if own and isinstance(outcome, Measured):
                found.append((Plan.from_json(row["plan"]), outcome.measurement))
        return found

    def put(self, finished: Finished) -> None:
        """Write down an outcome, failures too: they would fail again."""
        trial, seconds = finished.work.trial, sum(finished.seconds.values())
        key = _key(trial)
        row = {
            "key": key,
            "plan": trial.plan.to_json(),
            "outcome": outcome_to_json(finished.outcome),
            "artifacts": dict(finished.artifacts),
            "seconds": seconds,
        }
        self._rows[key] = row
        self.seconds += seconds
        with (self._shared if trial.preparation else self._path).open("a") as file:
            file.write(json.dumps(row) + "\n")


def _key(trial: Trial) -> str:
    prepared = trial.preparation.key if trial.preparation else ""
    return f"{trial.plan.digest} {trial.fidelity} {trial.base or ''} {prepared}"
