from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from compression.cost import CostTable
from compression.decisions import Decision, Quantize
from compression.errors import NotCertified
from compression.export import export_onnx
from compression.primitives.quantize_graph import Calibration, GraphQuantization
from compression.site import MODEL_SITE, Site
from compression.survey import survey
from compression.surveyed import Survey
from tests.builders import SHAPE, FlattenVgg, seeded
from tests.contracts.primitive import PrimitiveContract


@pytest.fixture(scope="module")
def surveyed() -> Survey:
    return survey(seeded(FlattenVgg), SHAPE)


@pytest.fixture(scope="module")
def graph() -> bytes:
    return export_onnx(seeded(FlattenVgg), SHAPE)


class TestGraphQuantization(PrimitiveContract):
    @pytest.fixture
    def primitive(self) -> GraphQuantization:
        return GraphQuantization()

    @pytest.fixture
    def site(self, surveyed: Survey) -> Site:
        return surveyed.sites[-1]

    @pytest.fixture
    def other_site(self, surveyed: Survey) -> Site:
        return surveyed.sites[0]

    @pytest.fixture
    def costs(self, surveyed: Survey) -> CostTable:
        return surveyed.costs

    @pytest.fixture
    def subject_and_context(self, graph: bytes) -> tuple[bytes, Any, Mapping[str, Decision]]:
        inputs = np.random.default_rng(0).normal(size=(16, *SHAPE)).astype(np.float32)
        return graph, Calibration(inputs=inputs), {MODEL_SITE: Quantize()}

    def content(self, subject: Any) -> object:
        assert isinstance(subject, bytes)
        return subject

    def test_verification_finds_a_graph_that_lost_the_signal(self, graph: bytes) -> None:
        inputs = np.random.default_rng(0).normal(size=(16, *SHAPE)).astype(np.float32)
        # Calibrated on nearly nothing, every activation is clipped.
        narrow = Calibration(inputs=inputs * np.float32(1e-4))
        after, _ = GraphQuantization().apply(graph, {MODEL_SITE: Quantize()}, narrow)
        with pytest.raises(NotCertified, match="noise has power"):
            GraphQuantization().verify(graph, after, Calibration(inputs=inputs))

    def test_verification_finds_a_graph_that_did_not_shrink(self, graph: bytes) -> None:
        record = Calibration(inputs=np.zeros((1, *SHAPE), np.float32))
        with pytest.raises(NotCertified, match=f"{len(graph)} bytes"):
            GraphQuantization().verify(graph, graph, record)
