"""`harness model eval` on a really trained tiny run: it reproduces the record, shows controls, shouts, refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from core_model.build import build
from core_model.data import open_dataset
from harness.job.declaration import Job
from harness.records.record_files import EVALUATION, JOB, RESULT, WEIGHTS, read_json, write_json
from harness.worker.evaluation.few_shot import good_pictures, memory_of
from harness.worker.model_and_data import load_weights
from tests.harness.used_run import ONCE, call, data, trained, workplace

pytestmark = ONCE


def evaluated(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    code, out, err = call(capsys, "model", "eval", *arguments, "--json")
    assert code == 0, err
    return json.loads(out)


def changed_weights(name: str, tensor: str) -> Path:
    """The run's weights with one tensor changed, as a bare file."""
    state = load_file(trained() / WEIGHTS)
    (key,) = [key for key in state if key.startswith(tensor)][:1]
    state[key] = state[key] + 0.5
    path = workplace() / name
    save_file(state, path, metadata={"preset": "tiny"})
    return path


def test_reproduces_what_the_worker_recorded(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Same run, same shots: the memory is deterministic and the weights are those of the record."""
    evaluated(capsys, trained(), "--out", tmp_path)
    (own,) = read_json(tmp_path / "eval.json")["evaluations"]
    recorded = read_json(trained() / EVALUATION)
    assert own["branch"] == "memory"
    assert own["shots"] == 2
    assert own["figures"]["mean"] == pytest.approx(recorded["mean"], abs=1e-6)
    for one, other in zip(own["samples"], recorded["samples"], strict=True):
        assert (one["id"], one["answer"]) == (other["id"], other["answer"])
        assert one["score"] == pytest.approx(other["score"], rel=1e-5)
    result = read_json(trained() / RESULT)
    assert own["weights"]["all"] != result["hashes"]["init_weights"]


def test_the_decoder_branch_is_the_loaded_decoder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Scores against a model built and filled by hand."""
    evaluated(capsys, trained(), "--shots", 0, "--out", tmp_path, "--scoring", "max")
    (own,) = read_json(tmp_path / "eval.json")["evaluations"]
    assert own["branch"] == "decoder"
    model = build("tiny").eval()
    load_weights(model, trained())
    test = open_dataset(f"mvtec:{data()}", split="test", image_size=56, seed=0)
    for index, name in enumerate(test.ids):
        images = test.get(index).image[None]
        expected = float(model.anomaly_maps(images, ["plate"]).max())
        (found,) = [sample["score"] for sample in own["samples"] if sample["id"] == name]
        assert found == pytest.approx(expected, rel=1e-5)


def test_table_has_controls_beside_every_auroc_and_shouts(capsys: pytest.CaptureFixture[str]) -> None:
    """Three steps teach no answer: exactly the study's V3."""
    code, out, err = call(capsys, "model", "eval", trained())
    assert code == 0, err
    assert "UNUSABLE ANSWERS: 8 of 8" in out
    assert out.count("neither Yes nor No") == 1, "said once, loudly"
    heads, names = out.splitlines()[-12:], out
    for head in ("image", "median", "alone*", "pixel", "within", "defect.*", "AUPRO", "Yes/No", "place"):
        assert head in names
    assert any(line.startswith("plate") and "4/4" in line for line in heads)
    assert "* controls" in out


def test_scoring_by_the_median_is_the_control(capsys: pytest.CaptureFixture[str]) -> None:
    (own,) = evaluated(capsys, trained(), "--shots", 0, "--scoring", "median", "--no-answers")["evaluations"]
    assert own["scoring"] == "median"
    # the control is computed from float16 maps: a tie may fall either way on 16 pairs of pictures
    assert own["figures"]["mean"]["image_auroc"] == pytest.approx(
        own["figures"]["mean"]["image_auroc_median"], abs=0.07
    )
    assert own["figures"]["mean"]["answer_accuracy"] is None
    assert own["alarms"] == []


def test_same_weights_and_same_decoder_are_flagged(capsys: pytest.CaptureFixture[str]) -> None:
    copy = workplace() / "copy.safetensors"
    shutil.copyfile(trained() / WEIGHTS, copy)
    prompts = changed_weights("prompts.safetensors", "prompt_learner.")
    decoder = changed_weights("decoder.safetensors", "decoder.")
    options = ("--preset", "tiny", "--data", f"mvtec:{data()}", "--samples", 4, "--no-answers")
    remarks = evaluated(capsys, copy, prompts, *options)["remarks"]
    assert len(remarks) == 1
    assert "SAME DECODER" in remarks[0]
    remarks = evaluated(capsys, copy, copy, *options)["remarks"]
    assert len(remarks) == 1
    assert "SAME WEIGHTS" in remarks[0]
    assert evaluated(capsys, copy, decoder, *options)["remarks"] == []
    remarks = evaluated(capsys, copy, decoder, *options, "--shots", 1)["remarks"]
    assert "memory branch uses no trained weight" in remarks[0]


def test_few_shot_without_training(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory alone tells dark discs from stripes, asks nothing, writes nothing."""
    monkeypatch.chdir(tmp_path)
    options = ("--preset", "tiny", "--data", f"mvtec:{data()}", "--shots", 2)
    first = evaluated(capsys, *options)
    (own,) = first["evaluations"]
    assert own["weights"] == {}
    assert own["figures"]["mean"]["image_auroc"] >= 0.95
    assert own["figures"]["mean"]["pixel_auroc"] >= 0.95
    assert own["figures"]["mean"]["answer_accuracy"] is None
    assert evaluated(capsys, *options) == first, "deterministic"
    assert list(tmp_path.iterdir()) == []
    (more,) = evaluated(capsys, *options[:-1], 50)["evaluations"]
    assert any("has only 6 good pictures" in warning for warning in more["warnings"])


def test_memory_is_the_seeded_good_pictures_in_four_rotations() -> None:
    job = Job(preset="tiny", data=f"mvtec:{data()}", shots=2)
    model = build("tiny").train()
    memory = memory_of(model, job, torch.device("cpu"))
    assert model.training, "the mode is left as it was"
    images, names = good_pictures(model, job)
    assert names == ["plate", "plate"]
    expected = [model.encoder(torch.rot90(images, turns, dims=(2, 3))).tokens[0].flatten(0, 1) for turns in range(4)]
    tokens = torch.nn.functional.normalize(torch.cat(expected), dim=-1)
    torch.testing.assert_close(memory.categories["plate"].tokens[0], tokens)
    assert not torch.equal(good_pictures(model, job.with_(seed=3))[0], images), "the seed chooses"


def test_weights_of_before_training_are_noticed(capsys: pytest.CaptureFixture[str]) -> None:
    """A run folder whose weights file holds the initial weights, as if saving had gone wrong."""
    run = workplace() / "untrained"
    shutil.copytree(trained(), run, dirs_exist_ok=True)
    save_file({k: v.contiguous() for k, v in build("tiny").trainable_state().items()}, run / WEIGHTS)
    (own,) = evaluated(capsys, run, "--samples", 2)["evaluations"]
    assert "before training" in own["warnings"][0]


def test_val_split_judges_held_out_pictures(capsys: pytest.CaptureFixture[str]) -> None:
    held = ("--set", "data_options.holdout=0.34")
    options = ("--preset", "tiny", "--data", f"mvtec:{data()}", "--shots", 1, "--split", "val")
    (own,) = evaluated(capsys, *options, *held)["evaluations"]
    assert own["figures"]["count"] == 4, "two pictures, each as it is and with a defect"
    code, _, err = call(capsys, "model", "eval", *options)
    assert code == 2
    assert "--set data_options.holdout" in err


def broken_weights() -> Path:
    path = workplace() / "broken.safetensors"
    path.write_bytes((trained() / WEIGHTS).read_bytes()[:2000])
    return path


def run_without_weights() -> Path:
    run = workplace() / "without"
    run.mkdir(exist_ok=True)
    shutil.copyfile(trained() / JOB, run / JOB)
    write_json(run / RESULT, {"status": "failed", "reason": "rank 1: out of memory"})
    return run


FEW = ("--preset", "tiny", "--data", "textures")
NARROW = [part for field in ("width=24", "layers=1", "mlp=8", "vocab=300") for part in ("--set", f"model.{field}")]
MISTAKES: dict[str, tuple[Any, str]] = {
    "nothing named": (lambda: ("--data", "textures"), "--preset NAME"),
    "no data": (lambda: ("--preset", "tiny"), "give --data"),
    "no such run": (lambda: ("/no/such/run",), "/no/such/run: no such run"),
    "a study": (lambda: (trained().parent,), "name one of its runs"),
    "some folder": (lambda: (data(),), "no job.json"),
    "failed run": (lambda: (run_without_weights(),), "out of memory"),
    "bare file": (lambda: (changed_weights("bare.safetensors", "decoder."), *FEW[2:]), "add --preset tiny"),
    "broken file": (lambda: (broken_weights(), *FEW), "truncated"),
    "other model": (
        lambda: (changed_weights("bare.safetensors", "decoder."), *FEW, "--set", "model.projection=mlp"),
        "of another model",
    ),
    "preset of a run": (lambda: (trained(), "--preset", "small"), "leave --preset out"),
    "untrained decoder": (lambda: FEW, "untrained"),
    "memory without shots": (lambda: (*FEW, "--branch", "memory"), "--shots K"),
    "unknown rule": (lambda: (*FEW, "--shots", 1, "--scoring", "best"), "unknown scoring rule 'best'"),
    "unknown data": (lambda: (*FEW[:2], "--data", "mnist", "--shots", 1), "unknown data set 'mnist'"),
    "no map": (
        lambda: ("--preset", "llama-600m", "--data", "textures", *NARROW),
        "looks at no pictures",
    ),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_mistakes_are_one_line(capsys: pytest.CaptureFixture[str], what: str) -> None:
    arguments, expected = MISTAKES[what]
    code, out, err = call(capsys, "model", "eval", *arguments())
    assert code == 2
    assert out == ""
    assert len(err.strip().splitlines()) == 1, err
    assert expected in err
