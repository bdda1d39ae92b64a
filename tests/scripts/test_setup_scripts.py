"""The set-up scripts: the Python they take, a wheel's name in the cache, what they say when something is missing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted([*ROOT.glob("scripts/**/*.sh"), ROOT / ".ci" / "run"])


def bash(script: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run `script` with the scripts' helpers loaded; `env` replaces variables of this process."""
    text = f"set -euo pipefail; cd {ROOT}; . scripts/versions.sh; . scripts/lib.sh; {script}"
    return subprocess.run(
        ["bash", "-c", text], env={**os.environ, **env}, capture_output=True, text=True, timeout=60, check=False
    )


def fake_command(folder: Path, name: str, body: str) -> None:
    file = folder / name
    file.write_text(f"#!/bin/sh\n{body}\n")
    file.chmod(0o755)


@pytest.fixture
def empty_machine(tmp_path: Path) -> Path:
    """A PATH with the shell's basics and nothing that a build needs."""
    for name in ("sh", "bash", "env", "id", "dirname", "date", "timeout", "cat", "tail", "grep"):
        (tmp_path / name).symlink_to(shutil.which(name) or pytest.fail(f"{name} is not on this machine"))
    return tmp_path


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_shell_script_parses(script: Path) -> None:
    result = subprocess.run(["bash", "-n", script], capture_output=True, text=True, timeout=30, check=False)
    assert result.returncode == 0, result.stderr


class TestFindPython:
    def test_a_shim_that_only_prints_an_error_is_passed_over(self, tmp_path: Path) -> None:
        fake_command(tmp_path, "python3", "echo 'command not found' >&2; exit 127")
        fake_command(tmp_path, "python3.12", f'exec {sys.executable} "$@"')
        result = bash("find_python", PATH=f"{tmp_path}:{os.environ['PATH']}")
        assert result.returncode == 0, result.stderr
        assert Path(result.stdout.strip()).exists()

    def test_too_old_is_refused(self, tmp_path: Path) -> None:
        # The script compares what the interpreter says of itself, so a bound above it makes this very Python too old.
        result = bash("PYTHON_MINIMUM=99.0; find_python", PYTHON=sys.executable)
        assert result.returncode == 1
        assert result.stdout == ""

    def test_python_variable_wins_and_is_not_replaced_silently(self, tmp_path: Path) -> None:
        result = bash("find_python", PYTHON=str(tmp_path / "missing"))
        assert result.returncode == 1

    def test_in_an_environment_it_is_the_interpreter_behind_it(self) -> None:
        result = bash("find_python", PYTHON=sys.executable)
        assert result.stdout.strip() == sys._base_executable  # type: ignore[attr-defined]


