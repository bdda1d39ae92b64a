"""The story of one rank's job: builds, trains, evaluates and records. Rank 0 writes the records."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from backends.process.rank import ProcessFacts
from harness.common.formatting import joined
from harness.instruments import process_memory
from harness.job.declaration import Job, JobError
from harness.protocol.console import Output, Progress
from harness.protocol.run_summary import end_lines
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


class Run:
    """The story of one rank's job. `work` reads top to bottom."""

    def __init__(self, job: Job, facts: ProcessFacts, output: Output, results: Path, run_dir: Path | None) -> None:
        self.job, self.facts, self.output, self.results = job, facts, output, results
        self.folder = run_dir if facts.rank == 0 else None
        self._claimed = run_dir is not None
        self._by_hand = run_dir is None  # no supervisor: rank 0 holds the folder and ends the record
        self._run_dir = run_dir
        self._started = time.time()
        self._finished = False
        self.phases: dict[str, float] = {}
        self._held_before: float | None = None
        self.warnings: list[str] = []
        self.test_set: Any = None  # None: the job is not evaluated
        self.tuned: dict[str, Any] | None = None  # what Horovod's tuner found in the phase before this run
        self.extra: dict[str, Any] = {}  # further parts of the result
        self._trained_s = 0.0  # what a resumed run's kept steps took, on rank 0
        self.described: dict[str, Any] = {}  # ... and of its engine's description

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
        self._record_environment(train_set, model, hashes)
        self.phases["setup_s"] = time.perf_counter() - begin

        with self._sampler() as sampler:
            steps = self._train(batches, model, train_set, start_step)
        self._conclude(model, steps, sampler.cost, hashes)
        if leave:
            self.backend.close()
        else:
            self.backend.release()

    def _build(self) -> tuple[Any, Any, Any, dict[str, Any]]:
        """(model, training set, this rank's batches, hashes), the engine prepared."""
        os.environ.setdefault("OMP_NUM_THREADS", str(self.job.threads))
        import torch

        import backends
        from harness.instruments.memory_theory import sizes
        from harness.worker.model_and_data import (
            build_dataset,
            build_model,
            build_optimization,
            trainable_weights,
            weights_digest,
        )

        torch.set_num_threads(self.job.threads)
        torch.manual_seed(self.job.seed)
        engine = backends.load(self.job.backend)
        backend = engine(
            backends.settings_from(self.job.backend, self._engine_settings()),
            self.facts,
            device=self.job.device,
            timeout_s=self.job.timeout_s,
        )
        self.backend = backend
        self._held_before = _allocated(torch, backend.device)
        self._open_folder()
        job = self.job

        model = build_model(job, device=backend.device)
        self.job = job = job.with_(image_size=model.image_size)
        if job.emulate_compute_ms:
            from harness.worker.emulated_compute import emulate

            emulate(model, job.emulate_compute_ms / job.accumulation)
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
        backend.prepare(model, build_optimization(job))
        return model, train_set, batches, hashes

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
            if note not in self.warnings:
                self.warnings.append(note)
                if self.facts.rank == 0:
                    self.output.say(f"warning: {note}")

    def _engine_settings(self) -> dict[str, Any]:
        """The job's settings of the engine, with what a profile or a tuning phase puts in their place."""
        job = self.job
        if job.profile == "engine":
            from harness.instruments.profiling import engine_job

            return dict(engine_job(job, self._run_dir).engine)
        if job.tune_steps:
            from harness.worker.horovod_autotune import tuned_settings

            self.extra["autotune"] = self.tuned
            return tuned_settings(job, self.tuned)
        return dict(job.engine)

    def _conclude(self, model: Any, steps: int, sampler_cost: float, hashes: dict[str, Any]) -> None:
        """Evaluates and, on rank 0, records; every rank calls it after training."""
        from harness.worker.model_and_data import weights_digest

        backend = self.backend
        peaks = backend.gather(self._peaks() | {"sampler_cost": sampler_cost, **self._observed})
        wanted = self.job.keep_weights or self.job.eval_samples >= 0
        weights = backend.weights() | backend.broadcast(_statistics(model)) if wanted else {}
        evaluation = self._evaluate(model, weights)
        description = backend.describe() | self.described
        if backend.rank == 0:
            hashes["weights"] = weights_digest(weights) if weights else None
            self._finish(steps, peaks, evaluation, description, hashes, weights)
        backend.barrier()
        self._finished = True
        if self.output.screen is not None and self.folder is not None:
            self.output.say("\n".join(end_lines(self.folder)))

    # -- parts of the story -----------------------------------------------------------------------------------------
    def _open_folder(self) -> None:
        """Rank 0 claims the run's folder (unless its supervisor did) and every rank's output goes to its log."""
        claimed: Any = None
        if self.facts.rank == 0 and not self._claimed:
            try:
                self.job, self.folder = claim_run_folder(self.job, self.results)
                claimed = (self.job.run, str(self.folder))
            except JobError as error:
                claimed = error
        claimed = self.backend.broadcast(claimed)
        if isinstance(claimed, JobError):
            raise claimed
        if claimed is not None:
            self.job = self.job.with_(run=claimed[0])
            log = Path(claimed[1]) / LOG
            self.output.attach(log if log.parent.is_dir() else None)
        if self.folder is not None:
            write_running(self.folder, started=iso(self._started))

    def _batches(self, model: Any, dataset: Any) -> tuple[Any, str]:
        """This rank's loader factory (start step -> iterable) and the fingerprint of the global sample order."""
        from harness.worker.model_and_data import build_loader, order_of

        job, cuda = self.job, self.backend.device.type == "cuda"

        def loader(start_step: int) -> Any:
            return build_loader(job, self.facts, model, dataset, start_step=start_step, pin_memory=cuda)

        return loader, order_of(job, dataset).fingerprint(job.steps)

    def _compare_with_study(self, pictures: int) -> None:
        """A job that names a version of the study says in what it is not the study's run."""
        if not self.job.version:
            return
        from core_model.study_versions import version

        job, asked = self.job, version(self.job.version)
        self.warnings += asked.unmet(
            world_size=job.world_size,
            nodes=job.nodes,
            cuda=self.backend.device.type == "cuda",
            data=job.data,
            preset=job.preset,
        )
        if job.steps != asked.steps(pictures):
            self.warnings.append(
                f"the study's {job.version} is {asked.steps(pictures)} steps on this data; this run has {job.steps}"
            )

    def _resume(self) -> int:
        """Loads the last good checkpoint where asked; returns the step to go on from."""
        from harness.records.checkpoints import check_matches, cut_steps, cut_torn_lines, latest

        if not self.job.resume:
            return 0
        found: Any = None
        if self.folder is not None:
            try:
                found = latest(self.folder)
                if found is not None:
                    check_matches(found.folder, self.job, self.facts.world_size)
            except JobError as error:
                found = error
        found = self.backend.broadcast(found)
        if isinstance(found, JobError):
            raise found
        if self.folder is not None:
            cut_torn_lines(self.folder)
        if found is None:
            self.warnings.append("nothing to resume: no complete checkpoint, started from step 0")
            if self.folder is not None:
                cut_steps(self.folder, 0)
            return 0
        step = found.step
        self.backend.load(found.folder)
        here = f"{found.folder.parent.parent}/"  # a record is read elsewhere too
        self.warnings += [f"passed over a checkpoint: {damage.removeprefix(here)}" for damage in found.passed_over]
        if self.folder is not None:
            cut_steps(self.folder, step)
            kept = list(read_jsonl(self.folder / STEPS))
            if len(kept) != step:
                self.warnings.append(
                    f"the record holds {len(kept)} of the {step} steps before the checkpoint: the others were lost"
                )
            self._trained_s = kept[-1]["t"] if kept else 0.0
            resumed = [row["step"] for row in kept if row.get("restarted")] + [step]
            self.extra["resumed_at"] = resumed
            at = f"step{'s' if len(resumed) > 1 else ''} {joined([str(at) for at in resumed])}"
            self.warnings.append(
                f"resumed at {at}: phases, wall time and memory are those of its last life; the first steps of each "
                "start are not timed"
            )
        return step

    def _record_environment(self, dataset: Any, model: Any, hashes: dict[str, Any]) -> None:
        from harness.records.step_metrics import environment
        from harness.worker.shared_gpus import gpu_of, sharing

        device, cpus = self.backend.device, len(os.sched_getaffinity(0))
        facts = self.backend.gather({**asdict(self.facts), "device": str(device), "gpu": gpu_of(device), "cpus": cpus})
        if self.folder is None:
            return
        self.warnings += sharing(facts or [])
        self.environment = environment()
        self.environment["ranks"] = facts
        write_json(self.folder / ENVIRONMENT, self.environment)
        self.data_facts, self.model_facts = dataset.describe(), model.describe()
        self.model_facts["flops_per_sample"] = flops_of(model, dataset)
        write_json(self.folder / JOB, self.job.to_dict())

    def _sampler(self) -> Any:
        from harness.instruments.resource_sampler import ResourceSampler

        def on_row(row: Mapping[str, Any]) -> None:
            if self.folder is not None:
                append_jsonl(self.folder / RESOURCES, [row])

        return ResourceSampler(
            on_row, rank=self.facts.rank, host=self.facts.hostname, devices=None if self.facts.local_rank == 0 else ()
        )

    def _train(self, loader: Any, model: Any, dataset: Any, start_step: int) -> int:
        """Trains and keeps what was observed on the way (split rows, memory by kind, profile) in `_observed`."""
        import torch

        from core_model.training.trainer import Plan, Trainer, in_turn
        from harness.instruments.step_timing import StepSplit
        from harness.records.checkpoints import save_checkpoint
        from harness.worker.fault_injection import before_step

        job, backend = self.job, self.backend
        progress = Progress(self.output.screen, total=job.steps) if self.output.screen else None

        def on_rows(rows: list[dict[str, Any]]) -> None:
            assert self.folder is not None
            append_jsonl(self.folder / STEPS, rows)
            if progress is not None:
                progress.tell(rows[-1], job.global_batch)

        plan = Plan(
            steps=job.steps,
            start_step=start_step,
            start_s=self._trained_s,
            scaled=job.precision == "fp16",
            log_every=job.log_every,
            checkpoint_every=job.checkpoint_every,
            samples_per_step=job.global_batch,
            steps_per_epoch=len(dataset) / job.global_batch,
        )
        split = StepSplit(model, backend.device, first=start_step + job.timing_warmup)
        profiler = self._profiler(start_step)
        # A planted fault comes after the split has begun: what delays this rank there is its own time.
        hooks = [self._seeds(model), split.before_step, before_step(self.facts.rank)]
        hooks += [profiler.before_step] if profiler is not None else []
        trainer = Trainer(
            backend,
            loader(start_step),
            plan,
            on_rows=on_rows,
            on_checkpoint=lambda step: save_checkpoint(backend, self.folder, self.job, step),
            before_step=in_turn(*hooks),
            after_step=split.after_step,
        )
        backend.barrier()
        _reset_peaks(torch, backend.device)
        begin = time.perf_counter()
        steps = trainer.train()
        self.phases["train_s"] = time.perf_counter() - begin
        if profiler is not None:
            profiler.close()
        self._observed = {
            "split": split.rows(),
            "split_cost": split.cost_s / self.phases["train_s"],
            "kinds": split.memory_kinds(),
            "profile": profiler.summary if profiler is not None else None,
        }
        if progress is not None:
            progress.close()
        return steps

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
            folder=self.folder,
            cuda=self.backend.device.type == "cuda",
        )

    def _peaks(self) -> dict[str, Any]:
        import torch

        device = self.backend.device
        cuda = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None
        return {"rss_mib": process_memory.mib("VmHWM"), "device_mib": cuda, "held_before_mib": self._held_before}

    def _evaluate(self, model: Any, weights: dict[str, Any]) -> Any:
        """Figures and entries on rank 0. The consolidated weights are what is evaluated, in the raw model where it
        still holds plain fp32 parameters, else in a freshly built one (ZeRO-3, FSDP2, native half precision)."""
        from core_model.data.splits import subset
        from core_model.execution.compile import eager
        from harness.worker.evaluate import evaluate
        from harness.worker.model_and_data import build_model, put_weights

        job, backend = self.job, self.backend
        begin = time.perf_counter()
        test_set = self.test_set
        own_figures = job.eval_samples >= 0 and hasattr(model, "evaluate")
        if test_set is None and not own_figures:
            return None
        if not _plain(model):
            model = build_model(job, device=backend.device)
        self.job = job = job.with_(image_size=model.image_size)
        put_weights(model, weights, "the engine's weights")
        if own_figures:
            figures = model.evaluate()
            self.phases["eval_s"] = time.perf_counter() - begin
            return ({"mean": figures, "categories": {}}, []) if figures else None
        memory = None
        if job.shots:
            from harness.worker.few_shot import memory_of

            memory = memory_of(model, job, backend.device)
        with eager() if job.compile else nullcontext():
            outcome = evaluate(
                model,
                test_set,
                device=backend.device,
                rank=backend.rank,
                world_size=backend.world_size,
                gather=backend.gather,
                indices=subset(len(test_set), job.eval_samples, job.seed),
                memory=memory,
                batch_size=32 if backend.device.type == "cuda" else 8,
            )
        self.phases["eval_s"] = time.perf_counter() - begin
        return outcome

    def _finish(
        self, steps: int, peaks: Any, evaluation: Any, description: dict[str, Any], hashes: dict[str, Any], weights: Any
    ) -> None:
        """Rank 0: weights, evaluation, examples and, last, result.json."""
        from harness.instruments.memory_theory import memory_by_kind, theory_of
        from harness.instruments.profiling import write_table
        from harness.records.comparability import contract
        from harness.records.step_metrics import summarize
        from harness.worker.example_images import save_examples
        from harness.worker.model_and_data import save_weights

        assert self.folder is not None
        figures: dict[str, Any] = {}
        if evaluation is not None:
            figures, entries = evaluation
            kept = [{key: value for key, value in entry.items() if key not in ("map", "mask")} for entry in entries]
            write_json(self.folder / EVALUATION, finite({**figures, "samples": kept}))
            if self.test_set is not None:
                save_examples(self.folder, entries, self.test_set)
        if self.job.keep_weights:
            save_weights(weights, self.folder / WEIGHTS, {"preset": self.job.preset, "run": self.job.run})
        rows = list(read_jsonl(self.folder / STEPS))
        split = [{"step": row["step"], "rank": rank, **row} for rank, peak in enumerate(peaks) for row in peak["split"]]
        append_jsonl(self.folder / SPLIT, sorted(split, key=lambda row: (row["step"], row["rank"])))
        write_table(self.folder, [rank["profile"] for rank in peaks])
        result = {
            "status": "ok",
            "reason": "",
            "started": iso(self._started),
            "ended": iso(time.time()),
            "wall_s": time.time() - self._started,
            "phases": self.phases,
            "world_size": self.facts.world_size,
            "launcher": self.facts.launcher,
            "throughput": summarize(rows, warmup=self.job.timing_warmup),
            "memory": {
                "peak_rss_mib": [rank["rss_mib"] for rank in peaks],
                "peak_device_mib": [rank["device_mib"] for rank in peaks],
                "held_before_mib": [rank["held_before_mib"] for rank in peaks],
                **memory_by_kind(peaks, theory_of(self.job.to_dict(), description, self.model_sizes)),
            },
            "measurement": {
                "sampler_cost": max(rank["sampler_cost"] for rank in peaks),
                "split_cost": max(rank["split_cost"] for rank in peaks),
            },
            "final": {"loss": rows[-1]["loss"], "losses": rows[-1]["losses"], "step": steps}
            if rows
            else {"step": steps},
            "evaluation": figures.get("mean", figures),
            "engine": description,
            "data": self.data_facts,
            "model": self.model_facts,
            "hashes": hashes,
            "contract": contract(self.job.to_dict(), self.environment, hashes, description),
            "warnings": self.warnings,
            **self.extra,
        }
        write_json(self.folder / RESULT, finite(result))

    def fail(self, reason: str, exit_code: int, rank: int | None = None) -> None:
        """Rank 0: a failed result, unless the run had already ended well. A supervisor that is still there writes what
        it knows over it. rank: the one whose failure it was, if not this one's."""
        if self.folder is None or self._finished:
            return
        try:
            write_json(
                self.folder / RESULT,
                {
                    "status": "failed",
                    "exit_code": exit_code,
                    "reason": f"rank {self.facts.rank if rank is None else rank}: {reason}",
                    "started": iso(self._started),
                    "ended": iso(time.time()),
                    "wall_s": time.time() - self._started,
                    "phases": self.phases,
                    "world_size": self.facts.world_size,
                    "launcher": self.facts.launcher,
                },
            )
        except OSError as error:
            print(f"could not record the failure: {error}", file=sys.stderr)


