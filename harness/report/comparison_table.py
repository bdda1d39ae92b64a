"""The comparison as a table of text: on the terminal, and the first table of the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.analysis import judged_speed, mfu
from harness.analysis.cells import COMMON_BASELINE
from harness.analysis.comparison import Comparison
from harness.common.formatting import DASH, fixed, is_number, mebibytes, number, percent
from harness.common.text_table import Table

RATE_NOTE = (
    "samples/s: total samples / total seconds of the timed steps, geometric mean of the repeats and its 95 % interval"
)
DUEL_NOTE = (
    "samples/s and efficiency: of the duels, total samples / total seconds, geometric mean and its 95 % interval over "
    "them; loss, quality and memory: of the trainings"
)
_EFFICIENCY_NOTES = {
    "efficiency": f"efficiency: of plain torch on one worker (engine '{COMMON_BASELINE}') times the workers",
    "own_efficiency": "own baseline: of the engine's own one worker times the workers; not comparable between engines",
}
_REST = "memory: peak of the worker that needs most; loss and quality: mean of the repeats"
_UTILIZATION = (
    "useful MFU: share of the GPUs' peak by the FLOPs that real tokens need; hardware use: by all FLOPs done, padding "
    "and recomputation too"
)
_STEPS_NOTE = (
    " Typical step: median of the steps, in brackets the highest of p90, p95 and p99 that the number of steps bears "
    "(29, 59, 299)."
)
NEEDS_REPEATS = "needs 2 repeats"


def group_names(comparison: Comparison) -> dict[int, str]:
    """What stands behind a label to tell groups apart: the kind of scaling where that does it, the setting that all of
    the group have, else its number."""
    if not len(comparison.cells):
        return {}
    kinds = comparison.cells.drop_duplicates("group")[["group", "scaling"]]
    if len(kinds) > 1 and kinds["scaling"].nunique() == len(kinds):
        return {int(group): f" [{scaling}]" for group, scaling in kinds.itertuples(index=False)}
    return {int(group): f" [{_group_name(comparison, int(group))}]" for group in kinds["group"] if group > 0}


def _group_name(comparison: Comparison, group: int) -> str:
    """``compile=true``; ``group 2`` where its members have no one setting in common, or another group has it too."""
    own = {(found.engine, found.setting) for found in comparison.variants if found.group == group}
    others = {(found.engine, found.setting) for found in comparison.variants if found.group != group}
    settings = {setting for _, setting in own}
    return settings.pop() if len(settings) == 1 and not own & others else f"group {group + 1}"


def efficiency_kinds(comparison: Comparison) -> list[str]:
    """Which efficiencies the comparison has or would have with more repeats: ``efficiency`` where plain torch ran on
    one worker, ``own_efficiency`` where engines ran on one worker and on more."""
    cells = judged_speed.cells(comparison)
    if not len(cells):
        return []
    return [name for name in _EFFICIENCY_NOTES if (cells[f"{name}_pairs"] > 0).any()]


def notes(comparison: Comparison) -> str:
    """What the table's figures are, for its foot."""
    efficiencies = [_EFFICIENCY_NOTES[name] for name in efficiency_kinds(comparison)]
    rate = RATE_NOTE if comparison.duels is None else DUEL_NOTE
    return "; ".join([rate, *efficiencies, *_utilization_notes(comparison), _REST]) + "."


def _utilization_notes(comparison: Comparison) -> list[str]:
    """What the two shares of the peak count; that older records' is withdrawn."""
    shown = len(comparison.cells) and comparison.cells["mfu"].notna().any()
    told = [_UTILIZATION] if shown else []
    on_gpu = [run for run in comparison.runs if (run.environment.get("gpus") or {}).get("devices")]
    return told + ([mfu.WITHDRAWN] if any(mfu.withdrawn(run.result) for run in on_gpu) else [])


def table_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """The comparison table as text, one dict per cell: ``texts`` by column name; ``short_rate`` (samples/s and half the
    interval), ``short_efficiency`` for narrow places; ``group``; and the numbers of ``ok`` and
    ``failed`` runs."""
    names = group_names(comparison)
    kinds = efficiency_kinds(comparison)
    cells = judged_speed.cells(comparison)
    return [_row(cell, names.get(cell["group"], ""), kinds) for cell in cells.to_dict("records")]


