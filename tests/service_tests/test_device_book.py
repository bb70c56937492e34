"""Which devices constraints may name."""

from __future__ import annotations

import pytest

from search.virtual_target import PROFILES
from service.device_book import DeviceBook
from tests.service_tests.boards import DEVICE, spec
from workers.meters import RUNTIMES


@pytest.fixture
def book() -> DeviceBook:
    return DeviceBook({DEVICE: spec()}, cores=2)


def test_installed_runtimes_boards_and_virtual_targets_are_listed(book: DeviceBook) -> None:
    installed = {f"local/{name}" for name, entry in RUNTIMES.items() if entry.installed}
    assert "local/onnxruntime" in installed
    assert set(book) == installed | {DEVICE} | set(PROFILES)
    assert {book[name].place for name in book} == {"local", "agent", "virtual"}
    assert all(book[name].name == name for name in book)


def test_variants_of_local_devices_are_understood_within_the_cores(book: DeviceBook) -> None:
    variant = book["local/onnxruntime-2t-b32"]
    assert (variant.threads, variant.batch, variant.place) == (2, 32, "local")
    assert "local/onnxruntime-2t-b32" not in list(book)
    assert "local/onnxruntime-3t" not in book
    assert None not in book
    with pytest.raises(KeyError):
        book["local/onnxruntime-3t"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("local/onnxruntime-3t", "'local/onnxruntime-3t' has 3 threads; this server has 2 cores"),
        ("local/abacus", "Unknown runtime 'abacus'"),
        ("board/cellar", "No board of pool 'cellar' has ever registered"),
    ],
)
def test_a_name_of_the_right_form_that_is_no_device_is_explained(
    book: DeviceBook, name: str, reason: str
) -> None:
    assert name not in book
    assert reason in str(book.refusal(name))


def test_other_names_and_known_devices_need_no_explanation(book: DeviceBook) -> None:
    for name in ("kitchen", DEVICE, "local/onnxruntime", "local/onnxruntime-2t"):
        assert book.refusal(name) is None
