"""What boards measured of a confirmed trial, in its own report and beside its raw times.

The worker has written the checkpoint before any board has the file. What comes of it here follows
from that checkpoint and the boards' answers alone, so doing it again gives the same digests; the
ledger is told of the result only, and what the worker wrote is then named by nobody.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from compression.artifact import Digest
from compression.checkpoint_files import REPORT, read_card, unzip, with_card, zip_bytes
from compression.model_card import BoardRow
from search.device import DeviceSpec
from search.measurement import Reading
from workers.board_readings import read_times
from workers.memory import device_digest
from workers.meters.latency_result import extended
from workers.metric_row import metric_row
from workers.store import ArtifactStore

CHECKPOINT_ROLE, REPORT_ROLE = "checkpoint", "report"

TIMES_ROLE = "times"
"""Artifact of a confirmed trial: the raw times behind its latencies, `times_npz`."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BoardTimes:
    """What the boards of one pool measured of a file.

    Attributes:
        device: The pool, as the job knows it.
        times: Raw times in the store.
        readings: Of them.
    """

    device: DeviceSpec
    times: Digest
    readings: Sequence[Reading]


def with_boards(
    artifacts: Mapping[str, Digest], boards: Sequence[BoardTimes], store: ArtifactStore
) -> dict[str, Digest]:
    """Return a trial's artifacts with what boards measured in them.

    The checkpoint's report and README.md get a part of their own for each pool, apart from what
    the server measured; the raw times are joined with the server's. A trial that kept neither
    is left as it is.

    Raises:
        BlobMissing: A file is gone from the store.
        CheckpointInvalid: The checkpoint is no readable one.
        TimesInvalid: A board's raw times are none.
    """
    found = dict(artifacts)
    if TIMES_ROLE in found:
        archive = store.get(found[TIMES_ROLE])
        for board in boards:
            archive = extended(archive, board.device.name, read_times(store.get(board.times)))
        found[TIMES_ROLE] = store.put(archive)
    if CHECKPOINT_ROLE in found:
        files = unzip(store.get(found[CHECKPOINT_ROLE]))
        card = read_card(files)
        macs = next((row.change for row in card.metrics if row.metric == "macs"), None)
        rows = tuple(_row(board, None if macs is None else macs.value) for board in boards)
        said = [
            f"{board.device.name}: {reading.warning}"
            for board in boards
            for reading in board.readings
            if reading.warning
        ]
        warnings = tuple(dict.fromkeys([*card.warnings, *said]))
        files = with_card(files, dataclasses.replace(card, boards=rows, warnings=warnings))
        found[CHECKPOINT_ROLE] = store.put(zip_bytes(files))
        found[REPORT_ROLE] = store.put(files[REPORT])
    return found


def _row(board: BoardTimes, macs_ratio: float | None) -> BoardRow:
    device = board.device
    return BoardRow(
        device=device.name,
        runtime=device.runtime,
        threads=device.threads,
        fingerprint=device_digest(device),
        hardware=dict(device.hardware),
        times=board.times,
        metrics=tuple(metric_row(reading, macs_ratio=macs_ratio) for reading in board.readings),
    )
