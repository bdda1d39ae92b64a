"""From the pictures of a split to the samples it consists of: copies, held-out variants, general conversations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from core_model.data.augment import COUNTS, DOUBLES_TEST, operations_for
from core_model.data.decode.pictures import GOOD, Picture
from core_model.data.options import DataOptions
from core_model.data.readers.instructions import Instruction
from core_model.data.splits import by_category


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Description of a sample that has not been loaded yet.

    Args:
        position: of its picture in the data set.
        copy: 0 = the picture itself; above, in ``train`` and ``test`` an augmented copy, in ``val`` a simulated defect.
        turns: of a general conversation; None otherwise.
    """

    id: str
    position: int
    copy: int = 0
    turns: tuple[tuple[str, str], ...] | None = None


def train_entries(pictures: Sequence[Picture], options: DataOptions) -> list[Entry]:
    """Every picture, then as many augmented copies as bring its category to the version's count (Table 3)."""
    count = COUNTS[options.augment]
    positions = {picture.id: position for position, picture in enumerate(pictures)}
    entries = []
    for category, own in by_category(pictures).items():
        originals = [Entry(id=picture.id, position=positions[picture.id]) for picture in own]
        entries += originals
        if operations_for(category, options.augment_like):
            entries += [_copy(originals[k % len(own)], 1 + k // len(own)) for k in range(count - len(own))]
    return entries


def val_entries(pictures: Sequence[Picture], options: DataOptions) -> list[Entry]:
    """Every held-out picture as it is (copy 0) and with simulated defects (copies 1..variants)."""
    return [
        Entry(id=f"{picture.id}#{copy}", position=position, copy=copy)
        for position, picture in enumerate(pictures)
        for copy in range(options.variants + 1)
    ]


def test_entries(pictures: Sequence[Picture], options: DataOptions) -> list[Entry]:
    """Every picture; V5 and V6 also an augmented copy of each defective one, as the study did."""
    entries = [Entry(id=picture.id, position=position) for position, picture in enumerate(pictures)]
    if options.augment not in DOUBLES_TEST:
        return entries
    doubled = [
        _copy(entry, 1)
        for entry, picture in zip(entries, pictures, strict=True)
        if picture.kind != GOOD and operations_for(picture.category, options.augment_like)
    ]
    return entries + doubled


def instruction_entries(instructions: Sequence[Instruction], first: int) -> list[Entry]:
    """A sample a conversation; their pictures follow the others from position `first` on."""
    return [
        Entry(id=instruction.picture.id, position=first + number, turns=instruction.turns)
        for number, instruction in enumerate(instructions)
    ]


def _copy(entry: Entry, number: int) -> Entry:
    return replace(entry, id=f"{entry.id}#{number}", copy=number)
