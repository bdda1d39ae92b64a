"""Going on from a run's last good checkpoint."""

from __future__ import annotations

from typing import Any

from harness.common.formatting import joined
from harness.job.declaration import Job, JobError
from harness.records.record_files import STEPS, read_jsonl
from harness.worker.recording import Recording


def resume(job: Job, backend: Any, recording: Recording) -> tuple[int, float]:
    """Collective. (the step to go on from, the seconds that the kept steps took, known to rank 0); (0, 0.0) where the
    job does not ask for it or there is no checkpoint. Raises JobError on every rank where the checkpoint is of another
    job."""
    if not job.resume:
        return 0, 0.0
    found = _checkpoint(job, backend, recording)
    folder = recording.folder
    from harness.records.checkpoints import cut_steps, cut_torn_lines

    if folder is not None:
        cut_torn_lines(folder)
    if found is None:
        recording.warnings.append("nothing to resume: no complete checkpoint, started from step 0")
        if folder is not None:
            cut_steps(folder, 0)
        return 0, 0.0
    backend.load(found.folder)
    here = f"{found.folder.parent.parent}/"  # a record is read elsewhere too
    recording.warnings += [f"passed over a checkpoint: {damage.removeprefix(here)}" for damage in found.passed_over]
    if folder is None:
        return found.step, 0.0
    cut_steps(folder, found.step)
    return found.step, _say(recording, list(read_jsonl(folder / STEPS)), found.step)


def _checkpoint(job: Job, backend: Any, recording: Recording) -> Any:
    """The last whole checkpoint, the same on every rank; None where there is none."""
    from harness.records.checkpoints import check_matches, latest

    found: Any = None
    if recording.folder is not None:
        try:
            found = latest(recording.folder)
            if found is not None:
                check_matches(found.folder, job, recording.facts.world_size)
        except JobError as error:
            found = error
    found = backend.broadcast(found)
    if isinstance(found, JobError):
        raise found
    return found


def _say(recording: Recording, kept: list[dict[str, Any]], step: int) -> float:
    """Records at which steps the run was resumed; returns the seconds that the kept steps took."""
    if len(kept) != step:
        recording.warnings.append(
            f"the record holds {len(kept)} of the {step} steps before the checkpoint: the others were lost"
        )
    resumed = [row["step"] for row in kept if row.get("restarted")] + [step]
    recording.extra["resumed_at"] = resumed
    at = f"step{'s' if len(resumed) > 1 else ''} {joined([str(at) for at in resumed])}"
    recording.warnings.append(
        f"resumed at {at}: phases, wall time and memory are those of its last life; the first steps of each start are "
        "not timed"
    )
    return kept[-1]["t"] if kept else 0.0
