"""`harness model chat` through a real pipe: a process of its own, questions in, answers out."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.inference.load_model import load
from harness.inference.session import Session
from tests.harness.used_run import ONCE, call, data, trained

pytestmark = [ONCE, pytest.mark.slow]  # trains a model first


def piped(text: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "harness", "model", "chat", *map(str, arguments)],
        input=text,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_several_turns_through_a_pipe(tmp_path: Path) -> None:
    """Answers are those of the model asked directly, the second with the first turn as history; mistakes do not end
    the talk; the map is shown and written; /quit leaves the rest unread."""
    picture = data() / "plate" / "test" / "dent" / "000.png"
    overlay = tmp_path / "map.png"
    lines = ["Anybody there?", "/map", "/image nope.png", f"/image {picture.parent}", f"/image {picture}"]
    lines += ["Is there a defect?", "Where is it?", "/map", f"/map {overlay}", "/map /no/such/place.png"]
    lines += [f"/map {tmp_path}/map.txt", "/what", "/reset", "Where is it?", "/quit", "not read"]
    done = piped("\n".join(lines) + "\n", trained(), "--threads", 1)
    assert done.returncode == 0, done.stderr
    out = done.stdout.removesuffix("\n").split("\n")  # an untrained model may say what splitlines takes for a line

    session = Session(load(str(trained()), threads=1))
    (look,) = session.look([np.asarray(Image.open(picture))], [str(picture)], ["plate"])
    talk = session.talk(look)
    first, second = talk.ask("Is there a defect?"), talk.ask("Where is it?")
    fresh = session.talk(look).ask("Where is it?")
    assert out[:2] == ["no picture yet: /image PATH"] * 2
    assert out[2] == "error: nope.png: no such image"
    assert out[3].startswith(f"error: {picture.parent}: a folder")
    assert out[4].startswith(f"{picture}  score {look.score:.3f}"[:-1])
    assert out[5:7] == [first or "(no answer)", second or "(no answer)"]
    assert "*" in "".join(out[7:10])
    assert out[10] == f"wrote {overlay}"
    assert Image.open(overlay).width > 500
    assert out[11].startswith("error: /no/such/place.png: cannot be written")
    assert out[12].endswith("give a name that ends in .png")
    assert out[13].startswith("/image PATH")
    assert "the conversation starts anew" in out
    assert out[-1] == fresh
    assert done.stderr == ""


def test_ends_with_its_input_and_opens_with_a_picture(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = data() / "plate" / "test" / "dent" / "000.png"
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    normal = data() / "plate" / "train" / "good"
    code, out, err = call(capsys, "model", "chat", trained(), "--image", picture, "--normal", normal)
    assert code == 0, err
    assert len(out.splitlines()) == 1
    score = float(out.split("score ")[1].split()[0])
    assert score > 1.0, "distances from good pictures, not the decoder's probabilities"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("/no/such",), "no such run"),
        (("--image", "/no/such.png"), "/no/such.png: no such image"),
    ],
)
def test_mistakes_are_one_line(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], expected: str) -> None:
    given = arguments if arguments[0].startswith("/") else (trained(), *arguments)
    code, out, err = call(capsys, "model", "chat", *given)
    assert (code, out) == (2, "")
    assert len(err.strip().splitlines()) == 1
    assert expected in err


@pytest.mark.parametrize("command", ["eval", "detect", "chat", "serve"])
def test_help_needs_no_torch(command: str) -> None:
    script = (
        "import sys\nfrom harness.cli import cli\n"
        f"cli.main(['model', '{command}', '--help'], standalone_mode=False)\n"
        "print('torch' in sys.modules, 'gradio' in sys.modules, 'matplotlib' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "False False False"
