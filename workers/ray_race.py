"""The finalists' race as a Ray Tune run: asynchronous successive halving over long recoveries.

Reference:
    Li, Jamieson, Rostamizadeh, Gonina, Ben-tzur, Hardt, Recht & Talwalkar (2020), "A System for
    Massively Parallel Hyperparameter Tuning", https://arxiv.org/abs/1810.05934 (ASHA).

Deviations:
    Every trial is held against its rivals only (`search.finalists.rivals`), so that a race among
    points of a trade-off never gives up the best point of its price. Rungs are shares of one
    recovery whose learning rate falls over the whole of it, not trainings of growing length.
    Nothing is promoted later: who is given up stays so.

Tune runs things; it remembers nothing. Its experiment folder is thrown away, its own checkpoints
and retries are off. A race that goes on after a crash tells its schedulers first what the ledger
knows of earlier rungs. A trial whose driver died between its rung and the verdict on it passes.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.stopper import Stopper

from search.trial import Trial
from workers.executor import Finished, Work
from workers.ledger import Ledger
from workers.loop import WAIT_S
from workers.memory import JobMemory
from workers.race import RUNG, RUNGS, SCORE, Entries, rung_shares
from workers.ray_executor import RayExecutor
from workers.ray_worker import ENVIRONMENT, runner_of
from workers.remote_timing import BoardWait
from workers.store import ArtifactStore

logger = logging.getLogger(__name__)

SAID = "said"
"""The one key of a Tune result that is ours: a `_Said`."""

SETTINGS: Mapping[str, str] = {
    # Results go to the ledger, not to files.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Most of what a trial says is no score.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    # Tune's present output prints a table whatever its verbosity; the former one obeys.
    "RAY_AIR_NEW_OUTPUT": "0",
    # Whoever started this process has its own use for signals.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # A trial that was given up must not go on computing beside the others.
    "TUNE_FORCE_TRIAL_CLEANUP_S": "5",
}


@dataclasses.dataclass(frozen=True, slots=True)
class _Said:
    """What a trial's process tells: progress, or at last its result."""

    data: Mapping[str, Any]
    finished: Finished | None = None


class RayRace:
    """See `workers.race.Race`.

    Args:
        executor: Its Ray, slots and workers' arguments are used. Its warm actors end when a race
            begins, since they hold the CPUs that the race needs.
        store: Where checkpoints are read.
        reduction: Of the trials that are compared at a rung, one in so many goes on.
        boards: Keeps results back until boards have timed their files; None where the job names
            none. Rungs compare accuracies, so nobody waits for a board on the way.
    """

    def __init__(
        self,
        executor: RayExecutor,
        store: ArtifactStore,
        reduction: int,
        boards: BoardWait | None = None,
    ) -> None:
        self._executor = executor
        self._store = store
        self._reduction = reduction
        self._boards = boards

    def run(
        self,
        trials: Sequence[Trial],
        rivals: Mapping[str, frozenset[str]],
        ledger: Ledger,
        memory: JobMemory | None = None,
    ) -> list[Trial]:
        """See `Race`."""
        entries = Entries(trials, ledger, self._store, memory, self._boards)
        entries.look()
        while entries.waiting or entries.timed:
            if entries.waiting:
                self._executor.release()
                self._executor.cluster.ensure()
                self._fit(entries, rivals)
            else:
                time.sleep(WAIT_S)
            entries.look()
        return entries.ended()

    def _fit(self, entries: Entries, rivals: Mapping[str, frozenset[str]]) -> None:
        """Run what waits, once each; who is lost waits again afterwards."""
        os.environ.update(SETTINGS)
        # It misses the files that nobody wants.
        logging.getLogger("ray.tune.analysis").setLevel(logging.ERROR)
        watch = _Watch(entries, self._executor)
        judge = _Judge(watch, entries, rivals, self._reduction)
        trainable = tune.with_resources(
            tune.with_parameters(_recover, arguments=self._executor.arguments), {"cpu": 1}
        )
        with tempfile.TemporaryDirectory(prefix="race-", ignore_cleanup_errors=True) as scratch:
            tuner = tune.Tuner(
                trainable,
                tune_config=tune.TuneConfig(
                    search_alg=_Lanes(watch, entries),
                    scheduler=judge,
                    num_samples=entries.waiting,
                    max_concurrent_trials=self._executor.slots,
                    trial_name_creator=lambda trial: f"trial_{trial.trial_id}",
                    trial_dirname_creator=lambda trial: f"trial_{trial.trial_id}",
                ),
                run_config=tune.RunConfig(
                    name="race",
                    storage_path=scratch,
                    stop=watch,
                    verbose=0,
                    failure_config=tune.FailureConfig(max_failures=0),
                ),
            )
            try:
                tuner.fit()
            except _RayDied:
                logger.warning("The race's Ray died", extra={"action": "race_died"})
                # Before Tune's things are collected: they ask a Ray to take back what they held.
                self._executor.cluster.stop()
            except Exception as error:
                if watch.failure is not None:
                    raise watch.failure from error
                if self._executor.cluster.alive():
                    raise
                logger.warning("The race's Ray died", extra={"action": "race_died"})
        if watch.failure is not None:
            raise watch.failure
        if not entries.cancelled:
            entries.lose_all("the race's Ray died")


def _recover(config: dict[str, Any], arguments: tuple[Any, ...]) -> None:
    """Run one attempt in a process of Tune."""
    os.environ.update(ENVIRONMENT)
    finished = runner_of(*arguments)(
        config["work"], lambda data: tune.report({SAID: _Said(dict(data))})
    )
    tune.report({SAID: _Said({}, finished)})


