"""Compile the parts of DeepSpeed that it would otherwise compile inside the first training job.

On CPUs DeepSpeed moves small tensors through a shared-memory extension that it compiles at first use (about 20 s,
with g++ and ninja; `deepspeed/comm/torch.py: build_shm_op`). Done here, it can never land in a measured step. The
result goes where every worker will look: `<environment>/torch_extensions`, not the user-wide default, which two
clones would overwrite in turn.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

EXTENSIONS = Path(os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions")))


def main() -> int:
    """Build what this machine's accelerator needs; return 0, also when there is nothing to build."""
    # A compile that was killed leaves its lock file behind, and torch would wait for it for ever. The set-up holds a
    # lock of its own, so whoever wrote this one is gone.
    for lock in EXTENSIONS.glob("*/lock"):
        lock.unlink()

    from deepspeed.accelerator import get_accelerator

    accelerator = get_accelerator()
    if accelerator.device_name() != "cpu":
        print("DeepSpeed runs on", accelerator.device_name(), "here: nothing to compile in advance")
        return 0
    builder = accelerator.create_op_builder("ShareMemCommBuilder")
    if builder is None or not builder.is_compatible(verbose=False):
        print("DeepSpeed has no shared-memory extension for this processor; it uses gloo alone")
        return 0
    started = time.monotonic()
    builder.load(verbose=False)
    print(f"{builder.name} ready in {EXTENSIONS} after {time.monotonic() - started:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
