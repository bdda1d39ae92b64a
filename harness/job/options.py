"""The options that describe a job: the same for `harness run` and for the worker under any launcher."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click
from click.shell_completion import CompletionItem

import backends
from backends.declared import check_field, field_info, nearest, unknown
from core_model.user_job.source import source_of
from harness.common.paths import PROJECT
from harness.job.declaration import TABLES, Job, JobError, with_source
from harness.job.engines import parse_value
from harness.job.measured_defaults import with_measured
from harness.job.quantities import seconds

_F = Callable[..., Any]

_DECIDED = frozenset({"compile"})  # on or off where the user does not say: harness.job.measured_defaults
# Fields without an option of their own: tables (by --set), and what a study decides.
_NO_OPTION = TABLES | {"concurrent", "repeat"}
# Options that are not called as their field is.
_FLAGS = {
    "timeout_s": "--timeout",
    "time_limit_s": "--time-limit",
    "emulate_compute_ms": "--emulate-compute",
    "run": "--run-name",
}
_PATHS = frozenset({"hostfile", "init_weights"})
_TIMES = frozenset({"timeout_s", "time_limit_s"})

# Settings of an engine that have an option, each behind a field of the job: (field, flag, engine, metavar, help).
_ENGINE_OPTIONS = (
    ("backend", "--zero-stage", "zero_stage", "STAGE", "DeepSpeed's ZeRO stage, 0-3."),
    ("hostfile", "--min-np", "min_np", "N", "Elastic Horovod: minimum number of workers when hosts are lost."),
    (
        "hostfile",
        "--max-np",
        "max_np",
        "N",
        "Elastic Horovod: maximum number of workers when the hostfile gains hosts.",
    ),
    ("hostfile", "--autotune", "tune_steps", "STEPS", "Horovod: tune fusion and cycle time for STEPS before the run."),
)


class Time(click.ParamType):
    """``90``, ``90s``, ``10m`` or ``1.5h`` as seconds (float); anything else is refused in one line.

    Args:
        zero: whether 0 is allowed: no limit, or none at all, as the option says.
    """

    name = "time"

    def __init__(self, *, zero: bool = False) -> None:
        self.zero = zero

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        return seconds(str(value), param.opts[0] if param is not None else "time", zero=self.zero)


class FieldType(click.ParamType):
    """The type of an option that sets a field of the job: checked, named and completed as the field is declared."""

    def __init__(self, field: str, flag: str) -> None:
        self.field, self.flag = field, flag
        info = field_info(Job, field)
        kinds = {info.annotation, *get_args(info.annotation)}
        literal = get_origin(info.annotation) is Literal
        self.choices = [str(item) for item in get_args(info.annotation)] if literal else []
        if self.choices:
            self.name = "|".join(filter(None, self.choices))
        elif field in _TIMES:
            self.name = "time"
        else:
            self.name = "integer" if int in kinds else "float" if float in kinds else "text"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        if self.choices:
            return f"[{self.name}]"
        return "PATH" if self.field in _PATHS else "B1,B2" if self.field == "betas" else self.name.upper()

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if self.field == "betas" and isinstance(value, str):
            value = value.split(",")
        if self.field in _TIMES:
            value = seconds(str(value), self.flag, zero=True)
        checked = check_field(Job, self.field, value, JobError, self.flag)
        return 0.0 if checked is None else checked  # to click, None would be an option that was not given

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        if self.field in _PATHS:
            return [CompletionItem(incomplete, type="file")]
        known = backends.names() if self.field == "backend" else self.choices
        return [CompletionItem(item) for item in known if item and item.startswith(incomplete)]


class WholeNumber(click.ParamType):
    """A whole number of at least `least`, refused in one line."""

    name = "integer"

    def __init__(self, flag: str, least: int = 0) -> None:
        self.flag, self.least = flag, least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            number = int(value)
        except ValueError:
            raise JobError(f"{self.flag}: '{value}' is not a whole number") from None
        if number < self.least:
            raise JobError(f"{self.flag}: must be at least {self.least}, got {number}")
        return number


def model_option(command: _F) -> _F:
    """The option that takes a job of the user's own instead of a preset of this project."""
    text = "Your own job instead of a preset: FILE.py:FUNCTION, or hf:NAME of transformers (docs/your-model.md)."
    return click.option("--model", "source", metavar="SOURCE", help=text)(command)


