"""A training step of a preset against a direct transcription of the study's way, in one run.

The study's code encodes the text prompts in every step, runs the image encoder once for the decoder and once more for
the language model's picture embedding, and asks transformers for the logits of every position. Here the text features
are computed once a category, the encoder runs once, and logits are computed where an answer is learned. Both ways start
from the same weights and give the same loss (checked before timing); they are timed in turn, A B A B.

    python -m harness.experiments.benchmarks.step_vs_direct --preset small --batch 4 --repeats 8

Needs a quiet machine: other work on the same cores widens the spread, though both ways suffer alike.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from core_model.anomalygpt.decoder import mean_map, to_image
from core_model.anomalygpt.losses import dice, focal
from core_model.anomalygpt.model import AnomalyGPT
from core_model.batch import Batch, Sample
from core_model.build import build
from core_model.language.dialogue_format import IGNORED
from harness.records.environment import environment
from harness.records.record_files import write_json

PARTS = ("text", "encoder", "logits")


class DirectStep(nn.Module):
    """The study's way over the same weights. slow: which of its three habits are kept (`PARTS`)."""

    def __init__(self, model: AnomalyGPT, slow: Sequence[str] = PARTS) -> None:
        super().__init__()
        self.model = model
        self.slow = tuple(slow)
        self.language_model = _transformers_llama(model) if "logits" in self.slow else None

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        model, side = self.model, batch.images.shape[-1]
        text = None
        if model.text is not None:
            if "text" in self.slow:
                text = torch.stack([model.text.of(category) for category in batch.categories])
            else:
                text = model.text(batch.categories, batch.images.device)
        features = model.encoder(batch.images)
        odds = to_image(model.decoder(features.tokens, features.grids, text), side)
        again = model.encoder(batch.images) if "encoder" in self.slow else features
        picture, prompts = model._prompts(again, mean_map(odds))
        if self.language_model is None:
            answer = model.language.answer_loss(picture, prompts, batch, model.loss_weights).mean()
        else:
            answer = self._answer_loss(picture, prompts, batch)
        return {"loss": answer + focal(odds, batch.masks).sum(1).mean() + dice(odds, batch.masks).sum(1).mean()}

    def _answer_loss(self, picture: Tensor, prompts: Tensor, batch: Batch) -> Tensor:
        embeddings = self.model.language.assemble(picture, prompts, batch.token_ids)
        prefix = embeddings.shape[1] - batch.token_ids.shape[1]
        assert self.language_model is not None
        ones = torch.ones(len(batch), prefix, dtype=torch.int64)
        places = torch.arange(batch.token_ids.shape[1])[None] < batch.lengths[:, None]
        mask = torch.cat((ones, places.long()), dim=1)
        logits = self.language_model(inputs_embeds=embeddings, attention_mask=mask, use_cache=False).logits
        shifted = logits[:, prefix - 1 : -1].float()
        losses = nn.functional.cross_entropy(
            shifted.transpose(1, 2), batch.labels, ignore_index=IGNORED, reduction="none"
        )
        learned = batch.labels != IGNORED
        return ((losses * learned).sum(1) / learned.sum(1)).mean()


def _transformers_llama(model: AnomalyGPT) -> nn.Module:
    """transformers' LlamaForCausalLM with the model's own (shared) tensors."""
    from transformers import LlamaConfig, LlamaForCausalLM

    ours = model.language.transformer
    config = ours.config
    with torch.device("meta"):
        theirs = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=config.vocab,
                hidden_size=config.width,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                num_key_value_heads=config.kv_heads,
                intermediate_size=config.mlp,
                rms_norm_eps=config.norm_eps,
                rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
                max_position_embeddings=config.max_positions,
                tie_word_embeddings=config.tied,
            )
        )
    theirs.load_state_dict(ours.state_dict(), assign=True)
    theirs.tie_weights()
    rotary = theirs.model.rotary_emb
    theirs.model.rotary_emb = type(rotary)(rotary.config)  # its buffer has no storage after the meta device
    return theirs.requires_grad_(False).eval()


