"""Simulated defects: visible, masked where they changed the picture, on the object, reproducible; the solver."""

from collections import Counter
from dataclasses import replace
from functools import lru_cache

import cv2
import numpy as np
import pytest

from core_model.data import open_dataset
from core_model.data.defects import RECIPES, Canvas, simulate
from core_model.data.defects.foreground import foreground, has_ground
from core_model.data.defects.harmless import CHANGES
from core_model.data.defects.poisson import clone, solve
from core_model.data.defects.recipes import GENERATORS
from core_model.data.generated_sets import write_mvtec
from core_model.data.random_fields import field, perlin

SIDE = 96


@lru_cache(maxsize=200)
def surface(number, side=SIDE):
    rng = np.random.default_rng(number)
    grey = 120 + 30 * perlin(8, side, rng) * 2 + rng.normal(0, 8, (side, side))
    return np.clip(grey, 0, 255).astype(np.uint8)[..., None].repeat(3, axis=2)


def canvas(number=0, **changes):
    return Canvas(image=surface(number), donor=lambda: surface(number + 1000), **changes)


def drawn(name, count=12, **changes):
    """Edits of one generator that came to something."""
    edits = []
    for number in range(60):
        own = canvas(number, **changes)
        edit = GENERATORS[name](own, np.random.default_rng(number))
        if edit is not None and edit.mask.any():
            edits.append((own, edit))
        if len(edits) == count:
            break
    assert len(edits) == count, f"{name} draws too seldom"
    return edits


@pytest.mark.parametrize("name", GENERATORS)
def test_the_mask_tells_where_the_picture_changed(name):
    for own, edit in drawn(name):
        assert edit.image.dtype == edit.mask.dtype == np.uint8
        assert edit.image.shape == own.image.shape
        assert set(np.unique(edit.mask)) <= {0, 1}
        change = cv2.absdiff(own.image, edit.image).max(axis=2)
        assert change[edit.mask > 0].mean() > 2
        far = cv2.dilate(edit.mask, np.ones((9, 9), np.uint8)) == 0
        # What lies far from the mask may have been covered by its like, but not visibly changed.
        assert change[far].mean() < 1.0 if far.any() else True


@pytest.mark.parametrize("name", GENERATORS)
def test_a_draw_is_reproducible_and_leaves_its_input_alone(name):
    own = canvas(3)
    before = own.image.copy()
    first, second = (GENERATORS[name](own, np.random.default_rng(4)) for _ in range(2))
    assert np.array_equal(own.image, before)
    assert (first is None) == (second is None)
    if first is not None:
        assert np.array_equal(first.image, second.image)
        assert np.array_equal(first.mask, second.mask)


@pytest.mark.parametrize("name", GENERATORS)
def test_defects_stay_on_the_object_and_grey_stays_grey(name):
    disc = np.zeros((SIDE, SIDE), np.uint8)
    cv2.circle(disc, (48, 48), 30, 1, -1)
    for own, edit in drawn(name, 8, foreground=disc.astype(bool)):
        assert not edit.mask[cv2.dilate(disc, np.ones((7, 7), np.uint8)) == 0].any()
        change = cv2.absdiff(own.image, edit.image).max(axis=2)
        assert change[cv2.dilate(disc, np.ones((15, 15), np.uint8)) == 0].max() <= 12
        assert np.ptp(edit.image.astype(int), axis=2).max() <= 1


