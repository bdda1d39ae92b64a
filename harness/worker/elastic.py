"""An elastic Horovod job: it goes on when hosts are lost, and takes in those that the hostfile gains.

It is any run (`harness.worker.training_run.Run`), but no collective may happen before training: workers that come later
have missed it. So what the first world needs to agree on, it agrees on when a world begins, and so does
every later one: the run's folder, who takes part, which recorded steps are void. RUN/elastic.jsonl has one line a
world: ``step, world_size, hosts[], t`` (`t`: seconds since 1970).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from backends.base import StepReport
from backends.horovod import elastic
from backends.horovod.backend import HorovodBackend
from core_model.training.clock import Clock
from core_model.training.trainer import Plan, Trainer, in_turn
from harness.common.formatting import iso
from harness.instruments.gpus import uuid_of
from harness.instruments.resource_sampler import place_of_process
from harness.job.declaration import Job
from harness.records.checkpoints import cut_steps
from harness.records.locks import HeldError, hold
from harness.records.record_files import LOG, append_jsonl
from harness.records.run_folder import claim_run_folder, write_running
from harness.worker.model_and_data import order_of
from harness.worker.recording import published, rank_facts
from harness.worker.training_run import Run

WORLDS = "elastic.jsonl"


def job_by_hand(values: Mapping[str, Any], world_size: int) -> Job:
    """The job of a worker that horovodrun itself started with --min-np: its limits are horovodrun's business."""
    values = dict(values)
    engine = {**values.get("engine", {}), "min_np": 1, "max_np": world_size}
    # An elastic job names its hosts; the hostfile is horovodrun's, which the worker does not see.
    given = {**values, "engine": engine, "launcher": "auto", "hostfile": values.get("hostfile") or "horovodrun's"}
    return Job.from_dict(given).validate().with_(launcher=values.get("launcher", "auto"), hostfile="")


class ElasticTrainer(Trainer):
    """The trainer whose steps Horovod's elastic loop calls. The window is also flushed before each commit, so that
    nothing which was recorded before it depends on a worker that is lost after it."""

    def __init__(
        self,
        backend: HorovodBackend,
        share: Callable[[int, int, int], tuple[Sequence[Any], Sequence[int]]],
        plan: Plan,
        *,
        commit_every: int,
        on_rows: Callable[[list[dict[str, Any]]], None],
        on_world: Callable[[int, int], None],
        before_step: Callable[[int], None] | None = None,
    ) -> None:
        """share: (step, rank, world size) -> micro-batches and their numbers of samples. on_world: a world of so many
        workers begins at a step."""
        super().__init__(backend, (), plan, on_rows=on_rows, before_step=before_step)
        self.engine, self.share, self.commit_every, self.on_world = backend, share, commit_every, on_world
        self.summary = elastic.ElasticSummary(steps=0)

    def train(self) -> int:
        """Trains to `plan.steps` on whoever is there; `summary` then says in which worlds."""
        self._started = time.perf_counter()
        self.summary = elastic.train(
            self.engine,
            self._fetch,
            steps=self.plan.steps,
            commit_every=self.commit_every,
            on_step=self._stepped,
            on_world=self._world,
        )
        return self.summary.steps

    def _world(self, step: int, size: int) -> None:
        self._pending.clear()
        self._restarts |= {step} - {0}
        self.clock = Clock(self.backend.device)
        self.on_world(step, size)

    def _fetch(self, step: int, rank: int, world_size: int) -> tuple[Sequence[Any], Sequence[int]]:
        if self.before_step is not None:
            self.before_step(step)
        self._begin, began = self.clock.mark(), time.perf_counter()
        micro_batches, counts = self.share(step, rank, world_size)
        moved = [batch.to(self.backend.device) for batch in micro_batches]
        self._data_s = time.perf_counter() - began
        return moved, counts

    def _stepped(self, step: int, report: StepReport) -> None:
        self.note(step, report, self._begin, self._data_s)
        done = step + 1
        if done % self.plan.log_every == 0 or done % self.commit_every == 0 or done == self.plan.steps:
            self._flush()


