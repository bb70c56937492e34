"""The shape of a dataset."""

from __future__ import annotations

import datetime
from typing import Any, Literal

from pydantic import Field, model_validator

from service.api.schemas.strict import Answer, Name, Request
from service.scan_state import ScanState
from workers.job import Splits

_SPLITS = Splits()


class SplitsIn(Request):
    """How rows without a declared split are divided; fixed at registration. Shares sum to 1."""

    train: float = Field(default=_SPLITS.train, ge=0, le=1, allow_inf_nan=False)
    calibration: float = Field(default=_SPLITS.calibration, ge=0, le=1, allow_inf_nan=False)
    search: float = Field(default=_SPLITS.search, gt=0, le=1, allow_inf_nan=False)
    test: float = Field(default=_SPLITS.test, gt=0, le=1, allow_inf_nan=False)
    seed: int = Field(default=0, ge=0, lt=1 << 32)

    @model_validator(mode="after")
    def _sum_to_one(self) -> SplitsIn:
        total = self.train + self.calibration + self.search + self.test
        if abs(total - 1.0) > 1e-6:
            raise ValueError(f"the shares sum to {total:g}; they must sum to 1")
        return self


class DatasetCreate(Request):
    """What is said of a dataset, as the part `spec` beside the file `data`.

    Attributes:
        name: The user's name for it.
        format: How the data comes: `npz`, `folders` (zip or tar of class folders) and `parquet`
            as an upload, `builtin` by name, `path` on the server's disk.
        source: Built-in name (`name` when left out), or absolute path within a folder that the
            operator opened.
        splits: How rows without a declared split are divided.
        num_classes: Labels must be below it; None takes what the labels say.
        input_shape: C, H, W that the arrays of an npz must have; None takes them as they are.
        layout: Order of the axes of an npz's `x`; None takes what its shape says.
    """

    name: Name
    format: Literal["npz", "folders", "parquet", "builtin", "path"]
    source: str | None = None
    splits: SplitsIn = SplitsIn()
    num_classes: int | None = Field(default=None, ge=2, le=1_000_000)
    input_shape: tuple[int, int, int] | None = None
    layout: Literal["NHWC", "NCHW"] | None = None


class DatasetOut(Answer):
    """A dataset as it stands.

    Attributes:
        id: Identifier.
        name: The user's name for it.
        state: SCANNING, then READY or REJECTED.
        problem: Why it was rejected; None otherwise.
        format: How the data came.
        source: Built-in name or path; empty for uploads.
        data_sha256: Digest of the uploaded file.
        splits: How rows without a declared split were divided.
        summary: What the scan found; None until READY.
        created_at: Moment of the upload.
        updated_at: Moment of the last change.
        links: Paths of what belongs to it.
    """

    id: str
    name: str
    state: ScanState
    problem: dict[str, Any] | None
    format: str
    source: str
    data_sha256: str | None
    splits: dict[str, Any]
    summary: dict[str, Any] | None
    created_at: datetime.datetime
    updated_at: datetime.datetime
    links: dict[str, str]
