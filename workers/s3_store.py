"""The artifact store in an S3-compatible bucket."""

from __future__ import annotations

import base64
import contextlib
import datetime
import email.utils
import hashlib
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from compression.artifact import Digest
from workers.errors import BlobMissing
from workers.store import CHUNK_BYTES, NAME, Blob

MAX_BLOB_BYTES = 5 * (1 << 30)
"""Limit of S3 for one PUT. One PUT is atomic and checked by the server against the name."""

SWEEPING = "sweeping"
"""Folder of the objects that say which blob is being removed."""

CLAIM_S = 120.0
"""Seconds after which a claim to remove a blob means nothing: whoever made it died."""

REMOVAL_S = 20.0
"""Longest time from a claim to the request that removes the blob. That request must arrive while
the claim stands."""

WAIT_S = 0.5
"""Pause of a put whose blob is just being removed."""

_MISSING = {"404", "NoSuchKey", "NotFound"}
_EXISTS = {"PreconditionFailed", "412", "ConditionalRequestConflict", "409"}
_UNKNOWN_CONDITION = {"NotImplemented", "501"}


class S3Store:
    """Blobs as objects `prefix/ab/cdef...` in one bucket.

    Objects are created under the condition that none of this name exists; a server without
    conditional writes gets a plain one, which is as good since equal names mean equal bytes.
    A network or server fault raises `ConnectionError`, which another attempt may survive.

    The time of an object is that of its last put: a put of what is there copies it onto itself.
    Whoever removes a blob claims it first by an object of its own, then looks at the blob's time.
    A put looks for a claim after it has renewed the time, and waits where there is one. S3 is
    consistent, so one of both sees the other.

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
        while True:
            if not self._renewed(digest):
                if not isinstance(body, bytes):
                    body.seek(0)
                self._put(digest, body, IfNoneMatch="*")
            if not self._claim_of(digest)[0]:
                return
            time.sleep(WAIT_S)

    def _renewed(self, digest: Digest) -> bool:
        """Make a blob as young as if it were written now; False where there is none."""
        key = self._key(digest)
        try:
            self.size_bytes(digest)
            with self._faults(digest):
                self._client.copy_object(
                    Bucket=self.bucket,
                    Key=key,
                    CopySource={"Bucket": self.bucket, "Key": key},
                    # Without a change S3 refuses to copy an object onto itself.
                    MetadataDirective="REPLACE",
                    ChecksumAlgorithm="SHA256",
                )
        except BlobMissing:
            return False
        return True

    def blobs(self) -> Iterator[Blob]:
        """See `ArtifactStore`."""
        root = f"{self.prefix}/" if self.prefix else ""
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=root
        )
        for page in pages:
            for entry in page.get("Contents", ()):
                found = NAME.fullmatch(entry["Key"].removeprefix(root))
                if found is not None:
                    digest = Digest(found[1] + found[2])
                    yield Blob(digest, int(entry["Size"]), entry["LastModified"])

    def remove(self, digest: Digest, before: datetime.datetime) -> bool:
        """See `ArtifactStore`.

        Raises:
            NotImplementedError: The server knows no conditional writes, so nothing can be claimed.
        """
        begun = time.monotonic()
        if not self._claim(digest):
            return False
        try:
            with self._faults(digest):
                head = self._client.head_object(Bucket=self.bucket, Key=self._key(digest))
                late = time.monotonic() - begun > REMOVAL_S
                if head["LastModified"] >= before or late:
                    return False
                self._client.delete_object(Bucket=self.bucket, Key=self._key(digest))
                return True
        except BlobMissing:
            return False
        finally:
            # One that is late must not take another's claim away; its own has ended by itself.
            if time.monotonic() - begun < CLAIM_S / 2:
                self._client.delete_object(Bucket=self.bucket, Key=self._claim_key(digest))

    def _claim(self, digest: Digest) -> bool:
        """Claim a blob for removal; False where another has."""
        held, tag = self._claim_of(digest)
        if held:
            return False
        # What a dead one left is taken over by one only: every claim has its own tag.
        condition = {"IfNoneMatch": "*"} if tag is None else {"IfMatch": tag}
        try:
            with self._faults(digest):
                self._client.put_object(
                    Bucket=self.bucket,
                    Key=self._claim_key(digest),
                    Body=secrets.token_bytes(16),
                    **condition,
                )
        except BlobMissing:
            return False
        except ClientError as error:
            if _code(error) in _UNKNOWN_CONDITION:
                raise NotImplementedError(
                    f"The server of bucket {self.bucket!r} knows no conditional writes: "
                    "blobs cannot be removed safely"
                ) from error
            if _code(error) in _EXISTS:
                return False
            raise
        return True

    def _claim_of(self, digest: Digest) -> tuple[bool, str | None]:
        """Return whether somebody is removing a blob, by the server's clock, and the claim's tag.

        A claim that means nothing any more has a tag all the same.
        """
        try:
            with self._faults(digest):
                head = self._client.head_object(Bucket=self.bucket, Key=self._claim_key(digest))
        except BlobMissing:
            return False, None
        date = head["ResponseMetadata"]["HTTPHeaders"]["date"]
        age = email.utils.parsedate_to_datetime(date) - head["LastModified"]
        return age.total_seconds() < CLAIM_S, str(head["ETag"])

    def _claim_key(self, digest: Digest) -> str:
        return f"{self.prefix}/{SWEEPING}/{digest}" if self.prefix else f"{SWEEPING}/{digest}"

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
