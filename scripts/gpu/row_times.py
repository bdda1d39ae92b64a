"""How long a forward and backward pass of Vicuna-7B's shape takes on rows of several lengths, by CUDA graphs.

`python3 scripts/gpu/row_times.py [ROWS ...]`: a table to judge `core_model.language.ragged.ROWS` by. A GPU computes a
matrix product in waves of tiles, so time grows in jumps: a longer row may cost nothing, or a whole wave.
"""

from __future__ import annotations

import sys

import torch

from core_model.build import build
from core_model.execution.flops import Shape, llama_flops

SAMPLES, LONGEST, REPEATS = 16, 128, 10


def milliseconds(language: torch.nn.Module, rows: int) -> float:
    """Of one pass over a row of `rows` tokens, the mean of REPEATS."""
    starts = torch.arange(SAMPLES + 2, dtype=torch.int32, device="cuda") * (rows // (SAMPLES + 1))
    starts[-1] = rows
    row = torch.randn(1, rows, language.width, dtype=torch.bfloat16, device="cuda", requires_grad=True)
    ends = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    for step in range(REPEATS + 2):
        if step == 2:
            ends[0].record()
        language._graphed_rows(row, starts, LONGEST, True)[0].sum().backward()
    ends[1].record()
    torch.cuda.synchronize()
    return ends[0].elapsed_time(ends[1]) / REPEATS


def main() -> None:
    """Prints the tables, plain and with joined weights."""
    chosen = [int(text) for text in sys.argv[1:]] or list(range(640, 1537, 128))
    options = {"max_tokens": 66, "pack_on_gpu": True, "prefix_on_gpu": True}
    model = build("anomalygpt-7b", random_weights=True, overrides=options, device="cuda", frozen_dtype=torch.bfloat16)
    language = model.language
    language.constant_prefix()
    for joined in (False, True):
        if joined:
            language.joined = True
            language._join()
        print("rows  ms  TFLOP/s", "with joined weights" if joined else "")
        for rows in chosen:
            spent = milliseconds(language, rows)
            done = Shape(samples=SAMPLES, rows=rows, pairs=rows * 64.0, logits=0)
            flops = sum(llama_flops(language.transformer.config, done, trained=False))
            print(f"{rows:5d} {spent:6.2f} {flops / spent / 1e9:6.0f}", flush=True)


if __name__ == "__main__":
    main()
