from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from core_model.batch import Sample
from core_model.build import build

QUESTION = "Is there any defect in this picture?"


def sample(index: int, side: int = 56, *, category: str = "tile", kind: str = "", turns: tuple = ()) -> Sample:
    """Odd ones are defective: a brighter square at a place of their own. The conversation's length varies."""
    generator = torch.Generator().manual_seed(index)
    image = torch.rand(3, side, side, generator=generator) * 0.5
    mask = torch.zeros(1, side, side)
    defective = index % 2 == 1
    if defective:
        top = 4 * (index % 8)
        mask[:, top : top + 12, 10:26] = 1
        image = image + 0.5 * mask
    place = "top left" if index % 4 == 1 else "center of the picture"
    answer = f"Yes, there is a defect at the {place}." if defective else "No, there is no defect in the picture."
    return Sample(
        id=f"s{index}",
        category=category,
        image=image,
        mask=mask,
        is_defective=defective,
        turns=turns or ((QUESTION, answer),),
        kind=kind or ("square" if defective else "good"),
    )


@pytest.fixture
def samples() -> Callable[..., list[Sample]]:
    return lambda count, **options: [sample(index, **options) for index in range(count)]


@pytest.fixture
def tiny() -> torch.nn.Module:
    return build("tiny", seed=3)
