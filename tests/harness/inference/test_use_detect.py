"""`harness model detect` on real pictures: few-shot finds the disc, overlays show it, damaged pictures are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from core_model.data.decode.pictures import read_mask
from harness.inference.detection import judgement
from harness.inference.load_model import load
from harness.inference.session import Look, Session, peak_place, place_table, trimmed_ask
from harness.job.declaration import JobError
from tests.harness.used_run import ONCE, call, data, trained

pytestmark = ONCE


def shown(kind: str) -> Path:
    return data() / "plate" / "test" / kind


def good() -> Path:
    return data() / "plate" / "train" / "good"


def test_few_shot_separates_and_localizes_without_training(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = call(
        capsys, "model", "detect", shown("good"), shown("dent"), "--preset", "tiny", "--normal", good(), "--json"
    )
    assert code == 0, err
    found = json.loads(out)
    assert len(found) == 6
    scores = {Path(each["image"]).parent.name: [] for each in found}
    for each in found:
        scores[Path(each["image"]).parent.name].append(each["score"])
        assert each["answer"] is None
        assert each["branch"] == "memory"
    assert min(scores["dent"]) > max(scores["good"])
    for each in found:
        if "dent" in each["image"]:
            mask = read_mask(data() / "plate/ground_truth/dent" / (Path(each["image"]).stem + "_mask.png"))
            assert mask.astype(bool)[cell(each["map_peak"], mask.shape)].any(), "the peak's cell holds the disc"
    assert list(tmp_path.iterdir()) == [], "nothing is written without --out"


def cell(name: str, shape: tuple[int, ...]) -> tuple[slice, slice]:
    row = 0 if "top" in name else 2 if "bottom" in name else 1
    column = 0 if "left" in name else 2 if "right" in name else 1
    height, width = shape
    return (
        slice(row * height // 3, -(-(row + 1) * height // 3)),
        slice(column * width // 3, -(-(column + 1) * width // 3)),
    )


def test_a_line_a_picture_and_overlays(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pictures = [shown("dent") / "000.png", shown("hole") / "000.png", shown("good") / "001.png"]
    code, out, err = call(capsys, "model", "detect", *pictures, "--weights", trained(), "--out", tmp_path / "maps")
    assert code == 0, err
    lines = out.splitlines()
    assert len(lines) == 3
    for line, path in zip(lines, pictures, strict=True):
        assert line.startswith(f"{path}  score 0.")
        assert "neither Yes nor No" in line, "three steps teach no answer, and that is said"
        assert "map highest at the" in line
    names = sorted(path.name for path in (tmp_path / "maps").iterdir())
    assert names == ["001_map.png", "test_dent_000_map.png", "test_hole_000_map.png"], "same names do not collide"
    assert lines[0].endswith(str(tmp_path / "maps" / "test_dent_000_map.png"))
    with Image.open(tmp_path / "maps" / "001_map.png") as sheet:
        assert sheet.mode == "RGB"
        assert sheet.width > 2 * 320


def test_scores_are_those_of_eval(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A file given to detect is seen as the data set sees it."""
    code, _, err = call(capsys, "model", "eval", trained(), "--shots", 0, "--no-answers", "--out", tmp_path)
    assert code == 0, err
    (evaluation,) = json.loads((tmp_path / "eval.json").read_text())["evaluations"]
    scores = {sample["id"]: sample["score"] for sample in evaluation["samples"]}
    _, out, _ = call(capsys, "model", "detect", shown("dent"), "--weights", trained(), "--json")
    for each in json.loads(out):
        (own,) = [score for name, score in scores.items() if name.endswith(f"dent/{Path(each['image']).name}")]
        assert each["score"] == pytest.approx(own, rel=1e-5)
        assert each["category"] == "plate", "the run's only category"


def test_shots_come_from_the_runs_own_good_pictures(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, "model", "detect", shown("dent"), "--weights", trained(), "--shots", 2, "--json")
    assert code == 0, err
    assert [each["branch"] for each in json.loads(out)] == ["memory", "memory"]
    code, _, err = call(capsys, "model", "detect", shown("dent"), "--weights", trained(), "--shots", 99)
    assert code == 2
    assert "plate has 6 good pictures only" in err


def test_both_branches_add_up() -> None:
    """The sum is the decoder's map plus the memory's in units of the good pictures' own distance."""
    model = load(str(trained()))
    picture = [np.asarray(Image.open(shown("dent") / "000.png"))]
    normal = [np.asarray(Image.open(path)) for path in sorted(good().iterdir())]
    maps = {}
    for branch in ("decoder", "memory", "both"):
        session = Session(model, normal=normal, branch=branch)
        (look,) = session.look(picture, ["x"], ["plate"])
        maps[branch] = look.grid
        assert session.scale([look]).high >= look.grid.max()
    bank = session._memory
    scale = bank.categories["object"].scale
    np.testing.assert_allclose(maps["both"], maps["decoder"] + maps["memory"] / scale, rtol=1e-4, atol=1e-5)


