"""The engine on Ray: warm actors that each hold one job's context.

Ray runs things; it decides nothing. Its own restarts and retries are off: a dead actor or cluster
is reported as `Lost`, and whoever submitted decides.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from workers.executor import Lost, Progress, Report, Work
from workers.job import JobSpec
from workers.ray_cluster import RayCluster
from workers.ray_worker import ENVIRONMENT, PROGRESS_GROUP, RayWorker

logger = logging.getLogger(__name__)

POLL_S = 0.2
"""How often running attempts are asked for their progress, and the cluster whether it lives."""

PING_TIMEOUT_S = 10.0
"""An idle actor that does not answer for so long is replaced."""


@dataclasses.dataclass(slots=True)
class _Slot:
    """One actor with what it runs; references are Ray's."""

    actor: Any
    work: Work
    result: Any
    drain: Any = None


class RayExecutor:
    """See `workers.executor.Executor`.

    Ray starts with the first `submit` and again after it died. Actors stay warm between attempts;
    a dead one is replaced when its slot is next needed.

    Args:
        spec: The job.
        store_url: For `workers.open_store.open_store`.
        slots: Attempts at once; one actor with one CPU each.
        quiet_folder: For `workers.quiet.QuietNode`, the same path on every node, local to each.
        ray_address: `host:port` of an existing cluster; None starts a local Ray.
        factory: `module:function` with the signature of `workers.evaluate.runner`.
        temp_dir: Session folder of a local Ray.
    """

    def __init__(
        self,
        spec: JobSpec,
        store_url: str,
        slots: int,
        *,
        quiet_folder: Path,
        ray_address: str | None = None,
        factory: str = "workers.evaluate:runner",
        temp_dir: Path | None = None,
    ) -> None:
        self.slots = slots
        self.cluster = RayCluster(slots, address=ray_address, temp_dir=temp_dir)
        self.arguments = (factory, spec, store_url, str(quiet_folder))
        self._running: list[_Slot] = []
        self._idle: list[Any] = []
        self._lost: list[Report] = []

    def submit(self, work: Work) -> None:
        """See `Executor`.

        Raises:
            ValueError: All slots are taken.
        """
        if len(self._running) >= self.slots:
            raise ValueError(
                f"{len(self._running)} attempts are running; {self.slots} is the limit"
            )
        if not self.cluster.alive():
            self._abandon("the Ray cluster died")
            self.cluster.ensure()
        actor = self._take_idle() or self._new_actor()
        self._running.append(_Slot(actor=actor, work=work, result=actor.run.remote(work)))

    def wait(self, timeout_s: float) -> Sequence[Report]:
        """See `Executor`."""
        deadline = time.monotonic() + timeout_s
        while True:
            reports = self._poll(max(0.0, min(POLL_S, deadline - time.monotonic())))
            if reports or not self._running or time.monotonic() >= deadline:
                return reports

    def close(self) -> None:
        """See `Executor`. A local Ray ends."""
        self.release()
        self.cluster.stop()

    def release(self) -> None:
        """End the actors with what they run; Ray stays for whoever else uses it here."""
        for actor in (*(slot.actor for slot in self._running), *self._idle):
            _kill(actor)
        self._running, self._idle, self._lost = [], [], []

    def _poll(self, timeout_s: float) -> list[Report]:
        """Return what came in, waiting for at most `timeout_s`."""
        if self._running and not self.cluster.alive():
            self._abandon("the Ray cluster died")
        reports, self._lost = self._lost, []
        if reports or not self._running:
            return reports
        for slot in self._running:
            if slot.drain is None:
                slot.drain = slot.actor.drain.options(concurrency_group=PROGRESS_GROUP).remote()
        done, _ = ray.wait([slot.result for slot in self._running], timeout=timeout_s)
        for slot in list(self._running):
            reports += self._progress(slot)
            if slot.result in done:
                self._running.remove(slot)
                reports += self._answer(slot)
        return reports

    def _progress(self, slot: _Slot) -> list[Report]:
        """Return the drained progress if it is there; none from a dead actor."""
        drained, _ = ray.wait([slot.drain], timeout=0)
        if not drained:
            return []
        reference, slot.drain = slot.drain, None
        try:
            return [Progress(work=slot.work, data=data) for data in ray.get(reference)]
        except RayError:
            return []  # The result says what became of the attempt.

    def _answer(self, slot: _Slot) -> list[Report]:
        """Return the reports of an attempt that ended, and free or drop its actor."""
        try:
            answer = ray.get(slot.result)
        except RayError as error:
            # Unreachable is as good as dead, but must not go on computing beside its successor.
            _kill(slot.actor)
            reason = f"{type(error).__name__}: {str(error).strip()[:500]}"
            return [Lost(work=slot.work, reason=reason)]
        self._idle.append(slot.actor)
        progress = [Progress(work=slot.work, data=data) for data in answer.progress]
        return [*progress, answer.finished]

    def _abandon(self, reason: str) -> None:
        """Give up every actor; their attempts are reported by the next `wait`."""
        self._lost += [Lost(work=slot.work, reason=reason) for slot in self._running]
        self._running, self._idle = [], []

    def _take_idle(self) -> Any:
        """Return a living idle actor, or None."""
        while self._idle:
            actor = self._idle.pop()
            try:
                ray.get(actor.pid.remote(), timeout=PING_TIMEOUT_S)
            except RayError:
                logger.warning("An idle actor died", extra={"action": "actor_died"})
                _kill(actor)
            else:
                return actor
        return None

    def _new_actor(self) -> Any:
        # Ray's type hints for actors lack concurrency groups.
        remote: Any = ray.remote
        kind = remote(
            num_cpus=1,
            max_restarts=0,
            max_task_retries=0,
            concurrency_groups={PROGRESS_GROUP: 1},
            runtime_env={"env_vars": dict(ENVIRONMENT)},
        )(RayWorker)
        return kind.remote(*self.arguments)


def _kill(actor: Any) -> None:
    """End an actor's process; does nothing when it or its cluster is gone."""
    if not ray.is_initialized():
        return
    try:
        ray.kill(actor)
    except (RayError, ValueError):
        logger.debug("The actor was gone already", exc_info=True)
