"""`harness recommend`: its answer, its one screen, what it refuses, and its errors as the page tells them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.cli import main
from harness.experiments.recommend.evidence import Evidence, read_evidence
from harness.experiments.recommend.machine import machine_named
from harness.experiments.recommend.page import WIDTH
from harness.experiments.recommend.scores_record import block, read_scores, scores_of, sizes_in
from harness.experiments.recommend.scoring import Error, fastest_right, inside, spread
from harness.job.declaration import JobError

ROOT = Path(__file__).resolve().parents[3]
RESULTS = ROOT / "results"
H100, H200 = "NVIDIA H100 80GB HBM3", "NVIDIA H200"
KNOWN = Evidence(points=(), memory={H100: 81559.0, H200: 143771.0})


def test_gpus_are_named_by_memory_or_by_name() -> None:
    large = machine_named("8x80GB", KNOWN)
    assert (large.workers, large.device, large.memory_mib, large.here) == (8, H100, 81559.0, 0)
    assert "taken for NVIDIA H100 80GB HBM3 of the records" in large.told
    assert machine_named("4xh200", KNOWN).device == H200
    unknown = machine_named("2x24GB", KNOWN)
    assert (unknown.device, unknown.memory_mib) == ("", pytest.approx(24 * 1024, rel=0.02))
    assert "no record says how fast they are" in unknown.told


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("80GB", "write COUNTxMEMORY or COUNTxNAME, such as 8x80GB or 4xH200"),
        ("0x80GB", "write COUNTxMEMORY"),
        ("8xTPU", "no one GPU of that name is known (the records hold NVIDIA H100 80GB HBM3 or NVIDIA H200)"),
        ("8xNVIDIA", "it may be NVIDIA H100 80GB HBM3 or NVIDIA H200"),
        ("8x0GB", "a GPU has some memory"),
    ],
)
def test_gpus_that_cannot_be_meant(text: str, part: str) -> None:
    with pytest.raises(JobError) as error:
        machine_named(text, KNOWN)
    assert part in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("--gpus 80GB", "write COUNTxMEMORY"),
        ("--gpus 8x80GB --workers 2", "--gpus and --workers exclude each other"),
        ("--gpus 8x80GB --backends horvod", "horvod"),
        ("--gpus 8x80GB --backends horovod:zero_stage=1", "zero_stage"),
        ("--gpus 8x80GB --backends single", "engine 'single' runs one worker"),
        ("--gpus 8x80GB --global-batch 12", "cannot be split over 8 workers"),
        ("--gpus 8x80GB --budget soon", "--budget 'soon': write a time"),
        ("--gpus 8x80GB --nodes 2", "No such option: --nodes"),
        ("--gpus 8x80GB --preset smal", "unknown preset 'smal'"),
        ("--gpus 8x80GB --model no_such.py:make_job", "there is no such file"),
        ("--workers 0", "0 is not in the range"),
    ],
)
def test_bad_input_is_one_line(words: str, part: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["recommend", *words.split()])
    printed = capsys.readouterr()
    assert stop.value.code == 2, printed
    last = printed.err.strip().splitlines()[-1]
    assert part in last
    assert "Traceback" not in printed.err


def test_gpus_that_are_not_here_stand_on_formula_and_records_alone(capsys: pytest.CaptureFixture[str]) -> None:
    words = "recommend --preset llama-600m --precision bf16 --gpus 2xH200 --global-batch 64"
    main([*words.split(), "--json"])
    answer = json.loads(capsys.readouterr().out)
    by_engine = {one["engine"]: one for one in answer["settings"]}
    assert by_engine["ddp"]["speed"]["way"] == "measured"
    assert "h200-x2-llama-weak-duel" in by_engine["ddp"]["speed"]["why"]
    assert by_engine["deepspeed:3"]["speed"]["value"] is None or by_engine["deepspeed:3"]["speed"]["why"]
    assert answer["fastest"][0] == "ddp"
    assert answer["duels"] == ""
    assert all(one["memory"]["fits"] == "yes" for one in answer["settings"])
    weights = by_engine["ddp"]["memory"]["weights_mib"]
    assert weights == pytest.approx(4 * 607_968_768 / 2**20)
    assert by_engine["fsdp2"]["memory"]["weights_mib"] == pytest.approx(weights / 2)
    main(words.split())
    screen = capsys.readouterr().out
    assert max(map(len, screen.splitlines())) <= 100 == WIDTH
    assert len(screen.splitlines()) <= 30
    assert "nothing was measured on them now" in screen
    assert "Fastest (as --backends takes them): 1. ddp" in screen


def test_a_gpu_without_records_has_no_speed_and_a_model_too_large_does_not_fit(
    capsys: pytest.CaptureFixture[str],
) -> None:
    main(
        [
            "recommend",
            "--preset",
            "llama-600m",
            "--precision",
            "bf16",
            "--gpus",
            "2x8GB",
            "--global-batch",
            "2",
            "--json",
        ]
    )
    answer = json.loads(capsys.readouterr().out)
    assert all(one["speed"]["value"] is None for one in answer["settings"])
    assert {one["speed"]["way"] for one in answer["settings"]} == {"not known"}
    by_engine = {one["engine"]: one for one in answer["settings"]}
    assert by_engine["ddp"]["memory"]["fits"] == "no"  # 16 bytes of each of 608 M parameters
    assert answer["fastest"] == []


def error(study: str, predicted: float, measured: float, engine: str = "ddp") -> Error:
    return Error(
        way="predicted", study=study, job="{}", engine=engine, workers=2, predicted=predicted, measured=measured
    )


def test_intervals_are_made_of_the_other_studies_errors() -> None:
    near = [error(f"s{number}", 101, 100) for number in range(6)]
    far = error("far", 200, 100)
    assert spread(near[:5]) is None
    assert spread(near) == pytest.approx(0.00995, abs=1e-4)
    assert inside([*near, far])[-1] is False
    assert fastest_right([error("s", 10, 5, "ddp"), error("s", 9, 9, "horovod")]) == (0, 1)
    assert fastest_right([error("s", 10, 9, "ddp"), error("s", 9, 5, "horovod")]) == (1, 1)


def test_scores_are_what_the_records_give() -> None:
    """The committed scores, made again of the studies that they name."""
    scores = read_scores(RESULTS)
    assert scores, "run `harness recommend --score`"
    evidence = read_evidence(RESULTS, only=scores["sources"])
    again = json.loads(json.dumps(scores_of(evidence, sizes_in(scores))))
    assert again["headline"] == scores["headline"]
    assert len(again["errors"]) == len(scores["errors"])
    for new, old in zip(again["errors"], scores["errors"], strict=True):
        assert new["predicted"] == pytest.approx(old["predicted"], rel=1e-6), old


def test_the_page_holds_the_scores_that_the_program_writes() -> None:
    page = (ROOT / "docs" / "recommend.md").read_text()
    written = page.partition("<!-- recommend errors -->\n")[2].partition("<!-- end -->")[0]
    assert written == block(read_scores(RESULTS)), "run `harness results index`"
