"""The house stands as drawn: imports point one way, engines stay behind the seam, start-up stays light."""

from __future__ import annotations

import ast
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("core_model", "backends", "harness", "mpi", "benchmarks")
ENGINES = {"deepspeed", "horovod"}
# package -> our packages that it may import; mpi.errors holds the base of every package's errors and imports nothing
ALLOWED = {
    "backends": {"mpi.errors"},
    "mpi": set(),
    "core_model": {"backends.base", "backends.declared", "mpi.errors"},
    "harness": {"mpi", "backends", "core_model"},
    "benchmarks": {"mpi", "backends", "core_model", "harness"},
}


def imports_of(path: Path) -> list[tuple[str, bool]]:
    """(module, at module level) of every import in a file."""
    tree = ast.parse(path.read_text())
    top = {id(node) for node in tree.body}
    for node in tree.body:  # `if TYPE_CHECKING:` costs nothing at run time and is no dependency
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for inner in ast.walk(node):
                inner.skip = True  # type: ignore[attr-defined]
    found = []
    for node in ast.walk(tree):
        if getattr(node, "skip", False):
            continue
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.append((node.module, id(node) in top))
    return found


def files() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_point_one_way(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    for module, _ in imports_of(path):
        head = module.split(".")[0]
        if head not in PACKAGES or head == package:
            continue
        allowed = any(module == name or module.startswith(name + ".") for name in ALLOWED[package])
        assert allowed, f"{path.relative_to(ROOT)} imports {module}"


def test_only_the_trainer_of_core_model_knows_the_seam() -> None:
    users = {
        path.name
        for path in (ROOT / "core_model").rglob("*.py")
        if any(module.startswith("backends") and module != "backends.declared" for module, _ in imports_of(path))
    }
    assert users == {"trainer.py"}


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_engines_are_imported_behind_the_seam_and_only_when_used(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    for module, at_top in imports_of(path):
        if module.split(".")[0] in ENGINES:
            assert package != "core_model", f"core_model knows the engine {module}"
            assert not at_top, f"{path.relative_to(ROOT)} imports {module} at module level"


def test_the_base_of_all_errors_imports_nothing() -> None:
    assert imports_of(ROOT / "mpi" / "errors.py") == [("__future__", True)], "all packages may import it"


def test_no_harness_file_hides_a_module() -> None:
    names = {path.stem for path in (ROOT / "harness").iterdir() if path.suffix == ".py"} - {"__init__", "__main__"}
    assert not names & set(sys.stdlib_module_names)


def test_top_level_is_as_the_user_fixed_it() -> None:
    for name in (
        "backends",
        "core_model",
        "harness",
        "mpi",
        "results",
        "tests",
        "pyproject.toml",
        "README.md",
        "hostfile",
    ):
        assert (ROOT / name).exists(), name


def test_help_answers_at_once_and_imports_nothing_heavy() -> None:
    code = (
        "import sys, harness.cli\n"
        "try: harness.cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'deepspeed', 'horovod', 'transformers', 'pandas', 'matplotlib', 'pynvml'}\n"
        "heavy &= set(sys.modules)\n"
        "print('HEAVY', heavy)\n"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    took = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime  # not the clock: tests share a machine
    assert "HEAVY set()" in done.stdout, done.stdout[-300:]
    assert "compare" in done.stdout
    assert took < 0.7, f"{took:.2f} s of a processor, 0.5 s on the clock of a quiet machine are promised"
