"""Photographs, deep pictures and damaged files on the command line: the same as in a data set, or one line, code 2."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from core_model.data.generated_sets import write_mvtec
from harness.records import undefined_figures
from tests.harness.used_run import ONCE, call, data, trained

pytestmark = ONCE


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    code, out, err = call(capsys, *arguments)
    assert (code, out) == (2, ""), err
    assert len(err.strip().splitlines()) == 1, err
    err.encode()
    return err


def run_on(folder: Path) -> tuple[object, ...]:
    return ("run", "--backend", "single", "--preset", "tiny", "--data", f"mvtec:{folder}", "--results", folder / "out")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-500])


def as_tiff(path: Path) -> Path:
    Image.open(path).save(path.with_suffix(".tif"))
    path.unlink()
    return path.with_suffix(".tif")


def nameless(path: Path) -> None:
    path.rename(path.with_name(os.fsdecode(b"tile\xe9.png")))


DAMAGE: dict[str, tuple[str, Any, str]] = {
    "cut test picture": ("test/hole/001.png", lambda p: cut(as_tiff(p)), "test/hole/001.tif: corrupt image"),
    "cut training picture": ("train/good/003.png", lambda p: cut(as_tiff(p)), "train/good/003.tif: corrupt image"),
    "not UTF-8": ("train/good/003.png", nameless, r"train/good/tile\udce9.png: the name is not UTF-8"),
    "test not UTF-8": ("test/good/001.png", nameless, r"test/good/tile\udce9.png: the name is not UTF-8"),
    "link to nowhere": (
        "test/good/002.png",
        lambda p: (p.unlink(), p.symlink_to("/nowhere/a.png")),
        "test/good/002.png: a link to nowhere (/nowhere/a.png is not there)",
    ),
    "link to itself": ("train/good/000.png", lambda p: (p.unlink(), p.symlink_to(p)), "000.png: cannot be read"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_found_before_the_start(capsys: pytest.CaptureFixture[str], tmp_path: Path, what: str) -> None:
    name, damage, said = DAMAGE[what]
    root = write_mvtec(tmp_path)
    damage(root / "plate" / name)
    assert said in refused(capsys, *run_on(root))
    assert not (root / "out").exists()


def test_inverted_masks_are_questioned_before_the_start(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    root = write_mvtec(tmp_path)
    for path in root.glob("plate/ground_truth/hole/*.png"):
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    undefined_figures._said.clear()
    code, _, err = call(capsys, *run_on(root), "--dry-run")
    assert code == 0
    (line,) = [line for line in err.splitlines() if "mask" in line]
    assert line.startswith("warning: ground_truth/hole/000_mask.png: the mask covers 9")
    code, out, err = call(capsys, "model", "eval", trained(), "--data", f"mvtec:{root}", "--json", "--no-answers")
    assert code == 0, err
    (evaluation,) = json.loads(out)["evaluations"]
    (warning,) = [text for text in evaluation["figures"].get("warnings", []) + evaluation["warnings"] if "mask" in text]
    assert warning.startswith("the masks of 2 of 4 defective pictures cover more than half of the picture, such as")


def deep(source: Path, target: Path, factor: float, kind: type) -> Path:
    Image.fromarray((np.asarray(Image.open(source).convert("L")) * kind(factor)).astype(kind)).save(target)
    return target


def test_detect_scores_deep_pictures_as_their_8_bits(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    shown = sorted((data() / "plate/test/dent").iterdir())[0]
    twelve = deep(shown, tmp_path / "twelve.png", 16, np.uint16)
    float_one = deep(shown, tmp_path / "float.tif", 1 / 255, np.float32)
    assert "brightest value" in refused(capsys, "model", "detect", twelve, "--weights", trained())
    scores = []
    for arguments in ((shown,), (twelve, "--set", "data_options.white=4095"), (float_one,)):
        code, out, err = call(capsys, "model", "detect", *arguments, "--weights", trained(), "--json")
        assert code == 0, err
        scores.append(json.loads(out)[0]["score"])
    assert scores[1] == pytest.approx(scores[0], rel=1e-6)
    assert scores[2] == pytest.approx(scores[0], rel=1e-6)


def test_detect_and_its_overlay_see_a_photograph_upright(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    shown, turned = sorted((data() / "plate/test/dent").iterdir())[0], tmp_path / "turned.png"
    tag = Image.Exif()
    tag[0x0112] = 8
    Image.open(shown).transpose(Image.Transpose.ROTATE_270).save(turned, exif=tag)
    looks = []
    for path in (shown, turned):
        out_folder = tmp_path / path.stem
        code, out, err = call(capsys, "model", "detect", path, "--weights", trained(), "--json", "--out", out_folder)
        assert code == 0, err
        (found,) = json.loads(out)
        below_the_caption = np.asarray(Image.open(found["overlay"]))[40:]
        looks.append((found["score"], found["map_peak"], below_the_caption))
    assert looks[0][:2] == looks[1][:2]
    assert np.array_equal(looks[0][2], looks[1][2])


def test_detect_names_what_it_cannot_open(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    name = tmp_path / os.fsdecode(b"\xff.png")
    name.write_bytes(sorted((data() / "plate/test/dent").iterdir())[0].read_bytes())
    assert "the name is not UTF-8" in refused(capsys, "model", "detect", name, "--weights", trained())
    assert "the name is not UTF-8" in refused(capsys, "model", "detect", tmp_path, "--weights", trained())
    os.mkfifo(tmp_path / "pipe.png")
    assert "pipe.png: not a file" in refused(capsys, "model", "detect", tmp_path / "pipe.png", "--weights", trained())
    assert "cannot be read" in refused(capsys, "model", "detect", tmp_path / ("x" * 300), "--weights", trained())