def with_model(values: dict[str, Any], source: str | None, *, preset_given: bool) -> dict[str, Any]:
    """`values` with what --model named in place of the preset. Raises JobError where a preset was given too."""
    if source is None:
        return values
    if preset_given:
        raise JobError("--model and --preset exclude each other: choose one")
    if source_of(source) is None:
        raise JobError(f"--model {source}: write FILE.py:FUNCTION or hf:NAME (a preset of this project: --preset)")
    return {**values, "preset": source}


def what_to_train(options: Mapping[str, Any], *, preset: str, data: str = "textures") -> dict[str, Any]:
    """preset and data of an experiment's options --model, --preset and --data, with the experiment's own defaults.
    Raises JobError."""
    given = {name: options[name] for name in ("preset", "data") if options.get(name) is not None}
    values = with_model(given, options.get("source"), preset_given="preset" in given)
    if source_of(str(values.get("preset", preset))) is None:
        values = {"preset": preset, "data": data, **values}
    return values


def _options(without: Collection[str] = ()) -> Iterator[Callable[[_F], _F]]:
    """click's option of every field of the job that has one, in the order of their declaration. Their default is None:
    what the user did not say is Job's default. without: fields and engine settings that get none here."""
    for field in fields(Job):
        info = field_info(Job, field.name)
        if field.name not in _NO_OPTION and field.name not in without:
            flag = _FLAGS.get(field.name, f"--{field.name.replace('_', '-')}")
            if info.annotation is bool:
                names = f"{flag}/--no-{flag[2:]}" if info.default or field.name in _DECIDED else flag
                yield click.option(names, field.name, is_flag=True, default=None, help=info.description)
            else:
                yield click.option(flag, field.name, type=FieldType(field.name, flag), help=info.description)
        if field.name == "preset":
            yield model_option
        for behind, flag, setting, metavar, text in _ENGINE_OPTIONS:
            if behind == field.name and setting not in without:
                yield click.option(flag, setting, type=WholeNumber(flag), metavar=metavar, help=text)
    yield click.option(
        "--set",
        "settings",
        multiple=True,
        metavar="KEY=VALUE",
        help="Any job field; engine.KEY, model.KEY, data_options.KEY, loss_scale.KEY.",
    )


def job_options(command: _F) -> _F:
    """Adds the options of a job to a click command, which gets them as keyword arguments."""
    return job_options_without()(command)


def job_options_without(*names: str) -> Callable[[_F], _F]:
    """`job_options` but for some, which the command decides itself or has no use for: a command takes no option only to
    refuse it.

    Args:
        names: fields of the job, and settings of engines that have an option (`zero_stage`, `min_np` ...).
    """

    def decorate(command: _F) -> _F:
        for option in reversed(list(_options(without=names))):
            command = option(command)
        return command

    return decorate


# What jobs of a study do not share: engines and their settings, numbers of workers and names of runs are the study's,
# and what is left of a study is always gone on with.
OF_THE_STUDY = ("backend", "slots", "run", "study", "zero_stage", "min_np", "max_np", "tune_steps", "resume")


