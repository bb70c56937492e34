"""A job that names a device on which INT8 files do not run is not searched for integers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from compression.artifact import ModelArtifact
from compression.survey import survey
from search.device import LOCAL_DEVICES, DeviceSpec
from search.measurement import Measurement
from service.api.schemas.jobs import JobCreate
from service.data_fit import DatasetFacts
from service.errors import SpecInvalid
from service.job_spec import Materials, build_job_spec, left_out
from service.settings import Settings
from tests.workers_tests import small_net
from workers.job import DatasetArtifact

SHAPE = (1, 8, 8)
DEVICES = (*LOCAL_DEVICES, DeviceSpec(name="local/torch", runtime="torch"))


@pytest.fixture(scope="module")
def materials() -> Materials:
    with torch.random.fork_rng(devices=[]):
        model = small_net.build()
    artifact = ModelArtifact(
        weights=None, format="python", architecture="small_net", input_shape=SHAPE, num_classes=10
    )
    return Materials(
        model=artifact,
        survey=survey(model, SHAPE),
        num_classes=10,
        dataset=DatasetArtifact(data=None, format="builtin", name="digits"),
        facts=DatasetFacts(image_shape=SHAPE, num_classes=10, labelled=True, images={}),
        baseline=Measurement(()),
        devices={device.name: device for device in DEVICES},
    )


def request(device: str, allow: tuple[str, ...] = ("prune_channels", "quantize")) -> JobCreate:
    latency: dict[str, Any] = {"metric": "latency_ms", "at_most": 1.0, "device": device}
    return JobCreate.model_validate(
        {
            "model_id": "mdl_1",
            "dataset_id": "dst_1",
            "objectives": [{"metric": "top1"}],
            "constraints": [latency],
            "methods": {"allow": list(allow)},
            "budget": {"trials": 4},
        }
    )


def test_integers_are_left_out_and_the_dry_run_says_why(materials: Materials) -> None:
    note = "method 'quantize' is left out: INT8 files do not run on local/torch"
    assert left_out(request("local/torch"), materials) == (note,)
    spec = build_job_spec(request("local/torch"), materials, Settings(), "job_1")
    assert spec.methods.allow == ("prune_channels",)


def test_devices_with_integer_kernels_keep_them(materials: Materials) -> None:
    assert left_out(request("local/onnxruntime"), materials) == ()
    spec = build_job_spec(request("local/onnxruntime"), materials, Settings(), "job_1")
    assert "quantize" in spec.methods.allow


def test_a_job_of_integers_alone_is_refused_there(materials: Materials) -> None:
    with pytest.raises(SpecInvalid, match="INT8 files do not run on local/torch"):
        build_job_spec(request("local/torch", ("quantize",)), materials, Settings(), "job_1")
