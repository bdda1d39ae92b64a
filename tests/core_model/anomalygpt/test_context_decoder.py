from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from core_model.anomalygpt.context_decoder import ContextDecoder, make_decoder
from core_model.anomalygpt.decoder import ImageDecoder
from core_model.build import build
from core_model.errors import ModelError

GRIDS = ((8, 8), (4, 4))


def look(batch: int = 2) -> tuple:
    torch.manual_seed(0)
    tokens = tuple(torch.randn(batch, h * w, c) for (h, w), c in zip(GRIDS, (12, 20), strict=True))
    return tokens, GRIDS, F.normalize(torch.randn(batch, 2, 8), dim=-1)


def test_one_map_on_the_finest_grid_and_every_parameter_learns() -> None:
    tokens, grids, text = look()
    decoder = make_decoder((12, 20), 8, layers=("context", "dropout"), scale=20.0, learned_scale=True)
    assert isinstance(decoder, ContextDecoder)
    with torch.no_grad():
        for part in decoder.around:
            part.out.weight.normal_(0, 0.1)  # at the zeros they start with, what is before them gets no gradient yet
    (odds,) = decoder(tokens, grids, text)
    assert odds.shape == (2, 8, 8)
    assert odds.abs().max() <= 40.0 + 1e-4
    odds.square().sum().backward()
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_a_place_sees_its_surroundings_and_the_papers_head_does_not() -> None:
    """One patch changed: the context decoder's odds change at other places, the linear head's at that place alone."""
    tokens, grids, text = look(1)
    changed = (tokens[0].clone(), tokens[1])
    changed[0][0, 27] += 3.0

    def moved(decoder):
        before, after = (decoder.eval()(each, grids, text)[0].flatten() for each in (tokens, changed))
        return (before - after).abs() > 1e-5

    torch.manual_seed(1)
    context = ContextDecoder((12, 20), 8)
    with torch.no_grad():
        for part in context.around:
            part.out.weight.normal_(0, 0.2)
    assert moved(context).sum() > 20
    assert moved(ImageDecoder((12, 20), 8)).nonzero().flatten().tolist() == [27]


def test_a_whole_model_trains_with_it_and_others_are_refused(samples) -> None:
    model = build("tiny", seed=3, overrides={"decoder_layers": "context"})
    batch = model.collate(samples(4))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        out = model(batch)
        out["loss"].backward()
        optimizer.step()
        losses.append(float(out["dice"] + out["focal"]))
    assert losses[-1] < 0.9 * losses[0]
    assert model.flops(model.work.useful) is None  # not counted, and said so by None
    with pytest.raises(ModelError, match="only dropout can follow"):
        build("tiny", overrides={"decoder_layers": "context,batchnorm"})
