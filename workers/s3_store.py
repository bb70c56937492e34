"""The artifact store in an S3-compatible bucket."""

from __future__ import annotations

import base64
import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from compression.artifact import Digest
from workers.errors import BlobMissing
from workers.store import CHUNK_BYTES

MAX_BLOB_BYTES = 5 * (1 << 30)
"""Limit of S3 for one PUT. One PUT is atomic and checked by the server against the name."""

_MISSING = {"404", "NoSuchKey", "NotFound"}
_EXISTS = {"PreconditionFailed", "412", "ConditionalRequestConflict", "409"}
_UNKNOWN_CONDITION = {"NotImplemented", "501"}


class S3Store:
    """Blobs as objects `prefix/ab/cdef...` in one bucket.

    Objects are created under the condition that none of this name exists; a server without
    conditional writes gets a plain one, which is as good since equal names mean equal bytes.
    A network or server fault raises `ConnectionError`, which another attempt may survive.

    Attributes:
        bucket: Must exist.
        prefix: Without slashes at its ends; may be empty.
    """

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        endpoint_url: str | None = None,
        region: str | None = None,
    ) -> None:
        self.bucket = bucket
        self.prefix = prefix.strip("/")
        # Credentials come from the environment, as for every AWS tool.
        self._client: Any = boto3.client("s3", endpoint_url=endpoint_url, region_name=region)

    def put(self, data: bytes) -> Digest:
        """See `ArtifactStore`."""
        digest = Digest(hashlib.sha256(data).hexdigest())
        self._create(digest, data, len(data))
        return digest

    def put_file(self, path: Path) -> Digest:
        """See `ArtifactStore`."""
        with path.open("rb") as source:
            digest = Digest(hashlib.file_digest(source, "sha256").hexdigest())
            source.seek(0)
            self._create(digest, source, path.stat().st_size)
        return digest

    def get(self, digest: Digest) -> bytes:
        """See `ArtifactStore`."""
        return b"".join(self.stream(digest))

    def size_bytes(self, digest: Digest) -> int:
        """See `ArtifactStore`."""
        with self._faults(digest):
            head = self._client.head_object(Bucket=self.bucket, Key=self._key(digest))
        return int(head["ContentLength"])

    def stream(self, digest: Digest, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """See `ArtifactStore`."""
        size = self.size_bytes(digest)
        end = size if end is None else min(end, size)
        if start >= end:
            # HTTP has no empty range.
            return iter(())
        with self._faults(digest):
            answer = self._client.get_object(
                Bucket=self.bucket, Key=self._key(digest), Range=f"bytes={start}-{end - 1}"
            )
        return self._chunks(digest, answer["Body"])

    def _chunks(self, digest: Digest, body: Any) -> Iterator[bytes]:
        with contextlib.closing(body), self._faults(digest):
            yield from body.iter_chunks(CHUNK_BYTES)

    def _create(self, digest: Digest, body: bytes | IO[bytes], size: int) -> None:
        if size > MAX_BLOB_BYTES:
            raise ValueError(f"Blob {digest} has {size} bytes; {MAX_BLOB_BYTES} is the limit")
        try:
            self.size_bytes(digest)
        except BlobMissing:
            self._put(digest, body, IfNoneMatch="*")

    def _put(self, digest: Digest, body: bytes | IO[bytes], **condition: str) -> None:
        checksum = base64.b64encode(bytes.fromhex(digest)).decode()
        try:
            with self._faults(digest):
                self._client.put_object(
                    Bucket=self.bucket,
                    Key=self._key(digest),
                    Body=body,
                    ChecksumSHA256=checksum,
                    **condition,
                )
        except ClientError as error:
            code = _code(error)
            if code in _UNKNOWN_CONDITION and condition:
                if not isinstance(body, bytes):
                    body.seek(0)
                self._put(digest, body)
            elif code not in _EXISTS:
                raise

    def _key(self, digest: Digest) -> str:
        if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
            raise BlobMissing(digest)
        name = f"{digest[:2]}/{digest[2:]}"
        return f"{self.prefix}/{name}" if self.prefix else name

    @contextlib.contextmanager
    def _faults(self, digest: Digest) -> Iterator[None]:
        """Turn the client's faults into the store's."""
        try:
            yield
        except ClientError as error:
            code = _code(error)
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            if code in _MISSING:
                raise BlobMissing(digest) from None
            if status >= 500 and code not in _UNKNOWN_CONDITION:
                raise ConnectionError(f"Bucket {self.bucket!r}: {error}") from error
            raise
        except BotoCoreError as error:
            raise ConnectionError(f"Bucket {self.bucket!r}: {error}") from error


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))