MISTAKES: dict[str, tuple[Any, str]] = {
    "missing": (lambda p: (p / "nope.png", "--weights", trained()), "nope.png: no such image"),
    "not a picture": (lambda p: (written(p / "text.png", b"hello"), "--weights", trained()), "text.png: corrupt image"),
    "cut off": (lambda p: (cut(p / "cut.png"), "--weights", trained()), "cut.png: corrupt image"),
    "empty folder": (lambda p: (p, "--weights", trained()), "no pictures in this folder"),
    "bad good picture": (
        lambda p: (shown("dent"), "--weights", trained(), "--normal", written(p / "g.png", b"")),
        "g.png: corrupt image",
    ),
    "too few good": (
        lambda p: (shown("dent"), "--preset", "tiny", "--normal", good() / "000.png", "--shots", 2),
        "more good pictures than --normal gives (1)",
    ),
    "nothing to compare": (lambda p: (shown("dent"), "--preset", "tiny"), "untrained"),
    "no model": (lambda p: (shown("dent"),), "nothing to load"),
    "shots of nothing": (lambda p: (shown("dent"), "--preset", "tiny", "--shots", 2), "give --normal"),
    "no place": (
        lambda p: (shown("dent"), "--weights", trained(), "--out", written(p / "file", b"") / "maps"),
        "cannot write overlays",
    ),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_mistakes_are_one_line_and_nothing_is_looked_at(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, what: str
) -> None:
    arguments, expected = MISTAKES[what]
    code, out, err = call(capsys, "model", "detect", *arguments(tmp_path))
    assert code == 2
    assert out == ""
    assert len(err.strip().splitlines()) == 1, err
    assert expected in err


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def cut(path: Path) -> Path:
    return written(path, (shown("dent") / "000.png").read_bytes()[:900])


def test_one_bad_picture_stops_all(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Decoding fails in the middle, which the header does not show: still nothing is printed or written."""
    whole = bytearray((shown("dent") / "000.png").read_bytes())
    whole[len(whole) // 2] ^= 0xFF
    bad = written(tmp_path / "flipped.png", bytes(whole))
    out_folder = tmp_path / "maps"
    code, out, err = call(
        capsys, "model", "detect", shown("dent") / "000.png", bad, "--weights", trained(), "--out", out_folder
    )
    assert (code, out) == (2, "")
    assert "flipped.png: corrupt image" in err
    assert not out_folder.exists()


def made_look(**values: Any) -> Look:
    picture = np.zeros((4, 4, 3), np.uint8)
    base: dict[str, Any] = {"name": "x", "category": "plate", "picture": picture, "image": None, "score": 0.5}
    return Look(**{**base, "grid": np.zeros((4, 4)), "peak": "center", **values})


def test_judgement_in_words() -> None:
    yes = made_look(answer="Yes, at the top left.", verdict="yes", said=("top left",))
    assert judgement(yes) == "Yes (top left)"
    assert judgement(made_look(answer="No, fine.", verdict="no")) == "No"
    assert judgement(made_look()) == "not asked (untrained)"
    assert "neither" in judgement(made_look(answer="Maybe", verdict="unusable"))


@pytest.mark.parametrize("side", [56, 224, 10])
def test_places_of_the_map(side: int) -> None:
    grid = np.zeros((side, side))
    grid[side - 1, 0] = 0.9
    assert peak_place(grid) == "bottom left"
    rows = place_table(grid).splitlines()
    assert "0.900*" in rows[2].split()[0]
    assert sum(row.count("*") for row in rows) == 1


def test_category_comes_from_the_folder_above() -> None:
    session = Session(load(str(trained())))
    object.__setattr__(session.trained, "categories", ("bottle", "screw"))
    session.model.text = object()  # as in presets whose text features depend on the category
    assert session.category_of(Path("/d/screw/test/bent/0.png")) == "screw"
    assert session.category_of(Path("/d/x.png"), "cable") == "cable"
    with pytest.raises(JobError, match=r"give --category NAME \(trained on bottle, screw\)"):
        session.category_of(Path("/d/x.png"))


def test_a_long_talk_forgets_its_oldest_turns() -> None:
    session = Session(load(str(trained())))
    (look,) = session.look([np.asarray(Image.open(shown("dent") / "000.png"))], ["x"], ["plate"])
    talk = session.talk(look)
    talk.turns = [("Is it damaged? " * 8, "No.")] * 6  # byte tokens: more than the window of 512
    reply, dropped = trimmed_ask(talk, "And now?")
    assert 1 <= dropped < 6
    assert talk.turns[-1] == ("And now?", reply)
    (direct,) = session.model.answer(
        look.image[None], ["plate"], ["And now?"], histories=[tuple(talk.turns[:-1])], max_new_tokens=48
    )
    assert reply == direct
