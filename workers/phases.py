"""A job from its baseline to its front, over the ports: resumable at any point, no Ray, no SQL.

Every phase proposes its trials by what they are (plan, fidelity, base), so a second conductor
that walks the same phases finds the finished ones in the ledger and runs only what is missing.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

from compression.artifact import Digest
from compression.methods import resolve_space
from compression.plan import Plan
from compression.surveyed import Survey
from search import catalogue
from search.agent import Evaluate, Request
from search.finalists import (
    before_recovery,
    choose_finalists,
    compared_accuracy,
    price_of_relaxing,
    rank_correlations,
    rivals,
)
from search.front import ParetoFront, hypervolume, nearest
from search.measurement import Failed, Infeasible, Measured, Measurement
from search.problem import Problem
from search.reselect import reselect
from search.trial import (
    BASELINE_AGENT,
    FINALIST_AGENT,
    MEMORY_AGENT,
    SEARCH_FIDELITIES,
    Fidelity,
    Trial,
)
from workers import loop
from workers.errors import WorkerError
from workers.executor import Executor
from workers.job import JobSpec
from workers.latency_book import LatencyBook
from workers.ledger import RUNGS, Ledger
from workers.memory import JobMemory
from workers.race import Race
from workers.store import ArtifactStore

logger = logging.getLogger(__name__)

RESELECTED = "job.reselected"
"""Kind of the event that says what remembered trials are worth under the job's bounds."""

FINALIST_ROUNDS = 2
"""How often a new set of finalists is recovered while none holds all bounds."""


