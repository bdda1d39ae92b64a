"""From a user's file to its `TrainingJob`: imports the file, calls the function, checks what it returns.

What is checked here costs nothing and is checked wherever a job is built; `core_model.user_job.checks` also computes.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import random
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from backends.declared import nearest
from core_model.errors import ModelError
from core_model.user_job.contract import TrainingJob
from core_model.user_job.source import Source

_FORM = "return core_model.user_job.TrainingJob(module=..., dataset=..., collate=...)"


def make(source: Source, settings: Mapping[str, Any], *, seed: int) -> TrainingJob:
    """The job of a user's file.

    Args:
        source: of kind file.
        settings: keyword arguments of the function (``--set model.KEY=VALUE``).
        seed: of torch's, numpy's and Python's generators while it is made; their states are put back afterwards.

    Raises:
        ModelError: for a file, a function, settings or a job that cannot work.
    """
    assert source.file is not None
    with seeded(seed):
        maker = _maker(load_file(source.file), source)
        _check_settings(maker, source, settings)
        try:
            job = maker(**settings)
        except Exception as error:
            raise ModelError(f"{source.label} raised {reason_of(error, source.file)}") from error
    check_form(job, source)
    return job


def load_file(file: Path) -> ModuleType:
    """The user's file as a module, imported once a process; its folder is searched for its own modules, last. The
    module has a name of its own, so that it hides no other. Raises ModelError."""
    name = f"user_job_{file.stem}_{_number(file)}"
    if name in sys.modules:
        return sys.modules[name]
    if not file.is_file():
        raise ModelError(f"{file}: there is no such file")
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if not isinstance(error, (Exception, SystemExit)):
            raise
        raise ModelError(f"{file.name} cannot be imported: {reason_of(error, file)}") from error
    return module


def reason_of(error: BaseException, file: Path | None) -> str:
    """``ValueError: no such width (my_job.py, line 7)``: an error and its last line in the user's file."""
    text = " ".join(str(error).split())[:200] or "no message"
    where = ""
    if isinstance(error, SyntaxError) and error.filename == str(file):
        where = f" ({Path(error.filename).name}, line {error.lineno})"
    lines = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    if lines and not where:
        where = f" ({Path(lines[-1].filename).name}, line {lines[-1].lineno})"
    return f"{type(error).__name__}: {text}{where}"


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The global generators of the processor seeded, and put back at the end."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002 - what users draw from
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002


def check_form(job: Any, source: Source) -> None:
    """Raises ModelError for a job whose parts are not what `TrainingJob` says."""
    name = source.label
    if not isinstance(job, TrainingJob):
        raise ModelError(f"{name} returned {_a(job)}: {_FORM}")
    if not isinstance(job.module, torch.nn.Module):
        raise ModelError(f"{name}: module is {_a(job.module)}, no torch.nn.Module")
    for part in ("__len__", "__getitem__"):
        if not hasattr(type(job.dataset), part):
            raise ModelError(f"{name}: dataset is {_a(job.dataset)} without {part}: it must be map-style, not iterable")
    if not callable(job.collate):
        raise ModelError(f"{name}: collate is {_a(job.collate)}, no function of a list of samples")
    if job.evaluate is not None and not callable(job.evaluate):
        raise ModelError(f"{name}: evaluate is {_a(job.evaluate)}, no function of the module")
    for part, value in (("optimizer", job.optimizer), ("facts", job.facts)):
        if not isinstance(value, Mapping):
            raise ModelError(f"{name}: {part} is {_a(value)}, no dict")
    if len(job.dataset) < 1:
        raise ModelError(f"{name}: the dataset is empty")
    _check_parameters(job.module, name)


def _check_parameters(module: torch.nn.Module, name: str) -> None:
    trained = {key: value for key, value in module.named_parameters() if value.requires_grad}
    if not trained:
        raise ModelError(f"{name}: the module has no trainable parameter: nothing to optimize")
    for key, value in trained.items():
        if value.device.type != "cpu":
            raise ModelError(f"{name}: parameter '{key}' is on {value.device}: leave it on the CPU, engines move it")
        if value.dtype != torch.float32:
            kind = str(value.dtype).removeprefix("torch.")
            raise ModelError(
                f"{name}: trainable parameter '{key}' is {kind}: make it float32 (module.float()) and choose "
                "--precision bf16 or fp16"
            )


def _maker(module: ModuleType, source: Source) -> Callable[..., Any]:
    found = getattr(module, source.name, None)
    assert source.file is not None
    if found is None:
        own = [
            name
            for name, value in vars(module).items()
            if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
        ]
        has = f"it has {', '.join(own)}" if own else "it has no function"
        raise ModelError(f"{source.file.name} has no function '{source.name}': {has}")
    if not callable(found):
        raise ModelError(f"{source.label} is {_a(found)}, no function")
    return found


def _check_settings(maker: Callable[..., Any], source: Source, settings: Mapping[str, Any]) -> None:
    """Raises ModelError for settings that the function does not take, and for those that it needs."""
    parameters = inspect.signature(maker).parameters
    kinds = {parameter.kind for parameter in parameters.values()}
    for name in settings:
        if name not in parameters and inspect.Parameter.VAR_KEYWORD not in kinds:
            near = nearest(name, list(parameters))
            hint = f"did you mean '{near}'?" if near else f"it takes {', '.join(parameters) or 'none'}"
            raise ModelError(f"{source.label} takes no setting '{name}' (model.{name}): {hint}")
    wanted = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    for name, parameter in parameters.items():
        if parameter.kind in wanted and parameter.default is inspect.Parameter.empty and name not in settings:
            raise ModelError(f"{source.label} needs the setting '{name}': add --set model.{name}=VALUE")


def _number(file: Path) -> str:
    return hashlib.blake2b(str(file).encode(), digest_size=4).hexdigest()


def _a(value: Any) -> str:
    kind = type(value).__name__
    return "None" if value is None else f"{'an' if kind[0] in 'aeiouAEIOU' else 'a'} {kind}"
