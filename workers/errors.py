"""What can go wrong while running and measuring."""

from __future__ import annotations

from compression.artifact import Digest
from compression.errors import NotCertified


class WorkerError(Exception):
    """Something about running or measuring is wrong."""


class BlobMissing(WorkerError, KeyError):
    """The artifact store has no blob of this digest."""

    def __init__(self, digest: Digest) -> None:
        super().__init__(f"The artifact store has no blob {digest}")


class LeaseLost(WorkerError):
    """Another conductor holds the job now; this one must stop writing."""


class DeviceUnknown(WorkerError, ValueError):
    """No device or runtime of this name exists here."""


class FileRefused(WorkerError, NotCertified, ValueError):
    """A runtime cannot run a file; the message says what it cannot do."""