def test_solve_is_the_poisson_equation():
    """Against a dense solution of the same least-squares problem."""
    rng = np.random.default_rng(0)
    height, width = 7, 9
    target = rng.random((1, height, width)).astype(np.float32)
    across = rng.normal(size=(1, height, width - 1)).astype(np.float32)
    down = rng.normal(size=(1, height - 1, width)).astype(np.float32)
    inner = [(r, c) for r in range(1, height - 1) for c in range(1, width - 1)]
    index = {place: k for k, place in enumerate(inner)}
    rows, right = [], []
    for axis, gradient in ((1, across[0]), (0, down[0])):
        for (r, c), value in np.ndenumerate(gradient):
            ends = ((r, c, -1.0), (r, c + 1, 1.0)) if axis else ((r, c, -1.0), (r + 1, c, 1.0))
            equation, known = np.zeros(len(inner)), 0.0
            for y, x, sign in ends:
                if (y, x) in index:
                    equation[index[y, x]] += sign
                else:
                    known += sign * target[0, y, x]
            rows.append(equation)
            right.append(value - known)
    expected = np.linalg.lstsq(np.array(rows), np.array(right), rcond=None)[0]
    found = solve(target, across, down)[0, 1:-1, 1:-1].ravel()
    assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("mixed", "flag"), [(False, cv2.NORMAL_CLONE), (True, cv2.MIXED_CLONE)])
def test_clone_agrees_with_opencvs_seamless_clone(mixed, flag):
    target, source = surface(1, 64).copy(), surface(2, 40)
    target[..., 1] //= 2
    inside = np.zeros((40, 40), np.uint8)
    cv2.circle(inside, (20, 20), 15, 1, -1)
    theirs = cv2.seamlessClone(source, target, inside * 255, (32, 32), flag)
    ours = target.copy()
    ours[12:52, 12:52] = clone(target[12:52, 12:52], source, inside, mixed=mixed)
    # They solve on a box of their own choice and erode the mask: alike, not equal.
    assert np.abs(ours.astype(int) - theirs).mean() < 3.0
    assert np.corrcoef(ours[20:44, 20:44].ravel(), theirs[20:44, 20:44].ravel())[0, 1] > 0.9


def test_cloning_a_picture_into_itself_changes_nothing():
    target, inside = surface(1, 64), np.ones((64, 64), np.uint8)
    for mixed in (False, True):
        assert np.abs(clone(target, target, inside, mixed=mixed).astype(int) - target).max() <= 1


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_keep_their_frequencies_and_thresholds(name):
    recipe, counts = RECIPES[name], Counter()
    for number in range(240):
        own = canvas(number % 40)
        kind, edit = simulate(recipe, own, np.random.default_rng(number))
        counts[kind] += 1
        assert edit.mask.mean() >= recipe.smallest
        assert cv2.absdiff(own.image, edit.image).max(axis=2)[edit.mask > 0].mean() >= recipe.contrast - 1e-6
    total = sum(recipe.weights.values())
    for kind, weight in recipe.weights.items():
        expected = 240 * weight / total
        assert abs(counts[kind] - expected) < 4 * np.sqrt(expected) + 6, (kind, counts)


@pytest.mark.parametrize("level", [0, 128, 255])
def test_even_a_plain_picture_gets_a_visible_defect(level):
    plain = np.full((SIDE, SIDE, 3), level, np.uint8)
    for seed in range(20):
        own = Canvas(image=plain, donor=lambda: plain)
        _, edit = simulate(RECIPES["mixed"], own, np.random.default_rng(seed))
        assert edit.mask.sum() >= 4
        assert cv2.absdiff(plain, edit.image).max(axis=2)[edit.mask > 0].mean() >= 8


@pytest.mark.parametrize("name", CHANGES)
def test_harmless_changes_are_mild(name):
    own = surface(5)
    outcomes = [CHANGES[name](own, np.random.default_rng(seed)) for seed in range(20)]
    assert all(outcome.shape == own.shape and outcome.dtype == np.uint8 for outcome in outcomes)
    changes = [cv2.absdiff(own, outcome) for outcome in outcomes]
    assert 0.02 < np.mean([change.mean() for change in changes]) < 25
    if name in ("pencil", "ring", "smudge"):  # faint marks: below what is called a defect everywhere
        assert 3 <= max(change.max() for change in changes) <= 21
    assert len({outcome.tobytes() for outcome in outcomes}) == 20