class BaselineFailed(WorkerError):
    """The dense model itself could not be measured, so nothing can be compared with it."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JobEnd:
    """What came of a job.

    Attributes:
        outcome: `front_found`, `infeasible` or `cancelled`.
        baseline: The dense model on the held-out split; None when cancelled before.
        front: Confirmed, feasible, undominated trials; empty when infeasible or cancelled.
        hypervolume: Of the front, in units of the baseline's losses; 0 when empty.
        nearest: Measured trials that miss the bounds least, when nothing is feasible.
        binding: What relaxing each bound in the way would buy.
    """

    outcome: Literal["front_found", "infeasible", "cancelled"]
    baseline: Measurement | None = None
    front: tuple[Trial, ...] = ()
    hypervolume: float = 0.0
    nearest: tuple[Trial, ...] = ()
    binding: tuple[dict[str, Any], ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JobRun:
    """The parts that a job's phases share.

    Attributes:
        spec: The job.
        survey: Sites and costs of its model.
        executor: Runs attempts.
        ledger: Writes down.
        store: Where manifests are read.
        thinking: Entered while the agent computes.
        finalizing: Called once when the search is over and finalists begin.
        memory: What other jobs have evaluated; None to evaluate everything.
        race: Recovers finalists where the job wants them to race; None: all run to their end.
    """

    spec: JobSpec
    survey: Survey
    executor: Executor
    ledger: Ledger
    store: ArtifactStore
    thinking: Callable[[], AbstractContextManager[None]] = nullcontext
    finalizing: Callable[[], None] = lambda: None
    memory: JobMemory | None = None
    race: Race | None = None


def run_job(run: JobRun) -> JobEnd:
    """Run or resume a job to its end.

    Raises:
        BaselineFailed: The dense model could not be measured.
        LeaseLost: Another conductor took over.
    """
    baseline = _baseline(run, Fidelity.PROXY)
    if baseline is None:
        return JobEnd(outcome="cancelled")
    problem = _problem(run, baseline)
    searched = before_recovery(problem) if run.spec.recovery.epochs > 0 else problem
    if run.memory is not None:
        run.ledger.warm_start(run.memory.warm(problem.space))
    if not _enough_known(run, searched):
        agent = catalogue.create(run.spec.agent, searched, run.spec.agent_options)
        latency = LatencyBook(run.survey.costs, run.spec.constraints, baseline)
        ending = loop.run(
            agent,
            run.executor,
            run.ledger,
            run.spec.budget,
            agent_name=run.spec.agent,
            parallelism=run.spec.parallelism,
            thinking=run.thinking,
            memory=run.memory,
            latency=latency if run.spec.scoring.prune_hopeless else None,
        )
        if ending == "cancelled":
            return JobEnd(outcome="cancelled")
    run.finalizing()
    return _finals(run, searched)


def _enough_known(run: JobRun, searched: Problem) -> bool:
    """Whether what is remembered keeps the bounds, and no untried plan is likely to be better."""
    if not run.spec.budget.only_if_promising:
        return False
    trials = run.ledger.trials()
    if any(t.agent == run.spec.agent for t in trials):
        return False
    with run.thinking():
        judged = reselect(searched, [t for t in trials if t.agent == MEMORY_AGENT])
    enough = bool(judged.feasible) and not judged.worthwhile
    payload = {
        "known": len(judged.feasible),
        "chance_of_better": judged.chance_of_better,
        "expected_gain": judged.expected_gain,
        "search": not enough,
    }
    run.ledger.event(RESELECTED, payload)
    return enough


def _problem(run: JobRun, baseline: Measurement) -> Problem:
    spec = run.spec
    return Problem(
        space=resolve_space(run.survey.sites, spec.methods, run.survey.costs),
        costs=run.survey.costs,
        objectives=spec.objectives,
        constraints=spec.constraints,
        baseline=baseline,
        budget_trials=spec.budget.trials,
        seed=spec.seed,
    )


def _finals(run: JobRun, searched: Problem) -> JobEnd:
    """Recover and confirm finalists, in rounds, until one holds the bounds.

    The held-out split decides whether a confirmed trial is on the front, never who is tried next.
    """
    base_full = _baseline(run, Fidelity.FULL)
    base_test = _baseline(run, Fidelity.CONFIRMED)
    if base_full is None or base_test is None:
        return JobEnd(outcome="cancelled")
    proxies = [
        t
        for t in run.ledger.trials()
        if t.fidelity in SEARCH_FIDELITIES and t.agent not in (BASELINE_AGENT, FINALIST_AGENT)
    ]
    tried: frozenset[str] = frozenset()
    recovered: list[Trial] = []
    confirmed: list[Trial] = []
    full_problem = _problem(run, base_full)
    test_problem = _problem(run, base_test)
    for _ in range(FINALIST_ROUNDS):
        pool = _promoted(run, searched, proxies, tried)
        if pool is None:
            return JobEnd(outcome="cancelled")
        chosen = choose_finalists(searched, pool, run.spec.recovery.finalists, tried)
        tried |= {t.plan.digest for t in chosen}
        ended = _recovered(run, searched, chosen)
        if ended is None:
            return JobEnd(outcome="cancelled")
        recovered += ended
        # Selection for confirmation sees search-validation only; the test split is read after it.
        fit = ParetoFront.of(full_problem, ended).members
        ended = _run(run, [_confirmation(run, trial) for trial in fit])
        if ended is None:
            return JobEnd(outcome="cancelled")
        confirmed += ended
        front = ParetoFront.of(test_problem, confirmed)
        # What the held-out split says of accuracy must not lead to another pick: a new round
        # follows only where a bound that needs no held-out data was missed by all.
        unseen = before_recovery(test_problem)
        held = any(unseen.feasible(_measured(t)) for t in confirmed if _is_measured(t))
        if held or len(chosen) < run.spec.recovery.finalists:
            break
    _compare_rungs(run)
    if front.members:
        losses = [test_problem.losses(_measured(t)) for t in front.members]
        return JobEnd(
            outcome="front_found",
            baseline=base_test,
            front=front.members,
            hypervolume=relative_hypervolume(losses, test_problem.losses(base_test)),
        )
    # Nearest and prices speak of the highest rung that has anything measured.
    for rung, trials in ((test_problem, confirmed), (full_problem, recovered), (searched, proxies)):
        near = nearest(rung, trials)
        if near:
            prices = price_of_relaxing(rung, trials)
            return JobEnd(
                outcome="infeasible",
                baseline=base_test,
                nearest=tuple(near),
                binding=tuple(prices),
            )
    return JobEnd(outcome="infeasible", baseline=base_test)


def _promoted(
    run: JobRun, searched: Problem, proxies: Sequence[Trial], tried: frozenset[str]
) -> Sequence[Trial] | None:
    """Return the trials that finalists are chosen from; None when cancelled.

    With `short_finalists` these are the best of the search at the short rung.
    """
    wanted = run.spec.recovery.short_finalists
    if not wanted:
        return proxies
    best = choose_finalists(searched, proxies, max(wanted, run.spec.recovery.finalists), tried)
    return _run(run, [Evaluate(plan=t.plan, fidelity=Fidelity.SHORT, base=t.base) for t in best])


def _recovered(run: JobRun, searched: Problem, chosen: Sequence[Trial]) -> list[Trial] | None:
    """Recover the chosen trials in full, in a race where one is wanted; None when cancelled."""
    orders = [Evaluate(plan=t.plan, fidelity=Fidelity.FULL, base=t.base) for t in chosen]
    metric = compared_accuracy(run.spec.objectives, run.spec.constraints)
    if run.race is None or not run.spec.recovery.raced or metric is None or len(chosen) < 2:
        return _run(run, orders)
    trials = run.ledger.propose(orders, agent=FINALIST_AGENT, snapshot=None)
    may_outrun = {
        trial.id: frozenset(trials[other].id for other in others)
        for trial, others in zip(trials, rivals(searched, chosen), strict=True)
    }
    ended = run.race.run(trials, may_outrun, run.ledger, run.memory)
    return ended if len(ended) == len(trials) else None


def _compare_rungs(run: JobRun) -> None:
    """Tell how far cheap scores order plans as dear ones do."""
    metric = compared_accuracy(run.spec.objectives, run.spec.constraints)
    if metric is not None:
        found = rank_correlations(metric, run.ledger.trials())
        run.ledger.event(RUNGS, {"metric": metric, "rank_correlation": found})


def relative_hypervolume(losses: Sequence[tuple[float, ...]], baseline: tuple[float, ...]) -> float:
    """Return the hypervolume with every loss taken as its gain over a reference.

    The reference is the dense model's loss, moved 10 % of its size to the worse side so that a
    front that trades a little of one objective still counts; units are the baseline's sizes.
    """
    scales = [abs(b) or 1.0 for b in baseline]
    reference = tuple(b / s + 0.1 for b, s in zip(baseline, scales, strict=True))
    points = [tuple(v / s for v, s in zip(point, scales, strict=True)) for point in losses]
    return hypervolume(points, reference)


def _baseline(run: JobRun, fidelity: Fidelity) -> Measurement | None:
    """Measure the dense model at a rung; None when cancelled."""
    trials = _run(run, [Evaluate(plan=Plan(), fidelity=fidelity)], agent=BASELINE_AGENT)
    if trials is None:
        return None
    match trials[0].outcome:
        case Measured(measurement):
            return measurement
        case Failed(error=why) | Infeasible(reason=why):
            raise BaselineFailed(f"The original model could not be measured: {why}")
        case None:
            return None


def _confirmation(run: JobRun, trial: Trial) -> Evaluate:
    """Return the order that confirms a recovered trial, under the plan that was realised."""
    base = trial.artifacts["recovered"]
    manifest = json.loads(run.store.get(base))
    document = json.loads(run.store.get(Digest(manifest["parts"]["plan"])))
    return Evaluate(plan=Plan.from_json(document["plan"]), fidelity=Fidelity.CONFIRMED, base=base)


def _run(
    run: JobRun, requests: Sequence[Request], agent: str = FINALIST_AGENT
) -> list[Trial] | None:
    """Run orders that no agent asked for; None when the job was cancelled meanwhile."""
    if not requests:
        return []
    trials = run.ledger.propose(requests, agent=agent, snapshot=None)
    ended = loop.run_all(
        trials,
        run.executor,
        run.ledger,
        parallelism=run.spec.parallelism,
        memory=run.memory,
    )
    return ended if len(ended) == len(trials) else None


def _is_measured(trial: Trial) -> bool:
    return isinstance(trial.outcome, Measured)


def _measured(trial: Trial) -> Measurement:
    assert isinstance(trial.outcome, Measured)
    return trial.outcome.measurement
