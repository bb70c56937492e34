"""Energy by the processor's counter, on a made-up one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from search.device import LOCAL_DEVICES
from search.measurement import Reading
from tests.onnx_files import conv_net
from workers.meters.energy import (
    Domain,
    burst_mj,
    energy_counter,
    energy_readings,
    package_domains,
)

DEVICE = LOCAL_DEVICES[0]
RANGE_UJ = 262_143_328_850


def counter(root: Path, folder: str, name: str, value: int = 0, top: int = RANGE_UJ) -> Path:
    where = root / folder
    where.mkdir()
    (where / "name").write_text(f"{name}\n")
    (where / "max_energy_range_uj").write_text(f"{top}\n")
    (where / "energy_uj").write_text(f"{value}\n")
    return where / "energy_uj"


def spends(file: Path, uj: int, top: int = RANGE_UJ) -> Callable[[], None]:
    def run() -> None:
        file.write_text(str((int(file.read_text()) + uj) % (top + 1)))

    return run


def test_packages_are_counted_and_their_parts_are_not(tmp_path: Path) -> None:
    first = counter(tmp_path, "intel-rapl:0", "package-0")
    second = counter(tmp_path, "intel-rapl:1", "package-1")
    counter(tmp_path, "intel-rapl:0:0", "core")
    counter(tmp_path, "intel-rapl:2", "psys")
    (tmp_path / "intel-rapl").mkdir()
    assert [domain.file for domain in package_domains(tmp_path)] == [first, second]
    assert package_domains(tmp_path)[0].range_uj == RANGE_UJ
    assert energy_counter(tmp_path) == "rapl"


def test_nothing_is_invented_where_nothing_can_be_read(tmp_path: Path) -> None:
    assert package_domains(tmp_path / "absent") == ()
    assert package_domains(tmp_path) == ()
    counter(tmp_path, "intel-rapl:0", "package-0").unlink()
    assert package_domains(tmp_path) == ()
    assert energy_counter(tmp_path) is None
    assert energy_readings(conv_net(), conv_net(), DEVICE, seed=0, root=tmp_path) == ()


def test_energy_is_divided_by_the_calls(tmp_path: Path) -> None:
    file = counter(tmp_path, "intel-rapl:0", "package-0", 5)
    domains = package_domains(tmp_path)
    ticks = iter(range(100))
    spent = burst_mj(spends(file, 2500), domains, seconds=10, clock=lambda: float(next(ticks)))
    assert int(file.read_text()) == 5 + 10 * 2500
    assert spent == pytest.approx(2.5)
    assert burst_mj(spends(file, 800), domains, seconds=0.0) == pytest.approx(0.8)


def test_a_counter_that_starts_again_is_followed(tmp_path: Path) -> None:
    file = counter(tmp_path, "intel-rapl:0", "package-0", 990, top=999)
    domain = Domain(file=file, range_uj=999)
    assert burst_mj(spends(file, 30, 999), [domain], seconds=0.0) == pytest.approx(0.03)
    assert int(file.read_text()) == 20


def test_readings_are_of_blocks_beside_the_baseline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = counter(tmp_path, "intel-rapl:0", "package-0")

    def readings() -> tuple[Reading, ...]:
        nets = conv_net(4), conv_net(8)
        return energy_readings(*nets, DEVICE, seed=0, root=tmp_path, burst_s=0.0)

    # Standing still, the counter counts nothing.
    assert readings() == ()
    spend, read = spends(file, 3000), Domain.read_uj

    def moving(domain: Domain) -> int:
        spend()
        return read(domain)

    monkeypatch.setattr(Domain, "read_uj", moving)
    (reading,) = readings()
    assert (reading.metric, reading.unit, reading.n) == ("energy_mj", "mJ", 8)
    assert reading.value == pytest.approx(3.0)
    assert reading.ratio is not None
    assert reading.ratio.value == pytest.approx(1.0)
