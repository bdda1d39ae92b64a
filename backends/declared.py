"""Settings that are declared once: type, range and help text of each field, checked by pydantic.

    @declared(JobError)
    class Job:
        steps: Annotated[int, Field(ge=1, description="Optimizer steps.")] = 60

``Job(steps="abc")`` raises ``JobError("steps: 'abc' is not a whole number")``: all that is wrong, in one line of plain
words. The same declaration gives the JSON schema (`schema_of`) and the options of a command (`harness.job.options`).
The class stays a frozen, keyword-only dataclass: ``fields``, ``replace``, ``asdict`` and pickle work as ever.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Collection
from dataclasses import field, fields
from typing import Annotated, Any, TypeVar, dataclass_transform, get_args

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass
from pydantic_core import ErrorDetails

from mpi.errors import UserError

_T = TypeVar("_T")
_QUOTE = "'"  # a number that came as text is shown as a number
_LONGEST = 60  # characters of a wrong value that are shown
# A number may be written as text ("3"), and text as a number (a study named 2026); NaN and infinity are no setting.
_CONFIG = ConfigDict(extra="forbid", allow_inf_nan=False, coerce_numbers_to_str=True)


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(field, Field))
def declared(error: type[UserError], prefix: str = "") -> Callable[[type[_T]], type[_T]]:
    """Makes a class a frozen dataclass whose fields are checked when it is made; raises `error`, one line that begins
    with `prefix`. What the class's ``__post_init__`` raises comes through."""

    def decorate(cls: type[_T]) -> type[_T]:
        made: Any = checked_dataclass(frozen=True, kw_only=True, config=_CONFIG)(cls)
        check = made.__init__

        @functools.wraps(check)
        def checked_init(self: Any, **values: Any) -> None:
            for name, value in values.items():
                _refuse_switch(made, name, value, error, prefix + name)
            try:
                check(self, **values)
            except ValidationError as wrong:
                raise error(prefix + explain(wrong, [item.name for item in fields(made)])) from None

        made.__init__ = checked_init
        return made

    return decorate


@functools.cache
def _adapter(cls: type, name: str) -> TypeAdapter[Any]:
    info = field_info(cls, name)
    kind: Any = Annotated[info.annotation, *info.metadata] if info.metadata else info.annotation
    return TypeAdapter(kind, config=_CONFIG)


def check_field(cls: type, name: str, value: Any, error: type[UserError], called: str = "") -> Any:
    """`value` as field `name` of a declared class. Raises `error`, which calls the field `called` (an option, say)."""
    _refuse_switch(cls, name, value, error, called or name)
    try:
        return _adapter(cls, name).validate_python(value)
    except ValidationError as wrong:
        raise error("; ".join(_sentence(called or name, detail) for detail in wrong.errors()[:3])) from None


def field_info(cls: type, name: str) -> Any:
    """pydantic's `FieldInfo` of a declared field: its type, its description, its limits (`metadata`)."""
    return cls.__pydantic_fields__[name]  # type: ignore[attr-defined]


def _refuse_switch(cls: type, name: str, value: Any, error: type[UserError], called: str) -> None:
    """Python takes True for the number 1; a field that wants a number does not."""
    if isinstance(value, bool) and name in cls.__pydantic_fields__:  # type: ignore[attr-defined]
        kinds = {field_info(cls, name).annotation, *get_args(field_info(cls, name).annotation)}
        if bool not in kinds and kinds & {int, float}:
            raise error(f"{called}: {value} is not a {'whole ' if int in kinds else ''}number")


def schema_of(cls: type) -> dict[str, Any]:
    """The JSON schema of a declared class, its descriptions included."""
    return TypeAdapter(cls).json_schema()


def explain(wrong: ValidationError, known: Collection[str]) -> str:
    """All that is wrong in one line, each thing named by its field."""
    texts = []
    for detail in wrong.errors():
        name = ".".join(map(str, detail["loc"]))
        if detail["type"] == "unexpected_keyword_argument":
            texts.append(unknown("setting", name, known))
        else:
            texts.append(_sentence(name, detail))
    return "; ".join(texts)


def unknown(what: str, name: str, known: Collection[str]) -> str:
    """``unknown WHAT 'name'``, with the nearest known name, or with all of them where none is near."""
    near = nearest(name, known)
    return f"unknown {what} '{name}': " + (
        f"did you mean '{near}'?" if near else f"known are {', '.join(sorted(known))}"
    )


def nearest(name: str, known: Collection[str]) -> str | None:
    """The known name that `name` is most likely a slip of, None where nothing is near."""
    plain = {item.lower().replace("-", "_"): item for item in known}
    found = difflib.get_close_matches(name.lower().replace("-", "_"), plain, n=1, cutoff=0.7)
    return plain[found[0]] if found else None


_LIMITS = {"greater_than": ("above", "gt"), "greater_than_equal": ("at least", "ge"),
           "less_than": ("below", "lt"), "less_than_equal": ("at most", "le")}  # fmt: skip
_KINDS = (
    ("int_", "is not a whole number"),
    ("float_", "is not a number"),
    ("bool_", "is not true or false"),
    ("string_", "is not text"),
    ("mapping_", "is not a set of KEY=VALUE"),
    ("dict_", "is not a set of KEY=VALUE"),
    ("tuple_", "is not a list of values"),
)


def _sentence(name: str, detail: ErrorDetails) -> str:
    """One wrong value in plain words."""
    kind, context, value = detail["type"], detail.get("ctx") or {}, _shown(detail["input"])
    if kind in _LIMITS:
        word, key = _LIMITS[kind]
        limit = int(context[key]) if context[key] == int(context[key]) else context[key]
        return f"{name}: must be {word} {limit}, got {value.strip(_QUOTE)}"
    if kind == "finite_number":
        return f"{name}: must be a finite number, got {value}"
    if kind == "literal_error":
        allowed = str(context["expected"]).replace("'", "").replace(" or ", ", ")
        return f"{name}: {value} is not one of {allowed.removeprefix(', ')}"
    if kind in ("missing_argument", "missing"):
        return f"{name}: a value is missing"
    if kind in ("too_long", "too_short"):
        wanted = context.get("max_length", context.get("min_length"))
        return f"{name}: must have {wanted} values, got {context.get('actual_length')}"
    if kind in ("value_error", "assertion_error"):
        return f"{name}: {context.get('error', detail['msg'])}" if name else str(context.get("error", detail["msg"]))
    for start, words in _KINDS:
        if kind.startswith(start):
            return f"{name}: {value} {words}"
    return f"{name}: {value}: {detail['msg'][:1].lower()}{detail['msg'][1:]}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
