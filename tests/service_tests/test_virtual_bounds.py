"""Estimates may be bounded; they are no objective."""

from __future__ import annotations

import pytest

from search.virtual_target import VIRTUAL_TARGETS
from service.api.schemas.jobs import ObjectiveIn
from service.device_book import DeviceBook
from service.errors import SpecInvalid
from service.job_spec import check_objective

BOOK = DeviceBook({})


def test_virtual_targets_are_listed_as_devices() -> None:
    assert set(VIRTUAL_TARGETS) <= set(BOOK)
    assert all(BOOK[name].place == "virtual" for name in VIRTUAL_TARGETS)


def test_an_estimate_is_turned_down_as_an_objective() -> None:
    wanted = ObjectiveIn(metric="latency_ms", device="virtual/cortex-m7")
    with pytest.raises(SpecInvalid) as refused:
        check_objective(wanted, BOOK)
    (fault,) = refused.value.faults
    assert fault.pointer == "/objective/device"
    assert "gives estimates" in fault.message
