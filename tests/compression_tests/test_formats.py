"""Weights files are told apart by their headers; whatever runs code is refused."""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import nn

from compression.errors import ModelRefused
from compression.models.formats import check_weights

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "b.bias": torch.ones(4)}
GOOD = save(STATE)


def torch_saved(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def raw_safetensors(header: dict[str, Any] | str, data: bytes) -> bytes:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(begin: int, end: int, **changes: Any) -> dict[str, Any]:
    fields = {"dtype": "F32", "shape": [(end - begin) // 4], "data_offsets": [begin, end]}
    return {**fields, **changes}


def scripted() -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), buffer)
    return buffer.getvalue()


def exported() -> bytes:
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),)), buffer)
    return buffer.getvalue()


def legacy() -> bytes:
    buffer = io.BytesIO()
    torch.save(STATE, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def deflated() -> bytes:
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(torch_saved(STATE))) as source,
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in source.namelist():
            target.writestr(name, source.read(name))
    return buffer.getvalue()


def zipped(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return buffer.getvalue()


def test_good_files_pass(tmp_path: Path) -> None:
    check_weights(GOOD, "safetensors")
    check_weights(torch_saved(STATE), "state_dict")
    check_weights(torch_saved({"state_dict": STATE, "epoch": 3}), "state_dict")
    for good in (GOOD, torch_saved(STATE)):
        check_weights(good, "python")
    path = tmp_path / "weights"
    path.write_bytes(GOOD)
    check_weights(path, "safetensors")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: b"", "is empty"),
        (lambda: b"<!DOCTYPE html><html>", "HTML"),
        (lambda: pickle.dumps({"a": 1}), "Python pickle"),
        (lambda: pickle.dumps({"a": 1}, protocol=2), "Python pickle"),
        (legacy, "legacy torch.save"),
        (scripted, "TorchScript"),
        (exported, "torch.export program"),
        (lambda: b"\x08\x0a\x12\x07pytorch\x1a\x032.9:\x10", "ONNX"),
        (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
        (lambda: b"\x89HDF\r\n\x1a\n" + bytes(64), "HDF5"),
        (lambda: zipped("x.npy"), "NumPy .npz"),
        (lambda: zipped("readme.txt"), "torch.save did not write"),
        (lambda: bytes(range(40, 120)), "no known format"),
        (lambda: torch_saved(STATE)[:-40], "truncated or damaged"),
    ],
)
@pytest.mark.parametrize("declared", ["safetensors", "state_dict", "python"])
def test_refused_whatever_is_declared(make: Callable[[], bytes], words: str, declared: str) -> None:
    with pytest.raises(ModelRefused, match=words):
        check_weights(make(), declared)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (GOOD[:-1], "truncated or damaged: tensor 'b.bias' ends at byte 40"),
        (GOOD[:30], "truncated: its header claims"),
        (GOOD + b"x", "1 bytes behind its last tensor"),
        (raw_safetensors({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)), "'a' and 'b'.*overlap"),
        (raw_safetensors({"a": entry(0, 8), "b": entry(12, 16)}, bytes(16)), "hole of 4 bytes"),
        (raw_safetensors({"a": entry(0, 8)}, bytes(4)), "ends at byte 8.*which has 4"),
        (raw_safetensors({"a": entry(8, 0, shape=[2])}, bytes(8)), "no \\[begin, end\\]"),
        (raw_safetensors({"a": entry(0, 8, shape=[3])}, bytes(8)), "needs 12 bytes.*span 8"),
        (raw_safetensors({"a": entry(0, 8, shape=[-2])}, bytes(8)), "list of counts"),
        (raw_safetensors({"a": entry(0, 8, dtype="F99")}, bytes(8)), "type 'F99'; accepted"),
        (raw_safetensors({"a": 1}, bytes(8)), "not an object"),
        (raw_safetensors({}, b""), "holds no tensors"),
        (raw_safetensors('{"a": {}, "a": {}}', b""), "names 'a' twice"),
        (raw_safetensors('{"a": ', b""), "not JSON"),
        ((1 << 31).to_bytes(8, "little") + b"{", "claims 2147483648 bytes; at most 100000000"),
        (torch_saved(STATE), "torch.save archive of tensors but was declared 'safetensors'"),
    ],
)
def test_damaged_safetensors(data: bytes, words: str) -> None:
    with pytest.raises(ModelRefused, match=words):
        check_weights(data, "safetensors")


def test_pickled_module_is_named() -> None:
    with pytest.raises(ModelRefused, match=r"pickled objects \(torch\.nn\.modules\.linear\.Linear"):
        check_weights(torch_saved(nn.Linear(2, 2)), "state_dict")


class Hostile:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (print, ("code ran",))


def test_hostile_pickle_is_refused_and_never_runs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ModelRefused, match=r"print"):
        check_weights(torch_saved({"a": Hostile()}), "state_dict")
    assert capsys.readouterr().out == ""


def test_other_mismatches() -> None:
    with pytest.raises(ModelRefused, match="is compressed"):
        check_weights(deflated(), "state_dict")
    with pytest.raises(ModelRefused, match="declare the format 'safetensors'"):
        check_weights(GOOD, "state_dict")
    with pytest.raises(ModelRefused, match="format is 'pickle'"):
        check_weights(GOOD, "pickle")
    with pytest.raises(ModelRefused, match="was declared 'onnx'"):
        check_weights(GOOD, "onnx")


def test_every_truncation_is_refused() -> None:
    for length in range(len(GOOD)):
        with pytest.raises(ModelRefused):
            check_weights(GOOD[:length], "safetensors")


def test_checks_load_no_torch() -> None:
    code = (
        "import sys, compression.models.formats, compression.models.names, "
        "compression.models.declaration, workers.datasets.check; "
        "loaded = [m for m in ('torch', 'ray', 'torchvision') if m in sys.modules]; "
        "sys.exit(', '.join(loaded) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
