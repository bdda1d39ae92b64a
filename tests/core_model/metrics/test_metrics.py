"""The figures against scikit-learn, torchmetrics and a brute-force AUPRO, and what they say where undefined."""

import time
import tracemalloc

import numpy as np
import pytest
from scipy import ndimage
from sklearn import metrics as sk

from core_model.metrics import evaluate, judge, places_in
from core_model.metrics import maps as pixel_maps
from core_model.metrics.maps import _codes, pixel_figures
from core_model.metrics.ranking import Tally, auroc, f1_max


def entry(
    index, *, defective, score, side=16, category="tile", kind=None, rng=None, answer="No, fine.", dtype=np.float16
):
    rng = rng or np.random.default_rng(index)
    mask = np.zeros((side, side), bool)
    if defective:
        mask[2:5, 3:7] = True
        mask[10, 10] = True
    return {
        "id": f"{category}/{index}",
        "category": category,
        "kind": kind or ("hole" if defective else "good"),
        "is_defective": defective,
        "place": "top left" if defective else "",
        "score": score,
        "map": (rng.random((side, side)) + 0.3 * mask).astype(dtype),
        "mask": mask,
        "answer": answer,
    }


def some(count=12, **options):
    rng = np.random.default_rng(5)
    return [entry(i, defective=i % 3 == 0, score=float(rng.random()), rng=rng, **options) for i in range(count)]


@pytest.fixture(params=["counted by code", "sorted"])
def either_way(request, monkeypatch):
    """Float16 maps, whatever their size, by each of the two ways."""
    monkeypatch.setattr(pixel_maps, "SMALL", 0 if request.param == "counted by code" else 2**40)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("levels", [3, 10, 10_000])
def test_auroc_and_f1_equal_scikit_learn_with_ties(seed, levels):
    rng = np.random.default_rng(seed)
    labels = rng.random(200) < 0.3
    scores = np.floor((rng.random(200) + 0.3 * labels) * levels)
    tally = Tally.of(scores, labels)
    assert auroc(tally).value == pytest.approx(sk.roc_auc_score(labels, scores), abs=1e-12)
    precision, recall, _ = sk.precision_recall_curve(labels, scores)
    best = np.max(2 * precision * recall / np.maximum(precision + recall, 1e-300))
    assert f1_max(tally).value == pytest.approx(best, abs=1e-12)


def test_auroc_equals_torchmetrics():
    torch = pytest.importorskip("torch")
    classification = pytest.importorskip("torchmetrics.functional.classification")
    rng = np.random.default_rng(1)
    labels = rng.random(500) < 0.2
    scores = np.round(rng.random(500), 1)
    theirs = classification.binary_auroc(torch.tensor(scores), torch.tensor(labels.astype(int)))
    assert auroc(Tally.of(scores, labels)).value == pytest.approx(float(theirs), abs=1e-6)


def brute_force_pro(maps, masks, limit):
    """AUPRO from its definition: overlap region by region at each threshold; shares no code with the product."""
    thresholds = np.unique(np.concatenate([each.ravel() for each in maps]))[::-1]
    rates, overlaps = [0.0], [0.0]
    for threshold in thresholds:
        alarms = sum(((each >= threshold) & ~mask).sum() for each, mask in zip(maps, masks, strict=True))
        good = sum((~mask).sum() for mask in masks)
        regions = []
        for each, mask in zip(maps, masks, strict=True):
            labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
            regions += [(each[labels == k] >= threshold).mean() for k in range(1, count + 1)]
        rates.append(alarms / good)
        overlaps.append(np.mean(regions))
    grid = np.linspace(0, limit, 200_001)
    return np.trapezoid(np.interp(grid, rates, overlaps), grid) / limit


@pytest.mark.parametrize(("seed", "digits"), [(0, 1), (1, 2), (2, 8), (3, 8)])
def test_pixel_figures_equal_their_definitions(either_way, seed, digits):
    rng = np.random.default_rng(seed)
    entries = []
    for index in range(5):
        mask = ndimage.gaussian_filter(rng.random((20, 20)), 1.5) > 0.54 if index else np.zeros((20, 20), bool)
        values = np.round(ndimage.gaussian_filter(rng.random((20, 20)), 1.0) + 0.03 * mask, digits)
        entries.append({"map": values.astype(np.float16), "mask": mask, "kind": "hole" if index else "good"})
    maps = [each["map"].astype(np.float64) for each in entries]
    masks = [each["mask"] for each in entries]
    figures, of_kind = pixel_figures(entries)
    flat, truth = np.concatenate([m.ravel() for m in maps]), np.concatenate([m.ravel() for m in masks])
    assert figures["pixel_auroc"].value == pytest.approx(sk.roc_auc_score(truth, flat), abs=1e-12)
    inside_flat, inside_truth = flat[400:], truth[400:]  # the first picture is good
    assert figures["pixel_auroc_defective"].value == pytest.approx(
        sk.roc_auc_score(inside_truth, inside_flat), abs=1e-12
    )
    assert of_kind["hole"]["pixel_auroc_defective"] == figures["pixel_auroc_defective"]
    assert of_kind["good"]["pixel_auroc"].value is None
    each = [sk.roc_auc_score(mask.ravel(), one.ravel()) for one, mask in zip(maps[1:], masks[1:], strict=True)]
    assert figures["pixel_auroc_per_image"].value == pytest.approx(np.mean(each), abs=1e-12)
    assert figures["aupro"].value == pytest.approx(brute_force_pro(maps, masks, 0.3), abs=2e-5)
    in_float32, _ = pixel_figures([{**e, "map": e["map"].astype(np.float32)} for e in entries])
    assert {k: v.value for k, v in in_float32.items()} == pytest.approx({k: v.value for k, v in figures.items()})


