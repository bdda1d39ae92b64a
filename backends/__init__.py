"""How a model is trained: interchangeable engines behind `backends.base.Backend`.

Adding an engine takes one file with a `Backend` subclass and one line in `REGISTRY`. Importing this package imports
neither torch nor an engine; `load` imports the one file that is asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from backends.base import Availability, Backend, EngineSettings

# engine name -> "module:class", imported on demand
REGISTRY: dict[str, str] = {
    "single": "backends.torch.single:SingleBackend",
    "ddp": "backends.torch.ddp:DdpBackend",
    "fsdp2": "backends.torch.fsdp2:Fsdp2Backend",
    "deepspeed": "backends.deepspeed.backend:DeepSpeedBackend",
    "horovod": "backends.horovod.backend:HorovodBackend",
}


def names() -> tuple[str, ...]:
    """The engines there are, usable here or not."""
    return tuple(REGISTRY)


def backend_class(name: str) -> type[Backend]:
    """The class of engine `name`, whether or not it is usable here. Raises BackendError for an unknown name."""
    from backends.base import BackendError

    if name not in REGISTRY:
        raise BackendError(f"unknown engine '{name}': choose one of {', '.join(REGISTRY)}")
    module, _, attribute = REGISTRY[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def availability(name: str) -> Availability:
    """Whether engine `name` can be used here, and if not, why and what to do."""
    return backend_class(name).availability()


def load(name: str) -> type[Backend]:
    """The class of engine `name`. Raises BackendError with one line where it is unknown or not usable here."""
    from backends.base import BackendError

    engine = backend_class(name)
    state = engine.availability()
    if not state.usable:
        raise BackendError(f"engine '{name}' cannot be used here: {state.reason}")
    return engine


def settings_from(name: str, values: Mapping[str, Any]) -> EngineSettings:
    """The settings object of engine `name` from a plain dict. Raises BackendError that names an unknown key, a value of
    the wrong type or out of its range."""
    from backends.base import BackendError
    from backends.declared import nearest

    kind = backend_class(name).Settings
    known = {field.name for field in fields(kind)}
    for key in values:
        if key not in known:
            near = nearest(str(key), known)
            hint = f"did you mean '{near}'?" if near else f"it has {', '.join(sorted(known))}"
            raise BackendError(f"engine '{name}' has no setting '{key}': {hint}")
    try:
        return kind(**values)
    except TypeError as error:
        raise BackendError(f"engine '{name}': {error}") from None
