"""Which good pictures train and which are kept out. The choice depends on the pictures' ids alone, never on a seed:
all runs of a study must be judged on the same held-out pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from core_model.data.decode.pictures import GOOD, Picture


def divide(
    pictures: Sequence[Picture], *, share: float = 0.0, folds: int = 0, fold: int = 0
) -> tuple[list[Picture], list[Picture]]:
    """(kept for training, held out), category by category.

    Args:
        share: this part is held out, at least one picture of a category that has two.
        folds: every picture is held out in exactly one of the `folds` folds; this is fold number `fold`.
    """
    held_out: set[str] = set()
    for of_category in by_category(pictures).values():
        order = _in_fixed_order(of_category, by="origin")
        if folds:
            held_out.update(picture.id for picture in order[fold::folds])
        elif share > 0:
            count = min(max(1, round(share * len(order))), len(order) - 1)
            held_out.update(picture.id for picture in order[:count])
    return (
        [picture for picture in pictures if picture.id not in held_out],
        [picture for picture in pictures if picture.id in held_out],
    )


def take(pictures: Sequence[Picture], limit: int) -> list[Picture]:
    """At most `limit` pictures (0 = all), as evenly over the categories as they allow, in the given order."""
    if limit <= 0 or limit >= len(pictures):
        return list(pictures)
    queues = [_in_fixed_order(of_category) for of_category in by_category(pictures).values()]
    chosen: set[str] = set()
    depth = 0
    while len(chosen) < limit:
        for queue in queues:
            if depth < len(queue) and len(chosen) < limit:
                chosen.add(queue[depth].id)
        depth += 1
    return [picture for picture in pictures if picture.id in chosen]


def subset(total: int, count: int, seed: int) -> list[int]:
    """Indices of the test samples to use: all for 0, else `count` of them, spread over the set by a seeded choice."""
    if count == 0 or count >= total:
        return list(range(total))
    return sorted(np.random.default_rng(seed).choice(total, size=count, replace=False).tolist())


def lacks(pictures: Sequence[Picture]) -> list[str]:
    """What a test set of `pictures` cannot show, a sentence for each category or for all that lack the same."""
    one_sided: dict[str, list[str]] = {}
    undrawn = []
    found = by_category(pictures)
    for category, own in found.items():
        bad = [picture for picture in own if picture.kind != GOOD]
        if len(bad) in (0, len(own)):
            one_sided.setdefault("good" if not bad else "defective", []).append(category)
        if not all(picture.has_mask for picture in bad):
            undrawn.append(category)
    said = []
    for kind, names in one_sided.items():
        figures = "image and pixel AUROC and F1 are" if kind == "good" else "image AUROC and F1 are"
        said.append(f"all test pictures{_of(names, len(found))} are {kind}: {figures} undefined without the other kind")
    if undrawn:
        said.append(f"no masks{_of(undrawn, len(found))}: pixel AUROC, AUPRO and places are undefined")
    return said


def _of(names: Sequence[str], total: int) -> str:
    """`` of bolt, nut``; "" for all of several categories."""
    if len(names) == total > 1:
        return ""
    return f" of {', '.join(names[:5])}" + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def by_category(pictures: Sequence[Picture]) -> dict[str, list[Picture]]:
    """The pictures of each category, in order of appearance."""
    found: dict[str, list[Picture]] = {}
    for picture in pictures:
        found.setdefault(picture.category, []).append(picture)
    return found


def _in_fixed_order(pictures: Sequence[Picture], by: str = "id") -> list[Picture]:
    """Shuffled by a hash of the id: neighbouring files are often near-duplicates of one another. by: ``origin`` where
    categories that show the same files (AeBAD) must have them in the same order, so that none is held out of one and
    trained on in another."""
    return sorted(pictures, key=lambda picture: hashlib.blake2b(getattr(picture, by).encode(), digest_size=8).digest())