def flops_of(model: Any, dataset: Any, samples: int = 8) -> dict[str, float] | None:
    """FLOPs of one sample by `core_model.execution.flops`, for texts as long as those of the first `samples` samples,
    padded."""
    if not hasattr(model, "flops_per_sample"):
        return None
    batch = model.collate([dataset.get(index, 0) for index in range(min(samples, len(dataset)))])
    return model.flops_per_sample(int(batch.token_ids.shape[1]))


def _digest(facts: Any) -> str:
    """SHA-256 of a JSON-serializable description, the same for the same data wherever it lies."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def _plain(model: Any) -> bool:
    """Whether every trainable parameter is a whole fp32 tensor of this process (no ZeRO-3 shard, no DTensor)."""
    import torch

    return all(
        parameter.dtype == torch.float32 and not hasattr(parameter, "ds_id") and not hasattr(parameter, "placements")
        for parameter in model.parameters()
        if parameter.requires_grad
    )


def _statistics(model: Any) -> dict[str, Any]:
    """Running statistics of batch-norm layers: trained, though no parameters. Rank 0's (they differ by rank)."""
    kept = ("running_mean", "running_var", "num_batches_tracked")
    return {name: buffer.detach().cpu() for name, buffer in model.named_buffers() if name.rsplit(".", 1)[-1] in kept}


def _allocated(torch: Any, device: Any) -> float | None:
    """MiB of device memory that tensors of this process hold; None on a CPU."""
    return float(torch.cuda.memory_allocated(device)) / 2**20 if device.type == "cuda" else None


def _reset_peaks(torch: Any, device: Any) -> None:
    """Peak memory counts from here: training, not loading."""
    process_memory.reset_peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def iso(seconds: float) -> str:
    """Seconds since 1970 as ISO 8601 in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
