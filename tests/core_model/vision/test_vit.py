"""Our vision transformer against transformers' Dinov2Model."""

from __future__ import annotations

import pytest
import torch

from core_model.errors import ModelError
from core_model.vision.encoder import Encoder, ViTTrunk
from core_model.vision.vit import VisionTransformer, ViTConfig

CONFIG = ViTConfig(width=32, layers=3, heads=4, patch=7, grid=5, mlp_ratio=2)


@pytest.fixture
def vit() -> VisionTransformer:
    model = VisionTransformer(CONFIG).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
    return model


@pytest.mark.parametrize("side", [35, 56])
def test_equals_transformers_dinov2(vit: VisionTransformer, side: int) -> None:
    """At the trained grid, and at another where positions are resampled."""
    from transformers import Dinov2Config, Dinov2Model

    reference = Dinov2Model(
        Dinov2Config(
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            mlp_ratio=2,
            image_size=35,
            patch_size=7,
            layer_norm_eps=1e-6,
        )
    ).eval()
    ours = vit.state_dict()
    theirs = {}
    for name in reference.state_dict():
        if name == "embeddings.mask_token":
            theirs[name] = reference.state_dict()[name]
        elif name.startswith("encoder.layer"):
            index = name.split(".")[2]
            kind = name.rsplit(".", 1)[1]
            block = f"blocks.{index}"
            attention = {"q": 0, "k": 1, "v": 2}
            part = next(
                (p for p in attention if f"{p}_proj" in name or {"q": "query", "k": "key", "v": "value"}[p] in name),
                None,
            )
            if part is not None:
                theirs[name] = ours[f"{block}.qkv.{kind}"].chunk(3)[attention[part]]
            elif "layer_scale" in name:
                theirs[name] = ours[f"{block}.scale{name.split('layer_scale')[1][0]}"]
            else:
                middle = name.split(".", 3)[3].rsplit(".", 1)[0]
                theirs[name] = ours[f"{block}.{middle.split('.')[-1] if 'attention' not in middle else 'out'}.{kind}"]
        else:
            new = {
                "embeddings.cls_token": "class_token",
                "embeddings.position_embeddings": "positions",
                "embeddings.patch_embeddings.projection.weight": "patch_embedding.weight",
                "embeddings.patch_embeddings.projection.bias": "patch_embedding.bias",
                "layernorm.weight": "norm.weight",
                "layernorm.bias": "norm.bias",
            }[name]
            theirs[name] = ours[new]
    reference.load_state_dict(theirs)
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        tapped, last = vit(pixels, (0, 2))
        out = reference(pixels, output_hidden_states=True)
    torch.testing.assert_close(last, out.last_hidden_state, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(tapped[0], out.hidden_states[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(tapped[1], out.hidden_states[3], rtol=1e-4, atol=1e-4)


def test_encoder_gives_tokens_without_the_class_token_and_no_gradient(vit: VisionTransformer) -> None:
    encoder = Encoder(ViTTrunk(vit, (0, 2)))
    features = encoder(torch.rand(2, 3, 56, 56, requires_grad=True))
    assert [tuple(t.shape) for t in features.tokens] == [(2, 64, 32)] * 2
    assert features.grids == ((8, 8), (8, 8))
    assert features.pooled.shape == (2, 32)
    assert not features.pooled.requires_grad


def test_encoder_refuses_a_size_that_does_not_fit(vit: VisionTransformer) -> None:
    with pytest.raises(ModelError, match="multiple of 7, such as 49 or 56"):
        Encoder(ViTTrunk(vit, (0,)))(torch.rand(1, 3, 50, 50))


def test_taps_outside_the_encoder_are_refused(vit: VisionTransformer) -> None:
    with pytest.raises(ModelError, match="blocks 0 to 2"):
        ViTTrunk(vit, (0, 3))


def test_per_image_normalization_removes_exposure(vit: VisionTransformer) -> None:
    encoder = Encoder(ViTTrunk(vit, (1,)), per_image=True)
    image = torch.rand(1, 3, 35, 35)
    darker = 0.2 + 0.5 * image
    torch.testing.assert_close(encoder(image).tokens[0], encoder(darker).tokens[0], rtol=1e-3, atol=1e-3)
    plain = Encoder(ViTTrunk(vit, (1,)))
    assert not torch.allclose(plain(image).tokens[0], plain(darker).tokens[0], rtol=1e-2, atol=1e-2)
