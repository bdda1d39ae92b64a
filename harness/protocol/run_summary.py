"""How a run ended, in the few lines that a person at a terminal wants."""

from __future__ import annotations

from pathlib import Path

from harness.instruments import foreign_load
from harness.protocol.console import clock
from harness.records.record_files import EVALUATION, JOB, LOG, RESULT, read_json
from harness.records.undefined_figures import undefined

_FIGURES = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "answer_accuracy": "answers right"}


def end_lines(folder: Path) -> list[str]:
    """One line of figures, one a warning and the folder; or the reason of a failure and where to read on."""
    result = read_json(folder / RESULT)
    if result["status"] != "ok":
        return [f"error: {result.get('reason') or 'the run did not finish'}", f"see {folder / LOG}"]
    rate = (result["throughput"].get("total") or {}).get("samples_per_s")
    loss = result["final"].get("loss")
    figures = result.get("evaluation") or {}
    parts = [f"{rate:.2f} samples/s"] if rate else []
    parts += [f"loss {loss:.4f}"] if loss is not None else []
    parts += [f"{label} {figures[key]:.3f}" for key, label in _FIGURES.items() if isinstance(figures.get(key), float)]
    file = folder / EVALUATION
    parts += undefined(read_json(file), _FIGURES) if file.is_file() else []
    alone = int(read_json(folder / JOB).get("concurrent") or 1) < 2  # else nothing is timed
    beside = foreign_load.said(result.get("hosts", [])) if alone else []
    warnings = [f"warning: {warning}" for warning in [*result.get("warnings", []), *beside]]
    return [f"ok in {clock(result['wall_s'])}: {', '.join(parts)}", *warnings, str(folder)]
