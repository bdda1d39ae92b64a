"""One rank's job from start to end: builds, trains and evaluates. What of it is written down is `Recording`'s."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from backends.process.rank import ProcessFacts
from harness.instruments import process_memory
from harness.job.declaration import Job, JobError
from harness.protocol.console import Output, Progress
from harness.protocol.run_summary import end_lines
from harness.worker.recording import Recording, published, rank_facts

_MOST_ROWS = 2000  # of the resource sampler that a rank keeps for rank 0, which writes its own at once


class Run:
    """Runs one rank's job. `work` reads top to bottom."""

    def __init__(self, job: Job, facts: ProcessFacts, output: Output, results: Path, run_dir: Path | None) -> None:
        self.job, self.facts, self.output = job, facts, output
        self.recording = Recording(facts, output, results, run_dir)
        self.test_set: Any = None  # None: the job is not evaluated
        self.tuned: dict[str, Any] | None = None  # what Horovod's tuner found in the phase before this run
        self.study_pids: Sequence[int] = ()  # processes beside the job that are no foreign load
        self._held_before: float | None = None
        self._places: list[dict[str, Any]] = []  # of all ranks, see `place_of_process`
        self._kept_rows: list[dict[str, Any]] = []
        self._trained_s = 0.0  # what a resumed run's kept steps took, on rank 0

    def work(self, *, leave: bool = True) -> None:
        """Builds, trains, evaluates, records. leave: the process group is not needed any more."""
        begin = time.perf_counter()
        if self.facts.world_size != self.job.world_size and self.job.elastic is None:
            raise JobError(
                f"{self.job.world_size} workers were asked for, {self.facts.launcher} started {self.facts.world_size}: "
                "see what it says in log.txt"
            )
        model, train_set, batches, hashes = self._build()
        start_step = self._resume()
        self._record_environment(train_set, model)
        self.recording.phases["setup_s"] = time.perf_counter() - begin

        with self._sampler() as sampler:
            observed = self._train(batches, model, train_set, start_step)
        self._conclude(model, hashes, observed | _of_sampler(sampler) | {"resources": self._kept_rows})
        if leave:
            self.backend.close()
        else:
            self.backend.release()

    # -- building ------------------------------------------------------------------------------------------------------
    def _build(self) -> tuple[Any, Any, Any, dict[str, Any]]:
        """(model, training set, this rank's batches, hashes), the engine prepared."""
        import torch

        from harness.instruments.memory_theory import sizes
        from harness.worker.model_and_data import (
            build_dataset,
            capture_ahead,
            prepare,
            trainable_weights,
            weights_digest,
        )

        os.environ.setdefault("OMP_NUM_THREADS", str(self.job.threads))
        torch.set_num_threads(self.job.threads)
        torch.manual_seed(self.job.seed)
        self.backend = backend = self._engine()
        self._held_before = _allocated(torch, backend.device)
        self._open_folder()
        model = self._model()
        job = self.job
        train_set = build_dataset(job, model, "train")
        self._open_test_set(model, train_set.notes)
        batches, fingerprint = self._batches(model, train_set)
        hashes = {"data": _digest(train_set.describe()), "sample_order": fingerprint}
        if backend.rank == 0 or job.elastic:  # of an elastic job any rank may be the first in the end
            hashes["init_weights"] = weights_digest(trainable_weights(model))
        if code := getattr(model, "code_hash", ""):
            hashes["job_code"] = code
            self._same_everywhere(code)
        self._compare_with_study(len(train_set))
        # Before sharding, in one order: ranks that met categories in different orders would call different collectives.
        model.prepare_text(train_set.categories)
        self.model_sizes = sizes(model)
        prepare(backend, model, job)
        capture_ahead(job, model, train_set)
        return model, train_set, batches, hashes

    def _engine(self) -> Any:
        import backends

        job = self.job
        settings = backends.settings_from(job.backend, self._engine_settings())
        return backends.load(job.backend)(settings, self.facts, device=job.device, timeout_s=job.timeout_s)

    def _engine_settings(self) -> dict[str, Any]:
        """The job's settings of the engine, with what a profile or a tuning phase puts in their place."""
        job = self.job
        if job.profile == "engine":
            from harness.instruments.profiling import engine_job

            return dict(engine_job(job, self.recording.run_dir).engine)
        if job.tune_steps:
            from harness.worker.horovod_autotune import tuned_settings

            self.recording.extra["autotune"] = self.tuned
            return tuned_settings(job, self.tuned)
        return dict(job.engine)

    def _open_folder(self) -> None:
        self.job = self.recording.open(self.job, self.backend)

    def _model(self) -> Any:
        from harness.worker.model_and_data import build_model

        model = build_model(self.job, device=self.backend.device)
        self.job = self.job.with_(image_size=model.image_size)
        if self.job.emulate_compute_ms:
            from harness.worker.emulated_compute import emulate

            emulate(model, self.job.emulate_compute_ms / self.job.accumulation)
        return model

    def _same_everywhere(self, code: str) -> None:
        """The user's file is read on every host: raises JobError where it is another one there."""
        if self.job.elastic is None and self.backend.broadcast(code) != code:
            raise JobError(
                f"{self.job.preset}: the file on {self.facts.hostname} is not rank 0's: copy it to every host, to the "
                "same path"
            )

    def _open_test_set(self, model: Any, notes: Sequence[str]) -> None:
        """Before the training: what is wrong with the test set is found before the time is spent, and what it lacks is
        said, beside the training set's `notes`."""
        from core_model.data.splits import subset
        from harness.worker.model_and_data import build_dataset

        found = list(notes)
        if self.job.eval_samples >= 0 and getattr(model, "supports_maps", True):
            self.test_set = build_dataset(self.job, model, "test")
            found += self.test_set.lacks(subset(len(self.test_set), self.job.eval_samples, self.job.seed))
        for note in found:
            if note not in self.recording.warnings:
                self.recording.warnings.append(note)
                if self.facts.rank == 0:
                    self.output.say(f"warning: {note}")

    def _batches(self, model: Any, dataset: Any) -> tuple[Any, str]:
        """This rank's loader factory (start step -> iterable) and the fingerprint of the global sample order."""
        from harness.worker.model_and_data import build_loader, order_of

        job, cuda = self.job, self.backend.device.type == "cuda"

        def loader(start_step: int) -> Any:
            return build_loader(job, self.facts, model, dataset, start_step=start_step, pin_memory=cuda)

        return loader, order_of(job, dataset).fingerprint(job.steps)

    def _compare_with_study(self, pictures: int) -> None:
        """A job that names a version of the NCHC study says in what it is not that study's run."""
        if not self.job.version:
            return
        from core_model.study_versions import version

        job, asked = self.job, version(self.job.version)
        self.recording.warnings += asked.unmet(
            world_size=job.world_size,
            nodes=job.nodes,
            cuda=self.backend.device.type == "cuda",
            data=job.data,
            preset=job.preset,
        )
        if job.steps != asked.steps(pictures):
            self.recording.warnings.append(
                f"the study's {job.version} is {asked.steps(pictures)} steps on this data; this run has {job.steps}"
            )

    def _resume(self) -> int:
        """Loads the last good checkpoint where asked; returns the step to go on from."""
        from harness.worker.resuming import resume

        step, self._trained_s = resume(self.job, self.backend, self.recording)
        return step

    def _record_environment(self, dataset: Any, model: Any) -> None:
        from harness.instruments.gpus import uuid_of
        from harness.instruments.resource_sampler import place_of_process

        device, record = self.backend.device, self.recording
        own = rank_facts(self.facts, device, place_of_process(uuid_of(device)))
        self._places = self.backend.broadcast(self.backend.gather(own))
        if record.folder is None:
            return
        record.write_environment(self.job, published(self._places))
        record.data, record.model = dataset.describe(), model.describe()

    # -- training ------------------------------------------------------------------------------------------------------
    def _sampler(self) -> Any:
        from harness.instruments.resource_sampler import ResourceSampler, watch_of

        rank, kept = self.facts.rank, self._kept_rows
        watch = watch_of(self._places, rank, self.study_pids) if self._places else None

        def on_row(row: Mapping[str, Any]) -> None:
            self.recording.add_resources([row])
            if watch is not None and rank:
                kept.append(dict(row))
                if len(kept) > _MOST_ROWS:
                    del kept[1::2]

        return ResourceSampler(on_row, rank=rank, host=self.facts.hostname, watch=watch)

    def _train(self, loader: Any, model: Any, dataset: Any, start_step: int) -> dict[str, Any]:
        """Trains; returns what was observed on the way: steps done, rows of split.jsonl and what they cost, memory by
        kind, the profile."""
        import torch

        from core_model.training.trainer import Trainer, in_turn
        from harness.instruments.step_timing import StepSplit
        from harness.instruments.step_work import WorkCounter
        from harness.records.checkpoints import save_checkpoint
        from harness.worker.fault_injection import before_step

        backend, phases = self.backend, self.recording.phases
        code = getattr(model, "code_files", {})
        progress = Progress(self.output.screen, total=self.job.steps) if self.output.screen else None
        timed = start_step + self.job.timing_warmup
        split = StepSplit(model, backend.device, first=timed)
        work = WorkCounter(model, first=timed, recompute=self.job.activation_checkpointing)
        profiler = self._profiler(start_step)
        # A planted fault comes after the split has begun: what delays this rank there is its own time.
        hooks = [self._seeds(model), split.before_step, before_step(self.facts.rank)]
        hooks += [profiler.before_step] if profiler is not None else []
        trainer = Trainer(
            backend,
            loader(start_step),
            self._plan(len(dataset), start_step),
            on_rows=lambda rows: self._on_rows(rows, progress),
            on_checkpoint=lambda step: save_checkpoint(backend, self.recording.folder, self.job, step, code),
            before_step=in_turn(*hooks),
            after_step=in_turn(split.after_step, work.after_step),
        )
        backend.barrier()
        _reset_peaks(torch, backend.device)
        captures, begin = getattr(model, "captures", 0), time.perf_counter()
        steps = trainer.train()
        phases["train_s"] = time.perf_counter() - begin
        if late := getattr(model, "captures", 0) - captures:
            self.recording.model["graphs_captured_while_training"] = late
        if profiler is not None:
            profiler.close()
        if progress is not None:
            progress.close()
        return {
            "steps": steps,
            "split": split.rows(),
            "split_cost": split.cost_s / phases["train_s"],
            "kinds": split.memory_kinds(),
            "flops": work.counted(),
            "profile": profiler.summary if profiler is not None else None,
        }

    def _plan(self, samples: int, start_step: int = 0) -> Any:
        from core_model.training.trainer import Plan

        job = self.job
        return Plan(
            steps=job.steps,
            start_step=start_step,
            start_s=self._trained_s,
            scaled=job.precision == "fp16",
            log_every=job.log_every,
            checkpoint_every=job.checkpoint_every,
            samples_per_step=job.global_batch,
            steps_per_epoch=samples / job.global_batch,
        )

    def _on_rows(self, rows: list[dict[str, Any]], progress: Progress | None = None) -> None:
        self.recording.add_steps(rows)
        if progress is not None:
            progress.tell(rows)

    def _seeds(self, model: Any) -> Callable[[int], None] | None:
        """A before_step that gives the step's dropout its random numbers; None for a model without."""
        from core_model.training.dropout_seeds import step_seeds

        seeds = step_seeds(model, self.job.seed)
        return None if seeds is None else lambda step: seeds(step, self.backend.rank)  # an elastic job's rank changes

    def _profiler(self, start_step: int) -> Any:
        """The profiler of a job that asks for one; such a run's times never count."""
        if self.job.profile in ("", "engine"):
            return None
        from harness.instruments.profiling import Profiler

        return Profiler(
            self.job.profile,
            rank=self.facts.rank,
            first=start_step + self.job.timing_warmup,
            folder=self.recording.folder,
            cuda=self.backend.device.type == "cuda",
        )

    # -- after the training --------------------------------------------------------------------------------------------
    def _conclude(self, model: Any, hashes: dict[str, Any], observed: dict[str, Any]) -> None:
        """Evaluates and, on rank 0, records; every rank calls it after training."""
        from harness.worker.evaluation.evaluate import batch_statistics
        from harness.worker.model_and_data import weights_digest

        backend, record = self.backend, self.recording
        ranks = backend.gather(self._peaks() | observed)
        wanted = self.job.keep_weights or self.job.eval_samples >= 0
        weights = backend.weights() | backend.broadcast(batch_statistics(model)) if wanted else {}
        outcome = self._evaluate(model, weights)
        description = backend.describe() | record.described
        if backend.rank == 0:
            hashes["weights"] = weights_digest(weights) if weights else None
            evaluation = record.add_evaluation(outcome, self.test_set)
            record.add_weights(self.job, weights)
            record.add_observations(ranks)
            figures = self._figures(ranks, description)
            record.finish(self.job, observed["steps"], figures | {"evaluation": evaluation, "hashes": hashes})
        backend.barrier()
        record.finished = True
        if self.output.screen is not None and record.folder is not None:
            self.output.say("\n".join(end_lines(record.folder)))

    def _figures(self, ranks: Sequence[Mapping[str, Any]], description: dict[str, Any]) -> dict[str, Any]:
        """Parts of result.json from what each rank observed. description: the engine's."""
        from harness.instruments.memory_theory import expected_mib_of, memory_by_kind
        from harness.instruments.step_work import per_sample

        self.recording.warnings += [
            f"the resource sampler of rank {rank} stopped: {own['sampler_error']}"
            for rank, own in enumerate(ranks)
            if own["sampler_error"]
        ]
        return {
            "memory": {
                "peak_rss_mib": [own["rss_mib"] for own in ranks],
                "peak_device_mib": [own["device_mib"] for own in ranks],
                "held_before_mib": [own["held_before_mib"] for own in ranks],
                **memory_by_kind(ranks, expected_mib_of(self.job.to_dict(), description, self.model_sizes)),
            },
            "measurement": {
                "sampler_cost": max(own["sampler_cost"] for own in ranks),
                "split_cost": max(own["split_cost"] for own in ranks),
            },
            "hosts": [own["machine"] for own in ranks if own["machine"] is not None],
            "flops": per_sample([own["flops"] for own in ranks]),
            "engine": description,
        }

    def _peaks(self) -> dict[str, Any]:
        import torch

        device = self.backend.device
        cuda = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None
        return {"rss_mib": process_memory.mib("VmHWM"), "device_mib": cuda, "held_before_mib": self._held_before}

    def _evaluate(self, model: Any, weights: dict[str, Any]) -> Any:
        """Figures and entries on rank 0; None elsewhere, and where the job is not evaluated."""
        if self.test_set is None and not (self.job.eval_samples >= 0 and hasattr(model, "evaluate")):
            return None
        from harness.worker.evaluation.evaluate import evaluate_job

        begin = time.perf_counter()
        outcome = evaluate_job(self.job, model, weights, self.test_set, self.backend)
        self.recording.phases["eval_s"] = time.perf_counter() - begin
        return outcome


def _of_sampler(sampler: Any) -> dict[str, Any]:
    return {"sampler_cost": sampler.cost, "sampler_error": sampler.error, "machine": sampler.machine()}


def _digest(facts: Any) -> str:
    """SHA-256 of a JSON-serializable description, the same for the same data wherever it lies."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def _allocated(torch: Any, device: Any) -> float | None:
    """MiB of device memory that tensors of this process hold; None on a CPU."""
    return float(torch.cuda.memory_allocated(device)) / 2**20 if device.type == "cuda" else None


def _reset_peaks(torch: Any, device: Any) -> None:
    """Peak memory counts from here: training, not loading."""
    process_memory.reset_peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
