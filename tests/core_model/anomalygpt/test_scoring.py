from __future__ import annotations

import torch

from core_model.anomalygpt.scoring import RULES, score


def test_rules_on_a_map_with_one_hot_spot() -> None:
    maps = torch.full((1, 20, 20), 0.2)
    maps[0, 0, :4] = torch.tensor([1.0, 0.8, 0.6, 0.4])
    expected = {
        "max": 1.0,
        "top1": 0.7,  # 1 % of 400 pixels are 4
        "max_minus_median": 0.8,
        "top1_minus_median": 0.5,
        "mean": 0.2 + (0.8 + 0.6 + 0.4 + 0.2) / 400,
        "median": 0.2,
    }
    assert set(expected) == set(RULES)
    for rule, value in expected.items():
        torch.testing.assert_close(score(maps, rule), torch.tensor([value]))


def test_control_is_blind_to_a_small_defect() -> None:
    maps = torch.rand(1, 50, 50)
    marked = maps.clone()
    marked[0, :2, :2] = 5.0
    assert (score(marked, "median") - score(maps, "median")).abs() < 0.01
    assert score(marked, "top1") > score(maps, "top1") + 0.5
