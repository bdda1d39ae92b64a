"""Numbers of every command have ranges: what is out of them is refused before anything is started."""

from __future__ import annotations

import click
import pytest

from harness.cli import main
from harness.commands.tree import all_commands, load
from harness.job.declaration import JobError

# Numbers without a limit of their own, with the reason.
UNLIMITED = {("worker", "local_rank"): "given by a launcher"}


def numbers(command: click.Command, name: str) -> list[tuple[str, click.Parameter]]:
    if isinstance(command, click.Group):
        return [found for sub, inner in command.commands.items() for found in numbers(inner, f"{name} {sub}")]
    return [(name, parameter) for parameter in command.params if parameter.type.name in ("integer", "float")]


@pytest.mark.parametrize("name", all_commands())
def test_every_number_has_a_range(name: str) -> None:
    for path, parameter in numbers(load(name), name):
        plain = parameter.type in (click.INT, click.FLOAT)
        assert not plain or (path, parameter.name) in UNLIMITED, f"harness {path}: {parameter.name} takes any number"


LIMITS = {"--timeout", "--time-limit", "--budget"}


def leaves(command: click.Command) -> list[click.Command]:
    if isinstance(command, click.Group):
        return [found for inner in command.commands.values() for found in leaves(inner)]
    return [command]


@pytest.mark.parametrize("name", all_commands())
def test_every_time_is_written_alike(name: str) -> None:
    """Limits and budgets are called alike in every command and take a unit; a bare number is seconds."""
    for command in leaves(load(name)):
        for parameter in command.params:
            assert not any(flag.endswith("-s") for flag in parameter.opts), f"{parameter.opts} has a unit in its name"
            if LIMITS & set(parameter.opts) and name != "compare":  # there the study's own key, a text with a unit
                assert parameter.type.name == "time", f"harness {name} {parameter.opts}"
                assert parameter.type.convert("1.5m", parameter, None) == 90.0
                assert parameter.type.convert("90", parameter, None) == 90.0
                with pytest.raises(JobError, match=f"{parameter.opts[0]} '10 min': write a time such as 90s"):
                    parameter.type.convert("10 min", parameter, None)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("tune --backend horovod", "engines are --backends LIST"),
        ("tune --zero-stage 2", "--backends deepspeed:zero_stage=2,horovod"),
        ("tune --nodes 2", "No such option: --nodes: numbers of workers are --workers LIST"),
        ("compare --min-np 1", "--backends horovod:min_np=N"),
        ("compare --resume", "only `harness run` goes on from a checkpoint"),
        ("experiment max-model --try-s 60", "--try-s: it is now --time-limit"),
        ("experiment max-model --budget-s 60", "--budget-s: it is now --budget"),
        ("experiment collectives --timeout 60", "--timeout: it is now --time-limit"),
        ("experiment collectives --out x", "--out: it is now --study"),
        ("cluster job-script mpijob --limit-s 60", "--limit-s: it is now --time-limit"),
        ("cluster job-script slurm --time 01:00:00", "--time: it is now --time-limit"),
        ("model quality . --name x", "--name: it is now --study"),
        ("tune --set engine.zero_stage=1", "write an engine's settings behind its name"),
        ("cluster doctor --hosts a:1 --hostfile x", "exclude each other"),
        ("experiment parity --tuned x.toml --workers 2", "leave --backends and --workers out"),
    ],
)
def test_an_option_that_a_command_does_not_have_names_the_one_that_it_has(
    words: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words.split())
    assert ended.value.code == 2
    assert says in capsys.readouterr().err
