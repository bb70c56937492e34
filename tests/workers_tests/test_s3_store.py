"""The S3 store against a real HTTP server in this process."""

from __future__ import annotations

import datetime
import itertools
import threading
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from moto.s3.models import s3_backends
from moto.server import ThreadedMotoServer

from compression.artifact import Digest
from tests.contracts.store import StoreContract
from workers.open_store import open_store
from workers.s3_store import CLAIM_S, S3Store
from workers.store import ArtifactStore

BUCKET = "paretopress-test"
PREFIXES = (f"run-{number}/blobs" for number in itertools.count())


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")


@pytest.fixture
def client(endpoint: str) -> Any:
    client = boto3.client("s3", endpoint_url=endpoint)
    client.create_bucket(Bucket=BUCKET)
    return client


@pytest.fixture
def store(endpoint: str, client: Any) -> S3Store:
    return S3Store(BUCKET, next(PREFIXES), endpoint_url=endpoint)


def make_older(key: str, seconds: float) -> None:
    """Set an object's time back, which S3 itself offers nobody."""
    objects = s3_backends["123456789012"]["aws"].buckets[BUCKET].keys
    objects[key].last_modified -= datetime.timedelta(seconds=seconds)


class TestS3Store(StoreContract):
    rounds = 2

    def age(self, store: ArtifactStore, digest: Digest) -> None:
        assert isinstance(store, S3Store)
        make_older(store._key(digest), 7200)


def test_a_put_waits_for_who_removes_the_blob(store: S3Store) -> None:
    digest = store.put(b"blob")
    assert store._claim(digest)
    assert not store._claim(digest)
    now = datetime.datetime.now(datetime.UTC)
    assert not store.remove(digest, now + datetime.timedelta(hours=1))
    done = threading.Event()

    def put() -> None:
        store.put(b"blob")
        done.set()

    putter = threading.Thread(target=put)
    putter.start()
    assert not done.wait(1.0)
    # Whoever has the claim removes the blob, although the put has renewed it, and goes.
    store._client.delete_object(Bucket=BUCKET, Key=store._key(digest))
    store._client.delete_object(Bucket=BUCKET, Key=store._claim_key(digest))
    putter.join()
    assert store.get(digest) == b"blob"


def test_what_a_dead_remover_left_stops_nobody(store: S3Store) -> None:
    digest = store.put(b"blob")
    assert store._claim(digest)
    make_older(store._claim_key(digest), CLAIM_S + 1)
    assert store.put(b"blob") == digest
    assert store._claim(digest)
    assert not store._claim(digest)
    assert [blob.digest for blob in store.blobs()] == [digest]


def test_a_server_without_conditions_removes_nothing(store: S3Store) -> None:
    digest = store.put(b"blob")
    now = datetime.datetime.now(datetime.UTC)
    store._client = Conditionless(store._client)
    with pytest.raises(NotImplementedError, match="no conditional writes"):
        store.remove(digest, now + datetime.timedelta(hours=1))
    assert store.get(digest) == b"blob"


def test_blobs_lie_under_the_prefix(store: S3Store, client: Any) -> None:
    digest = store.put(b"blob")
    listed = client.list_objects_v2(Bucket=BUCKET, Prefix=f"{store.prefix}/")["Contents"]
    assert [entry["Key"] for entry in listed] == [f"{store.prefix}/{digest[:2]}/{digest[2:]}"]


def test_prefixes_do_not_see_each_other(store: S3Store, endpoint: str) -> None:
    digest = store.put(b"blob")
    other = S3Store(BUCKET, f"/{store.prefix}/", endpoint_url=endpoint)
    assert other.get(digest) == b"blob"
    with pytest.raises(KeyError):
        S3Store(BUCKET, "", endpoint_url=endpoint).get(digest)


def test_it_opens_from_a_url(store: S3Store, endpoint: str) -> None:
    digest = store.put(b"blob")
    url = f"s3://{BUCKET}/{store.prefix}?endpoint_url={endpoint}&region=us-east-1"
    assert open_store(url).get(digest) == b"blob"


def test_an_object_is_created_only_where_none_is(store: S3Store, client: Any) -> None:
    digest = store.put(b"blob")
    key = f"{store.prefix}/{digest[:2]}/{digest[2:]}"
    before = client.head_object(Bucket=BUCKET, Key=key)["LastModified"]
    # As in a race: this writer looked before the other one wrote.
    store._put(digest, b"blob", IfNoneMatch="*")
    assert client.head_object(Bucket=BUCKET, Key=key)["LastModified"] == before


class Conditionless:
    """A client of a server that does not know conditional writes."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.refused = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def put_object(self, **arguments: Any) -> Any:
        if "IfNoneMatch" in arguments:
            self.refused += 1
            arguments["Body"].read() if hasattr(arguments["Body"], "read") else None
            error = {"Error": {"Code": "NotImplemented"}, "ResponseMetadata": {}}
            raise ClientError({**error, "ResponseMetadata": {"HTTPStatusCode": 501}}, "PutObject")
        return self._client.put_object(**arguments)


def test_a_server_without_conditions_gets_plain_writes(store: S3Store, tmp_path: Any) -> None:
    plain = Conditionless(store._client)
    store._client = plain
    path = tmp_path / "file"
    path.write_bytes(b"from a file")
    assert store.get(store.put(b"blob")) == b"blob"
    assert store.get(store.put_file(path)) == b"from a file"
    assert plain.refused == 2


def test_a_lost_network_is_a_connection_error() -> None:
    store = S3Store(BUCKET, endpoint_url="http://127.0.0.1:9")
    with pytest.raises(ConnectionError, match=BUCKET):
        store.get(Digest("0" * 64))


def test_a_missing_bucket_is_not_a_missing_blob(endpoint: str) -> None:
    store = S3Store("no-such-bucket", endpoint_url=endpoint)
    with pytest.raises(ClientError, match="NoSuchBucket"):
        store.put(b"blob")