def make_batch(model: AnomalyGPT, count: int) -> Batch:
    """`count` pictures of noise with a square defect in every second one."""
    samples = []
    for index in range(count):
        mask = torch.zeros(1, model.image_size, model.image_size)
        answer = "No, there is no defect in the picture."
        if index % 2:
            mask[:, 20:50, 20:50] = 1
            answer = "Yes, there is a defect at the top left of the picture."
        samples.append(
            Sample(
                id=str(index),
                category="magnetic tile",
                image=torch.rand(3, model.image_size, model.image_size),
                mask=mask,
                is_defective=bool(index % 2),
                turns=(("Is there any defect in this picture?", answer),),
            )
        )
    return model.collate(samples)


def step(module: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch) -> tuple[float, float]:
    """Seconds of forward, backward and optimizer: by the clock, and of processor time in this process."""
    wall, processor = time.perf_counter(), time.process_time()
    optimizer.zero_grad(set_to_none=True)
    module(batch)["loss"].backward()
    optimizer.step()
    return time.perf_counter() - wall, time.process_time() - processor


def compare(preset: str, batch_size: int, repeats: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Medians and quartiles in seconds of both ways, and of the direct way with one habit mended at a time; speed-up of
    each round by the clock and by processor time (which other work on the machine disturbs less)."""
    torch.manual_seed(0)
    model = build(preset, seed=0)
    assert isinstance(model, AnomalyGPT), f"preset {preset} has no direct way beside it"
    batch = make_batch(model, batch_size)
    ways: dict[str, nn.Module] = {"ours": model, "direct": DirectStep(model)}
    for part in PARTS:
        ways[f"direct, {part} mended"] = DirectStep(model, [other for other in PARTS if other != part])
    with torch.no_grad():
        losses = {name: way(batch)["loss"].item() for name, way in ways.items()}
    worst = max(abs(loss - losses["ours"]) / abs(losses["ours"]) for loss in losses.values())
    if worst > 1e-4:
        raise SystemExit(f"the two ways do not compute the same: losses {losses}")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    processor: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        for name, way in ways.items():
            wall, used = step(way, optimizer, batch)
            if repeat:  # the first round warms up
                seconds[name].append(wall)
                processor[name].append(used)
        say(f"round {repeat}: " + ", ".join(f"{name} {times[-1]:.2f}" for name, times in seconds.items() if times))
    result: dict[str, Any] = {
        "preset": preset,
        "batch": batch_size,
        "repeats": repeats,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "largest_relative_loss_difference": worst,
    }
    for name, times in seconds.items():
        low, middle, high = statistics.quantiles(times, n=4) if len(times) > 1 else times * 3
        used = statistics.median(processor[name])
        result[name] = {"median_s": middle, "q1_s": low, "q3_s": high, "processor_s": used}
    for name, by_way in (("speedup", seconds), ("processor_speedup", processor)):
        ratios = [slow / fast for slow, fast in zip(by_way["direct"], by_way["ours"], strict=True)]
        result[name] = {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}
    return result


def headline(record: Mapping[str, Any]) -> str:
    """The speed-up over the direct transcription."""
    faster = record["speedup"]
    return (
        f"A step of `{record['preset']}` is {faster['median']:.2f} times as fast as the direct transcription "
        f"({faster['low']:.2f} to {faster['high']:.2f} over {record['repeats']} rounds, interleaved)."
    )


def main() -> None:
    """Command line: prints a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="small")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=Path, help="Folder for step_vs_direct.json: results/benchmarks.")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    quiet = (lambda _text: None) if options.json else (lambda text: print(text, file=sys.stderr))
    result = compare(options.preset, options.batch, options.repeats, quiet)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        record = {"machine": environment()["cpu"], **result, "headline": headline(result)}
        write_json(options.out / "step_vs_direct.json", record)
    if options.json:
        print(json.dumps(result, indent=2))
        return
    for name, row in result.items():
        if isinstance(row, dict) and "median_s" in row:
            spread = f"({row['q1_s']:.3f} - {row['q3_s']:.3f})"
            print(f"{name:24s} {row['median_s']:.3f} s a step {spread}, {row['processor_s']:.3f} s of processor time")
    for name, what in (("speedup", "by the clock"), ("processor_speedup", "by processor time")):
        row = result[name]
        print(f"speed-up {what}: {row['median']:.2f} (rounds: {row['low']:.2f} - {row['high']:.2f})")


if __name__ == "__main__":
    main()
