"""What a worker hands over to boards."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest

from compression.artifact import Digest
from search.device import DeviceSpec
from search.measurement import Measured
from search.objective import Constraint
from search.trial import Fidelity
from tests.workers_tests.small_job import SMALL_JOB, context_in, widths, work
from workers.context import JobContext
from workers.device_agent import sandbox
from workers.device_agent.order import Order
from workers.errors import DeviceUnknown
from workers.evaluate import evaluate
from workers.remote_timing import ROLE

BOARD = DeviceSpec(name="board/kitchen", runtime="onnxruntime", place="agent")


def bounded(context: JobContext, board: DeviceSpec = BOARD) -> JobContext:
    """Return the context of the job with bounds on a board."""
    bounds = tuple(
        Constraint(metric=metric, at_most=1e9, device=board.name, statistic="p50")
        for metric in ("latency_ms", "load_ms")
    )
    context.spec = dataclasses.replace(
        SMALL_JOB, constraints=bounds, devices=(*SMALL_JOB.devices, board)
    )
    return context


def test_files_probe_and_terms_are_handed_over(tmp_path: Path) -> None:
    context = bounded(context_in(tmp_path))
    finished = evaluate(work(widths(inner=2), Fidelity.PROXY), context, lambda _: None)
    assert isinstance(finished.outcome, Measured)
    # The board's times are the board's: nothing was timed here.
    assert "time" not in finished.seconds
    document = json.loads(context.store.get(finished.artifacts[ROLE]))
    assert document["metrics"] == {"board/kitchen": ["load_ms"]}
    assert (document["compare"], document["seed"]) == ("values", 3)
    parts = {name: context.store.get(Digest(digest)) for name, digest in document["parts"].items()}
    assert parts["onnxruntime.baseline"] == context.dense_onnx
    assert len(parts["onnxruntime.candidate"]) < len(context.dense_onnx)
    with np.load(io.BytesIO(parts["probe"])) as probe:
        assert probe["inputs"].shape == (64, 1, 8, 8)
        assert probe["expected"].shape == (64, 10)
    order = Order(
        id="",
        attempt="",
        device=BOARD,
        files={},
        compare=document["compare"],
        seed=document["seed"],
        width=document["width"],
        max_seconds=document["max_seconds"],
        lease_s=1.0,
    )
    assert sandbox.check(order, parts["onnxruntime.candidate"], parts["probe"]) is None
    assert sandbox.check(order, parts["onnxruntime.baseline"], parts["probe"]) is not None


def test_the_dense_model_is_handed_over_as_its_own_baseline(tmp_path: Path) -> None:
    context = bounded(context_in(tmp_path))
    finished = evaluate(work(widths(), Fidelity.PROXY), context, lambda _: None)
    parts = json.loads(context.store.get(finished.artifacts[ROLE]))["parts"]
    assert parts["onnxruntime.candidate"] == parts["onnxruntime.baseline"]


def test_a_job_without_boards_hands_nothing_over(tmp_path: Path) -> None:
    finished = evaluate(work(widths(), Fidelity.PROXY), context_in(tmp_path), lambda _: None)
    assert ROLE not in finished.artifacts


def test_files_that_cannot_be_built_here_are_said(tmp_path: Path) -> None:
    board = dataclasses.replace(BOARD, runtime="abacus")
    context = bounded(context_in(tmp_path), board)
    with pytest.raises((DeviceUnknown, KeyError)):
        evaluate(work(widths(inner=2), Fidelity.PROXY), context, lambda _: None)
