"""Process: claims jobs by lease and drives each to its end; may be killed at any moment.

Everything it knows is in the database, so the next conductor goes on where this one stopped. One
thread scans registered models and datasets, the other runs one job at a time.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import threading
from types import FrameType

from compression.surveyed import Survey
from search import catalogue
from search.errors import IllegalTransition
from service import profiler, scanner
from service.db import fronts, jobs, lease, models, timing_orders
from service.db.columns import utc_now
from service.db.evaluations import SqlMemory
from service.db.ledger import SqlLedger
from service.db.session import Database
from service.db.timing_queue import SqlTimingQueue
from service.job_state import JobOutcome, JobState
from service.logs import configure_logging
from service.settings import Settings
from workers.errors import LeaseLost
from workers.job import JobSpec
from workers.memory import JobMemory, device_digest
from workers.meters.fingerprint import fingerprint
from workers.open_store import open_store
from workers.phases import BaselineFailed, JobEnd, JobRun, run_job
from workers.quiet import QuietNode
from workers.ray_executor import RayExecutor
from workers.ray_race import RayRace
from workers.remote_timing import BoardWait, RemoteTimingExecutor

logger = logging.getLogger(__name__)

IDLE_S = 0.5
"""Pause between two looks for work."""


class Conductor:
    """One conductor process: its name in leases, its database, its store.

    Attributes:
        owner: Unique name of this process's life.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self.database = Database(settings.database_url)
        self.store = open_store(settings.store_url)
        self.stopping = threading.Event()

    def run(self) -> None:
        """Work until asked to stop."""
        self.database.migrate()
        threading.Thread(target=self._scan_for_ever, name="scanner", daemon=True).start()
        while not self.stopping.is_set():
            with self.database.write() as session:
                claim = lease.claim_job(session, self.owner, self.settings.lease_s)
            if claim is None:
                self.stopping.wait(IDLE_S)
            else:
                self.conduct(claim)

    def _scan_for_ever(self) -> None:
        while not self.stopping.is_set():
            if not scanner.scan_one(self.database, self.store, self.settings, self.owner):
                self.stopping.wait(IDLE_S)

    def conduct(self, claim: lease.Claim) -> None:
        """Run a claimed job to its end, or until the lease is lost."""
        ledger = SqlLedger(
            self.database,
            claim.job_id,
            self.owner,
            claim.epoch,
            lease_s=self.settings.lease_s,
            size_of=self.store.size_bytes,
        )
        try:
            try:
                end = self._drive(claim, ledger)
            except LeaseLost:
                raise
            except BaselineFailed as error:
                self._fail(claim, ledger, str(error))
            except Exception as error:  # The conductor's edge: the job fails, the process goes on.
                logger.exception("job failed", extra={"job": claim.job_id})
                self._fail(claim, ledger, f"{type(error).__name__}: {error}")
            else:
                self._end(claim, ledger, end)
        except (LeaseLost, IllegalTransition) as error:
            # Someone else moved the job on: another conductor, or its user while it was queued.
            logger.warning("let go of the job: %s", error, extra={"job": claim.job_id})

    def _drive(self, claim: lease.Claim, ledger: SqlLedger) -> JobEnd:
        with ledger.fenced() as session:
            job = jobs.get(session, claim.job_id)
            spec = JobSpec.from_json(job.spec)
            stored = models.survey(session, job.model_id)
            if stored is None:
                raise RuntimeError(f"Model {job.model_id} of job {claim.job_id} has no survey")
            survey = Survey.from_json(stored)
            if job.state is JobState.QUEUED:
                jobs.transition(session, claim.job_id, JobState.RUNNING, "claimed")
        ledger.abandon("its conductor died")
        ended = threading.Event()
        profiler.start(
            self.database,
            self.settings,
            spec,
            model_id=job.model_id,
            survey=stored,
            owner=self.owner,
            ended=ended,
        )
        quiet = QuietNode(self.settings.data_dir / "quiet")
        executor = RayExecutor(
            spec,
            self.settings.store_url,
            slots=spec.parallelism,
            quiet_folder=quiet.folder,
            ray_address=self.settings.ray_address,
        )

        queue = SqlTimingQueue(self.database, claim.job_id)
        boards = BoardWait(queue, self.store, spec.devices)

        def finalizing() -> None:
            with ledger.fenced() as session:
                if jobs.get(session, claim.job_id).state is JobState.RUNNING:
                    jobs.transition(
                        session, claim.job_id, JobState.FINALIZING, "the search has ended"
                    )

        try:
            return run_job(
                JobRun(
                    spec=spec,
                    survey=survey,
                    executor=RemoteTimingExecutor(executor, boards),
                    ledger=ledger,
                    store=self.store,
                    thinking=quiet.busy,
                    finalizing=finalizing,
                    memory=self._memory(spec, job) if spec.memory else None,
                    race=RayRace(executor, self.store, spec.recovery.race_reduction, boards),
                )
            )
        finally:
            ended.set()
            executor.close()

    def _memory(self, spec: JobSpec, job: jobs.StoredJob) -> JobMemory:
        return JobMemory(
            memory=SqlMemory(self.database),
            spec=spec,
            store=self.store,
            devices={
                d.name: device_digest(fingerprint(d) if d.place == "local" else d)
                for d in spec.devices
            },
            model_id=job.model_id,
            dataset_id=job.dataset_id,
        )

    def _end(self, claim: lease.Claim, ledger: SqlLedger, end: JobEnd) -> None:
        with ledger.fenced() as session:
            timing_orders.withdraw(session, claim.job_id, utc_now())
            if end.outcome == "cancelled":
                jobs.finish(session, claim.job_id, JobState.CANCELLED, JobOutcome.CANCELLED)
                return
            if end.baseline is not None:
                fronts.publish_trials(
                    session,
                    claim.job_id,
                    outcome=JobOutcome(end.outcome),
                    baseline=end.baseline,
                    front=end.front,
                    hypervolume=end.hypervolume,
                    nearest=end.nearest,
                    binding=end.binding,
                )
            jobs.finish(session, claim.job_id, JobState.SUCCEEDED, JobOutcome(end.outcome))

    def _fail(self, claim: lease.Claim, ledger: SqlLedger, reason: str) -> None:
        with ledger.fenced() as session:
            timing_orders.withdraw(session, claim.job_id, utc_now())
            jobs.finish(session, claim.job_id, JobState.FAILED, JobOutcome.FAILED, reason)


def main() -> None:
    """Run a conductor until SIGTERM or SIGINT."""
    settings = Settings()
    configure_logging(settings)
    conductor = Conductor(settings)

    def stop(_number: int, _frame: FrameType | None) -> None:
        # Nothing needs saving: the next conductor goes on from the database.
        os._exit(0)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    logger.info("conductor started, agents: %s", ", ".join(catalogue.AGENTS))
    conductor.run()


if __name__ == "__main__":
    main()