def apply_settings(values: dict[str, Any], settings: tuple[str, ...]) -> None:
    """Puts ``key=value`` and ``engine.key=value`` into `values`, in place. Raises JobError for an unknown field, a
    wrong type or range."""
    known = Job.names()
    for setting in settings:
        key, separator, text = setting.partition("=")
        if not separator:
            raise JobError(f"--set {setting}: write it as KEY=VALUE")
        head, dot, tail = key.partition(".")
        if head not in known:
            raise JobError(f"--set {setting}: {unknown('job field', head, known)}")
        if not dot:
            values[head] = check_field(Job, head, parse_value(text), JobError, f"--set {head}")
            continue
        if head not in TABLES:
            raise JobError(f"--set {setting}: {head} has no parts: write it as --set {head}=VALUE")
        if not tail:
            raise JobError(f"--set {setting}: write it as {head}.KEY=VALUE")
        values[head] = {**(values.get(head) or {}), tail: parse_value(text)}


def check_no_engine_settings(settings: Collection[str]) -> None:
    """Raises JobError where --set of a command with several engines (`settings`) sets something of an engine."""
    if any(text.startswith("engine.") for text in settings):
        raise JobError("write an engine's settings behind its name: --backends deepspeed:zero_stage=1,horovod")


def with_version(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` on top of what their model version sets, where they name one."""
    if not values.get("version"):
        return dict(values)
    from core_model.study_versions import version

    return {**version(str(values["version"])).optimization, **values}


def job_values(options: Mapping[str, Any]) -> dict[str, Any]:
    """The job fields that were given (not None), each checked, with --zero-stage, --clip-norm 0 and --set folded in."""
    given = {name: value for name, value in options.items() if value is not None}
    settings = given.pop("settings", ())
    given = with_model(given, given.pop("source", None), preset_given="preset" in given)
    engine: dict[str, Any] = {}
    for _, flag, name, *_ in _ENGINE_OPTIONS:
        value = given.pop(name, None)
        if value is None:
            continue
        owner = "deepspeed" if name == "zero_stage" else "horovod"
        if given.get("backend", owner if name == "zero_stage" else "single") != owner:
            raise JobError(f"{flag} belongs to {owner}, not to {given.get('backend', 'single')}: leave it out")
        if owner == "horovod" and value < 1:
            raise JobError(f"{flag}: must be at least 1, got {value}")
        engine[name] = value
    if engine:
        given["engine"] = {**given.get("engine", {}), **engine}
    apply_settings(given, settings)
    return with_version(with_source(Job.checked(given)))


def names_in(text: str, known: Collection[str], what: str) -> list[str]:
    """``a,b`` as names, each one of `known`. Raises JobError that calls them `what`."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            near = nearest(name, known)
            hint = f" (did you mean '{near}'?)" if near else ""
            raise JobError(f"unknown {what} '{name}'{hint}: choose of {', '.join(known)}")
    return names


def results_root(folder: str | None) -> Path:
    """The results folder: the option, $HARNESS_RESULTS, or results/ beside the packages, or in the current folder."""
    if folder or os.environ.get("HARNESS_RESULTS"):
        return Path(folder or os.environ["HARNESS_RESULTS"]).absolute()
    beside = PROJECT / "results"
    return beside if beside.is_dir() else Path.cwd() / "results"


def share_evenly(values: dict[str, Any], workers: int) -> None:
    """Where no global batch was given: Job's default, rounded up to what `workers` can share evenly. In place."""
    shares = workers * int(values.get("accumulation", 1))
    if "global_batch" not in values and shares > 0:
        values["global_batch"] = -(-Job.global_batch // shares) * shares


def make_job(options: Mapping[str, Any]) -> Job:
    """The validated job of these options; slots that were not given come from the hostfile of a several-node job, and
    the global batch is made to fit all workers."""
    values = job_values(options)
    if values.get("nodes", 1) > 1 and "slots" not in values:
        from harness.job.hosts import slots_from_hostfile

        values["slots"] = slots_from_hostfile(values["nodes"], values.get("hostfile", ""))
    elif values.get("hostfile") and not values.get("max_np"):
        from harness.job.hosts import say_idle

        say_idle(values["hostfile"], values.get("nodes"), values.get("slots"))
    share_evenly(values, int(values.get("nodes", Job.nodes)) * int(values.get("slots", Job.slots)))
    return Job.from_dict(with_measured(values)).validate()
