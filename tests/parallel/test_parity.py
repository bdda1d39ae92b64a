"""Every engine, ZeRO stage, accumulation and clipping ends with the weights of a single process.

fp32: at most 1e-5 relative a tensor after 20 steps. bf16 and fp16 round every product to u = 2^-8 and 2^-11; two
engines at the same world size and accumulation round at the same places, so they are held to the fp32 bound against
each other, while the single process, which splits its batch otherwise, is held to steps x u relative to the tensor.
"""

from __future__ import annotations

import math
from typing import Any

import pytest

from backends.checks.parity import Difference, compare

pytestmark = pytest.mark.timeout(600)

STEPS = 20
FP32_BOUND = 1e-5
UNIT = {"bf16": 2.0**-8, "fp16": 2.0**-11}

ENGINES: dict[str, tuple[str, dict[str, Any]]] = {
    "ddp": ("ddp", {}),
    "fsdp2": ("fsdp2", {"wrap_min_parameters": 500}),
    "horovod": ("horovod", {}),
    "zero0": ("deepspeed", {"zero_stage": 0}),
    "zero1": ("deepspeed", {"zero_stage": 1}),
    "zero2": ("deepspeed", {"zero_stage": 2}),
    "zero3": ("deepspeed", {"zero_stage": 3}),
}
# The default persistence threshold would leave every tensor of so small a model whole.
ENGINES["zero3-sharded"] = ("deepspeed", {"zero_stage": 3, "stage3_param_persistence_threshold": 0})
ENGINES["zero3-plain"] = ("deepspeed", {"zero_stage": 3, "memory_efficient_linear": False})
ENGINES["zero2-reduce"] = ("deepspeed", {"zero_stage": 2, "use_multi_rank_bucket_allreduce": False})
ENGINES["zero2-overlap"] = ("deepspeed", {"zero_stage": 2, "overlap_comm": True, "reduce_bucket_size": 3000})
ENGINES["zero2-offload"] = ("deepspeed", {"zero_stage": 2, "offload_optimizer": "cpu"})
ENGINES["zero3-offload"] = ("deepspeed", {"zero_stage": 3, "offload_optimizer": "cpu", "offload_param": "cpu"})
ENGINES["horovod-groups"] = ("horovod", {"num_groups": 2})
ENGINES["horovod-predivide"] = ("horovod", {"gradient_predivide_factor": 2.0})
# Horovod reads these when it is started: they have launches of their own.
ENGINES["horovod-fused"] = ("horovod", {"num_groups": 2, "fusion_threshold_mb": 1, "cycle_time_ms": 0.5})
ENGINES["ddp-static"] = ("ddp", {"static_graph": True, "bucket_cap_mb": 0.01})
ENGINES["fsdp2-kept"] = ("fsdp2", {"wrap_min_parameters": 500, "reshard_after_forward": False, "forward_prefetch": 1})
ENGINES["zero2-scattered"] = ("deepspeed", {"zero_stage": 2, "contiguous_gradients": False, "reduce_scatter": False})
ENGINES["zero1-round-robin"] = (
    "deepspeed",
    {"zero_stage": 1, "round_robin_gradients": True, "allgather_bucket_size": 2000},
)
PLAIN = ["ddp", "fsdp2", "horovod", "zero0", "zero1", "zero2", "zero3"]
VARIANTS = [name for name in ENGINES if name not in [*PLAIN, "horovod-fused"]]


def cell(name: str, **optimization: Any) -> dict[str, Any]:
    engine, settings = ENGINES[name]
    return {
        "label": label(name, **optimization),
        "engine": engine,
        "settings": settings,
        "optimization": {"warmup_steps": 3, **optimization},
        "steps": STEPS,
    }


def label(name: str, **optimization: Any) -> str:
    return " ".join([name, *(f"{key}={value}" for key, value in sorted(optimization.items()))])


def grid(accumulations: tuple[int, ...], clips: tuple[float | None, ...]) -> list[dict[str, Any]]:
    return [{"accumulation": a, "clip_norm": c} for a in accumulations for c in clips]