class ElasticRun(Run):
    """One worker of an elastic job."""

    backend: HorovodBackend

    def _open_folder(self) -> None:
        """Left to the first world."""

    def _resume(self) -> int:
        return 0

    def _record_environment(self, dataset: Any, model: Any) -> None:
        """Left to the first world; what every rank can say by itself is said here."""
        self.recording.data, self.recording.model = dataset.describe(), model.describe()

    def _batches(self, model: Any, dataset: Any) -> tuple[Any, str]:
        """(a function that makes any rank's micro-batches of any step, the fingerprint of the order)."""
        job = self.job
        order = order_of(job, dataset)

        def share(step: int, rank: int, world_size: int) -> tuple[list[Any], list[int]]:
            parts = elastic.micro_parts(
                job.global_batch, rank=rank, world_size=world_size, accumulation=job.accumulation
            )
            refs = order.ids_of(step)
            made = [model.collate([dataset.get(*refs[position]) for position in part]) for part in parts]
            return made, [len(part) for part in parts]

        return share, order.fingerprint(job.steps)

    def _train(self, loader: Any, model: Any, dataset: Any, start_step: int) -> dict[str, Any]:
        from harness.worker.fault_injection import before_step

        trainer = ElasticTrainer(
            self.backend,
            loader,
            self._plan(len(dataset)),
            commit_every=self.backend.settings.commit_every,
            on_rows=self._on_rows,
            on_world=self._begin_world,
            before_step=in_turn(self._seeds(model), before_step(self.facts.rank)),
        )
        begin = time.perf_counter()
        steps = trainer.train()
        self.recording.phases["train_s"] = time.perf_counter() - begin
        self._set_facts()
        self._record_worlds(trainer.summary)
        return {"steps": steps, "split": [], "split_cost": 0.0, "kinds": None, "flops": None, "profile": None}

    def _set_facts(self) -> None:
        """Rank and world size are the current world's."""
        self.facts = self.recording.facts = self.backend.facts

    def _begin_world(self, step: int, size: int) -> None:
        """Collective, at the beginning of every world: the folder, who is here, and which recorded steps are void."""
        backend, record = self.backend, self.recording
        self._set_facts()
        mine = str(record.run_dir) if record.run_dir is not None else None
        if backend.rank == 0 and mine is None:
            self.job, folder = claim_run_folder(self.job, record.results)
            mine = str(folder)
        run, shared = backend.broadcast((self.job.run, mine))
        first = record.run_dir is None
        self.job, record.run_dir = self.job.with_(run=run), Path(shared)
        if first:  # started by hand: nobody else writes the log
            self.output.attach(record.run_dir / LOG if record.run_dir.is_dir() else None)
        host = os.environ.get("HOROVOD_HOSTNAME", self.facts.hostname)  # the name in the hostfile
        place = place_of_process(uuid_of(backend.device))
        ranks = backend.gather(rank_facts(self.facts, backend.device, place) | {"host": host})
        record.folder = record.run_dir if backend.rank == 0 else None
        if record.folder is None or ranks is None:
            return
        record.folder.mkdir(parents=True, exist_ok=True)  # the first rank may have moved to another machine
        if record.by_hand:
            with suppress(HeldError):  # the first rank before is still there, and of this job
                hold(record.folder)
        record.write_environment(self.job, published(ranks))
        write_running(record.folder, started=iso(record.started))
        cut_steps(record.folder, step)
        hosts = [fact["host"] for fact in ranks]
        append_jsonl(record.folder / WORLDS, [{"step": step, "world_size": size, "hosts": hosts, "t": time.time()}])

    def _record_worlds(self, summary: elastic.ElasticSummary) -> None:
        """What happened to the world, for the result."""
        worlds = [{"step": step, "world_size": size} for step, size in summary.worlds]
        self.recording.extra["elastic"] = {
            "min_np": (self.job.elastic or (0, 0))[0],
            "max_np": (self.job.elastic or (0, 0))[1],
            "commit_every": self.backend.settings.commit_every,
            "worlds": worlds,
            "replayed_steps": summary.replayed,
        }
        if len(worlds) > 1:
            path = ", then ".join(f"{world['world_size']} from step {world['step']}" for world in worlds)
            self.recording.described["worlds"] = path
            self.recording.warnings.append(
                f"the number of workers changed while it ran ({path}; {summary.replayed} steps trained again): its "
                "speed is no single number of workers'"
            )
