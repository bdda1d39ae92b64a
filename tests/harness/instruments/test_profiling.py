"""Profiles: a real window of torch.profiler, the table by kind, the engines' own tools."""

import gzip
import json
from pathlib import Path

import pytest
import torch

from harness.instruments.profiling import (
    ACTIVE_STEPS,
    KINDS,
    Profiler,
    device_events,
    engine_job,
    kind_of,
    occupation,
    operations_of,
    summarize,
    write_table,
)
from harness.job.declaration import Job, JobError
from harness.records.run_record import RecordedRun
from harness.report.step_tables import profile_table
from tests.harness.made_runs import write_run


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::addmm", "matrix products"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32", "matrix products"),
        ("aten::mkldnn_convolution", "matrix products"),
        ("ncclDevKernel_AllReduce_Sum_f32_RING_LL", "exchange"),
        ("c10d::allreduce_", "exchange"),
        ("gloo:all_reduce", "exchange"),
        ("Optimizer.step#AdamW.step", "update"),
        ("aten::_foreach_addcdiv_", "update"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("aten::native_layer_norm", "normalization and activation"),
        ("aten::copy_", "copies"),
        ("Memcpy HtoD (Pageable -> Device)", "copies"),
        ("nvjet_sm90_tst_192x192_64x3_1x4_h_bz_coopB_NNN", "matrix products"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16", "attention"),
        ("void at::native::(anonymous namespace)::CatArrayBatchedCopy<at::native::OpaqueType>", "copies"),
        (
            "void at::native::vectorized_elementwise_kernel<8, at::native::CUDAFunctor_add<c10::BFloat16>>",
            "element-wise",
        ),
        ("upsample_bilinear2d_backward_out_frame<float, float>", "other"),
        ("aten::embedding", "other"),
    ],
)
def test_operations_are_told_apart_by_name(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_summary_is_per_step_and_complete() -> None:
    summary = summarize([("aten::mm", 6000.0, 6), ("aten::copy_", 3000.0, 3), ("x", 300.0, 3)], steps=3)
    assert set(summary["kinds_ms"]) == set(KINDS)
    assert summary["kinds_ms"]["matrix products"] == 2.0
    assert sum(summary["kinds_ms"].values()) == pytest.approx(3.1)
    assert summary["top"][0] == {"name": "aten::mm", "ms": 2.0, "calls": 2.0}


def test_trace_of_a_gpu_counts_kernels_and_copies_once(tmp_path: Path) -> None:
    events = [
        {"cat": "kernel", "name": "nvjet_tst", "dur": 500.0},
        {"cat": "kernel", "name": "nvjet_tst", "dur": 700.0},
        {"cat": "gpu_memcpy", "name": "Memcpy HtoD (Pinned -> Device)", "dur": 90.0},
        {"cat": "cpu_op", "name": "aten::mm", "dur": 9000.0},
        {"cat": "gpu_user_annotation", "name": "Optimizer.step#AdamW.step", "dur": 300.0},
        {"name": "process_name", "ph": "M"},
    ]
    trace = tmp_path / "trace.json.gz"
    trace.write_bytes(gzip.compress(json.dumps({"traceEvents": events}).encode()))
    assert operations_of(device_events(trace)) == [
        ("nvjet_tst", 1200.0, 2),
        ("Memcpy HtoD (Pinned -> Device)", 90.0, 1),
    ]


def test_gpu_that_waits_for_its_host_or_for_the_other_ranks_shows(tmp_path: Path) -> None:
    events = [
        {"cat": "kernel", "name": "nvjet", "ts": 1000.0, "dur": 2000.0},
        {"cat": "gpu_memcpy", "name": "Memcpy HtoD", "ts": 2500.0, "dur": 1000.0},  # half of it beside the kernel
        {"cat": "kernel", "name": "ncclDevKernel_AllReduce", "ts": 6000.0, "dur": 5000.0},  # after 2.5 ms of nothing
        {"cat": "cpu_op", "name": "aten::mm", "ts": 0.0, "dur": 20000.0},
    ]
    trace = tmp_path / "trace.json.gz"
    trace.write_bytes(gzip.compress(json.dumps({"traceEvents": events}).encode()))
    assert occupation(device_events(trace), steps=2) == {"span_ms": 5.0, "busy_ms": 3.75, "computing_ms": 1.25}
    trace.write_bytes(gzip.compress(json.dumps({"traceEvents": []}).encode()))
    assert occupation(device_events(trace), steps=2) == {}


def test_window_profiles_its_steps_and_writes_a_trace_for_perfetto(tmp_path: Path) -> None:
    profiler = Profiler("torch", rank=0, first=2, folder=tmp_path, cuda=False)
    weight = torch.randn(256, 256)
    for step in range(8):
        profiler.before_step(step)
        weight = torch.mm(weight, weight).clamp(-1, 1)
    profiler.close()
    assert profiler.summary["steps"] == ACTIVE_STEPS
    mm = next(item for item in profiler.summary["top"] if item["name"] == "aten::mm")
    assert mm["calls"] == 1.0  # one a step: no step outside the window was counted
    trace = json.loads(gzip.decompress((tmp_path / "profile" / "trace-rank0.json.gz").read_bytes()))
    assert sum(event.get("name") == "aten::mm" for event in trace["traceEvents"]) == ACTIVE_STEPS


def test_job_shorter_than_the_window_still_ends_well(tmp_path: Path) -> None:
    profiler = Profiler("torch", rank=0, first=1, folder=tmp_path, cuda=False)
    for step in range(3):
        profiler.before_step(step)
    profiler.close()
    profiler.close()
    assert profiler.summary is not None


def test_engines_own_tools_write_into_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    horovod = engine_job(Job(backend="horovod", profile="engine"), tmp_path / "run")
    assert horovod.engine["timeline"] == "run/profile/horovod-timeline.json"  # relative: the path is recorded
    deepspeed = engine_job(Job(backend="deepspeed", profile="engine", engine={"zero_stage": 1}), tmp_path / "run")
    assert deepspeed.engine["zero_stage"] == 1
    assert deepspeed.engine["extra"]["flops_profiler"]["enabled"]
    assert deepspeed.engine["extra"]["comms_logger"]["enabled"]
    with pytest.raises(JobError, match="no profiler of its own"):
        engine_job(Job(backend="ddp"), tmp_path)
    with pytest.raises(JobError, match="harness run"):
        engine_job(Job(backend="horovod"), None)


def test_unknown_mode_is_refused() -> None:
    with pytest.raises(JobError, match="choose one of torch, nvtx, engine"):
        Profiler("vtune", rank=0, first=0, folder=None, cuda=False)


def test_table_sets_the_engines_beside_each_other(tmp_path: Path) -> None:
    from harness.analysis.comparison import summarize_study

    for backend, ms in (("horovod", 2.0), ("ddp", 3.0)):
        folder = write_run(tmp_path / "s", Job(backend=backend, slots=2, preset="tiny", profile="torch"))
        kinds = dict.fromkeys(KINDS, 1.0) | {"exchange": ms}
        write_table(folder, [{"rank": 0, "steps": 3, "kinds_ms": kinds, "top": []}, None])
        assert RecordedRun(folder).profile["ranks"][0]["kinds_ms"]["exchange"] == ms
    table = profile_table(summarize_study(tmp_path / "s"))
    row = next(row for row in table.rows if row[0] == "exchange")
    assert row[1:] == ["3.00", "2.00"]
