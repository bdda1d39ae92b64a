"""Which runs may stand on one curve, and the sentence that says why not."""

from harness.job.declaration import Job
from harness.records.comparability import comparable, contract, differences

PLACE = {
    "python": "3.11.7",
    "versions": {"torch": "2.13.0", "deepspeed": "0.19.8", "horovod": "0.28.1"},
    "cpu": {"model": "X", "usable_cores": 2},
    "gpus": None,
}
HASHES = {"init_weights": "a" * 64, "sample_order": "b" * 64, "data": "c" * 64}


def made(place=PLACE, hashes=HASHES, engine=None, **job):
    return contract(Job(**job).to_dict(), place, hashes, engine)


def test_two_engines_with_the_same_job_are_alike() -> None:
    a = made(backend="deepspeed", engine={"wire_dtype": "fp32", "zero_stage": 1})
    b = made(backend="horovod", engine={"wire_dtype": "fp32"})
    assert differences(a, b) == []


def test_engine_versions_may_differ_but_torch_may_not() -> None:
    other = {**PLACE, "versions": {**PLACE["versions"], "horovod": "0.29"}}
    assert differences(made(), made(place=other)) == []
    other = {**PLACE, "versions": {**PLACE["versions"], "torch": "2.12.0"}}
    assert differences(made(), made(place=other)) == ["torch is 2.13.0 in one and 2.12.0 in the other"]


def test_each_rule_has_its_sentence() -> None:
    cases = {
        "learning rate is 0.001 in one and 0.01 in the other": {"lr": 0.01},
        "gradient clipping norm is 1.0 in one and not set in the other": {"clip_norm": None},
        "global batch is 8 in one and 16 in the other": {"global_batch": 16},
        "precision is fp32 in one and bf16 in the other": {"precision": "bf16"},
        "steps is 60 in one and 61 in the other": {"steps": 61},
        "profiler is not set in one and torch in the other": {"profile": "torch"},
    }
    for sentence, change in cases.items():
        assert differences(made(), made(**change)) == [sentence]


def test_hashes_hardware_and_wire_are_compared() -> None:
    assert differences(made(), made(hashes={**HASHES, "init_weights": "d" * 64})) == [
        "different initial weights: aaaaaaaaaaaa against dddddddddddd"
    ]
    gpu = {**PLACE, "gpus": {"devices": [{"name": "H100"}], "driver": "1"}}
    assert "GPU is not set in one and H100 in the other" in differences(made(), made(place=gpu))
    half = differences(made(engine={"wire_dtype": "fp32"}), made(engine={"wire_dtype": "fp16"}))
    assert half == ["type on the wire is fp32 in one and fp16 in the other"]


def test_same_pictures_in_another_folder_are_the_same_data() -> None:
    assert differences(made(data="mvtec:/a"), made(data="mvtec:/b")) == []
    assert differences(made(data="mvtec:/a"), made(data="mvtec:/b", hashes={**HASHES, "data": "e" * 64}))


def test_points_of_one_curve_may_differ_in_workers_and_seed_only() -> None:
    one, two = made(slots=1, backend="ddp"), made(slots=2, backend="ddp")
    assert differences(one, two) != []
    assert differences(one, two, same_curve=True) == []
    other_seed = made(seed=1, hashes=dict.fromkeys(HASHES, "f" * 64))
    assert differences(one, other_seed, same_curve=True) == []
    same_seed_other_order = made(hashes={**HASHES, "sample_order": "f" * 64})
    assert differences(one, same_seed_other_order, same_curve=True) != []


def test_weak_scaling_compares_the_batch_of_a_worker() -> None:
    one = made(backend="ddp", scaling="weak", slots=1, global_batch=8)
    two = made(backend="ddp", scaling="weak", slots=2, global_batch=16, hashes={**HASHES, "sample_order": "9" * 64})
    assert differences(one, two, same_curve=True) == []
    assert differences(one, made(backend="ddp", scaling="weak", slots=2, global_batch=8), same_curve=True) == [
        "batch per worker is 8 in one and 4 in the other"
    ]
    assert "scaling is weak in one and strong in the other" in differences(one, made(backend="ddp"))


def test_groups_come_largest_first_with_reasons() -> None:
    result = comparable([made(lr=0.5), made(), made(seed=1), made()])
    assert result.groups == ((1, 2, 3), (0,))
    assert result.reasons[0] == ()
    assert result.reasons[1] == ("learning rate is 0.001 in one and 0.5 in the other",)
    assert not result.alike
    assert comparable([]).alike
