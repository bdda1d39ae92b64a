"""A rank's side of its run's records: the folder that rank 0 claims, what is known before the training, the result."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from backends.process.rank import ProcessFacts
from harness.common.formatting import iso
from harness.job.declaration import Job, JobError
from harness.protocol.console import Output
from harness.records.record_files import (
    ENVIRONMENT,
    EVALUATION,
    JOB,
    LOG,
    RESOURCES,
    RESULT,
    SPLIT,
    STEPS,
    WEIGHTS,
    append_jsonl,
    finite,
    read_jsonl,
    write_json,
)
from harness.records.run_folder import claim_run_folder, write_running

Row = Mapping[str, Any]


class Recording:
    """What one rank knows of its run's record; rank 0 writes it.

    folder: the run's, on rank 0 only. run_dir: the folder that a supervisor has claimed; None: this job was started by
    hand, then rank 0 holds the folder and ends the record. warnings, extra, described, phases: what comes up on the way
    and goes into result.json: lines for readers, further keys of its own, further keys of ``engine``, seconds a phase.
    """

    def __init__(self, facts: ProcessFacts, output: Output, results: Path, run_dir: Path | None) -> None:
        self.facts, self.output, self.results = facts, output, results
        self.folder = run_dir if facts.rank == 0 else None
        self.run_dir, self.by_hand = run_dir, run_dir is None
        self.started = time.time()
        self.finished = False
        self.phases: dict[str, float] = {}
        self.warnings: list[str] = []
        self.extra: dict[str, Any] = {}
        self.described: dict[str, Any] = {}
        self.environment: dict[str, Any] = {}
        self.data: dict[str, Any] = {}
        self.model: dict[str, Any] = {}

    # -- before the training -------------------------------------------------------------------------------------------
    def open(self, job: Job, backend: Any) -> Job:
        """Collective: rank 0 claims the run's folder (unless its supervisor did), every rank's output goes to its log.
        Returns the job with the run's name. Raises JobError on every rank where no folder can be had."""
        claimed: Any = None
        if self.facts.rank == 0 and self.by_hand:
            try:
                job, self.folder = claim_run_folder(job, self.results)
                claimed = (job.run, str(self.folder))
            except JobError as error:
                claimed = error
        claimed = backend.broadcast(claimed)
        if isinstance(claimed, JobError):
            raise claimed
        if claimed is not None:
            job = job.with_(run=claimed[0])
            log = Path(claimed[1]) / LOG
            self.output.attach(log if log.parent.is_dir() else None)
        if self.folder is not None:
            write_running(self.folder, started=iso(self.started))
        return job

    def write_environment(self, job: Job, ranks: Sequence[Row]) -> None:
        """environment.json and job.json, on rank 0. ranks: the facts of each rank."""
        if self.folder is None:
            return
        from harness.records.step_metrics import environment
        from harness.worker.shared_gpus import sharing

        self.warnings += [line for line in sharing(ranks) if line not in self.warnings]
        self.environment = environment() | {"ranks": list(ranks)}
        write_json(self.folder / ENVIRONMENT, self.environment)
        write_json(self.folder / JOB, job.to_dict())

    # -- while it trains -----------------------------------------------------------------------------------------------
    def add_steps(self, rows: Sequence[Row]) -> None:
        """Rows of steps.jsonl, on rank 0."""
        assert self.folder is not None
        append_jsonl(self.folder / STEPS, rows)

    def add_resources(self, rows: Sequence[Row]) -> None:
        """Rows of resources.jsonl, kept on rank 0, passed over elsewhere."""
        if self.folder is not None:
            append_jsonl(self.folder / RESOURCES, rows)

    # -- at the end ----------------------------------------------------------------------------------------------------
    def add_observations(self, ranks: Sequence[Row]) -> None:
        """split.jsonl, the other machines' rows of resources.jsonl and the profile's table, from what `Run` gathered of
        each rank."""
        from harness.instruments.profiling import write_table

        assert self.folder is not None
        split = [{"step": row["step"], "rank": rank, **row} for rank, own in enumerate(ranks) for row in own["split"]]
        append_jsonl(self.folder / SPLIT, sorted(split, key=lambda row: (row["step"], row["rank"])))
        self.add_resources([row for own in ranks[1:] for row in own["resources"]])
        write_table(self.folder, [own["profile"] for own in ranks])

    def add_evaluation(self, outcome: Any, test_set: Any) -> dict[str, Any]:
        """evaluation.json and the examples' pictures; returns what the result repeats."""
        from harness.worker.evaluation.example_images import save_examples

        assert self.folder is not None
        if outcome is None:
            return {}
        figures, entries = outcome
        kept = [{key: value for key, value in entry.items() if key not in ("map", "mask")} for entry in entries]
        write_json(self.folder / EVALUATION, finite({**figures, "samples": kept}))
        if test_set is not None:
            save_examples(self.folder, entries, test_set)
        return figures.get("mean", figures)

    def add_weights(self, job: Job, weights: Mapping[str, Any]) -> None:
        """weights.safetensors, where the job asks for them."""
        from harness.worker.model_and_data import save_weights

        assert self.folder is not None
        if job.keep_weights:
            save_weights(weights, self.folder / WEIGHTS, {"preset": job.preset, "run": job.run})

    def finish(self, job: Job, steps: int, figures: Mapping[str, Any]) -> None:
        """Rank 0: result.json of a run that has ended well, the last file of its record. figures: what is not known
        here: ``memory, measurement, evaluation, engine, hashes, hosts`` and more."""
        from harness.records.comparability import contract
        from harness.records.step_metrics import summarize

        assert self.folder is not None
        rows = list(read_jsonl(self.folder / STEPS))
        last = {"loss": rows[-1]["loss"], "losses": rows[-1]["losses"]} if rows else {}
        self._write(
            {
                "status": "ok",
                "reason": "",
                "throughput": summarize(rows, warmup=job.timing_warmup),
                "final": {**last, "step": steps},
                "data": self.data,
                "model": self.model,
                "contract": contract(job.to_dict(), self.environment, dict(figures["hashes"]), dict(figures["engine"])),
                **figures,
                "warnings": self.warnings,
                **self.extra,
            }
        )

    def fail(self, reason: str, exit_code: int, rank: int | None = None) -> None:
        """Rank 0: a failed result, unless the run had already ended well. A supervisor that is still there writes what
        it knows over it. rank: the one whose failure it was, if not this one's."""
        if self.folder is None or self.finished:
            return
        failed = self.facts.rank if rank is None else rank
        try:
            self._write({"status": "failed", "exit_code": exit_code, "reason": f"rank {failed}: {reason}"})
        except OSError as error:
            print(f"could not record the failure: {error}", file=sys.stderr)

    def _write(self, outcome: Row) -> None:
        """result.json: `outcome` and what every result of a run that has ended holds."""
        assert self.folder is not None
        now = time.time()
        ended = {
            "started": iso(self.started),
            "ended": iso(now),
            "wall_s": now - self.started,
            "phases": self.phases,
            "world_size": self.facts.world_size,
            "launcher": self.facts.launcher,
        }
        write_json(self.folder / RESULT, finite({**ended, **outcome}))


def rank_facts(facts: ProcessFacts, device: Any, place: Row) -> dict[str, Any]:
    """What environment.json says of this rank, with what `watch_of` needs. place: `place_of_process`."""
    return {**asdict(facts), "device": str(device), "cpus": len(os.sched_getaffinity(0)), **place}


def published(ranks: Sequence[Row]) -> list[dict[str, Any]]:
    """`rank_facts` of all ranks without what differs from start to start and says nothing of the machine."""
    return [{key: value for key, value in own.items() if key not in ("pid", "namespace", "cores")} for own in ranks]
