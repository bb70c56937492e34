"""Where an uploaded model or dataset stands."""

from __future__ import annotations

from enum import StrEnum


class ScanState(StrEnum):
    """Where an uploaded model or dataset stands. READY and REJECTED never change."""

    SCANNING = "SCANNING"
    """Stored; a worker has still to open it."""
    READY = "READY"
    """Opened, checked and summarised: jobs may use it."""
    REJECTED = "REJECTED"
    """Cannot be used; its problem says why."""
