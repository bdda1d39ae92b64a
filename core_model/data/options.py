"""What can be chosen about a data set besides its name: declared once, checked when it is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Annotated, Any

from pydantic import Field

from backends.declared import declared, unknown
from core_model.data.augment import COUNTS, TABLE
from core_model.data.errors import DataError

_Count = Annotated[int, Field(ge=0)]


@declared(DataError, "data option ")
class DataOptions:
    """Which pictures are used, which are kept out of training, and what is done to them.

    Args:
        categories: use these only; empty = all.
        domains: of AeBAD, use these only in testing; empty = all.
        limit: at most this many training pictures, spread over the categories (V1 of the NCHC study: 10,000); 0 = all.
        holdout: this share of train/good is the split ``val``, not trained on. Give this or folds.
        folds, fold: fold number `fold` (from 0) of `folds` is the split ``val``, for cross-validation.
        variants: simulated defects that a held-out picture gets in ``val``, beside the picture as it is.
        defective_share: chance that a training picture is given a defect.
        foreground: draw defects on the object where a category shows objects on a plain ground.
        augment: the NCHC study's type-2 augmentation, ``v4`` (none), ``v5`` or ``v6``.
        augment_like: the row of its table for categories that have none.
        instructions: json file of general visual instructions, which then take every second global batch.
        cache_mib: memory for decoded pictures, a process.
        white: value that is white in pictures of more than 8 bits (4095 of 12 bits); 0 = the highest of the file's
            type.
    """

    categories: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()
    limit: _Count = 0
    holdout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    folds: _Count = 0
    fold: _Count = 0
    variants: Annotated[int, Field(ge=1)] = 1
    defective_share: Annotated[float, Field(ge=0, le=1)] = 0.5
    foreground: bool = True
    augment: str = ""
    augment_like: str = ""
    instructions: str = ""
    cache_mib: _Count = 512
    white: Annotated[float, Field(ge=0)] = 0.0

    def __post_init__(self) -> None:
        if self.folds == 1 or self.fold >= max(1, self.folds):
            raise DataError(f"data options folds={self.folds}, fold={self.fold}: use folds >= 2 and fold 0..folds-1")
        if self.folds and self.holdout:
            raise DataError("data options folds and holdout are two ways to hold pictures out: give one of them")
        if self.augment not in COUNTS:
            known = ", ".join(name for name in COUNTS if name)
            raise DataError(f"data option augment is '{self.augment}': choose one of {known}, or leave it out")
        if self.augment_like and self.augment_like not in TABLE:
            raise DataError(f"data option augment_like is '{self.augment_like}': choose one of {', '.join(TABLE)}")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> DataOptions:
        """From a job's ``data_options``. Raises DataError for an unknown name or a value of the wrong type."""
        known = {field.name for field in fields(cls)}
        ready: dict[str, Any] = {}
        for name, value in values.items():
            if name not in known:
                raise DataError(unknown("data option", name, known))
            if name in ("categories", "domains") and isinstance(value, str):  # as it comes from --set
                value = [part.strip() for part in value.split(",") if part.strip()]
            ready[name] = value
        return cls(**ready)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
