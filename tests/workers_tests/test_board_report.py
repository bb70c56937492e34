"""A checkpoint's own report gets what boards measured, apart from what the server did."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from compression.artifact import Digest
from compression.checkpoint_files import unzip, with_card, zip_bytes
from compression.errors import CheckpointInvalid
from compression.model_card import ModelCard
from compression.readme import render_readme
from search.device import DeviceSpec
from tests.workers_tests.small_card import CARD, FILES
from workers.board_readings import board_readings
from workers.board_report import BoardTimes, with_boards
from workers.errors import BlobMissing
from workers.memory import device_digest
from workers.store import FolderStore

BOARD = DeviceSpec(
    name="board/kitchen",
    runtime="onnxruntime",
    threads=2,
    place="agent",
    hardware=(("cpu", "Cortex-A76"), ("cores", "4")),
)
GARAGE = dataclasses.replace(BOARD, name="board/garage", threads=1)


def npz(**arrays: object) -> bytes:
    out = io.BytesIO()
    np.savez(out, allow_pickle=False, **{name: np.array(v) for name, v in arrays.items()})
    return out.getvalue()


def arrays_of(archive: bytes) -> dict[str, list[float]]:
    with np.load(io.BytesIO(archive)) as found:
        return {name: np.ravel(found[name]).tolist() for name in found.files}


def board_times(store: FolderStore, device: DeviceSpec, scale: float, warning: str) -> BoardTimes:
    baseline = 1.0 + 0.01 * np.random.default_rng(0).random((8, 20))
    archive = npz(candidate_ms=scale * baseline, baseline_ms=baseline)
    said = {"metric": "latency_ms", "value": 1.0, "low": 1.0, "high": 1.0, "n": 8,
            "device": device.name, "statistic": "p50", "warning": warning}  # fmt: skip
    readings = board_readings(archive, [said], device, dense=False)
    return BoardTimes(device=device, times=store.put(archive), readings=readings)


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path)


@pytest.fixture
def boards(store: FolderStore) -> list[BoardTimes]:
    return [board_times(store, BOARD, 0.5, "hot"), board_times(store, GARAGE, 0.25, "loud")]


@pytest.fixture
def artifacts(store: FolderStore) -> Mapping[str, Digest]:
    files = with_card(FILES, CARD)
    return {
        "checkpoint": store.put(zip_bytes(files)),
        "report": store.put(files["report.json"]),
        "times": store.put(npz(**{"local/onnxruntime/candidate_ms": [1.0, 2.0]})),
        "onnx": store.put(b"graph"),
    }


def test_a_card_is_read_back_from_its_report() -> None:
    report = json.loads(with_card(FILES, CARD)["report.json"])
    again = ModelCard.from_json(report)
    assert again == CARD
    assert render_readme(again, {}) == render_readme(CARD, {})
    before = {key: value for key, value in report.items() if key != "boards"}
    assert ModelCard.from_json(before) == CARD
    with pytest.raises(CheckpointInvalid, match="version 7; this program reads 1"):
        ModelCard.from_json({**report, "version": 7})
    with pytest.raises(CheckpointInvalid, match="steps"):
        ModelCard.from_json({key: value for key, value in report.items() if key != "steps"})


def test_boards_get_a_part_of_their_own(
    store: FolderStore, artifacts: Mapping[str, Digest], boards: list[BoardTimes]
) -> None:
    found = with_boards(artifacts, boards, store)
    assert set(found) == set(artifacts)
    assert found["onnx"] == artifacts["onnx"]
    files = unzip(store.get(found["checkpoint"]))
    before = unzip(store.get(artifacts["checkpoint"]))
    assert set(files) == set(before)
    assert all(files[name] == before[name] for name in FILES)
    assert store.get(found["report"]) == files["report.json"]

    report, was = json.loads(files["report.json"]), json.loads(before["report.json"])
    unlike = {key for key in was if report[key] != was[key]}
    assert unlike == {"boards", "warnings"}
    assert report["warnings"] == [
        "The machine was busy.",
        "board/kitchen: hot",
        "board/garage: loud",
    ]
    for row, board, scale in zip(report["boards"], boards, (0.5, 0.25), strict=True):
        assert row["device"] == board.device.name
        assert row["fingerprint"] == device_digest(board.device)
        assert row["hardware"] == dict(board.device.hardware)
        assert hashlib.sha256(store.get(board.times)).hexdigest() == row["times"]
        latency = row["metrics"][0]
        assert latency["conditions"] == f"{board.device.name}, p50"
        assert latency["change"]["low"] <= latency["change"]["value"] <= latency["change"]["high"]
        assert latency["change"]["value"] == pytest.approx(scale)
        assert latency["macs_ratio"] == 0.5
        assert latency["baseline"]["value"] == pytest.approx(1.0, abs=0.02)

    results, _, rest = files["README.md"].decode().partition("## On boards")
    assert "board/" not in results.partition("## Results")[2]
    kitchen, _, garage = rest.partition("### board/garage")
    assert "onnxruntime, 2 threads; cores 4, cpu Cortex-A76" in kitchen
    assert device_digest(BOARD) in kitchen
    assert device_digest(GARAGE) in garage
    assert "board/kitchen" not in garage.partition("## Layers")[0]


def test_raw_times_are_joined_and_doing_it_again_changes_nothing(
    store: FolderStore, artifacts: Mapping[str, Digest], boards: list[BoardTimes]
) -> None:
    found = with_boards(artifacts, boards, store)
    arrays = arrays_of(store.get(found["times"]))
    assert arrays.pop("local/onnxruntime/candidate_ms") == [1.0, 2.0]
    for board in boards:
        for name, values in arrays_of(store.get(board.times)).items():
            assert arrays.pop(f"{board.device.name}/{name}") == values
    assert arrays == {}
    assert with_boards(artifacts, boards, store) == found
    # Even if what is amended was amended before.
    again = with_boards(found, boards, store)
    assert again == found


def test_what_has_no_report_is_left_alone(store: FolderStore, boards: list[BoardTimes]) -> None:
    assert with_boards({"onnx": Digest("a" * 64)}, boards, store) == {"onnx": "a" * 64}
    with pytest.raises(BlobMissing):
        with_boards({"checkpoint": Digest("a" * 64)}, boards, store)
    with pytest.raises(CheckpointInvalid, match="no readable archive"):
        with_boards({"checkpoint": store.put(b"PK")}, boards, store)
