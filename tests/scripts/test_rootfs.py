"""The Dockerfile, and the script that carries out its steps without a container engine."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def rootfs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("rootfs", ROOT / "scripts" / "rootfs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["rootfs"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_parse_joins_lines_and_drops_comments(rootfs: ModuleType) -> None:
    steps = rootfs.parse("# c\nFROM debian:x\n\nRUN a && \\\n    # inside\n    b\nENV A=1\n")
    assert [(step.name, step.text, step.line) for step in steps] == [
        ("FROM", "debian:x", 2),
        ("RUN", "a && b", 4),
        ("ENV", "A=1", 7),
    ]


def test_substitute(rootfs: ModuleType) -> None:
    assert rootfs.substitute("${BASE}/$X/$GONE.", {"BASE": "b", "X": "x"}) == "b/x/."


@pytest.mark.parametrize(
    ("path", "left_out"),
    [
        (".git/config", True),
        ("a/b/__pycache__/c.pyc", True),
        ("results/s/r/checkpoint/w", True),
        ("results/s/checkpoint", False),
        ("scripts/setup.sh", False),
        (".venv", True),
    ],
)
def test_ignored(rootfs: ModuleType, path: str, left_out: bool) -> None:
    assert rootfs.ignored(path, [".git", "**/__pycache__", "results/*/*/checkpoint", ".venv"]) is left_out


def test_copy_puts_a_folder_s_content_and_leaves_out_what_is_ignored(rootfs: ModuleType, tmp_path: Path) -> None:
    context, root = tmp_path / "context", tmp_path / "root"
    (context / "code" / "__pycache__").mkdir(parents=True)
    (context / "code" / "x.py").write_text("x")
    (context / "code" / "__pycache__" / "x.pyc").write_text("x")
    (context / ".dockerignore").write_text("**/__pycache__\n")
    rootfs.copy(context, root, rootfs.Image(workdir="/opt/app"), ". .")
    rootfs.copy(context, root, rootfs.Image(workdir="/opt/app"), "code/x.py code/x.py there/")
    assert sorted(str(p.relative_to(root)) for p in root.rglob("*.py*")) == ["opt/app/code/x.py", "opt/app/there/x.py"]


def test_enter_takes_binds_before_the_dashes_and_the_command_after(
    rootfs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []
    monkeypatch.setattr(rootfs.os, "geteuid", lambda: 0)
    monkeypatch.setattr(rootfs, "enter", lambda *given: seen.append(given) or 5)
    assert rootfs.main(["enter", str(tmp_path), "--bind", "/a", "--", "run", "--bind", "x"]) == 5
    assert seen == [(tmp_path.resolve(), ["/a"], ["run", "--bind", "x"])]


def test_a_root_that_was_not_finished_is_named(
    rootfs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rootfs.os, "geteuid", lambda: 0)
    assert rootfs.main(["enter", str(tmp_path)]) == 2
    assert "image.json" in capsys.readouterr().err


def test_the_dockerfile_holds_only_steps_that_can_be_carried_out(rootfs: ModuleType) -> None:
    known = {"FROM", "ARG", "ENV", "WORKDIR", "COPY", "RUN", "EXPOSE", "ENTRYPOINT"}
    steps = rootfs.parse((ROOT / "Dockerfile").read_text())
    assert {step.name for step in steps} <= known
    for step in steps:
        for source in step.text.split()[:-1] if step.name == "COPY" else []:
            assert (ROOT / source).exists(), f"line {step.line}: {source}"


def test_no_key_enters_the_image(rootfs: ModuleType) -> None:
    runs = [step.text for step in rootfs.parse((ROOT / "Dockerfile").read_text()) if step.name == "RUN"]
    assert any("rm -f /etc/ssh/ssh_host_*" in text for text in runs), "the ssh package's host keys would be baked in"
    assert not any("ssh-keygen" in text for text in runs)
    assert rootfs.ignored("keys/id_ed25519", rootfs.read_patterns(ROOT))


def test_the_node_says_in_one_line_that_keys_are_missing(tmp_path: Path) -> None:
    result = subprocess.run(
        ["bash", ROOT / "scripts/container/node.sh"],
        env={**os.environ, "NODE_KEYS": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert "ssh-keygen" in result.stderr


@pytest.mark.nodes
def test_a_run_step_sees_a_bind_and_leaves_no_trace_of_it(rootfs: ModuleType, tmp_path: Path) -> None:
    """A root made of this machine's own /bin, /usr and /lib, so that it needs no debootstrap."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    root, shown = tmp_path / "root", tmp_path / "shown"
    shown.mkdir()
    (shown / "here").write_text("yes")
    for name in ("proc", "dev", "sys", "etc", "opt"):
        (root / name).mkdir(parents=True)
    binds = [str(path) for path in map(Path, ("/bin", "/usr", "/lib", "/lib64")) if path.exists()]
    image = rootfs.Image(workdir="/opt", env={"WORD": "set"})
    script = f"grep -q yes {shown}/here && test $WORD = set && test $PWD = /opt && echo made >/opt/file"
    assert rootfs.chroot(root, image, ["/bin/sh", "-c", script], [*binds, str(shown)], extra_env={}) == 0
    assert (root / "opt/file").read_text() == "made\n"
    assert sorted(path.name for path in root.iterdir()) == ["dev", "etc", "opt", "proc", "sys"]
    assert rootfs.chroot(root, image, ["/bin/sh", "-c", "exit 7"], binds, extra_env={}) == 7


@pytest.mark.parametrize(
    "path",
    [
        ".deepspeed_env", ".venv/bin/python", "results/scratch/run/job.json", "results/compare/report.html",
        "results/study/run/weights.safetensors", "results/study/run/checkpoint/x", "results/study/.lock",
        "keys/id_ed25519",        "build/lib/x.py", "x.egg-info/PKG-INFO", ".gpu/x", "a.whl", "core_model/x.pt",
    ],
)  # fmt: skip
def test_nothing_local_comes_into_the_image(rootfs: ModuleType, path: str) -> None:
    assert rootfs.ignored(path, rootfs.read_patterns(ROOT)), f".dockerignore lets {path} in"


def test_all_that_is_committed_comes_into_the_image(rootfs: ModuleType) -> None:
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, timeout=60, check=False
    )
    patterns = rootfs.read_patterns(ROOT)
    assert [path for path in listed.stdout.splitlines() if rootfs.ignored(path, patterns)] == []
