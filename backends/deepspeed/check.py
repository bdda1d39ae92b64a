"""Whether DeepSpeed takes a job's configuration, asked before anything is started.

A json of the user's is held against DeepSpeed's own models, and the merged configuration is given to DeepSpeed itself.
That imports DeepSpeed, which prints, sets variables and looks for a GPU: so it is done in a process of its own, and
only where the user has written a json or further keys of one.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from backends.base import BackendError, LossScale, Optimization
from backends.deepspeed.config import CHANGE_ONE, DeepSpeedSettings, check_wire, from_job, merge
from backends.deepspeed.user_json import check_keys, user_config

_LIMIT_S = 120.0  # of the asking process; it takes about three seconds
_REFUSED = "REFUSED: "


def check_configuration(
    settings: DeepSpeedSettings, optimization: Optimization, *, world_size: int, micro_batch: int
) -> None:
    """Raises BackendError, one line, for what DeepSpeed would refuse or ignore. micro_batch: 0 where it is unknown."""
    check_wire(settings, optimization)
    job = from_job(settings, optimization, world_size=world_size, safe_modules=None)
    user = user_config(settings)
    if not user:
        return
    batch = {
        "train_micro_batch_size_per_gpu": micro_batch,
        "train_batch_size": micro_batch * optimization.accumulation * world_size,
    }
    for key, real in batch.items():
        if micro_batch and user.get(key, "auto") not in ("auto", None, real):
            raise BackendError(f"{_origin(settings)}: '{key}' is {user[key]!r} but the job says {real}: {CHANGE_ONE}")
    merge(user, job, origin=_origin(settings), optimization=optimization)
    asked = {"settings": asdict(settings), "optimization": asdict(optimization), "job": job}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "backends.deepspeed.check"],
            cwd=Path(__file__).resolve().parents[2],
            input=json.dumps(asked | {"user": user}),
            capture_output=True,
            text=True,
            timeout=_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise BackendError(f"importing deepspeed takes more than {_LIMIT_S:.0f} s: is its disk reachable?") from None
    if done.returncode:
        lines = (done.stdout + done.stderr).strip().splitlines() or ["no message"]
        said = [line.removeprefix(_REFUSED) for line in lines if line.startswith(_REFUSED)]
        raise BackendError(said[0] if said else f"deepspeed cannot be asked about its configuration: {lines[-1][:200]}")


def _origin(settings: DeepSpeedSettings) -> str:
    return settings.config or "deepspeed extra"


def _ask(asked: dict[str, Any]) -> None:
    """In the process of its own. Raises BackendError."""
    from backends.deepspeed.library import import_deepspeed

    import_deepspeed()
    settings = DeepSpeedSettings(**asked["settings"])
    optimization = Optimization(
        **asked["optimization"] | {"loss_scale": LossScale(**asked["optimization"]["loss_scale"])}
    )
    check_keys(asked["user"], _origin(settings))
    merged = merge(asked["user"], asked["job"], origin=_origin(settings), optimization=optimization)
    merged.pop("_batch", None)
    from deepspeed.runtime.config import DeepSpeedConfig

    try:
        DeepSpeedConfig(merged)
    except Exception as error:  # whatever it raises, it refuses
        raise BackendError(f"{_origin(settings)}: deepspeed refuses it: {' '.join(str(error).split())[:200]}") from None


def main() -> int:
    """Reads what is asked from standard input; 2 and one line where it is refused."""
    try:
        _ask(json.loads(sys.stdin.read()))
    except BackendError as error:
        print(f"{_REFUSED}{error}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
