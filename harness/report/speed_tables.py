"""Tables of the report on speed: differences between engines, what a setting changes, every run."""

from __future__ import annotations

from harness.analysis import judged_speed
from harness.analysis.comparison import Comparison
from harness.analysis.intervals import ALIKE
from harness.common.formatting import (
    DASH,
    change,
    duration,
    fixed,
    milliseconds,
    number,
    percent,
    plural,
)
from harness.common.text_table import Table


def difference_table(comparison: Comparison) -> Table | None:
    """Every paired difference of speed with its interval."""
    rows = [
        [
            f"{pair.difference.b} against {pair.difference.a}",
            str(pair.workers),
            change(pair.difference.value),
            pair.difference.bounds(),
            str(pair.difference.pairs),
            pair.difference.word,
        ]
        for pair in judged_speed.differences(comparison)
    ]
    if not rows:
        return None
    duels = comparison.duels is not None
    return Table(
        id="differences",
        title="Differences in speed",
        columns=["throughput of", "workers", "difference", "95 % interval", "duels" if duels else "pairs", "shown"],
        rows=rows,
        note=f"{_OF_DUELS if duels else _OF_PAIRS} {_WORDS}",
    )


_OF_DUELS = (
    "All engines of a duel live at the same time and take turns in blocks of a few steps, so a busy machine hits all "
    "alike. Interval: Student's t over the duels."
)
_OF_PAIRS = (
    "Paired by repeat; the engines ran interleaved, so a drift of the machine cancels. Three or more engines "
    "with repeats: one additive model of engine and repeat, intervals by Tukey and Kramer; each two by their own "
    "pairs where the engines scatter unequally. Two: Student's t over the pairs; one pair has no interval. The "
    "intervals of one number of workers hold all together."
)
_WORDS = (
    f"real: zero is outside the interval; alike: zero is inside and all of it within {ALIKE:.0%}; undecided: "
    "everything else."
)


def variant_table(comparison: Comparison) -> Table | None:
    """What a setting changes inside an engine (`harness.analysis.setting_effects`)."""
    shown = judged_speed.variants(comparison)
    several = len({found.nodes for found in shown}) > 1
    rows = [
        [
            f"{found.engine}: {found.title}",
            str(found.workers) + (f" on {plural(found.nodes, 'node')}" if several else ""),
            change(found.speed.value),
            found.speed.bounds(),
            DASH if found.memory is None else change(found.memory),
            DASH if found.loss is None else f"{found.loss:+.3f}",
            str(found.speed.pairs),
            found.speed.word,
        ]
        for found in shown
    ]
    if not rows:
        return None
    basis, how = ("pairs", "paired by repeat") if comparison.duels is None else ("duels", "in the same duels")
    return Table(
        id="variants",
        title="What a setting changes",
        columns=["setting", "workers", "samples/s", "95 % interval", "peak memory", "final loss", basis, "shown"],
        rows=rows,
        note="Each setting of an engine against the plainer one that it differs least from (the engine's plainest "
        f"where none is named), {how}, intervals as above. Settings that must not share a curve stand here "
        "too: their arithmetic may differ, and the final loss says where that led.",
    )


def runs_table(comparison: Comparison) -> Table:
    """Every run, also the failed ones. Of a study with duels the trainings' own throughput is named as such."""
    rows = []
    for row in comparison.frame.to_dict("records"):
        rows.append(
            [
                row["run"],
                "ok" if row["group"] >= 0 else "failed",
                DASH if row["group"] < 0 else str(row["group"] + 1),
                str(row["seed"]),
                number(row["samples_per_s"]),
                milliseconds(row["typical_step_s"]),
                number(row["final_loss"]),
                fixed(row["image_auroc"], 3),
                fixed(row["pixel_auroc"], 3),
                percent(row["answer_accuracy"], 1),
                duration(row["wall_s"]),
                row["reason"],
            ]
        )
    columns = (
        "run status group seed samples/s typical_step_ms loss image_AUROC pixel_AUROC answers_right wall_time reason"
    )
    names = [name.replace("_", " ") for name in columns.split()]
    if comparison.duels is not None:
        names[names.index("samples/s")] = "samples/s of this training, not judged"
    return Table(
        id="runs",
        title="All runs",
        columns=names,
        rows=rows,
        strong=[index for index, row in enumerate(rows) if row[1] == "failed"],
    )
