"""The whole model: contract with the engines, gradients, caches, conversations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from core_model.build import build
from core_model.errors import ModelError


def gradients(model, batches: list) -> dict[str, torch.Tensor]:
    """Gradient of the mean over `batches` of the batches' losses."""
    model.zero_grad()
    for batch in batches:
        (model(batch)["loss"] / len(batches)).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def test_losses_are_zero_dimensional_fp32_and_add_up(tiny, samples) -> None:
    losses = tiny(tiny.collate(samples(4)))
    assert set(losses) == {"loss", "ce", "focal", "dice"}
    for value in losses.values():
        assert value.shape == ()
        assert value.dtype == torch.float32
        assert torch.isfinite(value)
    assert losses["loss"].item() == pytest.approx(sum(losses[k].item() for k in ("ce", "focal", "dice")), rel=1e-6)


@pytest.mark.parametrize("split", [[(0, 2), (2, 4)], [(0, 1), (1, 2), (2, 3), (3, 4)]])
def test_any_split_of_a_batch_gives_the_same_loss_and_gradient(tiny, samples, split) -> None:
    everything = samples(4)
    whole = tiny.collate(everything)
    parts = [tiny.collate(everything[a:b]) for a, b in split]
    assert len({part.token_ids.shape[1] for part in parts}) > 1  # the padding differs
    mean = sum(tiny(part)["loss"].item() for part in parts) / len(parts)
    assert mean == pytest.approx(tiny(whole)["loss"].item(), rel=1e-6)
    full, pieces = gradients(tiny, [whole]), gradients(tiny, parts)
    for name, gradient in full.items():
        torch.testing.assert_close(pieces[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_bytes_and_floats_of_the_same_pictures_give_the_same_loss_and_gradient(tiny, samples) -> None:
    """Pictures and masks travel as bytes; what the model computes must not show it, not even in the last bit."""
    rounded = [
        replace(sample, image=(sample.image * 255).round().byte(), mask=sample.mask.byte()) for sample in samples(4)
    ]
    as_floats = [
        replace(sample, image=sample.image.numpy().astype(np.float32) / np.float32(255), mask=sample.mask.float())
        for sample in rounded
    ]
    as_floats = [replace(sample, image=torch.from_numpy(sample.image)) for sample in as_floats]
    first, second = tiny.collate(rounded), tiny.collate(as_floats)
    assert first.images.dtype == first.masks.dtype == torch.uint8
    assert {name: value.item() for name, value in tiny(first).items()} == {
        name: value.item() for name, value in tiny(second).items()
    }
    wanted = gradients(tiny, [second])
    assert all(torch.equal(gradient, wanted[name]) for name, gradient in gradients(tiny, [first]).items())


def test_every_trainable_parameter_has_a_gradient_and_no_frozen_one(tiny, samples) -> None:
    """DistributedDataParallel waits for ever for a parameter without gradient."""
    tiny(tiny.collate(samples(4)))["loss"].backward()
    for name, parameter in tiny.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name
        else:
            assert parameter.grad is None, name
            assert name.startswith(("encoder.", "language.")), name


def test_gradient_of_the_whole_model_against_finite_differences(tiny, samples) -> None:
    batch = tiny.collate(samples(3))
    directions = gradients(tiny, [batch])
    for name, parameter in tiny.named_parameters():
        if not parameter.requires_grad:
            continue
        direction = directions[name] / directions[name].norm()
        step = 3e-3 * max(parameter.detach().norm().item(), 0.1)
        with torch.no_grad():
            parameter.add_(step * direction)
            above = tiny(batch)["loss"].item()
            parameter.sub_(2 * step * direction)
            below = tiny(batch)["loss"].item()
            parameter.add_(step * direction)
        measured = (above - below) / (2 * step)
        assert measured == pytest.approx(directions[name].norm().item(), rel=0.1, abs=5e-4), name


def test_training_lowers_the_loss(tiny, samples) -> None:
    batch = tiny.collate(samples(8))
    optimizer = torch.optim.AdamW([p for p in tiny.parameters() if p.requires_grad], lr=3e-3)
    before = tiny(batch)
    for _ in range(25):
        optimizer.zero_grad()
        tiny(batch)["loss"].backward()
        optimizer.step()
    after = tiny(batch)
    assert after["loss"] < 0.7 * before["loss"]
    assert after["ce"] < before["ce"]
    assert after["focal"] < before["focal"]


def test_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = build("tiny", seed=7)
    state = torch.get_rng_state()
    torch.manual_seed(99)
    again = build("tiny", seed=7, overrides={"decoder_layers": "linear,residual"})
    other = build("tiny", seed=8)
    for name, tensor in first.trainable_state().items():
        assert torch.equal(tensor, again.trainable_state()[name]), name
    assert not torch.equal(first.decoder.text, other.decoder.text)
    assert torch.equal(first.encoder.trunk.vit.positions, other.encoder.trunk.vit.positions)  # frozen: always alike
    torch.manual_seed(1)
    build("tiny", seed=7)
    assert torch.equal(torch.get_rng_state(), state)  # building disturbs nobody's random numbers


def test_the_encoder_looks_once_a_step_and_once_for_map_and_answer(tiny, samples) -> None:
    looks = []
    tiny.encoder.trunk.register_forward_hook(lambda *_: looks.append(1))
    batch = tiny.collate(samples(2))
    tiny(batch)
    assert len(looks) == 1
    tiny.anomaly_maps(batch.images, batch.categories)
    tiny.answer(batch.images, batch.categories, ["Where?"] * 2, max_new_tokens=2)
    assert len(looks) == 2
    batch.images.add_(0.1)  # other pixels in the same tensor are another picture
    tiny.anomaly_maps(batch.images, batch.categories)
    assert len(looks) == 3


def test_text_is_encoded_once_a_category(samples) -> None:
    model = build("tiny", overrides={"text": "language", "text_width": 64})
    mixed = samples(2) + samples(2, category="metal_nut")
    model.prepare_text(["tile"])
    for _ in range(3):
        model(model.collate(mixed))["loss"].backward()
    assert model.text.encoded == 2
    pair = model.text(["tile"], torch.device("cpu"))[0]
    torch.testing.assert_close(pair.norm(dim=-1), torch.ones(2))
    assert (pair[0] @ pair[1]).item() < -0.99  # centred: normal and abnormal are opposite


def test_maps_and_scores(tiny, samples) -> None:
    batch = tiny.collate(samples(3))
    maps = tiny.anomaly_maps(batch.images, batch.categories)
    assert maps.shape == (3, 56, 56)
    assert maps.dtype == torch.float32
    assert tiny.scores(maps).shape == (3,)
    with pytest.raises(ModelError, match="max"):
        tiny.scores(maps, "best")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_frozen_parts_in_half_precision(tiny, samples, dtype: torch.dtype) -> None:
    batch = tiny.collate(samples(4))
    full = tiny(batch)
    tiny.set_frozen_dtype(dtype)
    assert {p.dtype for p in tiny.frozen_parameters().values()} == {dtype}
    assert {p.dtype for p in tiny.trainable_state().values()} == {torch.float32}
    with torch.autocast("cpu", dtype=dtype):
        half = tiny(batch)
    half["loss"].backward()
    assert half["loss"].dtype == torch.float32
    for name, value in full.items():
        assert half[name].item() == pytest.approx(value.item(), rel=0.03), name
    tiny.answer(batch.images, batch.categories, ["Where?"] * 4, max_new_tokens=2)


def test_half_model_without_autocast(tiny, samples) -> None:
    """An engine's native mode turns the whole model to bf16."""
    batch = tiny.collate(samples(4))
    full = tiny(batch)["loss"].item()
    tiny.to(torch.bfloat16)
    losses = tiny(batch)
    losses["loss"].backward()
    assert losses["loss"].item() == pytest.approx(full, rel=0.05)


def test_instructions_have_no_loss_on_the_map(tiny, samples) -> None:
    general = samples(2, kind="instruction", turns=(("Who are you?", "An inspector."),))
    losses = tiny(tiny.collate(general))
    assert losses["focal"] == 0
    assert losses["dice"] == 0
    assert losses["ce"] > 0
    mixed = tiny(tiny.collate([*samples(2), *general]))
    alone = tiny(tiny.collate(samples(2)))
    assert mixed["focal"].item() == pytest.approx(alone["focal"].item() / 2, rel=1e-5)


def test_trainable_state_goes_out_and_in(samples) -> None:
    source = build("tiny", seed=1, version="v3")
    batch = source.collate(samples(4))
    source(batch)["loss"].backward()  # moves BatchNorm's running statistics
    state = {name: tensor.clone() for name, tensor in source.trainable_state().items()}
    assert any("running_mean" in name for name in state)
    target = build("tiny", seed=2, version="v3")
    target.load_trainable_state(state)
    maps = [m.eval().anomaly_maps(batch.images, batch.categories) for m in (source, target)]
    assert torch.equal(*maps)
    with pytest.raises(ModelError, match="absent in the model"):
        build("tiny").load_trainable_state(state)


def test_detached_map_keeps_the_answers_loss_out_of_the_decoder(samples) -> None:
    losses = {"focal": 0.0, "dice": 0.0}
    reached = {}
    for detach in (False, True):
        model = build("tiny", overrides={"detach_map": detach, "losses": losses})
        model(model.collate(samples(2)))["loss"].backward()
        gradient = model.decoder.text.grad
        reached[detach] = gradient is not None and gradient.abs().max().item() > 0
    assert reached == {False: True, True: False}


def test_conversation_remembers_its_turns(tiny, samples) -> None:
    tiny.language.transformer.initialize(torch.Generator().manual_seed(9), std=0.4)
    (picture,) = samples(1)
    talk = tiny.chat(picture.image, "tile", max_new_tokens=6)
    first, second = talk.ask("Is it damaged?"), talk.ask("Where?")
    assert talk.turns == [("Is it damaged?", first), ("Where?", second)]
    images = picture.image[None]
    assert tiny.answer(images, ["tile"], ["Is it damaged?"], max_new_tokens=6) == [first]
    again = tiny.answer(images, ["tile"], ["Where?"], histories=[[("Is it damaged?", first)]], max_new_tokens=6)
    assert again == [second]


def test_looking_leaves_the_mode_and_the_statistics_alone(samples) -> None:
    model = build("tiny", version="v3").train()
    batch = model.collate(samples(4))
    before = model.decoder.adapters[0].steps[0].running_mean.clone()
    maps = [model.anomaly_maps(batch.images, batch.categories) for _ in range(2)]
    assert torch.equal(*maps)  # dropout is off
    assert torch.equal(model.decoder.adapters[0].steps[0].running_mean, before)
    assert model.decoder.training


def test_unequal_numbers_are_refused(tiny, samples) -> None:
    (picture,) = samples(1)
    with pytest.raises(ModelError, match="1 pictures, 1 categories, 2 questions"):
        tiny.answer(picture.image[None], ["tile"], ["a", "b"])


def test_activation_checkpointing_changes_no_gradient(tiny, samples) -> None:
    batch = tiny.collate(samples(2))
    plain = gradients(tiny, [batch])
    tiny.set_activation_checkpointing(True)
    for name, gradient in gradients(tiny, [batch]).items():
        torch.testing.assert_close(gradient, plain[name], rtol=0, atol=0, msg=name)


@pytest.mark.slow  # the import of peft
def test_lora_trains_with_the_rest(samples) -> None:
    pytest.importorskip("peft")
    model = build("tiny", overrides={"lora": 2}, seed=1)
    batch = model.collate(samples(2))
    plain = build("tiny", seed=1)
    assert model(batch)["loss"].item() == pytest.approx(plain(batch)["loss"].item(), rel=1e-6)  # B starts at 0
    model(batch)["loss"].backward()
    lora = {name: p for name, p in model.named_parameters() if "lora_" in name}
    assert len(lora) == 2 * 4 * 2
    assert all(p.requires_grad and p.grad is not None for p in lora.values())
    assert set(lora) <= set(model.trainable_state())
    assert model.describe()["trainable_parameters"] - plain.describe()["trainable_parameters"] == sum(
        p.numel() for p in lora.values()
    )
    model.set_frozen_dtype(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model(batch)["loss"]
    half.backward()
    assert half.item() == pytest.approx(plain(batch)["loss"].item(), rel=0.03)
    again = build("tiny", overrides={"lora": 2}, seed=1)
    for name, tensor in model.trainable_state().items():
        assert torch.equal(tensor, again.trainable_state()[name]), name


def test_mlp_projection(samples) -> None:
    model = build("tiny", overrides={"projection": "mlp"})
    model(model.collate(samples(2)))["loss"].backward()
    assert all(p.grad is not None for p in model.projection.parameters())
    with pytest.raises(ModelError, match="two_stage, mlp"):
        build("tiny", overrides={"projection": "one"})


def test_description_is_json(tiny) -> None:
    import json

    described = json.loads(json.dumps(tiny.describe()))
    assert described["spec"]["preset"] == "tiny"
    assert described["trainable_parameters"] == sum(p.numel() for p in tiny.parameters() if p.requires_grad)


def test_yes_probability_is_what_the_greedy_answer_follows(tiny, samples) -> None:
    pictures = torch.stack([sample.image for sample in samples(3)])
    names = [sample.category for sample in samples(3)]
    questions = ["Is it broken?", "Is there any defect in this picture at all?", "Well?"]
    together = tiny.yes_probability(pictures, names, questions)
    assert together.shape == (3,)
    assert ((together > 0) & (together < 1)).all()
    for row in range(3):  # padding of the shorter questions changes nothing
        alone = tiny.yes_probability(pictures[row : row + 1], names[row : row + 1], questions[row : row + 1])
        torch.testing.assert_close(alone[0], together[row], rtol=1e-4, atol=1e-5)
    # Push the logits of "Y" and "N" (the byte tokenizer's first differing tokens) and the probability follows.
    table = tiny.language.transformer.lm_head.weight
    with torch.no_grad():
        table[ord("Y")], table[ord("N")] = table[ord("N")].clone(), table[ord("Y")].clone()
    torch.testing.assert_close(tiny.yes_probability(pictures, names, questions), 1 - together, rtol=1e-3, atol=1e-4)
