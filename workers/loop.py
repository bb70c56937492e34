"""The search: ask, submit, record, tell. No Ray, no torch, no SQL."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

from compression.artifact import Digest
from search.agent import Agent
from search.budget import Budget
from search.trial import FINALIST_AGENT, FINISHED, SEARCH_FIDELITIES, Fidelity, Trial, TrialState
from workers.executor import CHECKPOINT, Executor, Finished, Lost, Progress, Work
from workers.latency_book import PRUNED, LatencyBook
from workers.ledger import Ledger
from workers.memory import REMEMBERED, JobMemory

logger = logging.getLogger(__name__)

TOLD = SEARCH_FIDELITIES | {Fidelity.PREPARED}
"""What an agent is told of."""

Ending = Literal["exhausted", "budget", "cancelled"]

WAIT_S = 1.0
"""Longest silence between two looks at the lease and the user's wish."""


def run(
    agent: Agent,
    executor: Executor,
    ledger: Ledger,
    budget: Budget,
    *,
    agent_name: str,
    parallelism: int = 1,
    thinking: Callable[[], AbstractContextManager[None]] = nullcontext,
    memory: JobMemory | None = None,
    latency: LatencyBook | None = None,
) -> Ending:
    """Run or resume the search phase of a job until its budget is spent.

    Args:
        agent: Fresh; it is restored from the ledger's snapshot and told all recorded search trials
            and preparations, the baseline's too.
        executor: Idle.
        ledger: Of this job, under a held lease.
        budget: When to stop.
        agent_name: Written to the trials.
        parallelism: Trials at once; also bounded by the executor's slots.
        thinking: Entered while the agent computes, so that nothing is timed meanwhile.
        memory: What is known already; a trial that it answers counts, and takes no time.
        latency: Foretells which trials miss a bound on latency. These are `Infeasible` without
            having been measured: they count against the budget, so that a search ends, and take
            no time.

    Returns:
        Why it ended.

    Raises:
        LeaseLost: Another conductor took over; nothing more was written.
    """

    def tell(trial: Trial) -> None:
        agent.tell([trial])
        if latency is not None:
            latency.learn(trial)

    history = [t for t in ledger.trials() if t.fidelity in TOLD and t.agent != FINALIST_AGENT]
    snapshot = ledger.snapshot()
    if snapshot is not None:
        agent.restore(snapshot)
    finished = (t for t in history if t.state in FINISHED)
    for trial in sorted(finished, key=lambda t: t.recorded or 0):
        tell(trial)
    mine = [t for t in history if t.agent == agent_name]
    queue = [t for t in mine if t.state not in FINISHED]
    proposed = _counted(mine)
    running = 0
    waiting = False
    lanes = max(1, min(parallelism, executor.slots))
    while True:
        if ledger.wish() == "cancel":
            return "cancelled"
        over = budget.exhausted(ledger.spent())
        free = lanes - running
        if not over and not waiting and len(queue) < free:
            wanted = min(free - len(queue), budget.trials_left(proposed))
            with thinking():
                requests = agent.ask(wanted) if wanted else []
            # An agent that held something back waits for results: there is no use in asking again.
            waiting = len(requests) < wanted
            if requests:
                new = ledger.propose(requests, agent=agent_name, snapshot=agent.snapshot())
                proposed += _counted(new)
                queue += [t for t in new if t.state is TrialState.PROPOSED]
        at_once = False
        while queue and running < lanes and not over:
            first = queue.pop(0)
            work = Work(trial=first, attempt=ledger.start(first))
            known = answered(work, ledger, memory)
            if known is None and latency is not None:
                with thinking():
                    known = pruned(work, ledger, latency)
            if known is None:
                executor.submit(work)
                running += 1
            else:
                tell(known)
                at_once, waiting = True, False
        if at_once:
            continue
        if running == 0:
            return "budget" if over or budget.trials_left(proposed) == 0 else "exhausted"
        for ended in collect(executor, ledger, memory):
            running -= 1
            waiting = False
            if ended is not None and ended.state in FINISHED:
                tell(ended)
            elif ended is not None:
                queue.append(ended)


def _counted(trials: Sequence[Trial]) -> int:
    """Return how many of the trials count against the budget."""
    return sum(trial.fidelity in SEARCH_FIDELITIES for trial in trials)


def answered(work: Work, ledger: Ledger, memory: JobMemory | None) -> Trial | None:
    """Record what is known to come of a trial; None where it must be evaluated."""
    known = None if memory is None else memory.recall(work.trial)
    if known is None:
        return None
    return ledger.record(
        Finished(
            work=work,
            outcome=known.outcome,
            artifacts=known.artifacts,
            seconds={REMEMBERED: 0.0},
        )
    )


def pruned(work: Work, ledger: Ledger, latency: LatencyBook) -> Trial | None:
    """Record a trial that is hopeless by what is known of latency; None where it is not."""
    verdict = latency.hopeless(work.trial)
    if verdict is None:
        return None
    trial = ledger.record(Finished(work=work, outcome=verdict))
    ledger.event(PRUNED, {"trial_id": work.trial.id, "reason": verdict.reason})
    return trial


def collect(
    executor: Executor, ledger: Ledger, memory: JobMemory | None = None
) -> list[Trial | None]:
    """Record what came in; return one entry per ended attempt: its trial as it now stands.

    An entry is None where the ledger dropped the result, because the trial has a newer attempt.
    """
    ended: list[Trial | None] = []
    for report in executor.wait(WAIT_S):
        match report:
            case Finished():
                recorded = ledger.record(report)
                if recorded is not None and memory is not None:
                    memory.keep(report)
                ended.append(recorded)
            case Lost(work=work, reason=reason):
                logger.warning("attempt lost", extra={"trial": work.trial.id, "reason": reason})
                ended.append(ledger.lost(work.attempt, reason))
            case Progress(work=work, data=data) if CHECKPOINT in data:
                ledger.keep(work.attempt, Digest(data[CHECKPOINT]))
            case Progress(work=work, data=data):
                ledger.event("trial.progress", {"trial_id": work.trial.id, **data})
    return ended


def run_all(
    trials: Sequence[Trial],
    executor: Executor,
    ledger: Ledger,
    *,
    parallelism: int,
    memory: JobMemory | None = None,
) -> list[Trial]:
    """Run given trials to their end, without an agent: finalists and confirmations.

    Args:
        trials: Finished ones are returned as they are.
        executor: Idle.
        ledger: Of this job.
        parallelism: Trials at once.
        memory: What is known already.

    Returns:
        The trials that finished, in the given order; all of them unless the job was cancelled.
    """
    done = {t.id: t for t in trials if t.state in FINISHED}
    queue = [t for t in trials if t.state not in FINISHED]
    running = 0
    lanes = max(1, min(parallelism, executor.slots))
    while queue or running:
        if ledger.wish() == "cancel":
            break
        while queue and running < lanes:
            first = queue.pop(0)
            work = Work(trial=first, attempt=ledger.start(first))
            known = answered(work, ledger, memory)
            if known is None:
                executor.submit(work)
                running += 1
            else:
                done[known.id] = known
        for trial in collect(executor, ledger, memory) if running else ():
            running -= 1
            if trial is not None and trial.state in FINISHED:
                done[trial.id] = trial
            elif trial is not None:
                queue.append(trial)
    return [done[t.id] for t in trials if t.id in done]
