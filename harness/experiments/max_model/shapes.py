"""The family of LLaMA-type shapes that `harness experiment max-model` searches: one shape for each count of a geometric
grid.

Grid point k aims at ``1e6 x ratio**k`` parameters. Its shape keeps LLaMA's proportions (Touvron et al. 2023, table 2):
about 128 times as wide as it has layers, heads 128 wide, a gated MLP about 8/3 as wide as the model, whose width is
what is tuned to meet the aim. The real count, not the aim, is what is reported.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from core_model.language.llama import parameter_count
from core_model.transformer_lm import TransformerSpec

_FIRST = 1e6  # parameters at grid point 0; points below it have negative numbers
_ASPECT = 128


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One model of the family."""

    spec: TransformerSpec

    @cached_property
    def parameters(self) -> int:
        return parameter_count(self.spec.config())

    @property
    def linear(self) -> int:
        """Weights of linear layers: those that autocast casts (the embedding and the norms are not)."""
        spec = self.spec
        return self.parameters - spec.vocab * spec.width - (2 * spec.layers + 1) * spec.width

    @property
    def layer(self) -> int:
        """Parameters of one layer."""
        spec = self.spec
        return (self.parameters - 2 * spec.vocab * spec.width - spec.width) // spec.layers

    @property
    def name(self) -> str:
        """Layers x width, with the MLP's width."""
        return f"{self.spec.layers} x {self.spec.width} ({self.spec.mlp})"

    def overrides(self) -> dict[str, Any]:
        """Fields by which a job's preset llama-600m gets this shape."""
        return {name: value for name, value in asdict(self.spec).items() if name != "image_size"}


@dataclass(frozen=True, kw_only=True)
class Grid:
    """ratio: between neighbouring points (1 + resolution). vocab, length: of every shape (tokens a sample)."""

    ratio: float = 1.05
    vocab: int = 32_000
    length: int = 256

    def point(self, parameters: float) -> int:
        """The highest grid point that aims at no more than `parameters`."""
        return math.floor(math.log(max(parameters, 1.0) / _FIRST) / math.log(self.ratio) + 1e-9)

    @property
    def lowest(self) -> int:
        """The lowest point with a shape of its own: below it the family ends, one narrow layer."""
        return self.point(self._smallest().parameters) + 1

    def aim(self, point: int) -> float:
        """Parameters that grid point `point` aims at."""
        return _FIRST * self.ratio**point

    def shape(self, point: int) -> Shape:
        """The shape of a grid point; counts grow with the point."""
        aim = self.aim(point)
        step = 128 if aim >= 3e8 else 32
        shapes = [self._shape(width, aim) for width in range(step, 16_384 + 1, step)]
        good = [shape for shape in shapes if shape is not None]
        if not good:
            return self._smallest()
        return min(good, key=lambda shape: abs(math.log(shape.spec.width / shape.spec.layers / _ASPECT)))

    def _smallest(self) -> Shape:
        spec = TransformerSpec(width=32, layers=1, heads=2, kv_heads=2, mlp=64, vocab=self.vocab, length=self.length)
        return Shape(spec=spec)

    def _shape(self, width: int, aim: float) -> Shape | None:
        """The shape of `width` that meets the aim with an MLP between 2 and 3.5 times as wide; None where none does."""
        room = aim - (2 * self.vocab + 1) * width
        layers = max(1, round(room / (12 * width * width))) if room > 0 else 1
        unit = 64 if aim >= 3e8 else 8
        mlp = round(((room / layers - 2 * width) - 4 * width * width) / (3 * width) / unit) * unit
        if not 2 * width <= mlp <= 3.5 * width:
            return None
        heads = width // 128 if width % 128 == 0 else width // 16
        return Shape(
            spec=TransformerSpec(
                width=width, layers=layers, heads=heads, kv_heads=heads, mlp=mlp, vocab=self.vocab, length=self.length
            )
        )
