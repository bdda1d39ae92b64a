"""`harness experiment wire` on virtual nodes: what the counters of the links say is what the engines hand over."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.parallel, pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.mark.skipif(os.geteuid() != 0, reason="virtual nodes need root")
def test_the_links_carry_what_the_engines_hand_over():
    argv = [
        sys.executable,
        "-m",
        "harness",
        "experiment",
        "wire",
        "--backends",
        "horovod,deepspeed:2",
        "--workers",
        "2",
    ]
    argv += ["--accumulation", "1", "--width", "8192", "--study", "", "--json"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["engine"]: row for row in json.loads(done.stdout)}
    ring = rows["horovod"]
    assert ring["theory_bytes"] == pytest.approx(ring["trainable_bytes"])  # 2(n-1)/n of them at n = 2
    assert ring["handed_bytes"] == pytest.approx(ring["theory_bytes"], rel=0.01)
    for row in rows.values():
        control = row["idle_bytes_per_s"] * row["step_s"]
        assert row["handed_bytes"] <= row["sent_bytes"] <= 1.1 * row["handed_bytes"] + control, row
    assert "use_multi_rank_bucket_allreduce" in rows["deepspeed ZeRO-2"]["cause"]