FULL, SHORT = grid((1, 4), (1.0, None)), grid((1,), (1.0,))
HALF = [{"precision": precision} for precision in UNIT]
AT_TWO = (
    [cell(name, **o) for name in PLAIN for o in FULL]
    + [cell(name, **o) for name in VARIANTS for o in SHORT]
    + [cell(name, **o) for name in [*PLAIN, "zero3-plain"] for o in HALF]
)
LAUNCHES = {
    "mpirun-2": ("mpirun", 2, AT_TWO),
    "mpirun-2-fused": ("mpirun", 2, [cell("horovod-fused", **o) for o in SHORT]),
    "mpirun-4": ("mpirun", 4, [cell(name, **o) for name in PLAIN for o in SHORT]),
    "python-1": ("python", 1, [cell(name, **o) for name in PLAIN for o in (FULL[0], FULL[3])]),
    "torchrun-2": ("torchrun", 2, [cell(name, **o) for name in ("ddp", "fsdp2", "zero2") for o in SHORT]),
    "deepspeed-2": ("deepspeed", 2, [cell(name, **o) for name in ("zero1", "zero3", "ddp") for o in SHORT]),
    "horovodrun-gloo-2": (
        "horovodrun-gloo",
        2,
        [cell(name, **o) for name in ("horovod", "horovod-groups") for o in FULL[1:3]],
    ),
    "horovodrun-mpi-2": ("horovodrun-mpi", 2, [cell(name, **o) for name in ("horovod",) for o in SHORT]),
}


@pytest.fixture(scope="session")
def reference():
    """The single process, trained here: by clipping and precision."""
    from tiny import Tiny, batches

    from backends.checks.parity import TrainingSpec, run_cells
    from backends.process.rank import ProcessFacts

    ways = {
        (clip, precision): TrainingSpec(
            label=f"{clip} {precision}",
            engine="single",
            optimization={"warmup_steps": 3, "clip_norm": clip, "precision": precision},
            steps=STEPS,
        )
        for clip in (1.0, None)
        for precision in ("fp32", *UNIT)
    }
    outcomes = run_cells(list(ways.values()), Tiny, batches, facts=ProcessFacts(), device="cpu")
    return dict(zip(ways, outcomes, strict=True))


def fp32_cases() -> list[Any]:
    return [
        pytest.param(key, found["label"], id=f"{key}: {found['label']}")
        for key, (_, _, cells) in LAUNCHES.items()
        for found in cells
        if found["optimization"].get("precision", "fp32") == "fp32"
    ]


def difference(cells: Any, name: str, expected: Any) -> Difference:
    return compare(cells.tensors(name)["weights"], expected.weights, expected.initial)


@pytest.mark.parametrize(("launch", "name"), fp32_cases())
def test_fp32_weights_are_those_of_the_single_process(train, reference, launch: str, name: str) -> None:
    launcher, world, specs = LAUNCHES[launch]
    cells = train(launcher, world, specs)
    clip = next(spec for spec in specs if spec["label"] == name)["optimization"]["clip_norm"]
    expected = reference[clip, "fp32"]
    found = difference(cells, name, expected)
    assert found.relative <= FP32_BOUND, found
    # ... and training really moved the weights, so that the figure means something
    assert compare(expected.weights, expected.initial).relative > 100 * FP32_BOUND
    row = cells.outcome(name)
    assert row["world_size"] == world
    assert [r["lr"] for r in row["rows"]] == [r["lr"] for r in expected.rows]
    for mine, single in zip(row["rows"], expected.rows, strict=True):
        assert math.isclose(mine["loss"], single["loss"], rel_tol=1e-5)
        assert math.isclose(mine["grad_norm"], single["grad_norm"], rel_tol=1e-4)


@pytest.mark.parametrize("options", HALF, ids=lambda o: label("", **o))
@pytest.mark.parametrize("name", [*PLAIN, "zero3-plain"])
def test_half_precision_like_for_like(train, reference, name: str, options: dict[str, Any]) -> None:
    cells = train(*LAUNCHES["mpirun-2"])
    steps_u = STEPS * UNIT[options["precision"]]
    assert difference(cells, label(name, **options), reference[1.0, options["precision"]]).relative <= steps_u
    ddp = cells.tensors(label("ddp", **options))
    same_rounding = compare(cells.tensors(label(name, **options))["weights"], ddp["weights"])
    if name == "zero3":  # its memory-efficient linear layer rounds elsewhere, and its description says so
        assert same_rounding.relative > FP32_BOUND
        assert "memory-efficient linear" in cells.outcome(label(name, **options))["description"]["departures"][0]
    else:
        assert same_rounding.relative <= FP32_BOUND, same_rounding
    # ... and it is not fp32 in disguise
    assert difference(cells, label(name, **options), reference[1.0, "fp32"]).relative > 1e-5


@pytest.mark.parametrize("name", PLAIN)
def test_a_model_that_recomputes_its_activations_ends_with_the_same_weights(train, reference, name: str) -> None:
    """It was told so before the engine took it: hooks of DDP, FSDP2 and ZeRO-3 run a second time in backward."""
    options = {"accumulation": 2, "clip_norm": 1.0}
    cells = train("mpirun", 2, [cell(each, **options) for each in PLAIN], recompute=True)
    assert difference(cells, label(name, **options), reference[1.0, "fp32"]).relative <= FP32_BOUND


