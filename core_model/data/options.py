"""What can be chosen about a data set besides its name: one frozen dataclass, checked when it is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from core_model.data.augment import COUNTS, TABLE
from core_model.data.errors import DataError


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Which pictures:
    categories: use these only; empty = all. domains: of AeBAD, use these only in testing; empty = all.
    limit: at most this many training pictures, spread over the categories (the study's V1: 10,000); 0 = all.

    What is kept out of training for ``split="val"`` (give one of the two):
    holdout: a share of train/good. folds, fold: fold number `fold` (from 0) of `folds`, for cross-validation.
    variants: simulated defects that a held-out picture gets in ``val``, beside the picture as it is.

    What is done to them:
    defective_share: chance that a training picture is given a defect. foreground: draw defects on the object where a
    category shows objects on a plain ground. augment: the study's type-2 augmentation, ``v4`` (none), ``v5`` or ``v6``;
    augment_like: the row of its table for categories that have none. instructions: json file of general visual
    instructions, which then take every second global batch. cache_mib: memory for decoded pictures, a process. white:
    value that is white in pictures of more than 8 bits (4095 of 12 bits); 0 = the highest of the file's type.
    """

    categories: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()
    limit: int = 0
    holdout: float = 0.0
    folds: int = 0
    fold: int = 0
    variants: int = 1
    defective_share: float = 0.5
    foreground: bool = True
    augment: str = ""
    augment_like: str = ""
    instructions: str = ""
    cache_mib: int = 512
    white: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.defective_share <= 1.0:
            raise DataError(f"data option defective_share is {self.defective_share}: it must lie in 0..1")
        if not 0.0 <= self.holdout < 1.0:
            raise DataError(f"data option holdout is {self.holdout}: it must be at least 0 and below 1")
        for name, least in (("limit", 0), ("variants", 1), ("cache_mib", 0), ("fold", 0), ("folds", 0)):
            if getattr(self, name) < least:
                raise DataError(f"data option {name} is {getattr(self, name)}: it must be at least {least}")
        if not 0 <= self.white < float("inf"):
            raise DataError(f"data option white is {self.white}: it must be a value of the pictures, such as 4095")
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
        known = {field.name: type(field.default) for field in fields(cls)}
        ready: dict[str, Any] = {}
        for name, value in values.items():
            if name not in known:
                raise DataError(f"unknown data option '{name}': known options are {', '.join(sorted(known))}")
            ready[name] = _as(known[name], name, value)
        return cls(**ready)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def _as(kind: type, name: str, value: Any) -> Any:
    """`value` as the option's type; texts are parsed, as they come from ``--set name=value``."""
    if kind is tuple:
        parts = value.split(",") if isinstance(value, str) else list(value)
        return tuple(str(part).strip() for part in parts if str(part).strip())
    if kind is bool:
        words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        if str(value).lower() not in words:
            raise DataError(f"data option {name} is '{value}': expected true or false")
        return words[str(value).lower()]
    if kind is str:
        return str(value)
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise DataError(f"data option {name} is '{value}': expected a number") from None
    if kind is int and number != int(number):
        raise DataError(f"data option {name} is '{value}': expected a whole number")
    return kind(number)