def test_noise_tiles_and_is_normalized():
    rng = np.random.default_rng(0)
    raw = perlin(4, 64, rng)
    inner = np.abs(np.diff(raw, axis=1)).max()
    assert np.abs(raw[:, 0] - raw[:, -1]).max() <= 1.5 * inner  # no seam
    pieces = [field(64, rng) for _ in range(30)]
    assert all(abs(piece.mean()) < 1e-3 and abs(piece.std() - 1) < 1e-3 for piece in pieces)
    assert field(64, rng, shape=(10, 20)).shape == (10, 20)


# -- where the object is --------------------------------------------------------------------------------


def screw(number, side=SIDE):
    """A bright bar, differently turned, on a dark plain ground."""
    image = np.random.default_rng(number).normal(30, 3, (side, side))
    corners = cv2.boxPoints(((side / 2, side / 2), (side * 0.6, side * 0.2), 37.0 * number))
    bar = np.zeros((side, side), np.uint8)
    cv2.fillPoly(bar, [corners.astype(np.int32)], 1)
    image = np.where(bar > 0, 150 + surface(number, side)[..., 0] * 0.3, image)
    return np.clip(image, 0, 255).astype(np.uint8)[..., None].repeat(3, axis=2), bar


def test_objects_on_a_plain_ground_are_found():
    for number in range(8):
        image, bar = screw(number)
        found = foreground(image)
        union = (found | (bar > 0)).sum()
        assert (found & (bar > 0)).sum() / union > 0.85


def test_surfaces_have_no_ground():
    assert not has_ground([surface(number) for number in range(8)])
    for category in ("brick", "grass", "gravel"):
        data = open_dataset("textures", split="train", image_size=96, seed=0, options={"categories": category})
        assert not has_ground([data._cache.image(position) for position in range(8)])


def test_defects_of_a_data_set_lie_on_its_objects(tmp_path):
    root = write_mvtec(tmp_path, categories=("screw",), train=8, size=(SIDE, SIDE))
    for number in range(8):
        cv2.imwrite(str(root / f"screw/train/good/{number:03d}.png"), screw(number)[0])

    def on_object(**options):
        options = {"defective_share": 1.0, **options}
        data = open_dataset(f"mvtec:{root}", split="train", image_size=SIDE, seed=0, options=options)
        shares = []
        for epoch in range(5):
            for number in range(8):
                mask = data.get(number, epoch).mask[0].numpy() > 0
                shares.append((mask & (screw(number)[1] > 0)).sum() / mask.sum())
        return np.mean(shares)

    assert on_object() > 0.9
    assert on_object(foreground=False) < 0.6


def test_cracks_are_thin_and_darker_than_the_surface():
    """Thinner than a patch of the encoder at any place, unlike a stain; darker, never brighter."""
    for own, edit in drawn("crack", 20):
        thickness = 2 * cv2.distanceTransform(edit.mask, cv2.DIST_L2, 5).max()
        assert thickness <= SIDE * 14 / 224
        inside = edit.mask > 0
        change = edit.image.astype(int)[inside] - own.image.astype(int)[inside]
        assert change.max() <= 1
        assert change.mean() < -4


def test_a_mirrored_picture_takes_its_object_along():
    disc = np.zeros((SIDE, SIDE), bool)
    disc[:40, :30] = True
    own = canvas(2, foreground=disc)
    recipe = replace(RECIPES["thorough"], harmless={})
    seen = set()
    for seed in range(30):
        found = recipe.disturbed(own, np.random.default_rng(seed))
        marked = np.where(found.foreground[..., None], found.image, 0)
        ways = [own.image * disc[..., None]]
        ways = [each[:: -1 if down else 1] for each in ways for down in (0, 1)]
        ways = [each[:, :: -1 if across else 1] for each in ways for across in (0, 1)]
        (way,) = [number for number, each in enumerate(ways) if np.array_equal(each, marked)]
        seen.add(way)
    assert seen == {0, 1, 2, 3}
    assert "mirror" not in RECIPES["realistic"].describe()
