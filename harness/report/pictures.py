"""The report's example pictures: small, embedded, the same samples for every engine, within a budget of bytes."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.analysis.comparison import Comparison
from harness.records.run_record import RecordedRun
from harness.report.charts.data import largest_runs

SIZE = 128  # pixels a side in the page, drawn at 94: sharp enough on dense screens
BUDGET = 1_500_000  # bytes of base64 text for all pictures of a page
MOST = 16


@dataclass(frozen=True, kw_only=True)
class SampleView:
    """One test picture: what it is, its images as data URLs with alternative text, and what each engine answered."""

    title: str
    pictures: Sequence[dict[str, str]]
    says: Sequence[dict[str, str]]


def sample_views(comparison: Comparison) -> list[SampleView]:
    """Samples for which the first run of an engine saved pictures; those that several engines have come first."""
    runs = {label: members[0] for label, members in largest_runs(comparison).items() if members}
    stems: dict[str, list[str]] = {}
    for label, run in runs.items():
        for path in sorted((run.folder / "examples").glob("*_input.png")):
            stems.setdefault(path.name.removesuffix("_input.png"), []).append(label)
    order = sorted(stems, key=lambda stem: (-len(stems[stem]), stem))[:MOST]
    views: list[SampleView] = []
    spent = 0
    for stem in sorted(order):
        view = _view(stem, {label: runs[label] for label in stems[stem]})
        size = sum(len(picture["src"]) for picture in view.pictures)
        if spent + size > BUDGET:
            break
        spent += size
        views.append(view)
    return views


def _view(stem: str, runs: dict[str, RecordedRun]) -> SampleView:
    first = next(iter(runs.values()))
    entry = _entry(first, stem)
    name = entry.get("id", stem)
    kind = entry.get("kind", "")
    place = f", {entry['place']}" if entry.get("place") else ""
    pictures = [_picture(first.folder / "examples" / f"{stem}_input.png", "input", f"Test picture {name}")]
    if entry.get("is_defective", True):
        text = f"Mask of the true defect{place}"
        pictures.append(_picture(first.folder / "examples" / f"{stem}_mask.png", "true mask", text))
    says = []
    if entry.get("expected"):
        says.append({"label": "Expected", "text": entry["expected"]})
    for label, run in runs.items():
        own = _entry(run, stem)
        score = own.get("score")
        caption = f"{label}, score {score:.3f}" if isinstance(score, float) else label
        path = run.folder / "examples" / f"{stem}_map.png"
        pictures.append(_picture(path, caption, f"Anomaly map by {label}", colour=True))
        if own.get("answer") is not None:
            says.append({"label": label, "text": own["answer"].strip() or "(no answer)"})
    title = f"{entry.get('category', '')} / {kind}{place} ({name})" if entry else stem
    return SampleView(title=title, pictures=[picture for picture in pictures if picture], says=says)


def _entry(run: RecordedRun, stem: str) -> dict[str, Any]:
    from harness.worker.evaluation.example_images import file_stem

    for sample in run.evaluation.get("samples") or ():
        if file_stem(sample["id"]) == stem:
            return sample
    return {}


def _picture(path: Path, caption: str, alt: str, *, colour: bool = False) -> dict[str, str]:
    """A data URL of the picture at SIZE pixels; {} where it cannot be read. colour: draw grey values in cividis, whose
    brightness and hue people with any common colour blindness read alike."""
    import numpy as np
    from PIL import Image

    try:
        with Image.open(path) as opened:
            image = opened.convert("L" if colour else "RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):  # what Pillow raises for damaged files
        return {}
    image = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR if colour else Image.Resampling.LANCZOS)
    if colour:
        import matplotlib

        table = (matplotlib.colormaps["cividis"](np.arange(256))[:, :3] * 255).round().astype(np.uint8)
        image = Image.fromarray(table[np.asarray(image)])
    out = io.BytesIO()
    image.save(out, "WEBP", quality=72, method=4)
    encoded = base64.b64encode(out.getvalue()).decode()
    return {"src": f"data:image/webp;base64,{encoded}", "caption": caption, "alt": alt}
