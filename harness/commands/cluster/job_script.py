"""`harness cluster job-script`: a job as a Slurm batch script or a Kubernetes MPIJob."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import click

from harness.cluster.job_scripts import Kubernetes, Slurm, mpijob_manifest, slurm_script, validate_mpijob
from harness.common.paths import PROJECT
from harness.job.declaration import Job
from harness.job.options import job_options_without, make_job

# Who starts the processes, and where, is the script's business; elastic and self-tuning jobs `harness run` starts.
_JOB = job_options_without("hostfile", "launcher", "min_np", "max_np", "tune_steps")
_LIMIT_S = 3600.0  # where no --time-limit is given


@click.group()
def job_script() -> None:
    """Write a Slurm script or a Kubernetes MPIJob for a job; the options are those of `harness run`."""


def _name_option(text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option("--name", default="harness", show_default=True, help=text)


@job_script.command()
@_JOB
@_name_option("Job name.")
@click.option("--partition", default="", help="Slurm partition.")
@click.option("--account", default="", help="Slurm account.")
@click.option("--folder", default=str(PROJECT), help="The project on the cluster (default: this folder).")
@click.option("--python", default="", help="Interpreter on the cluster (default: .venv/bin/python in the folder).")
@click.option("--results", default="", help="Results folder on the cluster.")
@click.pass_context
def slurm(context: click.Context, **options: Any) -> None:
    """A batch script. Slurm ends the job after --time-limit, or after 1 hour.

    \b
    harness cluster job-script slurm --backend deepspeed --nodes 2 --slots 4 > job.sh; sbatch job.sh
    """
    place = _taken(Slurm, options)
    place["python"] = place["python"] or f"{place['folder']}/.venv/bin/python"
    job, words = make_job(options), worker_words(context, options)
    click.echo(slurm_script(job, words, Slurm(**place, limit_s=_limit_s(job, options))), nl=False)


@job_script.command()
@_JOB
@_name_option("Name of the MPIJob.")
@click.option("--namespace", default="default", show_default=True, help="Kubernetes namespace.")
@click.option("--image", required=True, help="Image made from the repository's Dockerfile, in a registry of yours.")
@click.option("--results-claim", default="", help="PersistentVolumeClaim for results (default: lost with the pods).")
@click.option("--data-claim", default="", help="PersistentVolumeClaim that the pods see at /data.")
@click.option("--cpus", default="4", show_default=True, help="CPUs per worker pod.")
@click.option("--memory", default="16Gi", show_default=True, help="Memory per worker pod.")
@click.pass_context
def mpijob(context: click.Context, **options: Any) -> None:
    """A manifest. Kubernetes ends the job after --time-limit, or after 1 hour.

    \b
    harness cluster job-script mpijob --backend horovod --nodes 2 --image REG/IMG > job.yaml; kubectl apply -f job.yaml
    """
    import yaml

    place = _taken(Kubernetes, options)
    job, words = make_job(options), worker_words(context, options)
    manifest = mpijob_manifest(job, words, Kubernetes(**place, limit_s=_limit_s(job, options)))
    validate_mpijob(manifest)
    click.echo(yaml.safe_dump(manifest, sort_keys=False, width=110), nl=False)


def _taken(place: type[Slurm] | type[Kubernetes], options: dict[str, Any]) -> dict[str, Any]:
    """The options that describe where the job runs, taken out of `options`: what stays describes the job."""
    return {item.name: options.pop(item.name) for item in fields(place) if item.name in options}


def _limit_s(job: Job, options: Mapping[str, Any]) -> float:
    """Seconds after which whoever runs the script ends the job; 0: --time-limit 0 asks for no limit."""
    return _LIMIT_S if options["time_limit_s"] is None else job.time_limit_s


def worker_words(context: click.Context, options: Mapping[str, Any]) -> list[str]:
    """The job options as they were given, for harness/run.py; where and how long it runs is the script's business."""
    words: list[str] = []
    for parameter in context.command.params:
        value = options.get(parameter.name or "")
        if parameter.name in ("nodes", "slots", "time_limit_s") or value is None or value == ():
            continue
        flag = parameter.opts[0]
        if isinstance(value, bool):
            words.append(flag if value else parameter.secondary_opts[0])
        elif isinstance(parameter, click.Option) and parameter.multiple:
            words += [word for item in value for word in (flag, str(item))]
        else:
            words += [flag, ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)]
    return words
