"""Which good pictures train and which are kept out. The choice depends on the pictures' ids alone, never on a seed:
all runs of a study must be judged on the same held-out pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from core_model.data.pictures import Picture


def divide(pictures: Sequence[Picture], *, share: float) -> tuple[list[Picture], list[Picture]]:
    """(kept for training, held out): of each category, `share` of the pictures is held out, at least one where share
    is above 0 and the category has two."""
    held_out: set[str] = set()
    for of_category in by_category(pictures).values():
        count = round(share * len(of_category))
        if share > 0:
            count = min(max(1, count), len(of_category) - 1)
        held_out.update(picture.id for picture in _in_fixed_order(of_category)[:count])
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


def by_category(pictures: Sequence[Picture]) -> dict[str, list[Picture]]:
    """The pictures of each category, in order of appearance."""
    found: dict[str, list[Picture]] = {}
    for picture in pictures:
        found.setdefault(picture.category, []).append(picture)
    return found


def _in_fixed_order(pictures: Sequence[Picture]) -> list[Picture]:
    """Shuffled by a hash of the id: neighbouring files are often near-duplicates of one another."""
    return sorted(pictures, key=lambda picture: hashlib.blake2b(picture.id.encode(), digest_size=8).digest())