class TestHorovodKey:
    def key(self, **env: str) -> str:
        command = ["bash", str(ROOT / "scripts/horovod_wheel.sh"), sys.executable, "--key"]
        result = subprocess.run(
            command, env={**os.environ, **env}, capture_output=True, text=True, timeout=120, check=False
        )
        assert result.returncode == 0, result.stderr
        return result.stdout.strip()

    def test_it_names_all_that_the_wheel_depends_on(self) -> None:
        import torch

        assert self.key() == "-".join(
            [
                "horovod-0.28.1-r1",
                f"torch{torch.__version__}",
                f"cp3{sys.version_info.minor}",
                "cpu" if torch.version.cuda is None or not torch.cuda.is_available() else self.key().split("-")[-2],
                os.uname().machine,
            ]
        )

    def test_torch_is_asked_for_in_one_line_where_it_is_missing(self, tmp_path: Path) -> None:
        fake_command(tmp_path, "python", "exit 1")
        result = subprocess.run(
            ["bash", str(ROOT / "scripts/horovod_wheel.sh"), str(tmp_path / "python"), "--key"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert result.returncode == 2
        assert len(result.stderr.splitlines()) == 1
        assert "scripts/setup.sh" in result.stderr


@pytest.mark.parametrize(
    ("given", "expected"), [("9.0", "90"), ("8.0,9.0", "80,90"), ("9.0 8.0 9.0", "80,90"), ("12.0,9.0", "90,120")]
)
def test_gpu_capabilities(given: str, expected: str) -> None:
    assert bash("gpu_capabilities", GPU_CAPABILITIES=given).stdout.strip() == expected


def test_gpu_capabilities_are_asked_of_the_driver(tmp_path: Path) -> None:
    fake_command(tmp_path, "nvidia-smi", r"case $* in *-L*) echo 'GPU 0: X';; *) printf '9.0\n9.0\n';; esac")
    result = bash("has_gpu && gpu_capabilities", PATH=f"{tmp_path}:{os.environ['PATH']}", GPU_CAPABILITIES="")
    assert result.stdout.strip() == "90"


class TestSystemPackages:
    def run(self, path: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [shutil.which("bash") or "bash", str(ROOT / "scripts/system_packages.sh")],
            env={"PATH": path, "PYTHON": sys.executable, "SETUP_BROWSER": "no", **env},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def test_without_apt_one_line_names_what_to_install(self, empty_machine: Path) -> None:
        result = self.run(str(empty_machine))
        assert result.returncode == 2
        assert len(result.stderr.splitlines()) == 1
        for package in ("openmpi-bin", "libopenmpi-dev", "cmake", "g++", "make", "openssh-client"):
            assert package in result.stderr

    def test_an_ordinary_user_without_sudo_is_told_what_to_install(self, empty_machine: Path) -> None:
        (empty_machine / "id").unlink()
        fake_command(empty_machine, "id", "echo 1000")
        fake_command(empty_machine, "apt-get", f"touch {empty_machine}/apt-was-called")
        result = self.run(str(empty_machine))
        assert result.returncode == 2
        assert "as root" in result.stderr
        assert not (empty_machine / "apt-was-called").exists()

    def test_apt_is_asked_for_what_is_missing_and_nothing_else(self, empty_machine: Path, tmp_path: Path) -> None:
        for name in ("mpirun", "mpicc", "g++", "make", "strip", "ssh", "ninja", "pdsh", "ip", "sshd"):
            fake_command(empty_machine, name, "exit 0")
        (empty_machine / "id").unlink()
        fake_command(empty_machine, "id", "echo 0")
        fake_command(empty_machine, "apt-get", f'echo "$@" >>{empty_machine}/asked')
        result = self.run(str(empty_machine), LOG=str(tmp_path / "log"))
        assert result.returncode == 0, result.stderr
        refresh, *installs = (empty_machine / "asked").read_text().splitlines()
        assert refresh.endswith("update")
        assert [line.split()[-1] for line in installs if "cmake" in line] == ["cmake"]
        assert not any(word in " ".join(installs) for word in ("openmpi", "g++", "openssh-client"))

    def wanting_pdsh(self, machine: Path, policy: str) -> None:
        for name in ("mpirun", "mpicc", "cmake", "g++", "make", "strip", "ssh", "ninja", "ip", "sshd"):
            fake_command(machine, name, "exit 0")
        (machine / "id").unlink()
        fake_command(machine, "id", "echo 0")
        fake_command(machine, "apt-get", f'echo "$@" >>{machine}/asked')
        fake_command(machine, "apt-cache", policy)

    def test_wanted_package_is_found_however_much_is_said_of_it(self, empty_machine: Path, tmp_path: Path) -> None:
        # more than a pipe holds: a reader that leaves at the first match breaks it, which once looked like "not found"
        rest = 'i=0; while [ $i -lt 9999 ]; do echo "  version table $i"; i=$((i + 1)); done'
        much = f"echo '  Candidate: 2.34-0.2'; {rest}"
        self.wanting_pdsh(empty_machine, much)
        result = self.run(str(empty_machine), LOG=str(tmp_path / "log"))
        assert result.returncode == 0, result.stderr
        assert "not to be had" not in result.stderr
        assert (empty_machine / "asked").read_text().splitlines()[-1].endswith("pdsh")

    @pytest.mark.parametrize(("everything", "code"), [("no", 0), ("yes", 2)])
    def test_wanted_package_that_is_not_to_be_had_is_an_error_in_ci_alone(
        self, empty_machine: Path, tmp_path: Path, everything: str, code: int
    ) -> None:
        self.wanting_pdsh(empty_machine, "echo '  Candidate: (none)'")
        result = self.run(str(empty_machine), LOG=str(tmp_path / "log"), SETUP_EVERYTHING=everything)
        assert result.returncode == code, result.stderr
        assert "pdsh is not to be had" in result.stderr


def test_a_failing_step_shows_its_last_lines_and_ends_with_2(tmp_path: Path) -> None:
    result = bash("step 'doing it' sh -c 'echo the cause; exit 3'; echo never", LOG=str(tmp_path / "log"))
    assert result.returncode == 2
    assert "the cause" in result.stderr
    assert "doing it: failed with exit code 3" in result.stderr
    assert "never" not in result.stdout


def test_a_step_past_its_time_limit_says_so(tmp_path: Path) -> None:
    result = bash("step waiting timeout 0.2 sleep 20", LOG=str(tmp_path / "log"))
    assert result.returncode == 2
    assert "time limit" in result.stderr


def test_what_a_step_starts_does_not_keep_the_lock(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    result = bash(
        f"exec 8>{lock}; flock 8; step start setsid sh -c 'sleep 30 & echo $! >{tmp_path}/pid'; exec 8>&-;"
        f"flock -n {lock} true && echo free; kill $(cat {tmp_path}/pid)",
        LOG=str(tmp_path / "log"),
    )
    assert result.stdout.strip() == "free", result.stderr


class TestPins:
    def test_every_constraint_is_exact_and_named_once(self) -> None:
        lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
        names = [re.fullmatch(r"([A-Za-z0-9._-]+)==[0-9][A-Za-z0-9.]*", line) for line in lines]
        assert all(names), [line for line, match in zip(lines, names, strict=True) if match is None]
        normal = [re.sub(r"[-_.]+", "-", match[1]).lower() for match in names if match]
        assert len(normal) == len(set(normal))
        assert not {"torch", "horovod"} & set(normal), "their builds depend on the machine: scripts/versions.sh"

    def test_what_the_project_needs_is_pinned(self) -> None:
        import tomllib

        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        needed = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
        pinned = dict(
            line.lower().replace("_", "-").split("==")
            for line in (ROOT / "constraints.txt").read_text().splitlines()
            if "==" in line
        )
        names = {re.split(r"[<>=!~ \[;]", text, maxsplit=1)[0].lower() for text in needed} - {"torch"}
        assert names <= set(pinned), names - set(pinned)

    def test_weights_are_pinned_by_hash(self) -> None:
        lines = [line for line in (ROOT / "requirements-weights.txt").read_text().splitlines() if line[:1] not in "#"]
        assert lines
        assert all(re.fullmatch(r"[a-z0-9-]+==[0-9.]+ --hash=sha256:[0-9a-f]{64}", line) for line in lines), lines


@pytest.fixture(scope="module")
def tracked() -> list[Path]:
    listed = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, text=True, timeout=30, check=False
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


class TestTree:
    def test_no_path_of_one_machine_and_no_registry_host(self, tracked: list[Path]) -> None:
        # Put together here, so that this file does not hold what it looks for.
        forbidden = ["/work" + "/main", "/work" + "/shared", "/.py" + "env/", "py" + "pi.org", "pythonhosted" + ".org"]
        forbidden += ["deb.debian" + ".org", "archive.ubuntu" + ".com", "registry.npmjs" + ".org", "/tmp" + "/boot"]
        found = [
            f"{path.relative_to(ROOT)}: {text}"
            for path in tracked
            if path.suffix not in {".png", ".svg"}
            for text in forbidden
            if text.encode() in path.read_bytes()
        ]
        assert not found

    def test_no_weights_and_nothing_large(self, tracked: list[Path]) -> None:
        weights = {".safetensors", ".pt", ".pth", ".ckpt", ".gguf", ".onnx", ".whl", ".so", ".npz"}
        assert not [path for path in tracked if path.suffix in weights]
        assert not [path for path in tracked if path.stat().st_size > 5 * 2**20], "no file above 5 MB"

    def test_no_private_key(self, tracked: list[Path]) -> None:
        assert not [path for path in tracked if b"PRIVATE" + b" KEY-----" in path.read_bytes()]


def test_the_hostfile_is_the_one_the_commands_use() -> None:
    assert (ROOT / "hostfile").read_text() == "a slots=1\nb slots=1\n"