class _Local:
    """Stays in this process, whatever Tune copies or writes to its folder."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self

    def __reduce__(self) -> tuple[type[object], tuple[()]]:
        return (object, ())


class _RayDied(BaseException):
    """Ends Tune at once.

    After an `Exception` it would tidy up by asking the dead Ray, and wait a minute for an answer,
    at whose end Ray ends this process.
    """


class _Watch(_Local, Stopper):
    """Looks at the lease, the user's wish and Ray while Tune runs; asked some times a second.

    Attributes:
        failure: What the ledger or this process raised where Tune would have swallowed it.
    """

    def __init__(self, entries: Entries, executor: RayExecutor) -> None:
        self.failure: Exception | None = None
        self._entries = entries
        self._executor = executor
        self._looked = time.monotonic()

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Whether this trial ends now."""
        return self.failure is not None

    def stop_all(self) -> bool:
        """Whether all end now."""
        if time.monotonic() - self._looked >= WAIT_S and self.failure is None:
            with self:
                self._entries.look()
                if not self._executor.cluster.alive():
                    raise _RayDied
            self._looked = time.monotonic()
        return self.failure is not None or self._entries.cancelled

    def __enter__(self) -> None:
        """Begin something whose errors are kept for after the run."""

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        if isinstance(error, Exception):
            self.failure = self.failure or error
            return True
        return False


class _Lanes(_Local, Searcher):
    """Hands the waiting trials to Tune, each when there is a place for it."""

    def __init__(self, watch: _Watch, entries: Entries) -> None:
        super().__init__()
        self._watch = watch
        self._entries = entries

    def suggest(self, trial_id: str) -> Any:
        """Return the next trial's configuration."""
        work = None
        with self._watch:
            work = self._entries.start()
        return Searcher.FINISHED if work is None else {"work": work}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """There is nothing to learn."""

    def save(self, checkpoint_path: str) -> None:
        """There is nothing to save."""

    def restore(self, checkpoint_path: str) -> None:
        """There is nothing to restore."""


class _Judge(_Local, FIFOScheduler):
    """Writes down what trials say, and has one ASHA per trial judge it among its rivals."""

    def __init__(
        self,
        watch: _Watch,
        entries: Entries,
        rivals: Mapping[str, frozenset[str]],
        reduction: int,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._watch = watch
        self._entries = entries
        self._reduction = reduction
        self._shares = rung_shares(reduction)
        self._courts = {one: Court(one, rivals[one], reduction) for one in entries.scores}
        for one, scores in entries.scores.items():
            self._tell(one, scores)

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Learn what its checkpoint says of earlier rungs."""
        one = trial.config["work"].trial.id
        self._tell(one, self._entries.scores[one])

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Write down what it says; judge it at a rung."""
        said, work = result.get(SAID), trial.config["work"]
        if not isinstance(said, _Said):
            return str(TrialScheduler.CONTINUE)
        with self._watch:
            if said.finished is not None:
                self._entries.finish(said.finished)
                return str(TrialScheduler.CONTINUE)
            self._entries.note(work, said.data)
            if RUNG in said.data and self._is_outrun(work, said.data[RUNG], said.data[SCORE]):
                return str(TrialScheduler.STOP)
        return str(TrialScheduler.STOP if self._watch.failure else TrialScheduler.CONTINUE)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Write down that its process died."""
        with self._watch:
            self._entries.lose(trial.config["work"], "the process of the race died")

    def _is_outrun(self, work: Work, rung: int, score: float) -> bool:
        """Judge a trial, and write it down where it falls behind."""
        one = work.trial.id
        verdicts = {who: court.takes(one, rung, score) for who, court in self._courts.items()}
        if not verdicts[one]:
            self._entries.give_up(
                work,
                f"outrun: after {self._shares[rung - 1]:.3g} of its recovery it scored "
                f"{score:.4f}, behind {1 - 1 / self._reduction:.0%} of the finalists that "
                "cost no more",
            )
        return not verdicts[one]

    def _tell(self, one: str, scores: Sequence[float]) -> None:
        for number, score in enumerate(scores):
            for court in self._courts.values():
                court.takes(one, number + 1, score)


class Court:
    """One trial among those that may outrun it: Tune's ASHA over them.

    Args:
        one: Who is judged.
        rivals: Whom it is held against.
        reduction: Of ASHA.
    """

    def __init__(self, one: str, rivals: frozenset[str], reduction: int) -> None:
        self._reduction = reduction
        # Tune's trials are only read by their id, and there is no controller: typed as Any.
        self._asha: Any = ASHAScheduler(
            time_attr=RUNG,
            metric=SCORE,
            mode="max",
            grace_period=1,
            max_t=reduction**RUNGS,
            reduction_factor=reduction,
            stop_last_trials=False,
        )
        self._members = {one, *rivals}
        self._known: dict[str, SimpleNamespace] = {}

    def takes(self, who: str, rung: int, score: float) -> bool:
        """Note a score; whether its trial goes on. A second score at a rung changes nothing."""
        if who not in self._members:
            return True
        if who not in self._known:
            self._known[who] = SimpleNamespace(trial_id=who)
            self._asha.on_trial_add(None, self._known[who])
        result = {RUNG: self._reduction ** (rung - 1), SCORE: score}
        verdict = self._asha.on_trial_result(None, self._known[who], result)
        return bool(verdict != TrialScheduler.STOP)