def test_float16_codes_keep_the_order_of_all_finite_values(either_way):
    values = np.arange(2**16, dtype=np.uint16).view(np.float16)
    values = values[np.isfinite(values)]
    codes, _ = _codes([values.reshape(1, -1)])
    order = np.argsort(values, kind="stable")
    assert (
        np.sign(np.diff(values[order].astype(np.float32))) == np.sign(np.diff(next(iter(codes))[0][order].astype(int)))
    ).all()


def test_one_class_gives_none_with_a_reason_not_a_number():
    figures = evaluate([entry(i, defective=False, score=float(i)) for i in range(4)])
    assert figures["mean"]["image_auroc"] is None
    assert figures["mean"]["pixel_auroc"] is None
    assert figures["mean"]["aupro"] is None
    assert figures["mean"]["place_accuracy"] is None
    assert "only one kind" in figures["undefined"]["tile: image_auroc"]
    assert figures["mean"]["answer_accuracy"] == 1.0


def test_scores_that_are_not_finite_are_said_and_not_ranked():
    entries = some()
    entries[3]["score"] = float("nan")
    entries[4]["map"] = np.full_like(entries[4]["map"], np.inf)
    figures = evaluate(entries)
    assert figures["mean"]["image_auroc"] is None
    assert figures["mean"]["pixel_auroc"] is None
    assert any("not finite" in warning for warning in figures["warnings"])


def test_repeats_are_dropped_and_order_does_not_matter():
    entries = some()
    once = evaluate(entries)
    again = evaluate([*entries[::-1], *entries[:5]])
    assert again["repeats_dropped"] == 5
    assert again["count"] == 12
    assert again["mean"] == once["mean"]


def test_mean_is_over_categories_where_the_figure_is_defined():
    entries = some() + [entry(i, defective=False, score=0.1, category="plate") for i in range(3)]
    figures = evaluate(entries)
    assert figures["categories"]["plate"]["image_auroc"] is None
    assert figures["mean"]["image_auroc"] == figures["categories"]["tile"]["image_auroc"]
    assert figures["mean"]["answer_accuracy"] == pytest.approx(
        (figures["categories"]["tile"]["answer_accuracy"] + 1) / 2
    )


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("Yes, at the top.", "yes"),
        (" no", "no"),
        ("NO.", "no"),
        ("'Yes'", "yes"),
        ("Nothing is wrong", "unusable"),
        ("Not at all", "unusable"),
        ("There is no defect", "unusable"),
        ("yesterday", "unusable"),
        ("", "unusable"),
        ("\x00\x00", "unusable"),
    ],
)
def test_judging_reads_the_first_word(answer, verdict):
    assert judge(answer) == verdict


@pytest.mark.parametrize(
    ("answer", "places"),
    [
        ("Yes, at the top left of the picture.", ("top left",)),
        ("at the Upper-Left and at the centre", ("top left", "center")),
        ("bottom center, then right", ("bottom", "right")),
        ("on the center left side", ("left",)),
        ("stop, it is rightly brighter", ()),
        ("", ()),
    ],
)
def test_places_are_read_from_the_text(answer, places):
    assert places_in(answer) == places


def test_places_name_the_cell_first():
    entries = some()
    for each, answer in zip(
        entries, ["Yes, at the top left.", "Yes, at the bottom and the top left."] * 6, strict=True
    ):
        each["answer"] = answer
    figures = evaluate(entries)["mean"]
    assert figures["place_accuracy"] == 0.5  # defective are 0, 3, 6, 9: two of each answer
    assert figures["place_chance"] == 1.0


def test_unusable_answers_are_counted_wrong_and_said_loudly():
    figures = evaluate(some(answer="The tile."))
    assert figures["mean"]["answer_accuracy"] == 0.0
    assert figures["mean"]["unusable_answers"] == 12
    assert any("every one of the 12 answers is unusable" in warning for warning in figures["warnings"])
    assert not evaluate(some(answer=None))["warnings"]
    assert evaluate(some(answer=None))["mean"]["answer_accuracy"] is None


def test_a_constant_answer_is_said():
    assert any("every answer is Yes" in warning for warning in evaluate(some(answer="Yes."))["warnings"])


def test_median_control_warns_where_brightness_alone_separates():
    entries = some()
    for each in entries:
        each["map"] = (each["map"].astype(np.float32) + 2.0 * each["is_defective"]).astype(np.float16)
        each["score"] = float(each["map"].max())
    figures = evaluate(entries)
    assert figures["mean"]["image_auroc"] == figures["mean"]["image_auroc_median"] == 1.0
    assert figures["mean"]["pixel_auroc_defective"] < 0.9
    assert any("median of the map alone" in warning for warning in figures["warnings"])


@pytest.mark.slow
def test_two_thousand_pictures_stay_lean():
    rng = np.random.default_rng(0)
    noise = rng.random((224, 224)).astype(np.float16)
    entries = []
    for index in range(2000):
        mask = np.zeros((224, 224), bool)
        mask[index % 200 : index % 200 + 20, 50:80] = index % 2
        each = entry(index, defective=bool(index % 2), score=float(rng.random()))
        entries.append({**each, "map": np.roll(noise, index, 0), "mask": mask})
    tracemalloc.start()
    begin = time.process_time()
    evaluate(entries)
    seconds, peak = time.process_time() - begin, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.0e9, f"{peak / 1e6:.0f} MB beside the maps"
    assert seconds < 120
