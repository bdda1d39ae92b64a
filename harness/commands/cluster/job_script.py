"""`harness cluster job-script`: a job as a Slurm batch script or a Kubernetes MPIJob."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from harness.cluster.job_scripts import mpijob_manifest, slurm_script, validate_mpijob
from harness.commands.number_types import COUNT
from harness.common.paths import PROJECT
from harness.job.options import job_options, make_job


@click.group()
def job_script() -> None:
    """Write a Slurm script or a Kubernetes MPIJob for a job; the options are those of `harness run`."""


@job_script.command()
@job_options
@click.option("--name", default="harness", show_default=True, help="Job name.")
@click.option("--time", "limit", default="01:00:00", show_default=True, help="[D-]HH:MM:SS after which Slurm ends it.")
@click.option("--partition", default="", help="Slurm partition.")
@click.option("--account", default="", help="Slurm account.")
@click.option("--folder", default=str(PROJECT), help="The project on the cluster (default: this folder).")
@click.option("--python", default="", help="Interpreter on the cluster (default: .venv/bin/python in the folder).")
@click.option("--results", default="", help="Results folder on the cluster.")
@click.pass_context
def slurm(
    context: click.Context,
    name: str,
    limit: str,
    partition: str,
    account: str,
    folder: str,
    python: str,
    results: str,
    **options: Any,
) -> None:
    """A batch script.

    \b
    harness cluster job-script slurm --backend deepspeed --nodes 2 --slots 4 > job.sh; sbatch job.sh
    """
    words = worker_words(context, options)
    python = python or f"{folder}/.venv/bin/python"
    job = make_job(options)
    click.echo(slurm_script(job, words, name, limit, partition, account, folder, python, results), nl=False)


@job_script.command()
@job_options
@click.option("--name", default="harness", show_default=True, help="Name of the MPIJob.")
@click.option("--namespace", default="default", show_default=True)
@click.option("--image", required=True, help="Image made from the repository's Dockerfile, in a registry of yours.")
@click.option("--results-claim", default="", help="PersistentVolumeClaim for results (default: lost with the pods).")
@click.option("--data-claim", default="", help="PersistentVolumeClaim that is seen at /data.")
@click.option("--cpus", default="4", show_default=True, help="CPUs a worker pod.")
@click.option("--memory", default="16Gi", show_default=True, help="Memory a worker pod.")
@click.option("--limit-s", type=COUNT, default=3600, show_default=True, help="Seconds after which Kubernetes ends it.")
@click.pass_context
def mpijob(
    context: click.Context,
    name: str,
    namespace: str,
    image: str,
    results_claim: str,
    data_claim: str,
    cpus: str,
    memory: str,
    limit_s: int,
    **options: Any,
) -> None:
    """A manifest.

    \b
    harness cluster job-script mpijob --backend horovod --nodes 2 --image REG/IMG > job.yaml; kubectl apply -f job.yaml
    """
    import yaml

    words = worker_words(context, options)
    manifest = mpijob_manifest(
        make_job(options), words, name, namespace, image, results_claim, data_claim, cpus, memory, limit_s
    )
    validate_mpijob(manifest)
    click.echo(yaml.safe_dump(manifest, sort_keys=False, width=110), nl=False)


def worker_words(context: click.Context, options: Mapping[str, Any]) -> list[str]:
    """The job options as they were given, for harness/run.py; where it runs is the script's business."""
    words: list[str] = []
    for parameter in context.command.params:
        value = options.get(parameter.name or "")
        if parameter.name in ("nodes", "slots", "hostfile", "launcher") or value is None or value == ():
            continue
        flag = parameter.opts[0]
        for item in value if isinstance(value, tuple) else (value,):
            words += [flag] if item is True else [flag, str(item)]
    return words