def test_the_wire_carries_what_theory_says(train) -> None:
    """Counted bytes of one step at two workers, beside the ring's 2(n-1)/n x bytes; departures have a cause."""
    from backends.checks.traffic import expected_bytes

    cells = train(*LAUNCHES["mpirun-2"])

    def counted(name: str, accumulation: int = 1) -> tuple[float, float]:
        row = cells.outcome(label(name, accumulation=accumulation, clip_norm=1.0))
        size = row["description"]["trainable_parameters"] * 4
        expected = expected_bytes(row["description"], world_size=2, gradient_bytes=size, weight_bytes=size)
        return row["exchange"]["wire_bytes"], expected

    norms = 64  # a few bytes of norms and flags
    for name in ("ddp", "horovod", "zero0"):
        for accumulation in (1, 4):
            wire, expected = counted(name, accumulation)
            assert expected <= wire <= expected + norms, name
    wire, expected = counted("fsdp2")
    # torch keeps the root group whole between forward and backward only where it says so
    assert expected <= wire <= expected + norms
    # ZeRO-1 and 2 all-reduce whole buckets (use_multi_rank_bucket_allreduce) where theory needs a reduce-scatter
    for name in ("zero1", "zero2"):
        wire, expected = counted(name)
        assert wire == pytest.approx(1.5 * expected, abs=norms)
    wire, expected = counted("zero2", 4)  # ... and stage 2 does so every micro-batch
    assert wire == pytest.approx((4 * 2 + 1) / (4 + 1) * expected, abs=norms)
    wire, expected = counted("zero2-reduce")
    assert wire == pytest.approx(expected, abs=norms)


def test_each_horovod_setting_is_really_in_force(train) -> None:
    """The core reads its settings when it is started: they have processes of their own, others are refused there."""
    found = train(*LAUNCHES["mpirun-2-fused"]).outcome(label("horovod-fused", **SHORT[0]))["description"]
    assert (found["cycle_time_ms"], found["fusion_threshold_bytes"]) == (0.5, 2**20)
    cells = train("mpirun", 2, [cell(name, **SHORT[0]) for name in ("horovod", "horovod-fused", "horovod-groups")])
    assert "this engine wants 0.5" in cells.rows[label("horovod-fused", **SHORT[0])]["error"]
    for name in ("horovod", "horovod-groups"):
        found = cells.outcome(label(name, **SHORT[0]))["description"]
        assert (found["cycle_time_ms"], found["fusion_threshold_bytes"]) == (1.0, 128 * 2**20)


def test_frozen_parameters_are_neither_trained_nor_exchanged(train) -> None:
    from tiny import Tiny

    cells = train(*LAUNCHES["mpirun-2"])
    for name in PLAIN:
        tensors = cells.tensors(label(name, accumulation=1, clip_norm=1.0))
        assert not [key for key in tensors["weights"] if key.startswith("frozen")]
        # the names are the model's own: what one engine trained loads in a plain model, hence in any other engine
        assert not Tiny().load_state_dict(tensors["weights"], strict=False).unexpected_keys
        row = cells.outcome(label(name, accumulation=1, clip_norm=1.0))
        trainable = row["description"]["trainable_parameters"]
        reduced = row["exchange"]["payload_bytes"].get("all_reduce", 0) + row["exchange"]["payload_bytes"].get(
            "reduce_scatter", 0
        )
        assert reduced <= trainable * 4 + 64, name


def test_a_planted_overflow_skips_the_same_step_in_every_engine(train) -> None:
    """One rank's gradient is infinite in step 6: all engines drop that step, halve the scale, and go on alike."""
    rule = {"initial_power": 8, "window": 4, "hysteresis": 2}
    specs = [cell(name, precision="fp16", loss_scale=rule) for name in [*PLAIN[:-1], "zero3-plain"]]
    cells = train("mpirun", 2, specs, overflow_step=6)
    rows = {spec["label"].split()[0]: cells.outcome(spec["label"])["rows"] for spec in specs}
    skipped = {name: [row["step"] for row in steps if row["skipped"]] for name, steps in rows.items()}
    assert skipped == {spec["label"].split()[0]: [6] for spec in specs}
    scales = {name: [row["loss_scale"] for row in steps] for name, steps in rows.items()}
    # doubles after 4 good steps; hysteresis 2 forgives the one overflow but the window starts anew
    assert scales["ddp"] == [256] * 4 + [512] * 7 + [1024] * 4 + [2048] * 4 + [4096]
    assert all(found == scales["ddp"] for found in scales.values())
    base = cells.tensors(specs[0]["label"])["weights"]
    for spec in specs:
        assert compare(cells.tensors(spec["label"])["weights"], base).relative <= FP32_BOUND


