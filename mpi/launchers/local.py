"""No launcher: one worker, the plain interpreter."""

from __future__ import annotations

from mpi.launchers.base import Launch, LaunchError, Plan


def command(plan: Plan) -> Launch:
    """The worker itself."""
    if plan.world_size != 1 or not plan.is_local:
        raise LaunchError(f"launcher 'local' starts one worker here, not {plan.world_size}: use another --launcher")
    return Launch(launcher="local", argv=plan.worker)
