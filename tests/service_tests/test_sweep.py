"""What a sweep of the store removes, and what it keeps, beside a running job."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import boto3
import numpy as np
import pytest
from moto.s3.models import s3_backends
from moto.server import ThreadedMotoServer

from compression.artifact import Digest
from search.agent import Snapshot
from search.trial import Attempt, Trial
from service import sweep as sweeping
from service.db import timing_orders
from service.db.columns import utc_now
from service.db.ledger import SqlLedger
from service.db.session import Database
from service.db.tables import Tables
from service.db.timing_orders import LEASE_S
from service.sweep import Swept, sweep
from tests.service_tests.boards import add_agent, job_with_trials, order_of
from tests.service_tests.stored import Clock, open_ledger
from tests.workers_tests.works import measured
from workers.executor import Finished, Work
from workers.s3_store import S3Store
from workers.store import CHUNK_BYTES, ArtifactStore, FolderStore

NUMBERS = itertools.count()


class Aged(Protocol):
    """A store whose blobs can be made old."""

    @property
    def store(self) -> ArtifactStore:
        """The store itself."""
        ...

    def put(self, data: bytes, days: float) -> Digest:
        """Put a blob as if so many days ago."""
        ...


class AgedFolder:
    def __init__(self, folder: Path) -> None:
        self.store = FolderStore(folder)

    def put(self, data: bytes, days: float) -> Digest:
        digest = self.store.put(data)
        moment = (utc_now() - datetime.timedelta(days=days)).timestamp()
        os.utime(self.store.root / digest[:2] / digest[2:], (moment, moment))
        return digest


class AgedBucket:
    def __init__(self, endpoint: str, bucket: str) -> None:
        boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket=bucket)
        self.store = S3Store(bucket, "blobs", endpoint_url=endpoint)

    def put(self, data: bytes, days: float) -> Digest:
        digest = self.store.put(data)
        objects = s3_backends["123456789012"]["aws"].buckets[self.store.bucket].keys
        moment = (utc_now() - datetime.timedelta(days=days)).replace(tzinfo=None)
        objects[f"blobs/{digest[:2]}/{digest[2:]}"].last_modified = moment
        return digest


@pytest.fixture
def folder(tmp_path: Path) -> AgedFolder:
    return AgedFolder(tmp_path / "blobs")


@pytest.fixture(params=["folder", "s3"])
def aged(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Aged]:
    if request.param == "folder":
        yield AgedFolder(tmp_path / "blobs")
        return
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield AgedBucket(f"http://{host}:{port}", f"swept-{next(NUMBERS)}")
    server.stop()


class Job:
    """A job with one trial, and what its conductor writes."""

    def __init__(self, database: Database) -> None:
        self.clock = Clock()
        self.clock.now = utc_now() - datetime.timedelta(days=4)
        self.id, _ = job_with_trials(database, self.clock)
        self.clock.advance(60.0)
        self.ledger: SqlLedger = open_ledger(database, "second", self.clock)

    @property
    def trial(self) -> Trial:
        return self.ledger.trials()[0]

    def start(self, days: float) -> Attempt:
        """Begin an attempt so many days ago."""
        self.clock.now = utc_now() - datetime.timedelta(days=days)
        return self.ledger.start(self.trial)

    def record(self, attempt: Attempt, **artifacts: Digest) -> None:
        work = Work(trial=self.trial, attempt=attempt)
        finished = Finished(work=work, outcome=measured(0.9), artifacts=artifacts)
        assert self.ledger.record(finished) is not None


def left(store: ArtifactStore) -> set[Digest]:
    return {blob.digest for blob in store.blobs()}


def manifest(*names: Digest) -> bytes:
    return json.dumps({"parts": {str(i): name for i, name in enumerate(names)}}).encode()


def test_what_is_old_and_named_by_nobody_goes(database: Database, aged: Aged) -> None:
    young, old = aged.put(b"young", 0.5), aged.put(b"old!", 2)
    assert sweep(database, aged.store, dry_run=True) == Swept(1, 4, 1, 5)
    assert left(aged.store) == {young, old}
    assert sweep(database, aged.store) == Swept(1, 4, 1, 5)
    assert left(aged.store) == {young}
    assert sweep(database, aged.store) == Swept(0, 0, 1, 5)
    # What is put again is young again.
    again = aged.put(b"again", 2)
    aged.store.put(b"again")
    sweep(database, aged.store)
    assert left(aged.store) == {young, again}


def test_what_rows_name_stays_and_what_that_names(database: Database, aged: Aged) -> None:
    job = Job(database)
    attempt = job.start(days=3)
    part, other = aged.put(b"weights", 2), aged.put(b"nobody's", 2)
    inner = aged.put(manifest(part), 2)
    outer = aged.put(b" " * (CHUNK_BYTES - 40) + manifest(inner), 2)
    job.record(attempt, recovered=outer)
    sweep(database, aged.store)
    assert left(aged.store) == {part, inner, outer}
    assert other not in left(aged.store)


def test_what_a_running_attempt_has_put_stays_until_it_ended(
    database: Database, folder: AgedFolder
) -> None:
    job = Job(database)
    before = folder.put(b"before the attempt", 8)
    attempt = job.start(days=6)
    part = folder.put(b"a part of a result that nobody knows yet", 5)
    inflight = folder.put(manifest(part), 5)
    assert sweep(database, folder.store).removed == 1
    assert left(folder.store) == {part, inflight}
    job.ledger.lost(attempt, "killed")
    assert before not in left(folder.store)
    sweep(database, folder.store)
    assert left(folder.store) == set()


def test_the_newest_checkpoint_stays_until_its_trial_ended(
    database: Database, folder: AgedFolder
) -> None:
    job = Job(database)
    state, later = folder.put(b"state at 20", 3.5), folder.put(b"state at 40", 3)
    first, second = folder.put(manifest(state), 3.5), folder.put(manifest(later), 3)
    attempt = job.start(days=3.6)
    job.ledger.keep(attempt, first)
    job.ledger.keep(attempt, second)
    job.ledger.lost(attempt, "killed")
    # Nothing runs now; whoever takes the job up needs the newest.
    sweep(database, folder.store)
    assert left(folder.store) == {later, second}
    again = job.start(days=0.1)
    assert again.resume == second
    result = folder.put(b"result", 0)
    job.record(again, recovered=result)
    sweep(database, folder.store)
    assert left(folder.store) == {result}


def test_files_of_open_orders_stay(database: Database, folder: AgedFolder) -> None:
    job = Job(database)
    blobs = [folder.put(name, 3) for name in (b"candidate", b"baseline", b"probe")]
    candidate, baseline, probe = blobs
    order = dataclasses.replace(
        order_of(job.trial.id), candidate=candidate, baseline=baseline, probe=probe
    )
    with database.write() as session:
        timing_orders.ask(session, job.id, order, job.clock())
    sweep(database, folder.store)
    assert left(folder.store) == set(blobs)
    agent = add_agent(database, "a", job.clock)
    with database.write() as session:
        leased = timing_orders.lease(session, agent, job.clock())
    assert leased is not None
    assert LEASE_S > 1.0
    times = folder.put(b"times", 3)
    with database.write() as session:
        timing_orders.finish(
            session, leased.id, "a", leased.attempt, times=times, readings=[], failure=None,
            now=job.clock(),
        )  # fmt: skip
    sweep(database, folder.store)
    assert left(folder.store) == {times}


def test_documents_and_bytes_are_looked_at(database: Database, folder: AgedFolder) -> None:
    job = Job(database)
    named, told, packed = (folder.put(data, 3) for data in (b"named", b"told", b"packed"))
    array = np.frombuffer(packed.encode(), dtype=np.float64)
    snapshot = Snapshot(data={"base": {"artifact": named}}, arrays={"digest": array})
    job.ledger.propose([], agent="random", snapshot=snapshot)
    job.ledger.event("trial.progress", {"text": f"see <{told}>"})
    sweep(database, folder.store)
    assert left(folder.store) == {named, told, packed}
    # Whatever table is added: it has no column of a kind that is not looked at.
    kinds = {type(c.type).__name__ for table in Tables.metadata.tables.values() for c in table.c}
    read = {"String", "Text", "Enum", "JSON", "LargeBinary"}
    assert kinds - read == {"Integer", "BigInteger", "Double", "Boolean", "UtcTime"}


def test_the_command_prints_what_it_did(
    tmp_path: Path,
    folder: AgedFolder,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PARETOPRESS_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("PARETOPRESS_STORE_URL", folder.store.root.as_uri())
    folder.put(b"x" * 1000, 2)
    folder.put(b"y" * 10, 1 / 12)
    sweeping.main(["--dry-run"])
    assert capsys.readouterr().out == "would remove 1 blobs of 1,000 bytes, kept 1 of 10\n"
    sweeping.main([])
    assert capsys.readouterr().out == "removed 1 blobs of 1,000 bytes, kept 1 of 10\n"
    sweeping.main(["--older-than-h", "1.5"])
    assert capsys.readouterr().out == "removed 1 blobs of 10 bytes, kept 0 of 0\n"
    with pytest.raises(SystemExit):
        sweeping.main(["--older-than-h", "0.5"])
    assert "older_than_h is 0.5; 1 is the least" in capsys.readouterr().err
