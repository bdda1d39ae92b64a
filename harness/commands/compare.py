"""`harness compare`: a study from its options or its file, run (`harness.study.runner`), then reported."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from harness.commands.list_types import COUNTS, ENGINES, Counts
from harness.commands.options import dry_run_option, results_option
from harness.job.declaration import JobError
from harness.job.options import OF_THE_STUDY, check_no_engine_settings, job_options_without, job_values, results_root
from harness.protocol.console import tell
from harness.records.locks import holder_of
from harness.study import shipped
from harness.study.runner import preflight_all, run_study, what_is_left
from harness.study.study_file import BUDGET, UNTIL, Study
from harness.study.time_estimate import estimate_study, plan_text


def _complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    found = [CompletionItem(name) for name in shipped.names() if name.startswith(incomplete)]
    return found or [CompletionItem(incomplete, type="file")]


def study_from_options(options: Mapping[str, Any]) -> Study:
    """The study that the command's options declare.

    Args:
        options: those of the command by name. declared: a shipped study's name, a TOML file or a study.json; None for
            a study of the options alone. study: its folder in results/, None for its own name.
    """
    options = dict(options)
    asked = {
        name: options.pop(name, None)
        for name in ("backends", "workers", "repeats", "seeds", "until", "budget", "tuned")
    }
    given = {name: value for name, value in asked.items() if value is not None}
    declared, name = options.pop("declared", None), options.pop("study", None)
    if name and name.endswith((".toml", ".json")):
        raise JobError(f"--study names the folder in results/: write a study's file as `harness compare {name}`")
    check_no_engine_settings(options.get("settings") or ())
    job = job_values(options)
    if declared and declared.endswith(".json"):
        if job or given or name:
            raise JobError("a recorded study is done again as it was: leave the other options out")
        return Study.from_record(Path(declared))
    if declared:
        path = Path(declared) if declared.endswith(".toml") else shipped.find(declared)
        return Study.from_toml(path, name=name, job=job, **given)
    defaults: dict[str, Any] = {"backends": ["deepspeed", "horovod"], "workers": [1, 2]}
    return Study.from_matrix(name=name or "compare", job=job, **{**defaults, **given})


@click.command()
@click.argument("declared", metavar="[STUDY]", required=False, shell_complete=_complete)
@click.option(
    "--backends", metavar="LIST", type=ENGINES, help="Engines, with their settings: deepspeed:zero_stage=1,horovod."
)
@click.option("--workers", metavar="LIST", type=COUNTS, help="Numbers of workers: 1,2,4 (default 1,2).")
@click.option("--repeats", type=click.IntRange(min=1), help="Interleaved repeats of every cell (default 3).")
@click.option(
    "--seeds", metavar="LIST", type=Counts(least=0), help="Seeds of the repeats (default: --seed, --seed + 1, ...)."
)
@click.option(
    "--until", metavar="SHARE", help=f"Duels go on until each difference is known to ±SHARE (default {UNTIL})."
)
@click.option(
    "--budget", metavar="TIME", help=f"Time for the duels after the runs: 90s, 10m; 0 = no duels (default {BUDGET})."
)
@click.option(
    "--tuned",
    type=click.Path(),
    help="tuned.toml of `harness tune`: every engine in it runs with its defaults and with its tuned settings.",
)
@click.option("--study", metavar="NAME", help="Folder in results/ (default: the study's own name).")
@job_options_without(*OF_THE_STUDY)
@results_option
@click.option("--retry-failed", is_flag=True, help="Run failed cells again; their records are replaced.")
@click.option(
    "--take-turns",
    is_flag=True,
    help="Start all processes of the study at once and let them wait for their turns: faster, if all fit in memory.",
)
@click.option(
    "--concurrent",
    type=click.IntRange(min=1),
    default=1,
    metavar="N",
    help="N runs at a time, if only quality is of interest: their times are never shown.",
)
@dry_run_option
def compare(
    results: str | None,
    retry_failed: bool,
    take_turns: bool,
    concurrent: int,
    dry_run: bool,
    **options: Any,
) -> None:
    """Run engines x workers x repeats, interleaved, and report them side by side.

    STUDY is a shipped study (`harness list studies`), a TOML file that declares the whole matrix, or the study.json of
    a study that is to be done again (with another --results). Without it the options alone say what is run.
    Finished runs are not repeated: after an interrupt the same command goes on where it stopped.

    \b
    harness compare --backends ddp,horovod,deepspeed:2 --workers 1,2
    harness compare zero-stages --repeats 5
    """
    if take_turns and concurrent > 1:
        raise JobError("--take-turns and --concurrent exclude each other: choose one")
    study = study_from_options(options)
    root = results_root(results)
    for note in study.notes:
        tell(f"note: {note}")
    if dry_run:
        todo, done = what_is_left(root / study.name, study, retry_failed)
        live = [job.run for job in todo if job.run in done and holder_of(done[job.run].folder) is not None]
        preflight_all(todo, here=False)
        told = estimate_study(study, todo, root, turns=take_turns)
        click.echo(plan_text(study, len(todo), *told))
        for job in study.jobs:
            click.echo(f"  {'live' if job.run in live else 'todo' if job in todo else 'done'}  {job.run}")
        return
    folder = run_study(study, root, retry_failed=retry_failed, turns=take_turns, concurrent=concurrent)
    fight(study, folder)
    sys.exit(finish(folder))


def fight(study: Study, folder: Path) -> None:
    """Decides the study's speed by duels; says why where none are fought."""
    from harness.experiments.duels.of_study import fight_study, why_none

    if reason := why_none(study):
        tell(f"no duels: {reason}")
        return
    try:
        fight_study(study, folder, say=tell)
    except JobError as error:  # the trainings are recorded: they are reported, and the failure is said
        tell(f"no duels: {error}")


def finish(folder: Path) -> int:
    """Writes comparison.csv, plots and report.html into the study's folder (the index is `harness results index`'s: it
    may be a tracked file), prints the last screen. Exit code 0, or 1 where a run of the study failed."""
    from harness.analysis.caveats import findings
    from harness.analysis.comparison import summarize_study
    from harness.commands.last_screen import COLUMNS, last_screen
    from harness.report.study_files import write_study_files

    comparison = summarize_study(folder)
    page = write_study_files(comparison, folder)
    columns = min(COLUMNS, shutil.get_terminal_size((COLUMNS, 24)).columns)
    click.echo("\n".join(last_screen(comparison, findings(comparison), page, columns=columns)))
    return 1 if (comparison.frame["group"] == -1).any() or comparison.left_out else 0
