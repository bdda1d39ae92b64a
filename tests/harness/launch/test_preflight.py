"""What cannot work is refused before a folder is made, also by --dry-run: one line, exit code 2."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.cli import main

REFUSED = [
    (("--backend", "ddp", "--launcher", "mpirn"), "unknown launcher 'mpirn': did you mean 'mpirun'?"),
    (
        ("--backend", "horovod", "--slots", "2", "--launcher", "torchrun"),
        "engine 'horovod' does not run under torchrun",
    ),
    (("--backend", "ddp", "--slots", "2", "--launcher", "horovodrun"), "use --launcher torchrun"),
    (("--backend", "horovod", "--slots", "2", "--set", "engine.op=adasum"), "gradients cannot be clipped"),
    (("--backend", "deepspeed", "--zero-stage", "4"), "deepspeed: zero_stage: must be at most 3, got 4"),
    (("--backend", "deepspeed", "--set", "engine.config=/no/such.json"), "/no/such.json: no such DeepSpeed config"),
    (("--backend", "deepspeed", "--set", 'engine.extra={"gradient_cliping":1}'), "did you mean 'gradient_clipping'?"),
    (
        ("--backend", "deepspeed", "--optimizer", "sgd", "--set", "engine.optimizer_impl=deepspeed"),
        "deepspeed has no SGD of its own",
    ),
    (("--optimizer", "lion"), "--optimizer: 'lion' is not one of adamw, adam, sgd"),
    (("--schedule", "cosine"), "--schedule: 'cosine' is not one of constant, warmup_linear, warmup_cosine"),
    (("--image-size", "50"), "image size 50 does not fit the encoder: use a multiple of 7"),
    (("--set", "model.joint=many"), "model: joint: 'many' is not a whole number"),
    (("--set", "model.joint=0"), "model: joint: must be at least 1, got 0"),
    (("--set", "model.taps=9"), "tapped blocks [9]: the encoder has blocks 0 to 3"),
    (("--set", "model.decoder_layers=linear,nrm"), "unknown decoder layer 'nrm'"),
    (("--set", "model.projecton=mlp"), "unknown model field 'projecton': did you mean 'projection'?"),
    (("--set", 'model.losses={"dise":1}'), "model.losses: unknown setting 'dise': did you mean 'dice'?"),
    (("--preset", "llama-600m", "--set", "model.layers=x"), "model: layers: 'x' is not a whole number"),
    (("--preset", "llama-600m", "--set", "model.heads=7"), "width must be a multiple of heads"),
    (("--preset", "anomalygpt-7b"), "needs its published checkpoints"),
    (("--set", "data_options.holdout=2"), "data option holdout: must be below 1, got 2"),
    (("--set", "data_options.holdot=0.2"), "unknown data option 'holdot': did you mean 'holdout'?"),
    (("--set", "data_options.limit=Infinity"), "data option limit: "),
    (("--set", "data_options.categories=3"), "data option categories: 3 is not a list of values"),
    (("--defects", "scratch"), "scratch"),
    (("--backend", "ddp", "--profile", "engine"), "engine 'ddp' has no profiler of its own"),
    (("--study", "../up"), "use letters"),
    (("--version", "v9"), "unknown version 'v9'"),
]


@pytest.mark.parametrize(
    ("more", "says"), REFUSED, ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
@pytest.mark.parametrize("command", [("run", "--dry-run"), ("run",)], ids=["dry", "run"])
def test_refused_before_anything_is_made(
    command: tuple[str, ...], more: tuple[str, ...], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(
            [
                *command,
                "--preset",
                "tiny",
                "--oversubscribe",
                "--device",
                "cpu",
                "--results",
                str(tmp_path / "r"),
                *more,
            ]
        )
    said = capsys.readouterr()
    lines = (said.out + said.err).strip().splitlines()
    assert stop.value.code == 2
    assert len(lines) == 1, lines
    assert says in lines[0]
    assert not (tmp_path / "r").exists()


def test_a_plan_is_refused_for_what_its_runs_would_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = tmp_path / "s.toml"
    text = 'backends = ["ddp", "{}"]\nworkers = [1, 64]\n[job]\npreset = "tiny"\nglobal_batch = 64\n{}\n'
    arguments = ["compare", str(study), "--dry-run", "--results", str(tmp_path / "r")]
    study.write_text(text.format("horovod", ""))
    main(arguments)  # of a machine with more cores than this one
    for engine, more, says in (
        ("horovod:cycle_time_ms=-1", "", "horovod: cycle_time_ms: must be above 0, got -1"),
        ("deepspeed:zero_stag=1", "", "engine 'deepspeed' has no setting 'zero_stag': did you mean 'zero_stage'?"),
        ("horovod", 'lr = "fast"', "lr: 'fast' is not a number"),
        ("horovod", "image_size = 50", "use a multiple of 7"),
        ("horovod", "stepz = 3", "unknown job field 'stepz': did you mean 'steps'?"),
        ("horovod", "engine = {zero_stage = 1}", "'engine' is decided by the study"),
        ("horovod", "[matrx]", "unknown key 'matrx': did you mean 'matrix'?"),
        ("horovod", "[matrix]\nprecison = [1]", "unknown job field 'precison': did you mean 'precision'?"),
        ("horovod", "[matrix]\nseed = [1, 2]", "'seed' is decided by the study: name seeds by seeds"),
    ):
        study.write_text(text.format(engine, more))
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
        said = capsys.readouterr()
        assert len((said.out + said.err).strip().splitlines()) == 1
        assert says in said.err, said.err
    for wrong, says in (
        ('steps = 3\nbackends = ["ddp"]', "unknown key 'steps': a field of the job stands under [job], as steps"),
        ('backends = "ddp"', "backends: 'ddp' is not a list of values"),
        ('backends = ["ddp"]\nworkers = [0]', "workers.0: must be at least 1, got 0"),
        ('backends = ["ddp"]\nrepeats = "x"', "repeats: 'x' is not a whole number"),
    ):
        study.write_text(wrong)
        with pytest.raises(SystemExit):
            main(arguments)
        assert says in capsys.readouterr().err
    assert not (tmp_path / "r").exists()
