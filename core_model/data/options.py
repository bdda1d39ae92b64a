"""What can be chosen about a data set besides its name: one frozen dataclass, checked when it is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from core_model.data.errors import DataError


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """categories: use these only; empty = all. limit: at most this many training pictures, spread over the categories
    (the study's V1 takes 10,000); 0 = all. defective_share: chance that a training picture is given a defect.
    holdout: share of train/good kept out of training for ``split="val"``. variants: simulated defects a held-out
    picture gets in ``val``, beside the picture as it is. cache_mib: memory for decoded training pictures, a process.
    """

    categories: tuple[str, ...] = ()
    limit: int = 0
    defective_share: float = 0.5
    holdout: float = 0.0
    variants: int = 1
    cache_mib: int = 512

    def __post_init__(self) -> None:
        if not 0.0 <= self.defective_share <= 1.0:
            raise DataError(f"data option defective_share is {self.defective_share}: it must lie in 0..1")
        if not 0.0 <= self.holdout < 1.0:
            raise DataError(f"data option holdout is {self.holdout}: it must be at least 0 and below 1")
        for name, least in (("limit", 0), ("variants", 1), ("cache_mib", 0)):
            if getattr(self, name) < least:
                raise DataError(f"data option {name} is {getattr(self, name)}: it must be at least {least}")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> DataOptions:
        """From a job's ``data_options``. Raises DataError for an unknown name or a value of the wrong type."""
        known = {field.name: type(getattr(cls(), field.name)) for field in fields(cls)}
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
    try:
        ready = kind(value)
    except (TypeError, ValueError):
        raise DataError(f"data option {name} is '{value}': expected {kind.__name__}") from None
    if kind is int and float(value) != ready:
        raise DataError(f"data option {name} is '{value}': expected a whole number")
    return ready
