"""What `harness model detect` says and writes of each picture: lines, JSON, overlays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.job.declaration import JobError

if TYPE_CHECKING:
    import numpy as np

    from harness.inference.load_model import Trained
    from harness.inference.session import Look, Session


def line(look: Look) -> str:
    """One line: name, score, judgement, places."""
    return f"{look.name}  score {look.score:.4f}  {judgement(look)}  map highest at the {look.peak}"


def judgement(look: Look) -> str:
    """``Yes (top left)``, ``No``, or why there is neither."""
    if look.answer is None:
        return "not asked (untrained)"
    if look.verdict == "unusable":
        text = " ".join(look.answer.split())[:40]
        return f"neither Yes nor No ('{text}')"
    return str(look.verdict).capitalize() + (f" ({', '.join(look.said)})" if look.said else "")


def good_of_run(trained: Trained, shots: int, category: str) -> list[np.ndarray]:
    """Good pictures (S, S, 3) of one category out of the run's own train/good. Raises JobError where the run does not
    say which category, or none of its data."""
    from harness.worker.model_and_data import build_dataset

    if not trained.categories and trained.job.data == "textures":
        raise JobError("--shots without --normal takes the good pictures of a run's data: give --normal IMAGE|FOLDER")
    dataset = build_dataset(trained.job, trained.model, "train")
    name = category or (dataset.categories[0] if len(dataset.categories) == 1 else "")
    if name not in dataset.categories:
        known = ", ".join(dataset.categories)
        raise JobError(f"--shots {shots}: good pictures of which category? give --category, one of {known}")
    images = dataset.good_images(name, shots, seed=trained.job.seed)
    if len(images) < shots:
        raise JobError(f"--shots {shots}: {name} has {len(images)} good pictures only")
    return list((images * 255).round().byte().permute(0, 2, 3, 1).numpy())


def write_overlays(session: Session, looks: Sequence[Look], out: Path) -> list[Path]:
    """OUT/NAME_map.png for each; all on one colour scale. Pictures of the same name get their folder's in front."""
    from harness.inference.overlay import overlay
    from harness.worker.evaluation.example_images import file_stem

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise JobError(f"{out}: cannot write overlays there ({error.strerror}): use another --out") from None
    scale = session.scale(looks)
    stems = Counter(Path(look.name).stem for look in looks)
    written: list[Path] = []
    for look in looks:
        path = Path(look.name)
        stem = path.stem if stems[path.stem] == 1 else file_stem("_".join([*path.parent.parts[-2:], path.stem]))
        target = out / f"{file_stem(stem)}_map.png"
        number = 2
        while target in written:
            target = out / f"{file_stem(stem)}-{number}_map.png"
            number += 1
        caption = f"{path.name}: score {look.score:.3f}, {judgement(look)}"
        overlay(look.picture, look.grid, scale, caption=caption).save(target, optimize=True)
        written.append(target)
    return written


def as_dict(session: Session, look: Look, overlay: Path | None) -> dict[str, Any]:
    """A picture's entry of `--json`."""
    return {
        "image": look.name,
        "category": look.category,
        "branch": session.branch,
        "score": look.score,
        "answer": look.answer,
        "verdict": look.verdict,
        "places": list(look.said),
        "map_peak": look.peak,
        "overlay": None if overlay is None else str(overlay),
    }
