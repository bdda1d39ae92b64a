"""Which defects are simulated how often: recipes by name, and `simulate`, which draws one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import cv2
import numpy as np

from core_model.data.defects import cracks, cutpaste, damage, marks, poisson, surface, textures
from core_model.data.defects.base import Canvas, Edit, Generator, bounding_box, difference
from core_model.data.defects.harmless import CHANGES
from core_model.data.errors import DataError

GENERATORS: Mapping[str, Generator] = MappingProxyType(
    {
        "poisson": poisson.poisson,
        "cutpaste": cutpaste.cutpaste,
        "scar": cutpaste.scar,
        "perlin": textures.perlin,
        "scratch": marks.scratch,
        "spot": marks.spot,
        "fissure": damage.fissure,
        "pit": damage.pit,
        "chip": damage.chip,
        "stain": surface.stain,
        "wear": surface.wear,
        "crack": cracks.crack,
        "uneven": surface.uneven,
    }
)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """weights: generator name -> relative frequency. smallest: least defective pixels, as a share of the picture.
    contrast: least mean change over the defect, in grey levels of 255. harmless: name of a change that is no defect
    (`harmless.CHANGES`) -> its chance; good and defective pictures get it alike. mirror: chance of a mirrored picture,
    left to right and top to bottom each, which makes four good pictures of one."""

    name: str
    weights: Mapping[str, float]
    smallest: float = 4e-4
    contrast: float = 12.0
    harmless: Mapping[str, float] = field(default_factory=dict)
    mirror: float = 0.0

    def disturbed(self, canvas: Canvas, rng: np.random.Generator) -> Canvas:
        """The canvas after the harmless changes that chance picks."""
        if self.mirror:
            canvas = _mirrored(canvas, *(rng.random(2) < self.mirror))
        image = canvas.image
        for name, chance in self.harmless.items():
            if rng.random() < chance:
                image = CHANGES[name](image, rng)
        return canvas if image is canvas.image else replace(canvas, image=image)

    def describe(self) -> dict[str, object]:
        return {
            "name": self.name,
            "weights": dict(self.weights),
            "smallest": self.smallest,
            "contrast": self.contrast,
            "harmless": dict(self.harmless),
            **({"mirror": self.mirror} if self.mirror else {}),  # as before there was one: records stay comparable
        }


RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        recipe.name: recipe
        for recipe in (
            Recipe(name="poisson", weights={"poisson": 1.0}),
            Recipe(name="cutpaste", weights={"cutpaste": 1.0, "scar": 1.0}),
            Recipe(name="perlin", weights={"perlin": 1.0}),
            Recipe(name="marks", weights={"scratch": 1.0, "spot": 1.0}),
            # The paper's own: Poisson editing after NSA, and CutPaste.
            Recipe(name="anomalygpt", weights={"poisson": 2.0, "cutpaste": 0.5, "scar": 0.5}),
            Recipe(
                name="mixed",
                weights={"poisson": 2.0, "cutpaste": 0.5, "scar": 0.5, "perlin": 2.0, "scratch": 1.0, "spot": 1.0},
            ),
            # Shaped after the kinds of damage that industrial data sets list, with the light and focus of photographs
            # varied in good and defective pictures alike.
            Recipe(
                name="realistic",
                weights={
                    "fissure": 2.0,
                    "pit": 1.5,
                    "chip": 1.5,
                    "stain": 1.5,
                    "wear": 1.0,
                    "poisson": 1.5,
                    "scratch": 0.5,
                    "perlin": 1.0,
                },
                contrast=8.0,
                harmless={"exposure": 0.5, "light": 0.5, "focus": 0.3, "sensor": 0.3},
            ),
            # As realistic, with thin cracks and unevenness, kinds in balance, and faint marks that are no defects.
            Recipe(
                name="thorough",
                weights={
                    "crack": 3.0,
                    "fissure": 1.0,
                    "pit": 1.5,
                    "chip": 1.5,
                    "stain": 1.0,
                    "wear": 1.0,
                    "uneven": 1.0,
                    "poisson": 1.0,
                    "perlin": 1.0,
                },
                smallest=3e-4,
                contrast=8.0,
                harmless={
                    "exposure": 0.5,
                    "light": 0.5,
                    "focus": 0.3,
                    "sensor": 0.3,
                    "pencil": 0.15,
                    "ring": 0.1,
                    "smudge": 0.2,
                },
                mirror=0.5,
            ),
        )
    }
)
DEFAULT = "mixed"
TRIES, TRIES_EACH = 15, 5


def recipe_named(name: str) -> Recipe:
    """The recipe `name`; "" and ``default`` mean `DEFAULT`. Raises DataError for an unknown name."""
    name = DEFAULT if name in ("", "default") else name
    if name not in RECIPES:
        raise DataError(f"unknown defect simulation '{name}': choose one of default, {', '.join(sorted(RECIPES))}")
    return RECIPES[name]


def simulate(recipe: Recipe, canvas: Canvas, rng: np.random.Generator) -> tuple[str, Edit]:
    """(generator's name, edit): one visible defect. A try that is too small or too faint is drawn again by the same
    generator, so that the recipe's frequencies hold; only when it keeps failing is another generator chosen."""
    names = list(recipe.weights)
    shares = np.cumsum([recipe.weights[name] for name in names])
    least = recipe.smallest * canvas.side**2
    name = ""
    for attempt in range(TRIES):
        if attempt % TRIES_EACH == 0:
            name = names[int(np.searchsorted(shares, rng.random() * shares[-1], side="right"))]
        edit = GENERATORS[name](canvas, rng)
        if edit is not None and _is_visible(canvas, edit, least, recipe.contrast):
            return name, edit
    return "spot", _last_resort(canvas, rng)


def _mirrored(canvas: Canvas, down: bool, across: bool) -> Canvas:
    """The canvas with rows and columns in reverse order, image and object alike."""
    steps = (slice(None, None, -1 if down else 1), slice(None, None, -1 if across else 1))
    ground = canvas.foreground
    image = np.ascontiguousarray(canvas.image[steps])
    return replace(canvas, image=image, foreground=None if ground is None else np.ascontiguousarray(ground[steps]))


def _is_visible(canvas: Canvas, edit: Edit, least: float, contrast: float) -> bool:
    count = cv2.countNonZero(edit.mask)
    if count < max(1.0, least):
        return False
    box = bounding_box(edit.mask)
    change = difference(canvas.image[box], edit.image[box])
    return cv2.mean(change, mask=edit.mask[box])[0] >= contrast


def _last_resort(canvas: Canvas, rng: np.random.Generator) -> Edit:
    """An inverted disc, visible on any surface: reached about once in ten thousand pictures."""
    row, column = canvas.point(rng)
    rows, columns = np.ogrid[: canvas.side, : canvas.side]
    inside = (rows - row) ** 2 + (columns - column) ** 2 <= max(2.0, 0.04 * canvas.side) ** 2
    image = canvas.image.copy()
    image[inside] = np.where(image[inside] > 127, image[inside] - 90, image[inside] + 90)
    return Edit(image=image, mask=inside.astype(np.uint8))
