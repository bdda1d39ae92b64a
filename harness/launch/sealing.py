"""A run's record from the moment its folder is claimed to its end: whatever ends the supervisor in between,
result.json says so. Only a supervisor that is killed outright leaves ``running`` behind, with the name of a process
that is gone (`harness.records.locks`)."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from harness.common.formatting import iso
from harness.job.declaration import Job
from harness.protocol.failure_marks import LogPart, first_mark, is_consequence, silent_ranks
from harness.protocol.turns import CoordinatorGoneError
from harness.records import locks
from harness.records.record_files import LOG, RESULT, RecordError, hide_machine, read_json, write_json
from harness.records.run_folder import write_running
from harness.records.run_record import SHARED_LOG, RecordedRun
from mpi.process import CTRL_C, ENDING, Outcome, signals_ignored, signals_raise

# Held while a job runs and given back for its end: result.json can be written on a disk that has filled up meanwhile.
_ROOM, _ROOM_BYTES = ".room", 1 << 16


class EndedError(KeyboardInterrupt):
    """A signal that ends the supervisor, where no launch is under way that would take it."""

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def signals_end() -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGHUP raise EndedError."""
    with signals_raise(EndedError, *ENDING):
        yield


class OpenRecord:
    """The records of one launch's runs. Gets the launch's `outcome`; `closing` writes down what became of them."""

    def __init__(self, claimed: Sequence[tuple[Job, Path]], launcher: str = "") -> None:
        self.claimed, self.launcher = claimed, launcher
        self.outcome: Outcome | None = None
        self.log = LogPart(claimed[0][1] / LOG)
        self._started = time.time()

    def open(self, *, begun: bool = True) -> None:
        """Says who will end the records; begun: and that the runs are under way."""
        for _, folder in self.claimed:
            write_running(folder, launcher=self.launcher, **({"started": iso(self._started)} if begun else {}))
            (folder / _ROOM).write_bytes(bytes(_ROOM_BYTES))

    @contextmanager
    def closing(self) -> Iterator[None]:
        """Around all that happens between claim and end. A signal outside the launch is an outcome too; any other error
        comes through when the record says what it was."""
        try:
            yield
            if self.outcome is None:
                self.outcome = Outcome(returncode=1, reason="the launch gave no outcome")
        except KeyboardInterrupt as end:
            number = getattr(end, "number", signal.SIGINT)
            name = "interrupted (Ctrl-C)" if number == signal.SIGINT else f"ended by {signal.Signals(number).name}"
            self.outcome = Outcome(returncode=128 + number, reason=name)
        except BaseException as error:
            text = " ".join(str(error).split())
            self.outcome = Outcome(returncode=1, reason=f"its supervisor failed: {type(error).__name__}: {text}"[:500])
            raise
        finally:
            with signals_ignored():
                self._seal()

    def _seal(self) -> None:
        """Every run, even where the record of one cannot be written; then the first error of those."""
        failed: list[Exception] = []
        for position, (job, folder) in enumerate(self.claimed):
            try:
                self._seal_one(job, folder, last=position + 1 == len(self.claimed))
            except Exception as error:
                failed.append(error)
            finally:
                locks.release(folder)
        if failed:
            raise failed[0]

    def _seal_one(self, job: Job, folder: Path, *, last: bool) -> None:
        assert self.outcome is not None
        (folder / _ROOM).unlink(missing_ok=True)
        if folder != self.log.path.parent:
            (folder / LOG).write_text(f"{SHARED_LOG}../{self.log.path.parent.name}/{LOG}\n")
        outcome = self.outcome
        if not last and RecordedRun(folder).ok:  # how the launch ended says nothing of a run that others followed
            outcome = replace(outcome, returncode=0, reason="")
        _record_final_status(job, folder, self.launcher, outcome, self._started, self.log)
        hide_machine(folder / LOG, folder.parent.parent)  # records are published


def _record_final_status(job: Job, folder: Path, launcher: str, outcome: Outcome, started: float, log: LogPart) -> None:
    """Corrects result.json where the job did not end by itself and well."""
    try:
        result = read_json(folder / RESULT)
    except RecordError:
        result = {"status": "running"}
    for name in ("schema", "holder"):
        result.pop(name, None)
    if result["status"] == "ok" and outcome.ok:
        return
    if result["status"] == "ok":  # every rank had finished; only the launcher's end went wrong
        result.setdefault("warnings", []).append(f"the launcher ended with {outcome.returncode}: {outcome.reason}")
        write_json(folder / RESULT, result)
        return
    mark = first_mark(log.lines())
    from_here = outcome.interrupted or outcome.decided
    if mark is not None and not from_here:
        rank, user, text = mark
        reason, code = f"rank {rank}: {text}", 2 if user else 1
        if text.startswith(CoordinatorGoneError.__name__):  # it had not begun: no fault of this run's
            code = CTRL_C
    else:
        reason = outcome.reason or "the job ended without a result"
        code = outcome.returncode if outcome.interrupted else 1
        silent = [] if from_here else silent_ranks(log.lines(), job.world_size)
        if silent and "SIG" not in reason and is_consequence(reason):
            names = ", ".join(map(str, silent))
            reason = f"rank {names} died without a message (killed, or out of memory?); the others noticed: {reason}"
    write_json(
        folder / RESULT,
        {
            **result,
            "status": "failed",
            "reason": reason,
            "exit_code": code,
            "launcher_exit": outcome.returncode,
            "started": iso(started),
            "ended": iso(time.time()),
            "wall_s": time.time() - started,
            "world_size": job.world_size,
            "launcher": launcher,
            "orphans": outcome.orphans,
            "tail": list(outcome.tail)[-10:],
        },
    )
