"""RAPL counters in a written powercap tree: wrap-around, which zones count, what is not measured."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness.instruments.rapl import Rapl


def zone(root: Path, name: str, kind: str, energy: int, most: int | None = 262_143_328_850) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{kind}\n")
    (folder / "energy_uj").write_text(f"{energy}\n")
    if most is not None:
        (folder / "max_energy_range_uj").write_text(f"{most}\n")
    return folder / "energy_uj"


def test_packages_are_added_up_and_zones_within_and_around_them_are_not(tmp_path: Path) -> None:
    counters = [zone(tmp_path, f"intel-rapl:{i}", f"package-{i}", 5_000_000) for i in range(2)]
    core = zone(tmp_path, "intel-rapl:0:0", "core", 0)
    psys = zone(tmp_path, "intel-rapl:2", "psys", 0)
    zone(tmp_path, "intel-rapl-mmio:0", "package-0", 0)
    (tmp_path / "intel-rapl").mkdir()
    rapl = Rapl(tmp_path)
    assert rapl.joules() == 0
    counters[0].write_text("8000000\n")
    counters[1].write_text("5500000\n")
    core.write_text("9000000\n")
    psys.write_text("9000000\n")
    assert rapl.joules() == pytest.approx(3.5)


def test_a_counter_that_began_anew_goes_on(tmp_path: Path) -> None:
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 262_000_000_000)
    rapl = Rapl(tmp_path)
    counter.write_text("100000000")  # 143.3 J to the end, 100 J from the beginning
    assert rapl.joules() == pytest.approx(243.32885)
    counter.write_text("50000000")
    assert rapl.joules() == pytest.approx(243.32885 + 262_143.32885 - 50)


def test_an_unknown_range_is_not_guessed(tmp_path: Path) -> None:
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 1_000_000, most=None)
    rapl = Rapl(tmp_path)
    counter.write_text("2000000")
    assert rapl.joules() == pytest.approx(1.0)
    counter.write_text("500000")
    assert rapl.joules() is None
    assert "began anew" in rapl.missing


def test_no_sensor_is_none_and_says_so(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "absent"):
        rapl = Rapl(root)
        assert rapl.joules() is None
        assert rapl.missing == "it has no RAPL counter"


def test_a_package_that_cannot_be_read_makes_the_sum_unknown(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 1)
    zone(tmp_path, "intel-rapl:1", "package-1", 1).write_text("")
    rapl = Rapl(tmp_path)
    assert rapl.joules() is None
    assert "root" in rapl.missing


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_counters_of_root_only(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 1).chmod(0)
    assert Rapl(tmp_path).joules() is None