def _row(cell: Mapping[str, Any], group: str, kinds: list[str]) -> dict[str, Any]:
    failed = f"{cell['failed']} failed" if cell["failed"] else ""
    return {
        "group": int(cell["group"]),
        "ok": int(cell["ok"]),
        "failed": int(cell["failed"]),
        "short_rate": ", ".join(text for text in (_short_rate(cell), failed) if text),
        "short_efficiency": _short_efficiency(cell, kinds[0]) if kinds else DASH,
        "texts": {
            "engine": cell["label"] + group,
            "workers": str(int(cell["workers"])),
            "samples/s": _with_interval(cell, "samples_per_s", number),
            "typical step ms": _step_text(cell),
            "efficiency": efficiency_text(cell, "efficiency"),
            "own baseline": efficiency_text(cell, "own_efficiency"),
            "useful MFU": percent(cell["mfu"], 1),
            "hardware use": percent(cell["hardware_utilization"], 1),
            "peak memory": mebibytes(cell["peak_memory_mib"]),
            "final loss": number(cell["final_loss"]),
            "image AUROC": fixed(cell["image_auroc"], 3),
            "pixel AUROC": fixed(cell["pixel_auroc"], 3),
            "answers right": _answers(cell),
            "duels": str(int(cell[judged_speed.DUELS])) if cell.get(judged_speed.DUELS) else DASH,
            "runs": ", ".join(text for text in (str(cell["ok"]) if cell["ok"] else "", failed) if text),
        },
    }


def comparison_table(comparison: Comparison) -> Table:
    """The report's main table: one row a cell."""
    rows = table_rows(comparison)
    columns = list(rows[0]["texts"]) if rows else ["engine"]
    return Table(
        id="comparison",
        title="Engines side by side",
        columns=columns,
        rows=[[row["texts"][name] for name in columns] for row in rows],
        note=f"{notes(comparison)}{_STEPS_NOTE if comparison.duels is None else ''}",
        strong=[
            index for index, row in enumerate(rows) if row["failed"] or "unusable" in row["texts"]["answers right"]
        ],
    )


def efficiency_text(cell: Mapping[str, Any], name: str) -> str:
    """``89 % (86 to 92)``; what is lacking where the baseline ran but one repeat stands against it."""
    if cell[f"{name}_pairs"] and not is_number(cell[name]):
        return NEEDS_REPEATS if cell[f"{name}_pairs"] == 1 else DASH
    return _with_interval(cell, name, percent)


def _with_interval(cell: Mapping[str, Any], name: str, form: Any) -> str:
    text = form(cell[name])
    low, high = cell[f"{name}_low"], cell[f"{name}_high"]
    if not is_number(cell[name]) or not is_number(low):
        return text
    return f"{text} ({form(low).removesuffix(' %')} to {form(high).removesuffix(' %')})"


def _short_rate(cell: Mapping[str, Any]) -> str:
    """``353 ±9``: half the interval, on the log scale nearly the same to either side."""
    rate, low, high = (cell[f"samples_per_s{end}"] for end in ("", "_low", "_high"))
    if not is_number(rate):
        return ""
    return number(rate) + (f" ±{number((high - low) / 2, 2)}" if is_number(low) and is_number(high) else "")


def _short_efficiency(cell: Mapping[str, Any], name: str) -> str:
    """``89±3 %``."""
    if not is_number(cell[name]):
        return DASH
    return f"{100 * cell[name]:.0f}±{number(50 * (cell[f'{name}_high'] - cell[f'{name}_low']), 2)} %"


def _step_text(cell: Mapping[str, Any]) -> str:
    if not is_number(cell["typical_step_ms"]):
        return DASH
    tails = [(f"p{at}", cell[f"step_ms_p{at}"]) for at in (99, 95, 90) if is_number(cell[f"step_ms_p{at}"])]
    tail = f" ({tails[0][0]} {number(tails[0][1])})" if tails else ""
    return number(cell["typical_step_ms"]) + tail


def _answers(cell: Mapping[str, Any]) -> str:
    """The answer accuracy, and how many answers say neither Yes nor No."""
    unusable, text = cell["unusable_answers"], percent(cell["answer_accuracy"], 1)
    return f"{text} ({unusable:.0f} unusable)" if is_number(unusable) and unusable > 0 else text
