"""An encoder that looks at a picture in several sizes, and two trunks side by side."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from core_model.build import build
from core_model.errors import ModelError
from core_model.presets import spec
from core_model.pretrained.placement import Placement
from core_model.pretrained.registry import make_encoder


def pictures(count: int = 2, side: int = 56) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def test_looks_of_two_sizes_are_those_of_the_resampled_picture() -> None:
    plain, twice = build("tiny"), build("tiny", overrides={"encoder_sizes": "56,112"})
    images = pictures()
    small = plain.encoder(images)
    both = twice.encoder(images)
    assert both.grids == ((8, 8), (8, 8), (16, 16), (16, 16))
    assert twice.encoder.channels == (32,) * 4
    for one, other in zip(small.tokens, both.tokens, strict=False):
        torch.testing.assert_close(one, other)
    grown = F.interpolate(
        plain.encoder.normalize(images), size=(112, 112), mode="bicubic", align_corners=False, antialias=True
    )
    torch.testing.assert_close(plain.encoder.trunk(grown).tokens[1], both.tokens[3])
    torch.testing.assert_close(both.pooled, small.pooled)


def test_a_model_of_several_sizes_trains_and_its_flops_count_each(samples) -> None:
    model = build("tiny", overrides={"encoder_sizes": "56,112"})
    batch = model.collate(samples(2))
    model(batch)["loss"].backward()
    assert len(model.decoder.adapters) == 4
    shape = model.work.take().useful
    plain = build("tiny")
    assert model.flops(shape)["encoder"] > 4 * plain.flops(shape)["encoder"]
    assert model.anomaly_maps(batch.images, batch.categories).shape == (2, 56, 56)


def test_a_size_that_does_not_fit_is_refused_before_anything_is_built() -> None:
    with pytest.raises(ModelError, match="image size 60 does not fit the encoder: use a multiple of 7"):
        build("tiny", overrides={"encoder_sizes": "60"})


@pytest.mark.parametrize("per_image", [False, True])
def test_two_trunks_see_what_each_would_see_alone(per_image: bool) -> None:
    own = {"per_image_normalization": per_image}
    place = Placement(random=True)
    joined = make_encoder(spec("small", overrides={**own, "encoder": "vit-s14+efficientnet-lite0"}), place)
    vit = make_encoder(spec("small", overrides=own), place)
    conv = make_encoder(spec("lite", overrides=own), place)
    images = pictures(1, 224)
    found = joined(images)
    alone = (*vit(images).tokens, *conv(images).tokens)
    assert found.grids == (*((16, 16),) * 4, (28, 28), (14, 14))
    for one, other in zip(found.tokens, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.pooled, vit(images).pooled)
    with pytest.raises(ModelError, match="multiple of 224"):
        joined(pictures(1, 56))


def test_new_choices_leave_old_records_as_they_were() -> None:
    """What the record says of a model without them is what it always said: runs stay comparable."""
    from core_model.spec import to_dict

    assert not {"encoder_sizes", "second_taps", "pack_on_gpu"} & set(to_dict(spec("small")))
    assert to_dict(spec("small", overrides={"encoder_sizes": "448"}))["encoder_sizes"] == [448]
