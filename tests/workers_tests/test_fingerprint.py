"""What the device says of itself."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path

import pytest

from search.device import LOCAL_DEVICES
from workers.meters import fingerprint as module
from workers.meters.fingerprint import fingerprint

X86 = "processor : 0\nmodel name : Big CPU @ 2 GHz\nflags : fpu avx2 avx512_vnni amx_int8\n"
ARM = "processor : 0\nCPU implementer : 0x41\nCPU part : 0xd0c\nFeatures : fp asimd asimddp\n"


def hardware() -> dict[str, str]:
    return dict(fingerprint(LOCAL_DEVICES[0]).hardware)


def test_this_machine_is_described() -> None:
    device = fingerprint(LOCAL_DEVICES[0])
    seen = dict(device.hardware)
    assert device.name == LOCAL_DEVICES[0].name
    assert list(seen) == sorted(seen)
    assert seen["machine"] == platform.machine()
    assert int(seen["cores"]) >= 1
    assert seen["threads"] == "1"
    assert seen["onnxruntime"] == metadata.version("onnxruntime")
    assert fingerprint(device) == device


@pytest.mark.parametrize(
    ("text", "cpu", "flags"),
    [(X86, "Big CPU @ 2 GHz", "avx2 avx512_vnni amx_int8"), (ARM, "0x41 0xd0c", "asimd asimddp")],
)
def test_cpu_and_flags(
    text: str, cpu: str, flags: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    (tmp_path / "governor").write_text("performance\n")
    monkeypatch.setattr(module, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(module, "GOVERNOR", tmp_path / "governor")
    seen = hardware()
    assert (seen["cpu"], seen["flags"], seen["governor"]) == (cpu, flags, "performance")


def test_what_cannot_be_read_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CPUINFO", tmp_path / "absent")
    monkeypatch.setattr(module, "GOVERNOR", tmp_path / "absent")
    assert not {"cpu", "flags", "governor"} & set(hardware())
