"""Words, charts, prices and MFU: the small parts that every figure passes through."""

import math
from pathlib import Path
from typing import Any

import pytest

from harness.analysis.cost import Prices, cost_of
from harness.analysis.mfu import peak_flops, utilization, withdrawn
from harness.common import colors
from harness.common.formatting import DASH, duration, joined, mebibytes, number, plural
from harness.job.declaration import Job
from harness.records.run_record import RecordedRun
from tests.harness.made_runs import write_run


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1234.5, "1234"), (12.345, "12.3"), (0.012345, "0.0123"), (None, DASH), (math.nan, DASH)],
)
def test_numbers_have_three_digits(value: float | None, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.2, "4.2 s"), (42, "42 s"), (210, "3.5 min"), (20520, "5.7 h"), (181440, "2.1 d")]
)
def test_durations_are_in_deepspeed_chats_form(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_memory_and_lists() -> None:
    assert [mebibytes(v) for v in (0.5, 14.2, 800, 20480)] == ["0.50 MiB", "14 MiB", "800 MiB", "20.0 GiB"]
    assert joined(["a", "b", "c"]) == "a, b and c"
    assert plural(1, "run") == "1 run"


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


@pytest.mark.parametrize(("theme", "paper"), [("light", "#FFFFFF"), ("dark", "#14171A")])
def test_lines_stand_out_from_the_paper(theme: str, paper: str) -> None:
    """WCAG 2.1, 1.4.11: graphics need a contrast of at least 3:1."""
    for style in colors.styles([str(i) for i in range(8)]).values():
        light, dark = sorted((luminance(getattr(style, theme)), luminance(paper)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 3.0, style


def test_styles_differ_without_colour() -> None:
    styles = list(colors.styles([str(i) for i in range(8)]).values())
    assert len({style.marker for style in styles}) == 8
    assert len({style.dash for style in styles}) == 8


def test_cost_follows_the_price_of_the_machine(tmp_path: Path) -> None:
    """DeepSpeed-Chat's own table, at its price: 8x A100-80GB for 4.1 h cost 132 $, 64x for 7.5 h 1920 $."""
    place = {"gpus": {"devices": [{"index": 0, "name": "NVIDIA A100-SXM4-80GB"}], "driver": "1"}}
    run = RecordedRun(write_run(tmp_path / "s", Job(backend="ddp", slots=8, preset="tiny"), environment_changes=place))
    file = tmp_path / "prices.toml"
    file.write_text('[[machine]]\nname = "A100-SXM4-80GB"\nper_device_hour = 4.0\n')
    cost = cost_of(run, Prices.load(file))
    assert cost.money == pytest.approx(4.0 * 8 * cost.train_s / 3600)
    assert cost.epochs == pytest.approx(60 * 8 / 240)
    assert cost.money_per_epoch == pytest.approx(cost.money / 2)
    run.result["phases"]["train_s"] = 4.1 * 3600
    assert cost_of(run, Prices.load(file)).money == pytest.approx(132, rel=0.01)


def test_without_the_users_own_prices_nothing_costs_money(tmp_path: Path) -> None:
    place = {"gpus": {"devices": [{"index": 0, "name": "NVIDIA A100-SXM4-80GB"}], "driver": "1"}}
    run = RecordedRun(write_run(tmp_path / "s", Job(backend="ddp", slots=2, preset="tiny"), environment_changes=place))
    assert cost_of(run, Prices.load()).money is None


def test_a_resumed_run_costs_what_all_its_lives_took(tmp_path: Path) -> None:
    run = RecordedRun(write_run(tmp_path / "s", Job(backend="ddp", slots=2, preset="tiny")))
    whole = cost_of(run, Prices()).train_s
    run.result["phases"]["train_s"], run.result["resumed_at"] = 0.1, [50]
    cost = cost_of(run, Prices())
    assert cost.train_s == pytest.approx(whole, rel=0.05)
    assert cost.energy_kwh is None


def test_mfu_needs_a_known_peak() -> None:
    place = {"gpus": {"devices": [{"name": "NVIDIA H100 80GB HBM3"}]}}
    result = {"world_size": 2, "flops": {"useful": 1e12, "done": 1.5e12, "samples": 8}}

    def mfu(*run: Any, kind: str = "useful") -> float | None:
        return utilization(kind, *run)

    done = mfu({"precision": "bf16"}, result, place, 800.0, kind="done")
    assert done == pytest.approx(1.5 * 800e12 / (2 * 989.4e12))
    old = {"world_size": 2, "model": {"flops_per_sample": {"total": 1e12}}}
    assert mfu({"precision": "bf16"}, old, place, 800.0) is None
    assert withdrawn(old)
    assert not withdrawn(result)
    assert mfu({"precision": "bf16"}, result, place, 800.0) == pytest.approx(800e12 / (2 * 989.4e12))
    assert mfu({"precision": "bf16"}, result, {"gpus": {"devices": [{"name": "Unknown"}]}}, 800.0) is None
    assert mfu({"precision": "bf16"}, result, {"gpus": None}, 800.0) is None
    assert mfu({"precision": "bf16", "device": "cpu"}, result, place, 800.0) is None
    mixed = {"gpus": {"devices": [*place["gpus"]["devices"], {"name": "NVIDIA A10"}]}}
    assert mfu({"precision": "bf16"}, result, mixed, 800.0) is None


@pytest.mark.parametrize(
    ("name", "bf16", "fp32"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4e12, 66.9e12),
        ("NVIDIA H100 PCIe", 756e12, 51.2e12),
        ("NVIDIA H100 NVL", 835e12, 60e12),
        ("NVIDIA H200", 989.4e12, 66.9e12),
        ("NVIDIA H200 NVL", 835e12, 60e12),
        ("NVIDIA GH200 480GB", 989.4e12, 66.9e12),
        ("NVIDIA B200", 2250e12, 75e12),
        ("NVIDIA GB200", 2500e12, 80e12),
        ("NVIDIA A100-SXM4-80GB", 312e12, 19.5e12),
        ("NVIDIA A100-PCIE-40GB", 312e12, 19.5e12),
        ("NVIDIA A100 80GB PCIe", 312e12, 19.5e12),
        ("NVIDIA A10", 125e12, 31.2e12),
        ("NVIDIA A40", 149.7e12, 37.4e12),
        ("NVIDIA L4", 121e12, 30.3e12),
        ("NVIDIA L40", 181e12, 90.5e12),
        ("NVIDIA L40S", 362e12, 91.6e12),
        ("Tesla V100-SXM2-32GB", None, 15.7e12),
        ("Tesla V100-PCIE-16GB", None, 14e12),
        ("Tesla T4", None, 8.1e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12, 82.6e12),
    ],
)
def test_a_peak_belongs_to_one_card(name: str, bf16: float | None, fp32: float) -> None:
    assert peak_flops(name, "bf16") == bf16
    assert peak_flops(name, "fp32") == fp32


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "GRID A100-10C", "NVIDIA A100-SXM-64GB", "NVIDIA A100X", "NVIDIA A10G",
        "NVIDIA L20", "NVIDIA H20", "NVIDIA H800", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GeForce RTX 4090 D",
        "NVIDIA RTX A4000", "AMD Instinct MI300X", "NVIDIA H1000", "NVIDIA L400", "",
    ],
)  # fmt: skip
def test_an_unknown_card_has_no_peak_rather_than_a_wrong_one(name: str) -> None:
    assert peak_flops(name, "fp16") is None
