"""The jobs in examples/ train on every engine with two workers, and end with a single process's weights.

By the command that a user types. The tied embeddings of GPT-2 are the fourth job: a parameter that two modules share.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from launch import run_command

pytestmark = [pytest.mark.parallel, pytest.mark.timeout(600)]

ENGINES = "ddp,fsdp2:wrap_min_parameters=200,horovod,deepspeed:0,deepspeed:1,deepspeed:2,deepspeed:3"
BOUND = 1e-5
KEY_BIAS = {"hf_trainer": 32, "tied_gpt2": 16}  # elements of the bias of attention's keys
JOBS = {
    "plain_torch": ["--model", "examples/plain_torch.py:make_job", "--set", "model.width=4"],
    "lightning_module": ["--model", "examples/lightning_module.py:make_job"],
    "hf_trainer": ["--model", "examples/hf_trainer.py:make_job", "--set", "model.layers=1"],
    "tied_gpt2": [
        *("--model", "hf:gpt2", "--data", "tokens:16", "--set", "random_weights=true", "--set", "model.dropout=0"),
        *("--set", "model.n_embd=16", "--set", "model.n_layer=1", "--set", "model.n_head=2"),
        *("--set", "model.vocab_size=500"),
    ],
}


@pytest.mark.parametrize("job", JOBS)
def test_a_job_on_every_engine(job: str, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "harness",
        "experiment",
        "parity",
        *JOBS[job],
        "--backends",
        ENGINES,
        "--workers",
        "2",
    ]
    command += ["--steps", "5", "--study", "", "--json"]
    ended = run_command(command, tmp_path / "log.txt", limit_s=560)
    table = json.loads(ended.output[ended.output.index("{\n") :])
    assert len(table["cells"]) == 7
    for cell in table["cells"]:
        assert cell["status"] == "equal" or (cell["status"] == "differs" and cell["explained"]), cell
        # All tensors together, against the single process that splits its batches alike.
        assert cell["same_split_of_update"] <= BOUND, cell
    if job in KEY_BIAS:  # softmax takes it out: its gradient is rounding, and of that alone Adam makes whole steps
        (count,) = {cell["rounding_only"] for cell in table["cells"]} - {0}
        assert count == KEY_BIAS[job]  # of GPT-2, a third of the one bias of queries, keys and values
    assert ended.code == 0