def test_a_parameter_without_gradient_neither_hangs_nor_moves_engines_apart(train) -> None:
    specs = [cell(name, **SHORT[0]) for name in PLAIN]
    for spec in specs:
        if spec["engine"] == "ddp":
            spec["settings"] = {"static_graph": True}
    cells = train("mpirun", 2, specs, spare=True)
    base = cells.tensors(specs[0]["label"])["weights"]
    for spec in specs:
        found = compare(cells.tensors(spec["label"])["weights"], base)
        assert found.relative <= FP32_BOUND, (spec["label"], found)


def test_adasum_trains_and_is_not_called_the_same(train) -> None:
    specs = [
        {
            "label": "adasum",
            "engine": "horovod",
            "settings": {"op": "adasum"},
            "optimization": {"clip_norm": None},
            "steps": STEPS,
        },
        {"label": "clipped", "engine": "horovod", "settings": {"op": "adasum"}, "optimization": {}, "steps": STEPS},
    ]
    cells = train("mpirun", 2, specs)
    rows = cells.outcome("adasum")["rows"]
    assert rows[-1]["loss"] < rows[0]["loss"] + 0.5
    assert cells.outcome("adasum")["description"]["op"] == "adasum"
    assert "cannot be clipped" in cells.rows["clipped"]["error"]


def test_native_precision_trains_and_its_departures_are_named(train) -> None:
    """DeepSpeed's own half precision is near, but not the like-for-like training; the description says why."""
    native = {"precision": "bf16", "precision_mode": "native"}
    specs = [cell(name, **native) for name in ("fsdp2", "zero0", "zero1", "zero2", "zero3")]
    for spec in specs:
        if spec["engine"] == "deepspeed":
            spec["settings"] = {**spec["settings"], "optimizer_impl": "torch"}  # nothing to compile in a test
    specs.append(cell("ddp", precision="bf16"))
    cells = train("mpirun", 2, specs)
    matched = cells.tensors(specs[-1]["label"])
    for spec in specs[:-1]:
        row, tensors = cells.outcome(spec["label"]), cells.tensors(spec["label"])
        found = compare(tensors["weights"], matched["weights"], matched["initial"])
        assert FP32_BOUND < found.relative < 0.2, (spec["label"], found)
        assert all(value.dtype.itemsize == 4 for value in tensors["weights"].values())  # masters, not halves
        if spec["engine"] == "deepspeed":
            assert row["description"]["departures"], spec["label"]
            assert row["description"]["wire_dtype"] == "bf16"
            assert row["exchange"]["wire_bytes"] < cells.outcome(specs[-1]["label"])["exchange"]["wire_bytes"] * 1.1


def test_a_users_own_json_runs_or_is_refused_by_name(train, reference, tmp_path) -> None:
    import json

    agreeing, disagreeing, batch = (tmp_path / name for name in ("agrees.json", "disagrees.json", "batch.json"))
    agreeing.write_text(
        json.dumps(
            {
                "train_micro_batch_size_per_gpu": "auto",
                "gradient_accumulation_steps": 2,
                "gradient_clipping": "auto",
                "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "weight_decay": "auto"}},
                "zero_optimization": {"stage": 2, "overlap_comm": True, "reduce_bucket_size": 4000},
            }
        )
    )
    disagreeing.write_text(json.dumps({"zero_optimization": {"stage": 3}}))
    batch.write_text(json.dumps({"train_batch_size": 64}))
    specs = [
        {
            "label": file.stem,
            "engine": "deepspeed",
            "settings": {"zero_stage": 2, "config": str(file)},
            "optimization": {"warmup_steps": 3, "accumulation": 2},
            "steps": STEPS,
        }
        for file in (agreeing, disagreeing, batch)
    ]
    cells = train("mpirun", 2, specs)
    assert difference(cells, "agrees", reference[1.0, "fp32"]).relative <= FP32_BOUND
    assert cells.outcome("agrees")["description"]["reduce_bucket_elements"] == 4000
    assert cells.outcome("agrees")["description"]["overlap_comm"] is True
    assert "'zero_optimization.stage' is 3 but the job says 2" in cells.rows["disagrees"]["error"]
    assert "'train_batch_size' is 64 but the job says 16" in cells.rows["batch"]["error"]
