"""What a user can get wrong is one line that names it, exit code 2, and leaves nothing behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from core_model.data.generated_sets import write_mvtec
from harness.cli import main


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(list(argv))
    said = capsys.readouterr()
    assert stop.value.code == 2, said
    lines = (said.out + said.err).strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def run_args(tmp_path: Path, *more: str) -> list[str]:
    return ["run", "--preset", "tiny", "--results", str(tmp_path / "results"), *more]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--backend", "mpi"), "unknown engine 'mpi'"),
        (("--backend", "ddp", "--slots", "64", "--global-batch", "64"), "64 slots were asked for, this machine has"),
        (("--backend", "single", "--data", "mvtec:/no/such/folder"), "/no/such/folder"),
        (("--backend", "single", "--data", "photos"), "unknown data set 'photos'"),
        (("--backend", "single", "--set", "engine.zero=1"), "zero"),
        (("--backend", "ddp", "--zero-stage", "2"), "belongs to deepspeed"),
        (("--backend", "single", "--preset", "huge"), "unknown preset 'huge'"),
        (("--backend", "single", "--set", "model.depth=3"), "unknown model field 'depth'"),
        (("--backend", "single", "--study", "../x"), "use letters"),
        (("--backend", "single", "--init-weights", "/no/such/file"), "no weights there"),
        (("--backend", "deepspeed", "--nodes", "2", "--hostfile", "/no/hostfile"), "/no/hostfile"),
    ],
)
def test_bad_options(more: tuple[str, ...], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert words in refused(capsys, *run_args(tmp_path, *more))
    assert not (tmp_path / "results").exists(), "something was written"


@pytest.mark.parametrize(
    ("engines", "words"),
    [
        ("single,single:model.depth=3", "unknown model field 'depth'"),
        ("single,single:compile=perhaps", "compile"),
        ("single,single:steps=3", "steps"),
    ],
)
def test_contenders_that_cannot_be_are_refused(
    engines: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "results"
    options = ["--backends", engines, "--preset", "tiny", "--results", str(folder)]
    assert words in refused(capsys, "experiment", "duel", *options)
    assert not folder.exists(), "something was written"


def test_corrupt_image_is_named_before_the_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    write_mvtec(data)
    broken = next(data.rglob("train/good/*.png"))
    broken.write_bytes(b"not a picture")
    assert broken.name in refused(capsys, *run_args(tmp_path, "--backend", "single", "--data", f"mvtec:{data}"))
    assert not (tmp_path / "results").exists()


def test_mask_of_the_wrong_size_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    write_mvtec(data)
    mask = next(data.rglob("ground_truth/*/*.png"))
    Image.new("L", (7, 9)).save(mask)
    assert mask.name in refused(capsys, *run_args(tmp_path, "--backend", "single", "--data", f"mvtec:{data}"))


def test_unwritable_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "results").write_text("a file where a folder must be")
    assert "cannot write results there" in refused(capsys, *run_args(tmp_path, "--backend", "single"))


def test_an_engine_that_is_not_installed_says_what_to_do(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['horovod'] = None\n"
        "import importlib.util as u; real = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name.split('.')[0] == 'horovod' else real(name, *a)\n"
        "from harness.cli import main; main(sys.argv[1:])\n"
    )
    argv = run_args(tmp_path, "--backend", "horovod")
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "engine 'horovod' cannot be used here: Horovod is not installed" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
