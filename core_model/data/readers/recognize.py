"""What a folder that a reader cannot read looks like, and what to do about it: the end of an error's line."""

from __future__ import annotations

from pathlib import Path

from core_model.data.readers.listing import folders_in, is_junk, list_pictures

_PARTS = ("train", "test", "test_public")


def remedy(root: Path) -> str:
    """A clause for the folder `root`, such as ``it looks like VisA: use visa:DIR``."""
    inside = folders_in(root)
    looks = _layout(root, inside)
    if looks:
        return looks
    if root.absolute().name in ("train", "test", "ground_truth", "good"):
        return "it seems to lie in a category: give the category's folder or the one above it"
    for path in inside:
        if path.name.lower() in _PARTS and path.name not in _PARTS:
            return f"there is {path.name}: rename it to {path.name.lower()}"
        below = _layout(path, folders_in(path))
        if below:
            return f"one level down, in {path.name}, {below.replace('DIR', str(path))}"
        for deeper in folders_in(path):
            if deeper.name.lower() in _PARTS and deeper.name not in _PARTS:
                return f"there is {path.name}/{deeper.name}: rename it to {deeper.name.lower()}"
    pictures = list_pictures(root)
    if pictures:
        return f"pictures such as {pictures[0].name} lie directly in it: put the good ones into CATEGORY/train/good"
    names = [path.name for path in sorted(root.iterdir()) if not is_junk(path)]
    return f"it holds {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}" if names else "it holds nothing else"


def _layout(root: Path, inside: list[Path]) -> str:
    """``it looks like NAME: use ...``; "" where it is none that is known. Only folders' names decide."""
    if (root / "split_csv").is_dir() or any((path / "Data" / "Images").is_dir() for path in (root, *inside)):
        return "it looks like VisA: use visa:DIR"
    if (root / "AeBAD_S").is_dir() or root.name == "AeBAD_S":
        return "it looks like AeBAD: use aebad:DIR"
    if any((path / part).is_dir() for path in (root, *inside) for part in _PARTS):
        return "it looks like MVTec AD: use mvtec:DIR"
    return ""
